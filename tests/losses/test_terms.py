"""The loss terms by hand."""

import math

import pytest
import torch
from torch.nn import functional

from quadrat.losses.classification import binary_cross_entropy, cross_entropy, masked_mean
from quadrat.losses.regression import smooth_l1


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, [0, 0.05, 0.1, 1, 3]),
        (1 / 9, [0, 0.01125, 0.045, 1 - 1 / 18, 3 - 1 / 18]),
        (1.0, [0, 0.00125, 0.005, 0.5, 2.5]),
    ],
    ids=["beta 0", "beta 1/9", "beta 1"],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_smooth_l1_by_hand(beta: float, expected: list[float], sign: int):
    difference = torch.tensor([0, 0.05, 0.1, 1, 3]) * sign
    torch.testing.assert_close(smooth_l1(2 + difference, torch.full((5,), 2.0), beta), torch.tensor(expected))


def test_smooth_l1_keeps_the_shape():
    assert smooth_l1(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4), 1.0).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("terms", "valid", "mean"),
    [
        ([], [], 0),
        ([5.0, 7.0], [False, False], 0),
        ([5.0, 7.0], [True, False], 5),
        ([5.0, 7.0, 9.0], [True, False, True], 7),
    ],
)
def test_masked_mean(terms: list[float], valid: list[bool], mean: float):
    assert masked_mean(torch.tensor(terms), torch.tensor(valid, dtype=torch.bool)).item() == mean


def test_masked_mean_without_rows_has_gradient_zero():
    terms = torch.ones(2, 3, requires_grad=True)
    masked_mean(terms, torch.zeros(2, 3, dtype=torch.bool)).backward()
    assert terms.grad.abs().sum() == 0


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, math.log(3), math.log(3), 50.0]])  # probabilities 1/2, 3/4, 3/4 and 1
    target = torch.tensor([[True, True, False, False]])
    valid = torch.tensor([[True, True, True, False]])
    expected = (math.log(2) + math.log(4 / 3) + math.log(4)) / 3
    assert binary_cross_entropy(logits, target, valid).item() == pytest.approx(expected)


def test_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.6, 0.2], [1, 1e-9, 1e-9]]]))
    labels = torch.tensor([[0, 2], [2, 1]])
    valid = torch.tensor([[True, True], [True, False]])
    expected = (math.log(2) - math.log(0.8) - math.log(0.2)) / 3
    assert cross_entropy(logits, labels, valid).item() == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_valid_rows_equals_torch():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 8, 5, generator=generator), torch.randint(5, (3, 8), generator=generator)
    valid = torch.rand(3, 8, generator=generator) < 0.6
    torch.testing.assert_close(
        cross_entropy(logits, labels, valid), functional.cross_entropy(logits[valid], labels[valid])
    )


@pytest.mark.parametrize("loss", ["binary", "classes"])
def test_a_class_loss_without_valid_rows_is_zero(loss: str):
    none = torch.zeros(2, 3, dtype=torch.bool)
    if loss == "binary":
        assert binary_cross_entropy(torch.randn(2, 3), none, none).item() == 0
    else:
        assert cross_entropy(torch.randn(2, 3, 5), none.long(), none).item() == 0
