"""Charts of a metric against what was set."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from quadrat.reports.compare import Comparison, Metric, Row
from quadrat.reports.noise import WITHIN
from quadrat.reports.settings import label, numeric, shown
from quadrat.reports.style import (
    BEST,
    COLOURS,
    FEW,
    INK,
    MARKERS,
    PALE,
    SCALE,
    TOP,
    empty,
    legend_below,
    normalised,
    ordered,
    panels,
    ticks_at,
    value_bar,
    wide,
)
from quadrat.reports.words import number

MOST_RANKED = 40
"""Rows of a ranking that can be read; the table has all of them."""

MOST_PANELS = 4
"""Heat maps side by side."""

Line = tuple[str, list[Row]]
"""What the other settings are, and the rows along the setting that is looked at."""


def ranking(result: Comparison) -> Figure:
    """Every setting by its rank, mean and deviation, with a stroke for each seed."""
    metric, rows = result.metric, result.ranked[:MOST_RANKED]
    longest = max(len(row.label) for row in rows)
    chart = empty(min(13.0, 5.2 + 0.068 * longest), 1.0 + 0.27 * len(rows))
    (ax,) = panels(chart)
    for colour in (PALE, INK, BEST):
        _dots(ax, [(place, row) for place, row in enumerate(rows) if _colour(row, metric) == colour], metric, colour)
    best = rows[0].spreads[metric.name]
    if best is not None and best.deviation:
        ax.axvspan(best.mean - best.deviation, best.mean + best.deviation, color=BEST, alpha=0.08, lw=0)
    ax.set_yticks(range(len(rows)), [f"{row.label}   {row.number}" for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(metric.name)
    return chart


def _colour(row: Row, metric: Metric) -> str:
    verdict = row.verdicts[metric.name]
    return BEST if row.number == 1 else INK if verdict is not None and verdict.says == WITHIN else PALE


def _dots(ax: Axes, placed: Sequence[tuple[int, Row]], metric: Metric, colour: str) -> None:
    strokes = [(value, place) for place, row in placed for value in row.seeds(metric).values()]
    found = [(spread, place) for place, row in placed if (spread := row.spreads[metric.name]) is not None]
    ax.plot(*np.array(strokes).reshape(-1, 2).T, "|", color=colour, ms=7, alpha=0.6)
    means, bars = [one.mean for one, _ in found], [one.deviation or 0.0 for one, _ in found]
    ax.errorbar(means, [place for _, place in found], xerr=bars, fmt="o", color=colour, ms=5.5, elinewidth=1.4)


# --- along one setting ---


def lines(result: Comparison, key: str) -> list[Line]:
    """The rows along one setting: a line for each combination of the others that has two or more, the best line first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in result.ranked:
        groups.setdefault(tuple(row.settings[other] for other in result.keys if other != key), []).append(row)
    return [(_rest(result, rows[0], key), rows) for rows in groups.values() if len(rows) > 1]


def _rest(result: Comparison, row: Row, *keys: str) -> str:
    """The other settings of a row, in words."""
    rest = {other: row.settings[other] for other in result.telling if other not in keys}
    return label(rest, result.names) if rest else ""


def _few(result: Comparison, key: str) -> list[Line]:
    """The best lines, as many as can be told apart, in the order of their settings."""
    places = {other: ordered(row.settings[other] for row in result.rows) for other in result.keys if other != key}
    chosen = lines(result, key)[:FEW]
    return sorted(chosen, key=lambda line: [found.index(line[1][0].settings[other]) for other, found in places.items()])


def curve(result: Comparison, key: str) -> Figure:
    """The metric against a numeric setting with deviations, a line for each combination of the others; dots alone where
    no two rows differ in this setting only."""
    metric, drawn = result.metric, _few(result, key)
    chart, ax = _beside_legend(drawn)
    values = [row.settings[key] for row in result.ranked]
    for place, (rest, rows) in enumerate(drawn):
        rows = sorted(rows, key=lambda row: row.settings[key])
        spots = _aside([row.settings[key] for row in rows], values, 0.012 * (place - (len(drawn) - 1) / 2))
        _line(ax, spots, rows, metric, place, rest)
    if not drawn:
        ax.plot(values, [row.mean(metric) or 0.0 for row in result.ranked], "o", color=COLOURS[0], alpha=0.7)
    if wide(values):
        ax.set_xscale("log")
    ticks_at(ax.xaxis, values)
    ax.set_xlabel(key)
    ax.set_ylabel(metric.name)
    return chart


def _aside(spots: Sequence[float], values: Sequence[float], share: float) -> list[float]:
    """A little beside where they are, by a share of the axis, so that the bars of several lines do not cover each other."""
    if wide(values):
        return [spot * (max(values) / min(values)) ** share for spot in spots]
    return [spot + (max(values) - min(values)) * share for spot in spots]


