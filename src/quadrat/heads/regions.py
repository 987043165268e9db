"""The regions a head is trained on: proposals and truth, matched and sampled."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from quadrat.ops.match import gather_rows, match
from quadrat.ops.sample import sample
from quadrat.structures import Batch, Detections, Proposals


class TrainingRegions(NamedTuple):
    """S regions an image: ``boxes`` (B, S, 4), ``labels`` (B, S) 0 for background, ``index`` (B, S) the object each answers
    for, ``positive`` and ``valid`` (B, S); what is not valid is padding."""

    boxes: Tensor
    labels: Tensor
    index: Tensor
    positive: Tensor
    valid: Tensor


class RegionHead(Protocol):
    """What reads regions of maps: its terms in training, its detections of proposals otherwise; a module."""

    @property
    def loss_names(self) -> tuple[str, ...]: ...

    @property
    def layers(self) -> Any:
        """The hidden layers: what is largest of it."""
        ...

    def loss(self, maps: dict[str, Tensor], regions: TrainingRegions, batch: Batch) -> dict[str, Tensor]: ...

    def predict(self, maps: dict[str, Tensor], proposals: Proposals, batch: Batch) -> list[Detections]: ...


class RegionSampler:
    """Add the truth to the proposals, match by IoU, and draw ``count`` an image, at most ``positive_fraction`` positive.

    ``background_iou`` is the band [low, high) of best IoU that makes a negative; Fast R-CNN took [0.1, 0.5).
    """

    def __init__(
        self,
        count: int = 512,
        positive_fraction: float = 0.25,
        positive_iou: float = 0.5,
        background_iou: tuple[float, float] = (0.0, 0.5),
    ) -> None:
        self.count, self.positive_fraction = count, positive_fraction
        self.positive_iou, self.background_iou = positive_iou, (background_iou[0], background_iou[1])

    @torch.no_grad()
    def __call__(self, proposals: Proposals, batch: Batch) -> TrainingRegions:
        boxes = torch.cat([proposals.boxes, batch.boxes], dim=1)  # (B, R + M, 4)
        real = torch.cat([proposals.valid, batch.valid & ~batch.ignore], dim=1)
        matched = match(
            boxes,
            batch.boxes,
            batch.valid,
            batch.ignore,
            positive=self.positive_iou,
            negative=self.background_iou,
            best_per_object=False,
        )
        drawn = sample(torch.where(real, matched.state, -1), self.count, self.positive_fraction)
        index = gather_rows(matched.index, drawn.index)
        labels = torch.where(drawn.positive, gather_rows(batch.labels, index), 0)
        chosen = torch.where(drawn.valid[..., None], gather_rows(boxes, drawn.index), 0.0)
        return TrainingRegions(chosen, labels, index, drawn.positive & drawn.valid, drawn.valid)
