"""What travels between the parts checks itself, and keeps its rows in step."""

import dataclasses

import numpy as np
import pytest
import torch

from quadrat.structures import Batch, Detections, Sample, Schema, Targets, scale_between

SIZE = (40, 60)
BOXES = [[0, 0, 10, 10], [5, 5, 25, 15], [30, 20, 60, 40]]


def full() -> Targets:
    """Three objects with every optional field; row i is recognisable in each."""
    return Targets.make(
        BOXES,
        [1, 2, 3],
        SIZE,
        "street",
        ignore=[False, True, False],
        masks=tuple([np.full((3, 2), i, dtype=np.float32)] for i in range(3)),
        keypoints=torch.arange(3.0)[:, None, None].expand(3, 2, 3),
        captions=("a", "b", "c"),
        semantic=torch.zeros(SIZE, dtype=torch.uint8),
    )


# Schema


def test_schema_numbers_its_categories_from_one():
    schema = Schema(("cat", "dog"))
    assert schema.category_ids == (1, 2)
    assert [schema.name(label) for label in (1, 2)] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ()}, "at least one class"),
        ({"classes": ("cat", "dog", "cat")}, r"must differ, got \['cat', 'dog', 'cat'\]"),
        ({"classes": ("cat", "dog"), "category_ids": (7,)}, "2 classes need as many category ids, got 1"),
    ],
)
def test_schema_refuses(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Schema(**arguments)


def test_schema_without_joints_knows_none():
    assert Schema(("cat",)).joint("left ear") is None


@pytest.mark.parametrize("name", ["left shoulder", "left_shoulder", "L-Shoulder", "l.shoulder", "LEFT SHOULDER"])
@pytest.mark.parametrize("spelled", ["left_shoulder", "l shoulder", "Left-Shoulder"])
def test_schema_finds_a_joint_however_it_is_spelled(name: str, spelled: str):
    schema = Schema(("person",), joints=("right_shoulder", spelled, "shoulder"))
    assert schema.joint(name) == 1
    assert schema.joint("left elbow") is None


# Targets


def test_targets_make_without_objects():
    targets = Targets.make([], [], SIZE, 1)
    assert len(targets) == 0
    assert targets.boxes.shape == (0, 4)
    assert (targets.labels.shape, targets.ignore.shape, targets.areas.shape) == ((0,), (0,), (0,))
    assert targets.original_size == SIZE


def test_targets_make_fills_in_areas_and_ignore():
    targets = Targets.make(BOXES, [1, 2, 3], SIZE, 1)
    assert targets.areas.tolist() == [100, 200, 600]
    assert not targets.ignore.any()
    types = (targets.boxes.dtype, targets.labels.dtype, targets.ignore.dtype, targets.areas.dtype)
    assert types == (torch.float32, torch.int64, torch.bool, torch.float32)


def test_targets_make_keeps_what_is_given():
    targets = Targets.make(BOXES[:1], [1], SIZE, 1, areas=[42], ignore=[True], original_size=(80, 120))
    assert targets.areas.tolist() == [42]
    assert targets.ignore.tolist() == [True]
    assert targets.original_size == (80, 120)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 5, 9], r"box 1 \[5.0, 5.0, 5.0, 9.0\] is degenerate"),
        ([5, 9, 8, 5], "box 1 .* is degenerate"),
        ([-1, 0, 5, 5], "box 1 .* is outside the image, image is 60x40"),
        ([0, 0, 5, 41], "box 1 .* is outside the image"),
        ([0, 0, 61, 5], "box 1 .* is outside the image"),
        ([0, 0, float("nan"), 5], "box 1 .*nan"),
        ([0, 0, float("inf"), 5], "box 1 .*inf"),
    ],
)
def test_targets_refuse_a_box(box: list[float], message: str):
    with pytest.raises(ValueError, match=f"image street: {message}"):
        Targets.make([BOXES[0], box], [1, 1], SIZE, "street")


def test_targets_allow_the_last_digit_at_the_border():
    assert len(Targets.make([[-0.005, 0, 60.005, 40]], [1], SIZE, 1)) == 1


@pytest.mark.parametrize("label", [0, -1])
def test_targets_refuse_labels_below_one(label: int):
    with pytest.raises(ValueError, match=rf"image street: labels are 1\.\.C .* got \[1, {label}\]"):
        Targets.make(BOXES[:2], [1, label], SIZE, "street")


@pytest.mark.parametrize(
    ("field", "rows"),
    [
        ("ignore", [True]),
        ("areas", [1.0, 2.0, 3.0]),
        ("masks", ([],)),
        ("captions", ("a", "b", "c")),
        ("keypoints", torch.zeros(1, 4, 3)),
    ],
)
def test_targets_refuse_rows_out_of_step(field: str, rows: object):
    with pytest.raises(ValueError, match=f"image street: 2 boxes but {len(rows)} rows of {field}"):
        Targets.make(BOXES[:2], [1, 2], SIZE, "street", **{field: rows})


