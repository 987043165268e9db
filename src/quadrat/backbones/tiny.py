"""A residual trunk small enough to learn from scratch on two CPU cores in minutes; ours, for tests and first steps."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from quadrat.backbones.base import Backbone


class Tiny(Backbone):
    """Five halvings, the last four of two residual blocks: c1 (stride 2, ``width`` channels) to c5 (stride 32, 8 times)."""

    def __init__(self, width: int = 16, *, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        widths = {"c1": width, "c2": width * 2, "c3": width * 4, "c4": width * 6, "c5": width * 8}
        stages: dict[str, nn.Module] = {"c1": nn.Sequential(*_conv(3, width, stride=2), nn.ReLU(inplace=True))}
        for (_, channels), (after, out) in pairwise(widths.items()):
            stages[after] = nn.Sequential(Residual(channels, out, stride=2), Residual(out, out, stride=1))
        super().__init__(
            stages,
            out_channels=widths,
            strides={name: 2 ** (i + 1) for i, name in enumerate(widths)},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, D, H, W) -> (B, D', H / stride, W / stride)."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(before, after, stride=stride), nn.ReLU(inplace=True), *_conv(after, after, stride=1)
        )
        self.shortcut = nn.Identity() if stride == 1 and before == after else _shortcut(before, after, stride)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def _conv(before: int, after: int, *, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)]


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    """The mean of what the stride skips, then a 1x1 convolution (ResNet-D); every input cell is heard."""
    return nn.Sequential(
        nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False),
        nn.Conv2d(before, after, 1, bias=False),
        nn.BatchNorm2d(after),
    )
