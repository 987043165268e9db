"""How charts look: colours, sizes, labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from quadrat.reports.compare import Row
from quadrat.reports.settings import shown

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#5b6770")
"""Okabe and Ito's, which can be told apart without red and green; black and yellow are replaced."""

MARKERS = "osD^vPX*"
FEW = len(COLOURS)
"""Lines that are told apart by colour and a legend; more are coloured by their value."""

INK, PALE, GRID = "#22303c", "#8a97a3", "#e3e8ec"
BEST = "#0072b2"
TOP = "#d55e00"
"""The best among many lines, whose colours are their values."""

DPI = 110
SCALE = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, 256)))
"""Without the yellow that is lost on white."""
STYLE: Any = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "figure.constrained_layout.use": True,
}


def empty(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, rows: int = 1, columns: int = 1, **more: Any) -> list[Axes]:
    """The axes of a grid, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False, **more).flat)


def legend_below(figure: Figure, names: Sequence[str], looks: Sequence[dict[str, Any]]) -> None:
    """The names of lines below the chart, in as many columns as fit; a figure grows by the rows that it needs."""
    if not names:
        return
    columns = int(max(1, figure.get_figwidth() // (0.55 + 0.075 * max(map(len, names)))))
    figure.set_figheight(figure.get_figheight() + 0.21 * -(-len(names) // columns))
    marks = [Line2D([], [], **look) for look in looks[: len(names)]]
    figure.legend(marks, names, loc="outside lower left", ncols=columns, borderaxespad=0.2)


def png(draw: Callable[[], Figure]) -> bytes:
    """What ``draw`` draws in our style, as a file's content."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(file, format="png", dpi=DPI, facecolor="white")
    return file.getvalue()


def wide(values: Iterable[float]) -> bool:
    """Do positive values belong on a logarithmic axis: two decades or more, or spaced rather by factors than by steps?"""
    chosen = np.unique(np.array(list(values), dtype=float))
    if chosen.size < 2 or chosen[0] <= 0:
        return False
    span = chosen[-1] / chosen[0]
    return bool(span >= 100 or (span >= 8 and _uneven(np.log(chosen)) < _uneven(chosen)))


def _uneven(places: np.ndarray) -> float:
    gaps = np.diff(places)
    return float(gaps.std() / gaps.mean())


def ticks_at(axis: Any, values: Iterable[float], most: int = 12) -> None:
    """Ticks at the values that were tried, as far as there is room, instead of round numbers."""
    chosen = sorted(set(values))
    if len(chosen) > most:
        return
    axis.set_ticks(chosen, [shown(value) for value in chosen])
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def thousands(axis: Any) -> None:
    """`20k` for 20000 steps."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}")
    )


def row_colours(rows: Sequence[Row], means: Sequence[float]) -> list[Any]:
    """A colour for each row: one of its own for few; by its value on a scale for many, but for the best."""
    if len(rows) <= FEW:
        return list(COLOURS[: len(rows)])
    places = normalised(means)(np.array(means))
    return [TOP if row.number == 1 else SCALE(place) for row, place in zip(rows, places, strict=True)]


def normalised(values: Sequence[float]) -> Normalize:
    """From the least to the largest, which may be the same."""
    low, high = min(values), max(values)
    return Normalize(low, high if high > low else low + 1)


def value_bar(figure: Figure, axes: Sequence[Axes], values: Sequence[float], name: str) -> None:
    """A bar that says which colour is which value."""
    bar = figure.colorbar(ScalarMappable(normalised(values), SCALE), ax=list(axes), fraction=0.04, pad=0.015, aspect=30)
    bar.set_label(name)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def ordered(values: Iterable[Any]) -> list[Any]:
    """Numbers by size, then words, each once."""
    found = dict.fromkeys(values)
    return sorted(
        found, key=lambda one: (isinstance(one, str) or one is None, one if isinstance(one, int | float) else str(one))
    )
