"""Regions of one or several feature maps, resampled to one size.

Regions are (B, R, 4) in pixels of the image; the result is (B * R, D, bins, bins).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import ps_roi_pool as _ps_roi_pool
from torchvision.ops import roi_pool as _roi_pool

from quadrat.ops.constants import constant


def assign_levels(
    boxes: Tensor, strides: Sequence[int], *, canonical_size: float = 224, canonical_stride: int = 16
) -> Tensor:
    """Index 0..L-1 of the map each box (..., 4) is read from: bigger boxes from coarser maps (FPN, equation 1).

    The maps are given finest first, each of twice the stride of the one before.
    """
    size = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).clamp(min=0).sqrt()
    # the epsilon puts a box of exactly twice the canonical size on the coarser map, as in torchvision
    level = torch.floor(torch.log2(size / canonical_size) + math.log2(canonical_stride) + 1e-6)
    return (level - math.log2(min(strides))).clamp(min=0, max=len(strides) - 1).long()


class _Grid(NamedTuple):
    """Where to sample on one axis: the two neighbours (R, S) and the share of the upper one (R, S); ``inside`` (R, S)."""

    low: Tensor
    high: Tensor
    share: Tensor
    inside: Tensor


def roi_align(
    maps: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    levels: Tensor,
    *,
    bins: int,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Average of ``samples`` x ``samples`` bilinear reads in each of ``bins`` x ``bins`` cells (Mask R-CNN, section 3).

    Maps are L of (B, D, H, W), levels (B, R). ``aligned`` puts pixel centres at half coordinates; without it the reads are
    half a cell off, as in the first released models. All maps are one table of rows and every bin is one weighted bag of
    rows, so that regions of all levels and images go through one kernel, without asking the host which is which.
    """
    count, regions = levels.shape
    device = boxes.device
    heights = constant(tuple(m.shape[-2] for m in maps), torch.long, device)  # (L,)
    widths = constant(tuple(m.shape[-1] for m in maps), torch.long, device)
    cells = heights * widths
    starts = torch.cumsum(cells * count, 0) - cells * count  # first row of each level in the table
    level = levels.reshape(-1)
    image = torch.arange(count, device=device).repeat_interleave(regions)
    height, width = heights[level], widths[level]  # (B*R,)
    start = starts[level] + image * cells[level]
    scale = 1.0 / constant(tuple(strides), torch.float32, device)[level]

    scaled = boxes.float().reshape(-1, 4) * scale[:, None] - (0.5 if aligned else 0.0)
    y = _axis(scaled[:, 1], scaled[:, 3], height, bins, samples, aligned)
    x = _axis(scaled[:, 0], scaled[:, 2], width, bins, samples, aligned)
    rows, shares = _corners(y, x, start, width, bins, samples)
    table = torch.cat([m.float().permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])  # (rows, D)
    bags = functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    return bags.reshape(-1, bins, bins, table.shape[1]).permute(0, 3, 1, 2)


def _axis(low: Tensor, high: Tensor, length: Tensor, bins: int, samples: int, aligned: bool) -> _Grid:
    """Sampling positions along one axis for regions [low, high) (R,) on maps of ``length`` (R,) cells."""
    extent = high - low if aligned else (high - low).clamp(min=1.0)
    steps = (torch.arange(bins * samples, device=low.device, dtype=low.dtype) + 0.5) / (bins * samples)
    position = low[:, None] + extent[:, None] * steps  # (R, bins * samples)
    last = (length - 1)[:, None]
    inside = (position >= -1.0) & (position <= length[:, None])
    position = torch.minimum(position.clamp(min=0), last.to(position.dtype))
    floor = position.floor()
    below = floor.long()
    return _Grid(below, torch.minimum(below + 1, last), position - floor, inside)


