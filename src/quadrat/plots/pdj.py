"""How the share of detected joints grows with the distance that is allowed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from quadrat.plots.figures import pixels

SHOWN_AT = 0.2
"""The distance that tables give."""


def draw_pdj(fractions: np.ndarray, curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """PDJ (F,) of each kind of joint against the fraction (F,) of the torso's diameter: uint8 RGB (H, W, 3); mean in black."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # half a second that only those wait for who see the picture

    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=100)
    axes = figure.add_subplot()
    axes.axvline(SHOWN_AT, color="0.8", linewidth=1)
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, max(len(curves), 2)))
    lines = []
    for (kind, values), colour in zip(curves.items(), colours, strict=False):
        own = {"color": "black", "linewidth": 2.5} if kind == "mean" else {"color": colour, "linewidth": 1.3}
        lines += axes.plot(fractions, values, label=f"{kind} {np.interp(SHOWN_AT, fractions, values):.2f}", **own)
    axes.set_xlim(float(fractions[0]), float(fractions[-1]))
    axes.set_ylim(0, 1)
    axes.set_xlabel("distance allowed, as a share of the torso's diameter")
    axes.set_ylabel("joints detected")
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    axes.legend(handles=lines, title=f"PDJ at {SHOWN_AT}", fontsize=8, title_fontsize=8, **place)
    return pixels(figure)
