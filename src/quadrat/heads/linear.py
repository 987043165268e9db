"""Fully connected layers on a pooled region, or on a whole pooled map."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import LastStage, imagenet_state, read_state


class Flat(nn.Module):
    """No hidden layer: (R, D, bins, bins) -> (R, D * bins * bins)."""

    def __init__(self, channels: int, bins: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out_features = channels * bins * bins

    def forward(self, regions: Tensor) -> Tensor:
        return self.dropout(regions.flatten(1))


class Truncated(nn.Linear):
    """A linear layer that is evaluated as two, by the ``rank`` largest singular values of its weights (Fast R-CNN, section 3.1).

    It is trained, and stored, as the whole layer.
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int) -> None:
        super().__init__(in_features, out_features)
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"layers.svd: a layer of {in_features}x{out_features} has no rank {rank}")
        self.rank = rank
        self.factors: tuple[Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> Truncated:
        self.factors = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.factors = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        if self.factors is None or self.factors[0].device != input.device:
            self.factors = self._factorised()
        narrow, wide = self.factors
        return functional.linear(functional.linear(input, narrow), wide, self.bias)

    @torch.no_grad()
    def _factorised(self) -> tuple[Tensor, Tensor]:
        """S V^T (rank, in) and U (out, rank) of the weights."""
        u, s, v = torch.linalg.svd(self.weight.float(), full_matrices=False)
        return s[: self.rank, None] * v[: self.rank], u[:, : self.rank]


class TwoLayer(nn.Module):
    """Two hidden layers with ReLU: (R, D, bins, bins) -> (R, last), which is ``hidden`` unless given.

    ``svd``: the two layers' ranks in evaluation, which is faster with large ones and hardly worse.
    """

    def __init__(
        self,
        channels: int,
        bins: int,
        *,
        hidden: int = 1024,
        last: int | None = None,
        dropout: float = 0.0,
        svd: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.out_features = last or hidden
        first, second = (nn.Linear, nn.Linear) if svd is None else (partial(Truncated, rank=rank) for rank in svd)
        self.first = first(channels * bins * bins, hidden)
        self.second = second(hidden, self.out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.first(regions.flatten(1))))
        return self.dropout(torch.relu(self.second(hidden)))


def vgg16_layers(
    channels: int, bins: int, *, weights: str | None = None, dropout: float = 0.5, svd: Sequence[int] | None = None
) -> TwoLayer:
    """VGG16's fc6 and fc7 (4096 wide) on 512 x 7 x 7 regions, from ``imagenet``, a VGG16 state dict file, or none."""
    layers = TwoLayer(channels, bins, hidden=4096, dropout=dropout, svd=svd)
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


class Stage(nn.Module):
    """A trunk's last stage and the mean over its cells: (R, D, bins, bins) -> (R, D') (He et al., CVPR 2016: "C4")."""

    def __init__(self, backbone: LastStage, channels: int, bins: int) -> None:
        super().__init__()
        self.backbone = backbone  # by this name it learns at the trunk's rate
        (self.out_features,) = backbone.out_channels.values()

    def forward(self, regions: Tensor) -> Tensor:
        (maps,) = self.backbone(regions).values()
        return maps.mean((2, 3))
