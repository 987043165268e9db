"""A fixed number of boxes per image, at random, without leaving the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quadrat.ops.match import NEGATIVE, POSITIVE


class Sampled(NamedTuple):
    """``index`` (B, S) rows drawn, positives first; ``positive`` (B, S); ``valid`` (B, S) false where too few were left."""

    index: Tensor
    positive: Tensor
    valid: Tensor


def sample(state: Tensor, count: int, positive_fraction: float) -> Sampled:
    """Draw ``count`` of N boxes per image from ``state`` (B, N): at most that fraction positive, the rest negative.

    Every box gets a random key; the largest keys win. Positives that miss their quota are not drawn; negatives fill up.
    """
    quota = int(count * positive_fraction)
    count = min(count, state.shape[1])
    drawn = torch.rand(state.shape, device=state.device)
    positive = state == POSITIVE
    chosen = _largest(torch.where(positive, drawn, -1.0), quota)  # (B, N)
    keys = torch.where(state == NEGATIVE, drawn, -1.0)
    keys = torch.where(chosen, drawn + 2.0, keys)  # before every negative
    keys, index = keys.topk(count, dim=1)
    return Sampled(index=index, positive=keys > 1.0, valid=keys >= 0.0)


def _largest(keys: Tensor, quota: int) -> Tensor:
    """Mask (B, N) of the ``quota`` largest non-negative keys in each row."""
    values, index = keys.topk(min(quota, keys.shape[1]), dim=1)
    return torch.zeros_like(keys, dtype=torch.bool).scatter(1, index, values >= 0.0)
