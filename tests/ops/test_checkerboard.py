"""Overlap counts by hand, and an index that sees patterns and nothing else."""

import itertools
import math
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quadrat.ops.checkerboard import checkerboard_index, overlap_counts, phases
from quadrat.ops.unpool import bed_of_nails, nearest


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def print_on(maps: Tensor, pattern: list[list[float]]) -> Tensor:
    """The maps times a factor for each phase of stride 2."""
    return maps * torch.tensor(pattern).repeat(maps.shape[-2] // 2, maps.shape[-1] // 2)


# --- overlap ---


@pytest.mark.parametrize(
    ("kernel", "stride", "counts"),
    [
        (1, 2, [[1, 0], [0, 0]]),  # nails
        (2, 2, [[1, 1], [1, 1]]),
        (3, 2, [[4, 2], [2, 1]]),
        (4, 2, [[4, 4], [4, 4]]),
        (5, 2, [[9, 6], [6, 4]]),
        (16, 8, [[4] * 8] * 8),
    ],
)
def test_overlap_counts_by_hand(kernel: int, stride: int, counts: list):
    """A30: kernel 3 at stride 2 is uneven, kernels 2 and 4 are even."""
    assert overlap_counts(kernel, stride).tolist() == counts


@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product(range(1, 7), (1, 2, 3))))
def test_overlap_counts_are_the_interior_of_stamped_ones(kernel: int, stride: int):
    stamped = functional.conv_transpose2d(torch.ones(1, 1, 15, 15), torch.ones(1, 1, kernel, kernel), stride=stride)
    middle = slice(6 * stride, 9 * stride)
    assert torch.equal(stamped[0, 0, middle, middle], overlap_counts(kernel, stride).float().repeat(3, 3))
    assert (len(overlap_counts(kernel, stride).unique()) == 1) == (kernel % stride == 0)


def test_overlap_of_three_varies_by_half():
    counts = overlap_counts(3, 2).float()
    assert (counts.std(correction=0) / counts.mean()).item() == pytest.approx(0.4843, abs=1e-4)


# --- phases ---


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 0, 4, 4), (1, 3, 1, 4), (1, 3, 4, 1)])
def test_maps_without_a_block_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"hold no whole block of 2x2 pixels"):
        checkerboard_index(torch.zeros(shape), 2)


def test_phases_by_hand():
    maps = torch.arange(2 * 15.0).reshape(2, 1, 3, 5)  # the third row and the fifth column are no whole blocks
    assert phases(maps, 2)[:, 0].tolist() == [[0, 2, 15, 17], [1, 3, 16, 18], [5, 7, 20, 22], [6, 8, 21, 23]]


# --- the index ---


@pytest.mark.parametrize(
    "maps",
    [
        torch.zeros(2, 3, 8, 8),
        torch.full((2, 3, 8, 8), 0.1),
        torch.full((2, 3, 62, 64), -1e4 / 3),
        nearest(noise(2, 3, 8, 8), (16, 16)),
        nearest(noise(2, 3, 8, 8) + 1000, (16, 16)),
    ],
)
def test_index_without_a_pattern_is_zero(maps: Tensor):
    assert checkerboard_index(maps, 2).item() == 0


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e5 / 7, 1e-7])
def test_index_of_rounding_is_about_zero(value: float):
    """Sums of a constant may differ in the last digit from phase to phase."""
    maps = torch.full((1, 3, 16, 16), value)
    maps[..., ::2, ::2] = maps[..., ::2, ::2].nextafter(torch.tensor(torch.inf))
    assert checkerboard_index(maps, 2).item() < 0.1


def test_index_of_nothing_but_a_pattern_is_one():
    assert checkerboard_index(print_on(torch.ones(2, 3, 8, 8), [[4, 2], [2, 1]]), 2).item() == pytest.approx(1)


def test_index_by_hand():
    """Phase (0, 0) holds 0 and 2, the others zeros: means 1, 0, 0, 0 and deviations 1, 0, 0, 0, of variance 3/16 each."""
    maps = torch.tensor([[[[0.0, 0, 2, 0], [0, 0, 0, 0]]]])
    assert checkerboard_index(maps, 2).item() == pytest.approx(math.sqrt((3 / 16 + 3 / 16) / (7 / 16)))


def test_index_of_nails_is_that_of_one_phase_in_four():
    """Deviations s, 0, 0, 0 about 0: variance 3/16 s^2, of a total of 1/4 s^2."""
    maps = bed_of_nails(noise(4, 8, 64, 64), (128, 128))
    assert checkerboard_index(maps, 2).item() == pytest.approx(math.sqrt(3 / 4), abs=1e-3)


