"""What a run logs, kept in memory."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Rows(Logger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    name = "rows"  # pyright: ignore[reportAssignmentType]
    version = "0"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...
