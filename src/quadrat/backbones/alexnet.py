"""AlexNet (Krizhevsky et al., NIPS 2012) without its fully connected layers, on one GPU's worth of channels or on two."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from quadrat.backbones.base import Backbone, load_weights

PAPER = (96, 256, 384, 384, 256)
PLACES = (0, 3, 6, 8, 10)
"""Where the convolutions stand among torchvision's layers; poolings follow the first, the second and the last."""


class AlexNet(Backbone):
    """Five convolutions (11x11 stride 4, 5x5, three of 3x3): c1, c2, c5, and c5 pooled, p5 (strides 4, 8, 16 and 32).

    ``widths`` are the paper's, or torchvision's (64, 192, 384, 256, 256; Krizhevsky 2014), for which there are ``weights``.
    ``response_norm`` is the paper's, behind the first two. ``padding`` of the first: 2 makes 55x55 of 224x224 pixels, 4 of
    220x220 (DeepPose).
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = PAPER,
        response_norm: bool = True,
        padding: int = 2,
        weights: str | None = None,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
    ) -> None:
        first, second, third, fourth, fifth = widths
        convolutions = [
            nn.Conv2d(3, first, 11, stride=4, padding=padding),
            nn.Conv2d(first, second, 5, padding=2),
            nn.Conv2d(second, third, 3, padding=1),
            nn.Conv2d(third, fourth, 3, padding=1),
            nn.Conv2d(fourth, fifth, 3, padding=1),
        ]
        named = nn.Module()  # as torchvision names them
        named.features = nn.ModuleDict({str(place): one for place, one in zip(PLACES, convolutions, strict=True)})
        load_weights(named, weights, "alexnet", unused=("classifier.",))
        norms = [ResponseNorm()] if response_norm else []
        c1, c2, c3, c4, c5 = ([one, nn.ReLU(inplace=True)] for one in convolutions)
        super().__init__(
            {
                "c1": nn.Sequential(*c1, *norms),
                "c2": nn.Sequential(_pool(), *c2, *norms),
                "c5": nn.Sequential(_pool(), *c3, *c4, *c5),
                "p5": _pool(),
            },
            out_channels={"c1": first, "c2": second, "c5": fifth, "p5": fifth},
            strides={"c1": 4, "c2": 8, "c5": 16, "p5": 32},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


class ResponseNorm(nn.LocalResponseNorm):
    """The paper's k = 2, n = 5, alpha = 1e-4, beta = 0.75 (section 3.3); torch divides alpha by n, the paper does not."""

    def __init__(self) -> None:
        super().__init__(size=5, alpha=5e-4, beta=0.75, k=2.0)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())  # squares and powers lose too much in half precision


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2)
