"""Searches: Optuna proposes trials, each is launched as a job a seed, and a journal in the sweep's folder remembers them.

A trial is in the journal before its jobs are launched and told after they have ended, and what is proposed is a function of
the seed, the trial's number and the trials before its batch. So a search that was killed, at whatever instant, and is launched
again goes on with the same trials, and asks for the same ones as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, open_dict
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from quadrat import signals
from quadrat.configs import build
from quadrat.launchers.slurm import waiting
from quadrat.runs import Run
from quadrat.sweeps import preflight
from quadrat.sweeps.drafts import Compose, differences, identity, name
from quadrat.sweeps.ledger import Job, Sweep, standing
from quadrat.sweeps.space import Space

Launch = Callable[[Sequence[Sequence[str]]], Sequence[JobReturn]]

STUDY = "search"
"""The name of the only study of a journal."""

POLL = 5.0
"""Seconds between two looks at jobs that a cluster has."""


@dataclass(frozen=True)
class Rules:
    """How a search goes on; ``sampler`` and ``pruner`` are configs of Optuna's classes.

    ``trials`` in all, ``batch`` at once, and stop when the first ``failures`` of a launch have all failed. What is proposed is
    a function of ``seed``. ``objectives`` are metrics to be large, none of them for the monitor.
    """

    sampler: Mapping[str, Any]
    trials: int
    batch: int = 1
    failures: int = 3
    seed: int = 0
    objectives: Sequence[str] | None = None
    pruner: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.sampler:
            raise ValueError("hydra.sweeper.sampler is not set: choose hydra/sweeper=random, tpe or nsga2")
        if self.objectives is not None and not self.objectives:
            raise ValueError(
                "several metrics are to be large at once: name them, hydra.sweeper.objectives=[val/map,val/ap50]"
            )
        for field in ("trials", "batch", "failures"):
            if getattr(self, field) < 1:
                raise ValueError(f"hydra.sweeper.{field}={getattr(self, field)}: at least 1 is needed")
        if self.pruner and len(self.objectives or ()) > 1:
            raise ValueError(
                "a trial is ended early by one metric: give one of hydra.sweeper.objectives, or hydra/sweeper/pruner=none"
            )


def search(master: DictConfig, rules: Rules, overrides: Sequence[Override], compose: Compose, launch: Launch) -> None:
    """Run the trials that are missing; ValueError says why nothing was started, SystemExit that it did not come to its end.

    ``launch`` sees sets of overrides to the end of their jobs, or hands them to a cluster, whose end is waited for here.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = Space.of(overrides)
    sweep = Sweep(Path(master.paths.logs) / "sweeps" / name(master))
    base = _base(space, compose)
    objectives = list(rules.objectives or [base.monitor])
    preflight.check_metrics(objectives, base)
    with sweep.locked(sweep.folder / ".search"):
        study = _study(sweep, len(objectives), _design(base, space, rules, objectives))
        Search(sweep, study, space, rules, objectives, launch).run(retry=master.sweep.retry == "failed")


def _base(space: Space, compose: Compose) -> DictConfig:
    """The config of one point, for what all trials share."""
    base = compose(space.overrides(space.example()))
    with open_dict(base):
        base.pop("hydra", None)
    return base


def _design(base: DictConfig, space: Space, rules: Rules, objectives: Sequence[str]) -> dict[str, str]:
    """What must not change between two launches, since trials are compared, by names that a user knows."""
    settings = {key: json.dumps(value) for key, value in identity(base).items() if key not in space.parameters}
    settings |= {f"trainer.{key}": json.dumps(base.trainer[key]) for key in ("max_epochs", "max_steps")}
    chosen = {"sampler": rules.sampler, "pruner": rules.pruner, "seed": rules.seed, "objectives": list(objectives)}
    settings |= {f"hydra.sweeper.{key}": json.dumps(value) for key, value in chosen.items()}
    settings |= {f"the search of {key}": text for key, text in space.said.items()}
    return settings | ({"seeds": ", ".join(seed[0] for seed in space.seeds)} if space.seeds != [[]] else {})


# --- the journal ---


