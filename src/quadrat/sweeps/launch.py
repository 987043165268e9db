"""Run the jobs of a sweep as far as they are not done: decide, freeze, hand to a launcher, and say what came of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig
from tqdm import tqdm

from quadrat import signals
from quadrat.configs import build
from quadrat.jobs import long_enough
from quadrat.launchers.base import Draft, Launcher
from quadrat.launchers.slurm import waiting
from quadrat.sweeps import preflight
from quadrat.sweeps.drafts import BAR, Compose, drafts, name
from quadrat.sweeps.ledger import Job, Sweep, standing
from quadrat.sweeps.table import best, counts, table


class Outcome(JobReturn):
    """The end of a job as Hydra's sweepers ask for it, without the line that Hydra prints of every failure."""

    @property
    def return_value(self) -> Any:
        """The best value of the monitored metric, None while there is none; raises what a failed job ended with."""
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value


def launch(master: DictConfig, compose: Compose, sets: Sequence[Sequence[str]]) -> list[Outcome]:
    """Run the jobs of these sets of overrides, as far as they are not done; one outcome for each set.

    ValueError says why nothing was started, `signals.Stopped` that the jobs were stopped by a signal.
    """
    sweep = Sweep(Path(master.paths.logs) / "sweeps" / name(master))
    launcher: Launcher = build(master.launcher)
    with sweep.locked():
        asked = drafts(sweep, master, compose, sets)
        single = list({draft.job.id: draft for draft in asked}.values())
        verdicts = _verdicts(sweep, single, master.sweep.retry)
        todo = [_fresh(sweep, draft) for draft in single if verdicts[draft.job.id] == "to run"]
        preflight.check(todo)
        launcher.check(todo)
        sweep.enter([draft.job for draft in single], [draft.job for draft in todo], _provenance(master))
        _freeze(todo)
        try:
            launcher.run(sweep, todo)
        except signals.Stopped:
            done = sum(standing(draft.job)["state"] == "done" for draft in single)
            print(f"\ninterrupted: {done} of {len(single)} jobs are done; the same command goes on", flush=True)
            raise
        return _outcomes(sweep, asked, sets, {id for id, verdict in verdicts.items() if verdict == "under way"})


def _provenance(master: DictConfig) -> dict[str, Any]:
    return {"command": sys.argv[1:], "launcher": master.launcher._target_, "quadrat": version("quadrat")}


# --- what is to be done ---


def _verdicts(sweep: Sweep, drafts: Sequence[Draft], retry: str | None) -> dict[str, str]:
    """By the ids of jobs: done, pruned, under way (at work or in a queue), failed, or to run."""
    if retry not in (None, "failed"):
        raise ValueError(f"sweep.retry={retry}: failed runs the failed jobs again, null leaves them")
    queued = waiting(draft.job for draft in drafts)
    verdicts = {draft.job.id: _verdict(draft, queued, retry) for draft in drafts}
    said = counts(Counter(verdicts.values()), ("done", "pruned", "under way", "failed", "to run"))
    print(f"sweep {sweep.name}: {said}  ({sweep.folder})", flush=True)
    return verdicts


def _fresh(sweep: Sweep, draft: Draft) -> Draft:
    """Without the ticket of an earlier submission."""
    job = draft.job
    return Draft(sweep.job(job.key, job.label, job.overrides, job.id, job.run), draft.config)


def _verdict(draft: Draft, queued: set[str], retry: str | None) -> str:
    status = standing(draft.job)
    anew = draft.config.resume.mode == "never"
    if status["state"] == "done" and long_enough(status, draft.config.trainer) and not anew:
        return "done"
    if status["state"] == "running" or draft.job.key in queued:
        return "under way"
    if status["state"] == "pruned" and draft.config.sweep.get("trial"):
        return "pruned"  # only a search leaves it at that: whoever asks for the run itself gets the whole
    return "failed" if status["state"] == "failed" and retry != "failed" else "to run"


def _freeze(drafts: Sequence[Draft]) -> None:
    """From here on nothing that is edited changes these jobs."""
    for draft in tqdm(drafts, "freezing", unit="job", delay=BAR, leave=False):
        _replace_damaged(draft.job)
        if draft.config.resume.mode == "never" and draft.job.run.folder.exists():
            draft.job.run.set_aside()
            draft.config.resume.mode = "auto"  # anew once, not whenever a cluster starts the job again
        draft.job.run.save_config(draft.config)
        draft.job.run.set_status("queued", id=draft.job.id)


def _replace_damaged(job: Job) -> None:
    status = standing(job)
    if status["state"] == "unreadable":
        print(f"note: {status['reason']}; it is written anew")
        job.run.status_file.unlink(missing_ok=True)
        job.run.heartbeat_file.unlink(missing_ok=True)


# --- the end ---


def _outcomes(
    sweep: Sweep, drafts: Sequence[Draft], sets: Sequence[Sequence[str]], under_way: set[str]
) -> list[Outcome]:
    """What came of each set of overrides, after a table of all that is not simply waiting."""
    jobs = list({draft.job.id: draft.job for draft in drafts}.values())
    states = {job.id: standing(job)["state"] for job in jobs}
    if set(states.values()) - {"queued"}:
        print(f"\n{table(jobs)}\n", flush=True)
    fine = ("done", "pruned", "queued", "running")
    bad = {id: state for id, state in states.items() if state not in fine and id not in under_way}
    failure = SystemExit(_failure(sweep, len(jobs), list(bad.values())))
    return [
        Outcome(
            overrides=list(overrides),
            cfg=draft.config,
            working_dir=str(draft.job.run.folder),
            status=JobStatus.FAILED if draft.job.id in bad else JobStatus.COMPLETED,
            _return_value=failure if draft.job.id in bad else best(draft.job),
        )
        for draft, overrides in zip(drafts, sets, strict=True)
    ]


def _failure(sweep: Sweep, total: int, states: Sequence[str]) -> str:
    how = "with sweep.retry=failed runs them again" if "failed" in states else "goes on with them"
    return f"error: {len(states)} of {total} jobs of the sweep {sweep.name} are not done; the same command {how}"
