"""`quadrat-train replay=<file>`: the step whose loss was not finite once more, with everything looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from quadrat.configs import build, build_task, quiet
from quadrat.runs import Run, read_checkpoint, without_weights

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor, nn

    from quadrat.backbones.base import Backbone
    from quadrat.data.module import DataModule
    from quadrat.structures import Batch, Schema
    from quadrat.tasks.base import Task


SILENT = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class Culprit(NamedTuple):
    """The first module, in the order of the forward pass, that gave out a NaN or an infinity; what went in, what it holds."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    own: tuple[str, ...]


class Replay(NamedTuple):
    """What a step looked at again shows; ``same`` is whether its losses are those of the first time, to the last bit."""

    losses: dict[str, float]
    total: float
    same: bool
    culprit: Culprit | None
    not_finite: tuple[str, ...]
    picture: Path


def replay(file: str | Path) -> Replay:
    """Run the step of a `nan-step-*.pt` again, from its run folder wherever that lies now, and print what it shows.

    Nothing is trained; a picture of the batch is written beside the file. Raises FileNotFoundError when the file or its run is
    not there, and ValueError when it holds no step, or one of another model.
    """
    file = Path(file).expanduser().resolve()
    step = _read(file)
    settings = Run.open(file.parent).config()
    trainer = _trainer(settings.trainer)
    task = _task(settings, step, file).to(trainer.strategy.root_device)
    shown = _run(task, trainer, step, file)
    print(_account(file, step, shown, task))
    return shown


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; replay=<file> takes a nan-step-*.pt from a run folder")
    step = read_checkpoint(file)
    if "place" not in step:
        raise ValueError(f"{file} holds no step to run again; replay=<file> takes a nan-step-*.pt from a run folder")
    return step


