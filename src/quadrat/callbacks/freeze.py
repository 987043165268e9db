"""Fine-tuning in two phases: the heads alone on a trunk that stands still, then everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from quadrat.backbones.base import Backbone
from quadrat.callbacks.wrap import wrap_again

if TYPE_CHECKING:
    from quadrat.tasks.base import Task


class Until(Protocol):
    """Is the first phase over? A function of the ``epochs`` done and of the validations' ``values`` of ``monitor`` so far."""

    @property
    def monitor(self) -> str | None:
        """The metric that is asked for, None for none."""
        ...

    def __call__(self, epochs: int, values: Sequence[float]) -> bool: ...


@dataclass(frozen=True)
class Epochs:
    """Until ``count`` epochs are done; 0: everything learns from the first step on."""

    count: int
    monitor: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"callbacks.freeze.until.count is 0 or more, got {self.count}")

    def __call__(self, epochs: int, values: Sequence[float]) -> bool:
        return epochs >= self.count


@dataclass(frozen=True)
class Plateau:
    """Until ``patience`` validations in a row have not raised ``monitor`` by more than ``least`` (the larger, the better)."""

    monitor: str
    patience: int = 3
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.least < 0:
            raise ValueError(
                f"callbacks.freeze.until waits for 1 or more validations and a growth of 0 or more, got "
                f"patience={self.patience} and least={self.least}"
            )

    def __call__(self, epochs: int, values: Sequence[float]) -> bool:
        best, waited = -math.inf, 0
        for value in values:
            best, waited = (value, 0) if value > best + self.least else (best, waited + 1)
            if waited == self.patience:
                return True
        return False


class Freeze(Callback):
    """Hold every backbone of the model still, its batch norms' statistics too, ``until`` the heads have learned alone.

    It is asked at the start of each epoch; from then on a backbone learns as far as its own ``freeze_stages`` and ``freeze_norm``
    let it, at ``task.backbone_rate`` times the heads' rate. The optimiser has the same parameters in both phases. Raises
    ValueError for a model without a backbone, a metric that is none of the task's, weights of terms that are balanced on
    what is frozen, and for sharded training.
    """

    def __init__(self, until: Until) -> None:
        self.until = until
        self.frozen = False
        self.values: list[float] = []
        self.trunks: list[tuple[Backbone, int, bool]] = []  # with their own settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        task = cast("Task", pl_module)
        if self.until.monitor is not None:
            task.check_monitor(self.until.monitor)
        trunks = [part for part in task.model.modules() if isinstance(part, Backbone)]
        if not trunks:
            raise ValueError(f"{type(task.model).__name__} has no backbone to freeze: callbacks=default")
        self.trunks = [(trunk, trunk.frozen_stages, trunk.frozen_norm) for trunk in trunks]
        self._hold(not self.until(0, []))
        if self.frozen:
            _check(task)

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen, "values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the model is wrapped for several processes, so that the wrapper sees the phase that it is in."""
        self.values = list(state_dict["values"])
        self._hold(state_dict["frozen"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.frozen and self.until.monitor is not None and not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics[self.until.monitor]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.frozen or not self.until(trainer.current_epoch, self.values):
            return
        self._hold(False)
        wrap_again(trainer.strategy)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, "train/thawed": 1.0}, step=trainer.global_step)
        if trainer.is_global_zero:
            print(f"the trunk learns from epoch {trainer.current_epoch} on")

    def _hold(self, still: bool) -> None:
        self.frozen = still
        for trunk, stages, norm in self.trunks:
            trunk.freeze(*((len(trunk.stages), True) if still else (stages, norm)))


def _check(task: Task) -> None:
    """Raise ValueError for what cannot be trained with a trunk that is thawed later."""
    if task.device_mesh is not None:
        raise ValueError(
            "callbacks.freeze thaws parameters whose gradients trainer=ddp_sharded would go on leaving out: trainer=ddp, or "
            "freeze for good with model.backbone.freeze_stages=<n>"
        )
    shared = list(chain.from_iterable(part.parameters() for part in task.model.shared()))
    if task.weighting.sees != "nothing" and shared and not any(parameter.requires_grad for parameter in shared):
        raise ValueError(
            f"loss/weighting with {type(task.weighting).__name__} balances the terms on the parameters they share, and "
            f"callbacks.freeze holds all of those still: loss/weighting=static, or callbacks=default"
        )
