"""Scores of pixels: by hand, against torchmetrics and scikit-image, on several ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics import JaccardIndex

from quadrat.metrics.pixels import PixelScores, boundary_f1, confusion, scores
from quadrat.structures import SemanticMap, Targets

CLASSES = ("background", "cat", "dog")


def truth(labels: object, image_id: int = 0) -> Targets:
    semantic = torch.as_tensor(np.asarray(labels, dtype=np.uint8))
    return Targets.make([], [], (semantic.shape[0], semantic.shape[1]), image_id, semantic=semantic)


def seen(labels: object) -> SemanticMap:
    return SemanticMap(torch.as_tensor(np.asarray(labels, dtype=np.uint8)))


def measured(*pairs: tuple[object, object], classes: tuple[str, ...] = CLASSES) -> dict[str, float]:
    metric = PixelScores(classes)
    for wanted, found in pairs:
        metric.update([seen(found)], [truth(wanted)])
    return metric.compute()


@pytest.mark.filterwarnings("ignore:no pixel with a class", "ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("wanted", [None, [[255, 255]]], ids=["no picture", "nothing labelled"])
def test_nothing_to_score_is_zero_with_a_warning(wanted: object) -> None:
    metric = PixelScores(CLASSES)
    if wanted is not None:
        metric.update([seen([[0, 1]])], [truth(wanted)])
    assert metric.compute() == dict.fromkeys(("miou", "pixel_accuracy", "class_accuracy", "fw_iou", "boundary_f1"), 0.0)


def test_scores_by_hand() -> None:
    """Truth 0 0 1 1 | 0 1 ignored ignored, found 0 1 1 1 | 0 0 2 2: background 2 of 3 right, cat 2 of 3, the dog nowhere.

    IoU background 2 / (3 + 3 - 2), cat 2 / (3 + 3 - 2); accuracies 2/3; the dog was found on ignored pixels only.
    """
    found = measured(([[0, 0, 1, 1], [0, 1, 255, 255]], [[0, 1, 1, 1], [0, 0, 2, 2]]))
    assert found["pixel_accuracy"] == pytest.approx(4 / 6)
    assert found["class_accuracy"] == pytest.approx(2 / 3)
    assert found["miou"] == pytest.approx(0.5)
    assert found["fw_iou"] == pytest.approx(0.5)
    assert found["iou/cat"] == pytest.approx(0.5)
    assert "iou/dog" not in found


def test_a_class_that_is_only_found_counts_as_zero() -> None:
    """As in FCN's own evaluation: its union is not empty, so it is in the mean of IoU, but not in that of accuracies."""
    found = measured(([[0, 0, 1, 1]], [[0, 2, 1, 1]]))
    assert found["iou/dog"] == 0
    assert found["miou"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["class_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert found["fw_iou"] == pytest.approx((2 * 0.5 + 2 * 1) / 4)


def test_the_whole_set_is_one_and_not_a_mean_of_pictures() -> None:
    """A stray pixel in a picture without cats costs little (peers.md 3c): 9 of 10 cats' pixels, not the mean of 1 and 0."""
    found = measured(([[1] * 9], [[1] * 9]), ([[0] * 9], [[0] * 8 + [1]]))
    assert found["iou/cat"] == pytest.approx(0.9)


@pytest.mark.parametrize("seed", range(3))
def test_miou_equals_torchmetrics(seed: int) -> None:
    generator = np.random.default_rng(seed)
    wanted = generator.integers(0, 3, (4, 20, 30))
    found = np.where(generator.random(wanted.shape) < 0.7, wanted, generator.integers(0, 3, wanted.shape))
    wanted[generator.random(wanted.shape) < 0.1] = 255
    peer = JaccardIndex(task="multiclass", num_classes=3, average="macro", ignore_index=255)
    expected = peer(torch.as_tensor(found), torch.as_tensor(wanted)).item()
    assert measured(*zip(wanted, found, strict=True))["miou"] == pytest.approx(expected, abs=1e-6)


def test_found_at_another_size_is_brought_to_the_truth() -> None:
    assert measured(([[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 1]]))["miou"] == 1


def test_a_resized_picture_is_scored_in_its_own_frame() -> None:
    """The original map decides, where it was kept: half of the cat's pixels were lost on the way to the smaller frame."""
    target = replace(truth([[0, 1]]), original_semantic=torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8))
    metric = PixelScores(CLASSES)
    metric.update([seen([[0, 1]])], [target])
    assert metric.compute()["pixel_accuracy"] == pytest.approx(3 / 4)


def test_truth_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="the truth has 7"):
        confusion(torch.tensor([[7]], dtype=torch.uint8), torch.tensor([[0]], dtype=torch.uint8), 3)


def test_picture_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="no semantic map"):
        PixelScores(CLASSES).update([seen([[0]])], [Targets.make([], [], (1, 1), "p")])


