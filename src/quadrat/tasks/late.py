"""What is fitted behind the last training step of a run, before its last validation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from lightning.pytorch import Trainer

from quadrat import signals
from quadrat.models.base import FitsLate
from quadrat.structures import Batch


def check_late(trainer: Trainer, *, sharded: bool) -> None:
    """Raise ValueError for a run at whose end nothing can be fitted."""
    if sharded:
        raise ValueError(
            "SVMs and ridge regressions are fitted to whole weights, of which a rank holds a part: trainer=ddp"
        )
    if trainer.limit_val_batches == 0:
        raise ValueError(
            "SVMs and ridge regressions are fitted before the last validation, and trainer.limit_val_batches=0 leaves none: take "
            "it away, or choose the softmax alone with model.svm=null model.ridge=null"
        )


def see_to_last_validation(trainer: Trainer) -> None:
    """Behind the last epoch there is a validation, however seldom there are others."""
    if trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs:
        trainer.check_val_every_n_epoch = 1


def fit_late(model: FitsLate, trainer: Trainer) -> None:
    """A run that is stopped meanwhile does this validation again, with the features that are on disk."""
    with trainer.precision_plugin.forward_context():
        kept = model.finish(
            TrainingPictures(trainer),
            Path(trainer.default_root_dir) / "features",
            rank=trainer.global_rank,
            world=trainer.world_size,
            barrier=trainer.strategy.barrier,
        )
    if trainer.is_global_zero:
        print(f"\n{kept}")


def limited(batches: int, trainer: Trainer) -> int:
    """How many of these batches of training pictures are used."""
    limit = trainer.limit_train_batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)


class TrainingPictures:
    """This rank's share of the training pictures, once each and as they are; so many batches as an epoch is limited to."""

    def __init__(self, trainer: Trainer) -> None:
        self.loader = trainer.datamodule.evaluation_dataloader("train")  # pyright: ignore[reportAttributeAccessIssue]
        self.length = limited(len(self.loader), trainer)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        for batch in islice(self.loader, self.length):
            signals.leave_if_asked()
            yield batch
