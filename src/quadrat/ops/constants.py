"""Small constant tensors, made once per device: copying one from the host inside a step would make the host wait."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=512)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a tensor (n,) that may be used in training and in inference alike; never write to it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
