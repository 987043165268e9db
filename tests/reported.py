"""Finished run folders without training: the files that a run leaves, with numbers that are made up or asked for."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from quadrat.sweeps.ledger import Sweep

TERMS = ("rpn_objectness", "rpn_box", "region_class", "region_box")
CLASSES = ("circle", "square", "triangle", "star", "cross", "person")
CONFIG = """
name: shapes
epochs: 6
seed: 0
monitor: val/ap50
resume: {mode: auto, source: null}
trainer: {on_nan: stop, _target_: lightning.pytorch.Trainer, max_epochs: 6, max_steps: -1, accelerator: cpu, devices: 1,
  precision: 32-true, gradient_clip_val: 10.0, log_every_n_steps: 20, limit_val_batches: null, enable_progress_bar: true}
replay: null
trace: false
data:
  _target_: quadrat.data.module.DataModule
  source: {_target_: quadrat.data.shapes.Shapes, _partial_: true, count: {train: 2000, val: 200, test: 200}, seed: 0}
  splits: {train: train, val: val, test: test}
  batch_size: 8
  workers: 0
  seed: 0
  limit: null
model:
  _target_: quadrat.models.regions.assemble
  backbone: {_target_: quadrat.backbones.tiny.Tiny, width: 16, freeze_stages: 0}
  proposer: {_target_: quadrat.proposers.rpn.RPN, anchors: {scales: [4], ratios: [0.5, 1.0, 2.0]}, box_normaliser: samples}
  mean: [0.485, 0.456, 0.406]
loss:
  weighting: {_target_: quadrat.losses.weighting.WeightedSum}
  weights: {rpn_objectness: 1.0, rpn_box: 1.0, region_class: 1.0, region_box: 1.0}
task: {_target_: quadrat.tasks.detection.DetectionTask, metric: {_target_: quadrat.metrics.detection.BoxAP, preset: coco}}
optimizer: {_target_: torch.optim.AdamW, lr: 0.002, weight_decay: 0.01}
logger: {csv: {_target_: quadrat.callbacks.csv_log.CsvLog, path: RUN/metrics.csv}}
callbacks: {best: {path: RUN/best.ckpt, monitor: val/ap50}, checkpoints: {folder: RUN, minutes: 15}}
paths: {logs: LOGS, run: RUN, data: data, weights: data/weights}
launcher: {_target_: quadrat.launchers.local.Local}
sweep: {name: null, retry: null, job: null}
"""
"""What tells runs apart, and a part of each kind; `padding` makes it as long as a real one."""


def config(folder: Path, settings: Mapping[str, Any], seed: int, padding: int = 0) -> dict[str, Any]:
    """A frozen config with these settings, by their dotted names."""
    text = CONFIG.replace("RUN", str(folder)).replace("LOGS", str(folder.parent))
    made = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for name, value in {**settings, "seed": seed, "data.seed": seed}.items():
        *parts, last = name.split(".")
        inside = made
        for part in parts:
            inside = inside.setdefault(part, {})
        inside[last] = value
    made["model"]["padding"] = {f"part_{i}": i / 7 for i in range(padding)}
    return made


def make_run(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    best: float | None = 0.5,
    *,
    state: str = "done",
    last: Mapping[str, float] | None = None,
    at_best: Mapping[str, float] | None = None,
    rows: Sequence[Mapping[str, float]] | None = None,
    padding: int = 0,
    **status: Any,
) -> Path:
    """A run folder; ``best`` is the best value of the monitor, ``rows`` are those of metrics.csv."""
    folder.mkdir(parents=True)
    made = config(folder, settings or {}, seed, padding)
    (folder / "config.yaml").write_text(
        yaml.dump(made, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    )
    (folder / "status.json").write_text(json.dumps({"state": state, "id": folder.name[-8:], "epochs": 6, **status}))
    if state == "done":
        results: dict[str, Any] = {"monitor": made["monitor"], "epochs": 6, "best": best}
        results["last"] = dict(last or {made["monitor"]: best})
        results |= {"at_best": dict(at_best)} if at_best is not None else {}
        (folder / "metrics.json").write_text(json.dumps(results))
        (folder / "metrics.csv").write_text(log(rows or [{"step": 10, made["monitor"]: best or 0.0}]), newline="")
    return folder


def log(rows: Sequence[Mapping[str, float]]) -> str:
    """The text of metrics.csv."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def make_sweep(logs: Path, name: str, folders: Sequence[Path], command: Sequence[str] = ("-m", "seed=0,1,2")) -> Sweep:
    """A sweep of these run folders."""
    sweep = Sweep(logs / "sweeps" / name)
    sweep.folder.mkdir(parents=True)
    jobs = {
        f"{i:08x}": {
            "label": folder.name,
            "overrides": [],
            "id": folder.name,
            "run": f"../../{folder.relative_to(logs)}",
        }
        for i, folder in enumerate(folders)
    }
    launches = [{"at": "2026-01-01T00:00:00+0000", "command": list(command)}] if command else []
    sweep.ledger_file.write_text(json.dumps({"name": name, "launches": launches, "jobs": jobs}))
    return sweep


