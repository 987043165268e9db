"""The one object of a picture that a model of one object is about."""

from __future__ import annotations

import torch
from torch import Tensor

from quadrat.ops.boxes import area


def principal(boxes: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of boxes (..., M, 4) the index (...) of the largest among those that count (..., M), and whether there is one (...)."""
    areas = torch.where(counts, area(boxes), -1.0)
    best = areas.max(dim=-1)
    return best.indices, best.values >= 0
