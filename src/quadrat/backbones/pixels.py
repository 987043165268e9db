"""The trunk of detectors that look at pixels region by region: none."""

from __future__ import annotations

from torch import nn

from quadrat.backbones.base import Backbone


class Pixels(Backbone):
    """Hands on the normalised picture as its only map ``image`` of stride 1."""

    def __init__(self) -> None:
        super().__init__({"image": nn.Identity()}, out_channels={"image": 3}, strides={"image": 1})
