"""Sweeps in milliseconds: a config of a few lines, and a worker that only pretends to train.

The worker runs the Python code in PRETEND, which may do to itself what happens to jobs, and is then done. As a program
(`python toys.py <logs> <override> ...`) this file is a sweep in a process of its own, and a search with `trials=`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from quadrat.configs import friendly, register_resolvers
from quadrat.launchers import local_gpus, process
from quadrat.launchers.base import Draft
from quadrat.runs import Run
from quadrat.sweeps import search as sweeps_search
from quadrat.sweeps.drafts import name
from quadrat.sweeps.launch import Outcome, launch
from quadrat.sweeps.ledger import Sweep
from quadrat.sweeps.search import Rules, search

CONFIG = """
name: toy
seed: 0
monitor: val/map
trace: false
resume: {mode: auto}
loss: {weights: {rpn_box: 1.0, box: 1.0}}
optimizer: {lr: 0.1}
data: {workers: 0, root: "${paths.data}/voc"}
trainer: {max_epochs: 2, max_steps: -1, devices: 1, accelerator: cpu}
callbacks: {}
logger: {path: "${paths.run}/metrics.csv"}
paths: {logs: logs, run: "${paths.logs}/${run_folder:}", data: data}
sweep: {name: null, retry: null, job: null, trial: null}
launcher: {_target_: quadrat.launchers.local.Local}
hydra: {overrides: {task: []}}
"""

WORKER = r"""
import os, re, signal, sys, time
from pathlib import Path
from quadrat import signals
from quadrat.runs import Run, here

run = Run(sys.argv[1])
label = re.search("^  job: '?(.*?)'?$", run.config_file.read_text(), re.M)[1]
with open(run.folder / "attempts", "a") as file:
    print(os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
text = run.config_file.read_text()
weight = {name: float(number) for name, number in re.findall(r"^    (\w+): ([\d.e-]+)$", text, re.M)}
best, at_best = 0.5, {}
exec(os.environ.get("PRETEND", ""))
monitor = re.search(r"^monitor: (.*)$", text, re.M)[1]
run.write_json(run.metrics_file, {"monitor": monitor, "best": best, "at_best": at_best})
run.set_status("done", epochs=2, steps=8)
print("trained", label)
"""

PRETENDER = (sys.executable, "-c", WORKER)


def pretending(patch: pytest.MonkeyPatch) -> None:
    """From now on jobs are run by the pretender, and looked at often."""
    patch.setattr(process, "WORKER", PRETENDER)
    patch.setattr(process, "POLL", 0.01)
    patch.setattr(local_gpus, "POLL", 0.01)
    patch.setattr(sweeps_search, "POLL", 0.01)


UNTIL_STOPPED = """
if label == "seed=1" and not (run.folder / "stopped").exists():
    signals.arm()
    run.set_status("running", heartbeat=time.time(), **here())
    (run.folder / "stopped").touch()
    while not signals.received():
        time.sleep(0.01)
    run.set_status("preempted", reason=signal.Signals(signals.received()).name)
    sys.exit(128 + signals.received())
"""
"""The job of seed 1 waits for a signal the first time, saves and stops."""


def sets(*overrides: str) -> list[list[str]]:
    """What Hydra's grid makes of `a=1,2 b=3`."""
    pairs = [one.split("=", 1) for one in overrides]
    choices = [[f"{key}={value}" for value in re.split(r",(?![^\[]*\])", values)] for key, values in pairs]
    return [list(chosen) for chosen in itertools.product(*choices)]


def compose(overrides: Sequence[str], logs: Path, text: str = CONFIG) -> DictConfig:
    register_resolvers()
    config = OmegaConf.merge(
        OmegaConf.create(text), OmegaConf.from_dotlist(list(overrides)), {"paths": {"logs": str(logs)}}
    )
    assert isinstance(config, DictConfig)
    return config


def steering(overrides: Sequence[str]) -> list[str]:
    return [one for one in overrides if one.startswith(("sweep.", "launcher."))]


def toy(logs: Path, *overrides: str, text: str = CONFIG, **launcher: Any) -> list[Outcome]:
    """Launch a sweep; ``launcher`` takes the place of the local one."""
    master = compose(steering(overrides), logs, text)
    master.hydra.overrides.task = list(overrides)
    if launcher:
        master.launcher = launcher
    return launch(master, lambda chosen: compose(chosen, logs, text), sets(*overrides))


TPE = {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3}


def toy_search(
    logs: Path, *overrides: str, trials: int, text: str = CONFIG, launcher: str = "", **rules: Any
) -> optuna.Study:
    """Search, by TPE unless another sampler is given; what comes out is the study as it lies in the journal."""
    master = compose(steering(overrides), logs, text)
    if launcher:
        master.launcher = {"_target_": launcher}
    master.hydra = {"overrides": {"task": list(overrides), "hydra": []}, "sweeper": {"trials": trials}}
    parsed = OverridesParser.create().parse_overrides(list(overrides))

    def composed(chosen: Sequence[str]) -> DictConfig:
        return compose(chosen, logs, text)

    rules = {"sampler": TPE, "trials": trials, **rules}
    search(master, Rules(**rules), parsed, composed, lambda sets: launch(master, composed, sets))
    return study(logs)


def study(logs: Path) -> optuna.Study:
    (file,) = logs.glob("sweeps/*/study.journal")
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(file))))


