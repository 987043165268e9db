"""MobileNetV2 (Sandler et al., CVPR 2018): torchvision's layers under our contract."""

from __future__ import annotations

from torchvision import models

from quadrat.backbones.base import Backbone, load_weights


class MobileNetV2(Backbone):
    """Five halvings: c1 16, c2 24, c3 32, c4 96 and c5 320 channels (strides 2 to 32); the last 1x1 to 1280 is left out."""

    def __init__(self, *, weights: str | None = None, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        body = models.mobilenet_v2(weights=None)
        del body.classifier
        load_weights(body, weights, "mobilenet_v2", unused=("classifier.",))
        layers = body.features
        super().__init__(
            {"c1": layers[:2], "c2": layers[2:4], "c3": layers[4:7], "c4": layers[7:14], "c5": layers[14:18]},
            out_channels={"c1": 16, "c2": 24, "c3": 32, "c4": 96, "c5": 320},
            strides={"c1": 2, "c2": 4, "c3": 8, "c4": 16, "c5": 32},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )
