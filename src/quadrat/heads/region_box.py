"""What a region is, and where exactly (Fast R-CNN, section 2): the box head of every two-stage detector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quadrat.heads.region_pool import RegionPool
from quadrat.heads.regions import TrainingRegions
from quadrat.losses.classification import cross_entropy
from quadrat.losses.regression import smooth_l1
from quadrat.ops.boxes import Weights4, clip, decode, encode
from quadrat.ops.match import gather_rows
from quadrat.ops.suppress import suppress
from quadrat.structures import Batch, Detections, Proposals


class RegionBox(nn.Module):
    """Pool, two hidden layers, then C + 1 class scores and a box per class, or one box for all (``shared_box``).

    ``coder`` multiplies the regression targets and ``box_beta`` bends their loss: hidden weights of ``region_box``.
    """

    loss_names = ("region_class", "region_box")

    def __init__(
        self,
        pool: RegionPool,
        layers: Callable[..., nn.Module],
        num_classes: int,
        *,
        shared_box: bool = False,
        coder: Weights4 = (10.0, 10.0, 5.0, 5.0),
        box_beta: float = 1 / 9,
        score_threshold: float = 0.05,
        nms: float = 0.5,
        most_detections: int = 100,
        min_size: float = 1e-2,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.layers = layers(pool.channels, pool.bins)
        self.num_classes, self.shared_box = num_classes, shared_box
        width = int(self.layers.out_features)  # pyright: ignore[reportArgumentType]
        self.classes = nn.Linear(width, num_classes + 1)
        self.boxes = nn.Linear(width, 4 if shared_box else 4 * (num_classes + 1))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.boxes.bias)
        first, second, third, fourth = coder
        self.coder: Weights4 = (float(first), float(second), float(third), float(fourth))
        self.box_beta = box_beta
        self.score_threshold, self.nms = score_threshold, nms
        self.most_detections, self.min_size = most_detections, min_size

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, C + 1) and deltas (B, R, C + 1 or 1, 4) of regions (B, R, 4)."""
        hidden = self.layers(self.pool(maps, boxes))
        count, regions = boxes.shape[:2]
        logits = self.classes(hidden).float().reshape(count, regions, -1)
        return logits, self.boxes(hidden).float().reshape(count, regions, -1, 4)

    def loss(self, maps: dict[str, Tensor], regions: TrainingRegions, batch: Batch) -> dict[str, Tensor]:
        """``region_class`` over all sampled regions; ``region_box`` of the positive ones, divided by all sampled regions."""
        logits, deltas = self(maps, regions.boxes)
        if self.shared_box:
            own = deltas[:, :, 0]
        else:
            own = deltas.gather(2, regions.labels[..., None, None].expand(-1, -1, 1, 4))[
                :, :, 0
            ]  # the true class's box
        positive = regions.positive[..., None]
        truth = gather_rows(batch.boxes, regions.index)
        unit = torch.ones_like(regions.boxes).cumsum(-1)  # any proper box: the loss of the others is masked out
        target = encode(torch.where(positive, truth, unit), torch.where(positive, regions.boxes, unit), self.coder)
        box = smooth_l1(own, target, self.box_beta).sum(-1)
        return {
            "region_class": cross_entropy(logits, regions.labels, regions.valid),
            "region_box": (box * regions.positive).sum() / regions.valid.sum().clamp(min=1),
        }

    def predict(self, maps: dict[str, Tensor], proposals: Proposals, batch: Batch) -> list[Detections]:
        """Score, decode and suppress every class of every proposal."""
        logits, deltas = self(maps, proposals.boxes)
        scores = logits.softmax(-1)[:, :, 1:]  # (B, R, C)
        deltas = deltas if self.shared_box else deltas[:, :, 1:]
        boxes = decode(deltas, proposals.boxes[:, :, None], self.coder)
        boxes = boxes.expand(-1, -1, self.num_classes, -1).flatten(1, 2)  # (B, R * C, 4)
        boxes = clip(boxes, batch.sizes)
        solid = ((boxes[..., 2:] - boxes[..., :2]) >= self.min_size).all(-1)
        valid = (scores > self.score_threshold) & proposals.valid[..., None]
        return self._suppressed(boxes, scores.flatten(1), valid.flatten(1) & solid, batch)

    def _suppressed(self, boxes: Tensor, scores: Tensor, valid: Tensor, batch: Batch) -> list[Detections]:
        # most candidates are far below the threshold: only as many as the fullest image has go on
        fullest = max(1, int(valid.sum(1).max()))
        ranked, index = torch.where(valid, scores, -1.0).topk(min(fullest, scores.shape[1]), dim=1)
        boxes, labels = gather_rows(boxes, index), index % self.num_classes + 1
        kept = suppress(boxes, ranked, labels, ranked >= 0, threshold=self.nms, keep=self.most_detections)
        boxes, labels = gather_rows(boxes, kept.index), gather_rows(labels, kept.index)
        ranked = gather_rows(ranked, kept.index)
        return [
            Detections(boxes[i][kept.valid[i]], ranked[i][kept.valid[i]], labels[i][kept.valid[i]], target.size)
            for i, target in enumerate(batch.targets)
        ]
