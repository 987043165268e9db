"""Ridge regression of boxes against its closed form, and whitening against what it is for."""

from __future__ import annotations

import math

import numpy as np
import torch

from quadrat.models.ridge_boxes import CODER, SOFTEST, Moves, RidgeBoxes, whiten
from quadrat.ops.boxes import decode, encode


def moves(count: int = 40, width: int = 6, classes: int = 2, seed: int = 0) -> Moves:
    """Regions of one picture whose moves depend on their features, but for some noise."""
    rng = np.random.default_rng(seed)
    pooled = rng.normal(size=(count, width)).astype(np.float32)
    deltas = 0.1 * pooled[:, :4] + 0.05 * pooled[:, 1:5] + rng.normal(scale=0.02, size=(count, 4)) + [0.1, 0, -0.1, 0.2]
    return Moves(pooled, rng.integers(1, classes + 1, count), deltas.astype(np.float32), np.linalg.norm(pooled, axis=1))


def test_boxes_stay_without_fits_and_without_examples() -> None:
    ridge = RidgeBoxes(3, 2)
    boxes = torch.tensor([[4.0, 2.0, 10.0, 12.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(ridge(torch.randn(2, 3), boxes), boxes[:, None].expand(-1, 2, -1))
    nothing = Moves(np.zeros((0, 3), np.float16), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(5))
    for pictures in ([], [nothing]):
        shift = ridge.fit(pictures, [0, 1])
        assert shift.weight.shape == (2, 4, 3)
        assert not shift.weight.any()
        assert not shift.bias.any()


def test_whitened_targets_have_the_identity_for_covariance() -> None:
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) * 3 + [1.0, -2.0, 0.5, 0.0]
    white = whiten(targets)
    seen = (targets - white.mean) @ white.forward
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(seen.T @ seen / 500, np.eye(4), atol=5e-3)  # but for the 0.001
    np.testing.assert_allclose(white.forward, white.forward.T, atol=1e-12)
    np.testing.assert_allclose(seen @ white.back + white.mean, targets, atol=1e-9)


def test_whitening_by_hand() -> None:
    """Variances 4 and 1 in the first two directions, none in the others, where 0.001 stands for it."""
    white = whiten(
        np.array([[2.0, 1.0, 5.0, 0.0], [-2.0, 1.0, 5.0, 0.0], [2.0, -1.0, 5.0, 0.0], [-2.0, -1.0, 5.0, 0.0]])
    )
    assert white.mean.tolist() == [0.0, 0.0, 5.0, 0.0]
    expected = [1 / math.sqrt(4.001), 1 / math.sqrt(1.001), 1 / math.sqrt(SOFTEST), 1 / math.sqrt(SOFTEST)]
    np.testing.assert_allclose(white.forward, np.diag(expected), atol=1e-9)


def test_moves_are_those_of_the_closed_form() -> None:
    """(X^T X + lambda I)^-1 X^T Y on scaled features with a column of ones, whitened there and back."""
    examples = moves()
    shift = RidgeBoxes(6, 2).fit([examples], [0, 1])
    scale = 20 / examples.norms.mean()
    for number in (0, 1):
        own = examples.classes == number + 1
        rows = np.concatenate([examples.pooled[own].astype(np.float64) * scale, np.ones((own.sum(), 1))], axis=1)
        targets = examples.deltas[own].astype(np.float64)
        white = whiten(targets)
        whitened = (targets - white.mean) @ white.forward
        beta = np.linalg.inv(rows.T @ rows + 1000 * np.eye(7)) @ rows.T @ whitened
        expected = rows @ beta @ white.back + white.mean
        found = examples.pooled[own] @ shift.weight[number].T + shift.bias[number]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pictures_and_ranks_make_no_difference() -> None:
    examples, ridge = moves(), RidgeBoxes(6, 2)
    parts = [Moves(*(rows[start : start + 10] for rows in examples)) for start in range(0, 40, 10)]
    whole, split, alone = ridge.fit([examples], [0, 1]), ridge.fit(parts, [0, 1]), ridge.fit(parts, [1])
    np.testing.assert_allclose(split.weight, whole.weight, atol=1e-6)
    np.testing.assert_array_equal(alone.weight, split.weight[1:])
    np.testing.assert_array_equal(alone.bias, split.bias[1:])


def test_moves_do_not_depend_on_the_unit_of_the_features() -> None:
    examples, ridge = moves(), RidgeBoxes(6, 1)
    small = examples._replace(pooled=examples.pooled / 64, norms=examples.norms / 64)
    one, other = ridge.fit([examples], [0]), ridge.fit([small], [0])
    np.testing.assert_allclose(other.weight / 64, one.weight, atol=1e-6)


def test_regions_are_moved_to_their_objects() -> None:
    """With features that tell the move and next to no penalty, the moved boxes are the objects."""
    regions = torch.tensor([[10.0, 10.0, 30.0, 20.0], [0.0, 5.0, 16.0, 37.0], [20.0, 20.0, 40.0, 60.0]]).repeat(4, 1)
    objects = regions + torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    deltas = encode(objects, regions, CODER)
    ridge = RidgeBoxes(4, 3, alpha=1e-6)
    examples = Moves(deltas.numpy(), np.full(12, 2), deltas.numpy(), deltas.norm(dim=1).numpy())
    shift = ridge.fit([examples], [0, 1, 2])
    ridge.weight.copy_(torch.from_numpy(shift.weight))
    ridge.bias.copy_(torch.from_numpy(shift.bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moved = ridge(deltas, regions)
    torch.testing.assert_close(moved[:, 1], objects, atol=2e-2, rtol=0)
    torch.testing.assert_close(moved[:, 0], regions)  # a class without an example
    torch.testing.assert_close(decode(deltas, regions, CODER), objects, atol=1e-3, rtol=0)
