"""Losses of one box against one box: distances of their numbers, or how little they overlap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quadrat.losses.regression import Distance
from quadrat.ops.boxes import area


class Coded(NamedTuple):
    """Boxes twice: as the numbers (N, 4) that a head predicts, and as x1 y1 x2 y2 (N, 4)."""

    codes: Tensor
    boxes: Tensor


BoxLoss = Callable[[Coded, Coded], Tensor]
"""Terms (N,) of boxes that were found, against the true ones."""


class CodeLoss(nn.Module):
    """The sum of a distance over the four numbers of a box."""

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, found: Coded, truth: Coded) -> Tensor:
        return self.distance(found.codes, truth.codes).sum(-1)


class OverlapLoss(nn.Module):
    """1 - ``overlap`` of the boxes themselves, whatever the numbers they are coded in."""

    def __init__(self, overlap: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.overlap = overlap

    def forward(self, found: Coded, truth: Coded) -> Tensor:
        return 1 - self.overlap(found.boxes, truth.boxes)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) and (..., 4), row by row: 0..1 (Yu et al., ACM MM 2016)."""
    return _overlap(a, b)[0]


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the share of the smallest box around both that neither fills: -1..1 (Rezatofighi et al., CVPR 2019)."""
    shared, union = _overlap(a, b)
    around = area(_around(a, b)).clamp(min=TINY)
    return shared - (around - union) / around


def diou(a: Tensor, b: Tensor) -> Tensor:
    """IoU less the squared distance of the centres over the squared diagonal of the box around both (Zheng, AAAI 2020)."""
    return iou(a, b) - _offset(a, b)


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """DIoU less how unlike the aspect ratios are (Zheng, AAAI 2020, equations 8 to 11); its factor has no gradient."""
    shared = iou(a, b)
    unlike = (4 / torch.pi**2) * (_angle(b) - _angle(a)).square()
    with torch.no_grad():
        factor = unlike / (1 - shared + unlike).clamp(min=TINY)
    return shared - _offset(a, b) - factor * unlike


TINY = 1e-7


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and union."""
    inner = torch.cat([torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])], dim=-1)
    common = area(inner)
    union = area(a) + area(b) - common
    return common / union.clamp(min=TINY), union


def _around(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1)


def _offset(a: Tensor, b: Tensor) -> Tensor:
    around = _around(a, b)
    diagonal = (around[..., 2:] - around[..., :2]).square().sum(-1).clamp(min=TINY)
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return centres.square().sum(-1) / diagonal


def _angle(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=TINY).unbind(-1)
    return torch.atan(width / height)
