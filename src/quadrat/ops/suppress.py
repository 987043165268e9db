"""Non-maximum suppression over a padded batch: fixed shapes in, fixed shapes out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms


class Kept(NamedTuple):
    """``index`` (B, K) rows that survive, best first; ``valid`` (B, K) false where fewer did."""

    index: Tensor
    valid: Tensor


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, threshold: float, keep: int) -> Kept:
    """Greedy suppression of boxes (B, N, 4) by scores (B, N) within each image and group (B, N); at most ``keep`` an image.

    Coordinates are those of clipped boxes, 0 or more. The host waits for the kernel alone: for the length of its result, and
    with very many boxes, where torchvision goes through the groups one by one, for that of each group.
    """
    count, length = scores.shape
    image = torch.arange(count, device=boxes.device)[:, None]
    # an empty box overlaps nothing, so it suppresses nothing; doubles, because the kernel separates groups by large offsets
    solid = torch.where(valid[..., None], boxes, 0.0).double()
    survivors = batched_nms(
        solid.reshape(-1, 4), scores.double().reshape(-1), (groups * count + image).reshape(-1), threshold
    )
    alive = torch.zeros(count * length, dtype=torch.bool, device=boxes.device)
    alive = alive.index_fill(0, survivors, True).reshape(count, length) & valid
    ranked = torch.where(alive, scores.float(), -torch.inf)
    values, index = ranked.topk(min(keep, length), dim=1)
    return Kept(index=index, valid=values > -torch.inf)
