"""Windows of given sizes on a regular grid over a picture, and how many there are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def all_boxes(size: tuple[int, int]) -> int:
    """How many boxes with whole corners a picture of ``size`` (H, W) has: W (W + 1) H (H + 1) / 4."""
    height, width = size
    return width * (width + 1) * height * (height + 1) // 4


def places(length: float, side: float, stride: float) -> int:
    """How many windows of this ``side`` lie in a row of ``length``, from end to end, at most ``stride`` * side apart."""
    # so little less than a whole number of strides is one, whatever the rounding of a product
    return 1 + math.ceil((length - side) / (stride * side) - 1e-9)


def window_grid(size: tuple[int, int], window: tuple[float, float], stride: float) -> NDArray[np.float32]:
    """Windows (P, 4) of ``window`` (h, w) over a picture of ``size`` (H, W), row by row, none crossing the border.

    The first and the last of a row touch the sides of the picture, those between are evenly spread.
    """
    y, x = (
        np.linspace(0, length - side, places(length, side, stride)) for length, side in zip(size, window, strict=True)
    )
    y, x = (corner.ravel() for corner in np.meshgrid(y, x, indexing="ij"))
    return np.stack([x, y, x + window[1], y + window[0]], axis=1).astype(np.float32)
