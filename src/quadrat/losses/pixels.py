"""Losses of pixels: scores (B, S, H, W) against a semantic map (B, H, W) whose value 255 counts for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.structures import IGNORE_INDEX

Scheme = Literal["median_frequency", "inverse_sqrt"]


class PixelLoss(Protocol):
    """A scalar from scores (B, S, H, W), a map (B, H, W) of 0..S-1 or 255, and weights (B, H, W) added to those of classes."""

    def __call__(self, scores: Tensor, target: Tensor, weights: Tensor | None) -> Tensor: ...


class ClassWeights(nn.Module):
    """What each class of pixels weighs, (S,): 1, given numbers, or numbers counted from the training set by a scheme.

    ``median_frequency``: median(f) / f_c, f_c the pixels of c over the pixels of the pictures that show c (Eigen and Fergus
    2015; SegNet). ``inverse_sqrt``: 1 / sqrt(share of c), scaled to a mean of 1. A class that the set does not show weighs 0.
    A scheme must be told the counts (`count`) before training; they travel in the checkpoint.
    """

    weights: Tensor

    def __init__(self, num_classes: int, scheme: Scheme | Sequence[float] | None = None) -> None:
        super().__init__()
        self.scheme = scheme if isinstance(scheme, str) else None
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise ValueError(f"class weights are {', '.join(SCHEMES)}, a list of numbers or null, got {scheme!r}")
        given = [1.0] * num_classes if scheme is None or self.scheme else [float(weight) for weight in scheme]
        if len(given) != num_classes:
            raise ValueError(f"{num_classes} classes of pixels need as many weights, got {len(given)}: {given}")
        if not all(weight >= 0 for weight in given) or not any(given):
            raise ValueError(f"class weights are 0 or more and not all 0, got {given}")
        self.register_buffer("weights", torch.tensor(given))

    def count(self, pixels: Tensor, in_pictures: Tensor) -> None:
        """Take the weights from the pixels of each class (S,), and all pixels of the pictures where it occurs (S,)."""
        if self.scheme is not None:
            self.weights.copy_(SCHEMES[self.scheme](pixels.double(), in_pictures.double()))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if self.scheme is None:  # what the config gives holds, also for a run that begins from another's weights
            state_dict[f"{prefix}weights"] = self.weights
        super()._load_from_state_dict(state_dict, prefix, *rest)


def median_frequency(pixels: Tensor, in_pictures: Tensor) -> Tensor:
    """median(f) / f_c over the classes that occur: (S,)."""
    frequency = pixels / in_pictures.clamp(min=1)
    shown = frequency > 0
    return torch.where(shown, frequency[shown].quantile(0.5) / frequency.where(shown, 1.0), 0.0)


def inverse_sqrt(pixels: Tensor, in_pictures: Tensor) -> Tensor:
    """1 / sqrt(share), scaled to a mean of 1 over the classes that occur: (S,)."""
    shown = pixels > 0
    weights = torch.where(shown, (pixels / pixels.sum()).where(shown, 1.0).rsqrt(), 0.0)
    return weights / weights[shown].mean()


SCHEMES = {"median_frequency": median_frequency, "inverse_sqrt": inverse_sqrt}


class PixelCrossEntropy(nn.Module):
    """Softmax cross-entropy of labelled pixels, each times the weight of its class plus its own (U-Net, eq. 2).

    ``normaliser``: ``pixels``, the mean over labelled pixels of the batch; ``weights``, divided by the sum of their weights
    (torch's own); ``none``, the sum, as FCN's released code, whose learning rate of 1e-10 for pictures of 500 x 375 pixels is
    1e-10 x 187500 = 1.9e-5 for the mean.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_weights: Scheme | Sequence[float] | None = None,
        normaliser: Literal["pixels", "weights", "none"] = "pixels",
    ) -> None:
        super().__init__()
        if normaliser not in NORMALISERS:
            raise ValueError(f"normaliser is one of {', '.join(NORMALISERS)}, got {normaliser!r}")
        self.class_weights = ClassWeights(num_classes, class_weights)
        self.normaliser = normaliser

    def forward(self, scores: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        target, labelled = target.long(), target != IGNORE_INDEX
        terms = functional.cross_entropy(scores.float(), target, ignore_index=IGNORE_INDEX, reduction="none")
        weight = self.class_weights.weights[target.where(labelled, 0)]
        weight = (weight if weights is None else weight + weights) * labelled
        return (terms * weight).sum() / NORMALISERS[self.normaliser](weight, labelled)


NORMALISERS = {
    "pixels": lambda weight, labelled: labelled.sum().clamp(min=1),
    "weights": lambda weight, labelled: weight.sum().clamp(min=1e-6),
    "none": lambda weight, labelled: 1,
}


class PixelFocal(nn.Module):
    """Cross-entropy times (1 - p) ** gamma, the mean over labelled pixels (Lin et al., ICCV 2017, eq. 4, without alpha).

    A pixel of weight w counts 1 + w times, as in `PixelCrossEntropy`.
    """

    def __init__(self, num_classes: int, *, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, scores: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        labelled = target != IGNORE_INDEX
        terms = functional.cross_entropy(scores.float(), target.long(), ignore_index=IGNORE_INDEX, reduction="none")
        # 1 - p from its logarithm: exact where p is near 1
        focus = (-torch.expm1(-terms)).clamp(min=1e-12) ** self.gamma
        weight = labelled if weights is None else labelled * (1 + weights)
        return (focus * terms * weight).sum() / labelled.sum().clamp(min=1)


class PixelDice(nn.Module):
    """1 - the mean Dice coefficient of the classes that the batch shows (Milletari et al., 3DV 2016, soft, unsquared).

    It is of regions and takes no weights of pixels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, scores: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        labelled = target != IGNORE_INDEX
        shares = scores.float().softmax(1) * labelled[:, None]
        wanted = functional.one_hot(target.long().where(labelled, 0), self.num_classes).movedim(-1, 1)
        wanted = wanted * labelled[:, None]
        both, each = (shares * wanted).sum((0, 2, 3)), (shares + wanted).sum((0, 2, 3))
        shown = wanted.sum((0, 2, 3)) > 0
        coefficients = 2 * both / each.clamp(min=1e-6)
        return ((1 - coefficients) * shown).sum() / shown.sum().clamp(min=1)
