"""SqueezeNet 1.1 (Iandola et al., 2016): torchvision's layers under our contract."""

from __future__ import annotations

from torchvision import models

from quadrat.backbones.base import Backbone, load_weights


class SqueezeNet(Backbone):
    """c1 64, c2 128, c3 256 and c4 512 channels (strides 2, 4, 8, 16): the network ends there, and has no batch norm.

    Its unpadded convolution and pools lose a fraction of a cell, so a map may be one cell short of H / stride.
    """

    def __init__(self, *, weights: str | None = None, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        body = models.squeezenet1_1(weights=None)
        del body.classifier
        load_weights(body, weights, "squeezenet1_1", unused=("classifier.",))
        layers = body.features
        super().__init__(
            {"c1": layers[:2], "c2": layers[2:5], "c3": layers[5:8], "c4": layers[8:]},
            out_channels={"c1": 64, "c2": 128, "c3": 256, "c4": 512},
            strides={"c1": 2, "c2": 4, "c3": 8, "c4": 16},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )
