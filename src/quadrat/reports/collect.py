"""Run folders become records: what was set, how it ended, what was measured. What is damaged is marked and never a number."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from quadrat.configs import NOT_IDENTITY, NOT_IDENTITY_WITHIN, placeless
from quadrat.runs import Run
from quadrat.sweeps.ledger import Job, standing

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
LENGTH = ("epochs", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
"""No part of a run's identity, as a longer one goes on with it; but a longer one is another result."""

LEFT_OUT = tuple(
    name
    for name in (*NOT_IDENTITY, *(f"{part}.{key}" for part, keys in NOT_IDENTITY_WITHIN.items() for key in keys))
    if name not in LENGTH
)
"""What says where and how, not what."""

COMPLETE = ("seed", "monitor", "paths", "sweep")
"""Parts that every frozen config has; the last of them is its end, missing where the file is cut off."""

BAR = 2.0
"""Seconds after which a progress bar appears."""

Curve = tuple[np.ndarray, np.ndarray]
"""The steps at which a column of metrics.csv has a number, and these numbers."""


@dataclass(frozen=True)
class Record:
    """One run: ``state`` is done only where it has numbers to be counted, ``reason`` says why not.

    ``config`` holds the settings by their dotted names without those that say where; a run that cannot be read has none.
    """

    folder: Path
    label: str
    state: str
    reason: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: Any = None
    monitor: str = ""
    best: float | None = None
    at_best: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, float] = field(default_factory=dict)
    history: Mapping[str, Curve] = field(default_factory=dict)
    tracked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Is it counted?"""
        return self.state == "done"

    @property
    def pictures(self) -> Path:
        """The newest drawing of validation pictures."""
        return Run(self.folder).pictures / "latest.png"


def collect(jobs: Sequence[Job]) -> list[Record]:
    """A record for each job, in their order."""
    return [read(job) for job in tqdm(jobs, "reading runs", unit="run", delay=BAR, leave=False)]


def read(job: Job) -> Record:
    """Whatever can be known of a run without trusting a damaged file."""
    status = standing(job)
    state, reason = status["state"], str(status.get("reason", ""))
    if not job.run.config_file.exists() and state == "new":
        return Record(job.run.folder, job.label, "new", "it has not begun: there is no config.yaml")
    try:
        config = _config(job.run.config_file)
    except ValueError as error:
        return Record(job.run.folder, job.label, "damaged", str(error))
    common = {
        "label": config["sweep"].get("job") or job.label,
        "config": flat(config),
        "seed": config["seed"],
        "monitor": str(config["monitor"]),
        "tracked": (config.get("logger") or {}).get("wandb") or {},
    }
    if state != "done":
        return Record(job.run.folder, state=state, reason=reason or _progress(status), **common)
    try:
        return Record(job.run.folder, state="done", **common, **_results(job.run, str(config["monitor"])))
    except ValueError as error:
        return Record(job.run.folder, state="damaged", reason=str(error), **common)


def _progress(status: Mapping[str, Any]) -> str:
    return f"at epoch {status['epoch']}, step {status.get('step', '?')}" if "epoch" in status else "not finished"


# --- config.yaml ---


def _config(path: Path) -> dict[str, Any]:
    """The frozen config as plain values; ValueError names what is wrong with the file."""
    try:
        config = yaml.load(path.read_text(), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} cannot be read ({_first_line(error)})") from error
    if not config:
        raise ValueError(f"{path.name} is empty" if path.stat().st_size == 0 else f"{path.name} holds nothing")
    missing = [key for key in COMPLETE if key not in config] if isinstance(config, dict) else list(COMPLETE)
    if missing or not isinstance(config["sweep"], dict):
        raise ValueError(f"{path.name} is cut off or no frozen config: it has no {(missing or ['sweep.name'])[0]}")
    return config


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their dotted names: numbers and words as they are, lists as text, without those that say where."""
    places = [(str(place), key) for key, place in (config.get("paths") or {}).items() if place]
    places.sort(key=lambda pair: -len(pair[0]))
    settings = {key: placeless(value, places) for key, value in _leaves(config, "") if _told(key)}
    if settings.get("resume.mode") == "never":
        settings["resume.mode"] = "auto"  # how often it took to get there is no part of the result
    return settings


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield prefix, json.dumps(value) if isinstance(value, list) else value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))


def _told(key: str) -> bool:
    return key != "seed" and not f"{key}.".startswith(tuple(f"{one}." for one in LEFT_OUT))


# --- metrics.json and metrics.csv ---


def _results(run: Run, monitor: str) -> dict[str, Any]:
    """What a finished run measured; ValueError says why that cannot be known."""
    try:
        results = json.loads(run.metrics_file.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"there is no {run.metrics_file.name}, though the run says that it is done") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{run.metrics_file.name} cannot be read ({_first_line(error)})") from error
    if not isinstance(results, dict) or "best" not in results:
        raise ValueError(f"{run.metrics_file.name} holds no best value")
    if results.get("monitor", monitor) != monitor:
        raise ValueError(f"{run.metrics_file.name} is of {results['monitor']}, config.yaml monitors {monitor}")
    if not _number(results["best"]):
        raise ValueError(f"{monitor} was never measured: its best value is {json.dumps(results['best'])}")
    history = _history(run.log) if run.log.exists() else {}
    numbers = {name: _numbers(results.get(name)) for name in ("at_best", "last")}
    return {"best": float(results["best"]), **numbers, "history": history}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in (values or {}).items() if _number(value)}


def _history(path: Path) -> dict[str, Curve]:
    """The columns that have numbers; ValueError names the line at which the file is damaged."""
    text = path.read_bytes().decode(errors="replace")
    if not text:
        raise ValueError(f"{path.name} is empty")
    if not text.endswith("\n"):
        raise ValueError(f"{path.name} is cut off in its last line; copy the run folder again if it is a copy")
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    cells: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in head if name != "step"}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head):
            raise ValueError(f"{path.name}, line {number}: {len(row)} cells in {len(head)} columns")
        try:
            _enter(cells, dict(zip(head, row, strict=True)))
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path.name}, line {number}: {_first_line(error)}") from error
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in cells.items() if steps}


def _enter(cells: dict[str, tuple[list[float], list[float]]], row: dict[str, str]) -> None:
    step = float(row.pop("step"))
    for name, cell in row.items():
        if cell:
            cells[name][0].append(step)
            cells[name][1].append(float(cell))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
