"""The only place where weights meet losses: the contract of every weighting, and those whose weights are given.

K is the number of terms that are trained: those whose weight in `loss.weights` is not 0. Every weighting first multiplies the
raw terms by these weights, so that a learned or balancing one starts from them; what it does with the products is its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

TINY = 1e-8
"""Added where a logarithm or a quotient of a loss is taken, which may be 0."""


class Moment(NamedTuple):
    """Where a run is: what the weights of an optimiser step may be a function of, the same on all processes."""

    seed: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 1

    def draws(self, stream: int) -> np.random.Generator:
        """Random numbers that are a function of the seed and the step, different in each stream."""
        return np.random.default_rng([self.seed, stream, self.step])


class Weighting(nn.Module):
    """The contract of every weighting: named raw losses in, one number to minimise out; its state is in the checkpoint.

    ``sees`` says whose gradient of each single term it must be shown: nothing's, that of the last shared part, or of all
    parameters. ``over_ranks`` that its weights depend on the losses of the step, which then are the means of all processes.
    ``again`` that it must be told what the step has made of the losses. ``rate`` is the learning rate of its own
    parameters, times that of the heads. Raises ValueError for a weight that is none, or if all are 0.
    """

    sees: ClassVar[Literal["nothing", "last", "all"]] = "nothing"
    over_ranks: ClassVar[bool] = False
    again: ClassVar[bool] = False
    slopes: Tensor
    base: Tensor
    trained: Tensor

    def __init__(self, weights: Mapping[str, float], *, rate: float = 1.0) -> None:
        super().__init__()
        _check_weights(weights)
        self.names, self.rate = tuple(weights), rate
        self.terms = tuple(name for name, weight in weights.items() if weight)  # the K that are trained
        self.moment = Moment()
        base = torch.tensor([float(weight) for weight in weights.values()])
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("trained", base.nonzero()[:, 0], persistent=False)
        self.register_buffer("slopes", base.clone(), persistent=False)

    def check(self, names: Iterable[str]) -> None:
        """Raise KeyError, showing both sides, unless these are exactly the terms this object weighs."""
        names = list(names)
        unknown, missing = sorted(set(self.names) - set(names)), sorted(set(names) - set(self.names))
        if unknown or missing:
            raise KeyError(
                f"loss.weights has {sorted(self.names)}, the model's terms are {sorted(names)}: "
                f"unknown {unknown}, without a weight {missing}"
            )

    def weights(self) -> dict[str, Tensor]:
        """For the log: by how much the total of the last step grows with each raw term."""
        return dict(zip(self.names, self.slopes.unbind(), strict=True))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named scalars -> what is minimised.

        The total is linear in the terms, with the slopes that ``combine`` has at their values: the same gradient, and with
        several processes the right one, as their slopes are taken at the means of all. A term of weight 0 adds nothing, not
        even if it is NaN; it stays in the graph, because several processes expect a gradient of every parameter.
        """
        self.check(losses)
        terms = torch.stack([losses[name].float() for name in self.names])
        # weights of half precision would be another sum
        with torch.enable_grad(), torch.autocast(terms.device.type, enabled=False):
            at = (mean_over_ranks(terms.detach()) if self.over_ranks else terms.detach()).requires_grad_()
            total = self.combine((at * self.base)[self.trained])
            slopes = torch.autograd.grad(total, at, retain_graph=True, materialize_grads=True)[0]
        self.slopes.copy_(slopes)
        return total + torch.where(self.base > 0, slopes * (terms - terms.detach()), 0.0).sum()

    def combine(self, terms: Tensor) -> Tensor:
        """The total of the K trained terms (K,), each times its weight."""
        raise NotImplementedError

    # --- what a weighting may learn from, told by the task ---

    def begin_step(self, moment: Moment) -> None:
        """Before each batch of an optimiser step."""
        self.moment = moment

    def see(self, gram: Tensor, losses: Tensor) -> None:
        """All raw terms of a step, and the inner products of their gradients on the shared parameters, of all processes."""

    def see_again(self, losses: Mapping[str, Tensor]) -> None:
        """The raw terms of the same batch after the step."""

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """The mean of every raw term over an epoch, of all processes."""


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
            raise ValueError(f"a loss weight is a finite number >= 0, got loss.weights.{name}={weight}")
    if not any(weights.values()):
        raise ValueError(f"all loss weights are 0, nothing would be trained: {dict(weights)}")


