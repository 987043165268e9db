"""What a search may choose from, in the words of Hydra's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from quadrat.sweeps.designs import parts

DIGITS = 6
"""Significant digits of a number that is tried, so that it can be read, typed, and is the same on the way back."""


@dataclass(frozen=True)
class Space:
    """The parameters of a search with their ranges, beside what is fixed and the seeds over which a trial is repeated."""

    fixed: list[str]
    seeds: list[list[str]]
    parameters: dict[str, BaseDistribution]
    said: dict[str, str]

    @classmethod
    def of(cls, overrides: Iterable[Override]) -> Space:
        """What overrides say; ValueError for what cannot be searched, with what can."""
        fixed, swept, seeds = parts(overrides)
        if not swept:
            raise ValueError(
                "a search needs something to search: 'loss.weights.rpn_box=tag(log,interval(0.1,100))' a number between two, "
                "'model.proposer.samples=range(32,257,32)' steps, loss/weighting=static,dwa one of a list"
            )
        said = {key: str(override.input_line).partition("=")[2] for key, override in swept.items()}
        return cls(fixed, seeds, {key: _distribution(override) for key, override in swept.items()}, said)

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of a trial, without a seed."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.parameters)]

    def rounded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers with as many digits as anybody would type, still in their ranges."""
        return {key: _rounded(value, self.parameters[key]) for key, value in values.items()}

    def example(self) -> dict[str, Any]:
        """One point, for what must be known before the first trial."""
        return {key: _one(distribution) for key, distribution in self.parameters.items()}


def _distribution(override: Override) -> BaseDistribution:
    try:
        if override.is_choice_sweep():
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        return _numbers(override)
    except ValueError as error:
        raise ValueError(f"{override.input_line} cannot be searched: {error}") from error


def _numbers(override: Override) -> FloatDistribution | IntDistribution:
    """A range or an interval; whole numbers where both ends are."""
    value: Any = override.value()
    unknown = value.tags - {"log"}
    if unknown:
        raise ValueError(
            f"there is no tag {', '.join(sorted(unknown))}; tag(log,interval(0.1,100)) searches the logarithm"
        )
    log = "log" in value.tags
    if override.is_interval_sweep():
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log=log)
    if log:
        raise ValueError("a range has equal steps; tag(log,interval(0.1,100)) searches the logarithm")
    steps = list(value.range())
    if not steps:
        raise ValueError("the range is empty; its end does not belong to it")
    whole = isinstance(steps[0], int)
    low, high = min(steps), max(steps)
    return (IntDistribution if whole else FloatDistribution)(low, high, step=abs(value.step))


def _rounded(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)


def _one(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.high  # the low end of a weight may be 0
