"""Regions found beforehand (R-CNN, Fast R-CNN): those that came with the pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Features
from quadrat.ops.boxes import area
from quadrat.structures import Batch, Proposals

LACKING = (
    "this model reads regions found beforehand, and the data has none: add data/proposals=selective_search (or sliding_windows, "
    "or file)"
)


class Precomputed(nn.Module):
    """Hands on the best ``train_limits`` regions of each picture in training, ``test_limits`` otherwise; it learns nothing.

    Raises ValueError for pictures without regions.
    """

    loss_names = ()
    names: tuple[str, ...] = ()

    def __init__(self, upstream: Features, *, train_limits: int = 2000, test_limits: int = 2000) -> None:
        super().__init__()
        self.train_limits, self.test_limits = train_limits, test_limits

    def forward(self, maps: dict[str, Tensor]) -> None:
        """Nothing is looked at."""

    def propose(self, judged: None, batch: Batch, limits: int) -> Proposals:
        """The first ``limits`` regions of each picture; they have no scores but their order."""
        if batch.proposals is None:
            raise ValueError(LACKING)
        boxes = batch.proposals[:, :limits]
        order = torch.linspace(1, 0, boxes.shape[1] + 1, device=boxes.device)[:-1]
        return Proposals(boxes, order.expand(len(boxes), -1), area(boxes) > 0)

    def loss(self, judged: None, batch: Batch) -> dict[str, Tensor]:
        return {}
