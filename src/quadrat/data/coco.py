"""Any folder in COCO layout: pictures of a split in one folder, their annotations in one JSON file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from tqdm import tqdm

from quadrat.data.annotations import (
    Classes,
    ObjectTable,
    OnBadBox,
    class_names,
    decoded_size,
    existing_folder,
    read_annotated_image,
    repair_boxes,
)
from quadrat.structures import Mask, Sample, Schema, Targets, joint_words

log = logging.getLogger(__name__)

HALF_PIXEL = np.array([0.5, 0.5, 0])

Entry = Mapping[str, Any]


class COCO:
    """One split of a folder in COCO layout, instances or keypoints, every annotation read and checked when made.

    ``images`` and ``annotations`` are paths in the root, ``{split}`` stands for the split. Labels 1..C follow the
    ascending category ids, or the order of ``classes`` (names or a file of names), which selects: objects of other
    classes are left out. Crowds become ``ignore``; pictures without objects stay. Polygons and compressed RLE are kept
    as they are, an uncompressed RLE is compressed. COCO's joints name pixels, ours are continuous: half a pixel is
    added to x and y.
    """

    schema: Schema

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        images: str = "{split}",
        annotations: str = "annotations/instances_{split}.json",
        classes: Classes = None,
        on_bad_box: OnBadBox = "error",
    ) -> None:
        folder = existing_folder(Path(root).expanduser(), "a folder in COCO layout")
        self._json = folder / annotations.replace("{split}", split)
        document = _read_json(self._json, split)
        pictures = existing_folder(
            folder / images.replace("{split}", split), f"the pictures of split {split!r} (see the argument images)"
        )
        categories = _sorted_categories(document["categories"], self._json)
        chosen = _choose(categories, class_names(classes), self._json)
        self.schema = _schema(chosen, self._json)
        self._read_images(document["images"], pictures)
        objects = self._link(document["annotations"], {category["id"] for category in categories}, split)
        self._tabulate(objects, split, on_bad_box)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return Sample(read_annotated_image(self._pictures[index], self.size(index), self._json), self.truth(index))

    def truth(self, index: int) -> Targets:
        """The truth of a picture without decoding it."""
        size, rows = self.size(index), self._objects.rows(index)
        return Targets.make(
            size=size,
            image_id=self._ids[index],
            areas=self._areas[rows].copy(),
            masks=None if self._outlines is None else self._outlines.masks(rows),
            keypoints=None if self._keypoints is None else torch.from_numpy(self._keypoints[rows].copy()),
            **self._objects.truth(index),
        )

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        height, width = self._sizes[index].tolist()
        return height, width

    def _read_images(self, entries: Sequence[Entry], folder: Path) -> None:
        if not entries:
            raise ValueError(f"{self._json}: the split is empty, wanted at least one entry in 'images'")
        self._ids: list[int | str] = [
            _field(entry, "id", f"{self._json}, images[{i}]") for i, entry in enumerate(entries)
        ]
        self._pictures: list[Path] = []
        sizes = []
        for entry in entries:
            where = f"{self._json}, image id {entry['id']}"
            picture = folder / _field(entry, "file_name", where)
            if not picture.is_file():
                raise FileNotFoundError(f"{where}: no picture {picture}; add it, or correct the argument images")
            self._pictures.append(picture)
            height, width = int(entry.get("height") or 0), int(entry.get("width") or 0)
            sizes.append((height, width) if height > 0 and width > 0 else decoded_size(picture))
        self._sizes = np.array(sizes)
        image_id, times = Counter(self._ids).most_common(1)[0]
        if times > 1:
            raise ValueError(
                f"{self._json}: {times} images have the id {image_id}, wanted different ids; correct the file"
            )

    def _link(self, entries: Sequence[Entry], known: set[int], split: str) -> list[_Object]:
        """The objects of the chosen classes, sorted by image; objects of one image stay in the order of the file."""
        labels = {category: label for label, category in enumerate(self.schema.category_ids, start=1)}
        images = {image_id: row for row, image_id in enumerate(self._ids)}
        objects = []
        for number, entry in enumerate(tqdm(entries, desc=f"reading {self._json.name}", delay=2, leave=False)):
            where = (
                f"{self._json}, annotation id {entry['id']}"
                if "id" in entry
                else f"{self._json}, annotations[{number}]"
            )
            image, category = _field(entry, "image_id", where), _field(entry, "category_id", where)
            if image not in images:
                raise ValueError(
                    f"{where}: no image has the id {image!r}; add it to 'images', or remove the annotation"
                )
            if category not in known:
                raise ValueError(
                    f"{where}: unknown category_id {category!r}, known are {sorted(known)}; "
                    "add it to 'categories', or correct the annotation"
                )
            if category in labels:
                row = images[image]
                objects.append(_read_object(entry, row, labels[category], self._sizes[row], self.schema, where))
        if len(objects) < len(entries):
            log.info(
                "%s: %d of %d objects are of the chosen %s", split, len(objects), len(entries), self.schema.classes
            )
        return sorted(objects, key=lambda item: item.row)

    def _tabulate(self, objects: list[_Object], split: str, on_bad_box: OnBadBox) -> None:
        boxes, keep = repair_boxes(
            np.array([item.corners for item in objects], dtype=np.float64).reshape(-1, 4),
            self._sizes[[item.row for item in objects]].reshape(-1, 2),
            split=split,
            describe=lambda row: objects[row].where + f" (bbox {objects[row].bbox})",
            on_bad_box=on_bad_box,
        )
        boxes = boxes[keep]
        objects = [item for item, good in zip(objects, keep, strict=True) if good]
        self._objects = ObjectTable.make(
            boxes,
            [item.label for item in objects],
            [item.crowd for item in objects],
            np.array([item.row for item in objects], dtype=np.int64),
            len(self),
        )
        box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        areas = [own if item.area is None else item.area for item, own in zip(objects, box_areas, strict=True)]
        self._areas = np.array(areas, dtype=np.float32)
        masks = [item.mask for item in objects]
        self._outlines = Outlines.make(masks) if any(masks) else None
        joints = len(self.schema.joints)
        poses = np.array([item.joints for item in objects], dtype=np.float32) if joints else None
        self._keypoints = None if poses is None else poses.reshape(-1, joints, 3)


@dataclass(frozen=True)
class Outlines:
    """The masks of N objects in flat arrays: ``points`` (P, 2) float32, where polygons start in it, objects in those.

    RLE is kept by object number, because few objects have one.
    """

    points: np.ndarray
    polygons: np.ndarray
    objects: np.ndarray
    rles: dict[int, dict[str, Any]]

    @classmethod
    def make(cls, masks: Sequence[Mask]) -> Outlines:
        """Flatten the masks of N objects."""
        outlines = [[] if isinstance(mask, dict) else mask for mask in masks]
        polygons = [polygon for outline in outlines for polygon in outline]
        return cls(
            points=np.concatenate([np.zeros((0, 2), dtype=np.float32), *polygons]),
            polygons=np.cumsum([0, *(len(polygon) for polygon in polygons)]),
            objects=np.cumsum([0, *(len(outline) for outline in outlines)]),
            rles={number: mask for number, mask in enumerate(masks) if isinstance(mask, dict)},
        )

    def masks(self, rows: slice) -> tuple[Mask, ...]:
        """The masks of consecutive objects, copied."""
        return tuple(self._mask(number) for number in range(rows.start, rows.stop))

    def _mask(self, number: int) -> Mask:
        if number in self.rles:
            return dict(self.rles[number])
        polygons = range(self.objects[number], self.objects[number + 1])
        return [self.points[self.polygons[i] : self.polygons[i + 1]].copy() for i in polygons]


class _Object(NamedTuple):
    """One annotation: ``row`` counts images, ``corners`` are x1 y1 x2 y2, ``joints`` (K, 3)."""

    row: int
    label: int
    corners: tuple[float, float, float, float]
    crowd: bool
    area: float | None
    mask: Mask
    joints: np.ndarray
    bbox: Sequence[float]
    where: str


def _read_object(entry: Entry, row: int, label: int, size: np.ndarray, schema: Schema, where: str) -> _Object:
    bbox = _numbers(_field(entry, "bbox", where), f"{where}, bbox")
    if len(bbox) != 4:
        raise ValueError(f"{where}: got a bbox of {len(bbox)} numbers, wanted x, y, width, height")
    x, y, width, height = bbox.tolist()
    area = entry.get("area")
    return _Object(
        row=row,
        label=label,
        corners=(x, y, x + width, y + height),
        crowd=bool(entry.get("iscrowd", 0)),
        area=None if area is None else float(_numbers([area], f"{where}, area")[0]),
        mask=_mask(entry.get("segmentation") or [], size, where),
        joints=_joints(entry, len(schema.joints), where),
        bbox=entry["bbox"],
        where=where,
    )


def _mask(outline: Any, size: np.ndarray, where: str) -> Mask:
    if isinstance(outline, Mapping):
        return _rle(outline, size, where)
    if not isinstance(outline, list):
        raise ValueError(f"{where}: got a segmentation of type {type(outline).__name__}, wanted polygons or RLE")
    polygons = [_numbers(polygon, f"{where}, segmentation").astype(np.float32) for polygon in outline]
    for polygon in polygons:
        if len(polygon) % 2:
            raise ValueError(f"{where}: got a polygon of {len(polygon)} numbers, wanted pairs of x and y")
    return [polygon.reshape(-1, 2) for polygon in polygons if len(polygon) >= 6]  # fewer than three points have no area


def _rle(outline: Entry, size: np.ndarray, where: str) -> dict[str, Any]:
    height, width = size.tolist()
    counts, found = _field(outline, "counts", where), list(_field(outline, "size", where))
    if found != [height, width]:
        raise ValueError(
            f"{where}: got an RLE of size {found}, wanted the picture's [{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        return _compressed({"size": found, "counts": counts.encode()}, where)
    runs = _numbers(counts, f"{where}, counts")
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(
            f"{where}: the RLE counts {runs.sum():g} pixels, wanted {height * width} in runs of 0 or more; "
            "export the mask again"
        )
    return cast(dict[str, Any], mask_api.frPyObjects({"size": found, "counts": counts}, height, width))


def _compressed(rle: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        mask_api.area(rle)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: the compressed RLE cannot be read ({error}); export the mask again") from error
    return rle


def _joints(entry: Entry, count: int, where: str) -> np.ndarray:
    """Joints (K, 3) in continuous coordinates; zeros where none are labelled."""
    values = entry.get("keypoints")
    if not count or values is None:
        return np.zeros((count, 3), dtype=np.float32)
    joints = _numbers(values, f"{where}, keypoints")
    if len(joints) != 3 * count:
        raise ValueError(f"{where}: got {len(joints)} numbers of keypoints, wanted 3 for each of {count} joints")
    joints = joints.reshape(count, 3)
    if not np.isin(joints[:, 2], (0, 1, 2)).all():
        raise ValueError(f"{where}: the visibility of a joint is 0, 1 or 2, got {sorted(set(joints[:, 2].tolist()))}")
    labelled = joints[:, 2:] > 0
    return np.where(labelled, joints + HALF_PIXEL, 0).astype(np.float32)


def _numbers(values: Any, where: str) -> np.ndarray:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.full(1, np.nan)
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: got {values!r:.80}, wanted a flat list of numbers; correct the file")
    return numbers


def _field(entry: Entry, name: str, where: str) -> Any:
    if name not in entry:
        raise ValueError(f"{where}: no {name!r}, got only {sorted(entry)}; add it")
    return entry[name]


def _read_json(path: Path, split: str) -> dict[str, Any]:
    """The lists images, annotations and categories of a file, their entries known to be objects."""
    if not path.is_file():
        known = sorted(file.name for file in path.parent.glob("*.json"))
        raise FileNotFoundError(
            f"no annotations of split {split!r}: {path} does not exist, there are {known}; "
            "correct the split or the argument annotations"
        )
    try:
        document = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); "
            "correct the file, or download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    wanted = ("images", "annotations", "categories")
    got = sorted(document) if isinstance(document, dict) else f"a {type(document).__name__}"
    if not isinstance(document, dict) or any(not isinstance(document.get(name), list) for name in wanted):
        raise ValueError(
            f"{path}: wanted an object with the lists {list(wanted)}, got {got}; choose an instances or keypoints file"
        )
    for name in wanted:
        for number, entry in enumerate(document[name]):
            if not isinstance(entry, dict):
                raise ValueError(f"{path}, {name}[{number}]: wanted an object, got {entry!r:.80}; correct the file")
    return document


def _sorted_categories(categories: Sequence[Entry], path: Path) -> list[Entry]:
    for number, category in enumerate(categories):
        for name in ("id", "name"):
            _field(category, name, f"{path}, categories[{number}]")
    ids = [category["id"] for category in categories]
    names = [category["name"] for category in categories]
    if not ids or len(set(ids)) != len(ids) or len(set(names)) != len(names):
        raise ValueError(
            f"{path}: wanted at least one category, with different ids and names, got {[*zip(ids, names, strict=True)]}"
        )
    return sorted(categories, key=lambda category: category["id"])


def _choose(categories: list[Entry], classes: tuple[str, ...] | None, path: Path) -> list[Entry]:
    """The categories of these names in this order, or all."""
    if classes is None:
        return categories
    known = {category["name"]: category for category in categories}
    for name in classes:
        if name not in known:
            raise ValueError(f"{path}: unknown class {name!r}, known are {list(known)}; correct classes")
    return [known[name] for name in classes]


def _schema(categories: list[Entry], path: Path) -> Schema:
    posed = [category for category in categories if category.get("keypoints")]
    joints = tuple(posed[0]["keypoints"]) if posed else ()
    if any(tuple(category["keypoints"]) != joints for category in posed):
        named = {category["name"]: len(category["keypoints"]) for category in posed}
        raise ValueError(
            f"{path}: categories with different joints {named}, wanted one set; choose among them by classes"
        )
    limbs = posed[0].get("skeleton") or [] if posed else []
    if any(not 1 <= end <= len(joints) for limb in limbs for end in limb):
        raise ValueError(f"{path}: the skeleton {limbs} names joints outside 1..{len(joints)}; correct it")
    return Schema(
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        joints=joints,
        flip_pairs=flip_pairs(joints),
        limbs=tuple((first - 1, second - 1) for first, second in limbs),  # counted from 1 in the file
    )


def flip_pairs(joints: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Joints that change places in a mirror: alike but for ``left`` and ``right``, or an l and an r, in their names."""
    numbers = {joint_words(name): number for number, name in enumerate(joints)}
    mirror = {"left": "right", "right": "left"}
    pairs = []
    for words, number in numbers.items():
        mirrored = tuple(mirror.get(word, word) for word in words)
        if number < numbers.get(mirrored, -1):
            pairs.append((number, numbers[mirrored]))
    return tuple(pairs)
