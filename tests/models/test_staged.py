"""R-CNN in stages: what is fitted last finds more than chance, lies in the checkpoint, and outlives a kill."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier, Lock, Thread
from typing import Any

import numpy as np
import pytest
import torch

from contracts import CLASSES, SCHEMA, assert_detections, assert_model, batch_of, detections_of, drawn
from quadrat.backbones.tiny import Tiny
from quadrat.heads.linear import TwoLayer
from quadrat.heads.region_box import RegionBox
from quadrat.heads.region_class import RegionClass
from quadrat.heads.region_pool import RoIAlign, WarpedCNN
from quadrat.heads.regions import RegionSampler
from quadrat.metrics.detection import BoxAP
from quadrat.models.feature_cache import read_arrays
from quadrat.models.linear_svm import Examples, LinearSVMs
from quadrat.models.regions import Regions
from quadrat.models.ridge_boxes import Moves, RidgeBoxes
from quadrat.models.staged import Staged, assemble, assemble_warped, class_overlaps
from quadrat.necks.select import Select
from quadrat.proposers.precomputed import Precomputed
from quadrat.structures import Batch, Sample


def proposed(sample: Sample, seed: int = 0) -> Sample:
    """The picture with eight boxes about each object and thirty anywhere, all inside, in no order."""
    rng = np.random.default_rng(seed)
    height, width = sample.targets.size
    truth = sample.targets.boxes.numpy()
    sides = truth[:, 2:] - truth[:, :2]
    near = [truth + np.hstack([sides, sides]) * rng.uniform(-0.15, 0.15, truth.shape) for _ in range(8)]
    corners = rng.uniform(0, [width, height], (2, 30, 2))
    boxes = np.concatenate([*near, np.hstack([corners.min(0), corners.max(0) + 2])])
    boxes = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    proposals = torch.from_numpy(rng.permutation(boxes))
    return Sample(sample.image, replace(sample.targets, proposals=proposals))


def pictures(count: int = 8) -> list[Sample]:
    return [proposed(sample, seed) for seed, sample in enumerate(drawn(count, objects=(1, 3)))]


def batches(samples: Sequence[Sample], size: int = 2) -> list[Batch]:
    return [Batch.collate(samples[start : start + size]) for start in range(0, len(samples), size)]


def staged(
    *, svm: Any = LinearSVMs, ridge: Any = RidgeBoxes, box: Any = RegionClass, map: str = "c1", seed: int = 0
) -> Staged:
    """A small network as it begins, whose class scores are spread out, or all would tie; its first map tells colours."""
    torch.manual_seed(seed)
    model = assemble(
        SCHEMA,
        backbone=Tiny(width=8),
        neck=partial(Select, names=(map,)),
        proposer=Precomputed,
        pool=partial(RoIAlign, bins=3),
        layers=partial(TwoLayer, hidden=48),
        sampler=RegionSampler(count=32),
        box=box,
        svm=svm,
        ridge=ridge,
    )
    torch.nn.init.normal_(model.box.classes.weight, std=0.5)  # pyright: ignore
    return model.eval()  # pyright: ignore


def scores(model: Staged, samples: Sequence[Sample]) -> dict[str, float]:
    metric = BoxAP(SCHEMA.classes)
    for batch in batches(samples):
        metric.update(detections_of(model, batch), batch.targets)
    return metric.compute()


def fits(model: Staged) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if name.startswith(Staged.staged)}


def test_contracts_with_fits(tmp_path: Path) -> None:
    model = staged()
    model.finish(batches(pictures()), tmp_path)
    model.svm.threshold = -5.0  # so few examples leave most margins about -1
    assert_model(model, ["region_class"], pictures(2))


def test_fits_find_more_than_the_untrained_softmax(tmp_path: Path) -> None:
    """Random features already tell the drawn classes apart; an SVM needs no more."""
    samples, model = pictures(16), staged()
    before = scores(model, samples)["ap50"]
    said = model.finish(batches(samples), tmp_path / "features")
    after = scores(model, samples)["ap50"]
    assert said.startswith("features of 16 pictures, ")
    assert after > before + 0.2
    model.unfit()
    assert scores(model, samples)["ap50"] == before


def test_ridge_regression_moves_boxes_nearer(tmp_path: Path) -> None:
    """A strict metric sees it; the weights of the network and its mode are left alone."""
    samples = pictures(16)
    moved, still = staged(ridge=partial(RidgeBoxes, alpha=10.0)), staged(ridge=None)
    moved.train()
    weights = {name: value.clone() for name, value in moved.named_parameters()}
    moved.finish(batches(samples), tmp_path / "1")
    assert moved.training
    assert all(torch.equal(value, weights[name]) for name, value in moved.named_parameters())
    still.finish(batches(samples), tmp_path / "2")
    assert scores(moved.eval(), samples)["map"] > scores(still, samples)["map"] + 0.05


def test_softmax_option_keeps_the_scores(tmp_path: Path) -> None:
    """Without SVMs the first detection of each class keeps its score, and only its box moves."""
    samples, model = pictures(4), staged(svm=None)
    (batch,) = batches(samples, 4)
    before = detections_of(model, batch)
    model.finish([batch], tmp_path)
    after = detections_of(model, batch)
    assert [found.scores[0].item() for found in after] == [found.scores[0].item() for found in before]
    assert not torch.equal(after[0].boxes[0], before[0].boxes[0])


def test_nothing_to_fit_is_the_plain_detector() -> None:
    assert type(staged(svm=None, ridge=None)) is Regions


@pytest.mark.parametrize(("left_out", "missing"), [("svm", {"hidden", "overlaps"}), ("ridge", {"pooled", "classes"})])
def test_only_what_is_fitted_from_goes_to_disk(tmp_path: Path, left_out: str, missing: set[str]) -> None:
    parts: dict[str, Any] = {left_out: None}
    staged(**parts).finish(batches(pictures(2)), tmp_path)
    (file, *_) = tmp_path.glob("*/*.npz")
    with np.load(file) as arrays:
        assert not missing & set(arrays)
        assert len(arrays["labels"]) > 30


def test_scores_are_margins_in_the_same_order(tmp_path: Path) -> None:
    """A margin at or below the threshold is no detection, and 0 is a score of a half."""
    samples, model = pictures(), staged(svm=partial(LinearSVMs, threshold=-0.9), ridge=None)
    model.finish(batches(samples), tmp_path)
    batch = Batch.collate(samples)
    some = torch.cat([found.scores for found in detections_of(model, batch)])
    model.svm.threshold = -2.0  # pyright: ignore
    more = torch.cat([found.scores for found in detections_of(model, batch)])
    least = torch.tensor(-0.9).sigmoid()
    assert 0 < len(some) == (more > least).sum() < len(more)
    assert some.min() > least


def test_no_objects_anywhere_find_nothing(tmp_path: Path) -> None:
    empty = [Sample(sample.image, sample.targets.rows([])) for sample in pictures(2)]
    model = staged()
    model.finish(batches(empty), tmp_path)
    assert [len(found) for found in detections_of(model, Batch.collate(empty))] == [0, 0]
    assert model.fitted


def test_a_class_without_objects_is_never_found(tmp_path: Path) -> None:
    samples = [Sample(s.image, s.targets.rows((s.targets.labels != 2).nonzero()[:, 0].tolist())) for s in pictures()]
    model = staged()
    model.finish(batches(samples), tmp_path)
    found = torch.cat([found.labels for found in detections_of(model, Batch.collate(samples))])
    assert len(found)
    assert 2 not in found
    assert_detections(model, Batch.collate(samples))


def test_checkpoint_holds_the_fits(tmp_path: Path) -> None:
    samples, model = pictures(4), staged()
    model.finish(batches(samples), tmp_path / "features")
    torch.save(model.state_dict(), tmp_path / "last.ckpt")
    other = staged(seed=1)
    other.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert other.fitted
    batch = Batch.collate(samples)
    for one, same in zip(detections_of(model, batch), detections_of(other, batch), strict=True):
        assert torch.equal(one.boxes, same.boxes)
        assert torch.equal(one.scores, same.scores)


class Killed(Exception):
    """Stands for the signal that ends a run."""


def killed_after(found: Sequence[Batch], count: int) -> Iterator[Batch]:
    yield from found[:count]
    raise Killed


def looks(model: Staged, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the network looks at, batch by batch."""
    counts: list[int] = []
    features = model.features

    def counted(batch: Batch) -> dict[str, torch.Tensor]:
        counts.append(len(batch))
        return features(batch)

    monkeypatch.setattr(model, "features", counted)
    return counts


