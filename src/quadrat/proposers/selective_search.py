"""Selective Search (Uijlings et al., IJCV 2013) as R-CNN uses it: a finder of regions that look like objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Mode = Literal["single", "fast", "quality"]


@dataclass(frozen=True)
class SelectiveSearch:
    """The boxes of all regions that the paper's version ``mode`` forms (table 4), in its pseudo-random order (section 4.3).

    The picture is first resized to ``width`` (None: left as it is), and boxes with a side below ``min_side`` pixels there are
    dropped, as R-CNN does. The same picture always has the same boxes: the random numbers are a function of ``seed``.
    """

    mode: Mode = "fast"
    width: int | None = 500
    min_side: float = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width is a number of pixels or None to leave pictures as they are, got {self.width}")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Boxes (P, 4) float32 of the uint8 RGB picture (H, W, 3), best first, in its pixels."""
        from quadrat.ops.selective_search import (
            VERSIONS,
            selective_search,
        )  # numba: slow to import, and not needed by who only names the settings

        height, width = image.shape[:2]
        resized = self._resized(image)
        boxes = selective_search(resized, VERSIONS[self.mode], self.seed)
        large = (boxes[:, 2:] - boxes[:, :2]).min(1) >= self.min_side
        scale = np.array([width / resized.shape[1], height / resized.shape[0]] * 2)
        return (boxes[large] * scale).astype(np.float32)

    def _resized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if self.width is None or self.width == width:
            return image
        size = (self.width, max(1, round(height * self.width / width)))
        way = cv2.INTER_AREA if self.width < width else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)