class Cluster:
    """A launcher that hands its jobs over and returns, as SLURM's does; they run in processes of this machine."""

    def check(self, drafts: Sequence[Draft]) -> None:
        """Every job can run here."""

    def run(self, sweep: Sweep, drafts: Sequence[Draft]) -> None:
        worker = process.WORKER
        started = {one.job.key: os.spawnv(os.P_NOWAIT, worker[0], [*worker, one.job.run.folder]) for one in drafts}
        sweep.submitted("local", {key: str(pid) for key, pid in started.items()})


def drafted(logs: Path, *overrides: str) -> list[Draft]:
    """Jobs as a launcher gets them, with no sweep around them."""
    sweep = Sweep(logs / "sweeps" / "toy")
    configs = {label: compose([label], logs) for label in overrides}
    for label, config in configs.items():
        config.sweep.job = label
    return [
        Draft(sweep.job(label, label, [label], "0", Run(config.paths.run)), config) for label, config in configs.items()
    ]


def toy_name(*overrides: str, logs: Path = Path("logs")) -> str:
    master = compose(steering(overrides), logs)
    master.hydra.overrides.task = list(overrides)
    return name(master)


def runs(logs: Path) -> dict[str, Run]:
    """The runs of a logs folder by the labels of their jobs."""
    found = [Run(file.parent) for file in logs.glob("*/config.yaml")]
    return {run.config().sweep.job: run for run in found}


def states(logs: Path) -> dict[str, str]:
    return {label: run.status["state"] for label, run in runs(logs).items()}


def attempts(logs: Path) -> dict[str, int]:
    """How often the worker was started for each job."""
    files = {label: run.folder / "attempts" for label, run in runs(logs).items()}
    return {label: len(file.read_text().splitlines()) if file.exists() else 0 for label, file in files.items()}


def until(
    ready: Callable[[], bool], worthwhile: Callable[[], bool] = lambda: True, said: Callable[[], object] = str
) -> None:
    """Wait for what other processes do, as long as that is still worthwhile."""
    for _ in range(15_000):
        if ready():
            return
        assert worthwhile(), said()
        time.sleep(0.01)
    raise TimeoutError(f"it did not get so far in 150 s: {said()}")


def ledger(logs: Path) -> dict[str, Any]:
    (file,) = logs.glob("sweeps/*/ledger.json")
    return json.loads(file.read_text())


if __name__ == "__main__":
    pretending(pytest.MonkeyPatch())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    where, *asked = sys.argv[1:]
    rules = {
        key: int(value) for key, value in (one.split("=") for one in asked if one.startswith(("trials=", "batch=")))
    }
    with friendly(compose([], Path(where))):
        if rules:
            toy_search(Path(where), *(one for one in asked if one.partition("=")[0] not in rules), **rules)
        else:
            for outcome in toy(Path(where), *asked):
                print(outcome.return_value)
