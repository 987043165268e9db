"""What every data set offers: pictures with their truth by index, and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from quadrat.structures import Sample, Schema


class Source(Protocol):
    """One split of a data set, read and checked when made; pictures are decoded on demand, at their original size."""

    schema: Schema

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        ...


def read_image(path: Path) -> np.ndarray:
    """A picture as uint8 RGB (H, W, 3), turned as its EXIF orientation says; ValueError names a file that cannot be read."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"cannot read the picture {path}: {error.strerror or error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    if image is None:
        raise ValueError(f"cannot decode the picture {path} ({data.size} bytes): not an image file, or a truncated one")
    return image
