"""Distances by hand."""

import math

import pytest
import torch

from quadrat.losses.regression import l1, l2, smooth_l1, wing

ZERO = torch.zeros(())


@pytest.mark.parametrize(
    ("distance", "values"),
    [
        (l2, {0.0: 0.0, 0.5: 0.25, -2.0: 4.0}),
        (l1, {0.0: 0.0, 0.5: 0.5, -2.0: 2.0}),
        (lambda x, y: smooth_l1(x, y, 1.0), {0.0: 0.0, 0.5: 0.125, -2.0: 1.5}),
        (lambda x, y: smooth_l1(x, y, 0.0), {0.0: 0.0, 0.5: 0.5, -2.0: 2.0}),
        (lambda x, y: wing(x, y, 1.0, 0.5), {0.0: 0.0, 0.5: math.log(2), -2.0: 1 + math.log(3)}),
    ],
)
def test_distance_by_hand(distance, values):
    for error, expected in values.items():
        assert distance(torch.tensor(error), ZERO).item() == pytest.approx(expected, abs=1e-6)


def test_wing_is_continuous_and_steepest_at_small_errors():
    x = torch.tensor([0.0449999, 0.0450001, 0.001, 0.2], requires_grad=True)
    values = wing(x, torch.zeros(4), 0.045, 0.009)
    (slopes,) = torch.autograd.grad(values.sum(), x)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)
    assert slopes[2] == pytest.approx(0.045 / (0.009 + 0.001), rel=1e-4)
    assert slopes[3] == 1
