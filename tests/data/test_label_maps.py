"""Folders of label maps: indices not colours, every layout, every bad input by its message, counts, and the real data."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from makers import COLOURS, make_label_maps, write_map, write_picture
from quadrat.data.label_maps import LabelMaps, pixel_counts
from quadrat.data.shapes import Shapes
from quadrat.structures import IGNORE_INDEX, Sample, Schema, Targets

SIZE = (48, 64)
NAMES = ("cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_label_maps(tmp_path / "set")


def first_map(root: Path) -> Path:
    return root / "SegmentationClass" / "train_000.png"


def relabel(root: Path, labels: np.ndarray, *, mode: str = "L") -> None:
    write_map(first_map(root), labels, mode=mode)


def row(*values: int) -> np.ndarray:
    """A map of the pictures' size with these values at the beginning of its first row, 0 elsewhere."""
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[0, : len(values)] = values
    return labels


# What is read


@pytest.mark.parametrize("mode", ["P", "L"])
def test_round_trip(tmp_path: Path, mode: str):
    root = make_label_maps(tmp_path / "set", mode=mode)
    for split, count in (("train", 6), ("val", 3)):
        source = LabelMaps(root, split, classes=NAMES)
        assert len(source) == count == len(list(source))
        assert source.schema.pixel_classes == ("background", "cat", "dog")
        for i, (image, targets) in enumerate(source):
            assert image.shape == (*source.size(i), 3)
            assert (len(targets), targets.size, targets.image_id) == (0, SIZE, f"{split}_{i:03}")
            assert targets.semantic.dtype == torch.uint8
            assert set(targets.semantic.unique().tolist()) <= {0, 1, 2, IGNORE_INDEX}
            for label in set(targets.semantic.unique().tolist()) - {0, IGNORE_INDEX}:
                assert np.abs(image[targets.semantic.numpy() == label].mean(0) - COLOURS[label - 1]).max() < 10
        assert source[-1].targets.semantic.unique().tolist() == [0]  # a picture without objects
    assert 1 in LabelMaps(root, "train", classes=NAMES)[0].targets.semantic


def test_palette_is_not_grey(root: Path):
    """Colours of the palette look like other numbers in any other way of reading."""
    ours = LabelMaps(root, "train", classes=NAMES)[0].targets.semantic
    theirs = np.asarray(Image.open(first_map(root)))  # Pillow's own indices
    assert ours.tolist() == theirs.tolist()
    assert set(np.unique(Image.open(first_map(root)).convert("L"))).isdisjoint({0, 1, 2})


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_are_not_spread_over_eight(root: Path, bits: int):
    values = [1, 0, 1, 1] if bits == 1 else [1, 2, 3, 0]
    write_grey(first_map(root), row(*values), bits)
    assert LabelMaps(root, "train", classes=[*NAMES, "cow"]).semantic(0)[0, :5].tolist() == [*values, 0]


