"""When a detector that learns in four steps goes on to the next (Faster R-CNN, section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from quadrat.callbacks.wrap import wrap_again
from quadrat.losses.weighting import WeightedSum
from quadrat.models.four_step import FourStep

if TYPE_CHECKING:
    from quadrat.tasks.base import Task


@runtime_checkable
class Turns(Protocol):
    """A schedule in parts."""

    def turn(self, step: int, total: int) -> tuple[int, int, int]: ...


class FourSteps(Callback):
    """A step of the model is a part of the schedule, to the optimiser step.

    Raises ValueError for another model or schedule, for weights of terms that are not fixed, and for sharded training.
    """

    def __init__(self) -> None:
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
        if not isinstance(task.schedule, Turns):
            raise ValueError("callbacks=four_steps goes on where its schedule does: schedule=four_steps")
        if type(task.weighting) is not WeightedSum:
            raise ValueError(
                f"callbacks=four_steps trains one pair of terms at a time, and {type(task.weighting).__name__} would weigh the "
                f"others by what they are not: loss/weighting=static"
            )
        if task.device_mesh is not None:
            raise ValueError("callbacks=four_steps holds parts still, which trainer=ddp_sharded cannot: trainer=ddp")
        self.model = task.model

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.model.number if self.model else 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Before the model is wrapped for several processes, so that the wrapper sees the step that it is in."""
        assert self.model is not None
        self.model.at(state_dict["number"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        task = cast("Task", pl_module)
        assert self.model is not None
        part, _, _ = cast(Turns, task.schedule).turn(trainer.global_step, task.total_steps)
        if part + 1 == self.model.number:
            return
        self.model.at(part + 1)
        wrap_again(trainer.strategy)
        for logger in trainer.loggers:
            row = {"epoch": trainer.current_epoch, "train/step_of_four": part + 1.0}
            logger.log_metrics(row, step=trainer.global_step)
        if trainer.is_global_zero:
            print(f"step {part + 1} of 4 from optimiser step {trainer.global_step} on")
