"""Sliding windows counted and placed by hand."""

import numpy as np
import pytest

from quadrat.ops.window_grid import all_boxes, places, window_grid
from quadrat.proposers.sliding_windows import SlidingWindows


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_windows_by_hand() -> None:
    """The whole height first, half a window apart; then halves of it, from side to side."""
    found = SlidingWindows(scales=(0.5, 1.0), ratios=(1.0,), stride=0.5)(picture(4, 6))
    assert found.dtype == np.float32
    assert found[:2].tolist() == [[0, 0, 4, 4], [2, 0, 6, 4]]
    assert found[2:].tolist() == [[x, y, x + 2, y + 2] for y in (0, 1, 2) for x in (0, 1, 2, 3, 4)]


def test_ratio_is_height_over_width_at_the_same_area() -> None:
    (tall,) = SlidingWindows(scales=(0.5,), ratios=(4.0,), stride=10.0)(picture(8, 8))[:1].tolist()
    assert tall == [0, 0, 2, 8]


def test_windows_are_cut_to_the_picture_and_none_is_twice() -> None:
    """Both scales are the whole picture, and so are both ratios."""
    find = SlidingWindows(scales=(2.0, 4.0), ratios=(0.5, 1.0, 2.0), stride=0.5)
    assert find(picture(5, 5)).tolist() == [[0, 0, 5, 5]]
    assert find.count((5, 5)) == 1


def test_a_picture_of_one_pixel_is_one_window() -> None:
    assert SlidingWindows()(picture(1, 1)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("size", [(375, 500), (31, 7), (2, 90)])
@pytest.mark.parametrize("stride", [0.1, 0.3, 1.5])
def test_windows_inside_distinct_and_as_many_as_counted(size: tuple[int, int], stride: float) -> None:
    find = SlidingWindows(scales=(1.0, 0.7, 0.3), stride=stride)
    found = find(picture(*size))
    assert len(found) == find.count(size) == len(np.unique(found, axis=0))
    assert found.min() >= 0
    assert (found[:, 2:] <= [size[1], size[0]]).all()
    areas = (found[:, 2:] - found[:, :2]).prod(1)
    assert (np.diff(areas) <= 1e-4 * areas.max()).all()


def test_same_windows_at_every_resolution() -> None:
    find = SlidingWindows()
    np.testing.assert_allclose(find(picture(300, 400)), 2 * find(picture(150, 200)), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("length", "side", "stride", "number"),
    [(10, 10, 0.5, 1), (10, 5, 1.0, 2), (10, 5, 0.5, 3), (11, 5, 0.5, 4), (10, 4, 0.1, 16), (3, 0.3, 0.1, 91)],
)
def test_places_in_a_row(length: float, side: float, stride: float, number: int) -> None:
    """At most a stride apart, and from end to end: 3 - 0.3 is 90 strides of 0.03, whatever floats say."""
    assert places(length, side, stride) == number
    corners = window_grid((8, round(length)), (8, side), stride)[:, 0]
    assert len(corners) == number
    assert np.diff(corners).max(initial=0) <= stride * side + 1e-5


def test_all_boxes_with_whole_corners() -> None:
    """By enumeration in a small picture, and the number of the docs."""
    low_high = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    inside = [1 for x1, x2 in low_high for y1, y2 in low_high if x2 <= 5 and y2 <= 3]
    assert all_boxes((3, 5)) == len(inside)
    assert all_boxes((1, 1)) == 1
    assert all_boxes((375, 500)) == 8_830_125_000


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"scales": ()}, "scales"), ({"ratios": (1.0, 0.0)}, "ratios"), ({"stride": 0.0}, "stride")],
)
def test_settings_that_cannot_be(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"{said} .* above 0"):
        SlidingWindows(**settings)


def test_settings_from_a_config_are_frozen() -> None:
    listed = SlidingWindows(scales=[1.0], ratios=[1.0])
    assert listed == SlidingWindows(scales=(1.0,), ratios=(1.0,))
    assert repr(listed) == "SlidingWindows(scales=(1.0,), ratios=(1.0,), stride=0.25)"
