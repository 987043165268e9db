"""The matrix of a convolution: the notes' numbers, equality with torch, and what a transpose is and is not."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadrat.ops.convmatrix import conv_matrix
from quadrat.ops.unpool import bed_of_nails

A, B, C, D = 2.0, 3.0, 5.0, 7.0
X, Y, Z = 11.0, 13.0, 17.0
"""Primes, so that no two sums of products are equal by accident."""

LINE = torch.tensor([X, Y, Z]).reshape(1, 1, 1, 3)
GRID = [(k, s, p) for k, s, p in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2)) if p < k]


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the notes' numbers ---


def test_kernel_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a kernel of 3 \(dilation 2\) does not fit on 2 cells, padding 1"):
        conv_matrix(torch.zeros(1, 1, 3, 3), (2, 9), padding=1, dilation=2)


def test_kernel_of_one_is_the_identity():
    assert torch.equal(conv_matrix(torch.ones(1, 1, 1, 1), (2, 3)), torch.eye(6))


def test_four_by_four_input_and_kernel_of_three():
    """B20-B23: 4x4 input, 3x3 filter -> 4 x 16, and its transpose goes from 4 numbers back to 16."""
    matrix = conv_matrix(torch.arange(1.0, 10).reshape(1, 1, 3, 3), (4, 4))
    assert matrix.shape == (4, 16)
    assert (matrix != 0).sum(1).tolist() == [9, 9, 9, 9]
    assert matrix[0].tolist() == [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0]
    assert matrix[3].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9]
    assert (matrix.T @ torch.ones(4)).shape == (16,)


def test_row_of_the_notes():
    """A26-A27: padded input [0, a, b, c, d, 0], filter [x, y, z], stride 1."""
    matrix = conv_matrix(LINE, (1, 6))
    assert matrix.tolist() == [[X, Y, Z, 0, 0, 0], [0, X, Y, Z, 0, 0], [0, 0, X, Y, Z, 0], [0, 0, 0, X, Y, Z]]
    convolved = matrix @ torch.tensor([0, A, B, C, D, 0])
    assert convolved.tolist() == [A * Y + B * Z, A * X + B * Y + C * Z, B * X + C * Y + D * Z, C * X + D * Y]
    transposed = matrix.T @ torch.tensor([A, B, C, D])
    assert transposed.tolist() == [
        A * X,
        A * Y + B * X,
        A * Z + B * Y + C * X,
        B * Z + C * Y + D * X,
        C * Z + D * Y,
        D * Z,
    ]


def test_padding_is_columns_left_out():
    """A tap on the padding meets a zero: the matrix on the input itself is that on the padded one without its ends."""
    assert torch.equal(conv_matrix(LINE, (1, 4), padding=(0, 1)), conv_matrix(LINE, (1, 6))[:, 1:-1])


def test_row_of_the_notes_at_stride_two():
    """A28: [a, b] -> [ax, ay, az + bx, by, bz]; where the stamps overlap they are added (A24)."""
    matrix = conv_matrix(LINE, (1, 5), stride=2)
    assert matrix.tolist() == [[X, Y, Z, 0, 0], [0, 0, X, Y, Z]]
    assert (matrix.T @ torch.tensor([A, B])).tolist() == [A * X, A * Y, A * Z + B * X, B * Y, B * Z]
    padded = conv_matrix(LINE, (1, 6), stride=2)
    assert (padded @ torch.tensor([0, A, B, C, D, 0])).tolist() == [A * Y + B * Z, B * X + C * Y + D * Z]


# --- equal to torch ---


@pytest.mark.parametrize(("kernel", "stride", "padding"), GRID)
def test_matrix_equals_convolution_and_its_transpose(kernel: int, stride: int, padding: int):
    weight, x = random_map(3, 2, kernel, kernel), random_map(2, 7, 6, seed=1)
    matrix = conv_matrix(weight, (7, 6), stride=stride, padding=padding)
    convolved = functional.conv2d(x, weight, stride=stride, padding=padding)
    torch.testing.assert_close(matrix @ x.flatten(), convolved.flatten())
    y = random_map(*convolved.shape, seed=2)
    left_over = [(n + 2 * padding - kernel) % stride for n in (7, 6)]
    transposed = functional.conv_transpose2d(y, weight, stride=stride, padding=padding, output_padding=left_over)
    torch.testing.assert_close(matrix.T @ y.flatten(), transposed.flatten())


@pytest.mark.parametrize(
    ("size", "along"),
    [
        ((3, 2), {"stride": (2, 1), "padding": (0, 1)}),
        ((1, 4), {"stride": (1, 3), "padding": (0, 2)}),
        ((3, 3), {"dilation": 2, "padding": 2}),
        ((2, 3), {"dilation": (3, 1), "stride": 2, "padding": (1, 0)}),
    ],
)
def test_matrix_of_rectangles(size: tuple[int, int], along: dict):
    weight, x = random_map(2, 3, *size), random_map(3, 6, 9, seed=1)
    torch.testing.assert_close(
        conv_matrix(weight, (6, 9), **along) @ x.flatten(), functional.conv2d(x, weight, **along).flatten()
    )


def test_row_of_pixels_equals_conv1d():
    weight, x = random_map(3, 2, 4), random_map(2, 9, seed=1)
    matrix = conv_matrix(weight[:, :, None], (1, 9), stride=(1, 2), padding=(0, 1))
    torch.testing.assert_close(matrix @ x.flatten(), functional.conv1d(x, weight, stride=2, padding=1).flatten())


# --- what the transpose is ---


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transpose_is_the_way_back_of_the_gradient(stride: int):
    """A23, "backward strided convolution"."""
    weight, x = random_map(3, 2, 3, 3), random_map(2, 7, 7, seed=1).requires_grad_()
    convolved = functional.conv2d(x, weight, stride=stride)
    gradient = random_map(*convolved.shape, seed=2)
    (back,) = torch.autograd.grad(convolved, x, gradient)
    torch.testing.assert_close(conv_matrix(weight, (7, 7), stride=stride).T @ gradient.flatten(), back.flatten())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transpose_is_the_adjoint(stride: int):
    weight, x = random_map(3, 2, 3, 3), random_map(2, 7, 7, seed=1)
    convolved = functional.conv2d(x, weight, stride=stride)
    y = random_map(*convolved.shape, seed=2)
    left_over = (7 - 3) % stride
    transposed = functional.conv_transpose2d(y, weight, stride=stride, output_padding=left_over)
    torch.testing.assert_close((convolved * y).sum(), (x * transposed).sum())


@pytest.mark.parametrize("stride", [1, 2])
def test_transpose_is_not_the_inverse(stride: int):
    """A21, B18 against E13: with random weights nothing like the input comes back, and nothing could from 4 of 16 numbers."""
    weight, x = random_map(1, 1, 3, 3), random_map(1, 4, 4, seed=1)
    matrix = conv_matrix(weight, (4, 4), stride=stride)
    back = functional.conv_transpose2d(
        functional.conv2d(x, weight, stride=stride), weight, stride=stride, output_padding=stride - 1
    )
    torch.testing.assert_close(matrix.T @ matrix @ x.flatten(), back.flatten())
    assert ((back - x).norm() / x.norm()).item() > 1
    assert torch.linalg.matrix_rank(matrix).item() <= 4


@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (4, 1), (5, 2)])
def test_transpose_at_stride_one_is_a_convolution_with_the_flipped_kernel(kernel: int, padding: int):
    weight, y = random_map(3, 2, kernel, kernel), random_map(3, 5, 6, seed=1)
    flipped = weight.flip(2, 3).transpose(0, 1)
    torch.testing.assert_close(
        functional.conv_transpose2d(y, weight, padding=padding),
        functional.conv2d(y, flipped, padding=kernel - 1 - padding),
    )


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 0), (3, 1), (4, 1), (5, 2)])
def test_transpose_at_a_stride_is_a_convolution_between_zeros(kernel: int, padding: int, stride: int):
    """B24 made precise: of the input with stride - 1 zeros between its cells ("fractionally strided", A22)."""
    weight, y = random_map(3, 2, kernel, kernel), random_map(1, 3, 4, 5, seed=1)
    dilated = bed_of_nails(y, (3 * stride + 1, 4 * stride + 1), stride=stride)
    flipped = weight.flip(2, 3).transpose(0, 1)
    torch.testing.assert_close(
        functional.conv_transpose2d(y, weight, stride=stride, padding=padding),
        functional.conv2d(dilated, flipped, padding=kernel - 1 - padding),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_transpose_moves_by_its_stride(stride: int):
    """B24: a stride-1 convolution, whatever its kernel, moves by one pixel when its input moves by one cell; at stride 2
    the transpose moves by two, so it is no stride-1 convolution of that input."""
    matrix = conv_matrix(random_map(1, 1, 1, 3), (1, 6 * stride + 2), stride=(1, stride))
    stamp, moved = matrix.T[:, 1], matrix.T[:, 2]
    assert [step for step in range(4) if torch.equal(stamp.roll(step), moved)] == [stride]


def test_matrix_is_differentiable_in_the_weight():
    weight = random_map(2, 2, 2, 2).requires_grad_()
    conv_matrix(weight, (3, 3)).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 4))  # each tap is used at each of the four places
