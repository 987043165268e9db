"""Killed at any instant and launched again, a run ends with the bits of the one that nobody disturbed."""

from __future__ import annotations

import atexit
import csv
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import interrupted
from quadrat.configs import compose
from quadrat.runs import Run

EPOCHS, BATCHES = 3, 4
TINY = (
    *("data.source.count=8", "data.batch_size=2", "data.eval_batch_size=3", f"trainer.max_epochs={EPOCHS}"),
    *("trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "callbacks.pictures=null"),
    *("model.neck.channels=8", "model.layers.hidden=16", "augment=flip", "++data.source.size=[96,96]"),
)
EVERYTHING = (
    *("callbacks=ema", "data.workers=2", "trainer.accumulate_grad_batches=3", "trainer.precision=16-mixed"),
    *("loss/weighting=uncertainty", "optimizer=sgd", "schedule=step", "trainer.gradient_clip_val=1.0"),
)
BALANCED = ("loss/weighting=pcgrad", "task.gradients_every=2", "trainer.accumulate_grad_batches=2")
THAWED = (
    *("callbacks=freeze_plateau", "callbacks.freeze.until.patience=1", "callbacks.freeze.until.least=1"),
    "optimizer.lr=0.005",  # the second epoch is better, and saved as the best
)
"""No validation is better than the first by 1, so that the second ends the first phase, and the third epoch is the second."""

SETTINGS = {
    "plain": (),
    "everything": EVERYTHING,
    "famo": ("loss/weighting=famo",),
    "balanced": BALANCED,
    "workers": ("data.workers=1", "trainer.check_val_every_n_epoch=2"),
    "freeze": THAWED,
    "four steps": ("callbacks=four_steps", "trainer.max_epochs=4"),
}

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def overrides(logs: Path, name: str, *more: str) -> list[str]:
    return [*TINY, *SETTINGS[name], f"paths.logs={logs}", *more]


def folder(logs: Path, name: str) -> Run:
    return Run(compose("train", overrides(logs, name)).paths.run)


KILLED, ASKED = -9, 143
INSTANTS = [
    *[(("in a step", n), KILLED) for n in (1, 2, 4, 6, 12)],
    *[(("in validation", n), KILLED) for n in (1, 3, 5)],
    *[(("at an epoch's end", n), KILLED) for n in (1, 2, 3)],
    *[(("before a rename", n), KILLED) for n in (1, 2, 5, 14)],
    *[(("while writing", n), KILLED) for n in (1, 3, 8)],
    *[(("after saving", n), KILLED) for n in (1, 4, 7)],
    *[(("term in a step", n), ASKED) for n in (1, 4, 7)],
    *[(("term in validation", n), ASKED) for n in (2, 3)],
    *[(("term at an epoch's end", n), ASKED) for n in (1, 2)],
]
"""Where the run falls into a trap, at which passing, and how it ends; an epoch has 4 batches and 3 of validation."""

IN_CI = {
    "plain": [
        *[("in a step", 6), ("before a rename", 2), ("while writing", 3), ("after saving", 4)],
        ("term in validation", 2),
    ],
    "famo": [],
    "balanced": [],
    "workers": [("in a step", 6)],
    "freeze": [("in a step", 12)],
    "four steps": [("in a step", 12)],
    "everything": [("in a step", 6), ("term in a step", 4)],
}


def instants() -> Iterator[Any]:
    """All of them in all settings, saving at each step or at validations and epochs only; CI tries a part."""
    for setting, minutes, (trap, code) in itertools.product(SETTINGS, (0, 15), INSTANTS):
        tried = minutes == 0 and trap in IN_CI[setting]
        marks = [] if tried else [pytest.mark.slow]
        yield pytest.param(setting, minutes, trap, code, id=f"{setting}-{minutes}-{trap[0]}-{trap[1]}", marks=marks)


@pytest.mark.parametrize(("setting", "minutes", "trap", "code"), list(instants()))
def test_resume_same_bits(setting: str, minutes: int, trap: tuple[str, int], code: int, tmp_path: Path) -> None:
    command = overrides(tmp_path, setting, f"callbacks.checkpoints.minutes={minutes}")
    assert interrupted.run(command, trap).code == code
    assert interrupted.run(command).code == 0
    same(folder(tmp_path, setting), undisturbed(setting))


@functools.cache
def undisturbed(setting: str) -> Run:
    logs = Path(tempfile.mkdtemp(prefix="quadrat-undisturbed-"))
    atexit.register(shutil.rmtree, logs)
    assert interrupted.run(overrides(logs, setting)).code == 0
    return folder(logs, setting)


def same(run: Run, whole: Run) -> None:
    """Weights, averages, optimiser, schedule, counters, and every row of the log."""
    for ours, theirs in ((run.last, whole.last), (run.best, whole.best)):
        differing = list(differences(load(ours), load(theirs), ours.name))
        assert not differing
    assert rows(run) == rows(whole)


def differences(ours: Any, theirs: Any, at: str) -> Any:
    """The places where two nested states differ; the loops of a resumed run count the restarted validation."""
    if at.endswith(("val_loop.batch_progress", "scheduler_progress", "optim_progress")) or "validate_loop" in at:
        return
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), at
        for key in theirs:
            yield from differences(ours[key], theirs[key], f"{at}/{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), at
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{at}/{number}")
    elif not (torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs):
        yield at, ours, theirs


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def rows(run: Run) -> list[dict[str, str]]:
    with run.log.open(newline="") as file:
        return list(csv.DictReader(file))
