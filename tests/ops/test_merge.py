"""Greedy merging of boxes, by hand and against a naive loop."""

import numpy as np
import pytest

from quadrat.ops.merge import greedy_merge, match_scores, merge_by_class

A, B, C, FAR = [0, 0, 10, 10], [1, 0, 11, 10], [3, 0, 13, 10], [50, 50, 60, 60]


def merged(boxes: list, scores: list, threshold: float = 0.5) -> tuple[list, list]:
    found = greedy_merge(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), threshold=threshold)
    return found[0].tolist(), found[1].tolist()


def test_merge_nothing() -> None:
    assert merged([], []) == ([], [])
    none = merge_by_class(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0), threshold=0.5)
    assert [part.shape for part in none] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize(
    ("boxes", "scores", "expected"),
    [
        ([A], [0.5], ([A], [0.5])),
        ([A, A], [0.5, 0.25], ([A], [0.75])),
        ([A, B], [0.5, 0.25], ([[0.5, 0, 10.5, 10]], [0.75])),
        ([A, FAR], [0.5, 0.25], ([A, FAR], [0.5, 0.25])),
        ([FAR, A, FAR, B], [1, 0.5, 2, 0.25], ([FAR, [0.5, 0, 10.5, 10]], [3, 0.75])),
    ],
)
def test_merge_by_hand(boxes: list, scores: list, expected: tuple) -> None:
    assert merged(boxes, scores) == expected


def test_three_merge_in_the_order_of_their_match() -> None:
    """A and B score 0.2 and go first; what they become is 2.5 away from C, 0.25 + 0.25; the middle of three would be 4 / 3."""
    for boxes in ([A, B, C], [C, B, A], [A, C, B]):
        assert merged(boxes, [1, 2, 4], threshold=0.501) == ([[1.75, 0, 11.75, 10]], [7])
        assert sorted(merged(boxes, [1, 1, 1], threshold=0.499)[0]) == [[0.5, 0, 10.5, 10], C]


def test_match_score_by_hand() -> None:
    boxes = np.array([A, [5, 0, 15, 10], [0, 2.5, 10, 7.5], FAR, [0, 0, 10, 5]], float)
    below = 2.5 / 75**0.5 + 0.5  # of the last: its middle is 2.5 away, the mean area 75
    far = (50 * 2**0.5) / 10 + 1
    np.testing.assert_allclose(match_scores(boxes[:1], boxes)[0], [0, 1, 0.5, far, below])


def test_match_score_is_symmetric_and_free_of_scale() -> None:
    rng = np.random.default_rng(0)
    corner = rng.random((20, 2)) * 20
    boxes = np.concatenate([corner, corner + 1 + rng.random((20, 2)) * 20], axis=1)
    scores = match_scores(boxes, boxes)
    np.testing.assert_allclose(scores, scores.T)
    np.testing.assert_allclose(scores, match_scores(boxes * 7 + 3, boxes * 7 + 3))
    assert np.abs(np.diag(scores)).max() < 1e-12
    assert scores.min() > -1e-12


def test_classes_never_merge_and_the_best_come_first() -> None:
    boxes, labels = np.array([A, A, B, FAR], np.float32), np.array([2, 1, 1, 2])
    found = merge_by_class(boxes, np.array([0.5, 0.25, 0.5, 0.625], np.float32), labels, threshold=0.5)
    assert found.boxes.tolist() == [[0.5, 0, 10.5, 10], FAR, A]
    assert found.scores.tolist() == [0.75, 0.625, 0.5]
    assert found.labels.tolist() == [1, 2, 2]


def test_merge_equals_a_naive_loop() -> None:
    """All pairs are scored anew after every merge."""
    rng = np.random.default_rng(1)
    corner = rng.random((40, 2)) * 30
    boxes = np.concatenate([corner, corner + 10 + rng.random((40, 2)) * 8], axis=1)
    scores = rng.random(40)
    left = list(zip(boxes, scores, strict=True))
    while len(left) > 1:
        pairs = [(i, j) for i in range(len(left)) for j in range(i + 1, len(left))]
        best = min(pairs, key=lambda pair: match_scores(left[pair[0]][0][None], left[pair[1]][0][None])[0, 0])
        (a, first), (b, second) = left[best[0]], left[best[1]]
        if match_scores(a[None], b[None])[0, 0] > 0.6:
            break
        left[best[0]] = ((a + b) / 2, first + second)
        del left[best[1]]
    found = greedy_merge(boxes, scores, threshold=0.6)
    assert 3 < len(left) < 30
    np.testing.assert_allclose(found[0], [box for box, _ in left])
    np.testing.assert_allclose(found[1], [score for _, score in left])
