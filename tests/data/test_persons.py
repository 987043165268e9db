"""One person at a time: which objects are persons, their names, mirrors, bad input, and the real data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch

from makers import make_coco
from quadrat.data.augment import Augment
from quadrat.data.coco import COCO
from quadrat.data.persons import Persons, persons

JOINTS = ("nose", "left_hand", "right_hand", "tail")
POSES = "annotations/person_keypoints_{split}.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "set", joints=JOINTS, file="person_keypoints")


def only(root: Path, *visibilities: tuple[int, ...], crowds: tuple[int, ...] = ()) -> Path:
    """Leave objects with these joints in the first picture, side by side."""
    path = root / "annotations" / "person_keypoints_train.json"
    document: dict[str, Any] = json.loads(path.read_text())
    document["annotations"] = [
        {
            "image_id": 100,
            "category_id": 3,
            "bbox": [10 * i, 0, 9, 40],
            "iscrowd": int(i in crowds),
            "keypoints": [value for joint, v in enumerate(row) for value in (10 * i + joint, joint, v)],
        }
        for i, row in enumerate(visibilities)
    ]
    path.write_text(json.dumps(document))
    return root


def taken(root: Path, least_joints: int = 1) -> Persons:
    return persons("train", COCO, root=root, annotations=POSES, least_joints=least_joints)


def test_no_person_is_left(root: Path):
    with pytest.raises(ValueError, match="no object of 6 pictures has 1 labelled joints; lower least_joints"):
        taken(only(root))


def test_a_sample_for_each_person(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    source = taken(only(root, (2, 0, 0, 0), (0, 0, 0, 0), (1, 2, 0, 0), (2, 2, 2, 2), crowds=(3,)))
    assert [source.truth(i).image_id for i in range(len(source))] == ["100-0", "100-2"]
    assert "2 persons in 1 pictures; left out: 2 objects" in caplog.text
    image, targets = source[1]
    assert image.shape == (*source.size(1), 3)
    assert targets.boxes.tolist() == [[20, 0, 29, 40]]
    assert targets.keypoints.tolist() == [[[20.5, 0.5, 1], [21.5, 1.5, 2], [0, 0, 0], [0, 0, 0]]]


def test_a_single_person_keeps_the_pictures_name(root: Path):
    assert taken(only(root, (0, 0, 0, 0), (2, 2, 2, 2))).truth(0).image_id == 100


@pytest.mark.parametrize(("least", "count"), [(1, 3), (2, 2), (3, 1)])
def test_least_joints(root: Path, least: int, count: int):
    assert len(taken(only(root, (2, 0, 0, 0), (1, 1, 0, 0), (0, 2, 2, 2)), least)) == count


@pytest.mark.parametrize("least", [0, 5])
def test_least_joints_out_of_range(root: Path, least: int):
    with pytest.raises(ValueError, match=f"least_joints is 1..4, got {least}"):
        taken(root, least)


def test_a_source_without_joints_is_named(tmp_path: Path):
    root = make_coco(tmp_path / "set")
    with pytest.raises(ValueError, match=r"annotations=annotations/person_keypoints_\{split\}.json"):
        persons("train", COCO, root=root)


def test_a_mirror_swaps_left_and_right_once(root: Path):
    source = taken(only(root, (2, 2, 1, 2)))
    mirrored = Augment([A.HorizontalFlip(p=1)], flip_pairs=source.schema.flip_pairs)(source[0], 0).targets
    rows = mirrored.keypoints[0].numpy()
    assert np.allclose(rows, [[63.5, 0.5, 2], [61.5, 2.5, 1], [62.5, 1.5, 2], [60.5, 3.5, 2]], atol=1e-4)


def test_real_persons(shared: Path):
    source = persons("val2017", COCO, root=shared / "data" / "coco_mini", annotations=POSES)
    assert (len(source), len(source.schema.joints), len(source.schema.flip_pairs)) == (68, 17, 8)
    truths = [source.truth(index) for index in range(len(source))]
    assert len({truth.image_id for truth in truths}) == 68
    assert all(len(truth) == 1 and (truth.keypoints[..., 2] > 0).any() for truth in truths)
    assert torch.equal(source[5].targets.keypoints, truths[5].keypoints)
