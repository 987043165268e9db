"""Figures of matplotlib as pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as uint8 RGB (H, W, 3)."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    data = np.frombuffer(stream.getvalue(), dtype=np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
