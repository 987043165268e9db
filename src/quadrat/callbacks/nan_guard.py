"""A loss that is NaN or infinite never reaches the weights: the run stops with everything about the step, or leaves it out."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from quadrat.backbones.base import Backbone
from quadrat.callbacks.agreement import Vote
from quadrat.callbacks.checkpoints import AtomicCheckpointIO
from quadrat.structures import Batch

if TYPE_CHECKING:
    from quadrat.tasks.base import Step, Task

CHOICES = ("stop", "skip")

IN_A_ROW = 100
"""So many steps skipped one after another, and nothing is being learned any more."""

log = logging.getLogger(__name__)


class LossNotFinite(ValueError):
    """A loss was NaN or infinite; the weights are still those from before its step."""


class Evidence(NamedTuple):
    """The first batch since the last optimiser step whose loss was not finite."""

    batch: Batch
    batch_idx: int
    step: Step


class NanGuard(Callback):
    """Look at the loss of every batch before its gradients are used; all ranks do the same when one of them finds it bad.

    ``on_nan=stop`` writes the step to `nan-step-<step>.pt` in ``folder`` and raises LossNotFinite; ``on_nan=skip`` leaves
    weights, optimiser and the model's buffers as they were before the step, counts it, and says so; what cannot be mended by
    skipping (the weights themselves are not finite, or no step is good any more) stops all the same. Reading the loss
    waits for the forward pass only, when the backward pass has been given to the device already.
    """

    def __init__(self, folder: str | Path, on_nan: str = "stop") -> None:
        if on_nan not in CHOICES:
            raise ValueError(f"trainer.on_nan={on_nan} is neither stop nor skip")
        self.folder, self.on_nan = Path(folder), on_nan
        self.skipped, self.in_a_row = 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.vote = Vote()
        self.total = _OnItsWay(pl_module.device)
        self.buffers = _Buffers(pl_module)
        self.batch: Batch | None = None
        self.bad: Evidence | None = None
        self.within_step = False

    # --- one batch ---

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.batch, self.batch_idx = batch, batch_idx
        if not self.within_step:  # several batches may be one step
            self.buffers.remember()
            self.within_step = True

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.total.send(_latest(pl_module).total)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not math.isfinite(self.total.arrived()) and self.bad is None:
            assert self.batch is not None
            self.bad = Evidence(self.batch, self.batch_idx, _latest(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.batch = None  # or it would stay on the device beside the next one

    # --- one optimiser step ---

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        good = bool(self.vote.least(int(self.bad is None)))
        if good:
            self.in_a_row = 0
        else:
            self._act(trainer, pl_module)  # pyright: ignore[reportArgumentType]
        self.bad, self.within_step = None, False
        if self.on_nan == "skip" and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # pyright: ignore
            for logger in trainer.loggers:
                row = {"epoch": trainer.current_epoch, "train/skipped": float(self.skipped)}
                logger.log_metrics(row, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skipped and trainer.is_global_zero:
            print(f"{self.skipped} of {trainer.global_step} steps were skipped: their loss was NaN or infinite")

    def _act(self, trainer: Trainer, task: Task) -> None:
        self.in_a_row += 1
        beyond = self._beyond_skipping(task)
        if self.on_nan == "stop" or beyond:
            self._stop(trainer, task, beyond)
        for parameter in task.parameters():
            parameter.grad = None  # an optimiser leaves alone what has no gradient
        self.buffers.restore()
        self.skipped += 1
        found = self._of_all_ranks(self._found(trainer, task))
        if trainer.is_global_zero:
            log.warning("%s; skipped, %d so far", "; ".join(found), self.skipped)

    def _beyond_skipping(self, task: Task) -> str:
        """Why to leave out this step would not help the next one; empty if it may."""
        broken = _not_finite({name: _local(parameter) for name, parameter in task.named_parameters()})
        if not self.vote.least(int(not broken)):
            return (
                f"the weights were not finite before this step already ({len(broken)} parameters, first: {broken[:1]}), so no "
                f"step after it can be better; begin from a checkpoint that is whole: resume.mode=branch resume.source=<file>"
            )
        if self.in_a_row > IN_A_ROW:
            return f"the {IN_A_ROW} steps before were skipped one after another: nothing is being learned any more"
        return ""

    def _stop(self, trainer: Trainer, task: Task, beyond: str) -> None:
        state = self._state(task)  # of all ranks, for weights that are spread over them
        found = self._found(trainer, task)
        if self.bad is not None:
            found = f"{found}\n  {self._save(self.bad, state, trainer, task)}"
        lines = self._of_all_ranks(found)  # nobody leaves before all have saved
        go_on = beyond or "to go on without such steps: the same command with trainer.on_nan=skip"
        raise LossNotFinite("\n".join([*lines, f"  the weights are those from before the step; {go_on}"]))

    def _of_all_ranks(self, found: str | None) -> list[str]:
        """What the ranks that saw it say, on every rank."""
        everywhere = [found]
        if isinstance(self.vote.group, dist.ProcessGroup):
            everywhere *= dist.get_world_size()
            dist.all_gather_object(everywhere, found, group=self.vote.group)
        return [one for one in everywhere if one]

    def _found(self, trainer: Trainer, task: Task) -> str | None:
        if self.bad is None:
            return None
        rank = f" on rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        where = f"step {trainer.global_step} (epoch {trainer.current_epoch}, batch {self.bad.batch_idx}{rank})"
        pictures = ", ".join(str(target.image_id) for target in self.bad.batch.targets)
        return f"the loss of {where} is not finite: {_culprits(self.bad.step, task)}; pictures: {pictures}"

    def _save(self, bad: Evidence, state: dict[str, Tensor], trainer: Trainer, task: Task) -> str:
        """Write everything about the step; returns what to do with it, or that it could not be written."""
        several = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        file = self.folder / f"nan-step-{trainer.global_step:06d}{several}.pt"
        content = {
            **{"step": trainer.global_step, "epoch": trainer.current_epoch, "batch_idx": bad.batch_idx},
            **{"rank": trainer.global_rank, "world_size": trainer.world_size, "place": bad.step.place},
            "steps": task.total_steps,
            "losses": {name: float(value) for name, value in bad.step.losses.items()},
            "total": float(bad.step.total),
            "pictures": [target.image_id for target in bad.batch.targets],
            "machine": machine(task.device),
            "schema": asdict(task.schema),
            "frozen": frozen(task),
            "state_dict": state,
            "batch": bad.batch.to("cpu").plain(),
        }
        try:
            AtomicCheckpointIO().save_checkpoint(content, file)
        except OSError as error:
            return f"(this step is not saved: {error})"
        return f"look into it: quadrat-train replay={file}"

    def _state(self, task: Task) -> dict[str, Tensor]:
        """Model and weighting before the step, whole and on the host."""
        state = {name: value for name, value in task.state_dict().items() if name.startswith(_PARTS)}
        state |= {name: value for name, value in self.buffers.before.items() if name in state}
        return {name: _whole(value.detach()).cpu() for name, value in state.items()}


def frozen(task: Task) -> dict[str, list[Any]]:
    """What each backbone holds still, by its name: so many stages, and whether its norms; a callback may have changed it."""
    trunks = {name: part for name, part in task.named_modules() if isinstance(part, Backbone)}
    return {name: [trunk.frozen_stages, trunk.frozen_norm] for name, trunk in trunks.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the last bits of a loss depend on, beside its inputs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


_PARTS = ("model.", "weighting.")


class _OnItsWay:
    """A number sent from the device to the host: to read it waits for what made it, and for nothing that was queued later."""

    def __init__(self, device: torch.device) -> None:
        self.sent = torch.cuda.Event() if device.type == "cuda" else None
        self.value = torch.zeros((), pin_memory=device.type == "cuda")

    def send(self, value: Tensor) -> None:
        if self.sent is None:
            self.value = value
        else:
            self.value.copy_(value, non_blocking=True)
            self.sent.record()

    def arrived(self) -> float:
        if self.sent is not None:
            self.sent.synchronize()
        return float(self.value)


class _Buffers:
    """What a forward pass changes beside the gradients (the statistics of norms), as it was before the step."""

    def __init__(self, task: LightningModule) -> None:
        self.present = {name: buffer for name, buffer in task.named_buffers() if name.startswith(_PARTS)}
        self.before = {name: buffer.clone() for name, buffer in self.present.items()}

    def remember(self) -> None:
        self._copy(self.before, self.present)

    def restore(self) -> None:
        self._copy(self.present, self.before)

    @torch.no_grad()
    def _copy(self, to: dict[str, Tensor], source: dict[str, Tensor]) -> None:
        if to:
            # one call for all of them
            torch._foreach_copy_(list(to.values()), list(source.values()))  # pyright: ignore[reportPrivateImportUsage]


def _latest(task: Any) -> Step:
    assert task.latest is not None
    return task.latest


def _culprits(step: Step, task: Task) -> str:
    """The terms that made the total what it is, with their values; then the others."""
    weights = task.weighting.weights()
    weighed = {name: float(value) * float(weights[name]) for name, value in step.losses.items() if float(weights[name])}
    bad = [name for name in weighed if not math.isfinite(float(step.losses[name]))]
    bad = bad or [name for name, value in weighed.items() if not math.isfinite(value)]
    shown = {name: f"{name} = {float(value):.4g}" for name, value in step.losses.items()}
    shown |= {name: f"{shown[name]} (weight {float(weights[name]):.4g})" for name in bad if float(weights[name]) != 1}
    others = ", ".join(text for name, text in shown.items() if name not in bad)
    if not bad:
        return f"the sum of {others} is {float(step.total)}"
    return ", ".join(shown[name] for name in bad) + (f" (beside {others})" if others else "")


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    """The names of those that hold a NaN or an infinity."""
    if not tensors:
        return []
    finite = torch.stack([torch.isfinite(value).all() for value in tensors.values()]).tolist()
    return [name for name, good in zip(tensors, finite, strict=True) if not good]


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
