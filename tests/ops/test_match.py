"""Who answers for whom: by hand, at the thresholds, and as torchvision does."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher

from quadrat.ops.boxes import iou
from quadrat.ops.match import IGNORED, NEGATIVE, POSITIVE, Match, gather_rows, match

P, N, X = POSITIVE, NEGATIVE, IGNORED

OBJECTS = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
BOXES = [[0, 0, 10, 8], [20, 0, 30, 5], [40, 0, 50, 2], [0, 0, 10, 1]]
"""With the objects an IoU of .8, .5 and .2 (one object each), and .1 with the first."""


def run(boxes: list, truth: list, *, ignore: list[bool] | None = None, padding: int = 0, **options) -> Match:
    """Match one image; ``padding`` rows of junk truth behind that no one should see."""
    rows = torch.tensor(truth + [[0, 0, 10, 10]] * padding, dtype=torch.float32).reshape(1, -1, 4)
    valid = torch.arange(rows.shape[1])[None] < len(truth)
    crowd = torch.zeros_like(valid)
    crowd[0, : len(truth)] = torch.tensor(ignore or [False] * len(truth))
    options = {"positive": 0.7, "negative": (0.0, 0.3), "best_per_object": False} | options
    return match(torch.tensor(boxes).float().reshape(-1, 4), rows, valid, crowd, **options)


@pytest.mark.parametrize("best_per_object", [False, True])
def test_an_image_without_objects_is_background(best_per_object: bool):
    found = run(BOXES, [], padding=1, best_per_object=best_per_object)
    assert found.state.tolist() == [[N] * 4]
    assert found.quality.tolist() == [[0] * 4]


def test_no_boxes():
    assert run([], OBJECTS).state.shape == (1, 0)


@pytest.mark.parametrize(
    ("best_per_object", "state"),
    [(False, [P, X, N, N]), (True, [P, P, P, N])],
    ids=["thresholds", "best per object"],
)
@pytest.mark.parametrize("padding", [0, 2])
def test_match_by_hand(best_per_object: bool, state: list[int], padding: int):
    found = run(BOXES, OBJECTS, best_per_object=best_per_object, padding=padding)
    assert found.state.tolist() == [state]
    assert found.index.tolist() == [[0, 1, 2, 0]]
    torch.testing.assert_close(found.quality, torch.tensor([[0.8, 0.5, 0.2, 0.1]]))


@pytest.mark.parametrize(
    ("height", "state"),
    [(10, P), (5, P), (4, X), (2.5, X), (2, N), (1.25, N), (1, X), (0, X)],
)
def test_thresholds_are_inclusive_below_and_exclusive_above(height: float, state: int):
    """Positive from .5, negative in [.125, .25): boxes of this height in an object of height 10, IoU height / 10."""
    found = run([[0, 0, 10, height]], OBJECTS[:1], positive=0.5, negative=(0.125, 0.25))
    assert found.state.item() == state


def test_a_box_between_two_objects_takes_the_first():
    found = run([[5, 0, 15, 10]], [[0, 0, 10, 10], [10, 0, 20, 10]], positive=0.3)
    assert (found.state.item(), found.index.item()) == (P, 0)


def test_ties_for_the_best_box_of_an_object_are_all_positive():
    found = run([[0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1]], OBJECTS[:1], best_per_object=True)
    assert found.state.tolist() == [[P, P, N]]


def test_an_object_that_no_box_touches_makes_nothing_positive():
    found = run(BOXES, [[80, 80, 90, 90]], best_per_object=True)
    assert found.state.tolist() == [[N] * 4]


def test_a_low_quality_positive_answers_for_its_own_best_object():
    """The box is the best of the second object, yet covers the first better: as in torchvision it answers for that."""
    objects = [[0, 0, 10, 10], [10, 0, 30, 10]]
    found = run([[0, 0, 10, 10], [2, 0, 12, 10]], objects, best_per_object=True)
    assert found.state.tolist() == [[P, P]]
    assert found.index.tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("box", "state"),
    [
        ([0, 0, 10, 10], X),  # the whole object: not positive
        ([2, 2, 4, 4], X),  # wholly inside
        ([5, 0, 15, 10], N),  # half inside
        ([3, 0, 13, 10], N),  # exactly the share
        ([2, 0, 12, 10], X),
        ([20, 0, 30, 5], N),
        ([60, 60, 70, 70], N),
    ],
)
def test_boxes_in_an_ignored_object_are_ignored(box: list, state: int):
    found = run([box], [[0, 0, 10, 10]], ignore=[True], best_per_object=True, negative=(0.0, 0.7))
    assert found.state.item() == state


def test_a_positive_box_in_an_ignored_object_stays_positive():
    crowd, person = [0, 0, 50, 50], [10, 10, 20, 20]
    found = run([person, [30, 30, 40, 40], crowd], [crowd, person], ignore=[True, False])
    assert found.state.tolist() == [[P, X, X]]
    assert found.index[0, 0] == 1


def test_an_ignored_object_claims_no_best_box():
    found = run([[0, 0, 10, 2]], OBJECTS[:1], ignore=[True], best_per_object=True, ignore_coverage=1.0)
    assert found.state.item() == N


def test_padding_marked_ignore_does_nothing():
    truth, no = torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[False]])
    found = match(truth[0], truth, no, ~no, positive=0.5, negative=(0.0, 0.5), best_per_object=True)
    assert found.state.item() == N


@pytest.mark.parametrize(("high", "low"), [(0.7, 0.3), (0.5, 0.5)], ids=["rpn", "roi"])
@pytest.mark.parametrize("best_per_object", [False, True])
def test_match_equals_torchvision(high: float, low: float, best_per_object: bool):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=generator) * 80
    boxes = torch.cat([corner, corner + 5 + torch.rand(400, 2, generator=generator) * 30], dim=1)
    truth = boxes[:12] + torch.randn(12, 4, generator=generator)
    quality = iou(truth, boxes)
    theirs = Matcher(high, low, allow_low_quality_matches=best_per_object)(quality)
    states = torch.where(theirs >= 0, P, torch.where(theirs == Matcher.BELOW_LOW_THRESHOLD, N, X))
    yes = torch.ones(1, 12, dtype=torch.bool)
    ours = match(boxes, truth[None], yes, ~yes, positive=high, negative=(0.0, low), best_per_object=best_per_object)
    assert torch.equal(ours.state[0].long(), states)
    assert torch.equal(ours.index[0][theirs >= 0], theirs[theirs >= 0])
    assert {P, N} <= set(states.tolist())


@pytest.mark.parametrize("shared_boxes", [True, False], ids=["anchors", "proposals"])
def test_batched_equals_single(shared_boxes: bool):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(3, 60, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 5 + torch.rand(3, 60, 2, generator=generator) * 30], dim=2)
    truth = boxes[:, :6] + torch.randn(3, 6, 4, generator=generator)
    valid = torch.arange(6)[None] < torch.tensor([[6], [0], [3]])
    ignore = torch.rand(3, 6, generator=generator) < 0.3
    options = {"positive": 0.6, "negative": (0.0, 0.3), "best_per_object": True}
    together = match(boxes[0] if shared_boxes else boxes, truth, valid, ignore, **options)
    assert set(together.state.flatten().tolist()) == {P, N, X}
    for i in range(3):
        own, rows = boxes[0] if shared_boxes else boxes[i], max(1, int(valid[i].sum()))  # no padding but for no objects
        alone = match(own, truth[i : i + 1, :rows], valid[i : i + 1, :rows], ignore[i : i + 1, :rows], **options)
        assert torch.equal(together.state[i], alone.state[0])
        assert torch.equal(together.quality[i], alone.quality[0])
        real = together.state[i] == P
        assert torch.equal(together.index[i][real], alone.index[0][real])


def test_gather_rows_of_labels_and_boxes():
    labels, index = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[2, 2], [0, 1]])
    assert gather_rows(labels, index).tolist() == [[3, 3], [4, 5]]
    boxes = labels[..., None].expand(-1, -1, 4)
    assert gather_rows(boxes, index).tolist() == [[[3] * 4, [3] * 4], [[4] * 4, [5] * 4]]