def _study(sweep: Sweep, objectives: int, design: dict[str, str]) -> optuna.Study:
    """The study of a sweep, old or new; ValueError when an old one is of another search, or cannot be read."""
    file = sweep.folder / "study.journal"
    with _explained(file):
        _drop_torn_line(file)
        storage = JournalStorage(JournalFileBackend(str(file)))
        directions = [StudyDirection.MAXIMIZE] * objectives
        study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions, load_if_exists=True)
        if "design" not in study.user_attrs:
            study.set_user_attr("design", design)
        known = study.user_attrs["design"]
    changed = list(differences(known, design, "when the search began"))
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise ValueError(
            f"the search {sweep.name} is no longer what it was when it began, and its trials could not be compared; nothing was "
            f"started. It differs in\n{lines}\nundo the change to go on with it, or begin another one with sweep.name=<new>"
        )
    return study


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{file} cannot be read ({error}); move it away and launch the search again: it asks for the same trials, and what "
            f"is done of them is found in the run folders"
        ) from error


def _drop_torn_line(file: Path) -> None:
    """A kill may leave the last line half written; nobody has acted on it, and Optuna would write behind it."""
    if not file.exists():
        return
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()
    try:
        os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


# --- the search ---


class Search:
    """The trials of a study, and the jobs they are."""

    def __init__(
        self, sweep: Sweep, study: optuna.Study, space: Space, rules: Rules, objectives: Sequence[str], launch: Launch
    ) -> None:
        self.sweep, self.study, self.space, self.rules = sweep, study, space, rules
        self.objectives, self.launch = objectives, launch

    def run(self, retry: bool) -> None:
        """Ask, launch and tell until there are as many trials as wanted; with ``retry`` failed ones are tried again first."""
        if retry:
            self._try_again()
        states = list[TrialState]()
        while batch := self._batch():
            signals.leave_if_asked()
            self._run(batch)
            states += [self.study.trials[trial.number].state for trial in batch]
            self._refuse_to_fail_forever(states)
        print(f"\n{self.summary()}\n", flush=True)

    def _batch(self) -> list[FrozenTrial]:
        """The trials of the next batch that are not told; batches begin at the same numbers however often it was killed."""
        trials = self.study.trials
        open_ones = [trial.number for trial in trials if not trial.state.is_finished()]
        first = open_ones[0] if open_ones else len(trials)
        end = (first // self.rules.batch + 1) * self.rules.batch
        for number in range(len(trials), min(end, self.rules.trials + self._repeated())):
            self._ask(number)
        return [trial for trial in self.study.trials[:end] if not trial.state.is_finished()]

    def _ask(self, number: int) -> None:
        """Propose a trial beside the journal, and write it there at once, so that a kill leaves all of it or nothing."""
        seed = int(np.random.SeedSequence([self.rules.seed, number]).generate_state(1)[0])
        beside = optuna.create_study(directions=self.study.directions, sampler=build(self.rules.sampler, seed=seed))
        beside.add_trials(self.study.trials)
        beside.ask(self.space.parameters)
        trial = beside.trials[-1]
        trial.params = self.space.rounded(trial.params)
        self.study.add_trial(trial)

    def _try_again(self) -> None:
        """Each failed trial once more, under a new number."""
        repeated = {trial.user_attrs.get("repeats") for trial in self.study.trials}
        for trial in self.study.trials:
            if trial.state == TrialState.FAIL and trial.number not in repeated:
                self.study.add_trial(
                    optuna.trial.create_trial(
                        state=TrialState.RUNNING,
                        params=trial.params,
                        distributions=trial.distributions,
                        user_attrs={"repeats": trial.number},
                    )
                )

    def _repeated(self) -> int:
        return sum("repeats" in trial.user_attrs for trial in self.study.trials)

    # --- running ---

    def _run(self, batch: Sequence[FrozenTrial]) -> None:
        """All jobs of a batch at once; where trials may be pruned, those of the first seed and then those of the survivors."""
        runs: dict[int, list[Run]] = {trial.number: [] for trial in batch}
        seeds = self.space.seeds
        for some in [seeds[:1], seeds[1:]] if self.rules.pruner else [seeds]:
            alive = [trial for trial in batch if all(_state(run) == "done" for run in runs[trial.number])]
            pairs = [(trial, seed) for trial in alive for seed in some]
            if pairs:
                outcomes = self.launch([self._overrides(trial, seed) for trial, seed in pairs])
                for (trial, _), outcome in zip(pairs, outcomes, strict=True):
                    runs[trial.number].append(Run(outcome.working_dir or ""))
                self._wait({run.folder for ran in runs.values() for run in ran})
        for trial in batch:
            self._tell(trial, runs[trial.number])

    def _overrides(self, trial: FrozenTrial, seed: list[str]) -> list[str]:
        overrides = [*self.space.overrides(trial.params), *seed]
        if not self.rules.pruner or seed != self.space.seeds[0]:
            return overrides
        told = {"number": trial.number, "pruner": dict(self.rules.pruner)}
        return [*overrides, f"sweep.trial={Override._get_value_element_as_str(told, space_after_sep=True)}"]

    def _wait(self, folders: set[Path]) -> None:
        """Until nobody works on these runs any more: at once, where the launcher has seen them to their end."""
        jobs = [job for job in self.sweep.jobs().values() if job.run.folder in folders]
        while _under_way(jobs):
            signals.leave_if_asked()
            time.sleep(POLL)

    # --- telling ---

    def _tell(self, trial: FrozenTrial, runs: Sequence[Run]) -> None:
        states = [_state(run) for run in runs]
        if "failed" in states:
            return self._end(trial, TrialState.FAIL, f"failed, see {runs[states.index('failed')].status_file}")
        if "pruned" in states:
            return self._end(
                trial, TrialState.PRUNED, f"pruned: {runs[states.index('pruned')].status.get('reason', '')}"
            )
        if set(states) != {"done"}:
            raise SystemExit(
                f"error: trial {trial.number} of the search {self.sweep.name} has not come to its end "
                f"({', '.join(states)}); the same command goes on with it"
            )
        try:
            values = [fmean(_value(run, objective) for run in runs) for objective in self.objectives]
        except (ValueError, KeyError, TypeError, OSError) as error:
            return self._end(trial, TrialState.FAIL, f"failed, it has no {' or '.join(self.objectives)} ({error})")
        self.study.tell(trial.number, values)
        seeds = f" over {len(runs)} seeds" if len(runs) > 1 else ""
        return print(f"trial {trial.number}: {self._said(trial.params)}: {self._numbers(values)}{seeds}", flush=True)

    def _end(self, trial: FrozenTrial, state: TrialState, said: str) -> None:
        self.study.tell(trial.number, state=state)
        print(f"trial {trial.number}: {self._said(trial.params)}: {said}", flush=True)

    def _refuse_to_fail_forever(self, states: Sequence[TrialState]) -> None:
        if len(states) >= self.rules.failures and set(states) == {TrialState.FAIL}:
            raise SystemExit(
                f"error: all {len(states)} trials of this launch of the search {self.sweep.name} have failed; mend what "
                f"`quadrat-report status {self.sweep.name}` shows, and the same command with sweep.retry=failed tries them again"
            )

    def summary(self) -> str:
        """How many trials came to which end, and the best: one, or those that no other beats in every objective."""
        trials = self.study.trials
        ends = [(state, sum(trial.state == state for trial in trials)) for state in TrialState]
        counted = ", ".join(f"{count} {state.name.lower()}" for state, count in ends if count)
        best = self.study.best_trials if any(trial.state == TrialState.COMPLETE for trial in trials) else []
        lines = [f"  trial {one.number}: {self._said(one.params)}: {self._numbers(one.values)}" for one in best]
        return "\n".join([f"search {self.sweep.name}: {len(trials)} trials: {counted}; best:", *lines])

    def _said(self, params: Mapping[str, Any]) -> str:
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in params.items())

    def _numbers(self, values: Sequence[float]) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in zip(self.objectives, values, strict=True))


def _state(run: Run) -> str:
    return run.status["state"]


def _under_way(jobs: Sequence[Job]) -> bool:
    queued = waiting(jobs)
    return any(job.key in queued or standing(job)["state"] == "running" for job in jobs)


def _value(run: Run, objective: str) -> float:
    """A metric at the validation that the run is chosen by; KeyError or ValueError where there is none."""
    results = json.loads(run.metrics_file.read_text())
    value = results["best"] if objective == results.get("monitor") else results["at_best"][objective]
    if value is None or not math.isfinite(value):
        raise ValueError(f"{objective} is {value} in {run.metrics_file}")
    return float(value)
