"""The one LightningDataModule: any source, augmented, ordered and batched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from quadrat import signals
from quadrat.data.augment import Augment
from quadrat.data.label_maps import pixel_counts, semantic_of
from quadrat.data.one_object import PrincipalBoxes, principal_boxes
from quadrat.data.order import EvaluationOrder, Key, TrainingOrder
from quadrat.data.source import Source, truth_of
from quadrat.structures import IGNORE_INDEX, Batch, Sample, Schema, Targets


def _check_semantic(targets: Targets, schema: Schema) -> None:
    """The like of a pixel's class."""
    if targets.semantic is None:
        return
    largest = int(targets.semantic.where(targets.semantic != IGNORE_INDEX, 0).max())
    if largest >= len(schema.pixel_classes):
        raise ValueError(
            f"image {targets.image_id}: a semantic map holds 0..{len(schema.pixel_classes) - 1} ({schema.pixel_classes}) or "
            f"{IGNORE_INDEX}, got {largest}"
        )


WeighPixels = Callable[[Targets], Targets]
"""Fills ``pixel_weights`` from the rest of a picture's truth, once that has been augmented."""


class KnownProposals(Protocol):
    """Regions found beforehand: in a whole source, and in a picture of none."""

    def wrap(self, source: Source, split: str) -> Source:
        """The same pictures, whose truth has ``proposals``."""
        ...

    def find(self, image: np.ndarray) -> torch.Tensor:
        """The regions (P, 4) of a picture uint8 RGB (H, W, 3)."""
        ...


class Batches(Dataset[Batch]):
    """A map from a list of (epoch, index) to a padded batch; augmentation = f(seed, epoch, index)."""

    def __init__(
        self, source: Source, augment: Augment, *, seed: int, divisor: int, weigh_pixels: WeighPixels | None = None
    ) -> None:
        self.source, self.augment, self.seed, self.divisor = source, augment, seed, divisor
        self.weigh_pixels = weigh_pixels

    def __getitem__(self, keys: Sequence[Key]) -> Batch:
        return Batch.collate([self.sample(epoch, index) for epoch, index in keys], divisor=self.divisor)

    def sample(self, epoch: int, index: int) -> Sample:
        """One augmented picture."""
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        sample = self.source[index]
        _check_labels(sample.targets, self.source.schema)
        _check_semantic(sample.targets, self.source.schema)
        return self.change(sample, seed)

    def change(self, sample: Sample, seed: int) -> Sample:
        """A picture of the source, augmented and with its pixels weighed."""
        changed = self.augment(sample, seed)
        if self.weigh_pixels is None:
            return changed
        return changed._replace(targets=self.weigh_pixels(changed.targets))


class EvaluationBatches(Batches):
    """The like for evaluation: a whole picture that was resized keeps its semantic map, so that scores are of its own frame."""

    def change(self, sample: Sample, seed: int) -> Sample:
        changed, before = super().change(sample, seed), sample.targets
        if before.semantic is None or changed.targets.size == before.size:
            return changed
        if changed.targets.original_size != before.size:  # a part of the picture
            return changed
        return changed._replace(targets=replace(changed.targets, original_semantic=before.semantic))


def _check_labels(targets: Targets, schema: Schema) -> None:
    """A label beyond the classes would index past the end of a head, on a GPU without saying where."""
    if len(targets) and int(targets.labels.max()) > len(schema.classes):
        raise ValueError(
            f"image {targets.image_id}: labels are 1..{len(schema.classes)} for {len(schema.classes)} classes, "
            f"got {targets.labels.tolist()}"
        )


class First(Source):
    """The first ``count`` pictures of a source."""

    def __init__(self, source: Source, count: int) -> None:
        if count < 1:
            raise ValueError(f"data.limit keeps at least one picture, got {count}")
        self.source, self.schema, self.count = source, source.schema, min(count, len(source))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.source[index]

    def size(self, index: int) -> tuple[int, int]:
        return self.source.size(index)

    def truth(self, index: int) -> Targets:
        return truth_of(self.source, index)

    def semantic(self, index: int) -> torch.Tensor:
        return semantic_of(self.source, index)


