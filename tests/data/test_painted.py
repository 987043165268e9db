"""Masks of objects painted into a map of classes: overlaps, crowds, the empty case, and pycocotools' pixels."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from pycocotools.coco import COCO as Reference

from makers import make_coco, make_voc, rectangle_rle
from quadrat.data.coco import COCO
from quadrat.data.painted import Painted, paint, painted
from quadrat.data.voc import VOC
from quadrat.structures import Mask, Schema, Targets


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[np.ndarray]:
    return [np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float32)]


def rows(masks: list[Mask], labels: list[int], ignore: list[bool] | None = None, boxes: list | None = None) -> list:
    """The map of objects in a picture of 4 x 6 pixels."""
    boxes = boxes or [[0, 0, 6, 4]] * len(masks)
    return paint(Targets.make(boxes, labels, (4, 6), "this", ignore=ignore, masks=tuple(masks))).tolist()


def test_no_objects_are_background():
    assert rows([], []) == [[0] * 6] * 4
    assert paint(Targets.make([], [], (4, 6), "this", masks=())).dtype == torch.uint8


def test_two_classes_on_a_pixel_are_ignored():
    assert rows([rectangle(0, 0, 3, 2), rectangle(2, 1, 5, 3)], [1, 2]) == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 255, 2, 2, 0],
        [0, 0, 2, 2, 2, 0],
        [0] * 6,
    ]


def test_one_class_on_a_pixel_twice_is_that_class():
    assert rows([rectangle(0, 0, 3, 2), rectangle(2, 1, 5, 3)], [2, 2])[1] == [2, 2, 2, 2, 2, 0]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_the_order_of_objects_does_not_matter(order: list[int]):
    masks = [rectangle(0, 0, 4, 4), rectangle(2, 0, 6, 4), rectangle(3, 0, 5, 4)]
    labels = [1, 2, 1]
    assert rows([masks[i] for i in order], [labels[i] for i in order])[0] == [1, 1, 255, 255, 255, 2]


def test_crowds_are_ignored_whatever_else_is_there():
    masks = [rectangle(0, 0, 6, 4), rectangle(1, 1, 3, 3)]
    assert rows(masks, [1, 1], ignore=[False, True])[1] == [1, 255, 255, 1, 1, 1]
    assert rows(masks, [1, 1], ignore=[False, True])[0] == [1] * 6


def test_an_object_of_several_polygons():
    assert rows([[*rectangle(0, 0, 2, 4), *rectangle(4, 0, 6, 4)]], [3])[2] == [3, 3, 0, 0, 3, 3]


def test_an_object_without_a_mask_is_ignored_in_its_box():
    assert rows([[], rectangle(0, 0, 2, 4)], [1, 2], boxes=[[1.5, 0.5, 3, 2], [0, 0, 2, 4]]) == [
        [2, 255, 255, 0, 0, 0],
        [2, 255, 255, 0, 0, 0],
        [2, 2, 0, 0, 0, 0],
        [2, 2, 0, 0, 0, 0],
    ]


def test_a_source_stays_as_it_is_but_for_its_maps(tmp_path: Path):
    root = make_coco(tmp_path / "set")
    source = painted("train", COCO, root=root, classes=["dog"])
    assert source.schema.pixel_classes == ("background", "dog")
    assert len(source) == 6
    plain = COCO(root, "train", classes=["dog"])
    for i, (image, targets) in enumerate(source):
        assert np.array_equal(image, plain[i].image)
        assert targets.boxes.equal(plain[i].targets.boxes)
        assert source.size(i) == plain.size(i) == tuple(targets.semantic.shape)
        expected = np.zeros(targets.size)
        for (x1, y1, x2, y2), crowd in zip(targets.boxes.int().tolist(), targets.ignore.tolist(), strict=True):
            expected[y1:y2, x1:x2] = 255 if crowd else 1
        assert np.array_equal(targets.semantic.numpy(), expected)
    assert {255, 1} <= set(torch.cat([sample.targets.semantic.flatten() for sample in source]).tolist())


def test_a_source_without_masks_is_named(tmp_path: Path):
    source = Painted(VOC(make_voc(tmp_path / "set"), "train"))
    with pytest.raises(ValueError, match="image train_000: no masks to paint, wanted a source with masks"):
        source[0]


def test_more_classes_than_a_map_holds(tmp_path: Path):
    source = COCO(make_coco(tmp_path / "set"), "train")
    source.schema = Schema(tuple(f"c{i}" for i in range(255)))
    with pytest.raises(ValueError, match="up to 254 classes, got the background 'background' and 255 classes"):
        Painted(source)


def test_rle_is_painted_too():
    runs = rectangle_rle((1, 1, 3, 3), (4, 6))
    assert rows([rle.frPyObjects(runs, 4, 6)], [2])[1] == [0, 2, 2, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools under numpy 2
def test_real_pictures_equal_pycocotools(shared: Path):
    root = shared / "data" / "coco_mini"
    source = Painted(COCO(root, "val2017"))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = Reference(str(root / "annotations" / "instances_val2017.json"))
    ignored = 0
    for image, targets in (source[i] for i in range(0, len(source), 2)):
        expected = painted_by_pycocotools(reference, targets, source.schema.category_ids)
        assert np.array_equal(targets.semantic.numpy(), expected)
        assert targets.semantic.shape == image.shape[:2]
        ignored += int((expected == 255).sum())
    assert ignored > 10_000


def painted_by_pycocotools(reference: Reference, targets: Targets, ids: tuple[int, ...]) -> np.ndarray:
    """A plane for each class, and a pixel on two of them is ignored."""
    planes = {0: np.zeros(targets.size, dtype=bool)}
    crowds = planes[0].copy()
    for entry in reference.loadAnns(reference.getAnnIds(imgIds=[targets.image_id])):
        mask, label = reference.annToMask(entry).astype(bool), ids.index(entry["category_id"]) + 1
        if entry["iscrowd"]:
            crowds |= mask
        else:
            planes[label] = planes.get(label, planes[0]) | mask
    stack = np.stack(list(planes.values()))
    expected = np.array(list(planes))[stack.argmax(axis=0)]
    expected[(stack.sum(axis=0) > 1) | crowds] = 255
    return expected
