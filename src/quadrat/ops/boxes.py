"""Box arithmetic in the project's convention: x1 y1 x2 y2, pixels, continuous, ends exclusive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quadrat.ops.constants import constant

MAX_LOG_SCALE = math.log(1000 / 16)
"""Decoded sizes grow at most by this factor's exponential, so that an untrained network cannot overflow (Detectron)."""

Weights4 = tuple[float, float, float, float]


def area(boxes: Tensor) -> Tensor:
    """Area of boxes (..., 4) -> (...); a box turned inside out has area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection area of (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    size = (high - low).clamp(min=0)  # (..., N, M, 2)
    return size[..., 0] * size[..., 1]


def over_union(common: Tensor, areas_a: Tensor, areas_b: Tensor) -> Tensor:
    """Intersections (..., N, M) of boxes with areas (..., N) and (..., M) as shares of the unions; two empty boxes have 0."""
    union = areas_a[..., :, None] + areas_b[..., None, :] - common
    return common / union.clamp(min=torch.finfo(common.dtype).tiny)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection over union of (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    return over_union(intersection(a, b), area(a), area(b))


def whole(sizes: Tensor) -> Tensor:
    """The boxes (B, 4) that are all of pictures of ``sizes`` (B, 2) height, width."""
    return torch.cat([torch.zeros_like(sizes), sizes.flip(-1)], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes (B, N, 4) to images of ``sizes`` (B, 2) height, width."""
    limit = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)  # (B, 1, 4) width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limit)


def encode(boxes: Tensor, anchors: Tensor, weights: Weights4) -> Tensor:
    """Offsets (..., 4) from anchors to boxes: (dx/w, dy/h, log w'/w, log h'/h) times ``weights`` (R-CNN, appendix C)."""
    widths, heights = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    new_widths, new_heights = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    dx = (boxes[..., 0] + 0.5 * new_widths - anchors[..., 0] - 0.5 * widths) / widths
    dy = (boxes[..., 1] + 0.5 * new_heights - anchors[..., 1] - 0.5 * heights) / heights
    deltas = torch.stack([dx, dy, torch.log(new_widths / widths), torch.log(new_heights / heights)], dim=-1)
    return deltas * constant(weights, deltas.dtype, deltas.device)


def decode(deltas: Tensor, anchors: Tensor, weights: Weights4) -> Tensor:
    """Boxes (..., 4) that ``encode`` would turn into these deltas (..., 4)."""
    dx, dy, dw, dh = (deltas / constant(weights, deltas.dtype, deltas.device)).unbind(-1)
    widths, heights = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    x = anchors[..., 0] + 0.5 * widths + dx * widths
    y = anchors[..., 1] + 0.5 * heights + dy * heights
    half_width = 0.5 * widths * torch.exp(dw.clamp(max=MAX_LOG_SCALE))
    half_height = 0.5 * heights * torch.exp(dh.clamp(max=MAX_LOG_SCALE))
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)
