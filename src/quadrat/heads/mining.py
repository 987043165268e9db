"""Which of the sampled regions a step learns from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Mining(Protocol):
    """Which regions (B, S) count, of those that are ``valid`` (B, S), each with its loss (B, S)."""

    def __call__(self, losses: Tensor, valid: Tensor) -> Tensor: ...


class Every:
    """All of them."""

    def __call__(self, losses: Tensor, valid: Tensor) -> Tensor:
        return valid


class Hardest:
    """The ``count`` of each picture with the largest losses: online hard example mining (Shrivastava et al., CVPR 2016)."""

    def __init__(self, count: int = 128) -> None:
        if count < 1:
            raise ValueError(f"hard example mining keeps 1 or more regions, got count={count}")
        self.count = count

    @torch.no_grad()
    def __call__(self, losses: Tensor, valid: Tensor) -> Tensor:
        keys, index = torch.where(valid, losses, -1.0).topk(min(self.count, losses.shape[1]), dim=1)
        return torch.zeros_like(valid).scatter(1, index, keys >= 0)
