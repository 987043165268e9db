"""When a run is saved, and how: whole or not at all, and at the request of a signal before it stops."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from quadrat import signals
from quadrat.callbacks.agreement import Vote
from quadrat.callbacks.csv_log import CsvLog
from quadrat.models.base import FitsLate

_SAVE = 1
"""The wish to save and go on; a larger number, to stop: the number of the signal that asks for it, and this."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """The old file is whole until the new one is; Lightning's own way moves it from the temporary folder, which may be
    another file system, where a move is a copy."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write(checkpoint, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise OSError with what is free, and that nothing is lost, when the disk does not take it."""
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer wraps the error of the file
        free = shutil.disk_usage(path.parent).free / 1e6
        raise OSError(
            f"could not write a checkpoint into {path.parent} ({str(error).splitlines()[0]}; {free:.0f} MB are free there); the "
            f"checkpoint before it is whole: make room and give the same command again, it goes on from there"
        ) from error


class Checkpoints(Checkpoint):
    """Save every ``minutes``, before and after each validation, at every epoch's end, and on a signal before stopping.

    The newest is `last.ckpt` in ``folder``, the one before it `previous.ckpt`. All ranks save, and stop, at the same step
    boundary: where an optimiser step is complete. Stopping raises `signals.Stopped`.
    """

    def __init__(self, folder: str | Path, minutes: float = 15.0) -> None:
        self.folder, self.seconds = Path(folder), 60 * minutes
        self.agreed = 0
        self.stage = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.vote, self.saved_at, self.agreed = Vote(), time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.agreed = max(self.agreed, self.vote(self._wish(trainer)))
        loop = trainer.fit_loop.epoch_loop
        # the last batch's boundary is the validation's start or the epoch's end, whichever comes next
        if self.agreed and not loop._should_accumulate() and not loop._num_ready_batches_reached():
            self._save_and_stop_if_asked(trainer)

    def _wish(self, trainer: Trainer) -> int:
        due = trainer.is_global_zero and time.monotonic() - self.saved_at >= self.seconds
        return self._wish_to_stop() or int(due) * _SAVE

    def _wish_to_stop(self) -> int:
        return signals.received() and signals.received() + _SAVE

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()  # a resumed validation begins anew
        self.common = self.vote.least(int(sum(trainer.num_val_batches)))
        self._save_and_stop_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Nothing has been learned since the validation began: leave at once, it will be done again."""
        if not trainer.sanity_checking and batch_idx < self.common:
            self.agreed = max(self.agreed, self.vote(self._wish_to_stop()))
            self._stop_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stage = 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stage = 2
        self._save_and_stop_if_asked(trainer)

    def _save_and_stop_if_asked(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.folder / "new.ckpt")
        if trainer.is_global_zero:
            self._keep(self.folder / "new.ckpt", self.folder / "last.ckpt", self.folder / "previous.ckpt")
        self.saved_at, self.stage = time.monotonic(), 0
        self._stop_if_asked()
        self.agreed = 0

    def _keep(self, new: Path, last: Path, previous: Path) -> None:
        """At every instant a whole one has one of these names."""
        if last.exists():
            os.replace(last, previous)
        os.replace(new, last)

    def _stop_if_asked(self) -> None:
        if self.agreed > _SAVE:
            raise signals.Stopped(self.agreed - _SAVE)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = self.stage
        checkpoint["rows"] = next((log.written for log in trainer.loggers if isinstance(log, CsvLog)), 0)
        if trainer.validating:
            _validation_to_come(checkpoint["loops"]["fit_loop"])


def _validation_to_come(fit_loop: dict[str, Any]) -> None:
    """Make Lightning run the validation on resuming: to it, one whose first batch has begun was interrupted."""
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    for count in ("total", "current"):
        progress[count] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class BestCheckpoint(Checkpoint):
    """Keep the checkpoint of the best value of ``monitor`` (the larger, the better).

    Of a model that is fitted late, only what is fitted can be the best. The numbers of that validation are remembered in
    ``at_best``, those of the latest in ``values``.
    """

    def __init__(self, path: str | Path, monitor: str) -> None:
        self.path, self.monitor = Path(path), monitor
        self.best: float | None = None
        self.values: dict[str, float] = {}
        self.at_best: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = self.values.get(self.monitor)
        model = getattr(pl_module, "model", None)
        if isinstance(model, FitsLate) and not model.fitted:
            return
        if value is not None and (self.best is None or value > self.best):
            self.best, self.at_best = value, self.values
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "values": self.values, "at_best": self.at_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]
        if self.path.exists():  # a branch of another run, or a lost file, begins its own record
            self.best, self.at_best = state_dict["best"], state_dict.get("at_best", {})
