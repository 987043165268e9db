"""Selective Search as a finder: the paper's versions in pictures resized as R-CNN resizes them."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from quadrat.proposers.selective_search import SelectiveSearch


def squares(height: int = 200, width: int = 250) -> np.ndarray:
    """A red and a green square, 60 pixels wide, and a white one of 8, on grey."""
    image = np.full((height, width, 3), 100, np.uint8)
    image[20:80, 30:90] = (220, 30, 30)
    image[100:160, 150:210] = (30, 200, 40)
    image[180:188, 20:28] = 255
    return image


def near(found: np.ndarray, box: list[float], pixels: float) -> bool:
    return bool((np.abs(found - np.array(box)).max(1) <= pixels).any())


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
def test_objects_are_found_in_pixels_of_the_picture(mode: Any) -> None:
    """Half as wide at width 125; a region ends within the smoothing, two pixels there, four here."""
    found = SelectiveSearch(mode, width=125)(squares())
    assert found.dtype == np.float32
    assert near(found, [30, 20, 90, 80], 4)
    assert near(found, [150, 100, 210, 160], 4)
    assert near(found, [0, 0, 250, 200], 0)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= [250, 200]).all()


def test_least_side_is_measured_in_the_resized_picture() -> None:
    """The white square is 8 pixels wide, 16 at R-CNN's width."""
    assert near(SelectiveSearch(min_side=16)(squares()), [20, 180, 28, 188], 1)
    sides = np.diff(SelectiveSearch(min_side=20)(squares()).reshape(-1, 2, 2), axis=1)
    assert sides.min() >= 10


def test_as_it_is_without_a_width() -> None:
    assert not np.mod(SelectiveSearch(width=None)(squares()), 1).any()
    assert np.array_equal(SelectiveSearch(width=None)(squares()), SelectiveSearch(width=250)(squares()))


def test_nothing_large_enough_is_no_box() -> None:
    found = SelectiveSearch(width=None)(np.zeros((10, 300, 3), np.uint8))
    assert found.shape == (0, 4)
    assert found.dtype == np.float32


def test_a_picture_of_one_pixel_is_one_box() -> None:
    assert SelectiveSearch(width=40)(np.zeros((1, 1, 3), np.uint8)).tolist() == [[0, 0, 1, 1]]


def test_grey_pictures_have_boxes() -> None:
    grey = np.repeat(squares()[..., :1], 3, axis=2)
    assert near(SelectiveSearch(width=None)(grey), [30, 20, 90, 80], 2)


def test_same_settings_same_boxes() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    find = SelectiveSearch(width=None, min_side=5)
    assert np.array_equal(find(image), find(image))
    assert repr(find) == "SelectiveSearch(mode='fast', width=None, min_side=5, seed=0)"


SLOW: dict = {"mode": "slow"}


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="single, fast, quality, got 'slow'"):
        SelectiveSearch(**SLOW)
    with pytest.raises(ValueError, match=r"width is a number of pixels or None .* got 0"):
        SelectiveSearch(width=0)


def test_the_compiler_is_imported_at_the_first_picture() -> None:
    use = "from quadrat.proposers.selective_search import SelectiveSearch; SelectiveSearch()"
    program = f"import sys; {use}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
