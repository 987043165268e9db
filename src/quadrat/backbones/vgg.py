"""VGG16 (Simonyan and Zisserman, ICLR 2015): torchvision's layers under our contract."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from quadrat.backbones.base import Backbone, load_weights


class VGG16(Backbone):
    """The five groups of convolutions, each but the first behind its pooling: c1 64 (stride 1) to c5 512 (stride 16).

    The last pooling and the fully connected layers are left out; a region head that wants fc6 and fc7 reads them itself.
    """

    def __init__(self, *, weights: str | None = None, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        body = nn.Module()  # the fully connected layers, nine tenths of the network, are not even made
        body.features = make_layers(cfgs["D"])
        load_weights(body, weights, "vgg16", unused=("classifier.",))
        layers = list(body.features.children())
        cuts = [0, 4, 9, 16, 23, 30]
        super().__init__(
            {f"c{i + 1}": nn.Sequential(*layers[cuts[i] : cuts[i + 1]]) for i in range(5)},
            out_channels={"c1": 64, "c2": 128, "c3": 256, "c4": 512, "c5": 512},
            strides={"c1": 1, "c2": 2, "c3": 4, "c4": 8, "c5": 16},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )
