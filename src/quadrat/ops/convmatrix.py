"""A convolution as the matrix that it is, to look at: the transposed convolution is its transpose.

``C = conv_matrix(weight, ...)`` takes a map, written as one vector, to the convolved map: ``C @ vec(x) = vec(conv(x))``. Then
``C.T @ vec(y) = vec(conv_transpose(y))`` with the same weight, for every stride, padding and dilation: the way back of the
gradient through ``conv``. So the transposed convolution is the adjoint, <C x, y> = <x, C.T y>, and no inverse: C.T C is not
the identity, and what a convolution has thrown away nobody brings back ("deconvolution" is a bad name).

At stride 1 the transpose is once more an ordinary convolution of its input, with the kernel flipped and padding k - 1 - p. At
stride 2 it is none: it is that convolution of its input *with zeros between the cells* (hence "fractionally strided"). This is
all there is to the remark that it becomes a fundamentally different operation at stride 2; it is C.T still.
"""

from __future__ import annotations

import torch
from torch import Tensor

Pair = int | tuple[int, int]
"""One number for both axes, or one for rows and one for columns."""


def conv_matrix(
    weight: Tensor, input_size: tuple[int, int], *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """The matrix (D' * H' * W', D * H * W) of the convolution of maps (D, H, W) with ``weight`` (D', D, k, l).

    A row of pixels is a map of height 1, and its kernel has height 1 too. Raises ValueError if the kernel does not fit.
    """
    rows, columns = (
        _reads(cells, kernel, *along)
        for cells, kernel, along in zip(
            input_size, weight.shape[-2:], zip(_pair(stride), _pair(padding), _pair(dilation), strict=True), strict=True
        )
    )
    matrix = torch.einsum("oiab,yah,xbw->oyxihw", weight, rows.to(weight), columns.to(weight))
    return matrix.flatten(3).flatten(0, 2)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _reads(cells: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Whether output cell y reads input cell h with tap a (H', k, H); a tap on the padding reads no cell."""
    room = cells + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        raise ValueError(f"a kernel of {kernel} (dilation {dilation}) does not fit on {cells} cells, padding {padding}")
    first = torch.arange(room // stride + 1) * stride - padding
    read = first[:, None] + torch.arange(kernel) * dilation  # (H', k)
    return read[..., None] == torch.arange(cells)
