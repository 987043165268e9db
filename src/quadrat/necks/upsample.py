"""The upsampling kit: exchangeable parts that double the sides of a map, from bed of nails to sub-pixel convolution.

Each is made as ``Kind(channels_in, channels_out, **settings)`` and called ``up(x, size, indices)``. All keep the frame of
``quadrat.ops.unpool`` and return exactly ``size``, so odd sizes fit the skip connection they meet. What they learn starts by He's
initialisation for maps on which no ReLU follows: whatever the kind and the kernel, it keeps the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.ops.unpool import Size, bed_of_nails, bilinear, bilinear_kernel, check_size, fit, max_unpool, nearest


class Upsampler(nn.Module):
    """Maps x (B, D, h, w) and a size (H, W) of ``stride`` times theirs, within rounding, -> (B, D', H, W).

    ``indices`` (B, D', h, w) are the places that the paired max-pooling remembered, or None: only MaxUnpool reads them.
    ``kernel`` is the side of the square of pixels that one cell of x writes to, for those that are linear: the kernel of the
    transposed convolution with this ``stride`` that the part is equal to. Raises ValueError for any other size.
    """

    kernel: int
    stride: int = 2

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Fixed(Upsampler):
    """Nothing learned, except a 1x1 convolution if channels change: before it, where there is a quarter of the cells."""

    grow: Callable[[Tensor, Size], Tensor]

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.channels = _to_channels(channels_in, channels_out)

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        return self.grow(self.channels(x), size)


class Nearest(Fixed):
    """Each value all over its block of 2x2 pixels."""

    kernel = 2
    grow = staticmethod(nearest)


class Nails(Fixed):
    """Each value at the first pixel of its block of 2x2, zeros elsewhere."""

    kernel = 1
    grow = staticmethod(bed_of_nails)


class Bilinear(Fixed):
    """Each value in the middle of its block of 2x2, interpolated between."""

    kernel = 4
    grow = staticmethod(bilinear)


class MaxUnpool(Upsampler):
    """Each value back where the paired max-pooling took its own from (DeconvNet, ICCV 2015, section 3.2.1), zeros elsewhere.

    The indices have the channels of the map that was pooled, and ``channels_out`` are these: channels change before it.
    """

    kernel = 2

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.channels = _to_channels(channels_in, channels_out)

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        if indices is None:
            raise ValueError(
                "max-unpooling needs the places that an encoder's max-pooling remembered, and this encoder remembers none; "
                "take model/backbone=pooled, or another upsampler (model/neck/upsample)"
            )
        return max_unpool(self.channels(x), indices, size)


class Transposed(Upsampler):
    """Transposed convolution: each cell stamps its value times the kernel, overlaps are added (FCN, CVPR 2015, section 3.3).

    ``padding`` is what is cut from the stamps' outer edges; by default what gives exactly ``stride`` times the sides, up to
    one pixel that output padding adds (kernel 2: 0, kernels 3 and 4: 1). ``init`` is ``kaiming``, or ``bilinear``: then it
    starts as bilinear interpolation, of the channels themselves or, if their number changes, of random mixtures of them.
    Where no cell reaches (kernel 3, size 2 h + 1) stands the bias.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int = 2,
        padding: int | None = None,
        init: Literal["kaiming", "bilinear"] = "kaiming",
    ) -> None:
        super().__init__()
        if init not in INITS:
            raise ValueError(f"init is one of {sorted(INITS)}, got {init!r}")
        self.kernel, self.stride = kernel, stride
        padding = max(0, (kernel - stride + 1) // 2) if padding is None else padding
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, padding)
        nn.init.zeros_(self.conv.get_parameter("bias"))
        INITS[init](self.conv.weight, stride)

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        check_size(x, size, self.stride)
        down, right = (self._beyond(n, cells) for n, cells in zip(size, x.shape[-2:], strict=True))
        if down or right:
            x = functional.pad(x, (0, right, 0, down))
        grown = [max(n, self._least(cells)) for n, cells in zip(size, x.shape[-2:], strict=True)]
        return self.conv(x, grown)[..., : size[0], : size[1]]

    def _beyond(self, pixels: int, cells: int) -> int:
        """Cells of zeros that lend a hand where no cell of x reaches, and torch's output padding does not either."""
        return max(0, -((self._least(cells) + self.stride - 1 - pixels) // self.stride))

    def _least(self, cells: int) -> int:
        """Pixels that the convolution makes of so many cells without output padding."""
        return (cells - 1) * self.stride + self.kernel - 2 * int(self.conv.padding[0])


class ResizeConv(Upsampler):
    """A fixed resize, ``nearest`` or ``bilinear``, then a convolution: even overlap (Odena et al., Distill 2016)."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int = 3, mode: Literal["nearest", "bilinear"] = "nearest"
    ) -> None:
        super().__init__()
        if mode not in RESIZES:
            raise ValueError(f"mode is one of {sorted(RESIZES)}, got {mode!r}")
        self.resize, stamp = RESIZES[mode]
        self.kernel = stamp + kernel - 1
        self.conv = _same_conv(channels_in, channels_out, kernel)

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        return self.conv(self.resize(x, size))


class PixelShuffle(Upsampler):
    """Sub-pixel convolution: four channels become the four phases of one (Shi et al., CVPR 2016).

    All four start as the same filter (ICNR: Aitken et al., 2017), so that it starts as nearest upsampling, without a pattern.
    """

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = self.stride * kernel
        self.conv = _same_conv(channels_in, channels_out * self.stride**2, kernel)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[:: self.stride**2].repeat_interleave(self.stride**2, dim=0))

    def forward(self, x: Tensor, size: Size, indices: Tensor | None = None) -> Tensor:
        check_size(x, size, self.stride)
        return fit(functional.pixel_shuffle(self.conv(x), self.stride), size)


RESIZES = {"nearest": (nearest, Nearest.kernel), "bilinear": (bilinear, Bilinear.kernel)}


def _to_channels(channels_in: int, channels_out: int) -> nn.Module:
    """Nothing if the channels are right, else a 1x1 convolution without bias: zeros between nails remain zeros."""
    if channels_in == channels_out:
        return nn.Identity()
    conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _same_conv(channels_in: int, channels_out: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size of its map, by He's initialisation; ValueError for an even kernel."""
    if kernel % 2 == 0:
        raise ValueError(f"a convolution that keeps the size has an odd kernel, got {kernel}")
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


@torch.no_grad()
def _kaiming(weight: Tensor, stride: int) -> None:
    """He's initialisation by the number of products that add up in a pixel, D k^2 / stride^2; torch's counts D' k^2."""
    channels, _, kernel, _ = weight.shape
    weight.normal_(std=stride / (kernel * math.sqrt(channels)))


@torch.no_grad()
def _interpolation(weight: Tensor, stride: int) -> None:
    """FCN's bilinear kernels on the diagonal of (D, D', k, k), or on a random matrix if D is not D'."""
    channels_in, channels_out, kernel, _ = weight.shape
    if (kernel + 1) // 2 != stride:
        raise ValueError(
            f"a kernel of {kernel} cannot interpolate at stride {stride}: take kernel {2 * stride} or init=kaiming"
        )
    mixture = torch.randn(channels_in, channels_out) / math.sqrt(channels_in)
    if channels_in == channels_out:
        mixture = torch.eye(channels_in)
    weight.copy_(mixture[:, :, None, None] * bilinear_kernel(kernel))


INITS = {"kaiming": _kaiming, "bilinear": _interpolation}