def write_grey(path: Path, labels: np.ndarray, bits: int) -> None:
    """A grey PNG of so few bits a pixel, which Pillow reads but does not write."""
    planes = np.unpackbits(labels[..., None], axis=2)[..., -bits:].reshape(len(labels), -1)
    rows = b"".join(b"\0" + line.tobytes() for line in np.packbits(planes, axis=1))
    head = struct.pack(">IIBBBBB", *labels.shape[::-1], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_values_become_classes(root: Path):
    """COCO-Stuff: numbers with gaps, and several that are void."""
    relabel(root, row(91, 7, 254, 40, 3))
    for other in (root / "SegmentationClass").glob("*_00[1-9].png"):
        write_map(other, row())
    source = LabelMaps(root, "train", classes=NAMES, values=[40, 7, 91], void=[0, 254, 3])
    assert source.semantic(0)[0, :6].tolist() == [2, 1, 255, 0, 255, 255]
    assert source.schema == Schema(NAMES, category_ids=(7, 91))


def test_background_may_be_listed_or_absent(root: Path):
    relabel(root, row(1, 2))
    (root / "classes.txt").write_text("nothing\ncat\ndog\n")
    listed = LabelMaps(root, "train", background="nothing")
    assert listed.schema.pixel_classes == ("nothing", "cat", "dog")
    absent = LabelMaps(root, "train", background=None)
    assert absent.schema.classes == absent.schema.pixel_classes == ("nothing", "cat", "dog")
    assert listed.semantic(0).equal(absent.semantic(0))


def test_a_name_whose_value_is_void_is_no_class(root: Path):
    (root / "classes.txt").write_text("sky\nroad\nunknown\n")
    relabel(root, row(0, 1, 2, 255))
    source = LabelMaps(root, "train", background=None, void=[2, 255])
    assert source.schema.pixel_classes == ("sky", "road")
    assert source.semantic(0)[0, :5].tolist() == [0, 1, 255, 255, 0]


def test_void_can_come_first(root: Path):
    (root / "classes.txt").write_text("unknown\ncat\ndog\n")
    source = LabelMaps(root, "train", background=None, void=[0, 255])
    assert source.schema.pixel_classes == NAMES
    assert set(source.semantic(0).unique().tolist()) <= {0, 1, 255}
    assert source.schema.category_ids == (1, 2)


def test_folders_without_lists(root: Path, tmp_path: Path):
    """COCO-Stuff's layout; a map without a picture does no harm."""
    for kind, folder in (("JPEGImages", "images"), ("SegmentationClass", "annotations")):
        (tmp_path / "coco" / folder).mkdir(parents=True)
        (root / kind).rename(tmp_path / "coco" / folder / "val2017")
    write_map(tmp_path / "coco" / "annotations" / "val2017" / "other.png", row())
    source = LabelMaps(
        tmp_path / "coco", "val2017", images="images/{split}", maps="annotations/{split}", lists=None, classes=NAMES
    )
    assert [sample.targets.image_id for sample in source][:2] == ["train_000", "train_001"]
    assert len(source) == 9


def make_sbd(root: Path) -> Path:
    """Two pictures with MATLAB files as SBD's: a struct with the boundaries, the classes and who is there."""
    for stem, values in (("2008_000001", (1, 2)), ("2008_000002", (2,))):
        write_picture(root / "img" / f"{stem}.jpg", np.zeros((*SIZE, 3), dtype=np.uint8))
        (root / "cls").mkdir(exist_ok=True)
        content = {"Boundaries": np.zeros((20, 1)), "Segmentation": row(*values), "CategoriesPresent": [1, 2]}
        savemat(root / "cls" / f"{stem}.mat", {"GTcls": content}, do_compression=True)
    (root / "train.txt").write_text("2008_000002\n2008_000001\n")
    return root


SBD = {"images": "img", "maps": "cls", "lists": "{split}.txt", "classes": NAMES}


def test_boundaries_data_set(tmp_path: Path):
    source = LabelMaps(make_sbd(tmp_path), "train", **SBD)
    assert source.semantic(1)[0, :3].tolist() == [1, 2, 0]
    assert [sample.targets.image_id for sample in source] == ["2008_000002", "2008_000001"]
    assert source[0].targets.semantic.sum() == 2


def no_struct(path: Path) -> None:
    savemat(path, {"GTinst": {"Segmentation": row()}})


def other_field(path: Path) -> None:
    savemat(path, {"GTcls": {"Boundaries": row()}})


def floats(path: Path) -> None:
    savemat(path, {"GTcls": {"Segmentation": row().astype(float)}})


def short_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (no_struct, r"got no GTcls.Segmentation \('GTcls'\)"),
        (other_field, "got no GTcls.Segmentation"),
        (floats, r"GTcls.Segmentation is float64 \(48, 64\), wanted uint8"),
        (short_file, "got no GTcls.Segmentation"),
    ],
)
def test_bad_matlab_files(tmp_path: Path, damage: Callable[[Path], None], part: str):
    damage(make_sbd(tmp_path) / "cls" / "2008_000001.mat")
    with pytest.raises(ValueError, match=rf"2008_000001.mat: {part}"):
        LabelMaps(tmp_path, "train", **SBD)


def test_size_follows_the_orientation(root: Path):
    turn(root / "JPEGImages" / "train_000.jpg")
    relabel(root, row().T.copy())
    source = LabelMaps(root, "train", classes=NAMES)
    assert source.size(0) == (64, 48) == source[0].image.shape[:2]


