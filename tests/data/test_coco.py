"""COCO folders: boxes, masks, joints, chosen classes, every bad input by its message, and the real data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from makers import COLOURS, coco_entry, make_coco, write_picture
from quadrat.data.coco import COCO, flip_pairs

SIZE = (48, 64)
JOINTS = ("nose", "left_eye", "right_eye", "tail")
POSES = "annotations/person_keypoints_{split}.json"

Document = dict[str, Any]


def edit(root: Path, change: Callable[[Document], object]) -> None:
    """Rewrite the annotations of the split train."""
    path = root / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def only(root: Path, *entries: Document) -> None:
    """Leave these objects in the first picture of train, of category 3 unless they say another."""
    common = {"image_id": 100, "category_id": 3, "iscrowd": 0}
    edit(root, lambda d: d.update(annotations=[common | {"id": i} | e for i, e in enumerate(entries, start=1)]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "set")


@pytest.fixture
def posed(tmp_path: Path) -> Path:
    return make_coco(tmp_path / "posed", joints=JOINTS)


def test_boxes_areas_and_ids_as_in_the_file(root: Path):
    crowd = {"bbox": [1, 2, 30, 40], "category_id": 6, "iscrowd": 1, "area": 7.5}
    only(root, {"bbox": [0, 0, 64, 48]}, crowd, {"bbox": [1, 1, 2, 2], "image_id": 103})
    source = COCO(root, "train")
    targets = source[0].targets
    assert targets.boxes.tolist() == [[0, 0, 64, 48], [1, 2, 31, 42]]
    assert targets.labels.tolist() == [1, 2]
    assert targets.ignore.tolist() == [False, True]
    assert targets.areas.tolist() == [64 * 48, 7.5]
    assert (targets.image_id, targets.size) == (100, SIZE)
    assert targets.masks is None
    assert targets.keypoints is None
    assert [len(sample.targets) for sample in source] == [2, 0, 0, 1, 0, 0]
    assert (source.schema.classes, source.schema.category_ids) == (("cat", "dog"), (3, 6))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_round_trip(tmp_path: Path, suffix: str):
    root = make_coco(tmp_path / "set", suffix=suffix, category_ids=(9, 2))
    for split, count in (("train", 6), ("val", 3)):
        source = COCO(root, split)
        assert len(source) == count == len(list(source))
        assert (source.schema.classes, source.schema.category_ids) == (("dog", "cat"), (2, 9))
        for i, (image, targets) in enumerate(source):
            assert image.shape == (*source.size(i), 3)
            for box, label, mask in zip(targets.boxes, targets.labels, targets.masks, strict=True):
                x1, y1, x2, y2 = box.int().tolist()
                plane = rasterised(mask)
                assert plane.sum() == (x2 - x1) * (y2 - y1) == plane[y1:y2, x1:x2].sum()
                assert np.abs(image[plane > 0].mean(0) - COLOURS[2 - label]).max() < 20
        assert (len(source[-1].targets), source[-1].targets.masks) == (0, ())


def rasterised(mask: Any) -> np.ndarray:
    """A mask as uint8 (H, W)."""
    if isinstance(mask, list):
        assert all(polygon.dtype == np.float32 and polygon.shape[1] == 2 for polygon in mask)
        mask = mask_api.merge(mask_api.frPyObjects([polygon.flatten().tolist() for polygon in mask], *SIZE))
    return mask_api.decode(mask)


def test_masks_in_every_form(root: Path):
    raw = coco_entry((4, 4, 20, 20), SIZE, crowd=True)
    compressed = mask_api.frPyObjects(raw["segmentation"], *SIZE)
    text = {"size": list(SIZE), "counts": compressed["counts"].decode()}
    triangles = [[1, 1, 9, 1, 9, 9], [20, 20, 30, 20, 30, 30], [1, 1, 2, 2]]
    box = {"bbox": [4, 4, 16, 16]}
    only(root, raw, box | {"segmentation": text}, box | {"segmentation": triangles}, box, box | {"segmentation": []})
    masks = COCO(root, "train")[0].targets.masks
    assert masks is not None
    assert masks[0] == masks[1] == compressed
    assert isinstance(masks[1]["counts"], bytes)
    assert [polygon.tolist() for polygon in masks[2]] == [[[1, 1], [9, 1], [9, 9]], [[20, 20], [30, 20], [30, 30]]]
    assert masks[3:] == ([], [])


def test_joints_get_half_a_pixel_where_labelled(posed: Path):
    joints = [10, 20, 2, 11.5, 21, 1, 7, 7, 0, 0, 0, 0]
    other = {"category_id": 6}
    box = {"bbox": [1, 1, 30, 30]}
    only(posed, box | {"keypoints": joints}, box, box | other)
    source = COCO(posed, "train")
    expected = np.zeros((3, 4, 3))
    expected[0, :2] = [[10.5, 20.5, 2], [12, 21.5, 1]]
    assert source[0].targets.keypoints.tolist() == expected.tolist()
    assert source[1].targets.keypoints.shape == (0, 4, 3)
    assert source.schema.joints == JOINTS
    assert source.schema.flip_pairs == ((1, 2),)
    assert source.schema.limbs == ((0, 1), (1, 2), (2, 3))


def test_only_chosen_classes_with_joints_count(posed: Path):
    source = COCO(posed, "train", classes=["dog"])
    assert source.schema.joints == ()
    assert source[0].targets.keypoints is None


@pytest.mark.parametrize(
    ("joints", "pairs"),
    [
        ((), ()),
        (("neck", "top"), ()),
        (("left_eye", "nose", "right_eye"), ((0, 2),)),
        (("RightHip", "LeftHip", "LeftKnee"), ((0, 1),)),
        (("r-hip", "l-hip", "r_knee", "l_knee", "lower", "rower"), ((0, 1), (2, 3))),
        (("hip left", "hip right"), ((0, 1),)),
    ],
)
def test_flip_pairs(joints: tuple[str, ...], pairs: tuple[tuple[int, int], ...]):
    assert flip_pairs(joints) == pairs


def test_chosen_classes_select_and_order(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    everything = COCO(root, "train")
    file = tmp_path / "names.txt"
    file.write_text("dog\ncat\n")
    swapped = COCO(root, "train", classes=file)
    assert (swapped.schema.classes, swapped.schema.category_ids) == (("dog", "cat"), (6, 3))
    assert [3 - s.targets.labels for s in everything][1].tolist() == swapped[1].targets.labels.tolist()
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        dogs = COCO(root, "train", classes=["dog"])
    assert len(dogs) == len(everything)  # pictures without dogs stay
    kept, of = (sum(len(sample.targets) for sample in source) for source in (dogs, everything))
    assert f"train: {kept} of {of} objects are of the chosen" in caplog.text
    for some, all_ in zip(dogs, everything, strict=True):
        rows = (all_.targets.labels == 2).nonzero().flatten().tolist()
        assert some.targets.boxes.equal(all_.targets.rows(rows).boxes)


def test_other_folders_and_no_size(root: Path):
    (root / "train").rename(root / "pictures")
    (root / "annotations" / "instances_train.json").rename(root / "all_train.json")
    edit_file = root / "all_train.json"
    document = json.loads(edit_file.read_text())
    del document["images"][0]["height"]
    edit_file.write_text(json.dumps(document))
    source = COCO(root, "train", images="pictures", annotations="all_{split}.json")
    assert (len(source), source.size(0)) == (6, SIZE)


def test_editing_a_sample_leaves_the_source_alone(posed: Path):
    source = COCO(posed, "train")
    before, after = source[1].targets, source[1].targets
    outline = before.masks[0][0].tolist()
    for tensor in (after.boxes, after.areas, after.keypoints):
        tensor.zero_()
    after.masks[0][0][:] = 0
    again = source[1].targets
    assert again.boxes.equal(before.boxes)
    assert again.areas.equal(before.areas)
    assert again.keypoints.equal(before.keypoints)
    assert again.masks[0][0].tolist() == outline


def test_less_than_a_pixel_outside_is_clipped_silently(root: Path, caplog: pytest.LogCaptureFixture):
    only(root, {"bbox": [-0.4, 1, 64.8, 20]})
    assert COCO(root, "train")[0].targets.boxes.tolist() == [[0, 1, 64, 21]]
    assert not caplog.records


def test_bad_boxes_can_be_dropped(posed: Path, caplog: pytest.LogCaptureFixture):
    only(
        posed,
        {"bbox": [5, 5, 0, 9]},
        {"bbox": [60, 5, 9, 9], "area": 3, "segmentation": [[1, 1, 9, 1, 9, 9]], "keypoints": [1, 1, 2] * 4},
        {"bbox": [70, 5, 9, 9], "segmentation": [[2, 2, 9, 2, 9, 9]]},
        {"bbox": [1, 1, 5, 5]},
    )
    with caplog.at_level(logging.WARNING):
        targets = COCO(posed, "train", on_bad_box="drop")[0].targets
    assert targets.boxes.tolist() == [[60, 5, 64, 14], [1, 1, 6, 6]]
    assert targets.areas.tolist() == [3, 25]
    assert [len(mask) for mask in targets.masks] == [1, 0]
    assert targets.keypoints[:, 0].tolist() == [[1.5, 1.5, 2], [0, 0, 0]]
    (record,) = caplog.records
    for part in ("train: 1 bad boxes clipped", "2 dropped", "annotation id 1 (bbox [5, 5, 0, 9])"):
        assert part in record.getMessage()


def test_a_split_without_objects(root: Path):
    edit(root, lambda d: d.update(annotations=[]))
    assert [len(sample.targets) for sample in COCO(root, "train")] == [0] * 6


def damaged(**change: Any) -> Callable[[Path], None]:
    """The first object of train changed; None removes a field."""

    def damage(root: Path) -> None:
        def apply(document: Document) -> None:
            entry = document["annotations"][0] | change
            document["annotations"][0] = {key: value for key, value in entry.items() if value is not None}

        edit(root, apply)

    return damage


def edited(change: Callable[[Document], object]) -> Callable[[Path], None]:
    return lambda root: edit(root, change)


def written(text: bytes) -> Callable[[Path], object]:
    return lambda root: (root / "annotations" / "instances_train.json").write_bytes(text)


def rle(counts: Any, size: tuple[int, int] = SIZE) -> Callable[[Path], None]:
    return damaged(segmentation={"size": list(size), "counts": counts})


FILE = "instances_train.json"
FIRST = "instances_train.json, annotation id 1"
BAD = {
    "missing root": (
        lambda root: root.rename(root.with_name("other")),
        FileNotFoundError,
        ["no folder", "COCO layout"],
    ),
    "missing split": (
        lambda root: (root / "annotations" / FILE).unlink(),
        FileNotFoundError,
        ["no annotations of split 'train'", FILE, "['instances_val.json']", "argument annotations"],
    ),
    "missing pictures": (
        lambda root: (root / "train").rename(root / "pictures"),
        FileNotFoundError,
        ["no folder", "the pictures of split 'train'", "argument images"],
    ),
    "missing picture": (
        lambda root: (root / "train" / "train_002.jpg").unlink(),
        FileNotFoundError,
        [FILE, "image id 102", "no picture", "train_002.jpg"],
    ),
    "not json": (written(b'{"images": [],\n "annotations": [}'), ValueError, [FILE, "line 2, column 18", "not JSON"]),
    "not utf-8": (written(b'{"images": "\xe9"}'), ValueError, [FILE, "not UTF-8"]),
    "a list": (written(b"[]"), ValueError, [FILE, "got a list", "'images', 'annotations', 'categories'"]),
    "captions": (
        edited(lambda d: d.pop("categories")),
        ValueError,
        ["got ['annotations', 'images']", "keypoints file"],
    ),
    "empty split": (edited(lambda d: d.update(images=[])), ValueError, [FILE, "the split is empty"]),
    "no categories": (edited(lambda d: d.update(categories=[])), ValueError, [FILE, "at least one category"]),
    "same category": (edited(lambda d: d["categories"][0].update(id=6)), ValueError, ["different ids", "(6, 'cat')"]),
    "nameless": (edited(lambda d: d["categories"][1].pop("name")), ValueError, ["categories[1]", "no 'name'"]),
    "no file name": (edited(lambda d: d["images"][1].pop("file_name")), ValueError, ["image id 101", "no 'file_name'"]),
    "no image id": (edited(lambda d: d["images"][1].pop("id")), ValueError, ["images[1]", "no 'id'"]),
    "same image id": (edited(lambda d: d["images"][1].update(id=100)), ValueError, [FILE, "2 images have the id 100"]),
    "lost image": (damaged(image_id=7), ValueError, [FIRST, "no image has the id 7"]),
    "unknown category": (damaged(category_id=4), ValueError, [FIRST, "category_id 4", "[3, 6]"]),
    "no category": (damaged(category_id=None), ValueError, [FIRST, "no 'category_id'"]),
    "no ids": (damaged(id=None, bbox=None), ValueError, [f"{FILE}, annotations[0]", "no 'bbox'"]),
    "three numbers": (damaged(bbox=[1, 2, 3]), ValueError, [FIRST, "bbox of 3 numbers", "x, y, width, height"]),
    "words": (damaged(bbox=[1, 2, 3, "x"]), ValueError, [f"{FIRST}, bbox", "[1, 2, 3, 'x']", "list of numbers"]),
    "nan": (damaged(bbox=[1, 2, 3, float("nan")]), ValueError, [f"{FIRST}, bbox", "nan"]),
    "outside": (damaged(bbox=[1, 2, 64.5, 9]), ValueError, [FIRST, "[1, 2, 64.5, 9]", "64x48", "on_bad_box=drop"]),
    "flat": (damaged(bbox=[1, 2, 9, 0]), ValueError, [FIRST, "[1, 2, 9, 0]", "degenerate", "on_bad_box=drop"]),
    "odd polygon": (damaged(segmentation=[[1, 2, 3, 4, 5]]), ValueError, [FIRST, "polygon of 5 numbers", "pairs"]),
    "nested polygon": (damaged(segmentation=[[[1, 2], [3, 4]]]), ValueError, [f"{FIRST}, segmentation", "flat list"]),
    "text polygon": (damaged(segmentation="x"), ValueError, [FIRST, "segmentation of type str"]),
    "rle size": (rle([10], (2, 5)), ValueError, [FIRST, "size [2, 5]", "[48, 64]"]),
    "rle counts": (rle([10, 20]), ValueError, [FIRST, "counts 30 pixels", str(48 * 64)]),
    "rle cut": (rle("T3b1Zk"), ValueError, [FIRST, "compressed RLE cannot be read"]),
    "rle of words": (rle(["a"]), ValueError, [f"{FIRST}, counts", "list of numbers"]),
    "rle below zero": (rle([-1, 48 * 64 + 1]), ValueError, [FIRST, "0 or more"]),
    "number for an object": (edited(lambda d: d["annotations"].append(5)), ValueError, [FILE, "annotations", "got 5"]),
    "rle without counts": (damaged(segmentation={"size": [48, 64]}), ValueError, [FIRST, "no 'counts'"]),
}


@pytest.mark.parametrize(("damage", "kind", "parts"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named_when_the_source_is_made(
    root: Path, damage: Callable[[Path], object], kind: type[Exception], parts: list[str]
):
    damage(root)
    with pytest.raises(kind) as error:
        COCO(root, "train")
    for part in parts:
        assert part in str(error.value)


BAD_POSES = {
    "too few": (damaged(keypoints=[1, 2, 2]), [FIRST, "3 numbers of keypoints", "4 joints"]),
    "visibility": (damaged(keypoints=[1, 2, 3] * 4), [FIRST, "0, 1 or 2", "[3.0]"]),
    "skeleton": (edited(lambda d: d["categories"][0].update(skeleton=[[0, 1]])), [FILE, "outside 1..4"]),
    "two sets": (
        edited(lambda d: d["categories"][1].update(keypoints=["beak"])),
        [FILE, "{'cat': 4, 'dog': 1}", "choose among them by classes"],
    ),
}


@pytest.mark.parametrize(("damage", "parts"), BAD_POSES.values(), ids=BAD_POSES.keys())
def test_bad_joints_are_named(posed: Path, damage: Callable[[Path], object], parts: list[str]):
    damage(posed)
    with pytest.raises(ValueError, match=r"\w") as error:
        COCO(posed, "train")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dog", "bird"], r"instances_train.json: unknown class 'bird', known are \['cat', 'dog'\]"),
        (["dog", "dog"], r"\['dog'\] more than once"),
        ([], "got no class name"),
    ],
)
def test_bad_classes(root: Path, classes: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        COCO(root, "train", classes=classes)


def test_a_picture_of_another_size_is_named(root: Path):
    write_picture(root / "train" / "train_000.jpg", np.zeros((30, 40, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train_000.jpg is 40x30 \(WxH\), but .*instances_train.json says 64x48;"):
        COCO(root, "train")[0]


@pytest.mark.parametrize(
    ("name", "split", "objects", "crowds"),
    [
        ("coco_mini", "train2017", 739, 8),
        ("coco_mini", "val2017", 624, 5),
        ("coco_tiny", "train2017", 705, 6),
        ("coco_tiny", "val2017", 800, 11),
    ],
)
def test_real_instances(shared: Path, name: str, split: str, objects: int, crowds: int):
    source = COCO(shared / "data" / name, split)
    truths = [sample.targets for sample in source]
    assert len(truths) == {"train2017": 80, "val2017": 79}[split]
    assert len(source.schema.classes) == 80
    assert source.schema.category_ids[-1] == 90
    assert sum(len(truth) for truth in truths) == objects
    assert sum(int(truth.ignore.sum()) for truth in truths) == crowds
    masks = [mask for truth in truths for mask in truth.masks or ()]
    assert all(masks)
    assert sum(isinstance(mask, dict) for mask in masks) == crowds


@pytest.mark.parametrize(("split", "people", "labelled"), [("train2017", 172, 86), ("val2017", 118, 68)])
def test_real_people(shared: Path, split: str, people: int, labelled: int):
    source = COCO(shared / "data" / "coco_mini", split, annotations=POSES)
    assert len(source.schema.joints) == 17
    assert source.schema.flip_pairs == tuple((i, i + 1) for i in range(1, 17, 2))
    poses = np.concatenate([sample.targets.keypoints for sample in source])
    assert poses.shape == (people, 17, 3)
    assert (poses[..., 2] > 0).any(1).sum() == labelled


def test_real_poses(shared: Path):
    counts = []
    for split in ("train", "val"):
        source = COCO(shared / "data" / "lspet_1200", split, images="images", annotations=POSES)
        counts.append(len(source))
        assert len(source.schema.joints) == 14
        assert source.schema.flip_pairs == ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9))
        assert source[0].targets.keypoints.shape == (1, 14, 3)
        assert source[0].targets.masks is None
    assert counts == [1000, 200]
