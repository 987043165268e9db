"""Batches are a function of (seed, epoch, index), and what is wrong with the splits is known before they are read."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from makers import make_voc
from quadrat.data.augment import Augment, ResizeShortEdge
from quadrat.data.lsp import JOINTS
from quadrat.data.module import Batches, DataModule, First
from quadrat.data.shapes import FLIP_PAIRS, Shapes
from quadrat.data.voc import VOC
from quadrat.structures import Batch, Sample

SPLITS = {"train": "train", "val": "val", "test": "test"}
COUNT = 10


class ByOrientation(Shapes):
    """Shapes in which every third picture says it is tall; for the order only, so it is never decoded."""

    def size(self, index: int) -> tuple[int, int]:
        return (96, 64) if index % 3 == 0 else (64, 96)


def changing() -> Augment:
    return Augment([A.HorizontalFlip(p=0.5), A.RandomCrop(64, 72, p=0.5), ResizeShortEdge([48, 64], 96)])


def module(source=None, splits: dict[str, str] = SPLITS, **options) -> DataModule:
    source = source or partial(Shapes, count=COUNT, size=(64, 96))
    return DataModule(source, splits, **{"batch_size": 4, "train_augment": changing()} | options)


def training_batches(data: DataModule, epoch: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def alike(a: Batch, b: Batch) -> bool:
    fields = ("images", "sizes", "original_sizes", "boxes", "labels", "valid", "ignore")
    return all(torch.equal(getattr(a, field), getattr(b, field)) for field in fields)


@pytest.fixture(scope="module")
def alone() -> list[Batch]:
    """Epoch 1 without workers."""
    return training_batches(module(), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_for_any_number_of_workers(workers: int, alone: list[Batch]):
    again = training_batches(module(workers=workers), 1)
    assert len(again) == len(alone) == 3
    assert all(alike(a, b) for a, b in zip(again, alone, strict=True))


def test_a_sample_does_not_depend_on_its_batch(alone: list[Batch]):
    by_two = {t.image_id: t for batch in training_batches(module(batch_size=2), 1) for t in batch.targets}
    for targets in (t for batch in alone for t in batch.targets):
        assert torch.equal(targets.boxes, by_two[targets.image_id].boxes)
        assert targets.size == by_two[targets.image_id].size


def test_a_sample_changes_with_epoch_and_seed_only():
    source = Shapes("train", count=3, size=(64, 96))
    draw = {
        (seed, epoch): [Batches(source, changing(), seed=seed, divisor=32).sample(epoch, 0).image for _ in range(2)]
        for seed in range(4)
        for epoch in range(4)
    }
    assert all(np.array_equal(first, again) for first, again in draw.values())
    for same in range(4):
        assert len({draw[same, epoch][0].tobytes() for epoch in range(4)}) > 1
        assert len({draw[seed, same][0].tobytes() for seed in range(4)}) > 1


def test_epochs_differ(alone: list[Batch]):
    other = training_batches(module(), 2)
    assert [t.image_id for b in alone for t in b.targets] != [t.image_id for b in other for t in b.targets]


def test_training_sees_every_picture(alone: list[Batch]):
    assert {t.image_id for batch in alone for t in batch.targets} == set(range(COUNT))
    assert [len(batch) for batch in alone] == [4, 4, 4]
    assert module().batches_per_epoch() == 3


@pytest.mark.parametrize("divisor", [1, 32, 40])
def test_batches_are_padded_to_the_divisor(divisor: int):
    for batch in training_batches(module(divisor=divisor)):
        height, width = batch.images.shape[-2:]
        assert height % divisor == width % divisor == 0
        assert 0 <= height - batch.sizes[:, 0].max() < divisor
        assert 0 <= width - batch.sizes[:, 1].max() < divisor


def test_the_order_is_given_the_shapes_of_the_pictures():
    order = module(partial(ByOrientation, count=12)).train_dataloader().sampler
    groups = [{index % 3 == 0 for _, index in batch} for batch in order]
    assert sorted(map(sorted, groups)) == [[False], [False], [True]]


def test_evaluation_sees_every_picture_once_in_order_and_unchanged():
    data = module(eval_batch_size=3)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [3, 3, 3, 1]
        assert [t.image_id for batch in batches for t in batch.targets] == list(range(COUNT))
        assert {t.size for batch in batches for t in batch.targets} == {(64, 96)}


def test_evaluation_of_any_split_by_name():
    (batch,) = module(limit=2).evaluation_dataloader("holiday")
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), Shapes("holiday", count=1, size=(64, 96))[0].image)


def test_the_evaluation_augment_is_used_for_evaluation():
    data = module(eval_augment=Augment([ResizeShortEdge(32, 96)]))
    assert {t.size for batch in data.val_dataloader() for t in batch.targets} == {(32, 48)}


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (3, 3), (COUNT, COUNT), (99, COUNT), (None, COUNT)])
def test_limit_keeps_the_first_pictures(limit: int | None, count: int):
    data = module(limit=limit)
    assert [len(data.source(stage)) for stage in SPLITS] == [count] * 3
    assert np.array_equal(data.source("train")[0].image, Shapes("train", count=1, size=(64, 96))[0].image)


def test_limit_keeps_schema_and_sizes():
    first = First(ByOrientation("train", count=5), 4)
    assert first.schema.classes == Shapes("train", count=1).schema.classes
    assert [first.size(i) for i in range(len(first))] == [(96, 64), (64, 96), (64, 96), (96, 64)]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int):
    with pytest.raises(ValueError, match=rf"data\.limit keeps at least one picture, got {limit}"):
        module(limit=limit).source("train")


def test_setup_reads_what_a_stage_needs_once():
    read = []

    def source(split: str) -> Shapes:
        read.append(split)
        return Shapes(split, count=2)

    data = module(source, {"train": "train", "val": "held_out", "test": "held_out"})
    data.setup("fit")
    assert read == ["train", "held_out"]
    data.setup("test")
    data.setup("validate")
    assert read == ["train", "held_out"]
    assert data.source("test") is data.source("val")


def test_setup_tells_the_augmentation_which_joints_are_pairs():
    data = module()
    data.setup("fit")
    assert data.train_augment.flip_pairs == FLIP_PAIRS


def test_splits_with_other_classes_are_refused():
    def source(split: str) -> Shapes:
        return Shapes(split, count=2, kinds=("circle", "star") if split == "train" else ("star", "circle"))

    data = module(source)
    for _ in range(2):  # asking again does not make it right
        with pytest.raises(ValueError, match=r"split val has classes \('star', 'circle'\), split train has") as refused:
            data.setup("fit")
        assert "name them once with data.source.classes" in str(refused.value)


def test_splits_with_other_joints_are_refused():
    def source(split: str) -> Shapes:
        shapes = Shapes(split, count=2)
        if split == "val":
            shapes.schema = replace(shapes.schema, joints=(*JOINTS[:13], "nose"))
        return shapes

    with pytest.raises(
        ValueError, match=r"split val has 14 joints .*'nose'\), split train has 14 \(.*'head top'\)"
    ) as refused:
        module(source).setup("fit")
    assert "choose annotations of the same joints" in str(refused.value)


def test_an_unknown_split_is_refused_by_its_source(tmp_path: Path):
    data = module(partial(VOC, make_voc(tmp_path / "set")))
    assert len(data.source("val")) == 3
    with pytest.raises((FileNotFoundError, ValueError), match="holiday"):
        data.source("holiday")


def test_an_unknown_split_of_shapes_is_refused():
    with pytest.raises(ValueError, match=r"no count for the split holiday of shapes, there are \['train'\]"):
        module(partial(Shapes, count={"train": 3})).source("holiday")


class Unknown(Shapes):
    """Every object is of a seventh class."""

    def __getitem__(self, index: int) -> Sample:
        image, targets = super().__getitem__(index)
        return Sample(image, replace(targets, labels=torch.full_like(targets.labels, 7)))


def test_a_label_beyond_the_classes_is_named():
    batches = Batches(Unknown("train", count=1, empty=0.0), Augment(), seed=0, divisor=32)
    with pytest.raises(ValueError, match=r"image 0: labels are 1\.\.6 for 6 classes, got \[7"):
        batches.sample(0, 0)
