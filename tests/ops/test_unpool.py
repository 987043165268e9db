"""Unpooling by the lecture's numbers, and against the transposed convolutions that it equals."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadrat.ops.unpool import bed_of_nails, bilinear, bilinear_kernel, fit, max_pool, max_unpool, nearest

FIXED = [nearest, bed_of_nails, bilinear]
SIZES = [((4, 6), (8, 12)), ((22, 2), (45, 5)), ((23, 3), (45, 5)), ((1, 2), (1, 3))]
"""Of the map and of what it grows to: twice, one more than twice, one less, almost nothing."""

ONE_TO_FOUR = torch.tensor([[[[1.0, 2], [3, 4]]]])


def random_map(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unpool(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-unpooling of x to the places that some map of this size was pooled from."""
    pooled = random_map(*x.shape[:2], *size, seed=7)
    return max_unpool(x, max_pool(pooled, ceil_mode=size[0] < 2 * x.shape[2])[1], size)


# --- no picture at all ---


@pytest.mark.parametrize("grow", [*FIXED, unpool])
def test_growing_nothing(grow):
    assert grow(torch.zeros(0, 3, 2, 3), (4, 6)).shape == (0, 3, 4, 6)


def test_pooling_nothing():
    values, indices = max_pool(torch.zeros(0, 3, 4, 6))
    assert values.shape == indices.shape == (0, 3, 2, 3)


# --- the lecture's numbers ---


def test_nearest_of_the_lecture():
    grown = nearest(ONE_TO_FOUR, (4, 4))[0, 0]
    assert grown.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_bed_of_nails_of_the_lecture():
    grown = bed_of_nails(ONE_TO_FOUR, (4, 4))[0, 0]
    assert grown.tolist() == [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]


def test_max_unpooling_of_the_lecture():
    before = torch.tensor([[[[1.0, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]]]])
    values, indices = max_pool(before)
    assert values[0, 0].tolist() == [[5, 6], [7, 8]]
    assert indices[0, 0].tolist() == [[5, 2], [12, 15]]
    grown = max_unpool(ONE_TO_FOUR, indices, (4, 4))[0, 0]
    assert grown.tolist() == [[0, 0, 2, 0], [0, 1, 0, 0], [0, 0, 0, 0], [3, 0, 0, 4]]


def test_max_unpooling_of_an_odd_map():
    """Places count rows of the pooled map, 5 wide, whether or not the pooling heard its last row and column."""
    before = torch.zeros(1, 1, 5, 5)
    before[0, 0, [0, 1, 3, 2, 4], [1, 3, 0, 2, 4]] = torch.tensor([1.0, 2, 3, 4, 9])
    values, indices = max_pool(before)
    assert indices[0, 0].tolist() == [[1, 8], [15, 12]]
    assert torch.equal(max_unpool(values, indices, (5, 5)), before * (before < 9))
    values, indices = max_pool(before, ceil_mode=True)
    assert values[0, 0].tolist() == [[1, 2, 0], [3, 4, 0], [0, 0, 9]]
    assert torch.equal(max_unpool(values, indices, (5, 5)), before)


# --- odd sizes keep the frame ---


@pytest.mark.parametrize("cells", [22, 23])
def test_odd_sizes_keep_the_frame(cells: int):
    x = random_map(2, 3, cells, cells)
    block = torch.arange(45) // 2
    assert torch.equal(nearest(x, (45, 45)), x[..., block.clamp(max=cells - 1), :][..., block.clamp(max=cells - 1)])
    nails = bed_of_nails(x, (45, 45))
    assert torch.equal(nails[..., : 2 * cells : 2, : 2 * cells : 2], x)
    assert (nails != 0).sum() == x.numel()
    assert torch.equal(bilinear(x, (45, 45))[..., :44, :44], bilinear(x, (2 * cells, 2 * cells))[..., :44, :44])


def test_fit_cuts_and_repeats():
    assert fit(ONE_TO_FOUR, (1, 3))[0, 0].tolist() == [[1, 2, 2]]
    assert fit(ONE_TO_FOUR, (4, 1))[0, 0].tolist() == [[1], [3], [3], [3]]


