"""Linear SVMs equal the library's on everything at once, and meet their hard negatives in the published order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC

from quadrat.models import linear_svm
from quadrat.models.linear_svm import NEVER, Examples, LinearSVMs, scale_to


def picture(features: Any, labels: Any, overlaps: Any) -> Examples:
    """Regions as rows of numbers; an overlap with one class may be given alone."""
    rows = np.asarray(overlaps, np.float32)
    return Examples(
        np.asarray(features, np.float32), np.asarray(labels, np.int64), rows[:, None] if rows.ndim == 1 else rows
    )


def clouds(seed: int = 0, pictures: int = 3, width: int = 5) -> list[Examples]:
    """Pictures of two classes: two objects and twelve proposals each, some of which overlap an object."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(pictures):
        labels = np.array([1, 2] + [0] * 12)
        overlaps = rng.uniform(0, 0.6, (14, 2))
        overlaps[[0, 1], [0, 1]] = 1.0
        features = rng.normal(size=(14, width)) + 2 * overlaps @ np.eye(2, width)
        found.append(picture(features, labels, overlaps))
    return found


def all_kept(width: int, classes: int, **settings: Any) -> LinearSVMs:
    """Every negative is hard, and none is let go."""
    return LinearSVMs(width, classes, hard=-np.inf, easy=-np.inf, **settings)


def test_no_pictures_leave_every_class_below_all_others() -> None:
    planes = LinearSVMs(3, 2).fit([], [0, 1])
    assert planes.weight.tolist() == [[0.0] * 3] * 2
    assert planes.bias.tolist() == [NEVER] * 2


def test_classes_without_an_object_or_a_negative_are_never_seen() -> None:
    alone = picture([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]], [1, 0, 0], [[1.0, 0.1, 0], [0.8, 0.0, 0], [0.0, 0.0, 0]])
    nothing = picture(np.zeros((0, 2)), [], np.zeros((0, 3)))
    planes = LinearSVMs(2, 3).fit([nothing, alone, nothing], [0, 1, 2])
    assert planes.bias[0] > -10  # learned although the first picture shows nothing
    assert planes.bias[1:].tolist() == [NEVER, NEVER]
    everywhere = picture([[1.0, 0.0], [0.9, 0.1]], [1, 0], [1.0, 0.3])
    assert LinearSVMs(2, 1).fit([everywhere], [0]).bias.tolist() == [NEVER]


def test_features_of_zeros_have_no_length_to_scale() -> None:
    assert scale_to(20.0, 0.0, 7) == 1.0
    assert scale_to(20.0, 14.0, 7) == 10.0


def test_all_negatives_at_once_equal_the_library() -> None:
    """What is learned in several trainings ends where one on everything does."""
    pictures = clouds()
    planes = all_kept(5, 2, retrain_after=4).fit(pictures, [0, 1])
    every = np.concatenate([one.hidden for one in pictures]).astype(np.float64)
    scale = 20 / np.linalg.norm(every, axis=1).mean()
    for number in (0, 1):
        positive = np.concatenate([one.labels == number + 1 for one in pictures])
        negative = np.concatenate([one.overlaps[:, number] < 0.3 for one in pictures])
        rows = np.concatenate([every[positive], every[negative]]) * scale
        signs = [1] * positive.sum() + [-1] * negative.sum()
        svm = LinearSVC(
            C=1e-3, loss="hinge", dual=True, class_weight={1: 2}, intercept_scaling=10, max_iter=100_000, tol=1e-8
        ).fit(rows, signs)
        margins = every @ planes.weight[number] + planes.bias[number]
        np.testing.assert_allclose(margins, svm.decision_function(every * scale), atol=2e-3)


def test_a_class_learned_alone_is_the_same() -> None:
    """Ranks share the classes."""
    together, alone = LinearSVMs(5, 2).fit(clouds(), [0, 1]), LinearSVMs(5, 2).fit(clouds(), [1])
    np.testing.assert_array_equal(together.weight[1:], alone.weight)
    np.testing.assert_array_equal(together.bias[1:], alone.bias)


def test_margins_do_not_depend_on_the_unit_of_the_features() -> None:
    pictures = clouds()
    small = [one._replace(hidden=one.hidden / 64) for one in pictures]
    svms = LinearSVMs(5, 2)
    one, other = svms.fit(pictures, [0, 1]), svms.fit(small, [0, 1])
    np.testing.assert_allclose(other.weight / 64, one.weight, rtol=1e-5)
    np.testing.assert_allclose(other.bias, one.bias, rtol=1e-5)