# --- numbers as training makes them ---


def training(
    best: float, seed: int, *, weights: Mapping[str, float] | None = None, epochs: int = 12, moving: bool = False
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Rows of metrics.csv and the last validation, of a run that comes to ``best``."""
    rng = np.random.default_rng(seed + round(1000 * best))
    rows: list[dict[str, float]] = []
    given = {term: 1.0 for term in TERMS} | dict(weights or {})
    final: dict[str, float] = {}
    for step in range(20, 250 * epochs + 1, 20):
        share = step / (250 * epochs)
        rows.append(_step(step, step // 250, share, given, rng, moving))
        if step % 100 == 0:
            norms = {
                f"train/gradient_norm/{term}": rng.lognormal(0, 0.3) * (1.2 - share) / (i + 1)
                for i, term in enumerate(TERMS)
            }
            pairs = [(a, b) for i, a in enumerate(TERMS) for b in TERMS[i + 1 :]]
            angles = {f"train/cosine/{a}/{b}": float(np.tanh(rng.normal(0.1, 0.2))) for a, b in pairs}
            rows[-1] |= norms | angles
        if step % 240 == 0:
            final = _validation(best, share, rng)
            rows.append({"step": step, "epoch": step // 250, **final})
    rows.append({"step": 250 * epochs, "epoch": epochs, **(final := _validation(best, 1.0, rng, exact=True))})
    return rows, final


def _step(
    step: int, epoch: int, share: float, weights: Mapping[str, float], rng: np.random.Generator, moving: bool
) -> Any:
    loss = {term: (0.9 - 0.15 * i) * math.exp(-2.5 * share) * rng.lognormal(0, 0.25) for i, term in enumerate(TERMS)}
    weight = {
        term: weights[term] * (math.exp((i - 1.5) * 2 * share) if moving else 1.0) for i, term in enumerate(TERMS)
    }
    return {
        "step": step,
        "epoch": epoch,
        **{f"train/loss/{term}": value for term, value in loss.items()},
        **{f"train/weighted/{term}": value * weight[term] for term, value in loss.items()},
        **{f"train/weight/{term}": value for term, value in weight.items()},
        "train/total": sum(loss[term] * weight[term] for term in TERMS),
        "train/lr/backbone": 0.002 * (1 - share),
    }


def _validation(best: float, share: float, rng: np.random.Generator, exact: bool = False) -> dict[str, float]:
    value = best if exact else best * (1 - math.exp(-4 * share)) * rng.uniform(0.97, 1.0)
    return {
        "val/ap50": value,
        "val/map": 0.7 * value,
        **{f"val/ap50/{one}": value * rng.uniform(0.9, 1.05) for one in CLASSES},
        **{f"val/loss/{term}": 0.4 * (1.2 - value) for term in TERMS},
    }


def draw(folder: Path, seed: int) -> None:
    """A picture of validation scenes."""
    rng = np.random.default_rng(seed)
    sheet = np.full((480, 1280, 3), 90, np.uint8)
    for _ in range(12):
        x, y = int(rng.integers(0, 1200)), int(rng.integers(0, 400))
        cv2.rectangle(sheet, (x, y), (x + 70, y + 60), tuple(map(int, rng.integers(60, 255, 3))), -1)
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures" / "latest.png"), sheet)
