"""R-FCN's head (Dai et al., NIPS 2016): maps that know where in an object they are, pooled and voted, nothing per region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Features
from quadrat.heads.box_head import BoxHead
from quadrat.ops.rois import ps_roi_pool


class PositionSensitive(BoxHead):
    """A 1x1 convolution to ``hidden``, then bins x bins x (C + 1) score maps and as many x 4 box maps from the last map.

    Cell (i, j) of a region is the mean over it of the maps of that cell alone; the cells vote by their mean. One box for all
    classes: the released code has a second one for the background, which nothing reads. ``box_head`` are the settings of
    `BoxHead`.
    """

    def __init__(
        self, upstream: Features, num_classes: int, *, bins: int = 7, hidden: int = 1024, **box_head: Any
    ) -> None:
        super().__init__(num_classes, shared_box=True, **box_head)
        self.map = upstream.region_maps[-1]
        self.stride, self.bins = upstream.strides[self.map], bins
        self.layers = nn.Sequential(nn.Conv2d(upstream.out_channels[self.map], hidden, 1), nn.ReLU(inplace=True))
        self.classes = nn.Conv2d(hidden, bins * bins * (num_classes + 1), 1)
        self.boxes = nn.Conv2d(hidden, bins * bins * 4, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, C + 1) and deltas (B, R, 1, 4) of regions (B, R, 4)."""
        hidden = self.layers(maps[self.map])
        planes = torch.cat([self.classes(hidden), self.boxes(hidden)], dim=1)  # one pass of pooling for both
        votes = ps_roi_pool(planes, self.stride, boxes, bins=self.bins).mean((2, 3)).reshape(*boxes.shape[:2], -1)
        return votes[..., :-4], votes[..., None, -4:]
