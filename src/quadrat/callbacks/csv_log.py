"""The run's own log: one csv file that a resumed run continues, without a double or a missing row."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class CsvLog(Logger):
    """Rows of numbers by step in ``path``; a new column rewrites the file, everything else appends a line."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []
        self.written = 0

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration lies beside the log."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        self.written += 1
        new = [name for name in row if name not in self.columns]
        if new:
            self._write([*self.rows(), row], [*self.columns, *new])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def rows(self) -> list[dict[str, str]]:
        """What has been written, empty cells left out."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]

    @rank_zero_only
    def cut_back(self, count: int) -> None:
        """Keep the first ``count`` rows: a run that goes on from a checkpoint writes those again that came after it."""
        rows = self.rows()[:count]
        self.written = len(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        self._write(rows, columns or ["step"])

    def _write(self, rows: list[Any], columns: list[str]) -> None:
        self.columns = columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
