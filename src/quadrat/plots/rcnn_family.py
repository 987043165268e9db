"""The lecture's bar chart: what a system costs in training, and for a picture with and without finding its regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from quadrat.plots.figures import pixels


class Costs(Protocol):
    """Seconds of training, of a picture's network, and of finding its regions."""

    training: float
    network: float
    proposals: float


def draw_family(costs: Mapping[str, Costs]) -> np.ndarray:
    """Two rows of bars, a bar a system, seconds on a logarithmic axis, and the numbers beside them: uint8 RGB (H, W, 3)."""
    from matplotlib.figure import Figure  # half a second that only those wait for who see the picture

    names = list(costs)
    figure = Figure(figsize=(9, 0.8 + 0.55 * len(names)), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(names))
    training = [cost.training for cost in costs.values()]
    left.bar_label(left.barh(places, training, color="#4477aa"), fmt="%.0f", padding=3)
    left.set_xlabel("seconds of training, same examples")
    without = [cost.network for cost in costs.values()]
    whole = [cost.network + cost.proposals for cost in costs.values()]
    bars = right.barh(places - 0.2, whole, height=0.4, color="#ee7733", label="with finding regions")
    right.bar_label(bars, fmt="%.2f", padding=3)
    bars = right.barh(places + 0.2, without, height=0.4, color="#009988", label="without")
    right.bar_label(bars, fmt="%.2f", padding=3)
    right.set_xlabel("seconds a picture")
    right.legend(loc="lower right", fontsize=8)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.margins(x=0.2)
    left.set_yticks(places, names)
    left.invert_yaxis()
    return pixels(figure)