def test_index_sees_means_that_differ_where_spreads_do_not():
    maps = noise(4, 1, 128, 128) + print_on(torch.ones(4, 1, 128, 128), [[1, -1], [-1, 1]])  # variance 1 + 1
    assert checkerboard_index(maps, 2).item() == pytest.approx(math.sqrt(1 / 2), abs=0.01)


def test_index_sees_spreads_that_differ_where_means_are_zero():
    """Deviations 1, sqrt 2, sqrt 2, 2: those of kernel 3 at stride 2 with random weights."""
    spreads = np.sqrt(overlap_counts(3, 2).numpy())
    maps = print_on(noise(4, 1, 128, 128), spreads.tolist())
    expected = math.sqrt(spreads.var() / np.square(spreads).mean())
    assert expected == pytest.approx(0.2374, abs=1e-4)
    assert checkerboard_index(maps, 2).item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("stride", [2, 3])
def test_index_equals_its_definition(stride: int):
    maps = (noise(2, 3, 13, 11) * torch.arange(11)).double()
    unlike = everything = 0.0
    blocks = [n // stride * stride for n in (13, 11)]
    for channel in maps[..., : blocks[0], : blocks[1]].transpose(0, 1).numpy():
        kinds = [channel[:, i::stride, j::stride] for i in range(stride) for j in range(stride)]
        unlike += np.var([kind.mean() for kind in kinds]) + np.var([kind.std() for kind in kinds])
        everything += channel.var()
    assert checkerboard_index(maps, stride).item() == pytest.approx(math.sqrt(unlike / everything), rel=1e-5)


def test_index_has_no_unit_and_no_zero():
    maps = print_on(noise(2, 3, 32, 32), [[2, 1], [1, 1]])
    index = checkerboard_index(maps, 2)
    torch.testing.assert_close(checkerboard_index(maps * -1e-6, 2), index, rtol=1e-4, atol=0)
    torch.testing.assert_close(checkerboard_index(maps + 100, 2), index, rtol=1e-3, atol=0)


def test_index_does_not_hear_dead_channels():
    maps = print_on(noise(2, 3, 32, 32), [[2, 1], [1, 1]])
    with_dead = torch.cat([maps, torch.zeros(2, 5, 32, 32), torch.ones(2, 2, 32, 32)], dim=1)
    torch.testing.assert_close(checkerboard_index(with_dead, 2), checkerboard_index(maps, 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("side", [32, 128])
def test_index_of_noise_is_as_documented(side: int):
    """Two numbers of each phase are uncertain by s / sqrt(n) and s / sqrt(2 n)."""
    cells = 2 * (side // 2) ** 2
    expected = math.sqrt(9 / (8 * cells))
    assert checkerboard_index(noise(2, 64, side, side), 2).item() == pytest.approx(expected, rel=0.15)


def test_index_hardly_hears_a_ramp():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    assert checkerboard_index(ramp, 2).item() < 0.03


def test_index_is_a_number_for_the_log():
    maps = noise(2, 3, 8, 8).bfloat16().requires_grad_()
    index = checkerboard_index(maps, 2)
    assert index.shape == ()
    assert index.dtype == torch.float32
    assert not index.requires_grad
    with torch.device("meta"):  # nothing is asked of the host
        assert checkerboard_index(torch.zeros(2, 3, 8, 8), 2).shape == ()


# --- random weights: evenness eases the pattern and does not remove it (A30) ---


def drawn(kernel: int, padding: int, draws: int = 200) -> tuple[float, float]:
    """Median ratio of the largest to the smallest phase variance, and median index, of random 64 -> 1 transposed convolutions."""
    generator = torch.Generator().manual_seed(0)
    ratios, indices = [], []
    for _ in range(draws):
        x = torch.randn(1, 64, 16, 16, generator=generator)
        weight = torch.randn(64, 1, kernel, kernel, generator=generator)
        inside = functional.conv_transpose2d(x, weight, stride=2, padding=padding)[..., 4:28, 4:28]
        variances = phases(inside, 2).var(-1)
        ratios.append((variances.max() / variances.min()).item())
        indices.append(checkerboard_index(inside, 2).item())
    return median(ratios), median(indices)


def test_random_weights_print_least_where_the_overlap_is_even():
    (ratio3, index3), (ratio4, index4), (ratio2, index2) = drawn(3, 1), drawn(4, 1), drawn(2, 0)
    assert (ratio3, ratio4, ratio2) == pytest.approx((3.98, 1.36, 1.52), rel=0.1)
    assert index3 > 2 * max(index2, index4)
