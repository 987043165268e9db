"""ResNet-18/34/50/101 (He et al., CVPR 2016): torchvision's layers under our contract."""

from __future__ import annotations

from torch import nn
from torchvision import models

from quadrat.backbones.base import Backbone, load_weights

STRIDES = {"c1": 4, "c2": 4, "c3": 8, "c4": 16, "c5": 32}


class ResNet(Backbone):
    """Stem c1 (stride 4, after the pooling) and the four stages c2..c5 (strides 4 to 32).

    ``norm_eps``: the published COCO detectors of torchvision were trained with 0 in place of 1e-5. ``dilated_stages``: so many of
    the last stages keep the stride of the one before and dilate instead (torchvision's FCN: 2, stride 8; depth 50 and more).
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        weights: str | None = None,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
        norm_eps: float = 1e-5,
        dilated_stages: int = 0,
    ) -> None:
        depths = (18, 34, 50, 101)
        if depth not in depths:
            raise ValueError(f"ResNet depth is one of {depths}, got {depth}")
        if not 0 <= dilated_stages <= 3 or (dilated_stages and depth < 50):
            raise ValueError(
                f"0 to 3 stages of a ResNet of depth 50 or 101 can be dilated, got {dilated_stages} of {depth}"
            )
        architecture = f"resnet{depth}"
        body = getattr(models, architecture)(
            weights=None,
            norm_layer=lambda channels: nn.BatchNorm2d(channels, eps=norm_eps),
            replace_stride_with_dilation=[stage > 3 - dilated_stages for stage in (1, 2, 3)],
        )
        del body.fc
        load_weights(body, weights, architecture, unused=("fc.",))
        wide = 64 * (1 if depth < 50 else 4)
        super().__init__(
            {
                "c1": nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool),
                **{f"c{i + 1}": body.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)},
            },
            out_channels={"c1": 64, "c2": wide, "c3": wide * 2, "c4": wide * 4, "c5": wide * 8},
            strides={name: min(stride, 32 >> dilated_stages) for name, stride in STRIDES.items()},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )
