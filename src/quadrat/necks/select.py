"""The neck of detectors that read one map: take it as it is."""

from __future__ import annotations

from torch import Tensor

from quadrat.backbones.base import Features, Neck


class Select(Neck):
    """Keep the named maps, drop the others."""

    def __init__(self, upstream: Features, names: tuple[str, ...]) -> None:
        super().__init__()
        unknown = [name for name in names if name not in upstream.out_channels]
        if unknown:
            raise ValueError(f"there is no map {unknown}; the backbone offers {list(upstream.out_channels)}")
        self.reads = tuple(names)
        self.out_channels = {name: upstream.out_channels[name] for name in names}
        self.strides = {name: upstream.strides[name] for name in names}

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: maps[name] for name in self.out_channels}
