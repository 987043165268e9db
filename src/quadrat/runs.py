"""A run is a folder: its config, its checkpoints, its log, its results, and how it stands."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from quadrat.structures import Schema

HEARTBEAT = 30.0
"""Seconds between two signs of life."""

PATIENCE = 10.0
"""Seconds to wait for a run folder whose owner may just be dying."""

LOST = 300.0
"""Seconds without a sign of life after which a running job is taken for dead."""


class InUse(ValueError):
    """Another process works on the run folder, whose status is that process's to write."""


class Run:
    """The files of a run, by name; nothing is made until it is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.config_file = self.folder / "config.yaml"
        self.last = self.folder / "last.ckpt"
        self.previous = self.folder / "previous.ckpt"
        self.new = self.folder / "new.ckpt"  # written whole, about to become the last: only a kill leaves it
        self.best = self.folder / "best.ckpt"
        self.log = self.folder / "metrics.csv"
        self.metrics_file = self.folder / "metrics.json"
        self.status_file = self.folder / "status.json"
        self.heartbeat_file = self.folder / "heartbeat.json"
        self.lock_file = self.folder / ".lock"
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
        from omegaconf import DictConfig, OmegaConf

        config = OmegaConf.load(self.config_file)
        assert isinstance(config, DictConfig)
        return config

    def save_config(self, config: DictConfig) -> None:
        """Write the config with every interpolation replaced, so that it means the same on any day."""
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(config, resolve=True)
        write(self.config_file, OmegaConf.to_yaml(OmegaConf.create(plain)))

    # --- checkpoints ---

    def checkpoint(self, which: str = "best") -> Path:
        """``best``, ``last``, or a path; a run without a best one offers its last."""
        named = {"best": self.best if self.best.exists() else self.last, "last": self.last}
        path = named.get(which) or Path(which)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {path}; checkpoint=best|last|<path> names one")
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The whole checkpoint that has come furthest, with its content; each damaged one is named and passed over."""
        paths = [path for path in (self.new, self.last, self.previous, self.best) if path.exists()]
        for path in sorted(paths, key=_progress, reverse=True):
            try:
                _verify(path)
                return path, read_checkpoint(path, mmap=True)
            except ValueError as error:
                print(f"passing over a damaged checkpoint: {error}")
        return None

    def name_newest(self) -> None:
        """Finish what a kill has cut off: the new checkpoint becomes the last; at every instant a whole one has a name."""
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(self.new, self.last)

    def set_aside(self) -> Path | None:
        """Move what former attempts have left into a folder of their own, for a start from nothing."""
        left = [path for path in self.folder.iterdir() if path.name != ".lock" and not path.name.startswith("attempt-")]
        if not any(path in left for path in (self.new, self.last, self.previous, self.best, self.log)):
            return None
        number = 1 + len(list(self.folder.glob("attempt-*")))
        aside = self.folder / f"attempt-{number}"
        aside.mkdir()
        if self.config_file.exists():
            shutil.copy(self.config_file, aside)  # what is there can still be evaluated and replayed
        for path in left:
            if path != self.config_file:
                os.replace(path, aside / path.name)
        return aside

    # --- how it stands ---

    @property
    def status(self) -> dict[str, Any]:
        """How the run stands: ``state`` is new, queued, running, preempted, failed or done; with its last sign of life."""
        return {"state": "new", **_read_json(self.heartbeat_file), **_read_json(self.status_file)}

    def set_status(self, state: str, **more: Any) -> None:
        """Change how the run stands and keep what else is known of it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        known = {key: value for key, value in _read_json(self.status_file).items() if key != "reason"}
        self.write_json(
            self.status_file, {**known, "started": known.get("started", now), **more, "state": state, "at": now}
        )

    def lost(self) -> bool:
        """Does the run say that it is running, without having shown a sign of life for minutes?"""
        status = self.status
        return status["state"] == "running" and time.time() - status.get("heartbeat", 0.0) > LOST

    def write_json(self, path: Path, value: Any) -> None:
        """Write a json file as a whole or not at all."""
        write(path, json.dumps(value, indent=1) + "\n")

    # --- one process at a time ---

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; InUse names the process that holds it, and since when.

        The kernel gives the lock back however the process ends, and forked loader workers do not inherit it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise PermissionError(
                f"cannot write into the run folder {self.folder} ({error.strerror}); paths.logs=<folder> chooses another place"
            ) from error
        try:
            self._lock(handle)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    raise InUse(self._owner()) from None
                time.sleep(0.2)

    def _owner(self) -> str:
        status = self.status
        age = time.time() - status.get("heartbeat", time.time())
        return (
            f"the run folder {self.folder} is in use by process {status.get('pid', '?')} on {status.get('host', '?')}, "
            f"started {status.get('at', '?')}, last sign of life {age:.0f} s ago; wait for it, or stop it with "
            f"`kill {status.get('pid', '<pid>')}` and give the same command again"
        )

    @contextmanager
    def alive(self, progress: Mapping[str, Any]) -> Iterator[None]:
        """Leave a sign of life every half minute, with whatever ``progress`` (epoch, step ...) holds at that time."""
        over = threading.Event()

        def beat() -> None:
            while True:
                with suppress(OSError):  # a full disk must not end a run that does not need it
                    self.write_json(self.heartbeat_file, {"heartbeat": time.time(), **progress})
                if over.wait(HEARTBEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(OSError):
                self.write_json(self.heartbeat_file, {"heartbeat": time.time(), **progress})


def here() -> dict[str, Any]:
    """This process, for those who find its lock."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _verify(path: Path) -> None:
    """Raise ValueError at one wrong byte anywhere in the file: torch itself reads it without looking at the check sums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({error})") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged (the check sum of {damaged} is wrong)")


def _progress(path: Path) -> tuple[float, int]:
    """How far a checkpoint has come, read without its tensors: steps, then whether the validation lies behind it."""
    try:
        checkpoint = read_checkpoint(path, mmap=True)
    except ValueError:
        return float("inf"), 0  # tried first, and named as damaged
    return checkpoint["global_step"], checkpoint.get("stage", 0)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of ours, plain values only; ValueError names a file that is none.

    With ``mmap`` the tensors stay on the disk until they are used, and damage in them stays unseen.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({(str(error) or 'it is empty').splitlines()[0]})"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of a run: it holds no state_dict")
    return checkpoint


def same_schema(stored: Mapping[str, Any], present: Schema, path: Path) -> None:
    """Raise ValueError unless a checkpoint and the data name the same classes, and, if both have some, the same joints."""
    for what in ("classes", "joints"):
        before, now = list(stored.get(what, ())), list(getattr(present, what))
        if before != now and (what == "classes" or (before and now)):
            raise ValueError(
                f"{path} was trained on {len(before)} {what} {before}, the data has {len(now)} {now}; give it data of the same "
                f"{what} (data=..., data.source...), or train another model on this data"
            )


def without_weights(config: Any) -> Any:
    """The config of a model with every ``weights`` emptied: the checkpoint that follows holds them all."""
    if isinstance(config, dict):
        return {key: None if key == "weights" else without_weights(value) for key, value in config.items()}
    return config


def load_weights(model: torch.nn.Module, path: Path, *, may_lack: tuple[str, ...] = ()) -> None:
    """Fill a task's model from a checkpoint of ours; ValueError names the keys when it is of another model.

    Parameters whose names begin with one of ``may_lack`` stay as they are where the checkpoint has none. What the checkpoint has
    been fitted late, and the model does without, is passed over.
    """
    state = read_checkpoint(path)["state_dict"]
    state = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    wanted, late = model.state_dict(), getattr(model, "fitted_late", ())
    state = {key: wanted[key] for key in wanted if key.startswith(may_lack)} | state
    unlike = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(late)}
    unknown = [key for key in state if key not in wanted]
    if unlike or unknown:
        raise ValueError(
            f"{path} is a checkpoint of another model: {len(unlike)} parameters are missing or of another shape "
            f"(first: {unlike[:3]}), {len(unknown)} are unknown (first: {unknown[:3]})"
        )
    model.load_state_dict(state)
