"""The box head on pooled regions (Fast R-CNN, section 2.1): of every two-stage detector but R-FCN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from quadrat.heads.box_head import BoxHead
from quadrat.heads.region_pool import RegionPool


class RegionBox(BoxHead):
    """Pool, hidden layers, then C + 1 class scores and a box per class, or one box for all (``shared_box``).

    ``box_head`` are the settings of `BoxHead`.
    """

    def __init__(self, pool: RegionPool, layers: Callable[..., nn.Module], num_classes: int, **box_head: Any) -> None:
        super().__init__(num_classes, **box_head)
        self.pool = pool
        self.layers = layers(pool.channels, pool.bins)
        width = int(self.layers.out_features)  # pyright: ignore[reportArgumentType]
        self.classes = nn.Linear(width, num_classes + 1)
        self.boxes = nn.Linear(width, 4 if self.shared_box else 4 * (num_classes + 1))
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.boxes.bias)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, C + 1) and deltas (B, R, C + 1 or 1, 4) of regions (B, R, 4)."""
        hidden = self.layers(self.pool(maps, boxes))
        count, regions = boxes.shape[:2]
        logits = self.classes(hidden).float().reshape(count, regions, -1)
        return logits, self.boxes(hidden).float().reshape(count, regions, -1, 4)