def test_two_pairs_of_points_have_the_widest_margin_between_them() -> None:
    """Objects at (1, 1) and (1, -1), negatives at (-1, 1) and (-1, -1): the plane x = 0, with margins of 1."""
    corners = picture([[1, 1], [1, -1], [-1, 1], [-1, -1]], [1, 1, 0, 0], [1, 1, 0, 0])
    planes = all_kept(2, 1, cost=100.0).fit([corners], [0])
    np.testing.assert_allclose(planes.weight, [[1.0, 0.0]], atol=1e-3)
    np.testing.assert_allclose(planes.bias, [0.0], atol=1e-3)


def test_points_inside_the_margin_pull_with_cost_and_weight() -> None:
    """At 20 and -20 with cost 1e-4 both are inside: w = 20 (2e-4 + 1e-4), b = 10 * 10 (2e-4 - 1e-4), the paper's 2 and 10."""
    pair = picture([[20.0], [-20.0]], [1, 0], [1, 0])
    planes = all_kept(1, 1, cost=1e-4).fit([pair], [0])
    np.testing.assert_allclose(planes.weight, [[6e-3]], rtol=1e-4)
    np.testing.assert_allclose(planes.bias, [1e-2], rtol=1e-4)


def test_hard_negatives_come_and_easy_ones_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a line, the object at 1; two points, one on each side, hold the plane: w = 2 / distance.

    First: all three of the first picture, then -3 is let go (margin -3). -2 is not hard then, -0.5 and -0.6 are; 0 overlaps an
    object by 0.3. More than one new: trained again, and -1 is let go (margin -5/3). -0.4 waits until the end.
    """
    seen: list[list[float]] = []

    class Recorded(LinearSVC):
        def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: None = None) -> Recorded:
            seen.append((X[y < 0, 0] / X[0, 0]).round(4).tolist())
            return super().fit(X, y)

    monkeypatch.setattr(linear_svm, "LinearSVC", Recorded)
    pictures = [
        picture([[1.0], [-1.0], [-3.0], [-1.1]], [1, 0, 0, 0], [1, 0, 0.29, 0]),
        picture([[-0.5], [-2.0], [0.0]], [0, 0, 0], [0, 0, 0.3]),
        picture([[-0.6]], [0], [0]),
        picture([[-0.4]], [0], [0]),
    ]
    planes = LinearSVMs(1, 1, cost=1e4, retrain_after=1).fit(pictures, [0])
    assert seen == [[-1.0, -3.0, -1.1], [-1.0, -1.1, -0.5, -0.6], [-0.5, -0.6, -0.4]]
    np.testing.assert_allclose(planes.weight, [[2 / 1.4]], rtol=1e-3)
    np.testing.assert_allclose(planes.bias, [1 - 2 / 1.4], rtol=1e-3)


def test_nothing_new_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    monkeypatch.setattr(linear_svm._Learner, "_train", _counting(times, linear_svm._Learner._train))
    first, easy = picture([[1.0], [-1.0]], [1, 0], [1, 0]), picture([[-2.0]], [0], [0])
    LinearSVMs(1, 1, cost=1e4).fit([first, easy], [0])
    assert len(times) == 1


def _counting(times: list[int], call: Any) -> Any:
    def counted(*args: Any) -> None:
        times.append(1)
        call(*args)

    return counted


def test_margins_are_those_of_the_planes_also_in_half_precision() -> None:
    svms = LinearSVMs(2, 3)
    assert svms(torch.ones(4, 2)).tolist() == [[NEVER] * 3] * 4
    svms.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, 1.001]]))
    svms.bias.copy_(torch.tensor([0.0, -1.0, 1.0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        margins = svms(torch.tensor([[3.0, 1.0]], dtype=torch.bfloat16))
    torch.testing.assert_close(margins, torch.tensor([[5.0, 0.5, 2.001]]))
    assert sum(parameter.numel() for parameter in svms.parameters()) == 0  # fitted, not trained


def test_letting_go_of_what_is_hard_is_refused() -> None:
    with pytest.raises(ValueError, match=r"easy=-1\.0 must not be above hard=-1\.2"):
        LinearSVMs(2, 1, hard=-1.2, easy=-1.0)
