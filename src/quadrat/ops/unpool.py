"""Growing a map with nothing learned: copy, nail, put back where the pooling took from, interpolate.

All keep one frame: cell (i, j) of a map (B, D, h, w) stands for the pixels ``stride * i .. stride * (i + 1) - 1`` of the grown
one (B, D, H, W), and so on for columns, as in the pooling that made it. A size that is no multiple of the stride therefore
moves nothing: what is too many is cut off at the right and the bottom, what is missing is repeated (or stays zero, where
zeros are the rule), whether the encoder rounded down (45 -> 22) or up (45 -> 23).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]
"""Height, width."""


def check_size(x: Tensor, size: Size, stride: int) -> None:
    """ValueError naming both sizes unless ``size`` divided by ``stride``, rounded down or up, is the size of x (B, D, h, w)."""
    height, width = x.shape[-2:]
    if all(cells in (n // stride, -(-n // stride)) for cells, n in ((height, size[0]), (width, size[1]))):
        return
    low, high = [(n - 1) * stride + 1 for n in (height, width)], [(n + 1) * stride - 1 for n in (height, width)]
    raise ValueError(
        f"a map of {height}x{width} cells cannot be upsampled to {size[0]}x{size[1]}: a stride of {stride} leads to "
        f"{low[0]}..{high[0]} x {low[1]}..{high[1]}; take one upsampler for each halving between the two maps"
    )


def fit(x: Tensor, size: Size) -> Tensor:
    """Cut x (B, D, h, w) at the right and the bottom to ``size``, or repeat its last column and row up to it."""
    x = x[..., : size[0], : size[1]]
    down, right = size[0] - x.shape[-2], size[1] - x.shape[-1]
    # not functional.pad(mode="replicate"), whose gradient is not reproducible on CUDA
    if down:
        x = torch.cat([x, x[..., -1:, :].expand(-1, -1, down, -1)], dim=-2)
    if right:
        x = torch.cat([x, x[..., -1:].expand(-1, -1, -1, right)], dim=-1)
    return x


def nearest(x: Tensor, size: Size, *, stride: int = 2) -> Tensor:
    """Each value (B, D, h, w) all over its block of ``stride`` x ``stride`` pixels -> (B, D, H, W)."""
    check_size(x, size, stride)
    return fit(functional.interpolate(x, scale_factor=stride, mode="nearest"), size)


def bilinear(x: Tensor, size: Size, *, stride: int = 2) -> Tensor:
    """Each value (B, D, h, w) in the middle of its block, interpolated between -> (B, D, H, W)."""
    check_size(x, size, stride)
    return fit(functional.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False), size)


def bed_of_nails(x: Tensor, size: Size, *, stride: int = 2) -> Tensor:
    """Each value (B, D, h, w) at the first pixel of its block, zeros elsewhere -> (B, D, H, W)."""
    check_size(x, size, stride)
    height, width = x.shape[-2:]
    grown = x.new_zeros(*x.shape[:2], *size)
    grown[..., : height * stride : stride, : width * stride : stride] = x
    return grown


def max_pool(x: Tensor, *, ceil_mode: bool = False) -> tuple[Tensor, Tensor]:
    """Largest values of 2x2 blocks of x (B, D, H, W), and their places as flat indices i * W + j: twice (B, D, h, w).

    Of equal values the first counts. A last odd row or column is left out, or has blocks of its own with ``ceil_mode``
    (as in Caffe, so in the released FCN, DeconvNet and SegNet).
    """
    return functional.max_pool2d_with_indices(x, [2, 2], [2, 2], ceil_mode=ceil_mode)


def max_unpool(x: Tensor, indices: Tensor, size: Size) -> Tensor:
    """Values (B, D, h, w) back at the places that ``max_pool`` remembered (Zeiler and Fergus, ECCV 2014), zeros elsewhere.

    ``size`` is the size of the map that was pooled: indices count its rows. Raises ValueError if the indices are of another
    shape than x.
    """
    if x.shape != indices.shape:
        raise ValueError(
            f"max-unpooling wants one place a value: values are {tuple(x.shape)}, indices {tuple(indices.shape)}; "
            f"bring the map to the channels of the map that was pooled"
        )
    check_size(x, size, 2)
    # places of disjoint blocks differ, so a scatter is reproducible, while torch's max_unpool2d refuses to be so on CUDA
    flat = x.new_zeros(*x.shape[:2], size[0] * size[1])
    return flat.scatter(2, indices.flatten(2), x.flatten(2)).unflatten(2, size)


def bilinear_kernel(size: int) -> Tensor:
    """The kernel (size, size) with which a transposed convolution of stride (size + 1) // 2 interpolates (FCN, section 3.3)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    return torch.outer(line, line)
