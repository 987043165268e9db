"""Which regions the heads are trained on."""

import pytest
import torch

from contracts import batch_of
from quadrat.heads.regions import RegionSampler, TrainingRegions
from quadrat.structures import Batch, Proposals

OBJECT = [10.0, 10, 30, 30]
FAR = [40.0, 40, 60, 60]


def proposals(*images: list[list[float]]) -> Proposals:
    """Padded to the longest."""
    longest = max(1, *(len(rows) for rows in images))
    boxes = torch.zeros(len(images), longest, 4)
    valid = torch.zeros(len(images), longest, dtype=torch.bool)
    for image, rows in enumerate(images):
        boxes[image, : len(rows)] = torch.tensor(rows).reshape(-1, 4)
        valid[image, : len(rows)] = True
    return Proposals(boxes, torch.ones_like(valid, dtype=torch.float32), valid)


def everything(found: Proposals, batch: Batch, **options: object) -> TrainingRegions:
    return RegionSampler(10_000, 1.0, **options)(found, batch)  # pyright: ignore[reportArgumentType]


def rows(regions: TrainingRegions, image: int = 0) -> list[tuple[list[float], int]]:
    """Box and label of the valid regions."""
    keep = regions.valid[image]
    return sorted(zip(regions.boxes[image][keep].tolist(), regions.labels[image][keep].tolist(), strict=True))


def test_sampler_without_anything() -> None:
    regions = everything(proposals([]), batch_of({}))
    assert not regions.valid.any()
    assert not regions.positive.any()
    assert regions.labels.tolist() == [[0, 0]]
    assert not regions.boxes.any()


def test_sampler_adds_the_truth() -> None:
    regions = everything(proposals([FAR]), batch_of({"boxes": [OBJECT], "labels": [4]}))
    assert rows(regions) == [(OBJECT, 4), (FAR, 0)]
    assert regions.positive.sum() == 1


def test_sampler_never_takes_an_object_to_ignore() -> None:
    """Neither as a region, nor as what a region answers for; a proposal inside it is no background."""
    batch = batch_of({"boxes": [OBJECT], "labels": [4], "ignore": [True]})
    assert rows(everything(proposals([OBJECT, FAR]), batch)) == [(FAR, 0)]


def test_sampler_keeps_images_apart() -> None:
    batch = batch_of({"boxes": [OBJECT], "labels": [4]}, {"boxes": [FAR], "labels": [2]}, {})
    regions = everything(proposals([FAR], [FAR], [FAR]), batch)
    assert rows(regions, 0) == [(OBJECT, 4), (FAR, 0)]
    assert rows(regions, 1) == [(FAR, 2), (FAR, 2)]
    assert rows(regions, 2) == [(FAR, 0)]


def test_sampler_takes_no_padding_of_proposals() -> None:
    assert rows(everything(proposals([], [FAR, FAR]), batch_of({}, {}))) == []


@pytest.mark.parametrize(
    ("right", "label"),
    [(30.0, 4), (20.0, 4), (19.9, 0), (13.0, 0), (11.9, None)],  # IoU 1, 0.5, 0.495, 0.15, 0.095
)
def test_sampler_bands(right: float, label: int | None) -> None:
    """Fast R-CNN's background is [0.1, 0.5)."""
    proposal = [10.0, 10, right, 30]
    regions = everything(proposals([proposal]), batch_of({"boxes": [OBJECT], "labels": [4]}), background_iou=(0.1, 0.5))
    found = [kind for box, kind in rows(regions) if box == pytest.approx(proposal)]
    assert found == {None: []}.get(label, [label] * (2 if right == 30 else 1))


def test_sampler_answers_for_the_best_object() -> None:
    batch = batch_of({"boxes": [[0, 0, 20, 20], [0, 0, 20, 30]], "labels": [1, 2]})
    regions = everything(proposals([[0.0, 0, 20, 28]]), batch)
    at = (regions.boxes[0] == torch.tensor([0.0, 0, 20, 28])).all(1).nonzero().item()
    assert regions.index[0, at] == 1
    assert regions.labels[0, at] == 2


@pytest.mark.parametrize(("count", "share", "positive"), [(8, 0.25, 2), (8, 0.5, 4), (8, 0.0, 0), (8, 1.0, 8)])
def test_sampler_draws_the_share(count: int, share: float, positive: int) -> None:
    found = proposals([OBJECT] * 20 + [FAR] * 20)
    regions = RegionSampler(count, share)(found, batch_of({"boxes": [OBJECT]}))
    assert regions.valid.sum() == count
    assert regions.positive.sum() == positive


def test_sampler_fills_up_with_background() -> None:
    regions = RegionSampler(8, 0.5)(proposals([FAR] * 20), batch_of({"boxes": [OBJECT]}))
    assert regions.positive.sum() == 1
    assert regions.valid.sum() == 8


def test_sampler_quota_is_a_share_of_the_count_asked_for() -> None:
    """As in Detectron and torchvision: up to 8 of 32 are positive, though there are only 13 regions."""
    regions = RegionSampler(32, 0.25)(proposals([OBJECT] * 8 + [FAR] * 4), batch_of({"boxes": [OBJECT]}))
    assert regions.positive.sum() == 8


def test_sampler_draws_at_random() -> None:
    sampler, batch = RegionSampler(8, 0.5), batch_of({})
    found = proposals([[float(i), 0, i + 10.0, 10] for i in range(40)])
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sampler(found, batch).boxes.tolist())
    assert draws[0] == draws[1] != draws[2]
