"""Losses of continuous numbers, element by element."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Distance(Protocol):
    """How far numbers (...) are from what they should be (...), element by element: (...)."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """x^2: the lecture's and DeepPose's (Toshev and Szegedy, CVPR 2014, equation 4); without the half that some write."""
    return (prediction - target).square()


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """|x|."""
    return (prediction - target).abs()


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Element-wise 0.5 x^2 / beta below ``beta`` and |x| - 0.5 beta above it; beta 0 is L1 (Fast R-CNN, equation 3)."""
    if beta == 0:
        return l1(prediction, target)
    return functional.smooth_l1_loss(prediction, target, reduction="none", beta=beta)


def wing(prediction: Tensor, target: Tensor, width: float, curvature: float) -> Tensor:
    """w log(1 + |x| / e) below ``width`` w and |x| - C above it, joined by C (Feng et al., CVPR 2018, equation 5).

    Small errors pull harder than under L1. The paper's w = 10 and ``curvature`` e = 2 are pixels of a face of 224.
    """
    distance = l1(prediction, target)
    offset = width - width * math.log1p(width / curvature)
    return torch.where(distance < width, width * torch.log1p(distance / curvature), distance - offset)
