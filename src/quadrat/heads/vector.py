"""A whole map as one vector."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from quadrat.backbones.base import Features
from quadrat.heads.linear import Flat


class Vector(nn.Module):
    """``pool`` makes ``bins`` x ``bins`` cells of one map, ``layers`` a vector of those: (B, D, h, w) -> (B, out_features).

    The coarsest map is read unless ``map`` names another; ValueError for one that the backbone has not.
    """

    def __init__(
        self,
        maps: Features,
        *,
        bins: int = 1,
        pool: Callable[[int], nn.Module] = nn.AdaptiveAvgPool2d,
        layers: Callable[..., nn.Module] = Flat,
        map: str | None = None,
    ) -> None:
        super().__init__()
        names = list(maps.out_channels)
        if map is not None and map not in names:
            raise ValueError(f"model.vector.map={map} is no map of the backbone, which has {names}")
        self.map = map or names[-1]
        self.pool = pool(bins)
        self.layers = layers(maps.out_channels[self.map], bins)
        self.out_features = int(self.layers.out_features)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return self.layers(self.pool(maps[self.map]))