def _corners(y: _Grid, x: _Grid, start: Tensor, width: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Rows of the table and their weights, both (R * bins * bins, samples * samples * 4)."""

    def spread(grid_y: Tensor, grid_x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, bins * samples) per axis -> (R, bins, 1, samples, 1) and (R, 1, bins, 1, samples)."""
        shape = (-1, bins, samples)
        return grid_y.reshape(shape)[:, :, None, :, None], grid_x.reshape(shape)[:, None, :, None, :]

    inside_y, inside_x = spread(y.inside, x.inside)
    weight = (inside_y & inside_x).float() / (samples * samples)
    rows, shares = [], []
    for row, share_y in ((y.low, 1 - y.share), (y.high, y.share)):
        for column, share_x in ((x.low, 1 - x.share), (x.high, x.share)):
            row_5d, column_5d = spread(row, column)
            weight_y, weight_x = spread(share_y, share_x)
            rows.append(start[:, None, None, None, None] + row_5d * width[:, None, None, None, None] + column_5d)
            shares.append(weight * weight_y * weight_x)
    bag = (-1, samples * samples * 4)
    return torch.stack(rows, dim=3).reshape(bag), torch.stack(shares, dim=3).reshape(bag)


def closest_levels(boxes: Tensor, strides: Sequence[float], *, cells: float) -> Tensor:
    """Index 0..L-1 of the map on which each box (..., 4) has an area closest to ``cells`` x ``cells`` (SPPNet, section 4.1)."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return torch.stack([(area / stride**2 - cells**2).abs() for stride in strides]).argmin(0)


def roi_pool(maps: Sequence[Tensor], strides: Sequence[float], boxes: Tensor, levels: Tensor, *, bins: int) -> Tensor:
    """Largest value in each of ``bins`` x ``bins`` cells with whole-pixel borders (Fast R-CNN, section 2.1)."""

    def pool(features: Tensor, rows: Tensor, stride: float) -> Tensor:
        return _roi_pool(features, rows, (bins, bins), 1.0 / stride)

    return _from_own_map(maps, strides, boxes, levels, pool)


def pyramid_pool(
    maps: Sequence[Tensor], strides: Sequence[float], boxes: Tensor, levels: Tensor, *, bins: Sequence[int]
) -> Tensor:
    """Largest values in n x n cells for each n of ``bins``: (B * R, D * sum of n * n) (SPPNet, section 4.1).

    A region takes the cells of the map whose centres lie inside it, the nearest one where there is none (`cells_inside`).
    """

    def pool(features: Tensor, rows: Tensor, stride: float) -> Tensor:
        last = constant((features.shape[3] - 1, features.shape[2] - 1) * 2, torch.float32, rows.device)
        whole_cells = torch.cat([rows[:, :1], torch.minimum(cells_inside(rows[:, 1:], stride), last)], dim=1)
        return torch.cat([_roi_pool(features, whole_cells, (n, n), 1.0).flatten(1) for n in bins], dim=1)

    return _from_own_map(maps, strides, boxes, levels, pool)


def cells_inside(boxes: Tensor, stride: float) -> Tensor:
    """First and last cells (..., 4), inclusive, whose centres lie inside boxes (..., 4).

    The centre of cell i is pixel i times ``stride``. In numbers of pixels, left and top are floor(x / S) + 1, right and bottom
    ceil(x / S) - 1 (SPPNet, appendix A); a pixel lies half a unit behind its number in our coordinates.
    """
    pixels = boxes - 0.5
    first, last = torch.floor(pixels[..., :2] / stride) + 1, torch.ceil(pixels[..., 2:] / stride) - 1
    middle = torch.round((pixels[..., :2] + pixels[..., 2:]) / (2 * stride)).clamp(min=0)
    some = last >= first
    return torch.cat([torch.where(some, first, middle), torch.where(some, last, middle)], dim=-1)


def ps_roi_pool(planes: Tensor, stride: float, boxes: Tensor, *, bins: int) -> Tensor:
    """Cell (i, j) of each region is the mean of planes of that cell alone (R-FCN, equation 1): (B * R, D, bins, bins).

    ``planes`` (B, D * bins * bins, H, W): channel d * bins * bins + i * bins + j serves cell (i, j) of channel d.
    """
    rows = torch.cat([_images(boxes), boxes.float().reshape(-1, 4)], dim=1)
    return _ps_roi_pool(planes.float(), rows, bins, 1.0 / stride)


def _from_own_map(
    maps: Sequence[Tensor],
    strides: Sequence[float],
    boxes: Tensor,
    levels: Tensor,
    pool: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """Every region (B, R, 4) pooled from the map of its level (B, R).

    It is pooled from every map, with an empty box on all but its own, which keeps the shapes fixed.
    """
    image, flat, level = _images(boxes), boxes.float().reshape(-1, 4), levels.reshape(-1)
    total: Tensor | None = None
    for index, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        here = (level == index)[:, None]
        result = pool(features.float(), torch.cat([image, torch.where(here, flat, 0.0)], dim=1), stride)
        own = torch.where(here.view(-1, *[1] * (result.ndim - 1)), result, 0.0)
        total = own if total is None else total + own
    assert total is not None
    return total


def _images(boxes: Tensor) -> Tensor:
    """The number of the image of each region of (B, R, 4): (B * R, 1)."""
    count, regions = boxes.shape[:2]
    return torch.arange(count, device=boxes.device, dtype=torch.float32).repeat_interleave(
        regions, output_size=count * regions
    )[:, None]
