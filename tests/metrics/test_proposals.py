"""Scores of proposals: by hand, against a plain double loop, against COCO's evaluator, on several ranks."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from quadrat.metrics.proposals import AR_IOUS, ProposalScores
from quadrat.structures import Targets

CLASSES = ("cat", "dog", "bird")
SIZE = (100, 100)
A, B = (0, 0, 40, 20), (50, 50, 90, 70)
HALF_A = (0, 0, 20, 20)  # IoU 0.5
MOST_A = (0, 0, 32, 20)  # IoU 0.8
FAR = (0, 80, 10, 90)


def truth(*rows, image_id="p") -> Targets:
    """Rows are (box, label) or (box, label, ignore)."""
    ignore = [len(row) > 2 and row[2] for row in rows]
    return Targets.make([row[0] for row in rows], [row[1] for row in rows], SIZE, image_id, ignore=ignore)


def boxes(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def scored(*pairs, numbers=(1, 2), ious=(0.5,)) -> ProposalScores:
    metric = ProposalScores(CLASSES, numbers, ious)
    for found, target in pairs:
        metric.update([found], [target])
    return metric


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("targets", [[], [truth()], [truth((A, 1, True))]], ids=["no picture", "no object", "a crowd"])
def test_nothing_to_cover_is_zero_with_a_warning(targets: list) -> None:
    metric = scored(*((boxes(A), target) for target in targets))
    with pytest.warns(UserWarning, match=f"no object in {len(targets)} pictures to cover"):
        found = dict(metric.compute())
    assert found.pop("proposals") == len(targets)
    assert found == dict.fromkeys([f"{kind}@{at}" for kind in ("recall50", "ar", "mabo") for at in (1, 2, "all")], 0.0)
    assert f"0 objects in {len(targets)} pictures" in metric.table()


def test_no_proposals_cover_nothing() -> None:
    found = scored((boxes(), truth((A, 1)))).compute()
    assert set(found.values()) == {0.0}
    assert "abo@all/cat" in found


def test_scores_by_hand() -> None:
    """A is half covered by the second proposal and by 0.8 of it by the third; B by the fourth, of a picture of its own not
    at all. At IoU 0.5 .. 0.95 an overlap of 0.5 reaches one of ten, of 0.8 seven."""
    found = scored(
        (boxes(FAR, HALF_A, MOST_A, B), truth((A, 1), (B, 2))), (boxes(FAR), truth((B, 2))), numbers=(1, 2, 3)
    ).compute()
    third, every = 1 / 3, 2 / 3
    assert {name: value for name, value in found.items() if "/" not in name} == pytest.approx(
        {
            **{"recall50@1": 0, "recall50@2": third, "recall50@3": third, "recall50@all": every},
            **{"ar@1": 0, "ar@2": 0.1 / 3, "ar@3": 0.7 / 3, "ar@all": 1.7 / 3},
            **{"mabo@1": 0, "mabo@2": 0.5 / 2, "mabo@3": 0.8 / 2, "mabo@all": (0.8 + 0.5) / 2, "proposals": 2.5},
        }
    )
    assert {name: value for name, value in found.items() if "@all/" in name} == pytest.approx(
        {"abo@all/cat": 0.8, "abo@all/dog": 0.5}
    )


def test_other_overlaps_may_be_asked_for() -> None:
    found = scored((boxes(HALF_A, MOST_A), truth((A, 1))), ious=(0.5, 0.75, 0.8, 0.81)).compute()
    assert [found[f"recall{share}@2"] for share in (50, 75, 80, 81)] == [1, 1, 1, 0]
    assert [found[f"recall{share}@1"] for share in (50, 75, 80, 81)] == [1, 0, 0, 0]


@pytest.mark.parametrize("twentieths", range(10, 20))
def test_an_overlap_reaches_itself(twentieths: int) -> None:
    """13/20 is 0.65, whatever is lost on the way."""
    found = scored((boxes((0, 0, twentieths, 7)), truth(((0, 0, 20, 7), 1)))).compute()
    assert found["ar@all"] == pytest.approx((twentieths - 9) / 10)


def test_ignored_objects_do_not_count() -> None:
    assert scored((boxes(A), truth((A, 1), (B, 2, True)))).compute()["recall50@all"] == 1


def test_one_proposal_may_serve_two_objects() -> None:
    """As in the papers; an evaluator of detections would give it away once."""
    assert scored((boxes(A), truth((A, 1), (MOST_A, 2)))).compute()["recall50@all"] == 1


def random_pictures(seed: int, objects: int) -> list[tuple[torch.Tensor, Targets]]:
    rng = np.random.default_rng(seed)
    pictures = []
    for image in range(12):
        corners = rng.uniform(0, 60, (objects if objects == 1 else rng.integers(0, objects), 2))
        truths = np.concatenate([corners, corners + rng.uniform(5, 40, corners.shape)], axis=1)
        near = truths[rng.integers(0, len(truths), 30)] if len(truths) else np.zeros((0, 4))
        near = near + rng.normal(0, 4, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        labels = rng.integers(1, 4, len(truths))
        rows = [(box, label, objects > 1 and rng.random() < 0.2) for box, label in zip(truths, labels, strict=True)]
        pictures.append((torch.from_numpy(near).float(), truth(*rows, image_id=image)))
    return pictures


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(sizes) - width * height)


def test_equals_a_plain_double_loop() -> None:
    pictures = random_pictures(0, 6)
    numbers = (1, 5, 20)
    found = scored(*pictures, numbers=numbers, ious=(0.5, 0.7)).compute()
    for at in (*numbers, "all"):
        best: list[tuple[int, float]] = []
        for proposals, target in pictures:
            for box, label, ignored in zip(target.boxes.tolist(), target.labels.tolist(), target.ignore, strict=True):
                looked_at = proposals.tolist()[: None if at == "all" else at]
                if not ignored:
                    best.append((label, max((overlap(box, proposal) for proposal in looked_at), default=0)))
        values = np.array([value for _, value in best])
        abo = {c: np.mean([value for label, value in best if label == i + 1]) for i, c in enumerate(CLASSES)}
        assert len(best) > 20
        assert found[f"recall50@{at}"] == pytest.approx((values >= 0.5).mean())
        assert found[f"recall70@{at}"] == pytest.approx((values >= 0.7).mean())
        assert found[f"ar@{at}"] == pytest.approx(np.mean([(values >= limit).mean() for limit in AR_IOUS]))
        assert found[f"mabo@{at}"] == pytest.approx(np.mean(list(abo.values())), abs=1e-6)
        for name in CLASSES:
            assert found[f"abo@{at}/{name}"] == pytest.approx(abo[name], abs=1e-6)


def test_equals_coco_where_a_picture_has_one_object() -> None:
    """With one object a picture nothing is given away to another one, which is where COCO's AR differs."""
    pictures = random_pictures(1, 1)
    numbers = (1, 3, 10)
    annotations, results = [], []
    for image, (proposals, target) in enumerate(pictures):
        x1, y1, x2, y2 = target.boxes[0].tolist()
        entry = {"id": image + 1, "image_id": image, "category_id": 1, "iscrowd": 0, "area": (x2 - x1) * (y2 - y1)}
        annotations.append(entry | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        for rank, (x1, y1, x2, y2) in enumerate(proposals.tolist()):
            result = {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - rank / 100}
            results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image, "height": 100, "width": 100} for image in range(len(pictures))],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "object"}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(numbers)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0, :]  # (T, classes, areas, numbers) -> (T, numbers)
    found = scored(*pictures, numbers=numbers).compute()
    for column, number in enumerate(numbers):
        assert found[f"ar@{number}"] == pytest.approx(recall[:, column].mean(), abs=1e-6)
        assert found[f"recall50@{number}"] == pytest.approx(recall[0, column], abs=1e-6)
    assert 0 < found["ar@1"] < found["ar@3"] < found["ar@10"] < 1