def turn(path: Path) -> None:
    """Give a JPEG the EXIF orientation 6: a quarter turn when shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


# What is wrong


def missing_root(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def no_maps(root: Path) -> None:
    (root / "SegmentationClass").rename(root / "SegmentationObject")


def missing_split(root: Path) -> None:
    (root / "ImageSets" / "Segmentation" / "train.txt").rename(root / "ImageSets" / "Segmentation" / "test.txt")


def empty_split(root: Path) -> None:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n\n")


def listed_twice(root: Path) -> None:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("train_000\ntrain_001\ntrain_000\n")


def missing_picture(root: Path) -> None:
    (root / "JPEGImages" / "train_002.jpg").unlink()


def picture_twice(root: Path) -> None:
    (root / "JPEGImages" / "train_002.png").touch()


def missing_map(root: Path) -> None:
    (root / "SegmentationClass" / "train_002.png").unlink()


def strange_value(root: Path) -> None:
    relabel(root, row(1, 7, 3))
    write_map(root / "SegmentationClass" / "train_003.png", row(9))


def colours(root: Path) -> None:
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(first_map(root))


def sixteen_bits(root: Path) -> None:
    assert cv2.imwrite(str(first_map(root)), row().astype(np.uint16))


def other_size(root: Path) -> None:
    relabel(root, np.zeros((30, 40), dtype=np.uint8))


def turned_picture(root: Path) -> None:
    turn(root / "JPEGImages" / "train_000.jpg")


def truncated_map(root: Path) -> None:
    first_map(root).write_bytes(first_map(root).read_bytes()[:60])


def text_for_a_map(root: Path) -> None:
    first_map(root).write_text("a map")


def text_for_a_picture(root: Path) -> None:
    (root / "JPEGImages" / "train_000.jpg").write_text("a picture")


BAD = [
    (missing_root, FileNotFoundError, ["no folder", "set", "data.source.root=<folder>"]),
    (no_maps, FileNotFoundError, ["no folder", "SegmentationClass", "argument maps"]),
    (missing_split, FileNotFoundError, ["no split 'train'", "['test', 'val']"]),
    (empty_split, ValueError, ["train.txt", "empty", "one picture name a line"]),
    (listed_twice, ValueError, ["train.txt", "'train_000' is listed twice"]),
    (missing_picture, FileNotFoundError, ["train.txt lists 'train_002'", ".jpg", "remove the line"]),
    (picture_twice, ValueError, ["train_002.jpg and train_002.png"]),
    (missing_map, FileNotFoundError, ["no label map", "train_002", ".png, .mat", "take the picture out"]),
    (
        strange_value,
        ValueError,
        [
            "train_000.png: the values [3, 7] are neither",
            "[3, 7, 9] in 2 of 6 maps",
            "0 background, 1 cat, 2 dog",
            "data.source.void=[255, 3, 7, 9]",
        ],
    ),
    (colours, ValueError, ["train_000.png", "colours (mode RGB)", "one channel of 8 bits", "PIL.Image.fromarray"]),
    (sixteen_bits, ValueError, ["train_000.png", "more than 8 bits", "PIL.Image.fromarray"]),
    (other_size, ValueError, ["train_000.png is 40x30 (WxH)", "train_000.jpg is 64x48", "nearest neighbour"]),
    (turned_picture, ValueError, ["train_000.png is 64x48", "train_000.jpg is 48x64", "EXIF orientation"]),
    (truncated_map, ValueError, ["cannot read the label map", "train_000.png", "export it again"]),
    (text_for_a_map, ValueError, ["cannot read the label map", "train_000.png"]),
    (text_for_a_picture, ValueError, ["cannot read the picture", "train_000.jpg"]),
]


@pytest.mark.parametrize(("damage", "kind", "parts"), BAD, ids=[case[0].__name__ for case in BAD])
def test_bad_input_is_named_when_the_source_is_made(
    root: Path, damage: Callable[[Path], None], kind: type[Exception], parts: list[str]
):
    damage(root)
    with pytest.raises(kind) as error:
        LabelMaps(root, "train", classes=NAMES)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("options", "kind", "part"),
    [
        ({}, FileNotFoundError, "no class file .*classes.txt"),
        ({"classes": []}, ValueError, "got no class name"),
        ({"classes": ["cat", "background"]}, ValueError, r"\['background'\] more than once"),
        ({"classes": NAMES, "values": [1, 2]}, ValueError, "got 2 values for 3 names"),
        ({"classes": NAMES, "values": [0, 1, 1]}, ValueError, r"different numbers 0..255, got \[0, 1, 1\]"),
        ({"classes": NAMES, "values": [0, 1, 256]}, ValueError, "different numbers 0..255"),
        ({"classes": NAMES, "void": -1}, ValueError, r"different numbers 0..255, got .* void \[-1\]"),
        ({"classes": NAMES, "void": 0}, ValueError, "the background 'background' is void too; .*background=null"),
        ({"classes": NAMES, "void": [0, 1, 2]}, ValueError, "classes of pixels besides void, got 0"),
        ({"classes": [f"c{i}" for i in range(255)], "void": []}, ValueError, "1..255 classes of pixels .* got 256"),
        ({"classes": NAMES, "lists": None, "images": "ImageSets"}, ValueError, "ImageSets: no picture"),
    ],
)
def test_bad_arguments(root: Path, options: dict, kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        LabelMaps(root, "train", **options)


# Counts


def test_pixel_counts_by_hand(root: Path):
    """Class 1 has 3 pixels of 1 picture, class 2 none, and void pixels count among those of a picture."""
    (root / "ImageSets" / "Segmentation" / "few.txt").write_text("train_000\ntrain_001\n")
    relabel(root, row(1, 1, 1, 255))
    write_map(root / "SegmentationClass" / "train_001.png", row(255))
    pixels, shared = pixel_counts(LabelMaps(root, "few", classes=NAMES))
    area = SIZE[0] * SIZE[1]
    assert pixels.tolist() == [2 * area - 5, 3, 0]
    assert shared.tolist() == [2 * area, area, 0]


def test_pixel_counts_of_pictures_drawn_on_demand():
    """Shapes has no maps apart from its pictures."""
    source = Shapes("train", count=3, size=(64, 64), empty=0)
    maps = torch.stack([sample.targets.semantic for sample in source])
    pixels, shared = pixel_counts(source)
    assert pixels.tolist() == [int((maps == value).sum()) for value in range(7)]
    assert shared.tolist() == [64 * 64 * int((maps == value).any(2).any(1).sum()) for value in range(7)]


class OnePicture:
    """A source of one picture of one class with this map."""

    schema = Schema(("cat",))

    def __init__(self, semantic: torch.Tensor | None) -> None:
        self.sample = Sample(np.zeros((2, 2, 3), np.uint8), Targets.make([], [], (2, 2), "this", semantic=semantic))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample

    def size(self, index: int) -> tuple[int, int]:
        return 2, 2


def test_pixel_counts_of_a_picture_without_a_map():
    with pytest.raises(ValueError, match="image this: no semantic map"):
        pixel_counts(OnePicture(None))


def test_pixel_counts_of_a_value_beyond_the_classes():
    with pytest.raises(ValueError, match=r"picture 0: its semantic map holds 2, wanted a class 0..1"):
        pixel_counts(OnePicture(torch.tensor([[0, 1], [2, 255]], dtype=torch.uint8)))


# The real data


CAMVID_PIXELS = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967]
CAMVID_FILES = [366, 365, 366, 367, 349, 319, 351, 173, 360, 317, 201]
"""As others counted SegNet's training pictures (alexgkendall/caffe-segnet, issue 37)."""

