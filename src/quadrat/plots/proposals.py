"""How much of what is there the first so many proposals cover, of one finder beside another.

Q: numbers of proposals, T: overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quadrat.plots.figures import pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = tuple[np.ndarray, np.ndarray]
"""Where along the axis (Q,), and the values there (Q,)."""


class Published(NamedTuple):
    """What a paper says of a finder: on average so many proposals a picture, recall at IoU 0.5, MABO."""

    name: str
    proposals: int
    recall: float
    mabo: float


SELECTIVE_SEARCH_VOC07 = (
    Published("single", 289, 0.840, 0.690),
    Published("fast", 2134, 0.980, 0.804),
    Published("quality", 10097, 0.991, 0.879),
)
"""Selective Search on the test set of Pascal VOC 2007 (Uijlings et al., IJCV 2013, table 5)."""


def draw_recall_by_number(curves: Mapping[str, Curve], published: Sequence[Published] = ()) -> np.ndarray:
    """Recall at IoU 0.5 against the proposals looked at, by finder, what is published as crosses: uint8 RGB (H, W, 3)."""
    from matplotlib.figure import Figure  # half a second that only those wait for who see the picture

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    _by_number(axes, curves, [(one.name, one.proposals, one.recall) for one in published])
    axes.set_ylabel("recall at IoU 0.5")
    _legend(axes)
    return pixels(figure)


def draw_overlap_by_number(
    mabo: Mapping[str, Curve], ar: Mapping[str, Curve], published: Sequence[Published] = ()
) -> np.ndarray:
    """MABO and average recall against the proposals looked at, side by side: uint8 RGB (H, W, 3)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.2), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _by_number(left, mabo, [(one.name, one.proposals, one.mabo) for one in published])
    left.set_ylabel("MABO: mean best overlap")
    _legend(left)
    _by_number(right, ar, [])
    right.set_ylabel("AR: mean recall at IoU 0.5 .. 0.95")
    _legend(right)
    return pixels(figure)


def draw_recall_by_iou(ious: np.ndarray, curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Recall (T,) against the overlap (T,) that counts as covered, by finder or number of proposals: uint8 RGB (H, W, 3)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    for colour, (name, values) in zip(_colours(len(curves)), curves.items(), strict=False):
        axes.plot(ious, values, label=name, color=colour)
    axes.set_xlim(float(ious[0]), float(ious[-1]))
    axes.set_ylim(0, 1)
    axes.grid(color="0.9")
    axes.set_xlabel("least IoU of proposal and object")
    axes.set_ylabel("recall")
    _legend(axes)
    return pixels(figure)


def _by_number(axes: Axes, curves: Mapping[str, Curve], points: Sequence[tuple[str, int, float]]) -> None:
    """Curves over a logarithmic axis, and single points with their names beside them."""
    for colour, (name, (numbers, values)) in zip(_colours(len(curves)), curves.items(), strict=False):
        axes.plot(numbers, values, label=name, color=colour, marker="o", markersize=3.5)
    for place, (name, number, value) in enumerate(points):
        label = "published, VOC 2007 test" if place == 0 else None
        axes.plot([number], [value], "x", color="black", markersize=7, label=label)
        axes.annotate(name, (number, value), xytext=(0, -13), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.grid(color="0.9")
    axes.set_xlabel("proposals a picture")


def _colours(count: int) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["tab10"](np.arange(count) % 10)


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8)
