"""Parts that are fitted late are fitted once: before the last validation, from the training pictures as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from quadrat import signals
from quadrat.configs import build, build_task, compose
from quadrat.models.base import FitsLate
from quadrat.structures import Batch

SMALL = (
    *(
        "~experiment",
        "model/backbone=tiny",
        "model.neck.channels=16",
        "model.layers.hidden=16",
        "model.sampler.count=8",
    ),
    *("model.proposer.train_limits=[20,10]", "model.proposer.test_limits=[20,10]", "schedule=constant"),
    *("++data.source.size=[64,64]", "data.limit=8", "data.batch_size=2", "data.eval_batch_size=4", "data.workers=0"),
)


def events(folder: Path, **options: Any) -> list[str]:
    """What a detector that stands for a late fitter is told during a run, and by which pictures."""
    told: list[str] = []

    def finish(batches: Any, folder: Path, *, rank: int, world: int, barrier: Any) -> str:
        found: list[Batch] = list(batches)
        ids = [target.image_id for batch in found for target in batch.targets]
        assert len(found) == len(batches)
        told.append(f"finish {ids} in {folder.name} {rank} of {world}")
        return "8 pictures"

    config = compose("train", SMALL)
    torch.manual_seed(0)
    data = build(config.data)
    task = build_task(config, data)
    assert not isinstance(task.model, FitsLate)
    task.model.finish, task.model.unfit = finish, lambda: told.append("unfit")  # pyright: ignore
    task.model.fitted = torch.tensor(False)  # pyright: ignore
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, enable_model_summary=False, **quiet, **options)
    trainer.fit(task, data)
    return told


def test_fits_come_once_before_the_last_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch and a validation begin without them; the sanity check changes nothing."""
    told = events(tmp_path, max_epochs=2, num_sanity_val_steps=1)
    assert told == ["unfit", "unfit", "unfit", "finish [0, 1, 2, 3, 4, 5, 6, 7] in features 0 of 1"]
    assert "8 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({"max_steps": 3, "max_epochs": -1, "val_check_interval": 1}, 8),
        ({"max_epochs": 1, "accumulate_grad_batches": 3, "val_check_interval": 2}, 8),
        ({"max_epochs": 1, "limit_train_batches": 1}, 4),
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, 8),
        ({"max_epochs": 2, "check_val_every_n_epoch": 1000}, 8),
    ],
)
def test_the_last_validation_is_known_however_a_run_ends(
    tmp_path: Path, options: dict[str, Any], pictures: int
) -> None:
    told = events(tmp_path, num_sanity_val_steps=0, limit_val_batches=1, **options)
    assert [one.startswith("finish") for one in told] == [False] * (len(told) - 1) + [True]
    assert told[-1].startswith(f"finish {list(range(pictures))} ")


def test_a_signal_stops_between_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "leave_if_asked", _stopped)
    with pytest.raises(signals.Stopped):
        events(tmp_path, max_epochs=1, num_sanity_val_steps=0)


def _stopped() -> None:
    raise signals.Stopped(15)


def test_a_run_without_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit_val_batches=0 leaves none"):
        events(tmp_path, max_epochs=1, limit_val_batches=0)
