"""The upsampling kit: every part of conf/model/neck/upsample keeps one contract, and is what it is called."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from quadrat.configs import build, conf_dir
from quadrat.necks.upsample import (
    Bilinear,
    MaxUnpool,
    Nails,
    Nearest,
    PixelShuffle,
    ResizeConv,
    Transposed,
    Upsampler,
)
from quadrat.ops.checkerboard import checkerboard_index, overlap_counts
from quadrat.ops.unpool import bilinear, max_pool, nearest

KIT = {
    file.stem: build(OmegaConf.load(file))
    for file in sorted((conf_dir() / "model" / "neck" / "upsample").glob("*.yaml"))
} | {
    "transposed_k5": partial(Transposed, kernel=5),
    "transposed_k1": partial(Transposed, kernel=1),
    "transposed_unpadded": partial(Transposed, kernel=4, padding=0),
    "transposed_bilinear": partial(Transposed, kernel=4, init="bilinear"),
    "resize_bilinear": partial(ResizeConv, mode="bilinear"),
    "pixel_shuffle_k1": partial(PixelShuffle, kernel=1),
}
SIZES = [
    ((2, 3), (4, 6)),
    ((22, 4), (45, 9)),  # pooled with rounding down
    ((23, 5), (45, 9)),  # and up
    ((1, 2), (1, 4)),
    ((3, 2), (7, 3)),
]
each_kind = pytest.mark.parametrize("kind", KIT)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def places(channels: int, cells: tuple[int, int], size: tuple[int, int], count: int = 2) -> Tensor:
    """Indices of a max-pooling that made a map of ``cells``: the first pixel of each block."""
    rows, columns = (2 * torch.arange(n) for n in cells)
    return (rows[:, None] * size[1] + columns).expand(count, channels, -1, -1)


def grow(up: Upsampler, x: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    return up(x, size, places(channels, (x.shape[-2], x.shape[-1]), size, len(x)))


# --- the contract ---


def test_kit_is_complete():
    assert set(KIT) >= {
        *("nearest", "nails", "max_unpool", "bilinear", "resize_conv", "pixel_shuffle"),
        *("transposed_k2", "transposed_k3", "transposed_k4"),
    }


@each_kind
def test_empty_batch(kind: str):
    assert grow(KIT[kind](6, 4), torch.zeros(0, 6, 2, 3), (4, 6), 4).shape == (0, 4, 4, 6)


@each_kind
@pytest.mark.parametrize(("cells", "size"), SIZES)
@pytest.mark.parametrize("channels", [(4, 4), (6, 4)])
def test_size_is_as_asked_and_all_learn(
    kind: str, channels: tuple[int, int], cells: tuple[int, int], size: tuple[int, int]
):
    up = KIT[kind](*channels)
    x = torch.randn(2, channels[0], *cells, requires_grad=True)
    grown = grow(up, x, size, channels[1])
    assert grown.shape == (2, channels[1], *size)
    assert grown.isfinite().all()
    (grown * torch.randn_like(grown)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad != 0).all() or kind == "transposed_unpadded"  # which cuts off what its last cells write
    assert all(p.grad is not None and p.grad.any() for p in up.parameters())


@each_kind
def test_same_numbers_again_in_any_layout_and_alone(kind: str):
    up, x = KIT[kind](6, 4), torch.randn(3, 6, 5, 7)
    grown = grow(up, x, (11, 14), 4)
    assert torch.equal(grow(up, x, (11, 14), 4), grown)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grow(up.to(memory_format=torch.channels_last), last, (11, 14), 4), grown)
    torch.testing.assert_close(torch.cat([grow(up, one[None], (11, 14), 4) for one in x]), grown)


@each_kind
def test_autocast_keeps_half_precision(kind: str):
    up, x = KIT[kind](6, 4), torch.randn(2, 6, 5, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        grown = grow(up, x.bfloat16(), (11, 14), 4)
    assert grown.dtype == torch.bfloat16
    grown.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()
    torch.testing.assert_close(grown.float(), grow(up, x, (11, 14), 4), rtol=0.05, atol=0.05)


@each_kind
@pytest.mark.parametrize("size", [(4, 6), (16, 24), (6, 12), (8, 14)])
def test_other_factors_are_refused(kind: str, size: tuple[int, int]):
    with pytest.raises(
        ValueError, match=rf"map of 4x6 cells cannot be upsampled to {size[0]}x{size[1]}: a stride of 2"
    ):
        grow(KIT[kind](4, 4), torch.zeros(1, 4, 4, 6), size, 4)


@each_kind
def test_nothing_is_asked_of_the_host(kind: str):
    with torch.device("meta"):
        up = KIT[kind](6, 4)
        assert grow(up, torch.zeros(2, 6, 5, 7), (11, 14), 4).shape == (2, 4, 11, 14)


LINEAR = sorted(set(KIT) - {"max_unpool"})


@pytest.mark.parametrize("kind", LINEAR)
def test_kernel_is_the_square_that_a_cell_writes_to(kind: str):
    up = KIT[kind](1, 1)
    assert up.stride == 2
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    with torch.no_grad():
        stamp = (up(x, (18, 18)) - up(torch.zeros_like(x), (18, 18)))[0, 0]
    rows, columns = stamp.nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == up.kernel


# --- the fixed ones ---


@pytest.mark.parametrize("kind", [Nearest, Nails, Bilinear, MaxUnpool])
def test_fixed_have_parameters_only_if_channels_change(kind):
    assert list(kind(4, 4).parameters()) == []
    assert [tuple(p.shape) for p in kind(6, 4).parameters()] == [(4, 6, 1, 1)]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_resizes_equal_torch(mode: str, size: tuple[int, int]):
    """Of an odd size, all but what is cut off at the right and the bottom."""
    x = torch.randn(2, 3, 4, 5)
    theirs = nn.Upsample(scale_factor=2, mode=mode)(x)[..., : size[0], : size[1]]
    assert torch.equal({"nearest": Nearest, "bilinear": Bilinear}[mode](3, 3)(x, size), theirs)


def test_changing_channels_before_is_changing_them_after():
    up, x = Nearest(6, 4), torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(up(x, (6, 8)), up.channels(nearest(x, (6, 8))))
    up = Bilinear(6, 4)
    torch.testing.assert_close(up(x, (6, 8)), up.channels(bilinear(x, (6, 8))))


@pytest.mark.parametrize("channels", [(6, 6), (6, 4)])
def test_nails_leave_zeros(channels: tuple[int, int]):
    grown = Nails(*channels)(torch.randn(2, channels[0], 3, 4), (6, 8))
    assert (grown != 0).float().mean().item() == 0.25


# --- max-unpooling ---


@pytest.mark.parametrize("size", [(8, 10), (9, 11)])
def test_max_unpool_equals_torch(size: tuple[int, int]):
    values, indices = max_pool(torch.randn(2, 3, *size))
    theirs = nn.MaxUnpool2d(2)(values, indices, output_size=[2, 3, *size])
    assert torch.equal(MaxUnpool(3, 3)(values, size, indices), theirs)


def test_max_unpool_changes_channels_to_those_of_the_places():
    up, x = MaxUnpool(6, 4), torch.randn(2, 6, 2, 3)
    _, indices = max_pool(torch.randn(2, 4, 4, 6))
    assert torch.equal(up(x, (4, 6), indices), nn.MaxUnpool2d(2)(up.channels(x), indices))


def test_max_unpool_without_places_is_refused():
    with pytest.raises(ValueError, match=r"this encoder remembers none; take model/backbone=pooled, or another"):
        MaxUnpool(4, 4)(torch.zeros(1, 4, 2, 2), (4, 4))


def test_max_unpool_by_the_places_of_another_map_is_refused():
    with pytest.raises(ValueError, match=r"values are \(1, 4, 2, 2\), indices \(1, 6, 2, 2\)"):
        MaxUnpool(6, 4)(torch.zeros(1, 6, 2, 2), (4, 4), torch.zeros(1, 6, 2, 2, dtype=torch.long))


# --- transposed convolutions ---


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1), (4, 1), (5, 2)])
def test_transposed_equals_torch(kernel: int, padding: int):
    up, x = Transposed(3, 4, kernel=kernel), torch.randn(2, 3, 4, 5)
    nn.init.normal_(up.conv.get_parameter("bias"))
    theirs = nn.ConvTranspose2d(3, 4, kernel, stride=2, padding=padding)
    theirs.load_state_dict(up.conv.state_dict())
    torch.testing.assert_close(up(x, (8, 10)), theirs(x, output_size=(8, 10)))
    torch.testing.assert_close(up(x, (7, 9)), theirs(x, output_size=(8, 10))[..., :7, :9])


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (4, 1)])
def test_transposed_with_one_pixel_more_equals_torch(kernel: int, padding: int):
    up, x = Transposed(3, 4, kernel=kernel), torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(
        up(x, (9, 11)),
        functional.conv_transpose2d(x, up.conv.weight, up.conv.bias, stride=2, padding=padding, output_padding=1),
    )


def test_transposed_is_its_bias_where_nothing_reaches():
    """Kernel 3 with padding 1 writes to 2 h pixels, output padding included, and not to one more."""
    up, x = Transposed(3, 4, kernel=3), torch.randn(2, 3, 4, 5)
    bias = nn.init.normal_(up.conv.get_parameter("bias"))
    grown = up(x, (9, 11))
    torch.testing.assert_close(grown[..., :8, :10], up(x, (8, 10)))
    assert torch.equal(grown[..., 8, :], bias[:, None].expand(2, 4, 11))
    assert torch.equal(grown[..., 10], bias[:, None].expand(2, 4, 9))


@pytest.mark.parametrize("stride", [2, 4, 8])
@pytest.mark.parametrize("kernels", [2, 1])
def test_transposed_of_any_stride_gives_its_multiple(stride: int, kernels: int):
    up = Transposed(3, 3, kernel=kernels * stride, stride=stride)
    for left_over in range(stride):
        size = (4 * stride + left_over, 5 * stride - left_over)
        assert up(torch.randn(1, 3, 4, 5), size).shape == (1, 3, *size)


@pytest.mark.parametrize("stride", [2, 8])
def test_transposed_from_bilinear_interpolates(stride: int):
    """FCN's k4 s2 and k16 s8, away from the borders, where torch repeats the last value and a stamp adds nothing."""
    up, x = Transposed(3, 3, kernel=2 * stride, stride=stride, init="bilinear"), torch.randn(2, 3, 4, 5)
    inside = (..., slice(stride, -stride), slice(stride, -stride))
    size = (4 * stride, 5 * stride)
    torch.testing.assert_close(up(x, size)[inside], bilinear(x, size, stride=stride)[inside])


