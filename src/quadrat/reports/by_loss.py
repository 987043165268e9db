"""Is the best loss the best metric? What runs minimised, on the validation pictures, beside what they are judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quadrat.reports.collect import Record
from quadrat.reports.compare import Comparison, Metric, Row
from quadrat.reports.noise import Spread, compare, spread
from quadrat.reports.over_time import WEIGHT
from quadrat.reports.style import BEST, INK, PALE, TOP, empty, legend_below, panels
from quadrat.reports.words import explained, number

LOSS, WEIGHTED, TOTAL = "val/loss/", "train/weighted/", "train/total"
ADDS_UP = 1e-3
"""Relative to the total: more than rounding is something else than a weighted sum."""

SHORT = 12
"""Letters of a label that fit beside a dot; where one is longer, there are ranks."""


@dataclass(frozen=True)
class Point:
    """A setting by what it minimised and by its metric, both by seed and of the last validation."""

    row: Row
    losses: Mapping[Any, float]
    values: Mapping[Any, float]

    @property
    def loss(self) -> Spread:
        return _spread(self.losses)

    @property
    def value(self) -> Spread:
        return _spread(self.values)


def _spread(values: Mapping[Any, float]) -> Spread:
    found = spread(list(values.values()))
    assert found is not None
    return found


def points(result: Comparison) -> list[Point]:
    """Of each setting the runs whose loss is known, in the order of the ranks; settings without one are left out."""
    found = []
    for row in result.ranked:
        losses = {run.seed: loss for run in row.counted if (loss := total(run)) is not None}
        values = {run.seed: run.last[result.metric.name] for run in row.counted if result.metric.name in run.last}
        seeds = [seed for seed in losses if seed in values]
        if seeds:
            found.append(Point(row, {seed: losses[seed] for seed in seeds}, {seed: values[seed] for seed in seeds}))
    return found


def total(run: Record) -> float | None:
    """The terms of the last validation, each times its last weight in training.

    None where they are not all known, and where what was minimised is more than their sum, as with learned weights.
    """
    trained = {term: weight for term, weight in weights(run).items() if weight}
    losses = {term: run.last.get(LOSS + term) for term in trained}
    known = [loss * trained[term] for term, loss in losses.items() if loss is not None]
    return sum(known) if trained and len(known) == len(trained) and _adds_up(run, list(trained)) else None


def weights(run: Record) -> dict[str, float]:
    """The last weight of each term."""
    return {
        name.removeprefix(WEIGHT): float(values[-1])
        for name, (_, values) in run.history.items()
        if name.startswith(WEIGHT)
    }


def _adds_up(run: Record, terms: Sequence[str]) -> bool:
    """Was the last total in training the sum of its weighted terms?"""
    logged = [run.history.get(name) for name in (TOTAL, *(WEIGHTED + term for term in terms))]
    last, *parts = (math.nan if curve is None else float(curve[1][-1]) for curve in logged)
    return math.isclose(last, sum(parts), rel_tol=ADDS_UP)


# --- what the loss would choose ---


def lowest(found: Sequence[Point]) -> Point:
    """The setting that the loss would choose."""
    return min(found, key=lambda point: point.loss.mean)


def best(found: Sequence[Point], metric: Metric) -> Point:
    """The setting that the metric chooses."""
    return (max if metric.larger_is_better else min)(found, key=lambda point: point.value.mean)


def answer(result: Comparison) -> str:
    """What choosing by the loss would cost, in a sentence."""
    found, name = points(result), result.metric.name
    chosen, right = lowest(found), best(found, result.metric)
    if chosen is right:
        return f"The lowest loss is that of the best {name}."
    apart = abs(right.value.mean - chosen.value.mean)
    verdict = explained(compare(right.values, chosen.values))
    return f"The lowest loss has a {name} of {number(chosen.value.mean)}, {number(apart)} from the best: {verdict}."


def unlike(result: Comparison) -> str:
    """In which settings the losses are not the same quantity, in words: nothing where they may be compared."""
    named = [name for key, name in result.names.items() if "loss" in key]  # its weights, or what kind a term is
    if named:
        return f"another quantity for each {', '.join(named)}"
    weighted = [weights(run) for point in points(result) for run in point.row.counted]
    return "" if all(one == weighted[0] for one in weighted) else "another quantity where the weights differ"


# --- the chart ---


def loss_against_metric(result: Comparison) -> Figure:
    """Every setting by the loss that it minimised and by its metric; what either of them would choose is marked and named."""
    found, metric = points(result), result.metric
    chosen, right = lowest(found), best(found, metric)
    chart = empty(7.4, 4.6)
    (ax,) = panels(chart)
    short = max(len(point.row.label) for point in found) <= SHORT
    for point in found:
        colour = BEST if point is right else TOP if point is chosen else PALE
        _dot(ax, point, colour, point.row.label if short else str(point.row.number))
    if chosen is right:
        named, colours = [f"lowest loss and best {metric.name}: {_called(right)}"], [BEST]
    else:
        named = [f"lowest loss: {_called(chosen)}", f"best {metric.name}: {_called(right)}"]
        colours = [TOP, BEST]
    legend_below(chart, named, [{"color": colour, "marker": "o", "ls": ""} for colour in colours])
    means = [point.loss.mean for point in found]
    if min(means) > 0 and max(means) >= 100 * min(means):
        ax.set_xscale("log")
    note = unlike(result)
    ax.set_xlabel("validation loss, weighted as in training" + (f"\n({note})" if note else ""))
    ax.set_ylabel(metric.name + ("" if metric.larger_is_better else " (smaller is better)"))
    return chart


def _dot(ax: Axes, point: Point, colour: str, name: str) -> None:
    loss, value = point.loss, point.value
    ax.errorbar(loss.mean, value.mean, value.deviation or None, loss.deviation or None, fmt="o", color=colour, lw=1)
    place = (loss.mean, value.mean)
    ax.annotate(name, place, (4, 4), textcoords="offset points", fontsize=8.5, color=INK)


def _called(point: Point) -> str:
    return f"{point.row.number}  {point.row.label}"