def categories(result: Comparison, key: str) -> Figure:
    """The metric for each choice of a setting that is no number, a colour for each combination of the others."""
    metric, drawn = result.metric, _few(result, key)
    choices = ordered(row.settings[key] for _, rows in drawn for row in rows)
    chart, ax = _beside_legend(drawn, width=max(6.6, 0.9 * len(choices)))
    apart = 0.6 / len(drawn)
    for place, (rest, rows) in enumerate(drawn):
        aside = apart * (place - (len(drawn) - 1) / 2)
        spots = [choices.index(row.settings[key]) + aside for row in rows]
        _line(ax, spots, rows, metric, place, rest, style="none")
    words = [shown(choice, key) for choice in choices]
    ax.set_xticks(range(len(choices)), words, rotation=30 if sum(map(len, words)) > 60 else 0)
    ax.set_xlim(-0.6, len(choices) - 0.4)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(result.names[key])
    ax.set_ylabel(metric.name)
    return chart


def _beside_legend(drawn: Sequence[Line], width: float = 6.6) -> tuple[Figure, Axes]:
    """Room for the chart itself, and below it for the names of its lines."""
    names = [rest for rest, _ in drawn if rest]
    chart = empty(width, 3.9)
    (ax,) = panels(chart)
    legend_below(chart, names, [{"color": COLOURS[i], "marker": MARKERS[i]} for i in range(len(names))])
    return chart, ax


def _line(
    ax: Axes,
    spots: Sequence[float],
    rows: Sequence[Row],
    metric: Metric,
    place: int,
    name: str,
    style: str = "-",
) -> None:
    found = [spread for row in rows if (spread := row.spreads[metric.name]) is not None]
    colour = COLOURS[place]
    for spot, row in zip(spots, rows, strict=True):
        values = list(row.seeds(metric).values())
        ax.plot([spot] * len(values), values, "_", color=colour, ms=6, alpha=0.5)
    ax.errorbar(
        spots,
        [one.mean for one in found],
        yerr=[one.deviation or 0.0 for one in found],
        fmt=MARKERS[place],
        ls=style,
        color=colour,
        ms=5.5,
        elinewidth=1.2,
        capsize=2.5,
        label=name,
    )


# --- two settings ---


def grids(result: Comparison, first: str, second: str) -> list[tuple[str, Mapping[tuple[Any, Any], Row]]]:
    """The rows by two settings, for each combination of the others; the one with the best row first."""
    found: dict[tuple[Any, ...], dict[tuple[Any, Any], Row]] = {}
    for row in result.ranked:
        rest = tuple(row.settings[key] for key in result.keys if key not in (first, second))
        found.setdefault(rest, {})[row.settings[first], row.settings[second]] = row
    return [(_rest(result, next(iter(cells.values())), first, second), cells) for cells in found.values()]


def heat_map(result: Comparison, first: str, second: str) -> Figure:
    """The metric over the grid of two settings, one map for each combination of the others; the best is framed."""
    metric, drawn = result.metric, grids(result, first, second)[:MOST_PANELS]
    across = ordered(one for _, cells in drawn for one, _ in cells)
    up = ordered(two for _, cells in drawn for _, two in cells)
    width, height = 1.6 + 0.95 * len(across) * len(drawn), 1.5 + 0.55 * len(up)
    chart = empty(max(5.0, width), max(2.8, height))
    drawn_on = panels(chart, 1, len(drawn), sharey=True)
    means = [row.mean(metric) or 0.0 for _, cells in drawn for row in cells.values()]
    for ax, (name, cells) in zip(drawn_on, drawn, strict=True):
        _heat(ax, cells, across, up, metric, means)
        ax.set_title(name)
        ax.set_xlabel(result.names[first])
    drawn_on[0].set_ylabel(result.names[second])
    value_bar(chart, drawn_on, means, metric.name)
    return chart


def _heat(
    ax: Axes,
    cells: Mapping[tuple[Any, Any], Row],
    across: Sequence[Any],
    up: Sequence[Any],
    metric: Metric,
    means: Sequence[float],
) -> None:
    scale = normalised(means)
    plane = np.full((len(up), len(across)), np.nan)
    for (one, two), row in cells.items():
        spot = across.index(one), up.index(two)
        mean = row.mean(metric) or 0.0
        plane[spot[1], spot[0]] = mean
        found = row.spreads[metric.name]
        text = number(mean) + (f"\n± {number(found.deviation, mean)}" if found and found.deviation is not None else "")
        dark = scale(mean) < 0.6
        ax.text(*spot, text, ha="center", va="center", color="white" if dark else INK, fontsize=8.5)
        if row.number == 1:
            ax.add_patch(_frame(spot))
    ax.imshow(plane, origin="lower", norm=scale, cmap=SCALE, aspect="auto")
    ax.set_xticks(range(len(across)), [shown(value) for value in across])
    ax.set_yticks(range(len(up)), [shown(value) for value in up])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _frame(spot: tuple[int, int]) -> Rectangle:
    return Rectangle((spot[0] - 0.47, spot[1] - 0.46), 0.94, 0.92, fill=False, ec=TOP, lw=2.5)


# --- all settings ---