def test_transposed_from_bilinear_interpolates_mixtures_if_channels_change():
    up, x = Transposed(64, 32, kernel=4, init="bilinear"), torch.randn(2, 64, 4, 5)
    peak = up.conv.weight[:, :, 1, 1] / 0.75**2
    assert peak.var().item() == pytest.approx(1 / 64, rel=0.1)
    mixed = torch.einsum("bdhw,de->behw", x, peak)
    inside = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(up(x, (8, 10))[inside], bilinear(mixed, (8, 10))[inside])


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (16, 8)])
def test_transposed_keeps_the_variance_at_first(kernel: int, stride: int):
    up = Transposed(64, 256, kernel=kernel, stride=stride)
    grown = up(torch.randn(4, 64, 8, 8), (8 * stride, 8 * stride))[..., stride:-stride, stride:-stride]
    assert grown.var().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("kind", ["nearest", "resize_conv", "pixel_shuffle", "pixel_shuffle_k1"])
def test_kit_keeps_the_variance_at_first(kind: str):
    grown = KIT[kind](64, 256)(torch.randn(4, 64, 16, 16), (32, 32))[..., 2:-2, 2:-2]
    assert grown.var().item() == pytest.approx(1, rel=0.2)


def test_bilinear_start_of_a_kernel_that_cannot_is_refused():
    with pytest.raises(ValueError, match=r"kernel of 2 cannot interpolate at stride 2: take kernel 4 or init=kaiming"):
        Transposed(4, 4, kernel=2, init="bilinear")


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"init is one of \['bilinear', 'kaiming'\], got 'zeros'"):
        Transposed(4, 4, kernel=4, init="zeros")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"mode is one of \['bilinear', 'nearest'\], got 'cubic'"):
        ResizeConv(4, 4, mode="cubic")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="odd kernel, got 4"):
        PixelShuffle(4, 4, kernel=4)


