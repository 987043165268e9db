"""A trial's run reports to its search, and ends when it is told to: once for each epoch, also when it is resumed or killed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from quadrat.callbacks.prune import Prune
from quadrat.configs import compose
from quadrat.jobs import train
from quadrat.runs import Run

MODULE = cast(LightningModule, None)


class Once(BasePruner):
    """Says so the first time it is asked, and never again."""

    def __init__(self) -> None:
        self.asked = 0

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self.asked += 1
        return self.asked == 1


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Two trials that were as good as can be from the first epoch, and one at work."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    good = create_trial(value=1.0, intermediate_values={epoch: 0.9 for epoch in range(1, 9)})
    study.add_trials([good, good, create_trial(state=TrialState.RUNNING)])
    return study


def prune(tmp_path: Path, pruner: BasePruner | None = None) -> Prune:
    return Prune(tmp_path / "study.journal", 2, pruner or NopPruner(), "val/map")


def trainer(epoch: int = 1, value: float | None = 0.5, heard: str | None = None, **more: Any) -> Trainer:
    """At the end of a validation; ``heard`` is what rank 0 says, where this is another rank."""
    state = {
        "sanity_checking": False,
        "callback_metrics": {} if value is None else {"val/map": torch.tensor(value)},
        "is_global_zero": heard is None,
        "current_epoch": epoch - 1,
        "global_step": 10 * epoch,
        "max_epochs": 9,
        "max_steps": -1,
        "should_stop": False,
        "strategy": SimpleNamespace(broadcast=lambda said: heard or said),
    }
    return cast(Trainer, SimpleNamespace(**{**state, **more}))


def reports(study: optuna.Study) -> dict[int, float]:
    return {epoch: pytest.approx(value) for epoch, value in study.trials[2].intermediate_values.items()}


def test_nothing_validated_nothing_reported(study: optuna.Study, tmp_path: Path) -> None:
    for silent in (trainer(value=None), trainer(sanity_checking=True)):
        prune(tmp_path).on_validation_end(silent, MODULE)
        assert not silent.should_stop
    assert reports(study) == {}


def test_best_so_far_is_reported(study: optuna.Study, tmp_path: Path) -> None:
    """The objective is a run's best, so a bad epoch after a good one is none."""
    callback = prune(tmp_path)
    for epoch, value in ((1, 0.2), (2, 0.6), (4, 0.1)):
        callback.on_validation_end(trainer(epoch, value), MODULE)
    assert reports(study) == {1: 0.2, 2: 0.6, 4: 0.6}
    assert callback.reason is None


def test_resumed_run_does_not_report_twice(study: optuna.Study, tmp_path: Path) -> None:
    """Optuna would warn, which is an error here."""
    prune(tmp_path).on_validation_end(trainer(1, 0.2), MODULE)
    again = prune(tmp_path)
    again.on_train_start(trainer(1), MODULE)
    again.on_validation_end(trainer(1, 0.3), MODULE)
    again.on_validation_end(trainer(2, 0.1), MODULE)
    assert reports(study) == {1: 0.2, 2: 0.2}


def test_hopeless_run_is_told_to_end(study: optuna.Study, tmp_path: Path) -> None:
    callback, here = prune(tmp_path, MedianPruner(n_startup_trials=1)), trainer(3, 0.25)
    callback.on_validation_end(here, MODULE)
    assert here.should_stop
    assert callback.reason == "best val/map 0.250 after epoch 3 (MedianPruner)"


def test_good_run_goes_on(study: optuna.Study, tmp_path: Path) -> None:
    callback, here = prune(tmp_path, MedianPruner(n_startup_trials=1)), trainer(3, 0.95)
    callback.on_validation_end(here, MODULE)
    assert not here.should_stop
    assert callback.reason is None


@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_steps": 30}])
def test_last_epoch_is_not_asked_about(end: dict[str, int], study: optuna.Study, tmp_path: Path) -> None:
    here = trainer(3, 0.0, **end)
    prune(tmp_path, Once()).on_validation_end(here, MODULE)
    assert not here.should_stop


def test_killed_after_the_decision_ends_when_resumed(study: optuna.Study, tmp_path: Path) -> None:
    """Also with a pruner that would answer otherwise now."""
    pruner = Once()
    prune(tmp_path, pruner).on_validation_end(trainer(2, 0.1), MODULE)
    resumed, here = prune(tmp_path, pruner), trainer(2)
    resumed.on_train_start(here, MODULE)
    assert here.should_stop
    assert resumed.reason == "best val/map 0.100 after epoch 2 (Once)"
    assert pruner.asked == 1


def test_other_ranks_do_what_rank_0_says(study: optuna.Study, tmp_path: Path) -> None:
    callback, here = prune(tmp_path, Once()), trainer(heard="rank 0 says so")
    callback.on_validation_end(here, MODULE)
    assert here.should_stop
    assert callback.reason == "rank 0 says so"
    assert reports(study) == {}


def test_trial_that_the_search_has_closed_is_left_alone(study: optuna.Study, tmp_path: Path) -> None:
    study.tell(2, state=TrialState.FAIL)
    here = trainer(1, 0.0)
    prune(tmp_path, Once()).on_validation_end(here, MODULE)
    assert not here.should_stop


def test_journal_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*study\.journal.*launch its sweep again"):
        prune(tmp_path).on_train_start(trainer(), MODULE)
    assert not list(tmp_path.iterdir())


# --- for real ---

TINY = (
    *("data.source.count=8", "data.batch_size=2", "epochs=3", "trainer.log_every_n_steps=1", "monitor=val/ar100"),
    *("model.neck.channels=16", "model.layers.hidden=32", "callbacks.pictures=null", "sweep.name=mine"),
)


@pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pruned_run_ends_in_good_order_and_can_be_finished(study: optuna.Study, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "sweeps" / "mine").mkdir(parents=True)
    (tmp_path / "study.journal").rename(logs / "sweeps" / "mine" / "study.journal")
    told = "{number: 2, pruner: {_target_: optuna.pruners.MedianPruner, n_startup_trials: 1}}"
    config = compose("train", [*TINY, f"paths.logs={logs}", f"sweep.trial={told}"])
    best = train(config)
    run = Run(config.paths.run)
    results = json.loads(run.metrics_file.read_text())
    assert (run.status["state"], run.status["epochs"]) == ("pruned", 1)
    assert run.status["reason"].endswith("after epoch 1 (MedianPruner)")
    assert run.status["best"] == best == results["best"] == results["at_best"]["val/ar100"]
    assert results["at_best"] == results["last"]
    assert run.best.exists()

    train(compose("train", [*TINY, f"paths.logs={logs}"]))
    results = json.loads(run.metrics_file.read_text())
    assert (run.status["state"], run.status["epochs"]) == ("done", 3)
    assert "reason" not in run.status
    assert results["at_best"]["val/ar100"] == results["best"]
    assert "val/map" in results["at_best"]
