"""What every data set offers: pictures with their truth by index, and the names of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from PIL import ExifTags, Image

from quadrat.structures import Sample, Schema, Targets

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class Source(Protocol):
    """One split of a data set, read and checked when made; pictures are decoded on demand, at their original size."""

    schema: Schema

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        ...


@runtime_checkable
class AnnotatedSource(Source, Protocol):
    """A source that tells a picture's truth without decoding the picture."""

    def truth(self, index: int) -> Targets: ...


def truth_of(source: Source, index: int) -> Targets:
    """The truth of a picture, without decoding the picture where the source can."""
    return source.truth(index) if isinstance(source, AnnotatedSource) else source[index].targets


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


def header_size(picture: Path) -> tuple[tuple[int, int], bool]:
    """The size (H, W) that a picture will have when it is decoded, and whether its EXIF orientation swaps the sides.

    Only its header is read; ValueError names a file that has none.
    """
    exif = Image.Exif()
    try:
        with Image.open(picture) as image:
            width, height = image.size
            exif.load(image.info.get("exif", b""))  # image.getexif() would decode a PNG
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read the picture {picture}: {error}") from error
    turned = exif.get(ExifTags.Base.Orientation) in SIDEWAYS
    return ((width, height) if turned else (height, width)), turned
