"""The embedded scenes: the same everywhere, and their truth agrees with itself."""

import cv2
import numpy as np
import pytest
import torch

from quadrat.data.shapes import FLIP_PAIRS, JOINTS, LIMBS, Scene, Shapes, cut_out
from quadrat.structures import IGNORE_INDEX, Batch, Sample

COUNT = 200


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes("train", count=COUNT)


@pytest.fixture(scope="module")
def scenes(shapes: Shapes) -> list[Sample]:
    return [shapes[i] for i in range(len(shapes))]


def plane(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The union of an object's polygons, each filled on its own as COCO does."""
    canvas = np.zeros(size, dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [polygon.astype(np.int32)], 1)
    return canvas.astype(bool)


def test_a_picture_depends_only_on_seed_split_and_index():
    first, again = Shapes("train", count=5), Shapes("train", count=9)
    in_order = [first[i] for i in range(5)]
    for i in reversed(range(5)):
        image, targets = again[i]
        assert np.array_equal(image, in_order[i].image)
        assert torch.equal(targets.boxes, in_order[i].targets.boxes)
        assert targets.captions == in_order[i].targets.captions


@pytest.mark.parametrize("other", [Shapes("val", count=1), Shapes("train", count=1, seed=1)], ids=["split", "seed"])
def test_another_split_or_seed_is_another_picture(shapes: Shapes, other: Shapes):
    assert not np.array_equal(shapes[0].image, other[0].image)


def test_pictures_are_rgb_of_the_promised_size():
    shapes = Shapes("train", count=3, size=(96, 200))
    image, targets = shapes[1]
    assert image.shape == (96, 200, 3)
    assert image.dtype == np.uint8
    assert shapes.size(1) == targets.size == (96, 200)
    assert len(list(shapes)) == 3


def test_boxes_are_tight_to_the_polygons(scenes: list[Sample]):
    for _, targets in scenes:
        for box, polygons in zip(targets.boxes.tolist(), targets.masks, strict=True):
            ys, xs = np.nonzero(plane(polygons, targets.size))
            assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_polygons_reproduce_the_masks(scenes: list[Sample]):
    for image_id, (_, targets) in enumerate(scenes):
        for label, area, polygons in zip(targets.labels.tolist(), targets.areas.tolist(), targets.masks, strict=True):
            filled = plane(polygons, targets.size)
            own = filled & (targets.semantic.numpy() == label)
            assert own.sum() >= 0.95 * filled.sum(), f"picture {image_id}"
            assert abs(filled.sum() - area) <= 0.05 * area, f"picture {image_id}"


def test_the_semantic_map_is_the_union_of_the_masks(scenes: list[Sample]):
    for _, targets in scenes:
        semantic = targets.semantic.numpy()
        painted = np.zeros(targets.size, dtype=np.uint8)
        for label, polygons in zip(targets.labels.tolist(), targets.masks, strict=True):
            painted[plane(polygons, targets.size)] = label
        known = semantic != IGNORE_INDEX
        assert np.mean(painted[known] == semantic[known]) > 0.999
        assert np.mean(~known) < 0.01


def test_every_class_occurs_and_labels_are_in_range(shapes: Shapes, scenes: list[Sample]):
    labels = torch.cat([targets.labels for _, targets in scenes])
    assert set(labels.tolist()) == set(range(1, len(shapes.schema.classes) + 1))


def test_only_figures_have_joints_and_they_lie_on_the_figure(shapes: Shapes, scenes: list[Sample]):
    person = shapes.schema.classes.index("person") + 1
    for _, targets in scenes:
        for label, keypoints in zip(targets.labels.tolist(), targets.keypoints.numpy(), strict=True):
            if label != person:
                assert not keypoints.any()
                continue
            assert set(keypoints[:, 2]) <= {1, 2}
            x, y = keypoints[keypoints[:, 2] == 2, :2].astype(int).T
            assert np.isin(targets.semantic.numpy()[y, x], (person, IGNORE_INDEX)).all()
            assert (keypoints[:, :2] >= 0).all()
            assert (keypoints[:, :2] < targets.size[::-1]).all()


def test_joints_are_those_of_leeds_sports(shapes: Shapes):
    assert shapes.schema.joints == JOINTS
    assert len(JOINTS) == 14
    for a, b in FLIP_PAIRS:
        assert JOINTS[a].replace("right", "left") == JOINTS[b].replace("right", "left")
    assert {joint for limb in LIMBS for joint in limb} == set(range(14))


def test_the_right_arm_is_darker_than_the_left():
    shapes = Shapes("train", count=20, kinds=("person",), objects=(1, 1), empty=0)
    for image, targets in shapes:
        middles = targets.keypoints[0, [7, 10], :2].long().tolist()  # right and left elbow
        right, left = (int(image[y, x].sum()) for x, y in middles)
        assert right < left


def test_captions_name_each_object(shapes: Shapes, scenes: list[Sample]):
    for _, targets in scenes:
        for label, caption in zip(targets.labels.tolist(), targets.captions, strict=True):
            assert shapes.schema.name(label) in caption.split()
            assert caption.split()[0] == ("an" if caption.split()[1][0] in "aeiou" else "a")


def test_some_pictures_are_empty(scenes: list[Sample]):
    empty = [targets for _, targets in scenes if len(targets) == 0]
    assert 0 < len(empty) < 0.1 * COUNT
    assert empty[0].boxes.shape == (0, 4)
    assert empty[0].keypoints.shape == (0, 14, 3)
    assert not empty[0].semantic.any()


def test_objects_are_small_and_large(scenes: list[Sample]):
    boxes = torch.cat([targets.boxes for _, targets in scenes])
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    assert sides.min() >= 12
    assert sides.min() < 20
    assert 80 < sides.max() <= 0.6 * 160 + 1


def test_objects_hide_each_other(scenes: list[Sample]):
    hidden = torch.cat([targets.keypoints[..., 2].flatten() for _, targets in scenes]) == 1
    split = [polygons for _, targets in scenes for polygons in targets.masks if len(polygons) > 1]
    assert hidden.any()
    assert split


def test_no_object_is_hidden_too_much():
    rng = np.random.default_rng(0)
    scene = Scene(np.zeros((96, 96, 3), dtype=np.uint8))
    pieces = [cut_out(rng, 1, "circle", "red", 96) for _ in range(40)]
    whole = []
    for piece in pieces:
        before = scene.owners.max()
        scene.place(piece, rng)
        if scene.owners.max() > before:
            whole.append(np.count_nonzero(piece.alpha >= 128))
    visible = np.bincount(scene.owners.ravel())[1:]
    assert len(whole) < len(pieces)
    assert (visible >= 0.4 * np.array(whole)).all()
    assert (visible < whole).any()


def test_a_hole_is_cut_out_of_the_polygon():
    rng = np.random.default_rng(0)
    scene = Scene(np.zeros((160, 160, 3), dtype=np.uint8))
    sizes = {"square": 90.0, "circle": 20.0}
    for label, (kind, side) in enumerate(sizes.items(), start=1):
        piece = cut_out(rng, label, kind, "red", 160)
        while abs(max(piece.alpha.shape) - side) > 8:
            piece = cut_out(rng, label, kind, "red", 160)
        scene._paint(piece, piece.alpha >= 128, 80 - piece.alpha.shape[1] // 2, 80 - piece.alpha.shape[0] // 2)
    targets = scene.targets(0, Shapes("train", count=1).schema)
    assert len(targets.masks[0]) == 1
    assert np.array_equal(plane(targets.masks[0], (160, 160)) & ~plane(targets.masks[1], (160, 160)), scene.owners == 1)
    assert plane(targets.masks[0], (160, 160)).sum() <= 1.05 * targets.areas[0]


def test_a_chosen_kind_and_number():
    shapes = Shapes("train", count=10, kinds=("star",), objects=(1, 1), empty=0)
    assert shapes.schema.classes == ("star",)
    assert all(len(targets) == 1 and "star" in targets.captions[0] for _, targets in shapes)


def test_pictures_make_a_batch(scenes: list[Sample]):
    assert Batch.collate(scenes[:4]).images.shape == (4, 3, 160, 160)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count=0"),
        ({"kinds": ("circle", "hexagon")}, "hexagon"),
        ({"kinds": ()}, "at least one class"),
        ({"size": (32, 160)}, "64x64"),
        ({"objects": (3, 2)}, r"\(3, 2\)"),
        ({"empty": 1.5}, "1.5"),
        ({"seed": -1}, "-1"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Shapes("train", **{"count": 1, **wrong})


@pytest.mark.parametrize("index", [-1, COUNT])
def test_an_index_outside_the_split(shapes: Shapes, index: int):
    with pytest.raises(IndexError, match=f"picture {index} of {COUNT}"):
        shapes[index]
