"""What a launcher is given, and what it promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from quadrat.sweeps.ledger import Job, Sweep

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True, eq=False)
class Draft:
    """A job with its resolved config, which lies frozen in its run folder once the job goes to a launcher."""

    job: Job
    config: DictConfig


class Launcher(Protocol):
    """Starts every job once: it sees the job to its end, or hands it to somebody who does.

    A job that fails is a state in its run folder, never an exception. ValueError says that nothing can run here,
    `signals.Stopped` that the sweep was interrupted and its jobs were stopped with it.
    """

    def check(self, drafts: Sequence[Draft]) -> None:
        """Raise ValueError for jobs that this launcher cannot run as they are."""
        ...

    def run(self, sweep: Sweep, drafts: Sequence[Draft]) -> None:
        """Start jobs that were checked and whose runs are queued."""
        ...