def parallel(result: Comparison) -> Figure:
    """Every row as a line over all settings that ends at its metric; better ones are brighter, the best is thick and on top."""
    rows, metric = result.ranked[::-1], result.metric
    means = [row.mean(metric) or 0.0 for row in rows]
    columns = [[row.settings[key] for row in rows] for key in result.keys] + [means]
    names = [*result.names.values(), metric.name]
    chart = empty(max(6.6, 1.15 * min(len(columns), 8) + 0.85 * max(0, len(columns) - 8) + 1.5), 4.4)
    (ax,) = panels(chart)
    placed = [
        _axis(ax, at, column, key) for at, (column, key) in enumerate(zip(columns, [*result.keys, ""], strict=True))
    ]
    scale = normalised(means if metric.larger_is_better else [-mean for mean in means])
    for i, mean in enumerate(means):
        best = i == len(rows) - 1
        colour = TOP if best else SCALE(scale(mean if metric.larger_is_better else -mean))
        heights = [column[i] for column in placed]
        ax.plot(*_smooth(heights), color=colour, lw=3 if best else 1.2, alpha=1.0 if best else 0.75)
    ax.set_xticks(range(len(names)), names, rotation=25 if len(names) > 7 or max(map(len, names)) > 16 else 0)
    ax.xaxis.tick_top()
    ax.set_xlim(-0.3, len(names) - 0.55)
    ax.set_ylim(-0.06, 1.06)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return chart


def _axis(ax: Axes, at: int, values: Sequence[Any], key: str) -> list[float]:
    """Draw the upright axis of a setting, or of the metric for none, and say how high each value stands."""
    heights = _heights(values)
    ticks = dict(zip(values, heights, strict=True))
    if (not key or len(ticks) > 9) and numeric(values):
        low, high = min(values), max(values)
        ticks = {value: height for value, height in ticks.items() if value in (low, high)}
    ax.axvline(at, color=PALE, lw=1, zorder=1)
    for value, height in ticks.items():
        words = shown(value, key) if key else number(value)
        text = words if len(words) < 16 else f"{words[:14]}…"
        ax.text(at + 0.04, height, text, fontsize=8, va="center", zorder=5, bbox=PLATE)
    return heights


PLATE = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
"""Behind words that lines may cross."""


def _heights(values: Sequence[Any]) -> list[float]:
    """Numbers by their size, or their logarithm where they span two decades; words evenly."""
    if not numeric(values):
        choices = ordered(values)
        return [choices.index(value) / max(1, len(choices) - 1) for value in values]
    numbers = np.log10(values) if wide(values) else np.array(values, dtype=float)
    return ((numbers - numbers.min()) / (numbers.max() - numbers.min())).tolist()


def _smooth(heights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """From axis to axis without corners, so that a line can be followed through an axis where many meet."""
    share = np.linspace(0, 1, 24)
    ease = share * share * (3 - 2 * share)
    spots = np.concatenate([at + share for at in range(len(heights) - 1)])
    pairs = itertools.pairwise(heights)
    return spots, np.concatenate([low + (high - low) * ease for low, high in pairs])


# --- two metrics ---


def front(rows: Sequence[Row], first: Metric, second: Metric) -> list[Row]:
    """The rows that no other row is better than in both metrics, along the first one."""
    points = {row.number: _point(row, first, second) for row in rows}
    kept = [row for row in rows if not any(_beats(other, points[row.number]) for other in points.values())]
    return sorted(kept, key=lambda row: points[row.number])


def _point(row: Row, first: Metric, second: Metric) -> tuple[float, float]:
    """Larger is better in both."""
    one, two = row.mean(first) or 0.0, row.mean(second) or 0.0
    return one if first.larger_is_better else -one, two if second.larger_is_better else -two


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    return other != point and other[0] >= point[0] and other[1] >= point[1]


def pareto(result: Comparison, first: Metric, second: Metric) -> Figure:
    """Two metrics of every row with deviations; those that nothing beats in both are joined and named."""
    rows = [row for row in result.ranked if row.mean(second) is not None]
    kept = front(rows, first, second)
    chart = empty(7.4, 4.6)
    (ax,) = panels(chart)
    for row in rows:
        one, two = row.spreads[first.name], row.spreads[second.name]
        assert one is not None
        assert two is not None
        colour = BEST if row in kept else PALE
        ax.errorbar(one.mean, two.mean, two.deviation or None, one.deviation or None, fmt="o", color=colour, lw=1)
        ax.annotate(str(row.number), (one.mean, two.mean), (4, 4), textcoords="offset points", fontsize=8.5, color=INK)
    means = [(row.mean(first), row.mean(second)) for row in kept]
    ax.plot(*zip(*means, strict=True), "-", color=BEST, lw=1.4, alpha=0.6, zorder=1)
    legend_below(
        chart, [f"{row.number}  {row.label}" for row in kept[:FEW]], [{"color": BEST, "marker": "o", "ls": ""}] * FEW
    )
    for axis, metric in ((ax.xaxis, first), (ax.yaxis, second)):
        axis.set_label_text(metric.name + ("" if metric.larger_is_better else " (smaller is better)"))
    return chart
