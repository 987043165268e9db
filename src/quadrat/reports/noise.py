"""Is a difference more than noise? Means and deviations over seeds, and the t tests that compare two settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.05
"""The probability below which a difference is not taken for noise."""

SAME = 1e-12
"""Values that differ by less than this, relative to the largest, are the same."""

BEST, DIFFERENT, WITHIN, UNTOLD = "best", "different", "within noise", "one seed: cannot be told"
PAIRED, WELCH = "paired t test", "Welch's t test"


@dataclass(frozen=True)
class Spread:
    """The mean over ``count`` seeds and their sample deviation (n - 1), None for one."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Verdict:
    """What is said of a setting beside the best one, by which test, with which probability of so large a difference."""

    says: str
    test: str = ""
    p: float | None = None


def spread(values: Sequence[float]) -> Spread | None:
    """None where there is no value."""
    if not values:
        return None
    return Spread(statistics.fmean(values), None if len(values) == 1 else _deviation(values), len(values))


def _deviation(values: Sequence[float]) -> float:
    """Of n - 1; nothing but rounding is no deviation."""
    return 0.0 if _same(values) else statistics.stdev(values)


def compare(best: Mapping[Any, float], other: Mapping[Any, float]) -> Verdict:
    """Two settings by their values of each seed: paired where the seeds are the same, by Welch's test otherwise."""
    if min(len(best), len(other)) < 2:
        return Verdict(UNTOLD)
    if best.keys() == other.keys():
        test, p = PAIRED, _paired([best[seed] for seed in best], [other[seed] for seed in best])
    else:
        test, p = WELCH, _welch(list(best.values()), list(other.values()))
    return Verdict(DIFFERENT if p < LEVEL else WITHIN, test, p)


def _paired(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import ttest_rel

    differences = [x - y for x, y in zip(a, b, strict=True)]
    if _same(differences, scale=max(map(abs, [*a, *b]))):
        return _without_variance(statistics.fmean(a), statistics.fmean(b))
    return float(ttest_rel(a, b).pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def _welch(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import ttest_ind_from_stats

    means, deviations = [statistics.fmean(side) for side in (a, b)], [_deviation(side) for side in (a, b)]
    if not any(deviations):
        return _without_variance(*means)
    first, second = zip(means, deviations, (len(a), len(b)), strict=True)
    return float(ttest_ind_from_stats(*first, *second, equal_var=False).pvalue)  # pyright: ignore


def _without_variance(a: float, b: float) -> float:
    """The limit of the test: any difference is certain, none is no difference."""
    return 1.0 if _same([a, b]) else 0.0


def _same(values: Sequence[float], scale: float | None = None) -> bool:
    return max(values) - min(values) <= SAME * (max(map(abs, values)) if scale is None else scale)
