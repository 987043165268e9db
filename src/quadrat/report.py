"""quadrat-report: how sweeps stand, read from their folders without a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from quadrat.launchers.slurm import waiting
from quadrat.sweeps.ledger import Job, Sweep, standing
from quadrat.sweeps.table import counts, table


def main() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(prog="quadrat-report", description="How runs and sweeps stand.")
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("status", help="the jobs of a sweep, also while it runs")
    asked.add_argument("sweep", nargs="?", help="its name or its folder; without it, all sweeps")
    arguments = parser.parse_args()
    logs = Path(os.environ.get("QUADRAT_LOGS", "logs"))
    try:
        print(status(arguments.sweep, logs) if arguments.sweep else overview(logs))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def status(name: str, logs: Path) -> str:
    """The table of a sweep; FileNotFoundError and ValueError say why there is none."""
    sweep = Sweep.find(name, logs)
    jobs = sweep.jobs().values()
    return f"sweep {sweep.name}  ({os.path.relpath(sweep.folder)})\n\n{table(jobs, _gone(jobs))}"


def overview(logs: Path) -> str:
    """One line for each sweep, the latest last; a damaged one is marked."""
    sweeps = Sweep.all(logs)
    if not sweeps:
        return f"no sweeps in {logs / 'sweeps'}; QUADRAT_LOGS=<folder> looks elsewhere"
    width = max(len(sweep.name) for sweep in sweeps)
    lines = [f"  {sweep.name.ljust(width)}  {_line(sweep)}" for sweep in sweeps]
    return "\n".join([*lines, "", "  quadrat-report status <sweep> shows its jobs"])


def _line(sweep: Sweep) -> str:
    try:
        jobs, launches = sweep.jobs().values(), sweep.read()["launches"]
    except ValueError as error:
        return f"unreadable: {error}"
    states = Counter(standing(job)["state"] for job in jobs)
    return f"{len(jobs)} jobs: {counts(states)}; last launched {launches[-1]['at'] if launches else 'never'}"


def _gone(jobs: Collection[Job]) -> set[str]:
    """The jobs that wait for a cluster which does not know them any more."""
    idle = [job for job in jobs if job.ticket and standing(job)["state"] in ("queued", "preempted")]
    try:
        return {job.key for job in idle} - waiting(idle)
    except ValueError as error:
        print(f"note: {error}", file=sys.stderr)
        return set()


if __name__ == "__main__":
    main()