def test_targets_refuse_more_labels_than_boxes():
    with pytest.raises(ValueError, match="2 boxes but 3 rows of labels"):
        Targets.make(BOXES[:2], [1, 2, 3], SIZE, 1)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 2)])
def test_targets_refuse_keypoints_of_another_shape(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"keypoints are \(M, K, 3\), got"):
        Targets.make(BOXES[:2], [1, 2], SIZE, 1, keypoints=torch.zeros(shape))


def test_targets_refuse_a_semantic_map_of_another_size():
    with pytest.raises(ValueError, match=r"semantic map \(60, 40\) is not the image's size \(40, 60\)"):
        Targets.make([], [], SIZE, 1, semantic=torch.zeros(60, 40, dtype=torch.uint8))


def test_targets_are_checked_again_when_replaced():
    with pytest.raises(ValueError, match="3 boxes but 2 rows of labels"):
        dataclasses.replace(full(), labels=torch.tensor([1, 2]))


@pytest.mark.parametrize("keep", [[], [1], [2, 0], [0, 1, 2]])
def test_targets_rows_keeps_every_field_in_step(keep: list[int]):
    targets = full().rows(keep)
    assert targets.boxes.tolist() == [BOXES[i] for i in keep]
    assert targets.labels.tolist() == [i + 1 for i in keep]
    assert targets.ignore.tolist() == [i == 1 for i in keep]
    assert targets.areas.tolist() == [[100, 200, 600][i] for i in keep]
    assert [mask[0][0, 0] for mask in targets.masks] == keep
    assert targets.keypoints[:, 0, 0].tolist() == keep
    assert targets.captions == tuple("abc"[i] for i in keep)
    assert targets.semantic.shape == SIZE
    assert (targets.size, targets.image_id) == (SIZE, "street")


def test_targets_rows_without_optional_fields():
    targets = Targets.make(BOXES, [1, 2, 3], SIZE, 1).rows([2])
    assert (targets.masks, targets.keypoints, targets.captions, targets.semantic) == (None, None, None, None)


def test_targets_boxes_and_areas_at_another_size():
    targets = full()
    assert targets.boxes_at((80, 180))[1].tolist() == [15, 10, 75, 30]
    assert targets.areas_at((80, 180)).tolist() == [600, 1200, 3600]
    assert torch.equal(targets.boxes_at(SIZE), targets.boxes)


def test_scale_between_is_x_y_x_y():
    assert scale_between((10, 20), (20, 10)).tolist() == [0.5, 2, 0.5, 2]


# Batch


def sample(height: int, width: int, boxes: list[list[float]], value: int = 7) -> Sample:
    image = np.full((height, width, 3), value, dtype=np.uint8)
    return Sample(image, Targets.make(boxes, [1] * len(boxes), (height, width), value, original_size=(height * 2, 99)))


def test_collate_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Batch.collate([])


def test_collate_pictures_without_objects_leaves_one_padded_row():
    batch = Batch.collate([sample(32, 32, []), sample(32, 32, [])])
    assert batch.boxes.shape == (2, 1, 4)
    assert not batch.valid.any()
    assert batch.labels.tolist() == [[0], [0]]


def test_collate_pads_objects_behind():
    batch = Batch.collate([sample(40, 60, BOXES), sample(40, 60, []), sample(40, 60, BOXES[1:2])])
    assert batch.valid.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert batch.boxes[0].tolist() == BOXES
    assert batch.boxes[2].tolist() == [BOXES[1], [0] * 4, [0] * 4]
    assert batch.labels[2].tolist() == [1, 0, 0]
    assert batch.ignore.shape == (3, 3)
    assert [len(t) for t in batch.targets] == [3, 0, 1]


def test_collate_pads_joints_as_unlabelled():
    joints = torch.arange(1.0, 13.0).reshape(2, 2, 3)
    two, one = (
        Sample(image, dataclasses.replace(targets, keypoints=joints[: len(targets)]))
        for image, targets in (sample(40, 60, BOXES[:2]), sample(40, 60, BOXES[:1]))
    )
    assert Batch.collate([two, one]).keypoints.tolist() == [joints.tolist(), [joints[0].tolist(), [[0] * 3] * 2]]
    none = Sample(two.image, dataclasses.replace(two.targets.rows([]), keypoints=torch.zeros(0, 2, 3)))
    assert Batch.collate([none]).keypoints.tolist() == [[[[0] * 3] * 2]]
    assert Batch.collate([two, sample(40, 60, BOXES)]).keypoints is None


