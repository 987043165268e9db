"""Losses of the place of a joint: how far off it is, or how likely under a learned distribution of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.losses.regression import Distance


class JointLoss(nn.Module):
    """What the ``numbers`` that a head gives for a joint mean, and how wrong they are; places are shares of a frame."""

    numbers: int

    def place(self, raw: Tensor) -> Tensor:
        """x and y (..., 2) in raw numbers (..., numbers)."""
        raise NotImplementedError

    def confidence(self, raw: Tensor) -> Tensor:
        """How sure the place is (...), 0..1."""
        raise NotImplementedError

    def forward(self, raw: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        """A term (...) for each place; where ``labelled`` (...) is false the truth means nothing, and the term is 0."""
        raise NotImplementedError


class Off(JointLoss):
    """The sum over x and y of a distance, in shares of the frame; every joint is as sure as any other."""

    numbers = 2

    def __init__(self, distance: Distance) -> None:
        super().__init__()
        self.distance = distance

    def place(self, raw: Tensor) -> Tensor:
        return raw

    def confidence(self, raw: Tensor) -> Tensor:
        return torch.ones_like(raw[..., 0])

    def forward(self, raw: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        return self.distance(raw, truth).sum(-1) * labelled


class ResidualLogLikelihood(JointLoss):
    """Minus the logarithm of how likely the truth is (Li et al., ICCV 2021): x, y and their deviations are predicted, and what
    errors look like once they are divided by their deviations is a Laplace density times a learned flow.

    The flow is for training alone; it is as the paper's, six affine couplings of three layers ``width`` wide.
    """

    numbers = 4

    def __init__(self, couplings: int = 6, width: int = 64) -> None:
        super().__init__()
        self.flow = nn.ModuleList(Coupling(width, first=number % 2) for number in range(couplings))

    def place(self, raw: Tensor) -> Tensor:
        return raw[..., :2]

    def confidence(self, raw: Tensor) -> Tensor:
        """1 less the mean deviation, as in the paper's code."""
        return 1 - _deviation(raw).mean(-1)

    def forward(self, raw: Tensor, truth: Tensor, labelled: Tensor) -> Tensor:
        deviation = _deviation(raw)
        error = (truth - self.place(raw).float()) / deviation
        error = torch.where(labelled[..., None], error, 0.0)
        laplace = torch.log(2 * deviation) + error.abs()  # -log Q, with the scale's own term
        return (laplace.sum(-1) - self.log_density(error)) * labelled

    def log_density(self, points: Tensor) -> Tensor:
        """The logarithm (...) of the flow's density at points (..., 2)."""
        total = torch.zeros_like(points[..., 0])
        for coupling in reversed(self.flow):
            points, change = coupling(points)
            total = total + change
        normal = -0.5 * points.square().sum(-1) - math.log(2 * math.pi)
        return normal + total


class Coupling(nn.Module):
    """One half of a point, scaled and moved by functions of the other half, undone (Dinh et al., ICLR 2017, RealNVP).

    (..., 2) -> the point before (..., 2), and the logarithm (...) of how much the space shrinks there.
    """

    def __init__(self, width: int, *, first: int) -> None:
        super().__init__()
        self.kept = first
        self.scale = _perceptron(width, nn.Tanh())
        self.shift = _perceptron(width)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        kept = points[..., self.kept : self.kept + 1]
        scale = self.scale(kept)
        moved = (points[..., 1 - self.kept : 2 - self.kept] - self.shift(kept)) * torch.exp(-scale)
        pair = (kept, moved) if self.kept == 0 else (moved, kept)
        return torch.cat(pair, dim=-1), -scale[..., 0]


def _perceptron(width: int, *last: nn.Module) -> nn.Sequential:
    layers: Sequence[nn.Module] = (nn.Linear(1, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU())
    net = nn.Sequential(*layers, nn.Linear(width, 1), *last)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=0.01)  # begins as the identity, nearly
    return net


def _deviation(raw: Tensor) -> Tensor:
    """The deviations (..., 2), as shares of the frame, in raw numbers (..., 4)."""
    return functional.sigmoid(raw[..., 2:].float()).clamp(min=1e-4)
