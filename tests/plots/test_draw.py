"""Drawing: the input stays, boxes and tags land where they should, and the empty case draws nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from quadrat.data.source import read_image
from quadrat.plots.draw import (
    HOLLOW,
    IGNORED,
    SIDES,
    colour_of,
    draw_detections,
    draw_result,
    draw_targets,
    draw_truth,
    grid,
    write_image,
)
from quadrat.structures import Detections, Schema, Targets

SCHEMA = Schema(classes=("circle", "star"))
SIZE = (80, 100)
BOX = [20.0, 40.0, 60.0, 70.0]


@pytest.fixture
def image() -> np.ndarray:
    return np.full((*SIZE, 3), 90, dtype=np.uint8)


def detections(boxes: list, scores: list, labels: list) -> Detections:
    rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(rows, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64), SIZE)


def targets(boxes: list, labels: list, ignore: list | None = None) -> Targets:
    return Targets.make(boxes, labels, SIZE, "picture", ignore=ignore)


def test_nothing_to_draw_is_a_copy(image: np.ndarray):
    for drawn in (
        draw_detections(image, detections([], [], []), SCHEMA),
        draw_targets(image, targets([], []), SCHEMA),
        draw_detections(image, detections([BOX], [0.49], [1]), SCHEMA),
    ):
        assert np.array_equal(drawn, image)
        assert drawn is not image
        assert not np.shares_memory(drawn, image)


def test_the_input_is_not_changed(image: np.ndarray):
    before = image.copy()
    draw_detections(image, detections([BOX], [0.9], [1]), SCHEMA)
    draw_targets(image, targets([BOX], [2]), SCHEMA, zoom=2)
    assert np.array_equal(image, before)


def test_a_box_is_drawn_on_its_own_outermost_pixels(image: np.ndarray):
    drawn = draw_targets(image, targets([BOX], [2]), SCHEMA)
    changed = (drawn != image).any(axis=2)
    for y, x in ((69, 20), (69, 59), (40, 59), (55, 20), (55, 59)):  # x2 and y2 are exclusive
        assert tuple(drawn[y, x]) == colour_of(2)
    assert not changed[41:69, 21:59].any()
    assert not changed[70:].any()
    assert not changed[41:, 60:].any()
    assert not changed[41:, :20].any()


def test_zoom_enlarges_picture_and_boxes(image: np.ndarray):
    drawn = draw_detections(image, detections([BOX], [0.9], [1]), SCHEMA, zoom=3)
    assert drawn.shape == (240, 300, 3)
    assert tuple(drawn[3 * 55, 3 * 20]) == colour_of(1)
    assert tuple(drawn[3 * 70 - 1, 3 * 60 - 1]) == colour_of(1)


def test_a_better_detection_lies_on_top(image: np.ndarray):
    for order in (slice(None), slice(None, None, -1)):
        rows = detections([BOX, BOX][order], [0.9, 0.6][order], [1, 2][order])
        assert tuple(draw_detections(image, rows, SCHEMA)[69, 30]) == colour_of(1)


def test_ignored_boxes_are_grey(image: np.ndarray):
    assert tuple(draw_targets(image, targets([BOX], [1], ignore=[True]), SCHEMA)[69, 30]) == IGNORED


@pytest.mark.parametrize("box", [[0, 0, 100, 80], [90, 0, 100, 5], [95, 75, 100, 80]])
def test_tags_stay_inside_the_picture(image: np.ndarray, box: list):
    drawn = draw_detections(image, detections([box], [1.0], [1]), SCHEMA)
    tag = (drawn == colour_of(1)).all(axis=2).sum() + (drawn == 255).all(axis=2).sum()
    assert drawn.shape == image.shape
    assert tag > 300


def test_boxes_of_another_frame_are_refused(image: np.ndarray):
    with pytest.raises(ValueError, match=r"\(80, 100\).*\(40, 50\)"):
        draw_targets(image[::2, ::2], targets([BOX], [1]), SCHEMA)


def test_zoom_below_one_is_refused(image: np.ndarray):
    with pytest.raises(ValueError, match="zoom"):
        draw_targets(image, targets([BOX], [1]), SCHEMA, zoom=0)


def test_neighbouring_classes_have_different_colours():
    assert len({colour_of(label) for label in range(1, 21)}) == 20
    assert colour_of(21) == colour_of(1)


def test_a_grid_places_pictures_row_by_row():
    images = [np.full((10 + i, 20, 3), i, dtype=np.uint8) for i in range(5)]
    sheet = grid(images, 3, padding=2)
    assert sheet.shape == (2 * (14 + 2) + 2, 3 * (20 + 2) + 2, 3)
    assert (sheet[2:12, 2:22] == 0).all()
    assert (sheet[18:32, 24:44] == 4).all()
    assert (sheet[:2] == 255).all()
    assert (sheet[18:, 46:] == 255).all()


def test_a_grid_of_one_is_no_wider_than_its_picture():
    assert grid([np.zeros((10, 20, 3), dtype=np.uint8)], 4, padding=1).shape == (12, 22, 3)


@pytest.mark.parametrize(("images", "columns"), [([], 3), ([np.zeros((4, 4, 3), dtype=np.uint8)], 0)])
def test_a_grid_needs_pictures_and_columns(images: list, columns: int):
    with pytest.raises(ValueError, match="grid"):
        grid(images, columns)


def test_a_written_picture_reads_back(tmp_path: Path, image: np.ndarray):
    drawn = draw_targets(image, targets([BOX], [1]), SCHEMA)
    write_image(tmp_path / "bild ü.png", drawn)
    assert np.array_equal(read_image(tmp_path / "bild ü.png"), drawn)


@pytest.mark.parametrize("name", ["missing/picture.png", "picture.nothing", "picture"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, image: np.ndarray, name: str):
    with pytest.raises(ValueError, match=name):
        write_image(tmp_path / name, image)


def test_tags_are_drawn_in_readable_ink(image: np.ndarray):
    drawn = draw_targets(image, targets([BOX], [1]), SCHEMA)
    ink = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)[:40]
    assert ink.max() > 240


# --- joints ---

POSED = Schema(
    classes=("circle", "star"),
    joints=("l_hand", "neck", "right hand"),
    limbs=((0, 1), (1, 2), (0, 2)),
    flip_pairs=((0, 2),),
)
HANDS = [[30.5, 60.5], [40.5, 45.5], [50.5, 60.5]]
LEFT_HAND, NECK, RIGHT_HAND = ((60, 30), (45, 40), (60, 50))


def pose(third: list[float]) -> torch.Tensor:
    return torch.tensor([[[*place, value] for place, value in zip(HANDS, third, strict=True)]])


def posed(confidences: list[float], *, score: float = 0.9) -> Detections:
    found = detections([BOX], [score], [1])
    return Detections(found.boxes, found.scores, found.labels, SIZE, pose(confidences))


def of_pose(visibility: list[float]) -> Targets:
    return Targets.make([BOX], [1], SIZE, "picture", keypoints=pose(visibility))


def colours_at(drawn: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(drawn[place].tolist()) for place in (LEFT_HAND, NECK, RIGHT_HAND)]


def test_joints_of_nothing_are_not_drawn(image: np.ndarray):
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), SIZE, torch.zeros(0, 3, 3))
    assert np.array_equal(draw_result(none, image, POSED), image)
    assert np.array_equal(draw_result(posed([1, 1, 1], score=0.4), image, POSED), image)
    nobody = Targets.make([], [], SIZE, "picture", keypoints=torch.zeros(0, 3, 3))
    assert np.array_equal(draw_truth(none, image, nobody, POSED), image)


def test_joints_are_dots_in_the_colour_of_their_side(image: np.ndarray):
    drawn = draw_result(posed([1, 1, 1]), image, POSED)
    assert colours_at(drawn) == [SIDES["left"], SIDES["middle"], SIDES["right"]]
    assert tuple(drawn[60, 40]) == SIDES["middle"]  # from hand to hand
    assert tuple(drawn[53, 35]) != tuple(image[53, 35])  # from the left hand to the neck


def test_unsure_joints_are_hollow_and_very_unsure_ones_are_left_out(image: np.ndarray):
    drawn = draw_result(posed([0.3, 0.9, 0.1]), image, POSED)
    box_alone = draw_result(detections([BOX], [0.9], [1]), image, POSED)
    assert colours_at(drawn) == [HOLLOW, SIDES["middle"], tuple(image[RIGHT_HAND].tolist())]
    assert np.array_equal(drawn[45:68, 44:58], box_alone[45:68, 44:58])  # nor is a limb drawn to one


def test_limbs_of_unsure_joints_are_thinner(image: np.ndarray):
    sure, unsure = (draw_result(posed([c, 0, c]), image, POSED)[55:66, 40] for c in (0.9, 0.3))
    assert (sure != 90).any(axis=1).sum() > (unsure != 90).any(axis=1).sum() > 0


def test_true_joints_are_drawn_for_results_with_joints_alone(image: np.ndarray):
    target = of_pose([1, 2, 0])
    drawn = draw_truth(posed([1, 1, 1]), image, target, POSED)
    assert colours_at(drawn) == [HOLLOW, SIDES["middle"], tuple(image[RIGHT_HAND].tolist())]
    boxes = draw_truth(detections([BOX], [0.9], [1]), image, target, POSED)
    assert np.array_equal(boxes, draw_targets(image, target, POSED))


def test_joints_are_enlarged_with_the_picture(image: np.ndarray):
    drawn = draw_result(posed([1, 1, 1]), image, POSED, zoom=3)
    assert [tuple(drawn[3 * y + 1, 3 * x + 1]) for y, x in (LEFT_HAND, RIGHT_HAND)] == [SIDES["left"], SIDES["right"]]


def test_joints_far_outside_are_no_error(image: np.ndarray):
    found = posed([1, 1, 1])
    assert found.keypoints is not None
    found.keypoints[0, 0, :2] = torch.tensor([1e12, -1e12])
    assert tuple(draw_result(found, image, POSED)[RIGHT_HAND]) == SIDES["right"]
