"""Weights & Biases: one run over all attempts, with a server or without, and never a reason for training to stop.

A run of ours keeps its W&B id, so that an attempt that resumes goes on with the same W&B run. What was logged there cannot
be taken back: rows after the checkpoint that an attempt resumes from are logged once more, and so may be the last half
minute when the service is lost. Each row therefore carries ``trainer/global_step``, which is the x axis, and ``attempt``,
by which the doubles can be told apart; as resuming is exact, they hold the same numbers. The csv log has every row once.

W&B's client speaks to a service process, `wandb-core`. SLURM may send its signals to every process of a step, and on SIGTERM
or SIGINT the service ends at once and loses what it has not yet written (wandb 0.31); to start it with these signals blocked
does not help, as it unblocks them itself. So a service that is lost is replaced, and told the last rows again.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from quadrat import wandb_service

INIT_SECONDS = 20.0
"""How long to wait for the server at the start; asking who the key belongs to comes before it and takes up to 10 s."""

FINISH_SECONDS = 30.0
"""How long to wait at the end until the server has everything."""

UNWRITTEN_SECONDS = 30.0
"""How long a row may be with the service alone, which writes its file about every 15 s."""

SERVICES = 3
"""How many services may be lost before a run does without W&B."""

REFUSED = re.compile(r"returned error 40[13]\b")
"""What wandb's error says when the server knows the key not, or not for this project."""

_open: list[WandbLog] = []


