"""Folders of pictures with a label map for each: Pascal's SegmentationClass, SBD, CamVid, COCO-Stuff and others alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from tqdm import tqdm

from quadrat.data.annotations import (
    SUFFIXES,
    Classes,
    by_stem,
    class_names,
    existing_folder,
    listed_stems,
    read_annotated_image,
)
from quadrat.data.source import Source, header_size
from quadrat.structures import IGNORE_INDEX, Sample, Schema, Targets

SCALED = {"L;2": 85, "L;4": 17}  # Pillow spreads grey values of 2 and 4 bits over 0..255
SAVE = "PIL.Image.fromarray(numbers.astype('uint8')).save(path)"


class LabelMaps:
    """One split of pictures with a file each that holds the class of every pixel, all of them read and checked when made.

    ``images`` and ``maps`` are folders in the root, ``lists`` is the file with a split's picture names, without it every
    picture of the folder counts; ``{split}`` stands for the split. A map is a PNG of one channel, or of a palette whose
    indices count, or a MATLAB file as SBD's. ``classes`` are names, a file of names, or None for ``classes.txt`` in the
    root; ``background`` names what comes before them, None where every pixel has a class. ``values`` are what the files
    hold for each class, background first, and 0, 1, 2 .. unless given. Pixels of the value or values ``void`` are
    ignored, and a name whose value is void is no class. ``image_id`` is the file's stem; there are no boxes.
    """

    schema: Schema

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        images: str = "JPEGImages",
        maps: str = "SegmentationClass",
        lists: str | None = "ImageSets/Segmentation/{split}.txt",
        classes: Classes = None,
        background: str | None = "background",
        values: Sequence[int] | None = None,
        void: int | Sequence[int] = IGNORE_INDEX,
    ) -> None:
        def place(template: str) -> Path:
            return folder / template.replace("{split}", split)

        folder = existing_folder(Path(root).expanduser(), "a folder with pictures and their label maps")
        pictures = by_stem(existing_folder(place(images), "the pictures (see the argument images)"))
        files = by_stem(existing_folder(place(maps), "the label maps (see the argument maps)"), tuple(READERS))
        self._stems = list(pictures) if lists is None else listed_stems(place(lists), split, pictures, place(images))
        if not self._stems:
            raise ValueError(f"{place(images)}: no picture, wanted files with one of {', '.join(SUFFIXES)}")
        self._pictures = [pictures[stem] for stem in self._stems]
        self._maps = [_map_of(stem, files, place(maps)) for stem in self._stems]
        self._code = Code.make(_names(classes, folder, background), values, void)
        self.schema = _schema(self._code, background)
        self._table = self._code.table()
        self._sizes = self._check(split)

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        size = self.size(index)
        image = read_annotated_image(self._pictures[index], size, self._maps[index])
        return Sample(image, Targets.make([], [], size, self._stems[index], semantic=self.semantic(index)))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        height, width = self._sizes[index].tolist()
        return height, width

    def semantic(self, index: int) -> Tensor:
        """The semantic map (H, W) uint8 of a picture without decoding the picture."""
        return torch.from_numpy(self._table[read_map(self._maps[index])])

    def _check(self, split: str) -> np.ndarray:
        """The sizes (N, 2) of all pictures; every map is read once, to know that it fits its picture and its classes."""
        known = np.isin(np.arange(256), [*self._code.values, *self._code.void])

        def check(picture: Path, file: Path) -> tuple[tuple[int, int], list[int]]:
            labels = read_map(file)
            found = np.zeros(256, dtype=bool)
            found[labels] = True
            return _common_size(picture, file, labels.shape), np.flatnonzero(found & ~known).tolist()

        with ThreadPoolExecutor() as threads:  # decoding leaves Python's lock to the others
            checks = threads.map(check, self._pictures, self._maps)
            checks = list(tqdm(checks, f"reading maps of {split}", len(self), unit="map", delay=2, leave=False))
        strange = [row for row, (_, values) in enumerate(checks) if values]
        if strange:
            values = sorted({value for row in strange for value in checks[row][1]})
            raise ValueError(
                f"{self._maps[strange[0]]}: the values {checks[strange[0]][1]} are neither a class nor void (in this "
                f"split: {values} in {len(strange)} of {len(self)} maps); {self._code}; correct the maps, name the classes "
                f"with data.source.classes, or ignore such pixels with data.source.void={[*self._code.void, *values]}"
            )
        return np.array([size for size, _ in checks])


class Code(NamedTuple):
    """What the values in the files mean: ``names`` (S,) of pixel classes, the value of each, and those of no class."""

    names: tuple[str, ...]
    values: tuple[int, ...]
    void: tuple[int, ...]

    @classmethod
    def make(cls, names: tuple[str, ...], values: Sequence[int] | None, void: int | Sequence[int]) -> Code:
        """Check that names and values go together; names whose value is void are left out."""
        ignored = (void,) if isinstance(void, int) else tuple(void)
        given = tuple(range(len(names))) if values is None else tuple(values)
        if len(given) != len(names):
            raise ValueError(
                f"got {len(given)} values for {len(names)} names of pixels {names}, wanted one for each, background first"
            )
        if len(set(given)) != len(given) or not all(0 <= value <= 255 for value in (*given, *ignored)):
            raise ValueError(f"values are different numbers 0..255, got {list(given)} and void {list(ignored)}")
        pairs = [(name, value) for name, value in zip(names, given, strict=True) if value not in ignored]
        if not 0 < len(pairs) <= IGNORE_INDEX:
            raise ValueError(f"a map has 1..{IGNORE_INDEX} classes of pixels besides void, got {len(pairs)}")
        return cls(tuple(name for name, _ in pairs), tuple(value for _, value in pairs), ignored)

    def table(self) -> np.ndarray:
        """What each value 0..255 of a file becomes, (256,) uint8: the number of its class, or ignored."""
        table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
        table[list(self.values)] = np.arange(len(self.values))
        return table

    def __str__(self) -> str:
        known = ", ".join(f"{value} {name}" for name, value in zip(self.names, self.values, strict=True))
        return f"known are {known}, and void {list(self.void)}"


def _names(classes: Classes, folder: Path, background: str | None) -> tuple[str, ...]:
    """The names of all values, the background's first where there is one."""
    names = list(class_names(classes if classes is not None else folder / "classes.txt") or ())
    return tuple(names) if background in (None, names[0]) else class_names([background, *names]) or ()


