"""The picture of PDJ curves."""

import numpy as np

from quadrat.plots.pdj import draw_pdj

FRACTIONS = np.arange(51) / 100


def test_no_curve_is_an_empty_frame() -> None:
    assert draw_pdj(FRACTIONS, {}).shape == (420, 640, 3)


def test_curves_are_drawn_the_mean_in_black() -> None:
    picture = draw_pdj(FRACTIONS, {"ankle": FRACTIONS * 2, "mean": FRACTIONS})
    without = draw_pdj(FRACTIONS, {"ankle": FRACTIONS * 2})
    assert picture.shape == (420, 640, 3)
    assert picture.dtype == np.uint8
    inside = np.s_[100:250, 300:480]  # the mean runs here, below the ankles
    assert (picture[inside] == 0).all(axis=2).sum() > 100
    assert not (without[inside] == 0).all(axis=2).any()