class WandbLog(Logger):
    """Log to the W&B run ``run_id``, new or continued, whose local files are in ``folder``/wandb.

    The summary has the largest value of ``monitor``. ``offline`` None means offline when WANDB_MODE says so or there is no key.
    A key that the server refuses is a ValueError when the run begins; a server that does not answer is not: the run is logged
    offline, and the command that sends it later is printed. Only rank 0 imports wandb.
    """

    def __init__(
        self,
        folder: str | Path,
        run_id: str,
        *,
        project: str = "quadrat",
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str = "train",
        monitor: str | None = None,
        offline: bool | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.run_id, self.project = Path(folder), run_id, project
        self.labels = {"name": name or run_id, "group": group, "tags": list(tags), "job_type": job_type}
        self.monitor = monitor
        self.mode = _mode(offline)
        self.config: dict[str, Any] = {}
        self.attempt = 0
        self.step: int | None = None
        self._run: Any = None
        self._recent: deque[tuple[float, dict[str, Any]]] = deque()
        self._services_lost = 0

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's own run, begun when it is first asked for; None when W&B is lost."""
        if self._run is None and self._services_lost < SERVICES:
            self._begin()
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        self.config |= params
        self._tell(lambda run: run.config.update(dict(params), allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.step = self.step if step is None else step
        row = {**metrics, "trainer/global_step": self.step}
        self._recent.append((time.monotonic(), row))
        self._tell(lambda run: self._write(run, row))

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any], step: int | None = None) -> None:
        """Log pictures uint8 RGB (H, W, 3) under one name."""
        import wandb

        self.log_metrics({key: [wandb.Image(image) for image in images]}, step)

    def close(self, state: str, exit_code: int) -> None:
        """End the W&B run as `close` says."""
        while self._run is not None:
            try:
                wandb_service.within(
                    FINISH_SECONDS + wandb_service.SECONDS, lambda: _finish(self._run, state, exit_code)
                )
            except TimeoutError:
                print(f"W&B does not have everything yet; the rest is kept here: {self._sync_command()}")
            except Exception as error:
                self._begin_again(error)
                continue
            else:
                if self.mode == "offline":
                    print(f"W&B was offline; to send this run: {self._sync_command()}")
            wandb_service.end_service()
            self._run = None

    def _tell(self, what: Callable[[Any], Any]) -> None:
        run = self.experiment
        if run is None:
            return
        try:
            what(run)
        except Exception as error:
            self._begin_again(error)
        while self._recent and self._recent[0][0] < time.monotonic() - UNWRITTEN_SECONDS:
            self._recent.popleft()

    def _write(self, run: Any, row: Mapping[str, Any]) -> None:
        run.log({**row, "attempt": self.attempt})

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = self._attempts()
        self.attempt = len(earlier) + 1
        try:
            self._run = self._init()
        except Exception as error:
            wandb_service.end_service()
            if self._services_lost == 0:
                _raise_if_refused(error)
            if self.mode == "offline":
                self._do_without(error)
                return
            for begun in self._attempts() - earlier:  # nothing is in it
                shutil.rmtree(begun, ignore_errors=True)
            self.mode = "offline"
            print(f"W&B cannot be reached: {error}\nthe run is logged offline; to send it: {self._sync_command()}")
            self._begin()
        if self not in _open:
            _open.append(self)

    def _init(self) -> Any:
        import wandb

        if not os.environ.get("WANDB_MODE"):
            os.environ.pop("WANDB_MODE", None)  # wandb takes an empty one for a wrong one
        settings = {"init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
        if self.mode == "offline":
            settings["silent"] = True  # what it says there, we say
        run = wandb.init(
            dir=self.folder,
            id=self._id(),
            project=self.project,
            **self.labels,
            config=self.config,
            mode=self.mode,  # pyright: ignore[reportArgumentType] - of this run only, unlike WANDB_MODE
            resume="allow",
            reinit="create_new",  # never another run that this process has open
            settings=wandb.Settings(**settings),
        )
        run.define_metric("attempt", hidden=True)
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self.monitor is not None:  # the summary then has the best beside the last: <monitor>.max
            run.define_metric(self.monitor, step_metric="trainer/global_step", step_sync=True, summary="max,last")
        return run

    def _id(self) -> str:
        """A run that was begun anew (resume.mode=never) has its former attempts aside, and is another run to W&B."""
        anew = len(list(self.folder.glob("attempt-*")))
        return f"{self.run_id}-{anew}" if anew else self.run_id

    def _begin_again(self, error: Exception) -> None:
        """Begin with a new service where the old one was lost, and say the last rows again."""
        self._services_lost += 1
        wandb_service.end_service()
        self._run = None
        if self._services_lost == SERVICES:
            self._do_without(error)
            return
        self._begin()
        rows = [row for _, row in self._recent]
        self._recent = deque((time.monotonic(), row) for row in rows)
        self._tell(lambda run: [self._write(run, row) for row in rows])

    def _do_without(self, error: Exception) -> None:
        self._services_lost = SERVICES
        print(
            f"W&B is lost ({type(error).__name__}: {error}); the run goes on without. What it has: {self._sync_command()}"
        )

    def _attempts(self) -> set[Path]:
        """The folders that wandb has made, one each time that the run was begun."""
        return set((self.folder / "wandb").glob("run-*")) | set((self.folder / "wandb").glob("offline-run-*"))

    def _sync_command(self) -> str:
        if self.mode == "offline":
            return f"wandb sync {shlex.quote(str(self.folder / 'wandb'))}"  # every attempt, in order
        newest = Path(self._run.dir).parent if self._run else self.folder / "wandb"
        return f"wandb sync --include-online {shlex.quote(str(newest))}"


def close(state: str, exit_code: int) -> None:
    """End all W&B runs of this process: ``state`` is done, preempted or failed, ``exit_code`` that of the process.

    Nothing is raised, and it takes no longer than some `FINISH_SECONDS`. Without a W&B run there is nothing to do.
    """
    while _open:
        _open.pop().close(state, exit_code)


def _finish(run: Any, state: str, exit_code: int) -> None:
    if state == "preempted":
        run.mark_preempting()
    run.finish(exit_code=0 if state == "done" else exit_code or 1)


def _raise_if_refused(error: Exception) -> None:
    from wandb.errors import AuthenticationError, UsageError

    if isinstance(error, AuthenticationError | UsageError) or REFUSED.search(str(error)):
        raise ValueError(
            f"W&B refuses this run: {error}\n`wandb login --relogin` or WANDB_API_KEY gives another key, WANDB_MODE=offline "
            f"logs without a server, logger=csv without W&B"
        ) from error


def _mode(offline: bool | None) -> str:
    if offline is None:
        return os.environ.get("WANDB_MODE") or ("online" if wandb_service.has_key() else "offline")
    return "offline" if offline else "online"