@pytest.mark.parametrize(("divisor", "padded"), [(1, (40, 33)), (32, (64, 64)), (40, (40, 40))])
def test_collate_pads_images_right_and_bottom(divisor: int, padded: tuple[int, int]):
    batch = Batch.collate([sample(40, 20, [], value=7), sample(10, 33, [], value=9)], divisor=divisor)
    assert batch.images.shape == (2, 3, *padded)
    assert (batch.images[0, :, :40, :20] == 7).all()
    assert (batch.images[1, :, :10, :33] == 9).all()
    assert batch.images.sum() == 3 * (40 * 20 * 7 + 10 * 33 * 9)
    assert batch.sizes.tolist() == [[40, 20], [10, 33]]
    assert batch.original_sizes.tolist() == [[80, 99], [20, 99]]


def test_collate_keeps_images_uint8_and_channels_last():
    images = Batch.collate([sample(32, 64, [])]).images
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_batch_to_moves_every_tensor_and_keeps_the_targets():
    optional = {"semantic": torch.zeros(40, 60, dtype=torch.uint8), "pixel_weights": torch.zeros(40, 60)}
    optional["keypoints"] = torch.zeros(3, 2, 3)
    optional["proposals"] = torch.zeros(5, 4)
    image, targets = sample(40, 60, BOXES)
    batch = Batch.collate([Sample(image, dataclasses.replace(targets, **optional))])
    moved = batch.to("meta")
    tensors = [getattr(moved, f.name) for f in dataclasses.fields(moved) if f.name != "targets"]
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.targets is batch.targets
    assert len(moved) == 1


def test_collate_pads_proposals_with_empty_boxes():
    image, targets = sample(40, 60, BOXES)
    counts = [0, 3, 1]
    samples = [Sample(image, dataclasses.replace(targets, proposals=torch.ones(count, 4))) for count in counts]
    proposals = Batch.collate(samples).proposals
    assert proposals is not None
    assert proposals.sum((1, 2)).tolist() == [0, 12, 4]
    assert proposals.shape == (3, 3, 4)
    assert Batch.collate([*samples, Sample(image, targets)]).proposals is None


def test_targets_refuse_proposals_of_another_shape():
    _, targets = sample(40, 60, BOXES)
    with pytest.raises(ValueError, match=r"proposals are \(P, 4\), got \(5,\)"):
        dataclasses.replace(targets, proposals=torch.zeros(5))


# Detections


def found() -> Detections:
    return Detections(
        torch.tensor(BOXES, dtype=torch.float32), torch.tensor([0.75, 0.5, 0.25]), torch.arange(1, 4), SIZE
    )


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        (torch.zeros(3, dtype=torch.bool), []),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        (slice(2), [0, 1]),
    ],
    ids=["nothing", "mask", "index", "slice"],
)
def test_detections_filter(keep: object, rows: list[int]):
    kept = found()[keep]
    assert len(kept) == len(rows)
    assert kept.boxes.tolist() == [BOXES[i] for i in rows]
    assert kept.scores.tolist() == [[0.75, 0.5, 0.25][i] for i in rows]
    assert kept.labels.tolist() == [i + 1 for i in rows]
    assert kept.size == SIZE


def test_detections_rescaled_there_and_back():
    there = found().rescaled((80, 30))
    assert there.boxes[2].tolist() == [15, 40, 30, 80]
    assert there.size == (80, 30)
    assert torch.equal(there.rescaled(SIZE).boxes, found().boxes)


def test_detections_to_coco_uses_width_height_and_the_files_ids():
    assert found()[:0].to_coco(5, (10, 20, 30)) == []
    assert found()[1:2].to_coco(5, (10, 20, 30)) == [
        {"image_id": 5, "category_id": 20, "bbox": [5, 5, 20, 10], "score": 0.5}
    ]


def posed() -> Detections:
    """Joint k of row i lies at 10 i + k, 20 i + k."""
    row, joint = torch.arange(3.0)[:, None], torch.arange(2.0)
    places = torch.stack([10 * row + joint, 20 * row + joint, torch.full((3, 2), 0.5)], dim=2)
    return dataclasses.replace(found(), keypoints=places)


def test_detections_filter_their_joints():
    assert posed()[:0].keypoints.shape == (0, 2, 3)
    assert posed()[torch.tensor([2, 0])].keypoints[:, 0].tolist() == [[20, 40, 0.5], [0, 0, 0.5]]
    assert found()[torch.tensor([2, 0])].keypoints is None


def test_detections_rescale_their_joints_and_not_how_sure_they_are():
    there = posed().rescaled((80, 30))
    assert there.keypoints[1].tolist() == [[5, 40, 0.5], [5.5, 42, 0.5]]
    assert torch.equal(there.rescaled(SIZE).keypoints, posed().keypoints)
    assert posed().cpu().keypoints is not None


def test_detections_to_coco_name_the_pixels_of_joints():
    assert posed()[:0].to_coco(5, (10, 20, 30)) == []
    (entry,) = posed()[1:2].to_coco(5, (10, 20, 30))
    assert entry["keypoints"] == [9.5, 19.5, 0.5, 10.5, 20.5, 0.5]
    assert "keypoints" not in found().to_coco(5, (10, 20, 30))[0]