# --- resize and sub-pixel convolution ---


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resize_conv_equals_torch(mode):
    up, x = ResizeConv(3, 4, mode=mode), torch.randn(2, 3, 4, 5)
    theirs = nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.Conv2d(3, 4, 3, padding=1))
    theirs[1].load_state_dict(up.conv.state_dict())
    torch.testing.assert_close(up(x, (8, 10)), theirs(x))


def test_pixel_shuffle_equals_torch():
    up, x = PixelShuffle(3, 4), torch.randn(2, 3, 4, 5)
    nn.init.normal_(up.conv.weight)
    theirs = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.PixelShuffle(2))
    theirs[0].load_state_dict(up.conv.state_dict())
    torch.testing.assert_close(up(x, (8, 10)), theirs(x))


def test_pixel_shuffle_starts_as_nearest():
    up, x = PixelShuffle(3, 4), torch.randn(2, 3, 4, 5)
    grown = up(x, (8, 10))
    assert torch.equal(grown, nearest(grown[..., ::2, ::2], (8, 10)))
    assert grown.var().item() > 0.1


# --- the checkerboard, by kind ---


@torch.no_grad()
def test_untrained_kit_prints_as_its_overlap_says():
    """The notes' claim, A30: kernel 3 at stride 2 prints a pattern, kernels 2 and 4 ease it; and a bed of nails is one."""
    x = torch.randn(4, 64, 16, 16)
    index = {
        kind: checkerboard_index(KIT[kind](64, 16)(x, (32, 32))[..., 2:-2, 2:-2], 2).item()
        for kind in LINEAR
        if kind != "transposed_unpadded"
    }
    even = {kind for kind in index if len(overlap_counts(KIT[kind](1, 1).kernel, 2).unique()) == 1}
    assert even == set(index) - {"nails", "transposed_k1", "transposed_k3", "transposed_k5"}
    assert index["nearest"] == index["pixel_shuffle"] == 0
    assert index["nails"] == pytest.approx(0.75**0.5, abs=0.01)
    assert index["transposed_k3"] == pytest.approx(0.237, abs=0.03)
    assert index["transposed_k3"] > 2 * max(index[kind] for kind in even)
    assert 0 < index["transposed_k4"] < index["transposed_k2"]
