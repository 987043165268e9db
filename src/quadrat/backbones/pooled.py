"""Encoders of convolutions with poolings between, which remember where each maximum came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from quadrat.backbones.base import Backbone, load_weights
from quadrat.ops.unpool import max_pool


class Pooled(Backbone):
    """Stages with a 2x2 max pooling behind each: maps c1 (stride 1) .. cL before it, the last pooled map pL, indices i1..iL.

    ``i<l>`` (B, D, H, W) int64 tells for every cell of what follows c<l> which cell of c<l> it was; a decoder that unpools
    reads them (Zeiler and Fergus, ECCV 2014; SegNet; DeconvNet). ``ceil_mode``: odd sizes are pooled to the larger half, as
    in Caffe and so in the released nets.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        *,
        ceil_mode: bool = False,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
    ) -> None:
        names = [f"c{level}" for level in range(1, len(stages) + 1)]
        self.last, self.ceil_mode = f"p{len(stages)}", ceil_mode
        super().__init__(
            dict(zip(names, stages, strict=True)),
            out_channels={**dict(zip(names, channels, strict=True)), self.last: channels[-1]},
            strides={name: 2**level for level, name in enumerate([*names, self.last])},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = {}
        for name, stage in self.stages.items():
            maps[name] = stage(images)
            images, maps[f"i{name[1:]}"] = max_pool(maps[name], ceil_mode=self.ceil_mode)
        return {**maps, self.last: images}


def pooled_vgg16(
    *,
    weights: str | None = None,
    norm: bool = True,
    ceil_mode: bool = True,
    freeze_stages: int = 0,
    freeze_norm: bool = False,
) -> Pooled:
    """The thirteen convolutions of VGG16 (Simonyan and Zisserman, ICLR 2015), each with batch norm unless ``norm`` is false."""
    body = nn.Module()
    body.features = make_layers(cfgs["D"], batch_norm=norm)
    load_weights(body, weights, "vgg16_bn" if norm else "vgg16", unused=("classifier.",))
    stages: list[list[nn.Module]] = [[]]
    for layer in body.features.children():
        stages.append([]) if isinstance(layer, nn.MaxPool2d) else stages[-1].append(layer)
    full = [nn.Sequential(*layers) for layers in stages if layers]
    channels = (64, 128, 256, 512, 512)
    return Pooled(full, channels, ceil_mode=ceil_mode, freeze_stages=freeze_stages, freeze_norm=freeze_norm)


def pooled(
    widths: Sequence[Sequence[int]],
    *,
    kernel: int = 3,
    norm: bool = True,
    padded: bool = True,
    response_norm: bool = False,
    dropout: Sequence[float] = (),
    ceil_mode: bool = False,
    freeze_stages: int = 0,
    freeze_norm: bool = False,
) -> Pooled:
    """An encoder from scratch: a list of convolution widths for each stage.

    ``padded`` false: convolutions lose a border (U-Net). ``response_norm``: local response normalisation of the input
    (SegNet-Basic). ``dropout``: a rate for each stage, after its convolutions.
    """
    stages, before = [], 3
    for level, own in enumerate(widths):
        layers = list(convolutions(before, own, kernel=kernel, norm=norm, padded=padded))
        if level == 0 and response_norm:
            layers.insert(0, nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))
        if level < len(dropout) and dropout[level]:
            layers.append(nn.Dropout(dropout[level]))
        stages.append(nn.Sequential(*layers))
        before = own[-1]
    channels = [own[-1] for own in widths]
    return Pooled(stages, channels, ceil_mode=ceil_mode, freeze_stages=freeze_stages, freeze_norm=freeze_norm)


class FullResolution(Backbone):
    """3x3 convolutions that never leave the picture's own resolution: one map c1 of stride 1 (the lecture's first network)."""

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        *,
        norm: bool = False,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__(
            {"c1": nn.Sequential(*convolutions(3, widths, norm=norm))},
            out_channels={"c1": widths[-1]},
            strides={"c1": 1},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


def convolutions(
    before: int,
    widths: Iterable[int],
    *,
    kernel: int = 3,
    norm: bool = True,
    padded: bool = True,
    activation: bool = True,
) -> Iterable[nn.Module]:
    """Convolution, batch norm if wanted, ReLU if wanted, for each of ``widths``; initialised for what follows (He, 2015)."""
    for width in widths:
        layer = nn.Conv2d(before, width, kernel, padding=kernel // 2 if padded else 0, bias=not norm)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu" if activation else "linear")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        yield layer
        if norm:
            yield nn.BatchNorm2d(width)
        if activation:
            yield nn.ReLU(inplace=True)
        before = width
