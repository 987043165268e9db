"""What a region is, and where exactly (Fast R-CNN, section 2): the losses and the detections of every head that says both."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.heads.mining import Every, Mining
from quadrat.heads.regions import TrainingRegions
from quadrat.heads.suppressed import suppressed
from quadrat.losses.classification import masked_mean
from quadrat.losses.regression import smooth_l1
from quadrat.ops.boxes import Weights4, decode, encode
from quadrat.ops.match import gather_rows
from quadrat.structures import Batch, Detections, Proposals


class BoxHead(nn.Module):
    """The contract: maps and regions (B, R, 4) in, logits (B, R, C + 1) and deltas (B, R, C + 1 or 1, 4) out.

    ``shared_box``: one box for all classes. ``coder`` multiplies the regression targets and ``box_beta`` bends their loss:
    hidden weights of ``region_box``. ``mining`` chooses among the sampled regions.
    """

    loss_names = ("region_class", "region_box")

    def __init__(
        self,
        num_classes: int,
        *,
        shared_box: bool = False,
        coder: Weights4 = (10.0, 10.0, 5.0, 5.0),
        box_beta: float = 1 / 9,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        most_detections: int = 100,
        min_size: float = 1e-2,
        mining: Mining | None = None,
    ) -> None:
        super().__init__()
        first, second, third, fourth = coder
        self.coder: Weights4 = (float(first), float(second), float(third), float(fourth))
        self.num_classes, self.shared_box, self.box_beta = num_classes, shared_box, box_beta
        self.score_threshold, self.nms = score_threshold, nms
        self.most_detections, self.min_size = most_detections, min_size
        self.mining = mining or Every()

    def loss(self, maps: dict[str, Tensor], regions: TrainingRegions, batch: Batch) -> dict[str, Tensor]:
        """``region_class`` over the regions that count; ``region_box`` of the positive ones, divided by all that count."""
        logits, deltas = self(maps, regions.boxes)
        classes = functional.cross_entropy(logits.flatten(0, 1), regions.labels.flatten(), reduction="none")
        classes = classes.view_as(regions.valid)
        boxes = self._box_losses(deltas, regions, batch)
        counted = self.mining(classes.detach() + boxes.detach(), regions.valid)
        return {"region_class": masked_mean(classes, counted), "region_box": masked_mean(boxes, counted)}

    def _box_losses(self, deltas: Tensor, regions: TrainingRegions, batch: Batch) -> Tensor:
        """How far off each region's own box is: (B, S), 0 for the background."""
        positive = regions.positive[..., None]
        truth = gather_rows(batch.boxes, regions.index)
        unit = torch.ones_like(regions.boxes).cumsum(-1)  # any proper box: the loss of the others is masked out
        target = encode(torch.where(positive, truth, unit), torch.where(positive, regions.boxes, unit), self.coder)
        return smooth_l1(self._own(deltas, regions.labels), target, self.box_beta).sum(-1) * regions.positive

    def _own(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """The box (B, S, 4) of each region's true class, or the one for all."""
        if self.shared_box:
            return deltas[:, :, 0]
        return deltas.gather(2, labels[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]

    def predict(self, maps: dict[str, Tensor], proposals: Proposals, batch: Batch) -> list[Detections]:
        """Score, decode and suppress every class of every proposal."""
        logits, deltas = self(maps, proposals.boxes)
        scores = logits.softmax(-1)[:, :, 1:]  # (B, R, C)
        deltas = deltas if self.shared_box else deltas[:, :, 1:]
        boxes = decode(deltas, proposals.boxes[:, :, None], self.coder)
        valid = (scores > self.score_threshold) & proposals.valid[..., None]
        settings = {"nms": self.nms, "most_detections": self.most_detections, "min_size": self.min_size}
        return suppressed(boxes, scores, valid, batch, **settings)
