"""A sweep is a folder. Its ledger knows which jobs it has; how they stand is read from their run folders.

Nothing heavy is imported here, so that `quadrat-report status` answers at once.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadrat.runs import Run, write

STATES = ("new", "queued", "running", "preempted", "failed", "pruned", "done")
"""What a run's own status may say."""


@dataclass(frozen=True)
class Job:
    """One job: ``key`` is the hash of its overrides, ``id`` that of its config, and a cluster knows it by ``ticket``."""

    key: str
    label: str
    overrides: tuple[str, ...]
    id: str
    run: Run
    log: Path
    cluster: str | None = None
    ticket: str | None = None


class Sweep:
    """The files of a sweep, by name; nothing is made until it is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.name = self.folder.name
        self.ledger_file = self.folder / "ledger.json"
        self.lock_file = self.folder / ".lock"
        self.submissions = self.folder / "slurm"

    @classmethod
    def find(cls, name: str, logs: Path) -> Sweep:
        """The sweep of a name or a folder; FileNotFoundError offers the names that look like it."""
        sweep = next((sweep for sweep in (cls(name), cls(logs / "sweeps" / name)) if sweep.ledger_file.exists()), None)
        if sweep is not None:
            return sweep
        names = [sweep.name for sweep in cls.all(logs)]
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        offer = (
            f"did you mean {' or '.join(close)}?" if close else "there is none at all; QUADRAT_LOGS=<folder> says where"
        )
        raise FileNotFoundError(f"there is no sweep {name} in {logs / 'sweeps'}; {offer}")

    @classmethod
    def all(cls, logs: Path) -> list[Sweep]:
        """Every sweep of a logs folder, the latest last."""
        ledgers = sorted((logs / "sweeps").glob("*/ledger.json"), key=lambda file: file.stat().st_mtime)
        return [cls(file.parent) for file in ledgers]

    # --- the ledger ---

    def read(self) -> dict[str, Any]:
        """The ledger as it lies on the disk; ValueError names a damaged one and the way out."""
        if not self.ledger_file.exists():
            return {"launches": [], "jobs": {}}
        with self._explained():
            ledger = json.loads(self.ledger_file.read_text())
            return {"launches": list(ledger["launches"]), "jobs": dict(ledger["jobs"])}

    def jobs(self) -> dict[str, Job]:
        """The jobs by their keys, in the order in which they were added; ValueError as for ``read``."""
        ledger = self.read()
        with self._explained():
            return {key: self._job(key, entry) for key, entry in ledger["jobs"].items()}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(
                f"{self.ledger_file} cannot be read ({error}); move it away and launch the sweep again: what is done "
                f"is found in the run folders"
            ) from error

    def job(self, key: str, label: str, overrides: Iterable[str], id: str, run: Run) -> Job:
        """A job that this sweep may have."""
        return Job(key, label, tuple(overrides), id, run, self.folder / "jobs" / f"{key}.log")

    def enter(self, jobs: Iterable[Job], anew: Iterable[Job], launch: dict[str, Any]) -> None:
        """Note a launch, its jobs, and which of them begin anew, without a ticket; what else there is stays."""
        ledger = self.read()
        ledger["launches"].append({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **launch})
        known = {key: entry["id"] for key, entry in ledger["jobs"].items()}
        ledger["jobs"] |= {job.key: self._entry(job) for job in jobs if known.get(job.key) != job.id}
        ledger["jobs"] |= {job.key: self._entry(job) for job in anew}
        self._write(ledger)

    def submitted(self, cluster: str, tickets: dict[str, str]) -> None:
        """Note by which tickets a cluster knows jobs."""
        ledger = self.read()
        for key, ticket in tickets.items():
            ledger["jobs"][key] |= {"cluster": cluster, "ticket": ticket}
        self._write(ledger)

    def _write(self, ledger: dict[str, Any]) -> None:
        write(self.ledger_file, json.dumps({"name": self.name, **ledger}, indent=1) + "\n")

    def _entry(self, job: Job) -> dict[str, Any]:
        folder = os.path.relpath(job.run.folder, self.folder)  # the logs may be moved as a whole
        return {"label": job.label, "overrides": list(job.overrides), "id": job.id, "run": folder}

    def _job(self, key: str, entry: dict[str, Any]) -> Job:
        job = self.job(key, entry["label"], entry["overrides"], entry["id"], Run(self.folder / entry["run"]))
        if "ticket" not in entry:
            return job
        log = self.submissions / f"{entry['ticket']}_0_log.out"
        return Job(key, job.label, job.overrides, job.id, job.run, log, entry["cluster"], entry["ticket"])

    # --- one launch at a time ---

    @contextmanager
    def locked(self, by: Path | None = None) -> Iterator[None]:
        """Hold the sweep for one launch, or ``by`` a lock of its own for many; ValueError names the process that holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(by or self.lock_file, "a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(
                    f"the sweep {self.name} is being run by {file.read().strip() or 'another process'}; "
                    f"`quadrat-report status {self.name}` shows how it stands; wait for it, or stop it, it goes on later"
                ) from None
            file.truncate(0)
            print(
                f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}", file=file, flush=True
            )
            yield


def standing(job: Job) -> dict[str, Any]:
    """The status of a job's run; ``state`` is also lost, for one that says it runs and does not, and unreadable."""
    try:
        status = job.run.status
        if status["state"] not in STATES:
            raise ValueError(f"there is no state {status['state']}")
        silent, here = job.run.lost(), status.get("host") == socket.gethostname()
        if status["state"] == "running" and here and not alive(status["pid"]):
            return {**status, "state": "lost", "reason": f"process {status['pid']} is gone"}
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        return {"state": "unreadable", "reason": f"{job.run.status_file}: {error}"}
    return {**status, "state": "lost", "reason": "no sign of life for minutes"} if silent else status


def alive(pid: int) -> bool:
    """Is there such a process on this machine, other than one that has ended and whose parent has not noticed?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
