"""Losses of continuous numbers."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Element-wise 0.5 x^2 / beta below ``beta`` and |x| - 0.5 beta above it; beta 0 is L1 (Fast R-CNN, equation 3)."""
    if beta == 0:
        return (prediction - target).abs()
    return functional.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
