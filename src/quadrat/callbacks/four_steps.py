"""When a detector that learns in four steps goes on to the next (Faster R-CNN, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from quadrat.callbacks.wrap import wrap_again
from quadrat.models.four_step import FourStep

if TYPE_CHECKING:
    from quadrat.tasks.base import Task


class FourSteps(Callback):
    """Each step has its share of the epochs; the paper's 80k, 40k, 80k and 40k are [2, 1, 2, 1].

    Raises ValueError for another model, for fewer epochs than steps, and for sharded training.
    """

    def __init__(self, shares: Sequence[float] = (2, 1, 2, 1)) -> None:
        if len(shares) != 4 or min(shares) <= 0:
            raise ValueError(f"callbacks.four_steps.shares are four numbers above 0, got {list(shares)}")
        self.ends = [end / sum(shares) for end in accumulate(shares)]
        self.model: FourStep | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        task = cast("Task", pl_module)
        if not isinstance(task.model, FourStep):
            raise ValueError(
                f"callbacks=four_steps trains quadrat.models.four_step.FourStep, not {type(task.model).__name__}: choose a "
                f"model with a proposer that learns (model=faster_rcnn_vgg, faster_rcnn_fpn), or callbacks=default"
            )
        if task.device_mesh is not None:
            raise ValueError("callbacks=four_steps holds parts still, which trainer=ddp_sharded cannot: trainer=ddp")
        if 0 <= (trainer.max_epochs or -1) < 4:
            raise ValueError(f"four steps need four epochs or more, got epochs={trainer.max_epochs}")
        self.model = task.model

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.model.number if self.model else 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the model is wrapped for several processes, so that the wrapper sees the step that it is in."""
        assert self.model is not None
        self.model.at(state_dict["number"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.model is not None
        number = self.number(trainer.current_epoch, trainer.max_epochs or -1)
        if number == self.model.number:
            return
        self.model.at(number)
        wrap_again(trainer.strategy)
        for logger in trainer.loggers:
            row = {"epoch": trainer.current_epoch, "train/step_of_four": float(number)}
            logger.log_metrics(row, step=trainer.global_step)
        if trainer.is_global_zero:
            print(f"step {number} of 4 from epoch {trainer.current_epoch} on")

    def number(self, epoch: int, epochs: int) -> int:
        """The step that an epoch belongs to; each step has at least one."""
        ends = [max(number, round(end * epochs)) for number, end in enumerate(self.ends, start=1)]
        return 1 + sum(epoch >= end for end in ends[:3])