def _schema(code: Code, background: str | None) -> Schema:
    if background is None:
        return Schema(classes=code.names, category_ids=code.values, background=None)
    if code.names[0] != background:
        raise ValueError(f"the background {background!r} is void too; set data.source.background=null, or change void")
    return Schema(classes=code.names[1:], category_ids=code.values[1:], background=background)


# Counts


class PixelCounts(NamedTuple):
    """For each class its ``pixels`` (S,) int64 and, ``shared`` (S,) int64, all pixels of the pictures where it occurs."""

    pixels: Tensor
    shared: Tensor


@runtime_checkable
class MapSource(Protocol):
    """A source that tells a picture's semantic map (H, W) without decoding the picture."""

    def semantic(self, index: int) -> Tensor: ...


def pixel_counts(source: Source) -> PixelCounts:
    """Count the pixels of a source by class: what median frequency balancing divides (Eigen and Fergus 2015, section 6.3.2).

    ``shared`` includes pixels without a class. Raises ValueError for a picture without a map, or with a value beyond S.
    """
    classes = len(source.schema.pixel_classes)
    pixels, shared = torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.int64)
    for index in tqdm(range(len(source)), desc="counting pixels", unit="map", delay=2, leave=False):
        labels = semantic_of(source, index)
        counts = torch.bincount(labels.reshape(-1), minlength=256)
        beyond = counts[classes:IGNORE_INDEX].nonzero()
        if len(beyond):
            raise ValueError(
                f"picture {index}: its semantic map holds {classes + int(beyond[0])}, wanted a class 0..{classes - 1} of "
                f"{list(source.schema.pixel_classes)}, or {IGNORE_INDEX} (ignored)"
            )
        pixels += counts[:classes]
        shared[counts[:classes] > 0] += labels.numel()
    return PixelCounts(pixels, shared)


def semantic_of(source: Source, index: int) -> Tensor:
    """The semantic map (H, W) of a picture, without decoding the picture where the source can; ValueError where there is none."""
    if isinstance(source, MapSource):
        return source.semantic(index)
    targets = source[index].targets
    if targets.semantic is None:
        raise ValueError(f"image {targets.image_id}: no semantic map, so its pixels cannot be counted by class")
    return targets.semantic


# Files


def _map_of(stem: str, files: dict[str, Path], folder: Path) -> Path:
    if stem not in files:
        raise FileNotFoundError(
            f"no label map {folder / stem} with one of {', '.join(READERS)}; add it, or take the picture out of the split"
        )
    return files[stem]


def _common_size(picture: Path, file: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """The size (H, W) that a picture and its map have in common."""
    (height, width), turned = header_size(picture)
    if shape != (height, width):
        advice = (
            "the EXIF orientation of the picture turns it, remove that or turn the map"
            if turned and shape == (width, height)
            else "put back the picture that was labelled, or resize the map without new values (nearest neighbour)"
        )
        raise ValueError(f"{file} is {shape[1]}x{shape[0]} (WxH), but {picture} is {width}x{height}; {advice}")
    return height, width


def read_map(path: Path) -> np.ndarray:
    """The values (H, W) uint8 of a label map, read as its suffix says; ValueError names a file that holds none."""
    return READERS[path.suffix.lower()](path)


def read_indices(path: Path) -> np.ndarray:
    """The values (H, W) uint8 of a PNG of one channel, or the indices of one with a palette, whose colours mean nothing."""
    try:
        with Image.open(path) as image:
            scale = SCALED.get(str(image.tile[0].args), 1) if image.tile else 1
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read the label map {path}: {error}; export it again") from error
    if mode not in ("P", "L", "1"):
        what = "colours" if values.ndim == 3 else "more than 8 bits a pixel"
        raise ValueError(
            f"{path}: got {what} (mode {mode}), wanted the number of each pixel's class in one channel of 8 bits, or a "
            f"palette; put class numbers for what is there, and write them with {SAVE}"
        )
    return values.astype(np.uint8) // scale


def read_sbd(path: Path) -> np.ndarray:
    """The classes (H, W) uint8 in a file of the Semantic Boundaries Dataset (Hariharan 2011): GTcls.Segmentation."""
    try:
        values = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except (
        OSError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        NotImplementedError,
        MatReadError,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path}: got no GTcls.Segmentation ({error}), wanted a file of SBD's folder cls; download it again"
        ) from error
    if values.ndim != 2 or values.dtype != np.uint8:
        raise ValueError(f"{path}: GTcls.Segmentation is {values.dtype} {values.shape}, wanted uint8 (H, W)")
    return values


READERS: dict[str, Callable[[Path], np.ndarray]] = {".png": read_indices, ".mat": read_sbd}
"""What reads a label map, by the suffix of its file."""
