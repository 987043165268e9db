"""Where a run begins: which checkpoint it goes on from, if any, why, and what has changed since."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from quadrat.configs import conf_dir, settings
from quadrat.runs import Run

MODES = ("auto", "never", "branch", "weights")


class Start(NamedTuple):
    """``checkpoint`` is gone on from, whole; ``weights`` only fill the model; ``why`` is the line that says so."""

    why: str
    checkpoint: Path | None = None
    weights: Path | None = None


def check(resume: DictConfig) -> None:
    """Raise ValueError unless the mode is known and has a source exactly when it needs one."""
    if resume.mode not in MODES:
        raise ValueError(f"resume.mode={resume.mode} is none of {', '.join(MODES)}")
    if (resume.source is not None) != (resume.mode in ("branch", "weights")):
        raise ValueError(
            f"resume.mode={resume.mode} with resume.source={resume.source}: branch and weights begin from a source "
            f"(a run folder or a checkpoint), auto and never have none"
        )


def starting_point(resume: DictConfig, run: Run) -> Start:
    """The run's own newest checkpoint comes first, so that a branch that was killed goes on as a branch."""
    if resume.mode == "never":
        return Start(f"new run in {run.folder} (resume.mode=never)")
    found = run.newest()
    if found is not None:
        path, state = found
        why = f"resuming from step {state['global_step']}, epoch {state['epoch']}: {path} is the newest checkpoint that loads"
        return Start(why, checkpoint=path)
    if resume.mode == "branch":
        path = _source(resume.source, "last")
        return Start(f"new run in {run.folder}, branching from {path}", checkpoint=path)
    if resume.mode == "weights":
        path = _source(resume.source, "best")
        return Start(f"new run in {run.folder}, with the weights of {path}", weights=path)
    return Start(f"new run in {run.folder}")


def _source(source: str, which: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return Run.open(path).checkpoint(which)
    if not path.is_file():
        raise FileNotFoundError(f"resume.source={source} is neither a run folder nor a checkpoint")
    return path


def changes(config: DictConfig, run: Run) -> Iterator[str]:
    """What is no longer as it was when the run was last at work, a line each: the result may then differ."""
    before, now = settings(run.config()), settings(config)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"  changed since: {name} was {before.get(name)}, is {now.get(name)}"
    known = run.status
    for name, value in versions().items():
        if known.get(name, value) != value:
            yield f"  changed since: {name} was {known[name]}, is {value}; the result may differ from an undisturbed run's"


def versions() -> dict[str, str]:
    """What a result depends on beside the config."""
    named = {name: version(name) for name in ("quadrat", "torch", "lightning")}
    checkout = conf_dir().parent
    if not (checkout / ".git").exists():
        return named
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return named
    return named | ({"commit": said.stdout.strip()} if said.returncode == 0 else {})
