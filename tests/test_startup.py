"""How long a user waits before the first training step."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

IMPORTS = "import torch, torchvision, lightning.pytorch"
TRAIN = """
import sys
from quadrat.tasks.base import Task
def stop(self, batch, batch_idx):
    report()
Task.training_step = stop
sys.argv = ["quadrat-train", "data.source.count=8", "hydra.run.dir=."]
from quadrat.train import main
main()
"""
REPORT = """
import os, time
def report():
    print("\\n", time.process_time(), flush=True)
    os._exit(0)
"""


def cpu_seconds(program: str, folder: Path) -> float:
    """CPU time of a fresh process until it reports."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "QUADRAT_LOGS": str(folder / "logs")},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return float(done.stdout.split()[-1])


def pairs(folder: Path) -> Iterator[tuple[float, float]]:
    """Imports and start, in turn, so that both meet the same machine."""
    for turn in range(3):
        place = folder / str(turn)
        place.mkdir()
        yield cpu_seconds(f"{REPORT}{IMPORTS}\nreport()", place), cpu_seconds(REPORT + TRAIN, place)


@pytest.mark.slow
def test_first_step_starts_within_one_and_a_half_imports(tmp_path: Path) -> None:
    imports, starts = zip(*pairs(tmp_path), strict=True)
    ratio = statistics.median(starts) / statistics.median(imports)
    print(f"\nimports {imports}, to the first step {starts}: {ratio:.2f}")
    assert ratio < 1.5