def _trainer(config: DictConfig) -> Trainer:
    """Lightning's settings of device and precision, for one process; the CPU where the accelerator is missing."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    quiet()
    alone = OmegaConf.masked_copy(config, [str(key) for key in config if key != "on_nan"])
    alone.update(dict.fromkeys(SILENT, False) | {"devices": 1, "num_nodes": 1, "strategy": "auto"})
    try:
        return build(alone, plugins=[LightningEnvironment()])
    except MisconfigurationException:
        alone.accelerator = "cpu"
        return build(alone, plugins=[LightningEnvironment()])


class _Named(NamedTuple):
    """All that a task wants of its data: the step brings its batch along, and the data set may be elsewhere."""

    schema: Schema


def _task(settings: DictConfig, step: dict[str, Any], file: Path) -> Task:
    """The task with the weights and the weighting from before the step, and as much of it frozen as was then."""
    from quadrat.structures import Schema

    settings.model = without_weights(OmegaConf.to_container(settings.model))
    task = build_task(settings, cast("DataModule", _Named(Schema(**step["schema"]))))
    stored, wanted = step["state_dict"], task.state_dict()
    differing = sorted(
        name
        for name in stored.keys() | {name for name in wanted if name.startswith(("model.", "weighting."))}
        if name not in stored or name not in wanted or stored[name].shape != wanted[name].shape
    )
    if differing:
        raise ValueError(
            f"{file} is of another model than {file.parent / 'config.yaml'} describes: {len(differing)} names or shapes "
            f"differ (first: {differing[:3]})"
        )
    task.load_state_dict(stored, strict=False)
    for name, how in step.get("frozen", {}).items():
        cast("Backbone", task.get_submodule(name)).freeze(*how)
    return task


def _run(task: Task, trainer: Trainer, step: dict[str, Any], file: Path) -> Replay:
    """Forward and backward as the step did them."""
    import torch

    from quadrat.losses.weighting import Moment
    from quadrat.structures import Batch
    from quadrat.tasks.base import draw_from

    stored = Batch.from_plain(step["batch"])
    plugin = trainer.precision_plugin
    task = cast("Task", plugin.convert_module(task))
    batch = plugin.convert_input(stored.to(task.device))
    watch = _Watch(task)
    threads = torch.get_num_threads()
    torch.set_num_threads(step["machine"]["threads"])  # sums are split among them
    try:
        draw_from(step["place"])
        seed, _, epoch, *_ = step["place"]
        task.weighting.begin_step(Moment(seed, epoch, step["step"], step["steps"]))
        with plugin.train_step_context():
            losses, total = task.terms(batch)
        total.backward()
    finally:
        torch.set_num_threads(threads)
    numbers = {name: float(value.detach()) for name, value in losses.items()}
    minimised = float(total.detach())
    return Replay(
        losses=numbers,
        total=minimised,
        same=_alike(numbers | {"": minimised}, step["losses"] | {"": step["total"]}),
        culprit=watch.first,
        not_finite=(*_broken("batch", stored), *_broken("", dict(task.named_parameters()))),
        picture=_draw(stored, task.schema, file.with_suffix(".png")),
    )


def _alike(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return first.keys() == second.keys() and all(
        first[name] == second[name] or (math.isnan(first[name]) and math.isnan(second[name])) for name in first
    )


class _Watch:
    """Remembers the first module whose output is not finite, and what went into it."""

    def __init__(self, task: Task) -> None:
        self.first: Culprit | None = None
        self.inputs: dict[str, tuple[str, ...]] = {}
        for name, module in task.model.named_modules(prefix="model"):
            # before the call: some modules write over their input
            module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True)
            module.register_forward_hook(partial(self._after, name))

    def _before(self, name: str, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        if self.first is None:
            self.inputs[name] = tuple(map(statistics, tensors((*inputs, named))))

    def _after(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        found = list(tensors(output))
        if self.first is None and not all(bool(tensor.isfinite().all()) for tensor in found):
            own = tuple(f"{part} {statistics(value)}" for part, value in module.named_parameters(recurse=False))
            self.first = Culprit(name, type(module).__name__, self.inputs[name], tuple(map(statistics, found)), own)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value made of tuples, lists, dicts and dataclasses."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def statistics(tensor: Tensor) -> str:
    """Shape, kind, range and mean of what is finite, and how much is not."""
    head = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    if not tensor.numel():
        return head
    values = tensor.detach().double()
    finite = values[values.isfinite()]
    inside = (
        f"{finite.min():.4g} to {finite.max():.4g}, mean {finite.mean():.4g}" if finite.numel() else "nothing finite"
    )
    nans, infinities = int(values.isnan().sum()), int(values.isinf().sum())
    outside = "".join(f", {count} {name}" for count, name in ((nans, "nan"), (infinities, "inf")) if count)
    return f"{head} {inside}{outside}"


def _broken(prefix: str, values: Any) -> Iterator[str]:
    """What is not finite in itself, by its name."""
    named = values.items() if isinstance(values, dict) else ((f.name, getattr(values, f.name)) for f in fields(values))
    for name, value in named:
        if not all(bool(tensor.isfinite().all()) for tensor in tensors(value)):
            yield f"{prefix}.{name}".lstrip(".")


def _draw(batch: Batch, schema: Schema, path: Path) -> Path:
    """The pictures of a batch with their true boxes."""
    from quadrat.plots.draw import draw_targets, grid, write_image

    drawn = []
    for image, target in zip(batch.images, batch.targets, strict=True):
        height, width = target.size
        picture = image[:, :height, :width].permute(1, 2, 0).numpy()
        drawn.append(draw_targets(picture, target, schema, zoom=max(1, 320 // max(height, width))))
    write_image(path, grid(drawn, columns=math.ceil(math.sqrt(len(drawn)))))
    return path


# --- what is said of it ---


def _account(file: Path, step: dict[str, Any], shown: Replay, task: Task) -> str:
    of = f", rank {step['rank']} of {step['world_size']}" if step["world_size"] > 1 else ""
    lines = [
        f"\n  step {step['step']} (epoch {step['epoch']}, batch {step['batch_idx']}{of}) of {file.parent}",
        f"  pictures: {', '.join(map(str, step['pictures']))}\n",
        *_terms(shown, task),
        f"\n  {_compared(step, shown, task)}",
        f"  not finite in themselves: {_few(shown.not_finite) or 'neither the weights nor the batch'}\n",
        *_guilty(shown),
        "\n  gradients of the total, by group of parameters:",
        *_gradients(task),
        f"\n  the batch, drawn: {shown.picture}\n",
    ]
    return "\n".join(lines)


def _terms(shown: Replay, task: Task) -> Iterator[str]:
    weights = task.weighting.weights()
    for name, value in shown.losses.items():
        yield f"  {name:<24} {value:>12.6g}  x weight {float(weights[name]):g}"
    yield f"  {'total':<24} {shown.total:>12.6g}"


def _compared(step: dict[str, Any], shown: Replay, task: Task) -> str:
    from quadrat.callbacks.nan_guard import machine

    if shown.same:
        return "the losses are those of the first time, to the last bit"
    now = machine(task.device) | {"threads": step["machine"]["threads"]}
    changes = [
        f"{name} {step['machine'][name]} then, {now[name]} now" for name in now if now[name] != step["machine"][name]
    ]
    why = ", ".join(changes) or "on the same kind of machine: other code, or operations whose order a GPU leaves open"
    return f"the losses DIFFER from the first time ({_listed(step['losses'])}, total {step['total']:.6g}): {why}"


def _listed(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in losses.items())


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _guilty(shown: Replay) -> Iterator[str]:
    bad = [name for name, value in shown.losses.items() if not math.isfinite(value)]
    if shown.culprit is None and bad:
        yield f"  every module's output is finite: {', '.join(bad)} became what it is on the way from there to the loss"
    elif shown.culprit is None and not math.isfinite(shown.total):
        yield "  every module's output is finite, and so is every term: their weighted sum is not"
    elif shown.culprit is None:
        yield "  every module's output and the total are finite this time"
    else:
        yield f"  the first module whose output is not finite: {shown.culprit.name} ({shown.culprit.kind})"
        yield from (f"    in   {text}" for text in shown.culprit.inputs)
        yield from (f"    its  {text}" for text in shown.culprit.own)
        yield from (f"    out  {text}" for text in shown.culprit.outputs)


def _gradients(task: Task) -> Iterator[str]:
    import torch

    for group in task.parameter_groups(rate=1.0):  # only the groups are wanted
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        norm = float(torch.stack([gradient.double().norm() for gradient in gradients]).norm()) if gradients else 0.0
        bad = sum(not bool(gradient.isfinite().all()) for gradient in gradients)
        beside = f", not finite in {bad} of {len(gradients)} parameters" if bad else ""
        yield f"    {group['name']:<16} norm {norm:.4g}{beside}"
