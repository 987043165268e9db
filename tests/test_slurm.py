"""A real SLURM: whatever it does to a job, the job ends with the bits of one that nobody disturbed.

All of it happens side by side on one small cluster; each test looks at its own part. A job that is to be disturbed is first
brought to a stand (SIGSTOP) somewhere in its second epoch, so that nothing depends on who is fast; SLURM wakes what it signals.
"""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import interrupted
from quadrat.configs import compose
from quadrat.runs import Run
from quadrat.sweeps.ledger import Job, Sweep
from slurm_cluster import Absent, Cluster, started

BATCHES, EPOCHS, HOLD_AT = 8, 5, 11
TINY = (
    *(f"data.source.count={2 * BATCHES}", "data.batch_size=2", "data.eval_batch_size=3"),
    *(f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"),
    *("model.neck.channels=8", "model.layers.hidden=16", "++data.source.size=[96,96]", "callbacks.pictures=null"),
)
SHARED_OUT = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", f"data.source.count={4 * BATCHES}")
TWO_NODES = (*SHARED_OUT, "trainer.devices=1", "++trainer.num_nodes=2")
TWO_HERE = (*SHARED_OUT, "trainer.devices=2")

COMPOSING = Lock()  # Hydra composes one config at a time

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass
class Told:
    """What came of a story: the run that it is about, SLURM's record of its job, what it printed, and what was seen."""

    run: Run
    job: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    seen: dict[str, Any] = field(default_factory=dict)


@dataclass
class Place:
    """Where a story happens."""

    cluster: Cluster
    logs: Path

    def config(self, *more: str) -> DictConfig:
        """The settings of a run, with what differs from the usual ones."""
        with COMPOSING:
            return compose("train", [*TINY, f"paths.logs={self.logs}", *more])

    def submit(self, *options: str) -> tuple[str, Run]:
        """A frozen job, submitted as a user's own batch script would do it."""
        config = self.config()
        run = Run(config.paths.run)
        run.save_config(config)
        return self.cluster.submit(f"{sys.executable} -m quadrat.worker {run.folder}", *options), run

    def sweep(self, name: str, *overrides: str) -> tuple[str, dict[str, Job]]:
        """What launching it prints, and its jobs by the last of their overrides."""
        launcher = ("-m", "launcher=slurm", "launcher.partition=main", "launcher.timeout_min=10", f"sweep.name={name}")
        said = self.quadrat("train", *launcher, *TINY, *overrides)
        return said, {job.overrides[-1]: job for job in Sweep.find(name, self.logs).jobs().values()}

    def sweep_and_hold(
        self, held: Sequence[Run], name: str, *overrides: str
    ) -> tuple[tuple[str, dict[str, Job]], list[int]]:
        """Jobs are held from the first moment on, as they are short: the launch returns while they stand still."""
        with ThreadPoolExecutor(1) as pool:
            launching = pool.submit(self.sweep, name, *overrides)
            processes = self.hold(*held)
            return launching.result(), processes

    def quadrat(self, command: str, *arguments: str) -> str:
        """What a command of ours prints."""
        script = Path(sys.executable).parent / f"quadrat-{command}"
        return self.cluster.say("env", f"QUADRAT_LOGS={self.logs}", str(script), *arguments)

    def hold(self, *runs: Run) -> list[int]:
        """Bring jobs to a stand in their second epoch; returns their processes."""
        held: dict[Path, int] = {}

        def all_held() -> list[int] | None:
            for run in runs:
                if run.folder not in held and len(rows_of(run)) >= HOLD_AT:
                    held[run.folder] = int(run.status["pid"])
                    os.kill(held[run.folder], signal.SIGSTOP)
                    assert run.status["state"] == "running", "the job was done before it could be held"
            return [held[run.folder] for run in runs] if len(held) == len(runs) else None

        return self.cluster.until(f"had the jobs of {self.logs.name} {HOLD_AT} rows", all_held)

    def make_room(self, node: str) -> None:
        """Run a more urgent job that needs this very node."""
        self.cluster.wait(self.cluster.submit("true", "--partition=high", f"--nodelist={node}"), "COMPLETED")

    def finished(self, number: str, run: Run, log: Path | None = None, **seen: Any) -> Told:
        """The end of a story, once its job has come to its end."""
        job = self.cluster.wait(number, "COMPLETED")
        return Told(run, job, Path(log or job["StdOut"]).read_text(), seen)


def rows_of(run: Run) -> list[dict[str, str]]:
    if not run.log.exists():
        return []
    with run.log.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the stories ---


def undisturbed(place: Place, *more: str) -> Told:
    """The run of these settings in processes of this machine."""
    code, said = interrupted.run([*TINY, *more, f"paths.logs={place.logs}"])
    assert code == 0, said
    return Told(Run(place.config(*more).paths.run))


def time_limit(place: Place) -> Told:
    """The limit is brought near when the job stands: SLURM looks every half minute, and tells the job 95 s ahead."""
    number, run = place.submit("--time=10", "--signal=USR1@95")
    place.hold(run)
    began = time.mktime(time.strptime(place.cluster.job(number)["StartTime"], "%Y-%m-%dT%H:%M:%S"))
    minutes = int((time.time() - began + 35) / 60) + 1
    place.cluster.say("scontrol", "update", f"jobid={number}", f"TimeLimit={minutes}")
    place.cluster.again(number)
    return place.finished(number, run)


def array(place: Place) -> Told:
    """Three jobs, of which one is let be, one cancelled and one killed; then the same command again."""
    held = [Run(place.config(f"seed={seed}").paths.run) for seed in (1, 2)]
    (launched, jobs), (_, process) = place.sweep_and_hold(held, "three", "seed=0,1,2")
    kept, cancelled, killed = (jobs[f"seed={seed}"] for seed in range(3))
    at_once = [job.run.status["state"] for job in (cancelled, killed)]

    place.cluster.say("scancel", str(cancelled.ticket))
    place.cluster.wait(str(cancelled.ticket), "CANCELLED")
    place.cluster.until("was the cancelled job saved", lambda: cancelled.run.status["state"] == "preempted")

    os.kill(process, signal.SIGKILL)
    place.cluster.wait(str(killed.ticket), "FAILED")
    seen = {
        "launched": launched,
        "at once": at_once,
        "kept": place.finished(str(kept.ticket), kept.run, kept.log),
        "report": place.quadrat("report", "status", "three"),
        "cancelled": place.cluster.job(str(cancelled.ticket)),
        "cancelled printed": cancelled.log.read_text(),
    }
    relaunched, jobs = place.sweep("three", "seed=0,1,2")
    again = {label: place.finished(str(job.ticket), job.run, job.log) for label, job in jobs.items()}
    return Told(kept.run, seen={**seen, "relaunched": relaunched, **again})


def preempted(place: Place) -> Told:
    number, run = place.submit("--signal=USR1@30")
    place.hold(run)
    place.make_room(place.cluster.job(number)["NodeList"])
    status = run.status
    place.cluster.again(number)
    return place.finished(number, run, status=status)


def requeued(place: Place) -> Told:
    number, run = place.submit()
    place.hold(run)
    place.cluster.say("scontrol", "requeue", number)
    place.cluster.again(number)
    return place.finished(number, run)


def node_down(place: Place) -> Told:
    number, run = place.submit()
    place.hold(run)
    node = place.cluster.job(number)["NodeList"]
    place.cluster.cut_power(node, number)
    place.cluster.again(number)
    return place.finished(number, run, node=node)


def two_nodes(place: Place) -> Told:
    address = "launcher.setup=['export MASTER_ADDR=127.0.0.1']"  # emulated nodes have no names that resolve
    held = [Run(place.config(*TWO_NODES).paths.run)]
    (_, jobs), _ = place.sweep_and_hold(held, "two", *TWO_NODES, "launcher.signal_delay_s=30", address)
    (job,) = jobs.values()
    number = str(job.ticket)
    nodes = place.cluster.say("scontrol", "show", "hostnames", place.cluster.job(number)["NodeList"]).split()
    place.make_room(nodes[-1])
    status = job.run.status
    place.cluster.again(number)
    return place.finished(number, job.run, job.log, status=status, nodes=nodes)


STORIES: dict[str, Callable[[Place], Told]] = {
    "time limit": time_limit,
    "two nodes": two_nodes,
    "array": array,
    "preempted": preempted,
    "node down": node_down,
    "requeued": requeued,
    "undisturbed": undisturbed,
    "undisturbed seed=1": lambda place: undisturbed(place, "seed=1"),
    "undisturbed seed=2": lambda place: undisturbed(place, "seed=2"),
    "undisturbed in two": lambda place: undisturbed(place, *TWO_HERE),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Told]]:
    """All stories are going on; what is returned waits for the end of one."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        with started(folder / "cluster", nodes=6) as cluster, ThreadPoolExecutor(len(STORIES)) as pool:
            futures = {
                name: pool.submit(story, Place(cluster, folder / name.replace(" ", "-").replace("=", "")))
                for name, story in STORIES.items()
            }
            yield partial(_end, futures)
            cluster.over.set()
    except Absent as reason:
        pytest.skip(f"no SLURM here: {reason}")


def _end(futures: dict[str, Future[Told]], name: str) -> Told:
    error = futures[name].exception()
    if error is not None:  # not raised itself, since it may be asked for several times
        raise AssertionError(f"the story of {name} has failed: {error}") from error
    return futures[name].result()


# --- what is asked of them ---


def same(run: Run, whole: Told) -> None:
    """Weights and every row of the log."""
    ours, theirs = (torch.load(one.last, map_location="cpu", weights_only=True) for one in (run, whole.run))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert [key for key, value in theirs["state_dict"].items() if not torch.equal(ours["state_dict"][key], value)] == []
    assert rows_of(run) == rows_of(whole.run)
    assert len([row for row in rows_of(run) if row["train/total"]]) == EPOCHS * BATCHES


def went_on(printed: str) -> int:
    """The step at which the only resumption of a run began."""
    (line,) = [line for line in printed.splitlines() if line.startswith("resuming from step")]
    return int(line.removeprefix("resuming from step ").partition(",")[0])


def saved_in_second_epoch(printed: str) -> bool:
    """Was the job saved where it stood, and not only at the end of its first epoch?"""
    return BATCHES < went_on(printed) < 2 * BATCHES


def test_slurm_time_limit(told: Callable[[str], Told]) -> None:
    end = told("time limit")
    assert "stopped by SIGUSR1" in end.printed
    assert saved_in_second_epoch(end.printed)
    assert end.job["Restarts"] == "1"
    same(end.run, told("undisturbed"))


def test_slurm_preempted(told: Callable[[str], Told]) -> None:
    end = told("preempted")
    assert (end.seen["status"]["state"], end.seen["status"]["reason"]) == ("preempted", "SIGUSR1")
    assert saved_in_second_epoch(end.printed)
    assert end.job["Restarts"] == "1"
    same(end.run, told("undisturbed"))


def test_slurm_requeued_by_hand(told: Callable[[str], Told]) -> None:
    end = told("requeued")
    assert "stopped by SIGTERM" in end.printed
    assert saved_in_second_epoch(end.printed)
    assert end.job["Restarts"] == "1"
    same(end.run, told("undisturbed"))


def test_slurm_node_down(told: Callable[[str], Told]) -> None:
    end = told("node down")
    assert "stopped by" not in end.printed
    assert went_on(end.printed) == BATCHES
    assert end.job["NodeList"] != end.seen["node"]
    same(end.run, told("undisturbed"))


def test_slurm_two_nodes_preempted(told: Callable[[str], Told]) -> None:
    end = told("two nodes")
    assert len(end.seen["nodes"]) == 2
    assert (end.seen["status"]["state"], end.seen["status"]["reason"]) == ("preempted", "SIGUSR2")
    assert saved_in_second_epoch(end.printed)
    same(end.run, told("undisturbed in two"))


def test_slurm_array_returns_at_once(told: Callable[[str], Told]) -> None:
    end = told("array")
    assert "submitted 3 jobs as array" in end.seen["launched"]
    assert end.seen["at once"] == ["running", "running"]
    same(end.run, told("undisturbed"))


def test_slurm_cancelled_stays_so_until_launched_again(told: Callable[[str], Told]) -> None:
    seen = told("array").seen
    assert seen["cancelled"]["JobState"] == "CANCELLED"
    assert "stopped by SIGTERM" in seen["cancelled printed"]
    assert "asking SLURM" not in seen["cancelled printed"]
    assert saved_in_second_epoch(seen["seed=1"].printed)
    same(seen["seed=1"].run, told("undisturbed seed=1"))


def test_slurm_killed_task_goes_on_when_launched_again(told: Callable[[str], Told]) -> None:
    seen = told("array").seen
    assert went_on(seen["seed=2"].printed) == BATCHES
    same(seen["seed=2"].run, told("undisturbed seed=2"))


def test_slurm_report_knows_each_fate(told: Callable[[str], Told]) -> None:
    seen = told("array").seen
    assert "1 done" in seen["report"]
    assert "no longer in the queue" in seen["report"]
    assert "is gone" in seen["report"]
    assert "1 done, 2 to run" in seen["relaunched"]
