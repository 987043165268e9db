"""Checkerboards: patterns that upsampling itself prints on a map (Odena et al., Distill 2016).

A map grown by a stride s has s x s kinds of pixels, its *phases*: (i mod s, j mod s). A transposed convolution adds up another
number of products in each of them unless the kernel is a multiple of the stride, and even then with other weights in each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def overlap_counts(kernel: int, stride: int) -> Tensor:
    """How many input cells write to a pixel of each phase (stride, stride), away from the borders; 4, 2, 2, 1 for k3 s2."""
    line = torch.tensor([len(range(phase, kernel, stride)) for phase in range(stride)])
    return torch.outer(line, line)


def phases(maps: Tensor, stride: int) -> Tensor:
    """The pixels of maps (B, D, H, W) by phase and channel (stride * stride, D, n); what is over whole blocks is left out.

    Raises ValueError for maps without a whole block.
    """
    count, channels = maps.shape[:2]
    height, width = (n // stride for n in maps.shape[-2:])
    if not (count and channels and height and width):
        raise ValueError(f"maps {tuple(maps.shape)} hold no whole block of {stride}x{stride} pixels")
    blocks = maps[..., : height * stride, : width * stride].reshape(count, channels, height, stride, width, stride)
    return blocks.permute(3, 5, 1, 0, 2, 4).reshape(stride * stride, channels, -1)


@torch.no_grad()
def checkerboard_index(maps: Tensor, stride: int) -> Tensor:
    """How unlike the phases of maps (B, D, H, W) are, from 0 (no pattern) to 1 (nothing but pattern); a scalar tensor.

    With m and s the mean and the standard deviation of a phase in a channel, and the variances of both over the phases,

        index^2 = sum over channels of (var m + var s) / sum over channels of the variance of all pixels

    In one channel this is the mean squared Wasserstein distance of the phases (as normal distributions) from their middle, in
    units of the channel's own variance: a coefficient of variation of means and of spreads, but one that needs no mean away
    from zero. Channels count by their variance, so dead ones do not. Noise without a pattern has about
    sqrt(9 / (8 n)) at stride 2, n pixels a phase: compare maps of one size. Computed in float32 on the map's device.
    """
    cells = phases(maps.detach().float(), stride)
    spread, mean = torch.std_mean(cells, dim=-1, correction=0)  # (stride * stride, D)
    unlike = (mean.var(0, correction=0) + spread.var(0, correction=0)).sum()
    everything = (spread.square().mean(0) + mean.var(0, correction=0)).sum()
    rounding = (16 * torch.finfo(cells.dtype).eps) ** 2 * cells.square().mean()  # a constant map has no pattern
    return (unlike / (everything + rounding).clamp(min=torch.finfo(cells.dtype).tiny)).sqrt()
