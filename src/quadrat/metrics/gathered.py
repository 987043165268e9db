"""Rows of many pictures on many ranks: numbered so that no two pictures share a number, joined again after gathering."""

from __future__ import annotations

import torch
from torch import Tensor


def numbered(rows: Tensor, seen: Tensor) -> Tensor:
    """Turn places in a batch, in the first column of (N, D), into numbers that no other picture of any rank has.

    ``seen`` is how many pictures this rank had before. Flat (N * D,), because torchmetrics gathers a rank without pictures as
    an empty tensor of one dimension.
    """
    world, rank = 1, 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    rows = rows.detach().to(seen.device)
    rows[:, 0] = (rows[:, 0] + seen) * world + rank
    return rows.flatten()


def joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor, whether ranks were gathered, one rank ran alone, or nothing came."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.zeros(0)