CAMVID_WEIGHTS = [0.256527308, 0.185282667, 4.396287575, 0.136869322, 0.918473131, 0.387319864]
CAMVID_WEIGHTS += [3.533074291, 1.812685267, 0.724619798, 5.855012981, 8.136508447]
"""From the same place: median frequency balancing, with the void as a twelfth class in the median."""

RELEASED = [0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614]
"""The weights in SegNet's released files; nobody has reproduced the seventh, of the signs."""


def test_camvid(shared: Path):
    """Counts of others are ours to the pixel, their weights to eight digits but for the factor that the void makes."""
    folder = shared / "data" / "camvid"
    sources = [LabelMaps(folder, split, background=None, void=11) for split in ("train", "val", "test")]
    assert [len(source) for source in sources] == [367, 101, 233]
    assert sources[0].schema.pixel_classes[:3] == ("Sky", "Building", "Pole")
    assert len(sources[0].schema.pixel_classes) == 11
    pixels, pictures = pixel_counts(sources[0])
    assert pixels.tolist() == CAMVID_PIXELS
    assert pictures.tolist() == [files * 360 * 480 for files in CAMVID_FILES]
    frequency = pixels.double() / pictures
    weights = frequency.median() / frequency
    assert weights[4] == 1  # the median of eleven is one of them
    torch.testing.assert_close(weights * CAMVID_WEIGHTS[4], torch.tensor(CAMVID_WEIGHTS).double(), rtol=1e-6, atol=0)
    ratio = torch.tensor(RELEASED).double() / weights / RELEASED[4]
    signs = sources[0].schema.classes.index("SignSymbol")
    assert all(abs(value - 1) < 0.12 for i, value in enumerate(ratio.tolist()) if i != signs)
    assert ratio[signs] > 2.5


def test_camvid_sample(shared: Path):
    image, targets = LabelMaps(shared / "data" / "camvid", "val", background=None, void=11)[0]
    assert image.shape == (360, 480, 3)
    stored = np.asarray(Image.open(shared / "data" / "camvid" / "SegmentationClass" / f"{targets.image_id}.png"))
    assert np.array_equal(targets.semantic.numpy() == IGNORE_INDEX, stored == 11)
    assert np.array_equal(targets.semantic.numpy()[stored < 11], stored[stored < 11])
