"""Semantic maps made of the masks of objects: COCO's instances as classes of pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from torch import Tensor

from quadrat.data.coco import COCO
from quadrat.structures import IGNORE_INDEX, Mask, Sample, Schema, Targets


class Painted:
    """The pictures of a folder in COCO's layout, with the semantic map that the masks of their objects make.

    A pixel has the class of the objects on it; where their classes differ it is ignored, as in torchvision's references,
    and so are crowds, what is difficult, and the whole box of an object without a mask. The rest is background.
    """

    schema: Schema

    def __init__(self, source: COCO) -> None:
        if len(source.schema.pixel_classes) > IGNORE_INDEX or source.schema.background is None:
            raise ValueError(
                f"a painted map holds a background and up to {IGNORE_INDEX - 1} classes, got the background "
                f"{source.schema.background!r} and {len(source.schema.classes)} classes; choose fewer by classes"
            )
        self.source, self.schema = source, source.schema

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        image, targets = self.source[index]
        return Sample(image, replace(targets, semantic=paint(targets)))

    def semantic(self, index: int) -> Tensor:
        """The semantic map (H, W) uint8 of a picture without decoding the picture."""
        return paint(self.source.truth(index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        return self.source.size(index)


def painted(split: str, source: Callable[..., COCO], **options: Any) -> Painted:
    """One split of a source that is made for a split with these options, painted."""
    return Painted(source(split=split, **options))


def paint(targets: Targets) -> Tensor:
    """The semantic map (H, W) uint8 of an image's masks; ValueError where the image has none."""
    if targets.masks is None:
        raise ValueError(f"image {targets.image_id}: no masks to paint, wanted a source with masks, such as data=coco")
    canvas = np.zeros(targets.size, dtype=np.uint8)
    uncertain = np.zeros(targets.size, dtype=bool)
    for mask, label, ignore, box in _objects(targets):
        plane = _plane(mask, targets.size) if mask else _box(box, targets.size)
        if ignore or not mask:
            uncertain |= plane
        else:
            canvas[plane & (canvas != 0) & (canvas != label)] = IGNORE_INDEX
            canvas[plane & (canvas == 0)] = label
    canvas[uncertain] = IGNORE_INDEX
    return torch.from_numpy(canvas)


def _objects(targets: Targets) -> Iterable[tuple[Mask, int, bool, list[float]]]:
    masks, labels = targets.masks or (), targets.labels.tolist()
    return zip(masks, labels, targets.ignore.tolist(), targets.boxes.tolist(), strict=True)


def _plane(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) bool of a mask, polygons filled as COCO does."""
    if isinstance(mask, dict):
        return mask_api.decode(cast(Any, mask)).astype(bool)
    # COCO's files count in hundredths, which float32 misses by a little, and some pixels' edges lie just there
    flat = [polygon.reshape(-1).astype(np.float64).round(3).tolist() for polygon in mask]
    return mask_api.decode(mask_api.merge(cast(Any, mask_api.frPyObjects(flat, *size)))).astype(bool)


def _box(box: list[float], size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) bool that a box touches."""
    x1, y1, x2, y2 = box
    plane = np.zeros(size, dtype=bool)
    plane[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    return plane
