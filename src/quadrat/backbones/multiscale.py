"""A picture at several scales through one net with shared weights (Farabet et al., TPAMI 2013)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import Backbone
from quadrat.backbones.pooled import convolutions
from quadrat.ops.constants import constant


class MultiScale(Backbone):
    """``trunk`` on every level of ``pyramid``; coarse maps are brought bilinearly to the finest and all concatenated.

    One map, named after the trunk's poolings: c2 of stride 4 with levels x channels (3 x 256 in the paper).
    """

    def __init__(self, trunk: Trunk, pyramid: Pyramid, *, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        name = f"c{trunk.poolings}"
        super().__init__(
            {name: _EveryLevel(trunk, pyramid)},
            out_channels={name: pyramid.levels * trunk.channels},
            strides={name: 2**trunk.poolings},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


class _EveryLevel(nn.Module):
    """Pictures (B, 3, H, W) -> the trunk's maps of all levels on the finest one's grid (B, levels * D, h, w)."""

    def __init__(self, trunk: Trunk, pyramid: Pyramid) -> None:
        super().__init__()
        self.trunk, self.pyramid = trunk, pyramid

    def forward(self, images: Tensor) -> Tensor:
        finest, *coarser = [self.trunk(level) for level in self.pyramid(images)]
        size = (finest.shape[2], finest.shape[3])
        return torch.cat([finest, *(functional.interpolate(m, size=size, mode="bilinear") for m in coarser)], dim=1)


# Pyramids


class Pyramid(nn.Module):
    """From pictures (B, 3, H, W) to ``levels`` of them, finest first, each half as large as the one before."""

    def __init__(self, levels: int = 3) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"a pyramid has a level or more, got {levels}")
        self.levels = levels


class GaussianPyramid(Pyramid):
    """The picture, and smaller ones."""

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [images]
        for _ in range(self.levels - 1):
            found.append(_halved(found[-1]))
        return found


class LaplacianPyramid(Pyramid):
    """What each halving takes away, and last what is left; in YUV, each level and channel normalised in its neighbourhood.

    Pictures are RGB of 0..1: the model's mean is 0 and its std 1. In every neighbourhood of ``window`` x ``window`` the mean
    becomes 0 and the deviation 1, or less than that where it is below ``floor``: plain areas stay plain.
    """

    def __init__(self, levels: int = 3, *, window: int = 15, floor: float = 0.01) -> None:
        super().__init__(levels)
        self.window, self.floor = window, floor

    def forward(self, images: Tensor) -> list[Tensor]:
        smaller = GaussianPyramid(self.levels)(yuv(images))
        bands = [fine - _resized(coarse, fine) for fine, coarse in pairwise(smaller)]
        return [self.normalised(band) for band in (*bands, smaller[-1])]

    def normalised(self, maps: Tensor) -> Tensor:
        """Maps (B, D, H, W) with local mean 0 and deviation 1; beyond the edges there is nothing to count."""
        maps = maps - self._mean(maps)
        return maps / self._mean(maps.square()).sqrt().clamp(min=self.floor)

    def _mean(self, maps: Tensor) -> Tensor:
        return functional.avg_pool2d(maps, self.window, 1, self.window // 2, count_include_pad=False)


YUV = (0.299, 0.587, 0.114, -0.14713, -0.28886, 0.436, 0.615, -0.51499, -0.10001)
"""Rows of the analogue YUV of ITU-R BT.601 from RGB."""


def yuv(images: Tensor) -> Tensor:
    """RGB (B, 3, H, W) of 0..1 as brightness and two differences of colour."""
    matrix = constant(YUV, torch.float32, images.device).view(1, 3, 3, 1, 1)
    return (matrix * images.float()[:, None]).sum(2)  # no matrix product, which autocast would round


def _halved(images: Tensor) -> Tensor:
    size = [-(-length // 2) for length in images.shape[2:]]
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True)


def _resized(images: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(images, size=like.shape[2:], mode="bilinear")


# Trunks


class Trunk(nn.Sequential):
    """Stages with a 2x2 max pooling between, the net that every level goes through: ``channels`` come out."""

    def __init__(self, stages: Sequence[nn.Module], channels: int) -> None:
        layers = [stages[0]]
        for stage in stages[1:]:
            layers += [nn.MaxPool2d(2, ceil_mode=True), stage]
        super().__init__(*layers)
        self.channels, self.poolings = channels, len(stages) - 1


def full_trunk(widths: Sequence[Sequence[int]], kernel: int = 3) -> Trunk:
    """Stages of padded convolutions with batch norm and ReLU, by their widths."""
    before, stages = 3, []
    for own in widths:
        stages.append(nn.Sequential(*convolutions(before, own, kernel=kernel)))
        before = own[-1]
    return Trunk(stages, before)


def sparse_trunk(
    widths: Sequence[int] = (16, 64, 256),
    kernel: int = 7,
    *,
    luma: int = 10,
    fan_in: Sequence[int] = (8, 32),
    seed: int = 0,
) -> Trunk:
    """The paper's net on YUV: a convolution a stage, tanh after all but the last, each map seeing a few of the maps before.

    ``luma`` of the first maps see Y, the others U and V; every map of stage i + 1 sees ``fan_in[i]`` maps of stage i, drawn once
    from ``seed``.
    """
    first = np.zeros((widths[0], 3), dtype=bool)
    first[:luma, 0] = True
    first[luma:, 1:] = True
    rng = np.random.default_rng(seed)
    tables = [first]
    for before, after, seen in zip(widths, widths[1:], fan_in, strict=False):
        tables.append(rng.permuted(np.arange(before) < np.full((after, 1), seen), axis=1))
    stages: list[nn.Module] = [SparseConvolution(table, kernel) for table in tables]
    return Trunk([*(nn.Sequential(stage, nn.Tanh()) for stage in stages[:-1]), stages[-1]], widths[-1])


class SparseConvolution(nn.Conv2d):
    """A padded convolution whose output maps see only the input maps that ``table`` (D', D) marks, as in LeNet."""

    table: Tensor

    def __init__(self, table: np.ndarray, kernel: int) -> None:
        super().__init__(table.shape[1], table.shape[0], kernel, padding=kernel // 2)
        seen = torch.from_numpy(table).float()[:, :, None, None]
        self.register_buffer("table", seen)
        with torch.no_grad():  # for the maps that are seen, not for all
            spread = torch.from_numpy(1 / (table.sum(1) * kernel**2) ** 0.5).float()[:, None, None, None]
            nn.init.normal_(self.weight).mul_(spread.to(self.weight))
            nn.init.zeros_(self.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.table, self.bias)
