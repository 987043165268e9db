"""How the jobs of a sweep stand, as text."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from quadrat.sweeps.ledger import Job, standing

HEAD = ["job", "state", "epoch", "step", "best", "seen", "run folder"]
ORDER = ("done", "pruned", "running", "queued", "preempted", "failed", "lost", "new", "unreadable")


def table(jobs: Iterable[Job], gone: Iterable[str] = ()) -> str:
    """One row for each job, its reason below it where there is one, and the counts last.

    ``gone`` holds the keys of those that wait for a cluster which does not know them any more.
    """
    gone = set(gone)
    rows, reasons, states = [tuple(HEAD)], [""], Counter[str]()
    for job in jobs:
        status = standing(job)
        if job.key in gone:
            status |= {"state": "lost", "reason": f"no longer in the queue ({job.ticket}); launch the sweep again"}
        row, status = _row(job, status)
        rows.append(row)
        reasons.append(str(status.get("reason", "")))
        states[status["state"]] += 1
    return "\n".join([*_aligned(rows, reasons), "", f"  {counts(states)}"])


def counts(states: Counter[str], order: Sequence[str] = ORDER) -> str:
    """`2 done, 1 failed`"""
    return ", ".join(f"{states[state]} {state}" for state in order if states[state]) or "no jobs"


def best(job: Job) -> float | None:
    """The best value of the monitored metric that a job's run has written down."""
    try:
        value = json.loads(job.run.metrics_file.read_text())["best"]
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return None if value is None else float(value)


def _row(job: Job, status: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The cells of a job, marked where its status holds what none should."""
    try:
        return (job.label, *_cells(job, status), os.path.relpath(job.run.folder)), status
    except (TypeError, ValueError) as error:
        marked = {"state": "unreadable", "reason": f"{job.run.status_file}: {error}"}
        return (job.label, marked["state"], "", "", "", "", os.path.relpath(job.run.folder)), marked


def _cells(job: Job, status: dict[str, Any]) -> tuple[str, ...]:
    value, done = status.get("best", best(job)), status["state"] in ("done", "pruned")
    seen = status.get("heartbeat") if status["state"] in ("running", "lost") else None
    return (
        status["state"],
        _of(status.get("epochs" if done else "epoch"), status.get("max_epochs")),
        str(status.get("steps" if done else "step", "")),
        "" if value is None else f"{value:.3f}",
        "" if seen is None else f"{age(time.time() - seen)} ago",
    )


def _of(value: Any, whole: Any) -> str:
    """`3/12`, or as much of it as is known."""
    known = whole is not None and whole > 0
    return "" if value is None else f"{value}/{whole}" if known else str(value)


def age(seconds: float) -> str:
    """`12 s`, `3 min`, `2 h`, `4 d`"""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < most:
            return f"{max(0, int(seconds / size))} {unit}"
    return f"{int(seconds / 86400)} d"


def _aligned(rows: Sequence[Sequence[str]], reasons: Sequence[str]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, reason in zip(rows, reasons, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(("  " + "  ".join(cells)).rstrip())
        if reason:
            lines.append(f"      {reason}")
    return lines
