"""A trunk at several scales of the picture (SPPNet, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from quadrat.backbones.base import Backbone


class Scales(Backbone):
    """The map ``last`` of ``trunk`` for each of ``factors`` by which the picture is made larger, finest first: <last>_1 ...

    Strides are those to the picture as it came. What is frozen is the trunk's own matter.
    """

    def __init__(self, trunk: Backbone, factors: Sequence[float], last: str | None = None) -> None:
        if not factors or min(factors) <= 0:
            raise ValueError(f"the scales of a picture are factors above 0, got {list(factors)}")
        last = last or trunk.region_maps[-1]
        trunk.end_with([last])
        names = [f"{last}_{number}" for number in range(1, len(factors) + 1)]
        ordered = sorted(factors, reverse=True)
        super().__init__(
            trunk.stages,  # pyright: ignore[reportArgumentType]
            out_channels=dict.fromkeys(names, trunk.out_channels[last]),
            strides={n: trunk.strides[last] / f for n, f in zip(names, ordered, strict=True)},  # pyright: ignore
        )
        self.freeze(trunk.frozen_stages, trunk.frozen_norm)
        self.factors = dict(zip(names, ordered, strict=True))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: self._seen(images, factor) for name, factor in self.factors.items()}

    def _seen(self, images: Tensor, factor: float) -> Tensor:
        """The map of the picture made so much larger."""
        height, width = (max(1, round(length * factor)) for length in images.shape[2:])
        maps = functional.interpolate(images, size=(height, width), mode="bilinear", antialias=factor < 1)
        for stage in self.stages.values():
            maps = stage(maps)
        return maps