def test_killed_fits_go_on_with_the_missing_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches are there when the run is killed; the two others are computed, and the fits are those of a whole run."""
    found, model = batches(pictures()), staged()
    with pytest.raises(Killed):
        model.finish(killed_after(found, 2), tmp_path / "features")
    assert not model.fitted
    again = staged()
    counts = looks(again, monkeypatch)
    again.finish(found, tmp_path / "features")
    assert counts == [2, 2]
    whole = staged()
    whole.finish(found, tmp_path / "whole")
    assert all(torch.equal(value, fits(again)[name]) for name, value in fits(whole).items())


def test_other_weights_compute_all_features_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, model = batches(pictures(4)), staged()
    model.finish(found, tmp_path)
    counts = looks(model, monkeypatch)
    model.finish(found, tmp_path)  # bit-equal but for what was fitted
    assert counts == []
    model.box.layers.second.bias.data[0] += 1e-3  # pyright: ignore
    model.finish(found, tmp_path)
    assert counts == [2, 2]
    assert len(os.listdir(tmp_path)) == 1


def test_other_moves_to_learn_from_compute_all_features_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = batches(pictures(2))
    staged().finish(found, tmp_path)
    model = staged(ridge=partial(RidgeBoxes, min_iou=0.5))
    counts = looks(model, monkeypatch)
    model.finish(found, tmp_path)
    assert counts == [2]


@pytest.mark.parametrize("world", [2, 7])
def test_ranks_share_pictures_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Each has every world-th batch and class (one of seven has none of the six), and all end with the same fits."""
    found, alone = batches(pictures(), 1), staged()
    alone.finish(found, tmp_path / "alone")
    models, barrier, one_at_a_time = [staged() for _ in range(world)], Barrier(world, timeout=60), Lock()
    fit = LinearSVMs.fit

    def locked(*args: Any) -> Any:
        with one_at_a_time:  # threads stand for processes here, and the solver's random numbers are those of a process
            return fit(*args)

    def work(rank: int) -> None:
        share = found[rank::world]
        models[rank].finish(share, tmp_path / "features", rank=rank, world=world, barrier=barrier.wait)

    monkeypatch.setattr(LinearSVMs, "fit", locked)
    threads = [Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        assert all(torch.equal(value, fits(model)[name]) for name, value in fits(alone).items())


def test_what_lies_in_a_crowd_is_no_negative_of_its_class() -> None:
    """Of an object the IoU counts, of one to ignore the share of the box inside it, each for its class."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    truth = torch.tensor([[0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 4.0, 10.0], [15.0, 0.0, 95.0, 100.0]])
    overlaps = class_overlaps(boxes, truth, torch.tensor([1, 1, 3]), torch.tensor([False, False, True]), 3)
    assert overlaps.tolist() == [[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]]
    none = class_overlaps(boxes, truth[:0], torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), 2)
    assert none.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_files_hold_what_the_fits_learn_from(tmp_path: Path) -> None:
    """Two objects, one of them ignored; of four proposals two are near the other one, and the last is padding."""
    truth = {"boxes": [[0, 0, 20, 20], [30, 30, 60, 60]], "labels": [2, 3], "ignore": [False, True]}
    batch = batch_of(truth, {"boxes": []})
    near = [[0.0, 0.0, 20.0, 16.0], [2.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 12.0], [0.0, 0.0, 0.0, 0.0]]
    batch = replace(batch, proposals=torch.tensor([near, [near[0]] + [near[3]] * 3]))
    model = staged()
    model.finish([batch], tmp_path)
    (folder,) = tmp_path.iterdir()
    files = [read_arrays(file, (*Examples._fields, *Moves._fields)) for file in folder.glob("*.npz")]
    first = next(file for file in files if len(file["labels"]) == 4)
    assert first["labels"].tolist() == [2, 0, 0, 0]
    np.testing.assert_allclose(first["overlaps"][:, 1], [1.0, 0.8, 0.9, 0.6], atol=1e-6)
    assert first["hidden"].shape == (4, 48)
    assert first["hidden"].dtype == first["pooled"].dtype == np.float16
    assert first["classes"].tolist() == [2, 2, 2]  # 0.6 is not above 0.6
    np.testing.assert_allclose(first["deltas"][1], [0.0, 2 / 16, 0.0, np.log(20 / 16)], atol=1e-6)
    other = next(file for file in files if len(file["labels"]) == 1)
    assert other["pooled"].shape == (0, 72)
    assert len(other["norms"]) == 1


def test_regions_that_the_trunk_sees_by_themselves_are_fitted_alike(tmp_path: Path) -> None:
    """R-CNN: its trunk is within the pool, and counts for the fingerprint."""
    torch.manual_seed(0)
    samples = pictures(2)
    model = assemble_warped(
        SCHEMA,
        backbone=Tiny(width=4),
        proposer=Precomputed,
        pool=partial(WarpedCNN, size=32, context=4, bins=2, chunk=16),
        layers=partial(TwoLayer, hidden=16),
        sampler=RegionSampler(count=8),
        box=RegionClass,
        svm=LinearSVMs,
        ridge=RidgeBoxes,
    ).eval()
    assert isinstance(model, Staged)
    said = model.finish(batches(samples), tmp_path)
    assert said.startswith("features of 2 pictures")
    assert_detections(model, Batch.collate(samples))
    next(model.box.pool.parameters()).data[0] += 1e-3
    model.finish(batches(samples), tmp_path)
    assert said.split()[-1] not in [str(folder) for folder in tmp_path.iterdir()]


def test_a_head_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RegionClass, and the head is RegionBox: choose model=rcnn or model=sppnet"):
        staged(ridge=None, box=RegionBox)


def test_shapes_of_the_fits() -> None:
    model = staged()
    assert {name: tuple(value.shape) for name, value in fits(model).items()} == {
        "fitted": (),
        "svm.weight": (CLASSES, 48),
        "svm.bias": (CLASSES,),
        "ridge.weight": (CLASSES, 4, 72),
        "ridge.bias": (CLASSES, 4),
    }
