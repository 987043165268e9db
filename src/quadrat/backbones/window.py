"""A classifier of windows for their centre pixel, and the same numbers from whole pictures without the waste."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn import functional

from quadrat.ops.windows import crop


class WindowNet(nn.Module):
    """Scores of S classes for the centre pixel of windows (N, D, P, P), P = ``size`` odd; no convolution is padded.

    A stage is convolutions of ``widths[i]`` with kernel ``kernels[i]`` and a max pooling of ``pools[i]`` (2). The fully connected
    layers of widths ``hidden`` are convolutions too: the first covers what the stages leave, the others are 1x1. ``norm`` makes a
    normalisation of so many channels that treats every place for itself: batch norm, or layer norm over channels. (Max
    pooling before or after a rising activation is the same function.)

    Three ways to the same scores, in evaluation mode: `forward` window by window, `strided` every ``stride``-th pixel of a
    picture, `dense` every pixel. A picture comes ``surrounded`` by ``margin`` pixels on every side (`ops.windows.surround`), so
    that the window of its pixel (y, x) begins at (y, x). Where P is larger than what the stages see (a remainder is lost in
    pooling), a window's last rows and columns are not looked at. Raises ValueError for an even P or one too small.
    """

    def __init__(
        self,
        planes: int,
        num_classes: int,
        *,
        size: int,
        widths: Sequence[Sequence[int]],
        kernels: Sequence[int],
        pools: Sequence[int] | None = None,
        hidden: Sequence[int] = (),
        norm: Callable[[int], nn.Module] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"a window has a centre pixel: size is odd, got {size}")
        pools = pools or [2] * len(widths)
        left = size
        layers: list[nn.Module] = []
        for stage, kernel, pool in zip(widths, kernels, pools, strict=True):
            for width in stage:
                layers += _convolution(planes, width, kernel, norm, activation)
                planes, left = width, left - kernel + 1
            layers.append(nn.MaxPool2d(pool))
            left //= pool
        if left < 1:
            raise ValueError(
                f"a window of {size} pixels is too small for kernels {list(kernels)} and poolings {list(pools)}"
            )
        for width in hidden:
            layers += _convolution(planes, width, left, norm, activation)
            layers.append(nn.Dropout(dropout))
            planes, left = width, 1
        layers.append(nn.Conv2d(planes, num_classes, left))
        self.layers = nn.Sequential(*layers)
        self.num_classes, self.size, self.margin = num_classes, size, size // 2
        self.stride = 1
        for pool in pools:
            self.stride *= pool

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (N, D, P, P) -> scores (N, S)."""
        return self.layers(windows).flatten(1)

    def strided(self, surrounded: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Scores (B, S, h, w) of pixels (y + i stride, x + j stride), ``offset`` (y, x): a plain fully convolutional net."""
        y, x = offset
        height, width = (length - self.size + 1 for length in surrounded.shape[2:])
        scores = self.layers(surrounded[:, :, y:, x:])
        return crop(scores, (-(-(height - y) // self.stride), -(-(width - x) // self.stride)), (0, 0))

    def dense(self, surrounded: Tensor) -> Tensor:
        """Scores (B, S, H, W) of every pixel: poolings step by one, and all that follows is dilated by what they would skip.

        Filter rarefaction (Long et al., CVPR 2015, section 3.2), the same as shift-and-stitch.
        """
        height, width = (length - self.size + 1 for length in surrounded.shape[2:])
        maps, dilation = surrounded, 1
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                maps = functional.conv2d(maps, layer.weight, layer.bias, dilation=dilation)
            elif isinstance(layer, nn.MaxPool2d):
                pool = layer.kernel_size
                assert isinstance(pool, int)
                maps = functional.max_pool2d(maps, pool, stride=1, dilation=dilation)
                dilation *= pool
            else:
                maps = layer(maps)
        return crop(maps, (height, width), (0, 0))


def _convolution(
    before: int,
    width: int,
    kernel: int,
    norm: Callable[[int], nn.Module] | None,
    activation: Callable[[], nn.Module],
) -> Iterator[nn.Module]:
    """Convolution, normalisation if wanted, activation; initialised for that activation."""
    convolution, active = nn.Conv2d(before, width, kernel, bias=norm is None), activation()
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="tanh" if isinstance(active, nn.Tanh) else "relu")
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    yield convolution
    if norm is not None:
        yield norm(width)
    yield active
