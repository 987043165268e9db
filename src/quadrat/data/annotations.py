"""What the readers of annotated folders share: class lists, the check of every box, and all objects in flat arrays."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from quadrat.data.source import read_image

log = logging.getLogger(__name__)

Classes = Sequence[str] | str | Path | None
"""Class names in order of their labels 1..C, a file with one name a line, or None for the names the data brings."""

OnBadBox = Literal["error", "drop"]
"""A box outside its picture or without area is an error, or clipped and dropped where nothing is left."""

BORDER = 1.0
"""A box may leave its picture by this many pixels: VOC files are often off by one at the border."""


@dataclass(frozen=True)
class ObjectTable:
    """All objects of a split, image after image: ``boxes`` (N, 4), ``labels`` (N,), ``ignore`` (N,), ``starts`` (B+1,).

    A few flat arrays instead of an object for each box: small, and loader workers share them without copying.
    """

    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    starts: np.ndarray

    @classmethod
    def make(cls, boxes: np.ndarray, labels: Any, ignore: Any, image_rows: np.ndarray, images: int) -> ObjectTable:
        """From objects sorted by ``image_rows`` (N,), the number of the image 0..B-1 that each one belongs to."""
        return cls(
            boxes=boxes,
            labels=np.asarray(labels, dtype=np.int64).reshape(-1),
            ignore=np.asarray(ignore, dtype=bool).reshape(-1),
            starts=np.searchsorted(image_rows, np.arange(images + 1)),
        )

    def rows(self, image: int) -> slice:
        """Where the objects of one image lie in the arrays."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def truth(self, image: int) -> dict[str, Any]:
        """Boxes, labels and ignore of one image, as Targets.make takes them; copies, so that nobody edits the table."""
        rows = self.rows(image)
        return {
            "boxes": self.boxes[rows].copy(),
            "labels": self.labels[rows].copy(),
            "ignore": self.ignore[rows].copy(),
        }


def existing_folder(path: Path, wanted: str) -> Path:
    """The same path, or FileNotFoundError saying what should lie there."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"no folder {path}: wanted {wanted}; "
            "give it with data.source.root=<folder>; the experiments look under QUADRAT_DATA"
        )
    return path


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the spaces around them."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


SUFFIXES = (".jpg", ".jpeg", ".png")
"""Of the pictures in an annotated folder."""


def by_stem(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """The files of a folder by their names without suffix; ValueError for two that share one."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise ValueError(f"{folder}: {files[path.stem].name} and {path.name} share a name; remove one of them")
        files[path.stem] = path
    return files


def listed_stems(path: Path, split: str, pictures: Mapping[str, Path], folder: Path) -> list[str]:
    """The names in the file of a split, each with a picture of ``folder``; an error names the line and the remedy."""
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt"))
        raise FileNotFoundError(f"no split {split!r}: {path} does not exist, the splits there are {known}")
    stems = [_stem(line, pictures) for line in read_lines(path)]
    if not stems:
        raise ValueError(f"{path}: the split is empty, wanted one picture name a line (without the extension)")
    seen: set[str] = set()
    for stem in stems:
        if stem in seen:
            raise ValueError(f"{path}: {stem!r} is listed twice; remove one of the lines")
        if stem not in pictures:
            raise FileNotFoundError(
                f"{path} lists {stem!r}, but {folder} has no {stem} with one of {', '.join(SUFFIXES)}; add the picture, or "
                f"remove the line"
            )
        seen.add(stem)
    return stems


def _stem(line: str, pictures: Mapping[str, Path]) -> str:
    """The name in a line such as ``2008_000008 -1``; a name may itself hold spaces."""
    return line if line in pictures else re.sub(r"\s+(-1|0|1)$", "", line)


def class_names(classes: Classes) -> tuple[str, ...] | None:
    """The names that a list or a file gives, checked; None stays None."""
    if classes is None:
        return None
    if not isinstance(classes, str | Path):
        return _distinct(tuple(classes), "classes")
    path = Path(classes)
    if not path.is_file():
        raise FileNotFoundError(f"no class file {path}: wanted one class name a line, or pass the names as a list")
    return _distinct(tuple(read_lines(path)), str(path))


def _distinct(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    if not names:
        raise ValueError(f"{where}: got no class name, wanted at least one")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{where}: class names must differ, got {twice} more than once; remove the repetitions")
    return names


def repair_boxes(
    boxes: np.ndarray,
    sizes: np.ndarray,
    *,
    split: str,
    describe: Callable[[int], str],
    on_bad_box: OnBadBox,
    thinnest: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) clipped to their pictures of ``sizes`` (N, 2) height and width, and which rows to keep (N,).

    A row is bad when it leaves its picture by more than BORDER or is not wider and taller than ``thinnest``;
    ``describe`` says where a row comes from. Bad rows raise ValueError, or are clipped, dropped where nothing is left,
    and counted in one line of the log.
    """
    if on_bad_box not in ("error", "drop"):
        raise ValueError(f"on_bad_box is 'error' or 'drop', got {on_bad_box!r}")
    limits = sizes[:, [1, 0, 1, 0]]
    outside = np.logical_not((np.maximum(-boxes, boxes - limits) <= BORDER).all(axis=1))  # NaN is outside too
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    solid = np.all(clipped[:, 2:] - clipped[:, :2] > thinnest, axis=1)
    bad = np.flatnonzero(outside | ~solid)
    if len(bad):
        first = int(bad[0])
        if on_bad_box == "error":
            raise ValueError(_bad_box(describe(first), sizes[first], bool(outside[first]), len(bad)))
        log.warning(
            "%s: %d bad boxes clipped and kept, %d dropped; the first is %s",
            split,
            int((outside & solid).sum()),
            int((~solid).sum()),
            describe(first),
        )
    return clipped, np.asarray(solid)


def _bad_box(where: str, size: np.ndarray, outside: bool, count: int) -> str:
    height, width = (int(side) for side in size)
    problem = (
        f"outside its picture, wanted inside {width}x{height} (WxH)"
        if outside
        else "degenerate, wanted a width and a height above zero"
    )
    return (
        f"{where}: the box is {problem} (bad boxes in this split: {count}); "
        "correct the file, or set on_bad_box=drop (data.source.on_bad_box=drop in a command) "
        "to clip such boxes and drop those without area"
    )


def decoded_size(picture: Path) -> tuple[int, int]:
    """Height and width of a picture as it decodes, for annotations that do not tell."""
    height, width = read_image(picture).shape[:2]
    return height, width


def read_annotated_image(picture: Path, size: tuple[int, int], annotation: Path) -> np.ndarray:
    """The picture uint8 RGB (H, W, 3); ValueError when it is not of the annotated size (H, W)."""
    image = read_image(picture)
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    raise ValueError(
        f"{picture} is {width}x{height} (WxH), but {annotation} says {size[1]}x{size[0]}{_size_advice(picture, size)}"
    )


def _size_advice(picture: Path, size: tuple[int, int]) -> str:
    stored = cv2.imdecode(np.fromfile(picture, dtype=np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is not None and stored.shape[:2] == size:
        return (
            ": its EXIF orientation turns it, and the annotation was made without; "
            "remove the EXIF orientation from the picture, or annotate the turned picture"
        )
    return "; put back the picture that was annotated, or correct the size and the boxes"
