"""From the coarsest map back to the finest: upsample, join what the encoder saw at that size, convolve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Features
from quadrat.backbones.pooled import convolutions
from quadrat.necks.upsample import Upsampler
from quadrat.ops.windows import crop

Join = Literal["none", "add", "concat"]


class Decoder(Features):
    """From the map ``start`` up through ``levels`` of the encoder, c<l>, coarse to fine: maps d<l>.

    ``upsample`` makes an upsampler from the channels before to those of c<l>; ``join`` says what becomes of c<l> itself: nothing
    (SegNet, DeconvNet: only the indices i<l> are used), added, or concatenated (U-Net). ``convs`` are the widths of each level's
    convolutions. ``padded`` false: they lose a border, and c<l> is cropped to what is left (U-Net). ``centre`` is what stands
    between ``start`` and the first level (DeconvNet's way to 1x1 and back).
    """

    def __init__(
        self,
        upstream: Features,
        start: str,
        levels: Sequence[str],
        convs: Sequence[Sequence[int]],
        upsample: Callable[[int, int], Upsampler],
        *,
        join: Join = "none",
        kernel: int = 3,
        norm: bool = True,
        activation: bool = True,
        padded: bool = True,
        centre: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in (start, *levels) if name not in upstream.out_channels]
        if missing:
            raise ValueError(
                f"the decoder reads {missing}, the backbone offers {list(upstream.out_channels)}; say where it begins and what "
                f"it passes: model.neck.start=c5 model.neck.levels=[c4,c3] model.neck.convs=[[96],[64]] model.head.map=d3"
            )
        if len(convs) != len(levels):
            raise ValueError(f"{len(levels)} levels need as many lists of convs, got {list(convs)}")
        if join not in JOINS:
            raise ValueError(f"join is one of {', '.join(JOINS)}, got {join!r}")
        strides = [upstream.strides[name] for name in (start, *levels)]
        if any(coarse != 2 * fine for coarse, fine in pairwise(strides)):
            raise ValueError(
                f"each level is twice as fine as the one before, got strides {strides} of {[start, *levels]}; leave one out of "
                f"model.neck.levels and of model.neck.convs, and name the last one (model.head.map=d<last>)"
            )
        self.start, self.join, self.padded = start, join, padded
        self.centre = nn.Identity() if centre is None else centre(upstream.out_channels[start])
        self.up, self.convs = nn.ModuleDict(), nn.ModuleDict()
        before = upstream.out_channels[start]
        for name, widths in zip(levels, convs, strict=True):
            skip = upstream.out_channels[name]
            self.up[name] = upsample(before, skip)
            joined = 2 * skip if join == "concat" else skip
            self.convs[name] = nn.Sequential(
                *convolutions(joined, widths, kernel=kernel, norm=norm, activation=activation, padded=padded)
            )
            before = widths[-1]
        self.out_channels = {f"d{name[1:]}": own[-1] for name, own in zip(levels, convs, strict=True)}
        self.strides = {f"d{name[1:]}": upstream.strides[name] for name in levels}

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        here, out = self.centre(maps[self.start]), {}
        for name, convs in self.convs.items():
            skip = maps[name]
            here = self.up[name](here, self._size(here, skip), maps.get(f"i{name[1:]}"))
            here = convs(JOINS[self.join](here, skip))
            out[f"d{name[1:]}"] = here
        return out

    def _size(self, here: Tensor, skip: Tensor) -> tuple[int, int]:
        """The encoder's own size; twice the present one where convolutions have lost borders since."""
        if self.padded:
            return skip.shape[2], skip.shape[3]
        return 2 * here.shape[2], 2 * here.shape[3]


def _added(here: Tensor, skip: Tensor) -> Tensor:
    return here + crop(skip, (here.shape[2], here.shape[3]))


def _concatenated(here: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([crop(skip, (here.shape[2], here.shape[3])), here], dim=1)


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda here, skip: here,
    "add": _added,
    "concat": _concatenated,
}


class Bottleneck(nn.Module):
    """To 1x1 and back (DeconvNet, section 3): a kernel-wide convolution, a 1x1, and the transposed one: (B, D, H, W) kept.

    A map larger than the kernel keeps that much more than one cell between. Raises ValueError for a smaller one.
    """

    def __init__(self, channels: int, hidden: int = 4096, kernel: int = 7, norm: bool = True) -> None:
        super().__init__()
        self.kernel = kernel
        self.body = nn.Sequential(
            *convolutions(channels, [hidden], kernel=kernel, norm=norm, padded=False),
            *convolutions(hidden, [hidden], kernel=1, norm=norm),
            nn.ConvTranspose2d(hidden, channels, kernel, bias=not norm),
            nn.BatchNorm2d(channels) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.kernel:
            raise ValueError(
                f"the bottleneck's {self.kernel}x{self.kernel} kernel wants pictures of {32 * self.kernel} pixels or more, got a "
                f"map of {x.shape[2]}x{x.shape[3]}; use larger pictures, or model.neck.centre.kernel={min(x.shape[2:])}"
            )
        return self.body(x)
