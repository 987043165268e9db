"""Feature pyramid (Lin et al., CVPR 2017): semantics of the coarse maps carried down to the fine ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import Features, Neck


class FPN(Neck):
    """1x1 laterals, nearest top-down sums, 3x3 smoothing: maps c2..c5 -> p2..p5 of ``channels`` each, and p6.

    p6 is every second cell of p5; it serves the proposer's largest anchors and regions are not read from it.
    """

    def __init__(
        self, upstream: Features, channels: int = 256, names: tuple[str, ...] = ("c2", "c3", "c4", "c5")
    ) -> None:
        super().__init__()
        names = tuple(name for name in names if name in upstream.out_channels)
        if not names:
            raise ValueError(f"the pyramid reads maps c2..c5, the backbone offers {list(upstream.out_channels)}")
        self.reads = names
        self.lateral = nn.ModuleDict({name: nn.Conv2d(upstream.out_channels[name], channels, 1) for name in names})
        self.smooth = nn.ModuleDict({name: nn.Conv2d(channels, channels, 3, padding=1) for name in names})
        for parameter in self.parameters():
            nn.init.kaiming_uniform_(parameter, a=1) if parameter.ndim > 1 else nn.init.zeros_(parameter)
        self.strides = {f"p{name[1:]}": upstream.strides[name] for name in names}
        self.extra = f"p{int(names[-1][1:]) + 1}"
        self.strides[self.extra] = 2 * upstream.strides[names[-1]]
        self.out_channels = dict.fromkeys(self.strides, channels)

    @property
    def region_maps(self) -> tuple[str, ...]:
        return tuple(name for name in self.strides if name != self.extra)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(self.reads):
            here = self.lateral[name](maps[name])
            if above is not None:
                here = here + functional.interpolate(above, size=here.shape[-2:], mode="nearest")
            above = here
            out[f"p{name[1:]}"] = self.smooth[name](here)
        out = {name: out[name] for name in self.strides if name in out}
        coarsest = out[f"p{self.reads[-1][1:]}"]
        out[self.extra] = functional.max_pool2d(coarsest, kernel_size=1, stride=2)
        return out
