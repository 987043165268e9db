"""Which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quadrat.plots.figures import pixels

FEW = 30
"""Classes whose shares can be read as numbers."""


def draw_confusion(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Counts (S, S), truth down and prediction across, as shares of each row: uint8 RGB (H, W, 3)."""
    from matplotlib.figure import Figure  # half a second that only those wait for who see the picture

    shares = matrix / matrix.sum(axis=1, keepdims=True).clip(min=1)
    side = min(14.0, max(3.2, 0.42 * len(classes) + 1.6))
    size = 8 if len(classes) <= FEW else 3
    figure = Figure(figsize=(side, side), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title("shares of the truth's pixels", fontsize=9)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005 and len(classes) <= FEW:
            colour = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=colour)
    return pixels(figure)