def test_two_ranks_are_one_set() -> None:
    """What is summed over ranks is the confusion itself, so the numbers are those of one process with all pictures."""
    pairs = [([[0, 1, 1, 2]], [[0, 1, 2, 2]]), ([[1, 1, 0, 255]], [[0, 1, 0, 0]])]
    ranks = [PixelScores(CLASSES) for _ in pairs]
    for rank, (wanted, found) in zip(ranks, pairs, strict=True):
        rank.update([seen(found)], [truth(wanted)])
    joined = PixelScores(CLASSES)
    for name, reduce in joined._reductions.items():
        setattr(joined, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    joined._update_count = 1
    assert joined.compute() == pytest.approx(measured(*pairs))


def test_table_and_matrix() -> None:
    metric = PixelScores(CLASSES)
    metric.update([seen([[0, 1, 1, 1]])], [truth([[0, 0, 1, 1]])])
    lines = metric.table().splitlines()
    assert metric.matrix().tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert lines[1].split() == ["background", "0.500", "0.500", "0.500"]
    assert lines[3].split() == ["dog", "0.000", "-", "-"]
    assert set(metric.compute()) <= set(metric.names())


def test_empty_rows_of_the_confusion_are_in_no_mean() -> None:
    assert scores(np.array([[5, 0], [0, 0]]), ("a", "b"))["miou"] == 1


# --- boundaries ---


def square(low: int, high: int, side: int = 40) -> np.ndarray:
    labels = np.zeros((side, side), np.uint8)
    labels[low:high, low:high] = 1
    return labels


def test_boundary_of_the_truth_itself_is_perfect() -> None:
    assert boundary_f1(square(10, 30), square(10, 30), 0.02) == [1.0, 1.0]


def test_boundary_within_reach_is_perfect_and_beyond_is_not() -> None:
    """The diagonal is 57 pixels: 0.02 of it is one pixel, 0.1 six."""
    grown = square(7, 33)
    assert boundary_f1(square(10, 30), grown, 0.1) == [1.0, 1.0]
    assert max(boundary_f1(square(10, 30), grown, 0.02)) < 0.2


def test_boundary_found_nowhere_is_zero() -> None:
    assert boundary_f1(square(10, 30), square(0, 0), 0.02) == [0.0, 0.0]


def test_boundary_of_one_class_everywhere() -> None:
    assert boundary_f1(square(0, 0), square(0, 0), 0.02) == [1.0]


def banded(side: int = 60) -> np.ndarray:
    """A square with a band of two ignored pixels around it, as Pascal's outlines."""
    labels = square(20, 40, side)
    labels[18:42, 18:42] = 255
    labels[20:40, 20:40] = 1
    return labels


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (square(20, 40, 60), [1.0, 1.0]),
        (np.ones((60, 60), np.uint8), [0.0, 0.0]),  # nothing but cat: the band is no boundary of its own
        (np.zeros((60, 60), np.uint8), [0.0, 0.0]),
        (square(2, 12, 60), [0.0, 0.0]),
    ],
    ids=["right", "all cat", "all background", "elsewhere"],
)
def test_boundary_is_not_earned_by_ignored_pixels(found: np.ndarray, expected: list[float]) -> None:
    assert boundary_f1(banded(), found, 0.03) == pytest.approx(expected, abs=0.03)


def test_boundary_f1_is_the_mean_over_classes_then_pictures() -> None:
    """One picture of one class, right: 1. One of two classes, both wrong: 0. Not 1 of 3."""
    found = measured((square(0, 0), square(0, 0)), (square(10, 30), square(0, 0)))
    assert found["boundary_f1"] == pytest.approx(0.5)


def test_boundary_f1_is_the_same_for_the_transposed_picture() -> None:
    generator = np.random.default_rng(1)
    wanted, found = (generator.random((30, 44)) < 0.5 for _ in range(2))
    wanted, found = wanted.astype(np.uint8), found.astype(np.uint8)
    assert boundary_f1(wanted, found, 0.05) == pytest.approx(boundary_f1(wanted.T, found.T, 0.05))


def test_boundary_f1_equals_distances_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    wanted = (generator.random((24, 30)) < 0.5).astype(np.uint8)
    wanted[:12] = 0
    found = np.roll(wanted, 2, axis=1)
    reach = 0.05 * float(np.hypot(24, 30))
    expected = []
    for label in (0, 1):
        edges = [_edge(labels == label) for labels in (wanted, found)]
        near = np.hypot(*(edges[0][:, None] - edges[1][None]).transpose(2, 0, 1)) <= reach
        recall, precision = near.any(1).mean(), near.any(0).mean()
        expected.append(2 * precision * recall / (precision + recall))
    assert boundary_f1(wanted, found, 0.05) == pytest.approx(expected)


def _edge(inside: np.ndarray) -> np.ndarray:
    """Places of the pixels with another class among their eight neighbours."""
    padded = np.pad(inside, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return np.argwhere(inside & ~windows.all((2, 3)))
