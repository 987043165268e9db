"""The pictures of recall, overlap and numbers of proposals."""

import numpy as np

from quadrat.plots.proposals import (
    SELECTIVE_SEARCH_VOC07,
    draw_overlap_by_number,
    draw_recall_by_iou,
    draw_recall_by_number,
)

NUMBERS = np.array([100, 1000, 10000])
LOW, HIGH = np.array([0.1, 0.2, 0.3]), np.array([0.7, 0.8, 0.9])


def coloured(picture: np.ndarray) -> int:
    """Pixels of the curves' colours."""
    return int((picture.max(axis=2).astype(int) - picture.min(axis=2) > 60).sum())


def test_no_curve_is_an_empty_frame() -> None:
    picture = draw_overlap_by_number({}, {})
    assert picture.shape == (420, 1040, 3)
    assert coloured(picture) == 0


def test_every_finder_has_its_curve() -> None:
    one = draw_recall_by_number({"fast": (NUMBERS, LOW)})
    two = draw_recall_by_number({"fast": (NUMBERS, LOW), "quality": (NUMBERS, HIGH)})
    assert one.dtype == np.uint8
    assert coloured(two[:200]) > 300  # the upper half holds the second curve alone
    assert coloured(one[:200]) == 0


def test_published_figures_are_marked_when_asked_for() -> None:
    curves = {"fast": (NUMBERS, LOW)}
    plain, marked = draw_recall_by_number(curves), draw_recall_by_number(curves, SELECTIVE_SEARCH_VOC07)
    black = [(picture[20:120, 70:620] < 60).all(axis=2).sum() for picture in (plain, marked)]
    assert black[0] == 0
    assert black[1] > 60
    assert [(one.name, one.recall, one.mabo, one.proposals) for one in SELECTIVE_SEARCH_VOC07] == [
        ("single", 0.84, 0.69, 289),
        ("fast", 0.98, 0.804, 2134),
        ("quality", 0.991, 0.879, 10097),
    ]


def test_overlap_is_on_the_left_and_recall_on_the_right() -> None:
    picture = draw_overlap_by_number({"fast": (NUMBERS, HIGH)}, {"fast": (NUMBERS, LOW)})
    assert coloured(picture[:200, :520]) > 100
    assert coloured(picture[:200, 520:]) == 0
    assert coloured(picture[200:340, 520:]) > 100


def test_recall_falls_with_the_overlap_asked_for() -> None:
    picture = draw_recall_by_iou(np.linspace(0.5, 1, 3), {"fast": np.array([1, 0.8, 0.7])})
    assert picture.shape == (420, 640, 3)
    left, right = (_height(picture[:, columns]) for columns in (np.s_[80:200], np.s_[450:600]))
    assert left < right - 20


def _height(picture: np.ndarray) -> float:
    """The mean row of what is coloured."""
    return float(np.argwhere(np.ptp(picture, axis=2) > 60)[:, 0].mean())