def check_terms(what: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raise KeyError unless ``given``, the terms that a setting speaks of, are among ``names``."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise KeyError(f"{what} speaks of {unknown}, loss.weights has {sorted(names)} to train")


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def present(terms: Tensor) -> Tensor:
    """Terms (K,) for a logarithm: one that is 0, as a box loss without objects, counts as 1 and moves nothing."""
    return torch.where(terms > 0, terms + TINY, torch.where(terms.isfinite(), 1.0, terms))


class WeightedSum(Weighting):
    """Fixed weights: sum of w_i L_i. A weight of 0 means computed and logged, not trained."""

    def combine(self, terms: Tensor) -> Tensor:
        return terms.sum()


def simplex(weights: Mapping[str, float]) -> WeightedSum:
    """Fixed weights scaled to sum to the number of terms: only their ratios matter, and the learning rate keeps its meaning."""
    _check_weights(weights)
    scale = len(weights) / sum(weights.values())
    return WeightedSum({name: weight * scale for name, weight in weights.items()})


def alpha(weights: Mapping[str, float], *, alpha: float, regression: Sequence[str]) -> WeightedSum:
    """The lecture's a L_class + (1 - a) L_box: ``regression`` names the terms of the second kind.

    Raises ValueError for an alpha outside 0..1 or if one side has no term, KeyError for a term that is none.
    """
    _check_weights(weights)
    if not 0 <= alpha <= 1:
        raise ValueError(f"loss.weighting.alpha={alpha} is not between 0 and 1")
    check_terms("loss.weighting.regression", regression, list(weights))
    if not 0 < len(set(regression)) < len(weights):
        raise ValueError(
            f"loss/weighting=alpha weighs two kinds of terms against each other; of {sorted(weights)} "
            f"loss.weighting.regression={list(regression)} names none or all"
        )
    return WeightedSum({name: w * (1 - alpha if name in regression else alpha) for name, w in weights.items()})


@dataclass(frozen=True)
class Ramp:
    """A factor that goes from ``start`` to ``stop`` between two shares of the run: linear, cosine, or step (at ``end``)."""

    start: float = 0.0
    stop: float = 1.0
    begin: float = 0.0
    end: float = 0.1
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine", "step"):
            raise ValueError(f"a ramp's shape is linear, cosine or step, got {self.shape}")
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"a ramp needs 0 <= begin < end <= 1, shares of the run; got {self.begin} and {self.end}")
        if not (0 <= self.start < math.inf and 0 <= self.stop < math.inf):
            raise ValueError(f"a ramp goes between finite numbers >= 0, got {self.start} and {self.stop}")

    def __call__(self, share: float) -> float:
        along = min(1.0, max(0.0, (share - self.begin) / (self.end - self.begin)))
        bent = {"linear": along, "cosine": 0.5 * (1 - math.cos(math.pi * along)), "step": float(along == 1)}[self.shape]
        return self.start + (self.stop - self.start) * bent


class Scheduled(Weighting):
    """Weights that are functions of the optimiser step: ``ramps`` gives some terms a factor that changes over the run.

    Raises KeyError for a ramp of a term that is none, ValueError for a ramp that is none.
    """

    factors: Tensor

    def __init__(self, weights: Mapping[str, float], *, ramps: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(weights)
        check_terms("loss.weighting.ramps", ramps, self.terms)
        if not ramps:
            raise ValueError("loss/weighting=scheduled without a ramp: add e.g. +loss.weighting.ramps.<term>.end=0.2")
        try:
            self.ramps = {name: Ramp(**settings) for name, settings in ramps.items()}
        except TypeError as error:
            raise ValueError(f"a ramp has start, stop, begin, end and shape: {error}") from None
        self.register_buffer("factors", torch.ones(len(self.terms)), persistent=False)
        self.begin_step(self.moment)

    def begin_step(self, moment: Moment) -> None:
        super().begin_step(moment)
        share = moment.step / max(1, moment.steps)
        self.factors.copy_(torch.tensor([self.ramps[n](share) if n in self.ramps else 1.0 for n in self.terms]))

    def combine(self, terms: Tensor) -> Tensor:
        return terms @ self.factors


class RandomWeights(Weighting):
    """Random loss weighting (Lin et al., 2022): at each step the softmax of K normal numbers, the same on all processes."""

    factors: Tensor
    STREAM = 1

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.register_buffer("factors", torch.ones(len(self.terms)), persistent=False)

    def begin_step(self, moment: Moment) -> None:
        super().begin_step(moment)
        drawn = torch.from_numpy(moment.draws(self.STREAM).standard_normal(len(self.factors)))
        self.factors.copy_(functional.softmax(drawn, dim=0))

    def combine(self, terms: Tensor) -> Tensor:
        return terms @ self.factors


class Geometric(Weighting):
    """Geometric loss strategy (Chennupati et al., 2019): the K-th root of the product; a term's slope is GM / (K L_i)."""

    over_ranks = True

    def combine(self, terms: Tensor) -> Tensor:
        return present(terms).log().mean().exp()


class ScaleInvariant(Weighting):
    """Sum of log L_i: every term may be multiplied by any number and the gradients stay."""

    over_ranks = True

    def combine(self, terms: Tensor) -> Tensor:
        return present(terms).log().sum()
