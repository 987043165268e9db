"""Suppression of a padded batch is torchvision's of each image alone."""

import pytest
import torch
from torchvision.ops import batched_nms

from quadrat.ops.suppress import Kept, suppress


def crowd(images: int, length: int, groups: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (B, N, 4) that overlap a lot, scores that differ, and groups."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, length, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 10 + torch.rand(images, length, 2, generator=generator) * 40], dim=2)
    scores = torch.stack([torch.randperm(length, generator=generator) for _ in range(images)]) / length
    return boxes, scores, torch.randint(groups, (images, length), generator=generator)


def rows(kept: Kept, image: int) -> list[int]:
    return kept.index[image][kept.valid[image]].tolist()


def one(
    boxes: list, scores: list, *, groups: list | None = None, valid: list | None = None, keep: int = 10
) -> list[int]:
    """The survivors of one image at a threshold of one half."""
    n = len(boxes)
    kept = suppress(
        torch.tensor(boxes, dtype=torch.float32).reshape(1, n, 4),
        torch.tensor(scores, dtype=torch.float32).reshape(1, n),
        torch.tensor(groups or [0] * n).reshape(1, n),
        torch.tensor(valid if valid is not None else [True] * n, dtype=torch.bool).reshape(1, n),
        threshold=0.5,
        keep=keep,
    )
    return rows(kept, 0)


A, B, FAR = [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]


def test_suppress_nothing():
    assert one([], []) == []


def test_suppress_only_padding():
    assert one([A, B], [0.9, 0.8], valid=[False, False]) == []


@pytest.mark.parametrize(
    ("boxes", "scores", "groups", "survivors"),
    [
        ([A, B, FAR], [0.9, 0.8, 0.7], [0, 0, 0], [0, 2]),
        ([A, B, FAR], [0.8, 0.9, 0.7], [0, 0, 0], [1, 2]),
        ([FAR, A, B], [0.7, 0.8, 0.9], [0, 0, 0], [2, 0]),
        ([A, B, FAR], [0.9, 0.8, 0.7], [0, 1, 0], [0, 1, 2]),
        ([A, A], [0.0, -3.0], [0, 1], [0, 1]),  # any real number is a score
        ([A, [0, 0, 10, 5]], [0.9, 0.8], [0, 0], [0, 1]),  # exactly the threshold is not too much
    ],
)
def test_suppress_by_hand(boxes: list, scores: list, groups: list, survivors: list):
    assert one(boxes, scores, groups=groups) == survivors


def test_ties_leave_one_of_twins():
    assert one([A, A, A], [0.5, 0.5, 0.5]) == [0]


def test_padding_neither_suppresses_nor_survives():
    assert one([A, B, FAR], [0.9, 0.8, 0.7], valid=[False, True, True]) == [1, 2]
    assert one([A, B, A], [0.1, 0.2, 99.0], valid=[True, True, False]) == [1]


@pytest.mark.parametrize(("keep", "survivors"), [(1, [0]), (2, [0, 2]), (99, [0, 2])])
def test_keep_at_most(keep: int, survivors: list[int]):
    assert one([A, B, FAR], [0.9, 0.8, 0.7], keep=keep) == survivors


def test_shapes_are_fixed():
    boxes, scores, groups = crowd(2, 30, 3)
    valid = torch.ones(2, 30, dtype=torch.bool)
    for threshold in (0.0, 0.99):
        kept = suppress(boxes, scores, groups, valid, threshold=threshold, keep=7)
        assert kept.index.shape == kept.valid.shape == (2, 7)
    assert suppress(boxes, scores, groups, valid, threshold=0.5, keep=100).index.shape == (2, 30)


@pytest.mark.parametrize("length", [0, 1, 60, 600], ids=lambda n: f"{n} boxes")  # 600: torchvision's other algorithm
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppress_equals_torchvision_per_image(length: int, threshold: float):
    boxes, scores, groups = crowd(3, length, 4)
    valid = torch.rand(3, length, generator=torch.Generator().manual_seed(1)) < 0.8
    kept = suppress(boxes, scores, groups, valid, threshold=threshold, keep=length + 5)
    for i in range(3):
        real = valid[i].nonzero()[:, 0]
        alone = batched_nms(boxes[i, real], scores[i, real], groups[i, real], threshold)
        assert rows(kept, i) == real[alone].tolist()


def test_pictures_do_not_see_each_other():
    boxes, scores, groups = crowd(1, 20, 2)
    twice = [tensor.expand(2, *tensor.shape[1:]) for tensor in (boxes, scores, groups)]
    kept = suppress(*twice, torch.ones(2, 20, dtype=torch.bool), threshold=0.5, keep=20)
    alone = suppress(boxes, scores, groups, torch.ones(1, 20, dtype=torch.bool), threshold=0.5, keep=20)
    assert rows(kept, 0) == rows(kept, 1) == rows(alone, 0)