class DataModule(LightningDataModule):
    """Splits of one data set: ``source`` makes the one of a name, ``splits`` says which is for train, val and test.

    Sources are read when the module is made, so that what is wrong with the files is known before anything else happens.
    Raises ValueError when the splits do not agree on the classes.
    """

    def __init__(
        self,
        source: Callable[..., Source],
        splits: Mapping[str, str],
        *,
        train_augment: Augment | None = None,
        eval_augment: Augment | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        divisor: int = 32,
        group_by_shape: bool = True,
        limit: int | None = None,
        weigh_pixels: WeighPixels | None = None,
        proposals: KnownProposals | None = None,
    ) -> None:
        super().__init__()
        if isinstance(proposals, Mapping):
            raise ValueError(
                f"data.proposals has settings {list(proposals)} and no finder: an experiment's are for its own model, begin with "
                f"experiment=none, or choose one with data/proposals=selective_search"
            )
        self.weigh_pixels, self.proposals = weigh_pixels, proposals
        self.limit = limit
        self.make_source, self.splits = source, dict(splits)
        self.train_augment, self.eval_augment = train_augment or Augment(), eval_augment or Augment()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.workers, self.seed, self.divisor, self.group_by_shape = workers, seed, divisor, group_by_shape
        self.sources: dict[str, Source] = {}
        self.start = (0, 0)

    def source(self, stage: str) -> Source:
        """The split that serves a stage (train, val or test), or the split of that very name; read once."""
        split = self.splits.get(stage, stage)
        if split not in self.sources:
            source = self.make_source(split=split)
            self._check_classes(split, source)
            kept = source if self.limit is None else First(source, self.limit)
            self.sources[split] = kept if self.proposals is None else self.proposals.wrap(kept, split)
        return self.sources[split]

    def _check_classes(self, split: str, source: Source) -> None:
        for other, known in self.sources.items():
            if known.schema.classes != source.schema.classes:
                raise ValueError(
                    f"split {split} has classes {source.schema.classes}, split {other} has {known.schema.classes}; "
                    f"name them once with data.source.classes"
                )
            if known.schema.joints and source.schema.joints and known.schema.joints != source.schema.joints:
                raise ValueError(
                    f"split {split} has {len(source.schema.joints)} joints {source.schema.joints}, split {other} has "
                    f"{len(known.schema.joints)} {known.schema.joints}; choose annotations of the same joints"
                )

    @property
    def schema(self) -> Schema:
        """The classes and joints of the data set."""
        known = next(iter(self.sources.values()), None)
        return known.schema if known is not None else self.source("train").schema

    def setup(self, stage: str) -> None:
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self.source(name)
        if stage == "fit":
            self.train_augment.flip_pairs = self.schema.flip_pairs

    @property
    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def batches_per_epoch(self) -> int:
        """How many batches each rank sees in an epoch."""
        return len(self._training_order())

    def pixel_counts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the training set: the pixels (S,) of each class, and those (S,) of the pictures where it occurs."""
        return pixel_counts(self.source("train"))

    def principal_boxes(self) -> PrincipalBoxes:
        """Of the training set: what a model of one object is to find."""
        return principal_boxes(self.source("train"))

    def _training_order(self) -> TrainingOrder:
        source = self.source("train")
        rank, world_size = self._place
        return TrainingOrder(
            [source.size(index) for index in range(len(source))],
            self.batch_size,
            seed=self.seed,
            group_by_shape=self.group_by_shape,
            rank=rank,
            world_size=world_size,
            start=self.start,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where training stands: the epoch, and how many of its batches every rank has trained on (not: has loaded)."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        position = 0 if epochs.processed > epochs.completed else loop.epoch_loop.batch_progress.current.ready
        return {"epoch": epochs.processed, "position": position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = (state_dict["epoch"], state_dict["position"])

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(
            Batches(self.source("train"), self.train_augment, **self._how()),
            self._training_order(),
        )

    def evaluation_dataloader(self, stage: str) -> DataLoader[Batch]:
        """Every picture of a stage or split once, without augmentation."""
        source = self.source(stage)
        rank, world_size = self._place
        order = EvaluationOrder(len(source), self.eval_batch_size, rank=rank, world_size=world_size)
        return self._loader(EvaluationBatches(source, self.eval_augment, **self._how()), order)

    def _how(self) -> dict[str, Any]:
        return {"seed": self.seed, "divisor": self.divisor, "weigh_pixels": self.weigh_pixels}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Without waiting: the pages are pinned, and the copy runs while the host prepares the step."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("test")

    def _loader(self, batches: Batches, order: TrainingOrder | EvaluationOrder) -> DataLoader[Batch]:
        # the order is given as the sampler of whole batches: one item of the data set is a batch already
        return DataLoader(
            batches,
            sampler=order,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self._on_gpu(),
            worker_init_fn=_begin_worker,
        )

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _begin_worker(worker: int) -> None:
    """Workers share the cores already; OpenCV's own threads would fight over them. Signals are the trainer's matter."""
    cv2.setNumThreads(0)
    signals.arm_loader_worker()
