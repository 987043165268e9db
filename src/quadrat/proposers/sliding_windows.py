"""Sliding windows: a finder that looks everywhere, at a few sizes and shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quadrat.ops.window_grid import places, window_grid


@dataclass(frozen=True)
class SlidingWindows:
    """Windows of each of ``scales`` x ``ratios``, at most ``stride`` of their sides apart, all inside the picture.

    A scale is the root of a window's area as a share of the picture's short side, so that a picture has the same windows at
    every resolution; a ratio is height / width. A side longer than the picture's is cut to it, one below a pixel is a pixel.
    Large windows come first: they are few, and a list that is cut short still looks everywhere at the sizes it has.
    """

    scales: Sequence[float] = (1.0, 0.7, 0.5, 0.35, 0.25)
    ratios: Sequence[float] = (0.5, 1.0, 2.0)
    stride: float = 0.25

    def __post_init__(self) -> None:
        for name in ("scales", "ratios"):
            values = tuple(getattr(self, name))  # a list from a config is no part of something frozen
            object.__setattr__(self, name, values)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} are numbers above 0, at least one, got {list(values)}")
        if self.stride <= 0:
            raise ValueError(f"stride is a share of a window's side above 0, got {self.stride}")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Boxes (P, 4) float32 of the picture (H, W, 3), large before small, in its pixels."""
        height, width = image.shape[:2]
        size = height, width
        return np.concatenate([window_grid(size, window, self.stride) for window in self._windows(size)])

    def count(self, size: tuple[int, int]) -> int:
        """How many windows a picture of ``size`` (H, W) has."""
        return sum(
            places(size[0], high, self.stride) * places(size[1], wide, self.stride)
            for high, wide in self._windows(size)
        )

    def _windows(self, size: tuple[int, int]) -> list[tuple[float, float]]:
        """Heights and widths, each once, by falling area."""
        windows = set()
        for side in (scale * min(size) for scale in self.scales):
            for root in (ratio**0.5 for ratio in self.ratios):
                windows.add((min(max(side * root, 1), size[0]), min(max(side / root, 1), size[1])))
        return sorted(windows, key=lambda window: (-window[0] * window[1], window))
