"""Pascal folders: boxes, class names, every bad input by its message, and the real data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from makers import COLOURS, make_voc, voc_xml, write_picture
from quadrat.data.voc import VOC

SIZE = (48, 64)


def obj(name: str, xmin: object, ymin: object, xmax: object, ymax: object, **more: object) -> dict[str, object]:
    return {"name": name, "xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax, **more}


def rewrite(
    root: Path, *objects: dict[str, object], size: tuple[int, int] | None = SIZE, stem: str = "train_000"
) -> None:
    (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(size, objects))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "set")


def test_boxes_lose_one_pixel_at_the_low_corner_only(root: Path):
    rewrite(root, obj("dog", 1, 1, 64, 48), obj("cat", 11, 6, 30.5, 20, difficult=1))
    targets = VOC(root, "train")[0].targets
    assert targets.boxes.tolist() == [[0, 0, 64, 48], [10, 5, 30.5, 20]]
    assert targets.labels.tolist() == [2, 1]
    assert targets.ignore.tolist() == [False, True]
    assert (targets.size, targets.image_id) == (SIZE, "train_000")


def test_body_parts_are_not_objects(root: Path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    path = root / "Annotations" / "train_000.xml"
    path.write_text(path.read_text().replace("</object>", f"{part}</object>"))
    source = VOC(root, "train")
    assert source.schema.classes == ("cat", "dog")
    assert len(source[0].targets) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
def test_round_trip(tmp_path: Path, suffix: str):
    root = make_voc(tmp_path / "set", suffix=suffix)
    for split, count in (("train", 6), ("val", 3)):
        source = VOC(root, split)
        assert len(source) == count == len(list(source))
        assert source.schema.classes == ("cat", "dog")
        for i, (image, targets) in enumerate(source):
            assert image.shape == (*source.size(i), 3)
            for (x1, y1, x2, y2), label in zip(targets.boxes.int().tolist(), targets.labels.tolist(), strict=True):
                assert np.abs(image[y1:y2, x1:x2].mean((0, 1)) - COLOURS[label - 1]).max() < 20
        assert len(source[-1].targets) == 0
        assert source[-1].targets.boxes.shape == (0, 4)


def test_editing_a_sample_leaves_the_source_alone(root: Path):
    source = VOC(root, "train")
    before = source[0].targets.boxes.clone()
    source[0].targets.boxes.zero_()
    assert source[0].targets.boxes.equal(before)


def test_class_names_from_a_list_a_file_the_root_or_the_folder(root: Path, tmp_path: Path):
    rewrite(root, obj("zebra", 1, 1, 9, 9), stem="val_000")
    assert VOC(root, "train").schema.classes == ("cat", "dog", "zebra")  # of all splits, so that train and val agree
    assert VOC(root, "train", classes=["dog", "cat"])[0].targets.labels.tolist() == [2]
    file = tmp_path / "names.txt"
    file.write_text("dog\n\ncat\nzebra\n")
    assert VOC(root, "val", classes=file).schema.classes == ("dog", "cat", "zebra")
    assert VOC(root, "val", classes=str(file)).schema.classes == ("dog", "cat", "zebra")
    (root / "classes.txt").write_text("zebra\ndog\ncat\n")
    assert VOC(root, "val").schema.classes == ("zebra", "dog", "cat")


def test_a_split_file_may_have_a_second_column(root: Path):
    write_picture(root / "JPEGImages" / "picture 1.png", np.zeros((*SIZE, 3), dtype=np.uint8))
    rewrite(root, stem="picture 1")
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("train_000 -1\ntrain_001  1\n\npicture 1\n")
    assert [sample.targets.image_id for sample in VOC(root, "cat_train")] == ["train_000", "train_001", "picture 1"]


@pytest.mark.parametrize("size", [None, (0, 0)])
def test_a_missing_size_comes_from_the_picture(root: Path, size: tuple[int, int] | None):
    rewrite(root, obj("cat", 1, 1, 64, 48), obj("dog", 1, 1, 9, 9), size=size)
    assert VOC(root, "train").size(0) == SIZE


@pytest.mark.parametrize(
    ("corners", "expected"),
    [((0, 0, 64, 48), [0, 0, 64, 48]), ((5, 5, 65, 49), [4, 4, 64, 48]), ((5, 5, 64.6, 9), [4, 4, 64, 9])],
)
def test_one_pixel_outside_is_clipped_silently(root: Path, caplog: pytest.LogCaptureFixture, corners, expected):
    rewrite(root, obj("cat", *corners))
    assert VOC(root, "train")[0].targets.boxes.tolist() == [expected]
    assert not caplog.records


def test_bad_boxes_can_be_dropped(root: Path, caplog: pytest.LogCaptureFixture):
    rewrite(
        root,
        obj("cat", 5, 5, 5, 9),
        obj("dog", 11, 11, 80, 20, difficult=1),
        obj("cat", 70, 5, 80, 9),
        obj("cat", 1, 1, 9, 9),
        obj("cat", "nan", 1, 9, 9),
    )
    with caplog.at_level(logging.WARNING):
        targets = VOC(root, "train", on_bad_box="drop")[0].targets
    assert targets.boxes.tolist() == [[10, 10, 64, 20], [0, 0, 9, 9]]
    assert targets.labels.tolist() == [2, 1]
    assert targets.ignore.tolist() == [True, False]
    (record,) = caplog.records
    for part in ("train: 1 bad boxes clipped", "3 dropped", "train_000.xml, object 1"):
        assert part in record.getMessage()


def missing_root(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def no_annotations(root: Path) -> None:
    (root / "Annotations").rename(root / "labels")


def empty_split(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n\n")


def missing_split(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").rename(root / "ImageSets" / "Main" / "test.txt")


def listed_twice(root: Path) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text("train_000\ntrain_001\ntrain_000 1\n")


def missing_picture(root: Path) -> None:
    (root / "JPEGImages" / "train_002.jpg").unlink()


def picture_twice(root: Path) -> None:
    (root / "JPEGImages" / "train_002.png").touch()


def missing_xml(root: Path) -> None:
    (root / "Annotations" / "train_002.xml").unlink()


def broken_xml(root: Path) -> None:
    (root / "Annotations" / "train_000.xml").write_text("<annotation>\n<object></annotation>")


def empty_xml(root: Path) -> None:
    (root / "Annotations" / "train_000.xml").write_text("")


def other_xml(root: Path) -> None:
    (root / "Annotations" / "train_000.xml").write_text("<html/>")


def no_name(root: Path) -> None:
    rewrite(root, obj("", 1, 1, 9, 9))


def word_for_number(root: Path) -> None:
    rewrite(root, obj("cat", 1, 1, 9, 9), obj("cat", 1, "top", 9, 9))


def no_box(root: Path) -> None:
    (root / "Annotations" / "train_000.xml").write_text("<annotation><object><name>cat</name></object></annotation>")


def unknown_class(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\n")
    rewrite(root, obj("cat", 1, 1, 9, 9), obj("bird", 1, 1, 9, 9))


def repeated_class(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\ncat\n")


def empty_classes(root: Path) -> None:
    (root / "classes.txt").write_text("\n")


def latin_classes(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"caf\xe9\n")


def no_object(root: Path) -> None:
    for path in (root / "Annotations").iterdir():
        path.write_text("<annotation/>")


def outside(root: Path) -> None:
    rewrite(root, obj("cat", 1, 1, 9, 9), obj("cat", 10, 10, 66, 20))


def negative(root: Path) -> None:
    rewrite(root, obj("cat", -1, 1, 9, 9))


def turned_round(root: Path) -> None:
    rewrite(root, obj("cat", 20, 1, 9, 9))


def one_column(root: Path) -> None:
    rewrite(root, obj("cat", 20, 1, 20, 9))


BAD = [
    (missing_root, FileNotFoundError, ["no folder", "set", "JPEGImages, Annotations and ImageSets/Main"]),
    (no_annotations, FileNotFoundError, ["no folder", "Annotations"]),
    (empty_split, ValueError, ["train.txt", "empty", "one picture name a line"]),
    (missing_split, FileNotFoundError, ["no split 'train'", "['test', 'val']"]),
    (listed_twice, ValueError, ["train.txt", "'train_000' is listed twice"]),
    (
        missing_picture,
        FileNotFoundError,
        ["train.txt lists 'train_002'", "JPEGImages has no", ".jpg", "remove the line"],
    ),
    (picture_twice, ValueError, ["train_002.jpg and train_002.png"]),
    (missing_xml, FileNotFoundError, ["no annotation", "train_002.xml", "empty picture"]),
    (broken_xml, ValueError, ["train_000.xml, line 2, column 10", "not well-formed XML"]),
    (empty_xml, ValueError, ["train_000.xml, line 1", "no element found"]),
    (other_xml, ValueError, ["train_000.xml", "<html>", "<annotation>"]),
    (no_name, ValueError, ["train_000.xml, object 1", "<name>"]),
    (word_for_number, ValueError, ["train_000.xml, object 2, <ymin>", "'top'", "a number"]),
    (no_box, ValueError, ["train_000.xml, object 1, <xmin>", "None"]),
    (unknown_class, ValueError, ["train_000.xml, object 2", "'bird'", "['cat', 'dog']", "add the name to classes"]),
    (repeated_class, ValueError, ["classes.txt", "['cat'] more than once"]),
    (empty_classes, ValueError, ["classes.txt", "got no class name"]),
    (latin_classes, ValueError, ["classes.txt", "not UTF-8 text (byte 3)"]),
    (no_object, ValueError, ["Annotations", "no class name; pass classes"]),
    (outside, ValueError, ["train_000.xml, object 2", "xmax 66", "outside", "64x48 (WxH)", "on_bad_box=drop"]),
    (negative, ValueError, ["train_000.xml, object 1", "xmin -1", "outside"]),
    (turned_round, ValueError, ["train_000.xml, object 1", "xmin 20", "xmax 9", "degenerate"]),
    (one_column, ValueError, ["train_000.xml, object 1", "xmin 20", "xmax 20", "degenerate"]),
]


@pytest.mark.parametrize(("damage", "kind", "parts"), BAD, ids=[row[0].__name__ for row in BAD])
def test_bad_input_is_named_when_the_source_is_made(
    root: Path, damage: Callable[[Path], None], kind: type[Exception], parts: list[str]
):
    damage(root)
    with pytest.raises(kind) as error:
        VOC(root, "train")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "part"),
    [
        ({"classes": []}, ValueError, "got no class name"),
        ({"classes": "names.txt"}, FileNotFoundError, "no class file names.txt"),
        ({"on_bad_box": "ignore"}, ValueError, "'error' or 'drop', got 'ignore'"),
    ],
)
def test_bad_arguments(root: Path, options: dict, kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        VOC(root, "train", **options)


def test_a_picture_of_another_size_is_named(root: Path):
    write_picture(root / "JPEGImages" / "train_000.jpg", np.zeros((30, 40, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train_000.jpg is 40x30 \(WxH\), but .*train_000.xml says 64x48;"):
        VOC(root, "train")[0]


def test_a_picture_turned_by_exif_is_named(root: Path):
    turn(root / "JPEGImages" / "train_000.jpg")
    with pytest.raises(ValueError, match=r"is 48x64 \(WxH\), but .* says 64x48: its EXIF orientation turns it"):
        VOC(root, "train")[0]


def turn(path: Path) -> None:
    """Give a JPEG the EXIF orientation 6: a quarter turn when shown."""
    jpeg = path.read_bytes()
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:])
    assert cv2.imread(str(path)).shape[:2] == SIZE[::-1]


def test_a_truncated_picture_is_named(root: Path):
    path = root / "JPEGImages" / "train_000.jpg"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"cannot decode the picture .*train_000.jpg"):
        VOC(root, "train")[0]


def test_raccoons(shared: Path):
    sources = [VOC(shared / "data" / "voc_raccoon", split) for split in ("train", "val")]
    assert [len(source) for source in sources] == [160, 40]
    samples = [sample for source in sources for sample in source]  # every picture decodes, at the annotated size
    assert sum(len(sample.targets) for sample in samples) == 217
    assert all(source.schema.classes == ("raccoon",) for source in sources)


def test_blood_cells_have_two_degenerate_boxes(shared: Path):
    for split, place in (("train", "BloodImage_00343.xml, object 4"), ("val", "BloodImage_00338.xml, object 13")):
        with pytest.raises(ValueError, match=place):
            VOC(shared / "data" / "voc_bccd", split)
    sources = [VOC(shared / "data" / "voc_bccd", split, on_bad_box="drop") for split in ("train", "val", "test")]
    assert [len(source) for source in sources] == [205, 87, 72]
    labels = np.concatenate([source._objects.labels for source in sources])
    assert sources[0].schema.classes == ("Platelets", "RBC", "WBC")
    assert len(labels) == 4888 - 2
