"""Picture and truth change together: every object is a row, and its fields stay in step."""

import dataclasses

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from torchvision.models.detection.transform import _resize_image_and_masks

from quadrat.configs import build, compose
from quadrat.data.augment import Augment, ElasticGrid, ResizeShortEdge
from quadrat.data.shapes import FLIP_PAIRS, Shapes
from quadrat.structures import IGNORE_INDEX, Sample, Targets

SIZE = (96, 128)
MIRROR, UPSIDE_DOWN = A.HorizontalFlip(p=1), A.VerticalFlip(p=1)


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    """Ten pictures with objects."""
    return list(Shapes("train", count=10, size=SIZE, empty=0, objects=(2, 6)))


def apply(sample: Sample, *transforms: A.BasicTransform, seed: int = 0, **options) -> Sample:
    return Augment(transforms, **options)(sample, seed)


def picture(boxes: list, size: tuple[int, int] = (40, 60), **fields) -> Sample:
    """A picture in which every pixel differs from the others, with these boxes of classes 1, 2, ..."""
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3)
    image = ((image * 2654435761) >> 16).astype(np.uint8)
    return Sample(image, Targets.make(boxes, range(1, len(boxes) + 1), size, "street", **fields))


def extents(polygons: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The box of an outline as far as it is in the picture."""
    points = np.concatenate(polygons).clip(0, size[::-1])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


# What is the same for every list of transforms

LISTS = {
    "mirror": [MIRROR],
    "upside down": [UPSIDE_DOWN],
    "crop": [A.Crop(20, 10, 110, 80, p=1)],
    "crop at random": [A.RandomCrop(64, 80, p=1)],
    "smaller": [ResizeShortEdge(60, 200)],
    "larger": [ResizeShortEdge(150, 300)],
    "stretched": [A.Resize(140, 100, p=1)],
    "pad": [A.PadIfNeeded(128, 160, p=1)],
    "quarter turn": [A.Transpose(p=1)],
    "elastic": [ElasticGrid(std=3)],
    "many": [A.RandomCrop(70, 90, p=1), MIRROR, ResizeShortEdge([60, 90], 200), A.RandomBrightnessContrast(p=1)],
}


@pytest.mark.parametrize("name", LISTS)
def test_every_field_keeps_its_rows(name: str, scenes: list[Sample]):
    for seed, scene in enumerate(scenes):
        image, targets = apply(scene, *LISTS[name], seed=seed)
        rows = [scene.targets.captions.index(caption) for caption in targets.captions]  # captions of a scene differ
        assert targets.labels.tolist() == scene.targets.labels[rows].tolist()
        assert len(targets.areas) == len(targets.masks) == len(targets.keypoints) == len(rows)
        assert image.shape == (*targets.size, 3)
        assert image.dtype == np.uint8
        assert targets.semantic.shape == targets.size
        assert targets.image_id == scene.targets.image_id


@pytest.mark.parametrize(
    "name", [name for name in LISTS if name != "elastic"]
)  # the box around a bent box is not tight
def test_outlines_stay_on_their_boxes(name: str, scenes: list[Sample]):
    for seed, scene in enumerate(scenes):
        targets = apply(scene, *LISTS[name], seed=seed).targets
        for box, polygons in zip(targets.boxes.numpy(), targets.masks, strict=True):
            assert np.abs(extents(polygons, targets.size) - box).max() <= 1


@pytest.mark.parametrize("name", ["mirror", "upside down", "quarter turn", "larger", "crop"])
def test_joints_stay_inside_their_objects(name: str, scenes: list[Sample]):
    seen = 0
    for scene in scenes:
        targets = apply(scene, *LISTS[name], flip_pairs=FLIP_PAIRS).targets
        for box, joints in zip(targets.boxes, targets.keypoints, strict=True):
            x, y = joints[joints[:, 2] == 2, :2].T
            inside = (x >= box[0] - 1) & (x <= box[2] + 1) & (y >= box[1] - 1) & (y <= box[3] + 1)
            height, width = targets.size
            in_picture = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
            assert inside[in_picture].all()
            seen += int(in_picture.sum())
    assert seen > 20


@pytest.mark.parametrize("name", LISTS)
def test_the_same_seed_gives_the_same_result(name: str, scenes: list[Sample]):
    augment = Augment(LISTS[name])
    first = augment(scenes[0], 7)
    augment(scenes[1], 8)
    again = augment(scenes[0], 7)
    assert np.array_equal(first.image, again.image)
    assert torch.equal(first.targets.boxes, again.targets.boxes)
    assert torch.equal(first.targets.keypoints, again.targets.keypoints)
    assert torch.equal(first.targets.semantic, again.targets.semantic)


@pytest.mark.parametrize("name", LISTS)
def test_a_picture_without_objects(name: str):
    empty = Shapes("train", count=1, size=SIZE, empty=1)[0]
    image, targets = apply(empty, *LISTS[name], flip_pairs=FLIP_PAIRS)
    assert len(targets) == 0
    assert targets.boxes.shape == (0, 4)
    assert targets.keypoints.shape == (0, 14, 3)
    assert (targets.masks, targets.captions) == ((), ())
    assert image.shape == (*targets.size, 3)


def test_no_transforms_change_nothing(scenes: list[Sample]):
    assert apply(scenes[0]) is scenes[0]


def test_colour_changes_leave_the_truth_alone(scenes: list[Sample]):
    image, targets = apply(scenes[0], A.RandomBrightnessContrast(brightness_limit=(0.2, 0.3), p=1))
    assert not np.array_equal(image, scenes[0].image)
    torch.testing.assert_close(targets.boxes, scenes[0].targets.boxes)
    torch.testing.assert_close(targets.keypoints, scenes[0].targets.keypoints)
    assert torch.equal(targets.semantic, scenes[0].targets.semantic)


def test_the_sample_given_is_not_changed(scenes: list[Sample]):
    image, boxes = scenes[0].image.copy(), scenes[0].targets.boxes.clone()
    joints, outline = scenes[0].targets.keypoints.clone(), scenes[0].targets.masks[0][0].copy()
    apply(scenes[0], *LISTS["many"], flip_pairs=FLIP_PAIRS)
    assert np.array_equal(scenes[0].image, image)
    assert torch.equal(scenes[0].targets.boxes, boxes)
    assert torch.equal(scenes[0].targets.keypoints, joints)
    assert np.array_equal(scenes[0].targets.masks[0][0], outline)


# Flips


@pytest.mark.parametrize(("flip", "axis"), [(MIRROR, 1), (UPSIDE_DOWN, 0)], ids=["mirror", "upside down"])
def test_flips_move_everything(flip: A.BasicTransform, axis: int, scenes: list[Sample]):
    length = SIZE[axis]
    low, high = (0, 2) if axis == 1 else (1, 3)
    for scene in scenes:
        image, targets = apply(scene, flip)
        assert np.array_equal(image, np.flip(scene.image, axis))
        assert torch.equal(targets.semantic, scene.targets.semantic.flip(axis))
        expected = scene.targets.boxes.clone()
        expected[:, low], expected[:, high] = (
            length - scene.targets.boxes[:, high],
            length - scene.targets.boxes[:, low],
        )
        torch.testing.assert_close(targets.boxes, expected, rtol=0, atol=1e-3)
        for new, old in zip(targets.masks, scene.targets.masks, strict=True):
            moved = old[0].copy()
            moved[:, 1 - axis] = length - moved[:, 1 - axis]
            np.testing.assert_allclose(new[0], moved, atol=1e-3)
        assert targets.captions == scene.targets.captions
        torch.testing.assert_close(targets.areas, scene.targets.areas, rtol=1e-4, atol=1e-2)


JOINTS = [[[10, 5, 2], [20, 6, 1], [30, 7, 2], [0, 0, 0]]]
"""Left hand, right hand (hidden), head, and a foot that was not marked."""


@pytest.mark.parametrize(
    ("transforms", "joints"),
    [
        ([MIRROR], [[[40, 6, 1], [50, 5, 2], [30, 7, 2], [0, 0, 0]]]),
        ([UPSIDE_DOWN], [[[20, 34, 1], [10, 35, 2], [30, 33, 2], [0, 0, 0]]]),
        ([A.Transpose(p=1)], [[[6, 20, 1], [5, 10, 2], [7, 30, 2], [0, 0, 0]]]),
        ([MIRROR, UPSIDE_DOWN], [[[50, 35, 2], [40, 34, 1], [30, 33, 2], [0, 0, 0]]]),  # half a turn is no mirror
        ([ResizeShortEdge(80, 120)], [[[20, 10, 2], [40, 12, 1], [60, 14, 2], [0, 0, 0]]]),
        ([A.Crop(5, 0, 60, 40, p=1)], [[[5, 5, 2], [15, 6, 1], [25, 7, 2], [0, 0, 0]]]),
    ],
    ids=["mirror", "upside down", "transposed", "half a turn", "larger", "crop"],
)
def test_left_and_right_joints_swap_only_in_a_mirror(transforms: list, joints: list):
    given = picture([[5, 2, 40, 20]], keypoints=torch.tensor(JOINTS, dtype=torch.float32))
    targets = apply(given, *transforms, flip_pairs=[(0, 1)]).targets
    torch.testing.assert_close(targets.keypoints, torch.tensor(joints, dtype=torch.float32), rtol=0, atol=1e-3)


def test_joints_without_pairs_do_not_swap():
    given = picture([[5, 2, 40, 20]], keypoints=torch.tensor(JOINTS, dtype=torch.float32))
    assert apply(given, MIRROR).targets.keypoints[0, :, 2].tolist() == [2, 1, 2, 0]


def test_a_joint_that_left_the_picture_is_unlabelled():
    given = picture([[5, 2, 40, 20]], keypoints=torch.tensor(JOINTS, dtype=torch.float32))
    joints = apply(given, A.Crop(15, 0, 60, 40, p=1)).targets.keypoints
    assert joints[0].tolist() == [[0, 0, 0], [5, 6, 1], [15, 7, 2], [0, 0, 0]]


def test_two_transforms_are_not_decided_by_the_same_draw():
    given = picture([])
    augment = Augment([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    whole = {given.image[::y, ::x].tobytes(): (x, y) for x in (1, -1) for y in (1, -1)}
    seen = [whole[augment(given, seed).image.tobytes()] for seed in range(200)]
    assert {outcome: seen.count(outcome) > 25 for outcome in whole.values()} == dict.fromkeys(whole.values(), True)


# Crops and what they drop


def rectangle(box: list[int], size: tuple[int, int]) -> dict:
    plane = np.zeros(size, dtype=np.uint8, order="F")
    plane[box[1] : box[3], box[0] : box[2]] = 1
    return rle.encode(plane)


BOXES = [[0, 0, 10, 10], [20, 20, 40, 36], [0, 30, 8, 40], [24, 4, 34, 14]]


def street() -> Sample:
    """Four objects; the second and the last are crowds with an RLE, the others have an outline."""
    outlines = [[np.array([[a, b], [c, b], [c, d], [a, d]], dtype=np.float32)] for a, b, c, d in BOXES]
    masks = tuple(rectangle(box, (40, 60)) if i % 2 else outlines[i] for i, box in enumerate(BOXES))
    return picture(
        BOXES,
        masks=masks,
        ignore=[False, True, False, True],
        captions=("a", "b", "c", "d"),
        keypoints=torch.arange(4.0)[:, None, None].expand(4, 2, 3) + 20,
        semantic=torch.ones(40, 60, dtype=torch.uint8),
    )


def test_a_crop_that_drops_objects_keeps_the_others_in_step():
    targets = apply(street(), A.Crop(20, 0, 60, 40, p=1)).targets
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.0, 20, 20, 36], [4, 4, 14, 14]]))
    assert targets.labels.tolist() == [2, 4]
    assert targets.ignore.tolist() == [True, True]
    torch.testing.assert_close(targets.areas, torch.tensor([320.0, 100]))
    assert targets.captions == ("b", "d")
    assert targets.keypoints[:, 0, 0].tolist() == [1, 3]
    for box, mask in zip(targets.boxes, targets.masks, strict=True):
        assert np.array_equal(rle.decode(mask), rle.decode(rectangle(box.round().int().tolist(), (40, 40))))


def test_a_crop_that_keeps_an_outline_behind_an_rle():
    targets = apply(street(), A.Crop(0, 12, 60, 40, p=1)).targets
    assert targets.labels.tolist() == [2, 3, 4]
    assert np.array_equal(rle.decode(targets.masks[0]), rle.decode(rectangle([20, 8, 40, 24], (28, 60))))
    assert targets.masks[1][0].tolist() == [[0, 18], [8, 18], [8, 28], [0, 28]]


@pytest.mark.parametrize(
    ("transform", "box"),
    [
        (MIRROR, [20, 20, 40, 36]),
        (UPSIDE_DOWN, [20, 4, 40, 20]),
        (A.Resize(80, 120, p=1), [40, 40, 80, 72]),
        (ResizeShortEdge(80, 1000), [40, 40, 80, 72]),
        (A.PadIfNeeded(60, 80, position="top_left", p=1), [20, 20, 40, 36]),
    ],
    ids=["mirror", "upside down", "resize", "short edge", "pad"],
)
def test_rle_masks_follow(transform: A.BasicTransform, box: list[int]):
    targets = apply(street(), transform).targets
    assert targets.boxes[1].tolist() == pytest.approx(box, abs=1e-3)
    assert tuple(targets.masks[1]["size"]) == targets.size
    assert np.array_equal(rle.decode(targets.masks[1]), rle.decode(rectangle(box, targets.size)))


def test_areas_of_masks_shrink_with_their_boxes():
    given = picture([[0, 0, 20, 10]], areas=[120])
    assert apply(given, A.Crop(5, 0, 60, 40, p=1)).targets.areas.tolist() == pytest.approx([90])
    assert apply(given, A.Resize(80, 120, p=1)).targets.areas.tolist() == pytest.approx([480])


@pytest.mark.parametrize(("min_visibility", "kept"), [(0.0, 1), (0.2, 1), (0.3, 0)])
def test_min_visibility(min_visibility: float, kept: int):
    given = picture([[0, 0, 20, 10]])  # a quarter stays
    targets = apply(given, A.Crop(15, 0, 60, 40, p=1), min_visibility=min_visibility).targets
    assert len(targets) == kept
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.0, 0, 5, 10]] * kept).reshape(-1, 4))


@pytest.mark.parametrize(("min_area", "kept"), [(1.0, 1), (40.0, 1), (60.0, 0)])
def test_min_area(min_area: float, kept: int):
    given = picture([[0, 0, 20, 10]])
    assert len(apply(given, A.Crop(15, 0, 60, 40, p=1), min_area=min_area).targets) == kept


# The semantic map


@pytest.mark.parametrize(
    "transform",
    [
        A.PadIfNeeded(80, 100, p=1),
        A.Rotate((45, 45), p=1),
        A.SafeRotate((30, 30), p=1),
        A.Affine(translate_px={"x": 15, "y": 9}, p=1),
        A.Perspective(fit_output=True, p=1),
        A.RandomCrop(64, 64, pad_if_needed=True, p=1),
        A.CropAndPad(px=5, p=1),
        ElasticGrid(std=5),
        A.OneOf([A.Sequential([A.Rotate((45, 45), p=1)], p=1)], p=1),
    ],
    ids=[
        "pad",
        "turn",
        "turn whole",
        "shift",
        "perspective",
        "crop",
        "frame",
        "elastic",
        "in a choice",
    ],
)
def test_what_is_uncovered_has_no_class(transform: A.BasicTransform):
    given = picture([], semantic=torch.full((40, 60), 3, dtype=torch.uint8))
    image, targets = apply(given, transform)
    assert set(targets.semantic.unique().tolist()) == {3, IGNORE_INDEX}
    assert targets.semantic.dtype == torch.uint8
    black = (image == 0).all(axis=2)
    uncovered = targets.semantic.numpy() == IGNORE_INDEX
    assert np.mean(black == uncovered) > 0.95


@pytest.mark.parametrize("factor", [3, 5])
def test_the_semantic_map_shrinks_to_the_pixels_in_the_middle(factor: int):
    """Where the picture's pixels are averaged about, not at their upper left corner."""
    labels = torch.arange(30 * 45).reshape(30, 45).remainder(251).to(torch.uint8)
    targets = apply(picture([], (30, 45), semantic=labels), ResizeShortEdge(30 // factor, 100)).targets
    assert targets.semantic.equal(labels[factor // 2 :: factor, factor // 2 :: factor])


def test_the_semantic_map_keeps_its_values_when_resized(scenes: list[Sample]):
    targets = apply(scenes[0], ResizeShortEdge(150, 300)).targets
    assert set(targets.semantic.unique().tolist()) <= set(scenes[0].targets.semantic.unique().tolist())


# Sizes


@pytest.mark.parametrize(
    "size",
    [(480, 640), (640, 480), (600, 800), (427, 640), (333, 500), (1000, 300), (300, 1000), (2000, 1333), (800, 800)],
)
def test_resize_short_edge_equals_torchvision(size: tuple[int, int]):
    theirs = _resize_image_and_masks(torch.zeros(1, *size, device="meta"), 800, 1333)[0]
    ours = ResizeShortEdge(800, 1333).get_params_dependent_on_data({"shape": (*size, 3)}, {})["size"]
    assert ours == tuple(theirs.shape[-2:])


def test_resize_short_edge_moves_boxes_joints_and_picture():
    given = picture([[6, 4, 30, 20]], keypoints=torch.tensor([[[9.0, 7, 2]]]))
    image, targets = apply(given, ResizeShortEdge(80, 1000))
    assert image.shape == (80, 120, 3)
    assert targets.boxes[0].tolist() == pytest.approx([12, 8, 60, 40], abs=1e-3)
    assert targets.keypoints[0, 0].tolist() == pytest.approx([18, 14, 2], abs=1e-3)


def test_resize_short_edge_draws_from_its_list():
    augment = Augment([ResizeShortEdge([20, 30, 50], 1000)])
    assert {min(augment(picture([]), seed).targets.size) for seed in range(30)} == {20, 30, 50}


def test_resize_short_edge_never_makes_nothing():
    assert apply(picture([], (2, 300)), ResizeShortEdge(10, 30)).targets.size == (1, 30)


@pytest.mark.parametrize(
    "transforms",
    [
        [ResizeShortEdge(80, 1000)],
        [ResizeShortEdge(23, 1000)],
        [A.Resize(77, 31, p=1)],
        [MIRROR, ResizeShortEdge(80, 1000), UPSIDE_DOWN],
        [A.RandomBrightnessContrast(p=1)],
    ],
    ids=["larger", "smaller", "stretched", "flipped", "colour"],
)
def test_original_size_after_a_resize_is_the_sources(transforms: list):
    assert apply(picture([]), *transforms).targets.original_size == (40, 60)


def test_original_size_passes_through_two_lists():
    once = apply(picture([]), ResizeShortEdge(80, 1000))
    assert apply(once, A.Resize(30, 30, p=1)).targets.original_size == (40, 60)


def test_original_size_of_a_crop_is_the_crops():
    given = apply(picture([]), A.Crop(10, 10, 50, 30, p=1), A.Resize(60, 120, p=1))
    assert given.targets.original_size == (20, 40)


def test_original_size_of_a_quarter_turn_is_turned():
    assert apply(picture([]), A.Transpose(p=1), A.Resize(120, 120, p=1)).targets.original_size == (60, 40)


def test_original_size_of_a_turn_that_keeps_the_scale():
    assert apply(picture([]), A.Rotate((30, 30), p=1)).targets.original_size == (40, 60)


def test_original_size_of_a_large_picture_is_exact():
    large = Sample(np.zeros((100, 6000, 3), np.uint8), Targets.make([], [], (100, 6000), "panorama"))
    small = apply(large, ResizeShortEdge(20, 1200), MIRROR)
    assert small.targets.size == (20, 1200)
    assert small.targets.original_size == (100, 6000)


# Elastic deformation


def test_elastic_nodes_move_by_the_drawn_displacements():
    """At the corners, the middles of the sides and the centre the field is what was drawn."""
    grid = ElasticGrid(std=4)
    grid.set_random_seed(3)
    field = grid.get_params_dependent_on_data({"shape": (41, 61, 3)}, {})["field"]
    grid.set_random_seed(3)
    drawn = grid.random_generator.normal(0, 4, (1, 2, 3, 3))[0]
    assert field.shape == (2, 41, 61)
    np.testing.assert_allclose(field[:, ::20, ::30], drawn, atol=1e-4)


def test_elastic_displacements_have_the_given_spread():
    grid = ElasticGrid(nodes=5, std=10)
    fields = [grid.get_params_dependent_on_data({"shape": (9, 9, 3)}, {})["field"][:, ::2, ::2] for _ in range(200)]
    assert np.std(fields) == pytest.approx(10, rel=0.03)
    assert np.mean(fields) == pytest.approx(0, abs=0.3)


def test_elastic_without_displacement_changes_nothing(scenes: list[Sample]):
    image, targets = apply(scenes[0], ElasticGrid(std=0))
    assert np.array_equal(image, scenes[0].image)
    assert targets.semantic.equal(scenes[0].targets.semantic)
    torch.testing.assert_close(targets.boxes, scenes[0].targets.boxes)
    torch.testing.assert_close(targets.keypoints, scenes[0].targets.keypoints)
    assert targets.original_size == SIZE


def test_elastic_moves_picture_map_points_and_boxes_alike():
    """A white disc is where its map, its joint, its outline and its box say, wherever it went."""
    image, labels = np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8)
    cv2.circle(image, (80, 60), 12, (255, 255, 255), -1)
    cv2.circle(labels, (80, 60), 12, 1, -1)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = np.stack([80.5 + 12.5 * np.cos(angles), 60.5 + 12.5 * np.sin(angles)], axis=1).astype(np.float32)
    given = Targets.make(
        [[68, 48, 93, 73]],
        [1],
        (120, 160),
        "disc",
        masks=([outline],),
        keypoints=torch.tensor([[[80.5, 60.5, 2]]]),
        semantic=torch.from_numpy(labels),
    )
    moved = []
    for seed in range(8):
        picture, targets = apply(Sample(image, given), ElasticGrid(std=8), seed=seed)
        white = picture[..., 0] > 127
        assert np.mean(white != (targets.semantic.numpy() == 1)) < 0.002
        y, x = np.nonzero(white)
        assert (targets.keypoints[0, 0, :2] - torch.tensor([x.mean() + 0.5, y.mean() + 0.5])).abs().max() < 1.5
        tight = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(extents(targets.masks[0], targets.size) - tight).max() < 1.5
        box = targets.boxes[0].numpy()
        assert (box[:2] <= tight[:2] + 1).all()
        assert (box[2:] >= tight[2:] - 1).all()
        moved.append(np.hypot(x.mean() - 80, y.mean() - 60))
    assert max(moved) > 5


def test_elastic_grid_of_one_node():
    with pytest.raises(ValueError, match="at least 2 nodes a side, got 1"):
        ElasticGrid(nodes=1)


@pytest.mark.parametrize(
    "transform",
    [A.ElasticTransform(), A.GridDistortion(), A.OneOf([A.ThinPlateSpline()]), A.GridElasticDeform((3, 3), 4)],
    ids=["elastic", "grid", "spline in a choice", "grid of quadrangles"],
)
def test_what_loses_points_is_refused(transform: A.BasicTransform):
    with pytest.raises(ValueError, match=r"loses points at the border .* use quadrat.data.augment.ElasticGrid"):
        Augment([transform])


# The lists of conf/augment for maps of classes


def from_conf(name: str, stage: str, *overrides: str) -> Augment:
    return build(compose("train", ["~experiment", f"augment={name}", *overrides]).augment[stage])


@pytest.mark.parametrize("stage", ["train", "eval"])
def test_segment_resize(scenes: list[Sample], stage: str):
    augment = from_conf("segment_resize", stage, "augment.height=60", "augment.width=90")
    image, targets = augment(scenes[0], 0)
    assert image.shape == (60, 90, 3)
    assert set(targets.semantic.unique().tolist()) <= set(scenes[0].targets.semantic.unique().tolist())
    assert targets.original_size == SIZE


def test_segment_resize_mirrors_in_training_alone(scenes: list[Sample]):
    lists = [
        from_conf("segment_resize", stage, "augment.height=96", "augment.width=128") for stage in ("train", "eval")
    ]
    whole, mirrored = scenes[0].targets.semantic, scenes[0].targets.semantic.flip(1)
    train, evaluation = ([augment(scenes[0], seed).targets.semantic for seed in range(20)] for augment in lists)
    assert all(labels.equal(whole) for labels in evaluation)
    assert all(labels.equal(whole) or labels.equal(mirrored) for labels in train)
    assert 3 < sum(labels.equal(mirrored) for labels in train) < 17


def test_segment_crop_pads_what_is_smaller_with_ignored_pixels():
    small = picture([], semantic=torch.full((40, 60), 3, dtype=torch.uint8))
    augment = from_conf("segment_crop", "train", "augment.height=70", "augment.width=70")
    shares = []
    for seed in range(40):
        image, targets = augment(small, seed)
        assert image.shape == (70, 70, 3)
        uncovered = targets.semantic.numpy() == IGNORE_INDEX
        assert set(targets.semantic.unique().tolist()) <= {3, IGNORE_INDEX}
        assert not image[uncovered].any()
        shares.append(1 - uncovered.mean())
    assert min(shares) < 0.2  # 20 x 30 of 70 x 70 at half size
    assert max(shares) > 0.9  # 80 x 120 at twice the size covers all
    assert from_conf("segment_crop", "eval")(small, 0) is small


def test_elastic_list_leaves_no_class_where_nothing_is():
    given = picture([], (80, 100), semantic=torch.full((80, 100), 3, dtype=torch.uint8))
    given.image[:] = 200
    augment = from_conf("elastic", "train")
    for seed in range(10):
        image, targets = augment(given, seed)
        assert image.shape == (80, 100, 3)
        assert set(targets.semantic.unique().tolist()) == {3, IGNORE_INDEX}
        assert np.mean((image[..., 0] > 60) == (targets.semantic.numpy() == 3)) > 0.97


# Regions found beforehand


@pytest.mark.parametrize("name", LISTS)
def test_proposals_go_where_boxes_go(name: str, scenes: list[Sample]):
    """The boxes of the objects, given as proposals too, stay those of the objects."""
    for seed, scene in enumerate(scenes):
        both = Sample(scene.image, dataclasses.replace(scene.targets, proposals=scene.targets.boxes))
        image, plain = apply(scene, *LISTS[name], seed=seed)
        changed = apply(both, *LISTS[name], seed=seed)
        assert np.array_equal(image, changed.image)
        assert changed.targets.proposals is not None
        # a stretched point is up to half a pixel off in albumentations, and of a bent box the corners alone are followed
        off = 6.0 if name == "elastic" else 0.5
        torch.testing.assert_close(changed.targets.proposals, changed.targets.boxes, atol=off, rtol=0)
        torch.testing.assert_close(changed.targets.boxes, plain.boxes)
        assert torch.equal(changed.targets.labels, plain.labels)


def test_proposals_do_not_change_what_is_cropped(scenes: list[Sample]):
    """A crop that keeps every object whole has no regard for regions."""
    crop = A.BBoxSafeRandomCrop(p=1)
    for seed, scene in enumerate(scenes):
        height, width = scene.targets.size
        every = torch.tensor([[0.0, 0, width, height], [0, 0, 9, 9], [width - 9, height - 9, width, height]])
        with_some = Sample(scene.image, dataclasses.replace(scene.targets, proposals=every))
        plain, changed = apply(scene, crop, seed=seed), apply(with_some, crop, seed=seed)
        assert np.array_equal(plain.image, changed.image)
        cut = torch.tensor([0.0, 0, changed.targets.size[1], changed.targets.size[0]])
        torch.testing.assert_close(changed.targets.proposals[0], cut)


def test_proposals_of_a_picture_without_objects():
    sample = picture([])
    sample = Sample(sample.image, dataclasses.replace(sample.targets, proposals=torch.tensor([[0.0, 0, 20, 10]])))
    changed = apply(sample, MIRROR).targets
    assert len(changed) == 0
    torch.testing.assert_close(changed.proposals, torch.tensor([[40.0, 0, 60, 10]]))


def test_proposals_may_be_none_at_all():
    sample = picture([[0, 0, 5, 5]])
    sample = Sample(sample.image, dataclasses.replace(sample.targets, proposals=torch.zeros(0, 4)))
    assert apply(sample, MIRROR).targets.proposals.shape == (0, 4)
