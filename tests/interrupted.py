"""Runs that are killed at a chosen instant: the child processes of tests/test_resume.py.

Children are forked from a server that has imported everything and computed nothing, so that each costs a second, not ten.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

from quadrat import runs, signals
from quadrat.callbacks import checkpoints
from quadrat.callbacks.checkpoints import AtomicCheckpointIO
from quadrat.configs import compose, friendly
from quadrat.data.module import Batches
from quadrat.jobs import run_job
from quadrat.tasks.base import Task

PRELOADED = [
    "interrupted",
    "lightning.pytorch",
    "quadrat.tasks.detection",
    "quadrat.models.regions",
    "quadrat.data.module",
]


class Ended(NamedTuple):
    """How a training process ended, and what it printed."""

    code: int
    said: str


def run(overrides: list[str], trap: tuple[str, int] | None = None) -> Ended:
    """Train in a process of its own that may fall into a trap: (where, at which passing)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.NamedTemporaryFile("r") as said:
        child = context.Process(target=_train, args=(overrides, trap, said.name))
        child.start()
        child.join(150)
        if child.exitcode is None:
            child.kill()
            raise AssertionError(f"the run hangs: {said.read()}")
        return Ended(child.exitcode, said.read())


def _train(overrides: list[str], trap: tuple[str, int] | None, said: str) -> None:
    with open(said, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # as in a process that nobody has forked: for the loader workers
    torch.set_num_threads(1)
    if "trainer.precision=16-mixed" in overrides:
        _scale_on_cpu()
    signals.arm()
    if trap is not None:
        where, passing = trap
        TRAPS[where](_at(passing, SIGNALS.get(where.split()[0], signal.SIGKILL)))
    config = compose("train", overrides)
    with friendly(config):
        run_job(config)


def _scale_on_cpu() -> None:
    """Lightning takes bfloat16 where it finds no GPU; the scaler of float16 has a state to lose, so it is wanted here."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    _AcceleratorConnector._check_and_init_precision = lambda self: precision


def _at(passing: int, signum: int) -> Callable[[], None]:
    """Send this process a signal when it comes by for the n-th time."""
    passed = 0

    def step() -> None:
        nonlocal passed
        passed += 1
        if passed == passing:
            os.kill(os.getpid(), signum)

    return step


def _before(owner: Any, name: str, step: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        step()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _in_step(step: Callable[[], None]) -> None:
    _before(Task, "_add_to_means", step)


def _in_validation(step: Callable[[], None]) -> None:
    _before(Task, "_evaluate", step)


def _at_epoch_end(step: Callable[[], None]) -> None:
    _before(Task, "on_train_epoch_end", step)


def _before_rename(step: Callable[[], None]) -> None:
    _before(checkpoints.os, "replace", step)


def _in_writing(step: Callable[[], None]) -> None:
    """Half of the file is written, and then nothing more."""
    whole = torch.save

    def half(checkpoint: Any, file: Any) -> None:
        whole(checkpoint, file)
        file.truncate(file.tell() // 2)
        file.flush()
        step()
        file.seek(0)
        whole(checkpoint, file)

    checkpoints.torch.save = half


def _after_saving(step: Callable[[], None]) -> None:
    save = AtomicCheckpointIO.save_checkpoint

    def saved(self: Any, checkpoint: Any, path: str | Path, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        step()

    AtomicCheckpointIO.save_checkpoint = saved


def _disk_full(step: Callable[[], None]) -> None:
    """From the second epoch on, no file may grow beyond a hundred kilobytes: the system refuses as a full disk does."""
    limits = (100_000, 100_000)
    _before(Task, "on_train_epoch_end", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))


def _in_loading(step: Callable[[], None]) -> None:
    """In a loader worker, which counts for itself."""
    _before(Batches, "__getitem__", step)


def _impatient(step: Callable[[], None]) -> None:
    runs.PATIENCE = 0.0


def _no_temporary_folder(step: Callable[[], None]) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = "/nowhere"


SIGNALS = {"term": signal.SIGTERM, "interrupt": signal.SIGINT}

TRAPS: dict[str, Callable[[Callable[[], None]], None]] = {
    "in a step": _in_step,
    "in validation": _in_validation,
    "at an epoch's end": _at_epoch_end,
    "before a rename": _before_rename,
    "while writing": _in_writing,
    "after saving": _after_saving,
    "interrupt in a step": _in_step,
    "disk full": _disk_full,
    "in loading": _in_loading,
    "impatient": _impatient,
    "no temporary folder": _no_temporary_folder,
    "term in a step": _in_step,
    "term in validation": _in_validation,
    "term at an epoch's end": _at_epoch_end,
}
