"""What every task does: one training step, one validation step, named losses, one weighting, one optimiser."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric

from quadrat.losses.weighting import Weighting
from quadrat.models.base import Model
from quadrat.structures import Batch, Detections, Schema

_STREAMS = {"train": 0, "val": 1, "test": 1}
"""Which stream of random numbers a stage draws from; a test of the validation split repeats its validation."""


class Schedule(Protocol):
    """The factor of the learning rate at an optimiser step of a run of ``total`` steps."""

    def __call__(self, step: int, total: int) -> float: ...


class Task(LightningModule):
    """A model, the weighting of its losses, the metric it is chosen by, and how it is optimised.

    ``optimizer`` waits for parameter groups; the backbone learns at ``backbone_rate`` times its rate; biases and norms are
    not decayed unless ``decay_norms``. what a step draws at random is a function of (seed, epoch, batch, rank).
    Raises KeyError at once when the weighting's names are not the model's.
    """

    def __init__(
        self,
        model: Model,
        weighting: Weighting,
        metric: Metric,
        schema: Schema,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        backbone_rate: float = 1.0,
        decay_norms: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        weighting.check(model.loss_names)
        # batches are channels-last in memory; weights in the same order save a tenth of a step on a CPU
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.weighting, self.metric = weighting, metric
        self.schema = schema
        self.make_optimizer, self.schedule = optimizer, schedule
        self.backbone_rate, self.decay_norms, self.seed = backbone_rate, decay_norms, seed
        self.evaluation_losses = nn.ModuleDict({name: MeanMetric() for name in model.loss_names})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._draw_from("train", batch_idx)
        losses = self.model.loss(self.model.features(batch), batch)
        total = self.weighting(losses)
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if (self.global_step + 1) % every == 0:  # the step whose row Lightning writes
            self._log_losses(losses, total, len(batch))
        return total

    def _draw_from(self, stage: str, batch_idx: int) -> None:
        place = [self.seed, _STREAMS[stage], self.current_epoch if stage == "train" else 0, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def _log_losses(self, losses: dict[str, Tensor], total: Tensor, size: int) -> None:
        """Everything in one call, and only every few steps: a logged key costs as much as a small training step."""
        weights = self.weighting.weights()
        values = {f"train/loss/{name}": value.detach() for name, value in losses.items()}
        values |= {f"train/weighted/{name}": value.detach() * weights[name] for name, value in losses.items()}
        values |= {f"train/weight/{name}": weights[name] for name in losses}
        values["train/total"] = total.detach()
        for group in self.trainer.optimizers[0].param_groups:
            values[f"train/lr/{group['name']}"] = torch.tensor(float(group["lr"]))
        self.log_dict(values, batch_size=size)
        self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=size)

    def validation_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> list[Detections]:
        return self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> list[Detections]:
        """Losses and detections from one pass over the backbone."""
        self._draw_from(stage, batch_idx)
        features = self.model.features(batch)
        for name, value in self.model.loss(features, batch).items():
            self._mean_loss(name).update(value, weight=len(batch))
        detections = self.model.predict(features, batch)
        self.metric.update(detections, batch.targets)
        return detections

    def _mean_loss(self, name: str) -> MeanMetric:
        mean = self.evaluation_losses[name]
        assert isinstance(mean, MeanMetric)
        return mean

    def on_validation_start(self) -> None:
        self._sync_buffers_in_forward(False)

    def on_validation_end(self) -> None:
        self._sync_buffers_in_forward(True)

    def _sync_buffers_in_forward(self, on: bool) -> None:
        """Several processes: ranks may have different numbers of validation batches, so no forward may wait for another."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            if not on and wrapped.will_sync_module_buffers():
                wrapped._sync_buffers()  # once for all, so that every rank evaluates the same statistics
            wrapped.require_forward_param_sync = on

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = {f"{stage}/{name}": value for name, value in self.metric.compute().items()}
        for name in self.model.loss_names:
            mean = self._mean_loss(name)
            values[f"{stage}/loss/{name}"] = float(mean.compute())
            mean.reset()
        self.metric.reset()
        self.log_dict(values, sync_dist=True)  # alike on every rank already: the metrics have been reduced

    def check_monitor(self, name: str) -> None:
        """Raise ValueError unless validation will log a metric of this name; a loss is no metric to choose by."""
        known = [f"val/{metric}" for metric in self.metric_names()]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
            raise ValueError(f"monitor={name} is no metric of this task; did you mean {' or '.join(close)}?")

    def metric_names(self) -> tuple[str, ...]:
        """The metrics that every validation reports."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schema"] = asdict(self.schema)  # a checkpoint alone can name what it sees

    def configure_optimizers(self) -> Any:
        rate = self.make_optimizer.keywords["lr"]  # pyright: ignore[reportFunctionMemberAccess]
        optimizer = self.make_optimizer(list(self._parameter_groups(rate)))
        total = self._total_steps()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda step: self.schedule(step, total)),
                "interval": "step",
            },
        }

    def _parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Backbone and the rest, decayed and not: always the same groups in the same order, frozen parameters too."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "backbone_norms": [], "heads": [], "heads_norms": []}
        for name, parameter in self.named_parameters():
            part = "backbone" if name.startswith("model.backbone.") else "heads"
            groups[part if parameter.ndim > 1 or self.decay_norms else f"{part}_norms"].append(parameter)
        return [
            {"name": name, "params": parameters}
            | ({"lr": rate * self.backbone_rate} if name.startswith("backbone") else {})
            | ({"weight_decay": 0.0} if name.endswith("_norms") else {})
            for name, parameters in groups.items()
            if parameters
        ]

    def _total_steps(self) -> int:
        """Optimiser steps of the whole run; Lightning's own estimate would load the data first."""
        steps, epochs = self.trainer.max_steps, self.trainer.max_epochs or -1
        ends = [steps] if steps > 0 else []
        if epochs > 0:
            ends.append(epochs * self._steps_per_epoch())
        if not ends:
            raise ValueError("a schedule needs to know where the run ends: give epochs=<n> or trainer.max_steps=<n>")
        return min(ends)

    def _steps_per_epoch(self) -> int:
        trainer = self.trainer
        batches = trainer.datamodule.batches_per_epoch()  # pyright: ignore[reportAttributeAccessIssue]
        limit = trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit or batches)
        return -(-batches // trainer.accumulate_grad_batches)
