"""Losses of pixels: by hand, against torch, and where nothing is labelled."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadrat.losses.pixels import (
    ClassWeights,
    PixelCrossEntropy,
    PixelDice,
    PixelFocal,
    inverse_sqrt,
    median_frequency,
)

LOSSES = {"cross_entropy": PixelCrossEntropy, "focal": PixelFocal, "dice": PixelDice}


def made(seed: int = 0, *, classes: int = 3, size: tuple[int, int] = (5, 4)) -> tuple[Tensor, Tensor]:
    """Scores (2, S, H, W) that learn, and a map in which a third of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, classes, *size, generator=generator, requires_grad=True)
    target = torch.randint(classes, (2, *size), generator=generator).to(torch.uint8)
    target[torch.rand(target.shape, generator=generator) < 0.33] = 255
    return scores, target


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_nothing_labelled_is_zero_and_has_a_gradient(loss: type[torch.nn.Module]) -> None:
    scores, target = made()
    value = loss(3)(scores, torch.full_like(target, 255), None)
    value.backward()
    assert value.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_ignored_pixels_have_no_gradient_and_others_have(loss: type[torch.nn.Module]) -> None:
    scores, target = made()
    loss(3)(scores, target, None).backward()
    assert scores.grad is not None
    touched = scores.grad.abs().sum(1) > 0
    assert touched.equal(target != 255)


# --- cross-entropy ---


def test_cross_entropy_by_hand() -> None:
    """Two pixels of two classes: scores (0, log 3) of class 1 and (0, 0) of class 0: -log 3/4 and -log 1/2."""
    scores = torch.tensor([[[[0.0, 0.0]], [[math.log(3), 0.0]]]])
    target = torch.tensor([[[1, 0]]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert PixelCrossEntropy(2)(scores, target, None).item() == pytest.approx(expected)


@pytest.mark.parametrize("class_weights", [None, [0.5, 2.0, 0.0]])
def test_cross_entropy_equals_torch(class_weights: list[float] | None) -> None:
    scores, target = made()
    weight = None if class_weights is None else torch.tensor(class_weights)
    for normaliser, reduction in (("weights", "mean"), ("none", "sum")):
        expected = functional.cross_entropy(scores, target.long(), weight, ignore_index=255, reduction=reduction)
        got = PixelCrossEntropy(3, class_weights=class_weights, normaliser=normaliser)(scores, target, None)
        torch.testing.assert_close(got, expected)


def test_cross_entropy_sum_is_the_mean_times_the_labelled_pixels() -> None:
    """So a rate for the sum is that for the mean divided by their number: 1e-10 x 500 x 375 = 1.9e-5."""
    scores, target = made()
    total, mean = (PixelCrossEntropy(3, normaliser=n)(scores, target, None) for n in ("none", "pixels"))
    assert total.item() == pytest.approx(mean.item() * int((target != 255).sum()))


def test_cross_entropy_pixel_weights_add_to_those_of_classes() -> None:
    """One pixel of class weight 2 and border weight 3 counts 5 times; the mean is over pixels."""
    scores, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    loss = PixelCrossEntropy(2, class_weights=[2.0, 1.0])
    got = loss(scores, target, torch.tensor([[[3.0, 0.0]]]))
    assert got.item() == pytest.approx((5 + 1) * math.log(2) / 2)


def test_cross_entropy_is_float32_under_autocast() -> None:
    scores, target = made()
    value = PixelCrossEntropy(3)(scores.bfloat16(), target, None)
    assert value.dtype == torch.float32


# --- class weights ---

COUNTS = torch.tensor([80.0, 10.0, 30.0, 0.0])
IN_PICTURES = torch.tensor([100.0, 50.0, 100.0, 0.0])


def test_median_frequency_by_hand() -> None:
    """Frequencies 0.8, 0.2, 0.3: median 0.3; the class that is never shown weighs nothing."""
    torch.testing.assert_close(median_frequency(COUNTS, IN_PICTURES), torch.tensor([0.375, 1.5, 1.0, 0.0]))


def test_inverse_sqrt_by_hand() -> None:
    """Shares 2/3, 1/12, 1/4: 1 / sqrt is 1.2247, 3.4641, 2, divided by their mean."""
    expected = torch.tensor([1.2247449, 3.4641016, 2.0, 0.0])
    torch.testing.assert_close(inverse_sqrt(COUNTS, IN_PICTURES), expected / expected[:3].mean())


def test_class_weights_counted_are_in_the_state() -> None:
    counted, fresh = ClassWeights(4, "median_frequency"), ClassWeights(4, "median_frequency")
    counted.count(COUNTS, IN_PICTURES)
    fresh.load_state_dict(counted.state_dict())
    assert fresh.weights.tolist() == pytest.approx([0.375, 1.5, 1.0, 0.0])


def test_class_weights_given_are_not_counted() -> None:
    given = ClassWeights(2, [1, 3])
    given.count(torch.tensor([5.0, 5.0]), torch.tensor([10.0, 10.0]))
    assert given.weights.tolist() == [1, 3]


def test_class_weights_of_the_config_hold_against_a_checkpoint() -> None:
    """A run that begins from another's weights has its own class weights."""
    given = ClassWeights(2, [1, 3])
    given.load_state_dict(ClassWeights(2).state_dict())
    assert given.weights.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("median", "median_frequency, inverse_sqrt"),
        ([1.0], "as many weights"),
        ([-1.0, 1.0], "0 or more"),
        ([0, 0], "not all 0"),
    ],
)
def test_class_weights_refused(weights: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassWeights(2, weights)


def test_normaliser_refused() -> None:
    with pytest.raises(ValueError, match="pixels, weights, none"):
        PixelCrossEntropy(2, normaliser="batch")


# --- focal and Dice ---


def test_focal_by_hand_and_gamma_zero_is_cross_entropy() -> None:
    scores = torch.tensor([[[[0.0]], [[math.log(3)]]]])
    target = torch.tensor([[[1]]])
    assert PixelFocal(2, gamma=2)(scores, target, None).item() == pytest.approx(0.25**2 * math.log(4 / 3))
    scores, target = made()
    torch.testing.assert_close(
        PixelFocal(3, gamma=0.0)(scores, target, None), PixelCrossEntropy(3)(scores, target, None)
    )


def test_focal_takes_weights_of_pixels() -> None:
    """The second pixel weighs 3 more: 1 + 4 over two pixels."""
    scores, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    got = PixelFocal(2, gamma=1)(scores, target, torch.tensor([[[0.0, 3.0]]]))
    assert got.item() == pytest.approx(5 * 0.5 * math.log(2) / 2)


def test_focal_gradient_is_finite_where_a_pixel_is_certain() -> None:
    scores = torch.tensor([[[[100.0]], [[0.0]]]], requires_grad=True)
    PixelFocal(2, gamma=0.5)(scores, torch.tensor([[[0]]]), None).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_dice_by_hand() -> None:
    """Two pixels, class 0 and 1, both at (1/2, 1/2): each class 2 * 0.5 / (1 + 1) = 1/2. A right answer: 0."""
    scores, target = torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 1]]])
    scores[:, 2] = -100
    assert PixelDice(3)(scores, target, None).item() == pytest.approx(0.5)
    right = torch.tensor([[[[50.0, 0]], [[0, 50.0]], [[0, 0]]]])
    assert PixelDice(3)(right, target, None).item() == pytest.approx(0, abs=1e-6)