def test_two_ranks_are_one_set() -> None:
    pictures = random_pictures(2, 4)
    ranks = [scored(*pictures[:5]), scored(*pictures[5:]), scored()]  # the third without a picture
    together = ProposalScores(CLASSES, (1, 2))
    together.overlaps = torch.cat([torch.cat(rank.overlaps) for rank in ranks if rank.overlaps])
    for name in ("looked_at", "images"):
        setattr(together, name, together._reductions[name](torch.stack([getattr(rank, name) for rank in ranks])))
    together._update_count = 1
    assert together.compute() == scored(*pictures).compute()


def test_names_are_what_is_computed() -> None:
    metric = scored((boxes(A), truth((A, 1), (A, 2), (A, 3))), ious=(0.5, 0.75))
    assert set(metric.names()) == set(metric.compute())


def test_curves_are_of_the_proposals_there_are() -> None:
    """Where a picture has fewer than 2, fewer are looked at."""
    metric = scored((boxes(MOST_A), truth((A, 1))), (boxes(FAR, FAR, B), truth((B, 2))))
    found = metric.compute()
    curves = metric.curves()
    assert curves.numbers.tolist() == [1, 1.5, 2]
    assert curves.recall.tolist() == [found[f"recall50@{at}"] for at in (1, 2, "all")] == [0.5, 0.5, 1]
    assert curves.mabo.tolist() == pytest.approx([0.4, 0.4, 0.9])
    assert curves.ar.tolist() == pytest.approx([0.35, 0.35, 0.85])
    at = [0, 30, 31, 50]  # IoU 0.5, 0.8, 0.81, 1
    assert curves.recall_by_iou[-1, at].tolist() == [1, 1, 0.5, 0.5]
    assert curves.ious[at].tolist() == pytest.approx([0.5, 0.8, 0.81, 1])


def test_table() -> None:
    metric = scored((boxes(HALF_A, MOST_A), truth((A, 1))))
    lines = metric.table().splitlines()
    assert lines[0].split() == ["proposals", "recall50", "AR", "MABO"]
    assert lines[1].split() == ["1", "1.000", "0.100", "0.500"]
    assert lines[3].split() == ["all", "1.000", "0.700", "0.800"]
    assert lines[6].split() == ["cat", "1", "0.800"]
    assert lines[7].split() == ["dog", "0", "-"]
    assert lines[-1] == "1 objects in 1 pictures, 2 proposals a picture"


@pytest.mark.parametrize("found", [torch.zeros(3), torch.zeros(3, 5), torch.tensor([[0, 0, np.nan, 1]])])
def test_what_is_no_box_is_refused(found: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"image p: wanted finite proposals \(P, 4\)"):
        scored((found, truth((A, 1))))


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image p: labels are 1\.\.3, got \[4\]"):
        scored((boxes(A), truth((A, 4))))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each larger than the one before, got \[300, 100\]"):
        ProposalScores(CLASSES, (300, 100))
    with pytest.raises(ValueError, match=r"overlaps above 0 and up to 1, got \[50\]"):
        ProposalScores(CLASSES, ious=(50,))
