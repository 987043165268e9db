"""Weights & Biases, with or without a server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    folder: str | Path,
    run_id: str,
    *,
    project: str = "quadrat",
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    job_type: str = "train",
    offline: bool | None = None,
) -> WandbLogger:
    """The run of the same id, new or continued; offline when there is no key, and then `wandb sync` sends it later."""
    if offline is None:
        offline = os.environ.get("WANDB_MODE") == "offline" or not _has_key()
    Path(folder).mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"resume": "allow", "tags": list(tags), "job_type": job_type}
    return WandbLogger(
        save_dir=folder, id=run_id, project=project, name=name or run_id, group=group, offline=offline, **settings
    )


def _has_key() -> bool:
    """Is there an API key in the environment or in the netrc file?"""
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
