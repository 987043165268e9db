"""Scores of one object's class and box: by hand, in every order of guesses, on several ranks."""

import pytest
import torch

from quadrat.metrics.localization import NAMES, LocalizationScores
from quadrat.structures import Detections, Targets

CLASSES = ("cat", "dog", "bird")
SIZE = (100, 100)
A, HALF_A, LESS_A = (0, 0, 40, 40), (0, 0, 40, 20), (0, 0, 40, 19)  # IoU with A: 1, 1/2, below
SMALL, FAR = (60, 60, 80, 80), (50, 0, 100, 50)


def truth(*rows, size=SIZE, **more) -> Targets:
    """Rows are (box, label) or (box, label, ignore)."""
    ignore = [len(row) > 2 and row[2] for row in rows]
    return Targets.make([row[0] for row in rows], [row[1] for row in rows], size, "p", ignore=ignore, **more)


def guesses(*rows, size=SIZE) -> Detections:
    """Rows are (box, label), best first."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.linspace(1, 0.1, len(rows)), torch.tensor([row[1] for row in rows]).long(), size)


def measured(*pairs) -> dict[str, float]:
    metric = LocalizationScores(CLASSES)
    for found, target in pairs:
        metric.update([found], [target])
    return metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("pictures", [[], [truth()], [truth((A, 1, True))]], ids=["none", "empty", "ignored only"])
def test_nothing_to_score_is_wrong_with_a_warning(pictures: list) -> None:
    metric = LocalizationScores(CLASSES)
    metric.update([guesses((A, 1))] * len(pictures), pictures)
    with pytest.warns(UserWarning, match=f"no object that counts in {len(pictures)} pictures"):
        assert metric.compute() == dict.fromkeys(NAMES, 0.0) | {"top1_error": 1.0, "top5_error": 1.0}


# The first guess, and those behind it; then top1, top5, iou, corloc, class_accuracy, class_top5, given_class.
HAND = {
    "nothing guessed": ([], (0, 0, 0, 0, 0, 0, 0)),
    "right": ([(A, 1)], (1, 1, 1, 1, 1, 1, 1)),
    "an overlap of one half is enough": ([(HALF_A, 1)], (1, 1, 0.5, 1, 1, 1, 1)),
    "less is not": ([(LESS_A, 1)], (0, 0, 0.475, 0, 1, 1, 0)),
    "wrong class, right box": ([(A, 2)], (0, 0, 1, 1, 0, 0, 0)),
    "right class, wrong box": ([(FAR, 1)], (0, 0, 0, 0, 1, 1, 0)),
    "second guess right": ([(A, 2), (A, 1)], (0, 1, 1, 1, 0, 1, 1)),
    "only the first guess of the class is given": ([(FAR, 2), (FAR, 1), (A, 1)], (0, 1, 0, 0, 0, 1, 0)),
    "the sixth guess is too late": ([*[(A, 2)] * 5, (A, 1)], (0, 0, 1, 1, 0, 0, 1)),
}


@pytest.mark.parametrize("case", HAND)
def test_scores_by_hand(case: str) -> None:
    rows, expected = HAND[case]
    found = measured((guesses(*rows), truth((A, 1))))
    assert found == pytest.approx(
        dict(zip(NAMES, expected, strict=True)) | {"top1_error": 1 - expected[0], "top5_error": 1 - expected[1]}
    )


def test_the_class_is_the_largest_objects_and_any_box_of_it_counts() -> None:
    target = truth((SMALL, 2), (FAR, 1), ((0, 60, 20, 80), 1))
    assert measured((guesses(((0, 60, 20, 80), 1)), target))["top1"] == 1
    assert measured((guesses((SMALL, 2)), target))["class_accuracy"] == 0


def test_ignored_objects_neither_name_the_picture_nor_count() -> None:
    target = truth((FAR, 2, True), (A, 1), (SMALL, 1, True))
    assert measured((guesses((FAR, 2)), target))["class_accuracy"] == 0
    assert measured((guesses((SMALL, 1)), target))["top1"] == 0
    assert measured((guesses((A, 1)), target))["top1"] == 1


def test_numbers_are_means_over_pictures_in_their_own_frame() -> None:
    """The second result is in a frame of half the size, the third picture has nothing that counts."""
    half = guesses(((0, 0, 20, 20), 2), size=(50, 50))
    found = measured((guesses((A, 1)), truth((A, 1))), (half, truth((A, 1))), (guesses(), truth((A, 1, True))))
    assert found["top1"] == 0.5
    assert found["iou"] == 1


def test_a_resized_picture_is_scored_in_its_own_frame() -> None:
    target = truth(((0, 0, 20, 40), 1), size=(100, 50), original_size=SIZE)
    assert measured((guesses((A, 1)), target))["iou"] == 1


def test_only_what_is_better_when_larger_can_be_chosen_by() -> None:
    metric = LocalizationScores(CLASSES)
    metric.update([guesses((A, 1))], [truth((A, 1))])
    assert set(metric.compute()) - set(metric.names()) == {"top1_error", "top5_error"}


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image p: labels are 1\.\.3, got 4"):
        LocalizationScores(CLASSES).update([guesses((A, 1))], [truth((A, 4))])


def test_two_ranks_are_one_set() -> None:
    pairs = [(guesses((A, 1)), truth((A, 1))), (guesses((A, 1)), truth((A, 2))), (guesses(), truth())]
    ranks = [LocalizationScores(CLASSES) for _ in pairs]
    for rank, (found, target) in zip(ranks, pairs, strict=True):
        rank.update([found], [target])
    together = LocalizationScores(CLASSES)
    for name, reduce in together._reductions.items():
        setattr(together, name, reduce(torch.stack([getattr(rank, name) for rank in ranks])))
    together._update_count = 1
    assert together.compute() == measured(*pairs)


def test_table() -> None:
    metric = LocalizationScores(CLASSES)
    metric.update([guesses((HALF_A, 1)), guesses((A, 1)), guesses()], [truth((A, 1)), truth((A, 2)), truth()])
    lines = metric.table().splitlines()
    assert lines[1].split() == ["cat", "1", "1.000", "0.500", "1.000", "0.000"]
    assert lines[2].split() == ["dog", "1", "0.000", "1.000", "1.000", "1.000"]
    assert lines[3].split() == ["bird", "0", "-", "-", "-", "-"]
    assert lines[4].split() == ["all", "2", "0.500", "0.750", "1.000", "0.500"]
    assert lines[5] == "1 pictures without an object that counts were left out"
