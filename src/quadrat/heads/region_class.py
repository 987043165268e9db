"""What a region is, its box taken as it was proposed: the head of R-CNN, SPPNet and the sliding window."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from quadrat.heads.region_pool import RegionPool
from quadrat.heads.regions import TrainingRegions
from quadrat.heads.suppressed import suppressed
from quadrat.losses.classification import cross_entropy
from quadrat.structures import Batch, Detections, Proposals


class RegionClass(nn.Module):
    """Pool, hidden layers, then C + 1 class scores under a softmax (R-CNN, section 2.3: fine-tuning)."""

    loss_names = ("region_class",)

    def __init__(
        self,
        pool: RegionPool,
        layers: Callable[..., nn.Module],
        num_classes: int,
        *,
        score_threshold: float = 0.05,
        nms: float = 0.3,
        most_detections: int = 100,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.layers = layers(pool.channels, pool.bins)
        self.num_classes = num_classes
        self.classes = nn.Linear(int(self.layers.out_features), num_classes + 1)  # pyright: ignore[reportArgumentType]
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.zeros_(self.classes.bias)
        self.score_threshold, self.nms, self.most_detections = score_threshold, nms, most_detections

    def hidden(self, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Of regions (B, R, 4): what is pooled (B * R, D, bins, bins), and the hidden layers' numbers (B * R, width)."""
        pooled = self.pool(maps, boxes)
        return pooled, self.layers(pooled)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """Logits (B, R, C + 1) of regions (B, R, 4)."""
        return self.classes(self.hidden(maps, boxes)[1]).float().reshape(*boxes.shape[:2], -1)

    def loss(self, maps: dict[str, Tensor], regions: TrainingRegions, batch: Batch) -> dict[str, Tensor]:
        """``region_class`` over all sampled regions."""
        return {"region_class": cross_entropy(self(maps, regions.boxes), regions.labels, regions.valid)}

    def predict(self, maps: dict[str, Tensor], proposals: Proposals, batch: Batch) -> list[Detections]:
        """The proposals of every class that score above the threshold, suppressed."""
        scores = self(maps, proposals.boxes).softmax(-1)[:, :, 1:]
        valid = (scores > self.score_threshold) & proposals.valid[..., None]
        boxes = proposals.boxes[:, :, None]
        return suppressed(boxes, scores, valid, batch, nms=self.nms, most_detections=self.most_detections)
