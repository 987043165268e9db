"""What a comparison comes to, in sentences and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quadrat.reports.compare import Comparison, Metric, Row
from quadrat.reports.noise import DIFFERENT, LEVEL, PAIRED, UNTOLD, WITHIN, Spread, Verdict

NAMED = 6
"""Settings that a sentence still names."""


def conclusion(result: Comparison) -> list[str]:
    """What there is to say, a sentence each."""
    if not result.ranked:
        return ["No run is finished, so there is nothing to compare yet."]
    best, metric, others = result.ranked[0], result.metric, len(result.rows) - 1
    value = f"{written(best.spreads[metric.name])} ({_of_seeds(best, metric)})"
    if not others:
        return [f"{metric.name} of {best.label}: {value}."]
    verdicts = [sentence for says in (WITHIN, DIFFERENT, UNTOLD) for sentence in _said(result, says)]
    open_ = len(result.rows) - len(result.ranked)
    return [
        f"Best: {best.label}, {metric.name} {value}.",
        *verdicts,
        *([f"{open_} of {others} other settings {'has' if open_ == 1 else 'have'} no finished run."] if open_ else []),
        *([UNLIKE] if len({frozenset(row.seeds(metric)) for row in result.ranked}) > 1 else []),
    ]


UNLIKE = "The means are not all over the same seeds, so the order may owe something to the seeds."


def _said(result: Comparison, says: str) -> list[str]:
    verdicts = [(row, row.verdicts[result.metric.name]) for row in result.ranked]
    rows = [row for row, verdict in verdicts if verdict is not None and verdict.says == says]
    if not rows:
        return []
    count = f"{len(rows)} of {len(result.rows) - 1} other settings"
    if says == UNTOLD:
        under_way = any(not run.done for row in rows for run in row.runs)
        remedy = "their other seeds are not finished" if under_way else "seed=0,1,2 in the sweep would tell"
        return [f"Of {count} one seed does not tell whether they differ from it: {remedy}."]
    more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    named = "; ".join(row.label for row in rows[:NAMED])
    return [f"{'Within noise of it' if says == WITHIN else 'Different from it'}: {count} ({named}{more})."]


def _of_seeds(row: Row, metric: Metric) -> str:
    count = len(row.seeds(metric))
    return f"mean ± deviation of {count} seeds" if count > 1 else "one seed"


def notes(result: Comparison) -> list[str]:
    """How the numbers of the table came about."""
    if not result.ranked:
        return []
    verdicts = [row.verdicts[result.metric.name] for row in result.rows]
    tested = [verdict for verdict in verdicts if verdict is not None and verdict.test]
    deviation = "± is the sample deviation over seeds (n - 1)"
    return [*(metric.explained() for metric in result.metrics), deviation, *_tests(tested)]


def _tests(tested: Sequence[Verdict]) -> list[str]:
    if not tested:
        return []
    used = Counter(verdict.test for verdict in tested).most_common()
    named = " and ".join(f"{_named(test)} ({count} row{'s' * (count > 1)})" for test, count in used)
    return [
        f"a row is compared with the best by {named}: p < {LEVEL} is called different, anything else within noise; p is of one "
        f"comparison, so by chance about {LEVEL * len(tested):.1f} of {len(tested)} rows would be called different"
    ]


def _named(test: str) -> str:
    return f"a {test} where the seeds are the same" if test == PAIRED else f"{test} where they are not"


def written(found: Spread | None) -> str:
    """`0.712 ± 0.010`, `0.712` for one seed."""
    if found is None:
        return ""
    return number(found.mean) + ("" if found.deviation is None else f" ± {number(found.deviation, found.mean)}")


def number(value: float, beside: float | None = None) -> str:
    """Three decimals for what is about one, four digits for what is far from it; as ``beside`` is written."""
    size = abs(value if beside is None else beside)
    return f"{value:.3f}" if 0.01 <= size < 100 or size == 0 else f"{value:.4g}"


def explained(verdict: Verdict | None) -> str:
    """`within noise (p = 0.31)`"""
    if verdict is None or verdict.p is None:
        return "" if verdict is None else verdict.says
    return f"{verdict.says} (p {'< 0.001' if verdict.p < 0.001 else f'= {verdict.p:.2g}'})"
