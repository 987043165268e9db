"""Fully connected layers on a pooled region, or on a whole pooled map."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from quadrat.backbones.base import imagenet_state, read_state


class Flat(nn.Module):
    """No hidden layer: (R, D, bins, bins) -> (R, D * bins * bins)."""

    def __init__(self, channels: int, bins: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_features = channels * bins * bins

    def forward(self, regions: Tensor) -> Tensor:
        return self.dropout(regions.flatten(1))


class TwoLayer(nn.Module):
    """Two hidden layers with ReLU: (R, D, bins, bins) -> (R, last), which is ``hidden`` unless given."""

    def __init__(
        self, channels: int, bins: int, *, hidden: int = 1024, last: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.out_features = last or hidden
        self.first = nn.Linear(channels * bins * bins, hidden)
        self.second = nn.Linear(hidden, self.out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.first(regions.flatten(1))))
        return self.dropout(torch.relu(self.second(hidden)))


def vgg16_layers(channels: int, bins: int, *, weights: str | None = None, dropout: float = 0.5) -> TwoLayer:
    """VGG16's fc6 and fc7 (4096 wide) on 512 x 7 x 7 regions, from ``imagenet``, a VGG16 state dict file, or none."""
    layers = TwoLayer(channels, bins, hidden=4096, dropout=dropout)
    if weights is None or weights == "none":
        return layers
    state = imagenet_state("vgg16") if weights == "imagenet" else read_state(Path(weights).expanduser())
    try:
        for layer, name in ((layers.first, "classifier.0"), (layers.second, "classifier.3")):
            layer.load_state_dict({part: state[f"{name}.{part}"] for part in ("weight", "bias")})
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"{weights} holds no fc6 and fc7 of a VGG16 for {channels}x{bins}x{bins} regions: {error}"
        ) from error
    return layers
