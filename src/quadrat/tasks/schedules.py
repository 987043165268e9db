"""Learning rate over a run, as a factor of the configured rate: functions of (step, total), nothing to save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol


class Schedule(Protocol):
    """The factor of the learning rate at an optimiser step of a run of ``total`` steps."""

    def __call__(self, step: int, total: int) -> float: ...


@dataclass(frozen=True)
class Warmup:
    """A linear start from ``factor`` to 1 within the first ``steps`` optimiser steps, at most a tenth of the run."""

    steps: int = 0
    factor: float = 0.001

    def __call__(self, step: int, total: int) -> float:
        steps = min(self.steps, total // 10)
        return 1.0 if step >= steps else self.factor + (1 - self.factor) * step / steps


@dataclass(frozen=True)
class Steps:
    """Times ``gamma`` at each of ``milestones``, given as shares of the run; no milestones keep the rate constant."""

    warmup: Warmup = field(default_factory=Warmup)
    milestones: Sequence[float] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"schedule.milestones are shares of the run between 0 and 1, got {list(self.milestones)}")

    def __call__(self, step: int, total: int) -> float:
        passed = sum(step >= share * total for share in self.milestones)
        return self.warmup(step, total) * self.gamma**passed


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to ``floor`` over the whole run."""

    warmup: Warmup = field(default_factory=Warmup)
    floor: float = 0.0

    def __call__(self, step: int, total: int) -> float:
        along = min(1.0, step / max(1, total))
        return self.warmup(step, total) * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * along)))


@dataclass(frozen=True)
class InTurn:
    """A schedule ``each`` for itself in parts of the run that have so large ``shares`` of it."""

    shares: Sequence[float]
    each: Schedule

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares) <= 0:
            raise ValueError(f"schedule.shares are numbers above 0, got {list(self.shares)}")

    def turn(self, step: int, total: int) -> tuple[int, int, int]:
        """The number from 0 of the part that an optimiser step belongs to, where that part begins, and where it ends."""
        ends = [round(total * end / sum(self.shares)) for end in accumulate(self.shares)]
        part = min(sum(step >= end for end in ends), len(ends) - 1)
        return part, ends[part - 1] if part else 0, ends[part]

    def __call__(self, step: int, total: int) -> float:
        _, start, end = self.turn(step, total)
        return self.each(step - start, end - start)
