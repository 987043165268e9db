"""How a region becomes a feature of fixed size."""

from __future__ import annotations

from torch import Tensor, nn

from quadrat.backbones.base import Features
from quadrat.ops.rois import assign_levels, roi_align, roi_pool


class RegionPool(nn.Module):
    """The contract: maps and regions (B, R, 4) in, (B * R, channels, bins, bins) out; each region is read from one map."""

    def __init__(self, upstream: Features, *, bins: int, canonical_size: float) -> None:
        super().__init__()
        self.names = upstream.region_maps
        self.strides = [upstream.strides[name] for name in self.names]
        self.channels = upstream.out_channels[self.names[0]]
        self.bins, self.canonical_size = bins, canonical_size

    def levels(self, boxes: Tensor) -> Tensor:
        """Which map each region (B, R, 4) is read from -> (B, R)."""
        return assign_levels(boxes, self.strides, canonical_size=self.canonical_size)


class RoIAlign(RegionPool):
    """Bilinear reads without rounding (Mask R-CNN, section 3)."""

    def __init__(
        self, upstream: Features, *, bins: int = 7, samples: int = 2, aligned: bool = True, canonical_size: float = 224
    ) -> None:
        super().__init__(upstream, bins=bins, canonical_size=canonical_size)
        self.samples, self.aligned = samples, aligned

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        chosen = [maps[name] for name in self.names]
        return roi_align(
            chosen,
            self.strides,
            boxes,
            self.levels(boxes),
            bins=self.bins,
            samples=self.samples,
            aligned=self.aligned,
        )


class RoIPool(RegionPool):
    """Largest value per cell with whole-pixel borders (Fast R-CNN, section 2.1)."""

    def __init__(self, upstream: Features, *, bins: int = 7, canonical_size: float = 224) -> None:
        super().__init__(upstream, bins=bins, canonical_size=canonical_size)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        return roi_pool([maps[name] for name in self.names], self.strides, boxes, self.levels(boxes), bins=self.bins)
