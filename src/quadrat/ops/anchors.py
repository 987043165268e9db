"""Base boxes and the grids they are laid on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pyramid_anchors(strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> list[Tensor]:
    """For each stride, boxes of side ``scale * stride`` in every ratio (height / width), centred on 0: L of (A, 4).

    Corners are rounded to pixels; the anchors of FPN detectors in Detectron and torchvision.
    """
    tall = torch.sqrt(torch.tensor(ratios, dtype=torch.float32))[:, None]
    levels = []
    for stride in strides:
        sizes = torch.tensor(scales, dtype=torch.float32) * stride
        widths, heights = (1 / tall * sizes).reshape(-1), (tall * sizes).reshape(-1)
        levels.append((torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round())
    return levels


def reference_anchors(strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> list[Tensor]:
    """The anchors of the Faster R-CNN paper's code, centred on the middle of a cell: L of (A, 4).

    Each ratio is applied to the cell itself and rounded there, then scaled, as in its `generate_anchors`.
    """
    return [_reference_level(stride, scales, ratios) for stride in strides]


def _reference_level(stride: int, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    centre = stride / 2
    boxes = []
    for ratio in ratios:
        width = round((stride * stride / ratio) ** 0.5)
        height = round(width * ratio)
        for scale in scales:
            w, h = width * scale / 2, height * scale / 2
            boxes.append([centre - w, centre - h, centre + w, centre + h])
    return torch.tensor(boxes, dtype=torch.float32)


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Base boxes (A, 4) at every cell of a height x width grid -> (height * width * A, 4), cell by cell, row by row."""
    y = torch.arange(height, dtype=base.dtype, device=base.device) * stride
    x = torch.arange(width, dtype=base.dtype, device=base.device) * stride
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack([columns, rows, columns, rows], dim=-1).reshape(-1, 1, 4)  # (H*W, 1, 4)
    return (shift + base).reshape(-1, 4)
