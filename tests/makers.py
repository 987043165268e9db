"""Tiny seeded data sets on disk: a rectangle of its class's colour for each object, on grey."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

GREY = 90
COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 40))
"""RGB by class, in the order of ``classes``; the fifth class starts again."""

SPLITS = {"train": 6, "val": 3}


class Drawn(NamedTuple):
    """One rectangle: class number from 0, and x1 y1 x2 y2 in whole pixels, x2 and y2 exclusive."""

    kind: int
    box: tuple[int, int, int, int]


def draw(rng: np.random.Generator, size: tuple[int, int], kinds: Sequence[int]) -> tuple[np.ndarray, list[Drawn]]:
    """A picture uint8 RGB (H, W, 3) and its rectangles, one in each of as many columns, so that none overlap."""
    height, width = size
    image = np.full((height, width, 3), GREY, dtype=np.uint8)
    drawn = []
    for column, kind in enumerate(kinds):
        left, right = column * width // len(kinds), (column + 1) * width // len(kinds)
        x1, x2 = left + int(rng.integers(0, 4)), right - int(rng.integers(0, 4))
        y1, y2 = int(rng.integers(0, height // 3)), height - int(rng.integers(0, height // 3))
        image[y1:y2, x1:x2] = COLOURS[kind % len(COLOURS)]
        drawn.append(Drawn(kind, (x1, y1, x2, y2)))
    return image, drawn


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3) as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)), f"cannot write {path}"


def _pictures(splits: Mapping[str, int], classes: int, size: tuple[int, int], seed: int) -> Any:
    """(split, number in the split, picture, rectangles); the last picture of a split of two or more has no object."""
    rng = np.random.default_rng(seed)
    drawn_so_far = 0
    for split, count in splits.items():
        for number in range(count):
            objects = 0 if count > 1 and number == count - 1 else 1 + number % 3
            kinds = [(drawn_so_far + i) % classes for i in range(objects)]  # every class in turn
            drawn_so_far += objects
            yield split, number, *draw(rng, size, kinds)


def voc_xml(size: tuple[int, int] | None, objects: Sequence[Mapping[str, Any]]) -> str:
    """A Pascal annotation; an object has name, xmin, ymin, xmax, ymax as in the file, and perhaps difficult."""
    parts = [] if size is None else [f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"]
    for item in objects:
        corners = "".join(f"<{name}>{item[name]}</{name}>" for name in ("xmin", "ymin", "xmax", "ymax"))
        parts.append(
            f"<object><name>{item['name']}</name><difficult>{int(item.get('difficult', 0))}</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    return "<annotation>\n" + "\n".join(parts) + "\n</annotation>\n"


def make_voc(
    root: Path,
    *,
    splits: Mapping[str, int] = SPLITS,
    classes: Sequence[str] = ("cat", "dog"),
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    suffix: str = ".jpg",
) -> Path:
    """A folder in Pascal layout without classes.txt; the last object of a picture with two or more is difficult."""
    listed: dict[str, list[str]] = {split: [] for split in splits}
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, number, image, drawn in _pictures(splits, len(classes), size, seed):
        stem = f"{split}_{number:03}"
        write_picture(root / "JPEGImages" / f"{stem}{suffix}", image)
        objects = [
            {
                "name": classes[kind],
                "xmin": x1 + 1,
                "ymin": y1 + 1,
                "xmax": x2,
                "ymax": y2,
                "difficult": i and i + 1 == len(drawn),
            }
            for i, (kind, (x1, y1, x2, y2)) in enumerate(drawn)
        ]
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(size, objects))
        listed[split].append(stem)
    for split, stems in listed.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def rectangle_rle(box: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO's uncompressed RLE of a filled box: runs down the columns, the first of zeros."""
    plane = np.zeros(size, dtype=np.uint8)
    plane[box[1] : box[3], box[0] : box[2]] = 1
    flat = plane.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, flat.size]).tolist()
    return {"size": list(size), "counts": [0, *counts] if flat[0] else counts}


