"""Weightings that learn from the losses themselves: by a parameter for each term, from epoch to epoch, from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.losses.weighting import TINY, Moment, Weighting, check_terms, mean_over_ranks, present


class Uncertainty(Weighting):
    """Homoscedastic uncertainty (Kendall, Gal and Cipolla, CVPR 2018), with s = log sigma^2 a parameter of each term.

    A term of ``regression`` counts exp(-s) L / 2 + s / 2, any other one, a log likelihood, exp(-s) L + s / 2. With L fixed, s
    goes to log L, or log 2L: a small loss gets a large weight, and the total may be negative. ``bound`` keeps s within
    -bound..bound.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        regression: Sequence[str],
        start: float = 0.0,
        bound: float | None = None,
        rate: float = 10.0,
    ) -> None:
        super().__init__(weights, rate=rate)
        check_terms("loss.weighting.regression", regression, self.names)
        if bound is not None and not bound > 0:
            raise ValueError(f"loss.weighting.bound={bound} is not above 0; null sets none")
        halves = torch.tensor([0.5 if name in regression else 1.0 for name in self.terms])
        self.register_buffer("scale", halves, persistent=False)
        self.scale: Tensor
        self.s = nn.Parameter(torch.full((len(self.terms),), float(start)))
        self.bound = bound

    def begin_step(self, moment: Moment) -> None:
        super().begin_step(moment)
        if (
            self.bound is not None
        ):  # brought back: a clamp in the formula would leave s without a gradient beyond the bound
            with torch.no_grad():
                self.s.clamp_(-self.bound, self.bound)

    def combine(self, terms: Tensor) -> Tensor:
        return (self.scale * (-self.s).exp() * terms + 0.5 * self.s).sum()


class RevisedUncertainty(Weighting):
    """Liebel and Koerner (2018): exp(-s) L / 2 + log(1 + exp(s)), whose second part is never negative; s = log sigma^2."""

    def __init__(self, weights: Mapping[str, float], *, start: float = 0.0, rate: float = 10.0) -> None:
        super().__init__(weights, rate=rate)
        self.s = nn.Parameter(torch.full((len(self.terms),), float(start)))

    def combine(self, terms: Tensor) -> Tensor:
        return (0.5 * (-self.s).exp() * terms + functional.softplus(self.s)).sum()


class ImtlL(Weighting):
    """IMTL-L (Liu et al., ICLR 2021): exp(s) L - s, which draws every weighted term to 1."""

    def __init__(self, weights: Mapping[str, float], *, rate: float = 10.0) -> None:
        super().__init__(weights, rate=rate)
        self.s = nn.Parameter(torch.zeros(len(self.terms)))

    def combine(self, terms: Tensor) -> Tensor:
        return (self.s.exp() * terms - self.s).sum()


class DynamicAverage(Weighting):
    """Dynamic weight average (Liu, Johns and Davison, CVPR 2019): who falls slowest from epoch to epoch weighs most.

    w = K softmax(r / T) with r_i = L_i(e - 1) / L_i(e - 2) of the epochs' means; 1 in the first two epochs.
    """

    factors: Tensor
    before: Tensor
    epochs: Tensor

    def __init__(self, weights: Mapping[str, float], *, temperature: float = 2.0) -> None:
        super().__init__(weights)
        if not temperature > 0:
            raise ValueError(f"loss.weighting.temperature={temperature} is not above 0")
        self.temperature = temperature
        count = len(self.terms)
        self.register_buffer("factors", torch.ones(count))
        self.register_buffer("before", torch.zeros(count))
        self.register_buffer("epochs", torch.zeros(()))

    def end_epoch(self, means: Mapping[str, float]) -> None:
        latest = torch.tensor([means[name] for name in self.terms]).to(self.before)
        ratio = torch.where((self.before > 0) & latest.isfinite(), latest / self.before, 1.0)
        weights = len(latest) * functional.softmax(ratio / self.temperature, dim=0)
        self.factors.copy_(torch.where(self.epochs > 0, weights, self.factors))
        self.before.copy_(latest)
        self.epochs += 1

    def combine(self, terms: Tensor) -> Tensor:
        return terms @ self.factors


class Adam(nn.Module):
    """Adam (Kingma and Ba, 2015) for one small vector; its state are buffers: in the checkpoint, and on the right device."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, size: int, rate: float, *, decay: float = 0.0) -> None:
        super().__init__()
        self.rate, self.decay = rate, decay
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def step(self, value: Tensor, gradient: Tensor) -> None:
        """Move ``value`` in place; a gradient that is not finite moves nothing. No look at the device is needed for it."""
        good = gradient.isfinite().all()
        gradient = torch.where(good, gradient + self.decay * value, 0.0)
        self.count += good
        self.mean.copy_(torch.where(good, self.mean.lerp(gradient, 0.1), self.mean))
        self.square.copy_(torch.where(good, self.square.lerp(gradient**2, 0.001), self.square))
        mean, square = self.mean / (1 - 0.9**self.count), self.square / (1 - 0.999**self.count)
        value.sub_(torch.where(good, self.rate * mean / (square.sqrt() + 1e-8), 0.0))


class Famo(Weighting):
    """FAMO (Liu et al., NeurIPS 2023): every logarithm falls equally fast, at the cost of one more forward pass.

    z = softmax(xi); minimised is c sum z_i log L_i with 1 / c = sum z_i / L_i. After the step the losses of the same batch are
    looked at again, and xi moves, by an Adam of its own, so that those weigh less whose logarithm has fallen more.
    """

    over_ranks = True
    again = True
    xi: Tensor

    def __init__(self, weights: Mapping[str, float], *, step_size: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__(weights)
        count = len(self.terms)
        self.register_buffer("xi", torch.zeros(count))
        self.old = torch.ones(count)  # what the step began from
        self.adam = Adam(count, step_size, decay=decay)

    def combine(self, terms: Tensor) -> Tensor:
        self.old = terms.detach()
        z = torch.where(terms == 0, 0.0, functional.softmax(self.xi, dim=0))
        values = present(terms)
        return (z * values.log()).sum() / (z / values.detach()).sum().clamp(min=TINY)

    @torch.no_grad()
    def see_again(self, losses: Mapping[str, Tensor]) -> None:
        raw = torch.stack([losses[name].detach().float() for name in self.names])
        new = (mean_over_ranks(raw) * self.base)[self.trained]
        compared = (self.old != 0) & (new != 0)
        fallen = torch.where(compared, present(self.old).log() - present(new).log(), 0.0)
        z = functional.softmax(self.xi, dim=0)
        self.adam.step(self.xi, z * (fallen - (z * fallen).sum()))  # the Jacobian of the softmax, transposed, times it
