"""A window classifier says the same of a pixel from its window, from a strided pass and from the whole picture."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from quadrat.backbones.window import WindowNet
from quadrat.ops.windows import mirror

NETS = {
    "no pooling": partial(WindowNet, size=5, widths=[], kernels=[], hidden=[4]),
    "one pooling": partial(WindowNet, size=9, widths=[[4]], kernels=[2], hidden=[]),
    "remainders are lost": partial(WindowNet, size=15, widths=[[4, 4], [6]], kernels=[3, 2], hidden=[5, 5]),
    "three poolings": partial(WindowNet, size=25, widths=[[4], [4], [6]], kernels=[3, 3, 2], hidden=[5]),
    "poolings of three and two": partial(WindowNet, size=23, widths=[[4], [6]], kernels=[3, 2], pools=[3, 2]),
    "batch norm": partial(WindowNet, size=13, widths=[[4], [6]], kernels=[3, 3], hidden=[5], norm=nn.BatchNorm2d),
    "layer norm": partial(WindowNet, size=13, widths=[[4], [6]], kernels=[3, 3], hidden=[5], norm=LayerNorm2d),
    "tanh": partial(WindowNet, size=13, widths=[[4], [6]], kernels=[3, 3], activation=nn.Tanh),
}


def built(name: str) -> WindowNet:
    """The net in evaluation mode; batch norms have seen something."""
    torch.manual_seed(0)
    net = NETS[name](2, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 11)])
@torch.no_grad()
def test_three_ways_to_the_same_scores(name: str, size: tuple[int, int]) -> None:
    net = built(name)
    images = torch.randn(2, 2, *size)
    surrounded = mirror(images, *[net.margin] * 4)
    windows = surrounded.unfold(2, net.size, 1).unfold(3, net.size, 1)  # (B, D, H, W, P, P)
    expected = net(windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)).view(2, *size, 3).permute(0, 3, 1, 2)
    assert torch.equal(windows[:, :, 0, 0, net.margin, net.margin], images[:, :, 0, 0])  # the pixel is the centre
    torch.testing.assert_close(net.dense(surrounded), expected, atol=1e-5, rtol=0)
    for y, x in [(0, 0), (min(1, size[0] - 1), min(net.stride - 1, size[1] - 1))]:
        found = net.strided(surrounded, (y, x))
        torch.testing.assert_close(found, expected[:, :, y :: net.stride, x :: net.stride], atol=1e-5, rtol=0)


def test_strides_and_margin() -> None:
    net = built("poolings of three and two")
    assert (net.stride, net.margin, net.num_classes) == (6, 11, 3)


def test_windows_none() -> None:
    assert built("tanh")(torch.zeros(0, 2, 13, 13)).shape == (0, 3)


@pytest.mark.parametrize(("size", "whole"), [(95, True), (97, False)])
@torch.no_grad()
def test_the_whole_window_is_looked_at_where_nothing_remains(size: int, whole: bool) -> None:
    """Kernels 4, 5, 4, 4 leave no remainder in 95 pixels (Ciresan et al., NIPS 2012)."""
    torch.manual_seed(0)
    net = WindowNet(1, 2, size=size, widths=[[8]] * 4, kernels=[4, 5, 4, 4])
    window = torch.randn(1, 1, size, size)
    other = window.clone()
    other[:, :, -1] += 100
    assert torch.equal(net(window), net(other)) is not whole


def test_refused() -> None:
    with pytest.raises(ValueError, match="size is odd, got 8"):
        WindowNet(3, 2, size=8, widths=[], kernels=[])
    with pytest.raises(ValueError, match=r"a window of 7 pixels is too small for kernels \[5, 3\]"):
        WindowNet(3, 2, size=7, widths=[[4], [4]], kernels=[5, 3])
