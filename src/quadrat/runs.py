"""A run is a folder: its config, its checkpoints, its log, its results, and how it stands."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import torch


class Run:
    """The files of a run, by name; nothing is made until it is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.config_file = self.folder / "config.yaml"
        self.last = self.folder / "last.ckpt"
        self.best = self.folder / "best.ckpt"
        self.log = self.folder / "metrics.csv"
        self.metrics_file = self.folder / "metrics.json"
        self.status_file = self.folder / "status.json"
        self.pictures = self.folder / "pictures"

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """An existing run; FileNotFoundError says what is missing."""
        run = cls(folder)
        if not run.folder.is_dir():
            raise FileNotFoundError(
                f"there is no run folder {run.folder}; run=<folder> names one, as printed by quadrat-train"
            )
        if not run.config_file.is_file():
            raise FileNotFoundError(f"{run.folder} is no run folder: it holds no config.yaml")
        return run

    def config(self) -> DictConfig:
        """The resolved config the run was started with."""
        config = OmegaConf.load(self.config_file)
        assert isinstance(config, DictConfig)
        return config

    def save_config(self, config: DictConfig) -> None:
        """Write the config with every interpolation replaced, so that it means the same on any day."""
        plain = OmegaConf.to_container(config, resolve=True)
        _write(self.config_file, OmegaConf.to_yaml(OmegaConf.create(plain)))

    def checkpoint(self, which: str = "best") -> Path:
        """``best``, ``last``, or a path; a run without a best one offers its last."""
        named = {"best": self.best if self.best.exists() else self.last, "last": self.last}
        path = named.get(which) or Path(which)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}; checkpoint=best|last|<path> names one")
        return path

    @property
    def status(self) -> dict[str, Any]:
        """How the run stands: ``state`` is new, running, finished, interrupted or failed."""
        if not self.status_file.exists():
            return {"state": "new"}
        return json.loads(self.status_file.read_text())

    def set_status(self, state: str, **more: Any) -> None:
        """Change how the run stands and keep what else is known of it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        known = {key: value for key, value in self.status.items() if key != "error"}
        self.write_json(
            self.status_file, {**known, "started": known.get("started", now), **more, "state": state, "at": now}
        )

    def write_json(self, path: Path, value: Any) -> None:
        """Write a json file as a whole or not at all."""
        _write(path, json.dumps(value, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, plain values only; ValueError names a file that is none."""
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a run: it holds no state_dict")
    return checkpoint


def same_classes(stored: Sequence[str], present: Sequence[str], path: Path) -> None:
    """Raise ValueError unless a checkpoint and the data name the same classes in the same order."""
    if list(stored) != list(present):
        raise ValueError(f"{path} was trained on the classes {list(stored)}, the data has {list(present)}")


def without_weights(config: Any) -> Any:
    """The config of a model with every ``weights`` emptied: the checkpoint that follows holds them all."""
    if isinstance(config, dict):
        return {key: None if key == "weights" else without_weights(value) for key, value in config.items()}
    return config


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Fill a task's model from a checkpoint of ours; ValueError names the keys when it is of another model."""
    state = read_checkpoint(path)["state_dict"]
    state = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    wanted = model.state_dict()
    unlike = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    unknown = [key for key in state if key not in wanted]
    if unlike or unknown:
        raise ValueError(
            f"{path} is a checkpoint of another model: {len(unlike)} parameters are missing or of another shape "
            f"(first: {unlike[:3]}), {len(unknown)} are unknown (first: {unknown[:3]})"
        )
    model.load_state_dict(state)
