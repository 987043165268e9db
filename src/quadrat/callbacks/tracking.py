"""Weights & Biases, with or without a server."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

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
    return WandbLogger(
        save_dir=folder,
        id=run_id,
        project=project,
        name=name or run_id,
        group=group,
        offline=offline,
        # also given to wandb itself, whose settings may have been read before Lightning sets the environment
        mode="offline" if offline else "online",
        resume="allow",
        tags=list(tags),
        job_type=job_type,
    )


def _has_key() -> bool:
    """Is there an API key in the environment, or in the netrc file where `wandb login` puts it?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
