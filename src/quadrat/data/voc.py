"""Any folder in Pascal VOC layout: JPEGImages, Annotations/*.xml and ImageSets/Main/<split>.txt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

from quadrat.data.annotations import (
    Classes,
    ObjectTable,
    OnBadBox,
    by_stem,
    class_names,
    decoded_size,
    existing_folder,
    listed_stems,
    read_annotated_image,
    repair_boxes,
)
from quadrat.structures import Sample, Schema, Targets

LAYOUT = "a folder with JPEGImages, Annotations and ImageSets/Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VOC:
    """One split of a folder in Pascal layout, every annotation read and checked when made.

    ``classes`` are names, a file of names, or None for ``classes.txt`` in the root or else the sorted names of all
    annotations in the folder. Difficult objects become ``ignore``; pictures without objects stay. A box whose corners
    lie in one pixel row or column (xmax <= xmin in the file) counts as degenerate. ``image_id`` is the file's stem.
    """

    schema: Schema

    def __init__(
        self, root: str | Path, split: str, *, classes: Classes = None, on_bad_box: OnBadBox = "error"
    ) -> None:
        folder = existing_folder(Path(root).expanduser(), LAYOUT)
        images = existing_folder(folder / "JPEGImages", f"the pictures of {LAYOUT}")
        pictures = by_stem(images)
        self._xml = existing_folder(folder / "Annotations", f"the XML files of {LAYOUT}")
        self._stems = listed_stems(folder / "ImageSets" / "Main" / f"{split}.txt", split, pictures, images)
        named = class_names(classes if classes is not None else _class_file(folder))
        files = _read_files(self._xml, self._stems if named else {*self._stems, *_annotated(self._xml)})
        self.schema = Schema(classes=named or _collect_names(files, self._xml))
        self._pictures = [pictures[stem] for stem in self._stems]
        self._sizes = np.array([files[stem].size or decoded_size(pictures[stem]) for stem in self._stems])
        self._objects = self._tabulate([files[stem] for stem in self._stems], split, on_bad_box)

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        file = self._xml / f"{self._stems[index]}.xml"
        image = read_annotated_image(self._pictures[index], self.size(index), file)
        return Sample(image, self.truth(index))

    def truth(self, index: int) -> Targets:
        """The truth of a picture without decoding it."""
        return Targets.make(size=self.size(index), image_id=self._stems[index], **self._objects.truth(index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        height, width = self._sizes[index].tolist()
        return height, width

    def _tabulate(self, files: list[_File], split: str, on_bad_box: OnBadBox) -> ObjectTable:
        rows = np.repeat(np.arange(len(files)), [len(file.names) for file in files])
        numbers = [number for file in files for number in range(1, len(file.names) + 1)]
        corners = np.array([box for file in files for box in file.boxes], dtype=np.float64).reshape(-1, 4)

        def describe(row: int) -> str:
            values = " ".join(f"{name} {value:g}" for name, value in zip(CORNERS, corners[row], strict=True))
            return f"{self._xml / self._stems[rows[row]]}.xml, object {numbers[row]} ({values})"

        boxes, keep = repair_boxes(
            corners - [1, 1, 0, 0],  # the file counts pixels from 1 and includes the last one
            self._sizes[rows],
            split=split,
            describe=describe,
            on_bad_box=on_bad_box,
            thinnest=1.0,
        )
        labels = np.array(self._labels(files), dtype=np.int64)
        ignore = np.array([difficult for file in files for difficult in file.difficult], dtype=bool)
        return ObjectTable.make(boxes[keep], labels[keep], ignore[keep], rows[keep], len(files))

    def _labels(self, files: list[_File]) -> list[int]:
        labels = {name: label for label, name in enumerate(self.schema.classes, start=1)}
        for stem, file in zip(self._stems, files, strict=True):
            for number, name in enumerate(file.names, start=1):
                if name not in labels:
                    raise ValueError(
                        f"{self._xml / stem}.xml, object {number}: unknown class {name!r}, known are {list(labels)}; "
                        "correct the file, or add the name to classes"
                    )
        return [labels[name] for file in files for name in file.names]


class _File(NamedTuple):
    """What one XML file says, as written; size is None when the file does not tell it."""

    size: tuple[int, int] | None
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]


def _class_file(folder: Path) -> Path | None:
    path = folder / "classes.txt"
    return path if path.is_file() else None


def _annotated(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.xml") if not path.name.startswith(".")]


def _read_files(folder: Path, stems: Iterable[str]) -> dict[str, _File]:
    progress = tqdm(sorted(stems), desc=f"reading {folder.name}", unit="file", delay=2, leave=False)
    return {stem: _read_file(folder / f"{stem}.xml") for stem in progress}


def _collect_names(files: Mapping[str, _File], folder: Path) -> tuple[str, ...]:
    names = sorted({name for file in files.values() for name in file.names})
    if not names:
        raise ValueError(f"{folder}: no annotation holds an object, so there is no class name; pass classes")
    return tuple(names)


def _read_file(path: Path) -> _File:
    root = _parse(path)
    objects = root.findall("object")  # its own children only: VOC's body parts have names and boxes too
    return _File(
        size=_size(root, path),
        names=[_name(item, path, number) for number, item in enumerate(objects, start=1)],
        boxes=[_corners(item, path, number) for number, item in enumerate(objects, start=1)],
        difficult=[(item.findtext("difficult") or "").strip().lower() in ("1", "true") for item in objects],
    )


def _parse(path: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no annotation {path} for a listed picture; add it (without <object> for an empty picture), "
            "or remove the picture from the split"
        ) from error
    except ElementTree.ParseError as error:
        line, column = error.position
        raise ValueError(
            f"{path}, line {line}, column {column}: not well-formed XML ({error}); correct the file, or export it again"
        ) from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: got an XML file of <{root.tag}>, wanted a Pascal <annotation>")
    return root


def _size(root: ElementTree.Element, path: Path) -> tuple[int, int] | None:
    sides = [root.findtext(f"size/{side}") or "0" for side in ("height", "width")]
    height, width = (int(_number(text, f"{path}, <size>")) for text in sides)
    return (height, width) if height > 0 and width > 0 else None


def _name(item: ElementTree.Element, path: Path, number: int) -> str:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{path}, object {number}: got no <name>, wanted a class name")
    return name


def _corners(item: ElementTree.Element, path: Path, number: int) -> list[float]:
    texts: Sequence[str | None] = [item.findtext(f"bndbox/{corner}") for corner in CORNERS]
    return [_number(text, f"{path}, object {number}, <{corner}>") for corner, text in zip(CORNERS, texts, strict=True)]


def _number(text: str | None, where: str) -> float:
    try:
        return float(text)  # type: ignore[arg-type]  # a missing element is an error like any other text
    except (TypeError, ValueError):
        raise ValueError(f"{where}: got {text!r}, wanted a number; correct the file") from None
