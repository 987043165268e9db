"""Heads that score every pixel: from maps by name to scores (B, S, h, w), which a model brings to the picture's size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import Features
from quadrat.ops.unpool import bilinear_kernel, fit
from quadrat.ops.windows import crop


class PixelHead(nn.Module):
    """From maps by name and a size (H, W) to scores (B, S, H, W).

    ``staged`` are the beginnings of the names of parameters that a coarser head of its family lacks, so that training may begin
    from the weights of that one.
    """

    staged: tuple[str, ...] = ()

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class LinearScores(PixelHead):
    """One convolution from a map to the scores of S classes; ``map`` null: the finest one."""

    def __init__(self, upstream: Features, num_classes: int, *, map: str | None = None, kernel: int = 1) -> None:
        super().__init__()
        self.map = chosen(upstream, map)
        self.scores = nn.Conv2d(upstream.out_channels[self.map], num_classes, kernel, padding=kernel // 2)

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        return resized(self.scores(maps[self.map]), size)


class HiddenScores(PixelHead):
    """A hidden convolution before the scores: torchvision's FCN head (3x3 to a quarter of the channels, norm, ReLU, dropout).

    ``kernel`` 1 makes it the two-layer classifier of Farabet et al. (TPAMI 2013).
    """

    def __init__(
        self,
        upstream: Features,
        num_classes: int,
        *,
        map: str | None = None,
        hidden: int | None = None,
        kernel: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.map = chosen(upstream, map)
        before = upstream.out_channels[self.map]
        hidden = hidden or before // 4
        self.layers = nn.Sequential(
            nn.Conv2d(before, hidden, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        return resized(self.layers(maps[self.map]), size)


class SkipScores(PixelHead):
    """FCN-32s, 16s, 8s (Long et al., CVPR 2015): a 1x1 scorer on each of ``maps``, coarse to fine, summed on the way up.

    From one map to the next a 4x4 transposed convolution of stride 2, bilinear at the start and learned; to the picture a fixed
    bilinear one of kernel 2s and stride s. Scorers begin at 0, so that a net with one more skip begins as the coarser one.
    ``scales`` multiply the maps before their scorers (at-once training: 1, 0.01, 0.0001). ``offsets``: how far each map begins
    inside what is upsampled to it, last the picture (FCN's padding of 100: 5, 9, 31); null: maps that lie centred.
    """

    def __init__(
        self,
        upstream: Features,
        num_classes: int,
        maps: Sequence[str],
        *,
        scales: Sequence[float] | None = None,
        offsets: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in maps if name not in upstream.out_channels]
        if missing or not maps:
            raise ValueError(f"skips are maps of the backbone, {list(upstream.out_channels)}, got {list(maps)}")
        self.maps, self.stride = tuple(maps), upstream.strides[maps[-1]]
        for coarse, fine in pairwise(maps):
            if upstream.strides[coarse] != 2 * upstream.strides[fine]:
                raise ValueError(
                    f"each skip is twice as fine as the one before, got strides {upstream.strides} for {maps}"
                )
        self.scales = tuple(scales or [1.0] * len(maps))
        self.offsets = None if offsets is None else tuple(offsets)
        if len(self.scales) != len(maps) or (self.offsets is not None and len(self.offsets) != len(maps)):
            raise ValueError(f"{len(maps)} skips need as many scales and offsets, got {scales} and {offsets}")
        self.staged = tuple(f"{part}.{name}." for name in maps[1:] for part in ("score", "up"))
        self.score = nn.ModuleDict({name: _zero_scorer(upstream.out_channels[name], num_classes) for name in maps})
        self.up = nn.ModuleDict({name: _bilinear_doubling(num_classes) for name in maps[1:]})

    def forward(self, maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        first = self.maps[0]
        scores = self.score[first](maps[first] * self.scales[0])
        for place, name in enumerate(self.maps[1:], start=1):
            own = self.score[name](maps[name] * self.scales[place])
            above = self.up[name](scores)
            if self.offsets is None:  # centred maps: the whole of the transposed one begins a pixel before
                scores = own + fitted(above, (own.shape[2], own.shape[3]), 1)
            else:
                scores = (
                    crop(own, (above.shape[2], above.shape[3]), (self.offsets[place - 1], self.offsets[place - 1]))
                    + above
                )
        kernel = bilinear_kernel(2 * self.stride).to(scores)
        planes = functional.conv_transpose2d(scores.flatten(0, 1)[:, None], kernel[None, None], stride=self.stride)
        planes = planes.view(*scores.shape[:2], *planes.shape[2:])
        return fitted(planes, size, self.stride // 2 if self.offsets is None else self.offsets[-1])


def _zero_scorer(channels: int, num_classes: int) -> nn.Conv2d:
    scorer = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(scorer.weight)
    assert scorer.bias is not None
    nn.init.zeros_(scorer.bias)
    return scorer


def _bilinear_doubling(num_classes: int) -> nn.ConvTranspose2d:
    up = nn.ConvTranspose2d(num_classes, num_classes, 4, 2, bias=False)
    with torch.no_grad():
        up.weight.copy_(torch.eye(num_classes)[:, :, None, None] * bilinear_kernel(4))
    return up


def fitted(maps: Tensor, size: tuple[int, int], offset: int) -> Tensor:
    """The part of this size from ``offset`` on; the last row or column repeated where a map of odd size falls short."""
    return fit(maps[:, :, offset:, offset:], size)


def chosen(upstream: Features, name: str | None) -> str:
    """A map by its name, or the finest one; ValueError for one that is not there."""
    finest = min(upstream.strides, key=lambda other: upstream.strides[other])
    if name is not None and name not in upstream.out_channels:
        raise ValueError(f"there is no map {name}; the neck offers {list(upstream.out_channels)}")
    return name or finest


def resized(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores brought bilinearly to a picture's size (H, W)."""
    if tuple(scores.shape[2:]) == tuple(size):
        return scores
    return functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
