"""Charts over the steps of training: a line for each setting, the mean over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quadrat.reports.collect import Curve, Record
from quadrat.reports.compare import Comparison, Row
from quadrat.reports.style import FEW, INK, empty, legend_below, panels, row_colours, thousands, value_bar

LOSS, GRADIENT, WEIGHT, COSINE = "train/loss/", "train/gradient_norm/", "train/weight/", "train/cosine/"
BINS = 40
"""Points of a line; the numbers of single steps, which jump, are averaged within one."""

STEADY = 1e-6
"""A weight that moves by less, relative to itself, is constant."""


def mean_curve(runs: Sequence[Record], column: str) -> Curve:
    """A column over the steps, averaged over runs and within bins; empty where no run has it."""
    found = [run.history[column] for run in runs if column in run.history]
    if not found:
        return np.empty(0), np.empty(0)
    steps, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    fine = np.isfinite(values)
    steps, values = steps[fine], values[fine]
    if not steps.size:
        return steps, values
    ticks = np.unique(steps)
    width = 1 if ticks.size <= BINS else (ticks[-1] - ticks[0]) / BINS
    bins = np.minimum(((steps - ticks[0]) / width).astype(int), BINS - 1) if ticks.size > BINS else steps
    _, where, counts = np.unique(bins, return_inverse=True, return_counts=True)
    return np.bincount(where, steps) / counts, np.bincount(where, values) / counts


def columns(result: Comparison, prefix: str) -> list[str]:
    """The columns that begin so and of which a counted run has numbers, in the order of the log."""
    return list(dict.fromkeys(name for run in _counted(result) for name in run.history if name.startswith(prefix)))


def moving_weights(result: Comparison) -> list[str]:
    """The weights that change within a run."""
    return [name for name in columns(result, WEIGHT) if any(_moves_in(run, name) for run in _counted(result))]


def _counted(result: Comparison) -> list[Record]:
    return [run for row in result.ranked for run in row.counted]


def _moves_in(run: Record, name: str) -> bool:
    if name not in run.history:
        return False
    values = run.history[name][1]
    return bool(np.ptp(values) > STEADY * np.abs(values).max())


# --- charts ---


def losses(result: Comparison) -> Figure:
    """The raw loss of each term on the left, the norm of its gradient on the shared parameters beside it."""
    terms = [name.removeprefix(LOSS) for name in columns(result, LOSS)]
    kinds = {LOSS: "loss", GRADIENT: "gradient norm"} if columns(result, GRADIENT) else {LOSS: "loss"}
    titles = {prefix + term: f"{term}: {kind}" for term in terms for prefix, kind in kinds.items()}
    return _panels(result, result.ranked, titles, len(kinds))


def weights(result: Comparison) -> Figure:
    """What each term was multiplied by, of the settings and terms for which that changes."""
    names = moving_weights(result)
    rows = [row for row in result.ranked if any(_moves_in(run, name) for run in row.counted for name in names)]
    return _panels(result, rows, {name: f"weight of {name.removeprefix(WEIGHT)}" for name in names})


def cosines(result: Comparison) -> Figure:
    """How far two terms agree: the cosine between their gradients, below 0 where they pull apart."""
    names = columns(result, COSINE)
    titles = {name: name.removeprefix(COSINE).replace("/", " and ") for name in names}
    chart = _panels(result, result.ranked, titles)
    for ax in chart.axes[: len(names)]:
        ax.axhline(0, color=INK, lw=0.8, zorder=1)
    return chart


def learning(result: Comparison) -> Figure:
    """The metric after each validation."""
    return _panels(result, result.ranked, {result.metric.name: f"{result.metric.name} after each validation"})


def _panels(result: Comparison, rows: Sequence[Row], titles: Mapping[str, str], across: int | None = None) -> Figure:
    """A panel for each column of the log, with a line for each row: names for few of them, a bar of values for many."""
    across = across or (2 if len(titles) == 4 else min(3, len(titles)))
    down = -(-len(titles) // across)
    means = [row.mean(result.metric) or 0.0 for row in rows]
    colours = row_colours(rows, means)
    chart = empty(7.4 if across == 1 else 4.3 * across, 2.1 * down + 0.5 if down > 1 else 3.4)
    drawn_on = panels(chart, down, across, sharex=True)
    for ax, (name, title) in zip(drawn_on, titles.items(), strict=False):
        _draw(ax, rows, colours, name)
        ax.set_title(title)
        ax.xaxis.set_tick_params(labelbottom=ax in drawn_on[len(titles) - across : len(titles)])
    for ax in drawn_on[len(titles) :]:
        ax.remove()
    for ax in drawn_on[max(0, len(titles) - across) : len(titles)]:
        ax.set_xlabel("step")
    _explain(chart, drawn_on[: len(titles)], rows, colours, means, result.metric.name)
    return chart


def _explain(
    chart: Figure,
    drawn_on: Sequence[Axes],
    rows: Sequence[Row],
    colours: Sequence[Any],
    means: Sequence[float],
    name: str,
) -> None:
    named = rows if len(rows) <= FEW else rows[:1]
    if len(rows) > FEW:
        value_bar(chart, drawn_on, means, name)
    if len(rows) > 1:
        legend_below(chart, [f"{row.number}  {row.label}" for row in named], [{"color": colour} for colour in colours])


def _draw(ax: Axes, rows: Sequence[Row], colours: Sequence[Any], column: str) -> None:
    """A line for each row, the best one last and thickest; logarithmic where the values span two decades."""
    curves = [mean_curve(row.counted, column) for row in rows]
    widths = [2.2 if row.number == 1 and len(rows) > 1 else 1.2 for row in rows]
    points = [np.column_stack(curve) for curve in curves]
    ax.add_collection(LineCollection(points[::-1], colors=colours[::-1], linewidths=widths[::-1]))
    for colour, (steps, values) in zip(colours, curves, strict=True):
        if steps.size == 1:
            ax.plot(steps, values, "o", color=colour, ms=4)
    ax.autoscale_view()
    every = np.concatenate([values for _, values in curves])
    if every.size and every.min() > 0 and every.max() >= 100 * every.min():
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    thousands(ax.xaxis)
