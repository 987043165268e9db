"""Which run folders are meant: a sweep by its name or folder, a run folder, or a glob of them."""

from __future__ import annotations

import difflib
import glob
import json
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quadrat.runs import Run
from quadrat.sweeps.ledger import Job, Sweep

SIGNS = ("config.yaml", "status.json", "metrics.json", "metrics.csv")
"""A folder with any of these is taken for a run folder, a damaged one perhaps."""


@dataclass(frozen=True)
class Chosen:
    """The jobs to report, what they are called together, where a report of them goes, and how they were launched.

    ``metrics`` are those that a search wanted to be large at once, if it was one for several.
    """

    name: str
    jobs: tuple[Job, ...]
    output: Path
    command: str = ""
    metrics: tuple[str, ...] = ()


def find(asked: str, logs: Path) -> Chosen:
    """What ``asked`` names; FileNotFoundError offers names that look like it, ValueError tells of a damaged ledger."""
    sweeps = [sweep for sweep in (Sweep(asked), Sweep(logs / "sweeps" / asked)) if sweep.ledger_file.exists()]
    if sweeps:
        return _sweep(sweeps[0])
    matches = _matches(asked) or _matches(str(logs / asked))
    folders = [folder for match in matches for folder in _run_folders(match)]
    if not folders:
        raise FileNotFoundError(_nothing(asked, matches, logs))
    name = re.sub(r"[^\w.=+]+", "-", Path(asked).name).strip("-.") or "runs"
    return Chosen(name, tuple(_job(folder) for folder in dict.fromkeys(folders)), logs / "reports" / name)


def _sweep(sweep: Sweep) -> Chosen:
    jobs, launches = sweep.jobs().values(), sweep.read()["launches"]
    words = launches[-1].get("command", []) if launches else []
    command = shlex.join(["quadrat-train", *map(str, words)]) if words else ""
    return Chosen(
        sweep.name, tuple(jobs), sweep.folder / "report", command, _objectives(sweep.folder / "study.journal")
    )


def _objectives(journal: Path) -> tuple[str, ...]:
    """What the journal of a search names as its objectives; none where there is no such journal."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        for line in journal.read_text().splitlines():
            design = json.loads(line).get("user_attr", {}).get("design")
            if design:
                return tuple(map(str, json.loads(design["hydra.sweeper.objectives"])))
    return ()


def _matches(pattern: str) -> list[Path]:
    return [Path(match) for match in sorted(glob.glob(pattern)) if Path(match).is_dir()]


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the run folders that it holds."""
    inside = [folder] if _is_run(folder) else [path for path in sorted(folder.iterdir()) if _is_run(path)]
    return [path.resolve() for path in inside]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SIGNS)


def _job(folder: Path) -> Job:
    """A run that no sweep is asked about."""
    return Job(folder.name, folder.name, (), folder.name, Run(folder), folder / "train.log")


def _nothing(asked: str, matches: Iterable[Path], logs: Path) -> str:
    empty = [str(match) for match in matches]
    if empty:
        return (
            f"runs={asked}: no run folder (one with a config.yaml) in {', '.join(empty[:3])}"
            f"{' ...' if len(empty) > 3 else ''}; name the folders that quadrat-train printed, as in runs='{logs}/shapes-*'"
        )
    sweeps = [sweep.name for sweep in Sweep.all(logs)]
    runs = [path.name for path in sorted(logs.glob("*")) if _is_run(path)]
    plain = Path(asked).name.strip("*?")
    close = difflib.get_close_matches(plain, [*sweeps, *runs], n=3, cutoff=0.4) or sweeps[-3:] or runs[:3]
    offer = f"did you mean runs={' or runs='.join(close)}?" if close else "QUADRAT_LOGS=<folder> says where to look"
    return (
        f"runs={asked} is no sweep in {logs / 'sweeps'} and matches no run folder, neither here nor in {logs}; {offer} "
        f"(`quadrat-report status` lists the sweeps; a glob looks like runs='{logs}/shapes-*')"
    )
