"""quadrat-report: how sweeps stand, and what came of them, read from their folders without a server."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quadrat.launchers.slurm import waiting
from quadrat.sweeps.ledger import Job, Sweep, standing
from quadrat.sweeps.table import counts, table

if TYPE_CHECKING:
    from quadrat.reports.compare import Comparison


HELP = """\
What came of runs: one table of settings over seeds, charts, and a page that needs no server.

  quadrat-report runs=rpn_lambda                      a sweep by its name (or by its folder)
  quadrat-report runs='logs/shapes-*'                 every run folder that a glob matches
  quadrat-report runs=rpn_lambda metrics=val/ap50,val/map output=~/reports/rpn
  quadrat-report runs=rpn_lambda --wandb              the same comparison as a W&B report as well

  quadrat-report status                               all sweeps
  quadrat-report status rpn_lambda                    the jobs of one, also while it runs

A setting is what differs between the runs; the seed is no setting, means and deviations are over seeds. Runs that are
not finished, failed, or damaged are marked with the reason and are in no mean. Run folders are never changed.
"""
SETTINGS = """\
  runs=<sweep | folder | glob>   what to read; quote a glob
  metrics=<name>,<name>          what to compare, the first one ranks (default: what the runs monitor, or the search's objectives)
  output=<folder>                where to write (default: report/ in the sweep's folder, logs/reports/<name>/ for a glob)
  --wandb                        also make a W&B report of the sweep's group; needs an API key

QUADRAT_LOGS=<folder> says where sweeps and run folders lie (default: logs).
"""
KNOWN = ("runs", "metrics", "output")


def main() -> None:
    """The console script."""
    parser = argparse.ArgumentParser(
        prog="quadrat-report",
        usage="quadrat-report runs=<sweep or glob> [metrics=...] [output=...] [--wandb]\n       quadrat-report status [sweep]",
        description=HELP,
        epilog=SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--wandb", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logs = Path(os.environ.get("QUADRAT_LOGS", "logs"))
    try:
        print(_answer(arguments.words, arguments.wandb, logs))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _answer(words: Sequence[str], wandb: bool, logs: Path) -> str:
    if words and words[0] == "status" and not any("=" in word for word in words):
        if len(words) > 2:
            raise ValueError(f"status is of one sweep or of all of them, got {' '.join(words[1:])}")
        return status(words[1], logs) if len(words) == 2 else overview(logs)
    return report(_settings(words), wandb, logs)


def _settings(words: Sequence[str]) -> dict[str, str]:
    """`key=value` by its key; ValueError for a word that is none of them."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = [word for word in words if word.partition("=")[0] not in KNOWN or "=" not in word]
    if unknown:
        close = difflib.get_close_matches(unknown[0].partition("=")[0], KNOWN, n=1)
        raise ValueError(f"there is no {unknown[0]}; " + (f"did you mean {close[0]}=?" if close else USAGE))
    if not given.get("runs"):
        raise ValueError(f"runs=<sweep or glob> is not given; {USAGE}")
    return given


USAGE = "as in quadrat-report runs=<sweep>, quadrat-report status; --help tells more"


def report(asked: Mapping[str, str], wandb: bool, logs: Path) -> str:
    """Write the report of ``asked["runs"]`` and return its table; ValueError and OSError say why there is none."""
    from quadrat.reports.collect import collect
    from quadrat.reports.compare import comparison
    from quadrat.reports.find import find
    from quadrat.reports.page import write_report
    from quadrat.reports.terminal import text

    chosen = find(asked["runs"], logs)
    metrics = [name for name in asked.get("metrics", "").split(",") if name] or chosen.metrics
    result = comparison(chosen.name, collect(chosen.jobs), metrics)
    output = Path(asked["output"]).expanduser() if asked.get("output") else chosen.output
    page = write_report(result, output, chosen.command)
    lines = [
        text(result),
        "",
        f"  page    {os.path.relpath(page)}",
        f"  tables  {os.path.relpath(output)}/table.csv runs.csv",
    ]
    return "\n".join([*lines, *([_in_wandb(result)] if wandb else [])])


def _in_wandb(result: Comparison) -> str:
    from quadrat.reports.wandb_report import save

    try:
        return f"  W&B     {save(result)}"
    except ValueError as error:
        return f"  W&B     none: {error}"


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
