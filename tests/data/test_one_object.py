"""Pictures with an object to find: what is left out, what stays as it is, and the real data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from makers import make_voc, voc_xml
from quadrat.data.coco import COCO
from quadrat.data.one_object import OneObject, one_object, principal_boxes
from quadrat.data.shapes import Shapes
from quadrat.data.voc import VOC
from quadrat.structures import Sample, Schema, Targets


class Counted:
    """Pictures with so many objects, of which so many are ignored."""

    schema = Schema(classes=("thing",))

    def __init__(self, *counts: tuple[int, int]) -> None:
        self.counts: Sequence[tuple[int, int]] = counts

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 4, 3), np.uint8), self.truth(index))

    def truth(self, index: int) -> Targets:
        objects, ignored = self.counts[index]
        ignore = [i < ignored for i in range(objects)]
        return Targets.make([[0, 0, 2, 2]] * objects, [1] * objects, self.size(index), index, ignore=ignore)

    def size(self, index: int) -> tuple[int, int]:
        return 4, 4


def left(source: OneObject) -> list[int | str]:
    return [source.truth(index).image_id for index in range(len(source))]


def test_without_an_object_nothing_is_left():
    with pytest.raises(ValueError, match=r"none of 2 pictures is left \(2 without an object, 0 with more than 0"):
        OneObject(Counted((0, 0), (1, 1)))


def test_ignored_objects_do_not_count(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    source = OneObject(Counted((0, 0), (1, 0), (1, 1), (2, 1), (2, 0), (3, 0)), most_objects=1)
    assert left(source) == [1, 3]
    assert "2 of 6 pictures kept; left out: 2 without an object, 2 with more than 1" in caplog.text
    assert len(source[1].targets) == 2  # the ignored one stays in the truth


def test_any_number_of_objects():
    assert left(OneObject(Counted((0, 0), (3, 0), (1, 1), (2, 1)))) == [1, 3]


def test_most_objects_below_one():
    with pytest.raises(ValueError, match="most_objects is 1 or more, or null for any number, got 0"):
        OneObject(Counted((1, 0)), most_objects=0)


def test_a_split_of_a_source(tmp_path: Path):
    """Of six pictures one has no object; those with two objects have a difficult one."""
    root = make_voc(tmp_path / "set")
    source = one_object("train", VOC, root=root, most_objects=1, classes=["cat", "dog"])
    plain = VOC(root, "train")
    assert left(source) == ["train_000", "train_001", "train_003", "train_004"]
    for index, kept in enumerate((0, 1, 3, 4)):
        assert np.array_equal(source[index].image, plain[kept].image)
        assert source[index].targets.boxes.equal(plain[kept].targets.boxes)
        assert source.size(index) == plain.size(kept)


def test_real_pictures(shared: Path):
    data = shared / "data"
    raccoons = one_object("train", VOC, root=data / "voc_raccoon", most_objects=1)
    plain = VOC(data / "voc_raccoon", "train")
    assert len(raccoons) == sum(len(plain.truth(index)) == 1 for index in range(len(plain)))
    assert 100 < len(raccoons) < 160
    assert 70 < len(one_object("val2017", COCO, root=data / "coco_mini")) <= 79


# What a code of boxes is measured in


def test_principal_boxes_are_the_largest_that_count(tmp_path: Path) -> None:
    objects = [
        {"name": "cat", "xmin": 1, "ymin": 1, "xmax": 60, "ymax": 40, "difficult": 1},
        {"name": "cat", "xmin": 11, "ymin": 11, "xmax": 30, "ymax": 20},
        {"name": "cat", "xmin": 5, "ymin": 5, "xmax": 8, "ymax": 8},
    ]
    root = make_voc(tmp_path, splits={"train": 1})
    (file,) = (root / "Annotations").iterdir()
    file.write_text(voc_xml((48, 64), objects))
    boxes, sizes = principal_boxes(VOC(root, "train"))
    assert boxes.tolist() == [[10, 10, 30, 20]]
    assert sizes.tolist() == [[48, 64]]


def test_principal_boxes_of_pictures_without_objects_are_none(tmp_path: Path) -> None:
    root = make_voc(tmp_path, splits={"train": 1})
    (file,) = (root / "Annotations").iterdir()
    file.write_text(voc_xml((48, 64), []))
    boxes, sizes = principal_boxes(VOC(root, "train", classes=["cat"]))
    assert (boxes.shape, sizes.shape) == ((0, 4), (0, 2))


def test_principal_boxes_of_drawn_scenes_are_those_of_their_samples() -> None:
    source = Shapes("train", count=3, size=(64, 64), objects=(1, 1), empty=0)
    assert principal_boxes(source).boxes.tolist() == [source[index].targets.boxes[0].tolist() for index in range(3)]