# --- as transposed convolutions, forward and backward ---


@pytest.mark.parametrize("stride", [2, 3])
def test_nearest_is_a_stamp_of_ones(stride: int):
    x = random_map(2, 1, 3, 4)
    stamped = functional.conv_transpose2d(x, torch.ones(1, 1, stride, stride), stride=stride)
    assert torch.equal(nearest(x, (3 * stride, 4 * stride), stride=stride), stamped)


@pytest.mark.parametrize("stride", [2, 3])
def test_bed_of_nails_is_a_stamp_of_one_nail(stride: int):
    x = random_map(2, 1, 3, 4)
    nail = torch.zeros(1, 1, stride, stride)
    nail[..., 0, 0] = 1
    stamped = functional.conv_transpose2d(x, nail, stride=stride)
    assert torch.equal(bed_of_nails(x, (3 * stride, 4 * stride), stride=stride), stamped)


@pytest.mark.parametrize("stride", [2, 3])
def test_bilinear_is_a_stamp_of_its_kernel_inside(stride: int):
    x = random_map(2, 1, 5, 6)
    kernel = bilinear_kernel(2 * stride - stride % 2)[None, None]
    stamped = functional.conv_transpose2d(x, kernel, stride=stride, padding=stride // 2)
    grown = bilinear(x, (5 * stride, 6 * stride), stride=stride)
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    torch.testing.assert_close(grown[inside], stamped[..., : 5 * stride, : 6 * stride][inside])


@pytest.mark.parametrize(
    ("grow", "backward"),
    [
        (nearest, lambda gradient: functional.avg_pool2d(gradient, 2) * 4),  # the sum of each block
        (bed_of_nails, lambda gradient: gradient[..., ::2, ::2]),
    ],
)
def test_backward_of_fixed_unpooling(grow, backward):
    x, gradient = random_map(2, 3, 4, 5).requires_grad_(), random_map(2, 3, 8, 10, seed=1)
    (got,) = torch.autograd.grad(grow(x, (8, 10)), x, gradient)
    torch.testing.assert_close(got, backward(gradient))


def test_backward_of_max_unpooling_is_a_gather():
    _, indices = max_pool(random_map(2, 3, 8, 10))
    x, gradient = random_map(2, 3, 4, 5).requires_grad_(), random_map(2, 3, 8, 10, seed=1)
    (got,) = torch.autograd.grad(max_unpool(x, indices, (8, 10)), x, gradient)
    assert torch.equal(got, gradient.flatten(2).gather(2, indices.flatten(2)).view_as(x))


@pytest.mark.parametrize("grow", [*FIXED, unpool])
@pytest.mark.parametrize(("cells", "size"), [((2, 3), (4, 6)), ((2, 1), (5, 3)), ((2, 3), (3, 5))])
def test_gradient_is_the_derivative(grow, cells: tuple[int, int], size: tuple[int, int]):
    x = random_map(2, 2, *cells, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: grow(x, size), x)


# --- pooling ---


def test_of_equal_values_the_first_is_remembered():
    x = torch.tensor([[[[3.0, 3, 1, 2], [3, 3, 2, 2]]]]).requires_grad_()
    values, indices = max_pool(x)
    assert indices[0, 0].tolist() == [[0, 3]]
    values.sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert max_unpool(values, indices, (2, 4))[0, 0].tolist() == [[3, 0, 0, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(8, 10), (9, 7), (45, 3)])
def test_pooling_undoes_unpooling_of_what_is_positive(size: tuple[int, int], ceil_mode: bool):
    values, indices = max_pool(random_map(3, 4, *size).abs() + 0.1, ceil_mode=ceil_mode)
    grown = max_unpool(values, indices, size)
    again, places = max_pool(grown, ceil_mode=ceil_mode)
    assert torch.equal(again, values)
    assert torch.equal(places, indices)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(8, 10), (9, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_and_unpooling_equal_torch(size: tuple[int, int], ceil_mode: bool, layout: torch.memory_format):
    x = random_map(3, 4, *size)
    values, indices = max_pool(x.contiguous(memory_format=layout), ceil_mode=ceil_mode)
    theirs, places = torch.nn.MaxPool2d(2, return_indices=True, ceil_mode=ceil_mode)(x)
    assert torch.equal(values, theirs)
    assert torch.equal(indices, places)
    assert torch.equal(
        max_unpool(values, indices, size), torch.nn.MaxUnpool2d(2)(theirs, places, output_size=[*x.shape[:2], *size])
    )


@pytest.mark.parametrize("grow", [*FIXED, unpool])
@pytest.mark.parametrize(("cells", "size"), SIZES)
def test_batched_equals_single_in_any_layout(grow, cells: tuple[int, int], size: tuple[int, int]):
    x = random_map(3, 4, *cells)
    batched = grow(x, size)
    assert batched.shape == (3, 4, *size)
    assert torch.equal(grow(x.contiguous(memory_format=torch.channels_last), size), batched)
    if grow is not unpool:  # whose places come from a map of the whole batch
        assert torch.equal(torch.cat([grow(one[None], size) for one in x]), batched)


def test_max_unpooling_of_a_batch_is_that_of_its_pictures():
    values, indices = max_pool(random_map(3, 4, 8, 10))
    singles = [max_unpool(v[None], i[None], (8, 10)) for v, i in zip(values, indices, strict=True)]
    assert torch.equal(max_unpool(values, indices, (8, 10)), torch.cat(singles))


@pytest.mark.parametrize("grow", [*FIXED, unpool])
def test_growing_asks_nothing_of_the_host(grow):
    """On the meta device there are no values to ask for."""
    with torch.device("meta"):
        x = torch.zeros(2, 3, 4, 5)
        places = torch.zeros(2, 3, 4, 5, dtype=torch.long)
        grown = max_unpool(x, places, (9, 10)) if grow is unpool else grow(x, (9, 10))
    assert grown.shape == (2, 3, 9, 10)


# --- the bilinear kernel ---


@pytest.mark.parametrize(
    ("size", "line"), [(1, [1]), (2, [0.5, 0.5]), (3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25])]
)
def test_bilinear_kernel_by_hand(size: int, line: list[float]):
    assert bilinear_kernel(size).tolist() == [[a * b for b in line] for a in line]


@pytest.mark.parametrize("size", [3, 4, 16, 64])
def test_bilinear_kernel_equals_the_released_fcn(size: int):
    """``upsample_filt`` of FCN's surgery.py, on its own terms."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    rows, columns = np.ogrid[:size, :size]
    theirs = (1 - abs(rows - centre) / factor) * (1 - abs(columns - centre) / factor)
    torch.testing.assert_close(bilinear_kernel(size), torch.from_numpy(theirs).float())


# --- refusals ---


@pytest.mark.parametrize("grow", FIXED)
@pytest.mark.parametrize("size", [(42, 60), (46, 60), (44, 58), (44, 62), (88, 120), (22, 30)])
def test_growing_to_another_size_is_refused(grow, size: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"22x30 cells .* to {size[0]}x{size[1]}: .* 43\.\.45 x 59\.\.61; take one"):
        grow(torch.zeros(1, 1, 22, 30), size)


def test_max_unpooling_to_another_size_is_refused():
    with pytest.raises(ValueError, match="2x2 cells cannot be upsampled to 8x8"):
        max_unpool(ONE_TO_FOUR, torch.zeros(1, 1, 2, 2, dtype=torch.long), (8, 8))


def test_max_unpooling_by_the_places_of_another_map_is_refused():
    with pytest.raises(ValueError, match=r"values are \(1, 1, 2, 2\), indices \(1, 3, 2, 2\); bring the map"):
        max_unpool(ONE_TO_FOUR, torch.zeros(1, 3, 2, 2, dtype=torch.long), (4, 4))
