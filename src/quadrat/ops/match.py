"""Which truth does a box answer for?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quadrat.ops.boxes import area, intersection, over_union

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Match(NamedTuple):
    """``state`` (B, N) int8 positive, negative or ignored; ``index`` (B, N) the best object's row; ``quality`` (B, N) its IoU."""

    state: Tensor
    index: Tensor
    quality: Tensor


def match(
    boxes: Tensor,
    truth: Tensor,
    valid: Tensor,
    ignore: Tensor,
    *,
    positive: float,
    negative: tuple[float, float],
    best_per_object: bool,
    ignore_coverage: float = 0.7,
) -> Match:
    """Match boxes (N, 4) or (B, N, 4) to the padded truth (B, M, 4) of every image at once.

    A box is positive from IoU ``positive`` on, negative where its best IoU lies in [negative[0], negative[1]), ignored
    between. ``best_per_object``: every object's best boxes, ties included, are positive too (Faster R-CNN, section 3.1.2).
    A box that is not positive and lies in an object to ignore (VOC difficult, COCO crowd) by more than ``ignore_coverage``
    is ignored (Detectron's crowd rule).
    """
    boxes = boxes if boxes.ndim == 3 else boxes[None]
    common = intersection(boxes, truth)  # (B, N, M)
    areas = area(boxes)
    overlaps = over_union(common, areas, area(truth))
    overlaps = torch.where((valid & ~ignore)[:, None], overlaps, -1.0)
    in_ignored = ((common > ignore_coverage * areas[..., None]) & (valid & ignore)[:, None]).any(dim=2)  # (B, N)

    quality, index = overlaps.max(dim=2)
    quality = quality.clamp(min=0.0)  # -1 where there are no objects
    is_positive = quality >= positive
    if best_per_object:
        best = overlaps.amax(dim=1, keepdim=True)  # (B, 1, M)
        is_positive = is_positive | ((overlaps == best) & (best > 0)).any(dim=2)
    is_negative = (quality >= negative[0]) & (quality < negative[1]) & ~in_ignored
    state = torch.full_like(index, IGNORED, dtype=torch.int8)
    state = torch.where(is_negative, NEGATIVE, state)
    state = torch.where(is_positive, POSITIVE, state)  # after the negatives: a best box may be one of them
    return Match(state, index, quality)


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Pick rows of (B, M, ...) by index (B, N) -> (B, N, ...)."""
    if rows.ndim == 2:
        return rows.gather(1, index)
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
