"""How a region becomes a feature of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone, Features
from quadrat.ops.crops import crop_resize
from quadrat.ops.rois import assign_levels, closest_levels, pyramid_pool, roi_align, roi_pool


class RegionPool(nn.Module):
    """The contract: maps and regions (B, R, 4) in, (B * R, ``channels``, ``bins``, ``bins``) out."""

    channels: int
    bins: int


class MapPool(RegionPool):
    """Each region is read from one of the maps: from one on which its size is about ``canonical_size`` pixels at stride 16."""

    def __init__(self, upstream: Features, *, bins: int, canonical_size: float) -> None:
        super().__init__()
        self.names = upstream.region_maps
        self.strides = [upstream.strides[name] for name in self.names]
        self.channels = upstream.out_channels[self.names[0]]
        self.bins, self.canonical_size = bins, canonical_size

    def levels(self, boxes: Tensor) -> Tensor:
        """Which map each region (B, R, 4) is read from -> (B, R)."""
        return assign_levels(boxes, self.strides, canonical_size=self.canonical_size)


class RoIAlign(MapPool):
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


class RoIPool(MapPool):
    """Largest value per cell with whole-pixel borders (Fast R-CNN, section 2.1)."""

    def __init__(self, upstream: Features, *, bins: int = 7, canonical_size: float = 224) -> None:
        super().__init__(upstream, bins=bins, canonical_size=canonical_size)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        return roi_pool([maps[name] for name in self.names], self.strides, boxes, self.levels(boxes), bins=self.bins)


class PyramidPool(MapPool):
    """Largest values in n x n cells for each n of ``cells`` (SPPNet, section 4): (B * R, D * sum of n * n, 1, 1).

    With maps of several scales of the picture, a region is read from the one where its area is closest to ``canonical_size``
    squared.
    """

    def __init__(self, upstream: Features, *, cells: Sequence[int] = (6, 3, 2, 1), canonical_size: float = 224) -> None:
        super().__init__(upstream, bins=1, canonical_size=canonical_size)
        self.cells = tuple(cells)
        self.channels *= sum(n * n for n in self.cells)

    def levels(self, boxes: Tensor) -> Tensor:
        return closest_levels(boxes, self.strides, cells=self.canonical_size / 16)

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        chosen = [maps[name] for name in self.names]
        return pyramid_pool(chosen, self.strides, boxes, self.levels(boxes), bins=self.cells)[:, :, None, None]


class WarpedCNN(RegionPool):
    """The whole network for each region by itself (R-CNN, section 2.1): its pixels are warped to ``size`` x ``size``.

    The region is enlarged so that ``context`` pixels of the warped one surround it; what lies outside the picture is 0, the mean.
    The last map of ``backbone`` is brought to ``bins`` x ``bins`` by the largest values; ``chunk`` regions a picture at a time.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        size: int = 227,
        context: int = 16,
        bins: int = 6,
        samples: int = 1,
        chunk: int = 128,
        image: str = "image",
    ) -> None:
        super().__init__()
        if not 0 <= 2 * context < size:
            raise ValueError(
                f"a region keeps some of its {size} pixels: context={context} is 0 or more, less than half"
            )
        self.backbone, self.size, self.context = backbone, size, context
        self.map = backbone.region_maps[-1]
        self.channels, self.bins = backbone.out_channels[self.map], bins
        self.pool = nn.AdaptiveMaxPool2d(bins)
        self.samples, self.chunk, self.image = samples, chunk, image

    def forward(self, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
        images = maps[self.image]
        parts = [self._seen(images, part) for part in self.surrounded(boxes).split(self.chunk, dim=1)]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def surrounded(self, boxes: Tensor) -> Tensor:
        """Regions (B, R, 4) with their context."""
        middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
        half = half * (self.size / (self.size - 2 * self.context))
        return torch.cat([middle - half, middle + half], dim=-1)

    def _seen(self, images: Tensor, boxes: Tensor) -> Tensor:
        """What the network sees in regions (B, R, 4): (B, R, D, bins, bins)."""
        crops = crop_resize(images, boxes, (self.size, self.size), samples=self.samples).flatten(0, 1)
        return self.pool(self.backbone(crops)[self.map]).unflatten(0, boxes.shape[:2])
