"""Leeds Sports folders: both layouts of joints.mat, splits, boxes, every bad input by its message, and the real data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from makers import FIGURE, make_lsp, write_picture
from quadrat.data.augment import Augment
from quadrat.data.coco import COCO, flip_pairs
from quadrat.data.lsp import FLIP_PAIRS, JOINTS, LSP

SIZE = (48, 64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_lsp(tmp_path / "set")


def with_joints(root: Path, joints: np.ndarray, **more: Any) -> Path:
    savemat(root / "joints.mat", {"joints": joints, **more})
    return root


def one(tmp_path: Path, *labelled: tuple[float, float]) -> LSP:
    """A picture of 64 x 48 with these joints, as MATLAB counts them; the other joints are unlabelled."""
    write_picture(tmp_path / "images" / "im00001.jpg", np.zeros((*SIZE, 3), np.uint8))
    joints = np.zeros((14, 3, 1))
    for number, (x, y) in enumerate(labelled):
        joints[number, :, 0] = x, y, 1
    return LSP(with_joints(tmp_path, joints), "train")


def test_no_labelled_joint_is_no_person(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    targets = one(tmp_path).truth(0)
    assert (len(targets), tuple(targets.keypoints.shape)) == (0, (0, 14, 3))
    assert "train: 1 persons with fewer than 2 joints left out" in caplog.text


def test_one_labelled_joint_has_no_extent(tmp_path: Path):
    assert len(one(tmp_path, (10, 10)).truth(0)) == 0


def test_matlab_counts_pixels_from_one(tmp_path: Path):
    """Pixel (11, 21) of MATLAB is the one whose middle is (10.5, 20.5); the box is a tenth of 20 larger on each side."""
    targets = one(tmp_path, (11, 21), (31, 31)).truth(0)
    assert targets.keypoints[0, :3].tolist() == [[10.5, 20.5, 2], [30.5, 30.5, 2], [0, 0, 0]]
    assert targets.boxes.tolist() == [[8.5, 18.5, 32.5, 32.5]]
    assert (targets.labels.tolist(), targets.size, targets.image_id) == ([1], SIZE, "im00001")


def test_a_box_ends_where_its_picture_does(tmp_path: Path):
    assert one(tmp_path, (1, 21), (61, 21)).truth(0).boxes.tolist() == [[0, 14.5, 64, 26.5]]


def test_a_joint_outside_is_unlabelled_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    targets = one(tmp_path, (11, 21), (31, 31), (65, 5), (5, -3), (64.5, 48.5)).truth(0)
    assert targets.keypoints[0, :, 2].tolist() == [2, 2, 0, 0, 2, *[0] * 9]
    assert targets.keypoints[0, 2].tolist() == [0, 0, 0]
    assert "train: 2 joints outside their pictures count as unlabelled; the first is in" in caplog.text
    assert "im00001.jpg" in caplog.text


@pytest.mark.parametrize(("extended", "last"), [(True, 0), (False, 1)])
def test_round_trip(tmp_path: Path, extended: bool, last: int):
    source = LSP(make_lsp(tmp_path / "set", extended=extended), "train")
    assert (len(source), source.schema.classes, source.schema.joints) == (6, ("person",), JOINTS)
    for index, (image, targets) in enumerate(source):
        assert image.shape == (*source.size(index), 3)
        assert targets.keypoints[0, :, 2].tolist() == [*[2] * 13, last]
        ys, xs = np.nonzero(image[..., 0] > 150)
        corner, side = np.array([xs.min(), ys.min()]), np.array([np.ptp(xs), np.ptp(ys)]) + 1
        expected = corner + FIGURE * side
        assert np.abs(targets.keypoints[0, :13, :2].numpy() - expected[:13]).max() < 2
        assert targets.image_id == f"im{index + 1:0{5 if extended else 4}}"


def test_editing_a_sample_leaves_the_source_alone(root: Path):
    source = LSP(root, "train")
    before = source.truth(0)
    source.truth(0).keypoints.zero_()
    source.truth(0).boxes.zero_()
    assert source.truth(0).keypoints.equal(before.keypoints)
    assert source.truth(0).boxes.equal(before.boxes)


# --- splits ---


def test_splits_from_lists(root: Path):
    (root / "some.txt").write_text("im00007\nim00002\n")
    some, every = LSP(root, "some"), LSP(root, "train")
    assert [some.truth(i).image_id for i in range(2)] == ["im00007", "im00002"]
    assert some.truth(1).keypoints.equal(every.truth(1).keypoints)


def test_splits_by_place(tmp_path: Path):
    root = make_lsp(tmp_path / "set", splits={"all": 5}, lists=False)
    assert len(LSP(root, "train")) == 5  # the extended set is all for training
    parts = {"train": [0, 3], "val": [3, None]}
    assert [LSP(root, "val", parts=parts).truth(i).image_id for i in range(2)] == ["im00004", "im00005"]
    assert len(LSP(root, "train", parts=parts)) == 3


def test_the_papers_split_of_lsp(tmp_path: Path):
    write_picture(tmp_path / "images" / "im0001.jpg", np.zeros((*SIZE, 3), np.uint8))
    for number in range(2, 2001):
        (tmp_path / "images" / f"im{number:04}.jpg").hardlink_to(tmp_path / "images" / "im0001.jpg")
    joints = np.ones((3, 14, 2000))
    joints[0] += np.arange(14)[:, None]
    with_joints(tmp_path, joints)
    for split, first, last in (("train", "im0001", "im1000"), ("test", "im1001", "im2000")):
        source = LSP(tmp_path, split)
        assert (len(source), source.truth(0).image_id, source.truth(999).image_id) == (1000, first, last)


def test_image_ids_name_the_pictures(root: Path):
    joints = loadmat(root / "joints.mat")["joints"]
    before = LSP(root, "train").truth(0)
    with_joints(root, joints[:, :, ::-1], image_ids=np.arange(9, 0, -1)[None])
    assert LSP(root, "train").truth(0).keypoints.equal(before.keypoints)


# --- mirrors ---


def test_flip_pairs_follow_the_names():
    assert sorted(FLIP_PAIRS) == sorted(flip_pairs(JOINTS))


def test_a_mirror_swaps_left_and_right_once(root: Path):
    """The person faces the viewer, so that the mirrored one has its right hand at the left of the picture as before."""
    sample = LSP(root, "train")[0]
    mirrored = Augment([A.HorizontalFlip(p=1)], flip_pairs=FLIP_PAIRS)(sample, 0).targets.keypoints[0].tolist()
    before = sample.targets.keypoints[0].tolist()
    right, left = JOINTS.index("right wrist"), JOINTS.index("left wrist")
    neck = JOINTS.index("neck")
    for joint, was in ((right, left), (left, right), (neck, neck)):
        assert mirrored[joint] == pytest.approx([64 - before[was][0], before[was][1], 2], abs=1e-4)


# --- bad input ---


@pytest.mark.parametrize("shape", [(14, 2, 4), (2000, 14, 3), (14, 3), (14, 3, 0)])
def test_joints_of_a_wrong_shape(root: Path, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"joints.mat: got joints of shape .*, wanted \(3, 14, N\) as in LSP or"):
        LSP(with_joints(root, np.zeros(shape)), "train")


def test_a_file_that_is_no_matlab(root: Path):
    (root / "joints.mat").write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(ValueError, match=r"joints.mat: not a MATLAB file that can be read .*; download it again"):
        LSP(root, "train")


def test_no_joints(root: Path):
    (root / "joints.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"no joints .*joints.mat: wanted joints.mat of LSP"):
        LSP(root, "train")


def test_a_joint_that_is_no_number(root: Path):
    joints = loadmat(root / "joints.mat")["joints"]
    joints[1, 0, 2] = np.nan
    with pytest.raises(ValueError, match=r"joints.mat: person 3, right knee: got \[nan, .*, wanted x and y"):
        LSP(with_joints(root, joints), "train")


def test_image_ids_of_another_number(root: Path):
    joints = loadmat(root / "joints.mat")["joints"]
    with pytest.raises(ValueError, match="got 2 different image_ids for 9 persons, wanted one for each"):
        LSP(with_joints(root, joints, image_ids=[1, 2]), "train")


def test_a_picture_is_missing(tmp_path: Path):
    root = make_lsp(tmp_path / "set", lists=False)
    (root / "images" / "im00004.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"joints of picture 4, but .*images has no .*im00004.jpg \(1 of 9"):
        LSP(root, "train")


def test_a_listed_picture_has_no_joints(root: Path):
    write_picture(root / "images" / "im00099.jpg", np.zeros((*SIZE, 3), np.uint8))
    (root / "val.txt").write_text("im00099\n")
    with pytest.raises(ValueError, match=r"val.txt lists 'im00099', but joints.mat has no joints of that number"):
        LSP(root, "val")


def test_an_unknown_split(tmp_path: Path):
    root = make_lsp(tmp_path / "set", lists=False)
    with pytest.raises(ValueError, match=r"no split 'val': there is no .*val.txt and the parts of joints.mat are"):
        LSP(root, "val")


def test_a_split_past_the_end(tmp_path: Path):
    root = make_lsp(tmp_path / "set", lists=False, extended=False)
    with pytest.raises(
        ValueError, match="has the joints of 9 persons, so that the split 'test' cannot go from 1000 to"
    ):
        LSP(root, "test")


# --- real data ---


def test_real_joints_equal_the_keypoints_made_of_them(shared: Path, caplog: pytest.LogCaptureFixture):
    """The JSON has MATLAB's numbers rounded to hundredths, and COCO adds half a pixel where we take one away."""
    caplog.set_level(logging.WARNING)
    root = shared / "data" / "lspet_1200"
    for split, count, outside in (("train", 1000, "train: 1 joints outside"), ("val", 200, "")):
        source = LSP(root, split)
        told = COCO(root, split, images="images", annotations="annotations/person_keypoints_{split}.json")
        assert len(source) == count == len(told)
        assert outside in caplog.text
        for index in range(count):
            ours, theirs = source.truth(index), told.truth(index)
            assert ours.size == theirs.size
            assert ours.keypoints[..., 2].equal(theirs.keypoints[..., 2])
            labelled = ours.keypoints[..., 2] > 0
            shift = (theirs.keypoints - ours.keypoints)[labelled][:, :2]
            assert (shift - 1).abs().max() < 0.0051
            assert (ours.boxes - theirs.boxes).abs().max() < 0.52
    image, targets = source[3]
    assert image.shape[:2] == targets.size
