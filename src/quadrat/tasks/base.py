"""What every task does: one training step, one validation step, named losses, one weighting, one optimiser."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, Metric

from quadrat.losses.weighting import Moment, Weighting
from quadrat.models.base import FitsLate, Model
from quadrat.structures import Batch, Result, Schema
from quadrat.tasks.backward import Backward
from quadrat.tasks.late import check_late, fit_late, limited, see_to_last_validation
from quadrat.tasks.schedules import Schedule

_STREAMS = {"train": 0, "val": 1, "test": 1}
"""Which stream of random numbers a stage draws from; a test of the validation split repeats its validation."""


class Step(NamedTuple):
    """What a training step leaves for those who watch it: what its randomness is a function of, its terms, their total."""

    place: list[int]
    losses: dict[str, Tensor]
    total: Tensor


def draw_from(place: Sequence[int]) -> None:
    """From here on, what is drawn at random is a function of these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


def _on_host(values: dict[str, Tensor]) -> dict[str, float]:
    """One look at the device for all of them."""
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))


def _mean(means: nn.ModuleDict, name: str) -> MeanMetric:
    mean = means[name]
    assert isinstance(mean, MeanMetric)
    return mean


class Task(LightningModule):
    """A model, the weighting of its losses, the metric it is chosen by, and how it is optimised.

    ``optimizer`` waits for parameter groups; the backbone learns at ``backbone_rate`` times its rate; biases and norms are
    not decayed unless ``decay_norms``. Every ``gradients_every`` optimiser steps (0: never) the log gets the length of each raw
    term's gradient on the shared parameters, and the cosines between them. What a step draws at random is a function of
    (seed, epoch, batch, rank).
    Raises KeyError at once when the weighting's names are not the model's, ValueError when its results are of another task.
    """

    result: type[Result]
    """What a model of this task sees in a picture."""

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
        gradients_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if model.result is not self.result:
            raise ValueError(
                f"{type(self).__name__} wants a model that gives {self.result.__name__}, {type(model).__name__} gives "
                f"{model.result.__name__}: choose task= and model= that belong together (task=detection monitor=val/map, "
                f"task=segmentation monitor=val/miou, task=localization monitor=val/top1, task=pose monitor=val/pdj)"
            )
        weighting.check(model.loss_names)
        # batches are channels-last in memory; weights in the same order save a tenth of a step on a CPU
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.weighting, self.metric = weighting, metric
        self.schema = schema
        self.make_optimizer, self.schedule = optimizer, schedule
        self.backbone_rate, self.decay_norms, self.seed = backbone_rate, decay_norms, seed
        self.evaluation_losses = nn.ModuleDict({name: MeanMetric() for name in model.loss_names})
        self.evaluation_readings = nn.ModuleDict({name: MeanMetric() for name in model.reading_names})
        self.gradients = Backward(model, weighting, every=gradients_every)
        self.epoch_sums: Tensor | None = None
        self.total_steps = 1
        self.latest: Step | None = None

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.gradients.prepare(sharded=self.device_mesh is not None, batches=self.trainer.accumulate_grad_batches)
            if isinstance(self.model, FitsLate):
                check_late(self.trainer, sharded=self.device_mesh is not None)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        place = self._draw_from("train", batch_idx)
        self.weighting.begin_step(Moment(self.seed, self.current_epoch, self.global_step, self.total_steps))
        losses, total = self.terms(batch)
        self.latest = Step(place, {name: value.detach() for name, value in losses.items()}, total.detach())
        self.gradients.expect(batch, losses)
        if self._due(self.trainer.log_every_n_steps):  # pyright: ignore[reportAttributeAccessIssue]
            self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The total's gradient, or what the weighting makes of those of single terms, which then is the total's."""
        assert self.latest is not None
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        one = torch.ones_like(loss)
        scale = one if scaler is None else scaler.scale(one)
        self.gradients(loss, scale, share=1 / self.trainer.accumulate_grad_batches, step=self.global_step)
        numbers = {} if self._accumulating() else self.gradients.finish(scale)
        if self.weighting.sees == "all":
            weights = self.weighting.weights()
            weighed = [torch.where(weights[n] != 0, v * weights[n], 0.0) for n, v in self.latest.losses.items()]
            self.latest = self.latest._replace(total=torch.stack(weighed).sum())
        self._add_to_means(self.latest.losses, self.latest.total)
        if self._due(self.trainer.log_every_n_steps):  # pyright: ignore[reportAttributeAccessIssue]
            self._log_losses(self.latest.losses, self.latest.total, numbers)
        elif numbers:
            self._log_gradients(numbers)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.weighting.again:
            self.weighting.see_again(self._losses_again())

    def _losses_again(self) -> dict[str, Tensor]:
        """The terms of the same batch with the same random numbers after the step, without leaving a trace in the norms."""
        assert self.latest is not None
        buffers = list(self.model.buffers())
        before = [buffer.clone() for buffer in buffers]
        draw_from(self.latest.place)
        batch = self.gradients.batch
        assert batch is not None
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            losses = self.model.loss(self.model.features(batch), batch)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return losses

    def _accumulating(self) -> bool:
        return self.trainer.fit_loop.epoch_loop._should_accumulate()

    def _due(self, every: int) -> bool:
        """Is this the last batch of every so many optimiser steps?"""
        return every > 0 and (self.global_step + 1) % every == 0 and not self._accumulating()

    def terms(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The raw losses of a batch, and what is minimised."""
        losses = self.model.loss(self.model.features(batch), batch)
        return losses, self.weighting(losses)

    def _draw_from(self, stage: str, batch_idx: int) -> list[int]:
        place = [self.seed, _STREAMS[stage], self.current_epoch if stage == "train" else 0, batch_idx, self.global_rank]
        draw_from(place)
        return place

    def _log_losses(self, losses: dict[str, Tensor], total: Tensor, more: dict[str, Tensor]) -> None:
        """Everything in one row and one look at the device, and only every few steps."""
        weights = self.weighting.weights()
        values = {f"train/loss/{name}": value.detach() for name, value in losses.items()}
        values |= {f"train/weighted/{name}": value.detach() * weights[name] for name, value in losses.items()}
        values |= {f"train/weight/{name}": weights[name] for name in losses}
        values |= {"train/total": total.detach(), **{f"train/{name}": value for name, value in more.items()}}
        rates = {f"train/lr/{group['name']}": float(group["lr"]) for group in self.trainer.optimizers[0].param_groups}
        self._write_row(_on_host(values) | rates, step=self.global_step)

    def _log_gradients(self, numbers: dict[str, Tensor]) -> None:
        self._write_row(_on_host({f"train/{name}": value for name, value in numbers.items()}), step=self.global_step)

    def _write_row(self, numbers: dict[str, float], step: int) -> None:
        """Straight to the loggers: Lightning writes a row after the hook in which a run is saved and stopped, too late."""
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **numbers}, step=step)

    def _add_to_means(self, losses: dict[str, Tensor], total: Tensor) -> None:
        """Sums of every term, of the total, and of the steps that had a finite one."""
        values = [*(losses[name] for name in self.model.loss_names), total, torch.ones_like(total)]
        terms = torch.where(total.isfinite(), torch.stack(values), 0.0).detach().double()
        self.epoch_sums = terms if self.epoch_sums is None else self.epoch_sums.to(terms.device) + terms

    def on_train_epoch_end(self) -> None:
        """The mean of every term over the epoch, of all ranks."""
        if self.epoch_sums is None:
            return
        sums = self.trainer.strategy.reduce(self.epoch_sums, reduce_op="sum")
        means = sums[:-1] / sums[-1].clamp(min=1)
        named = dict(zip([*self.model.loss_names, "total"], means.tolist(), strict=True))
        self._write_row({f"train/mean/{name}": value for name, value in named.items()}, step=self.global_step - 1)
        self.weighting.end_epoch(named)
        self.epoch_sums = None

    def on_train_start(self) -> None:
        if isinstance(self.model, FitsLate):
            see_to_last_validation(self.trainer)  # a run may go on inside its last epoch

    def on_train_epoch_start(self) -> None:
        if isinstance(self.model, FitsLate):
            self.model.unfit()
            see_to_last_validation(self.trainer)

    def on_validation_epoch_start(self) -> None:
        """After the callbacks' hooks of this name, in which averaged weights take the place of the latest."""
        if not isinstance(self.model, FitsLate) or self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        if self.global_step >= self.total_steps:
            fit_late(self.model, self.trainer)
        else:
            self.model.unfit()  # averaged weights keep what an earlier end of the run has fitted

    def validation_step(self, batch: Batch, batch_idx: int) -> Sequence[Result]:
        return self._evaluate("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> Sequence[Result]:
        return self._evaluate("test", batch, batch_idx)

    def _evaluate(self, stage: str, batch: Batch, batch_idx: int) -> Sequence[Result]:
        """Losses and results from one pass over the backbone."""
        self._draw_from(stage, batch_idx)
        features = self.model.features(batch)
        for name, value in self.model.loss(features, batch).items():
            _mean(self.evaluation_losses, name).update(value, weight=len(batch))
        for name, value in self.model.readings(features, batch).items():
            _mean(self.evaluation_readings, name).update(value, weight=len(batch))
        results = self.model.predict(features, batch)
        self.metric.update(results, batch.targets)
        return results

    def on_validation_start(self) -> None:
        self._sync_buffers_in_forward(False)
        self._gather_shards(True)

    def on_validation_end(self) -> None:
        self._sync_buffers_in_forward(True)
        self._gather_shards(False)

    def _sync_buffers_in_forward(self, on: bool) -> None:
        """Several processes: ranks may have different numbers of validation batches, so no forward may wait for another."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            if not on and wrapped.will_sync_module_buffers():
                wrapped._sync_buffers()  # once for all, so that every rank evaluates the same statistics
            wrapped.require_forward_param_sync = on

    def _gather_shards(self, gathered: bool) -> None:
        """The like for sharded weights: each rank holds all of them while it validates."""
        if self.device_mesh is None:
            return
        shards: list[Any] = list(self.model.shards())
        for shard in shards:
            shard.set_reshard_after_forward(not gathered, recurse=False)
        shards.append(self.model)
        for shard in shards:
            shard.unshard() if gathered else shard.reshard()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def _log_evaluation(self, stage: str) -> None:
        values = {f"{stage}/{name}": value for name, value in self.metric.compute().items()}
        for prefix, means in ((f"{stage}/loss", self.evaluation_losses), (stage, self.evaluation_readings)):
            for name in means:
                mean = _mean(means, name)
                values[f"{prefix}/{name}"] = float(mean.compute())
                mean.reset()
        self.metric.reset()
        self.log_dict(values, sync_dist=True)  # alike on every rank already: the metrics have been reduced

    def check_monitor(self, name: str) -> None:
        """Raise ValueError unless validation will log a metric of this name to choose by, which no loss and no error is."""
        known = [f"val/{metric}" for metric in self.metric_names()]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
            raise ValueError(
                f"monitor={name} is no metric of this task; did you mean {' or '.join(close)}? "
                f"(a run is chosen by the largest value of a score, not by a loss or an error)"
            )

    def figures(self) -> dict[str, np.ndarray]:
        """Pictures uint8 RGB of what was last evaluated, by name; called on every rank while the metric is full."""
        return {}

    def metric_names(self) -> tuple[str, ...]:
        """The metrics that every validation reports."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["schema"] = asdict(self.schema)  # a checkpoint alone can name what it sees
        if self.epoch_sums is not None:
            checkpoint["epoch_sums"] = self._sums_of_all_ranks(self.epoch_sums).cpu()

    def _sums_of_all_ranks(self, own: Tensor) -> Tensor:
        """Each rank goes on with its own, to the last bit."""
        if self.trainer.world_size == 1:
            return own[None]
        sums = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(sums, own)
        return torch.stack(sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = checkpoint.get("epoch_sums")
        if sums is not None:
            own = sums[self.global_rank] if len(sums) == self.trainer.world_size else sums.mean(dim=0)
            self.epoch_sums = own

    def configure_model(self) -> None:
        """Under `trainer=ddp_sharded`, give each rank its share of every part (FSDP2)."""
        if self.device_mesh is None:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        if isinstance(self.model, FSDPModule):
            return
        self.model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
        for part in self.model.shards():
            fully_shard(part, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        for method in ("features", "loss", "predict"):  # what a task calls in the place of forward
            register_fsdp_forward_method(self.model, method)

    def configure_optimizers(self) -> Any:
        rate = self.make_optimizer.keywords["lr"]  # pyright: ignore[reportFunctionMemberAccess]
        optimizer = self.make_optimizer(list(self.parameter_groups(rate)))
        self.total_steps = total = self._total_steps()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda step: self.schedule(step, total)),
                "interval": "step",
            },
        }

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """Backbone and the rest, decayed and not, and what the weighting learns: always the same groups in the same order,
        frozen parameters too."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "backbone_norms": [], "heads": [], "heads_norms": []}
        for name, parameter in self.model.named_parameters(prefix="model"):
            part = "backbone" if "backbone" in name.split(".") else "heads"
            groups[part if parameter.ndim > 1 or self.decay_norms else f"{part}_norms"].append(parameter)
        return [
            {"name": name, "params": parameters}
            | ({"lr": rate * self.backbone_rate} if name.startswith("backbone") else {})
            | ({"weight_decay": 0.0} if name.endswith("_norms") else {})
            for name, parameters in groups.items()
            if parameters
        ] + [
            {"name": "weighting", "params": [own], "lr": rate * self.weighting.rate, "weight_decay": 0.0}
            for own in self.weighting.parameters()
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
        batches = limited(trainer.datamodule.batches_per_epoch(), trainer)  # pyright: ignore[reportAttributeAccessIssue]
        return -(-batches // trainer.accumulate_grad_batches)
