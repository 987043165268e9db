"""Which charts make sense for a comparison; each is made only where it has something to show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from quadrat.reports import against, by_loss, over_time
from quadrat.reports.compare import Comparison
from quadrat.reports.settings import numeric
from quadrat.reports.style import FEW

MOST_MAPS = 6
"""Pairs of settings for which a map is drawn."""


@dataclass(frozen=True)
class Chart:
    """A chart to be drawn: ``name`` is that of its file, ``draw`` makes it."""

    name: str
    title: str
    draw: Callable[[], Figure]
    note: str = ""


def charts(result: Comparison) -> list[Chart]:
    """The charts of a comparison in the order in which they are read; none where no run is finished."""
    if not result.ranked:
        return []
    return [*_of_settings(result), *_of_metrics(result), *_of_losses(result), *_over_time(result)]


# --- against settings ---


def _of_settings(result: Comparison) -> Iterator[Chart]:
    rows, keys = result.ranked, result.keys
    numbers = [key for key in keys if numeric(row.settings[key] for row in rows)]
    words = [key for key in keys if key not in numbers and len({row.settings[key] for row in rows}) > 1]
    for key in numbers:
        title = f"{result.metric.name} against {result.names[key]}"
        yield Chart(f"curve-{_file(key)}", title, partial(against.curve, result, key), _drawn(result, key))
    if len(rows) > 1:
        shown = f", the best {against.MOST_RANKED} of {len(rows)}" if len(rows) > against.MOST_RANKED else ""
        yield Chart("ranking", f"All settings{shown}", partial(against.ranking, result), RANKING)
    for key in words:
        if len(keys) > 1 and against.lines(result, key):
            title = f"{result.metric.name} by {result.names[key]}"
            yield Chart(f"choice-{_file(key)}", title, partial(against.categories, result, key), _drawn(result, key))
    for first, second in _pairs(result, numbers):
        title = f"{result.names[first]} and {result.names[second]} together"
        draw = partial(against.heat_map, result, first, second)
        yield Chart(f"map-{_file(first)}-{_file(second)}", title, draw, "The best setting is framed.")
    if len(keys) > 1 and len(rows) > 2:
        yield Chart("parallel", "All settings at once", partial(against.parallel, result), PARALLEL)


RANKING = (
    "Blue: the best, and the band of its deviation. Dark: within noise of it. Grey: different, or not to be told. "
    "A stroke is a seed; numbers are ranks."
)
PARALLEL = (
    "A line is a setting; it ends at its metric, and is brighter the better that is. The best is thick and orange."
)
OVER_TIME = "Lines are means over seeds and over short stretches of steps; the best setting is thick."


def _drawn(result: Comparison, key: str) -> str:
    lines = against.lines(result, key)
    if not lines:
        return "A dot is a setting; no two differ in this one only."
    if len(lines) > FEW:
        return f"The {FEW} lines with the best values, of {len(lines)}."
    return "Bars are the deviation over seeds, strokes single seeds."


def _pairs(result: Comparison, numbers: list[str]) -> Iterator[tuple[str, str]]:
    """Two numeric settings, when there are just two, or they form a whole grid that is not only a row."""
    pairs = [pair for pair in itertools.combinations(numbers, 2) if _is_grid(result, *pair)]
    if len(numbers) == 2 and not pairs and len(result.ranked) > 2:
        pairs = [(numbers[0], numbers[1])] if _is_dense(result, *numbers) else []
    yield from pairs[:MOST_MAPS]


def _is_grid(result: Comparison, first: str, second: str) -> bool:
    maps = [cells for _, cells in against.grids(result, first, second)]
    across, up = _sides(result, first, second)
    return len(maps) <= against.MOST_PANELS and all(len(cells) == across * up for cells in maps)


def _is_dense(result: Comparison, first: str, second: str) -> bool:
    """Is a good part of the grid there, so that it can be seen as one?"""
    across, up = _sides(result, first, second)
    return len(result.ranked) >= 0.4 * across * up


def _sides(result: Comparison, first: str, second: str) -> tuple[int, int]:
    rows = result.ranked
    return len({row.settings[first] for row in rows}), len({row.settings[second] for row in rows})


# --- of two metrics ---


def _of_metrics(result: Comparison) -> Iterator[Chart]:
    if len(result.metrics) < 2 or len(result.ranked) < 2:
        return
    first, second = result.metrics[:2]
    if any(row.mean(second) is not None for row in result.ranked):
        note = "Blue: no other setting is better in both. Numbers are the ranks of the table."
        yield Chart("pareto", f"{first.name} and {second.name}", partial(against.pareto, result, first, second), note)


# --- of losses and the metric ---


def _of_losses(result: Comparison) -> Iterator[Chart]:
    if len(by_loss.points(result)) > 1:
        title = f"Is the best loss the best {result.metric.name}?"
        draw = partial(by_loss.loss_against_metric, result)
        yield Chart("loss-against-metric", title, draw, f"{by_loss.answer(result)} {LAST}")


LAST = (
    "Both are of the last validation, the loss with the last weights of training. Bars are deviations, numbers ranks."
)


# --- over time ---


def _over_time(result: Comparison) -> Iterator[Chart]:
    if over_time.columns(result, result.metric.name):
        yield Chart("learning", "How it was learned", partial(over_time.learning, result), OVER_TIME)
    if over_time.columns(result, over_time.LOSS):
        norms = " and gradient norms" if over_time.columns(result, over_time.GRADIENT) else ""
        note = f"{OVER_TIME} Losses are raw: unweighted."
        yield Chart("losses", f"Losses{norms} of each term", partial(over_time.losses, result), note)
    if over_time.moving_weights(result):
        yield Chart("weights", "Weights as they changed", partial(over_time.weights, result), OVER_TIME)
    if over_time.columns(result, over_time.COSINE):
        note = f"{OVER_TIME} Below 0 two terms pull the shared parameters apart."
        yield Chart("cosines", "Do the terms agree?", partial(over_time.cosines, result), note)


def _file(key: str) -> str:
    return re.sub(r"[^\w.]+", "-", key.removesuffix("._target_"))
