"""Means, deviations and tests, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from quadrat.reports.noise import BEST, DIFFERENT, PAIRED, UNTOLD, WELCH, WITHIN, Spread, compare, spread


def test_spread_of_nothing() -> None:
    assert spread([]) is None


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        ([0.5], 0.5, None),
        ([0.1, 0.3], 0.2, math.sqrt(2 * 0.01)),  # (0.1^2 + 0.1^2) / (2 - 1)
        ([1.0, 2.0, 3.0], 2.0, 1.0),
        ([0.1, 0.1, 0.1], 0.1, 0.0),
        ([0.1 + 0.2, 0.3], 0.3, 0.0),  # the same but for rounding
        ([0.0, 0.0], 0.0, 0.0),
    ],
)
def test_spread(values: list[float], mean: float, deviation: float | None) -> None:
    found = spread(values)
    assert found == Spread(pytest.approx(mean), None if deviation is None else pytest.approx(deviation), len(values))


def test_compare_paired() -> None:
    """Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)."""
    verdict = compare({0: 2.0, 1: 4.0, 2: 6.0}, {2: 3.0, 0: 1.0, 1: 2.0})
    t = 2 * math.sqrt(3)
    assert (verdict.says, verdict.test) == (WITHIN, PAIRED)
    assert verdict.p == pytest.approx(1 - t / math.sqrt(2 + t * t))  # 0.0742


def test_compare_paired_sees_what_seeds_hide() -> None:
    """Seeds that differ by 0.3 do not hide a difference of 0.010 +- 0.001; Welch's test would call it noise."""
    best, other = {0: 0.4, 1: 0.5, 2: 0.7}, {0: 0.391, 1: 0.490, 2: 0.689}
    verdict = compare(best, other)
    t = 0.01 / (0.001 / math.sqrt(3))
    assert verdict.says == DIFFERENT
    assert verdict.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)
    assert compare(best, {seed + 3: value for seed, value in other.items()}).says == WITHIN


def test_compare_welch() -> None:
    """Two and two values with equal variances 0.02: t = (3 - 1) / sqrt(0.02), 2 degrees of freedom."""
    verdict = compare({0: 2.9, 1: 3.1}, {2: 0.9, 3: 1.1})
    t = 2 / math.sqrt(0.02 / 2 + 0.02 / 2)
    assert (verdict.says, verdict.test) == (DIFFERENT, WELCH)
    assert verdict.p == pytest.approx(1 - t / math.sqrt(2 + t * t))


def test_compare_welch_counts_degrees_of_freedom() -> None:
    """1, 2, 3 against 2, 2, 2, 4: variances 1 and 1; scipy's test on the values themselves says the same."""
    from scipy.stats import ttest_ind

    a, b = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0, 4.0]
    verdict = compare(dict(enumerate(a)), {i + 9: value for i, value in enumerate(b)})
    assert verdict.p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("best", "other", "says"),
    [
        ({0: 0.5}, {0: 0.4}, UNTOLD),
        ({0: 0.5, 1: 0.6}, {0: 0.4}, UNTOLD),
        ({0: 0.5}, {0: 0.4, 1: 0.3}, UNTOLD),
        ({}, {0: 0.4, 1: 0.3}, UNTOLD),
    ],
)
def test_compare_one_seed(best: dict[int, float], other: dict[int, float], says: str) -> None:
    assert (compare(best, other).says, compare(best, other).p) == (says, None)


@pytest.mark.parametrize(
    ("best", "other", "p"),
    [
        ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}, 1.0),  # identical
        ({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5}, 0.0),  # always the same difference, but for rounding
        ({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}, 1.0),
        ({0: 0.5, 1: 0.5}, {2: 0.4, 3: 0.4}, 0.0),
        ({0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}, 1.0),
    ],
)
def test_compare_without_variance(best: dict[int, float], other: dict[int, float], p: float) -> None:
    """No division by zero, and no warning, which here would be an error."""
    verdict = compare(best, other)
    assert (verdict.p, verdict.says) == (p, WITHIN if p else DIFFERENT)


def test_compare_one_side_without_variance() -> None:
    """0.5, 0.5 against 0.3, 0.5: t = 0.1 / sqrt(0.02 / 2), one degree of freedom: p = 1 - 2 atan(t) / pi."""
    verdict = compare({0: 0.5, 1: 0.5}, {2: 0.3, 3: 0.5})
    assert verdict.p == pytest.approx(1 - 2 / math.pi * math.atan(1.0))
    assert verdict.says == WITHIN
    assert verdict.says != BEST