def make_coco(
    root: Path,
    *,
    splits: Mapping[str, int] = SPLITS,
    classes: Sequence[str] = ("cat", "dog"),
    category_ids: Sequence[int] = (),
    joints: Sequence[str] = (),
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    suffix: str = ".jpg",
    file: str = "instances",
) -> Path:
    """A folder in COCO layout, ids 3, 6, 9 .. unless given; the last object of a picture with two or more is a crowd.

    With ``joints`` every object of the first class has them, evenly along its box's diagonal, the last one unlabelled. The
    annotations of a split are in ``<file>_<split>.json``.
    """
    ids = list(category_ids) or [3 * (i + 1) for i in range(len(classes))]
    categories: list[dict[str, Any]] = [{"id": i, "name": name} for i, name in zip(ids, classes, strict=True)]
    if joints:
        categories[0] |= {"keypoints": list(joints), "skeleton": [[i, i + 1] for i in range(1, len(joints))]}
    documents = {split: {"images": [], "annotations": [], "categories": categories} for split in splits}
    for split, number, image, drawn in _pictures(splits, len(classes), size, seed):
        document, image_id = documents[split], 100 + number
        file_name = f"{split}_{number:03}{suffix}"
        write_picture(root / split / file_name, image)
        document["images"].append({"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]})
        for i, item in enumerate(drawn):
            entry = coco_entry(item.box, size, crowd=i > 0 and i + 1 == len(drawn))
            entry |= {"id": len(document["annotations"]) + 1, "image_id": image_id, "category_id": ids[item.kind]}
            if joints and item.kind == 0:
                entry["keypoints"] = diagonal(item.box, len(joints))
            document["annotations"].append(entry)
    (root / "annotations").mkdir()
    for split, document in documents.items():
        (root / "annotations" / f"{file}_{split}.json").write_text(json.dumps(document))
    return root


def coco_entry(box: tuple[int, int, int, int], size: tuple[int, int], *, crowd: bool = False) -> dict[str, Any]:
    """bbox, area, iscrowd and segmentation of a rectangle: a polygon, or uncompressed RLE for a crowd."""
    x1, y1, x2, y2 = box
    polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return {
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": int(crowd),
        "segmentation": rectangle_rle(box, size) if crowd else polygon,
    }


def diagonal(box: tuple[int, int, int, int], count: int) -> list[int]:
    """Keypoints x, y, visibility in one list: visible ones down the diagonal, the last one unlabelled."""
    x1, y1, x2, y2 = box
    points = [(x1 + (x2 - x1) * i // count, y1 + (y2 - y1) * i // count, 2) for i in range(count - 1)]
    return [value for point in [*points, (0, 0, 0)] for value in point]


FIGURE = np.array(
    [
        *[(0.3, 0.98), (0.35, 0.76), (0.4, 0.54), (0.6, 0.54), (0.65, 0.76), (0.7, 0.98)],
        *[(0.02, 0.5), (0.15, 0.4), (0.35, 0.24), (0.65, 0.24), (0.85, 0.4), (0.98, 0.5)],
        *[(0.5, 0.2), (0.5, 0.02)],
    ]
)
"""Where the 14 joints of a person who faces the viewer lie in the rectangle (x, y)."""


def make_lsp(
    root: Path,
    *,
    splits: Mapping[str, int] = SPLITS,
    extended: bool = True,
    lists: bool = True,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """A folder as LSP Extended or LSP: a rectangle each, `FIGURE` in it; the last joint is unlabelled, or hidden in LSP."""
    rng = np.random.default_rng(seed)
    digits, poses, number = 5 if extended else 4, [], 0
    for split, count in splits.items():
        stems = [f"im{number + i:0{digits}}" for i in range(1, count + 1)]
        number += count
        for stem in stems:
            image, [(_, box)] = draw(rng, size, [0])
            write_picture(root / "images" / f"{stem}.jpg", image)
            corner, side = np.array(box[:2]), np.array(box[2:]) - box[:2]
            marks = [1] * 13 + [0] if extended else [0] * 13 + [1]
            poses.append(np.column_stack([corner + FIGURE * side + 0.5, marks]))  # MATLAB's pixels count from 1
        if lists:
            (root / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    joints = np.stack(poses, axis=2)  # (14, 3, N)
    savemat(root / "joints.mat", {"joints": joints if extended else joints.transpose(1, 0, 2)})
    return root


PALETTE = [*[(GREY,) * 3, *COLOURS], *[(7, 7, 7)] * 250, (224, 224, 192)]
"""Colours of the indices 0..255 in a map's file; in grey they are no class numbers."""


def write_map(path: Path, labels: np.ndarray, *, mode: str = "P") -> None:
    """Write a map (H, W) uint8 as Pascal does, indices into a palette, or as one channel (mode L)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture.putpalette([value for colour in PALETTE for value in colour])
    picture.save(path)


def make_label_maps(
    root: Path,
    *,
    splits: Mapping[str, int] = SPLITS,
    classes: Sequence[str] = ("cat", "dog"),
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    mode: str = "P",
) -> Path:
    """A folder in the layout of Pascal's segmentations, without classes.txt; an outline of two pixels is void (255)."""
    listed: dict[str, list[str]] = {split: [] for split in splits}
    for split, number, image, drawn in _pictures(splits, len(classes), size, seed):
        stem = f"{split}_{number:03}"
        labels = np.zeros(size, dtype=np.uint8)
        for kind, (x1, y1, x2, y2) in drawn:
            labels[y1:y2, x1:x2] = 255
            labels[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] = kind + 1
        write_picture(root / "JPEGImages" / f"{stem}.jpg", image)
        write_map(root / "SegmentationClass" / f"{stem}.png", labels, mode=mode)
        listed[split].append(stem)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, stems in listed.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root
