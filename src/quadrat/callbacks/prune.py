"""The early end of a trial of a search: the run reports how it does, and stops when the search says that it is hopeless."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.pruners import BasePruner


class Prune(Callback):
    """Report the best ``monitor`` so far to the study in ``journal``, and end the run in good order when ``pruner`` says so.

    ``trial`` is the run's number in the study. An epoch counts once, with its first validation, also when a resumed run
    repeats it; the last one is not asked about. Rank 0 asks and all do the same. ``reason`` says afterwards why the run was
    ended, None if it was not.
    """

    def __init__(self, journal: str | Path, trial: int, pruner: BasePruner, monitor: str) -> None:
        self.journal, self.trial, self.pruner, self.monitor = Path(journal), trial, pruner, monitor
        self.reason: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed after the decision goes no further."""
        self._obey(trainer, self._open().user_attrs.get("pruned") if trainer.is_global_zero else None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or _at_its_end(trainer):
            return
        value, verdict = trainer.callback_metrics.get(self.monitor), None
        if value is not None and trainer.is_global_zero:
            verdict = self._verdict(trainer.current_epoch + 1, float(value))
        self._obey(trainer, verdict)

    def _obey(self, trainer: Trainer, verdict: str | None) -> None:
        self.reason = trainer.strategy.broadcast(verdict)
        trainer.should_stop = trainer.should_stop or self.reason is not None

    def _verdict(self, epoch: int, value: float) -> str | None:
        """Why the run is to end, if it is; written down, since a pruner that is asked again may answer otherwise."""
        trial = self._open()
        known = trial.study.trials[self.trial]
        if known.state.is_finished():  # the search has gone on without this attempt
            return None
        best = max([value, *known.intermediate_values.values()])  # as the run will be chosen by its best
        if epoch not in known.intermediate_values:
            trial.report(best, epoch)
        if not trial.should_prune():
            return None
        reason = f"best {self.monitor} {best:.3f} after epoch {epoch} ({type(self.pruner).__name__})"
        trial.set_user_attr("pruned", reason)
        return reason

    def _open(self) -> Trial:
        """The trial as it now stands in the journal; FileNotFoundError when that is not where the sweep is."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if not self.journal.is_file():
            raise FileNotFoundError(
                f"there is no {self.journal}, in which this trial is to be reported; launch its sweep again"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = JournalStorage(JournalFileBackend(str(self.journal)))
        study = optuna.load_study(
            study_name=None, storage=storage, pruner=self.pruner, sampler=optuna.samplers.RandomSampler(seed=0)
        )
        return optuna.Trial(study, study.trials[self.trial]._trial_id)


def _at_its_end(trainer: Trainer) -> bool:
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step
