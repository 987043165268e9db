"""The model of a run, ready to look at pictures of no data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from quadrat.configs import build
from quadrat.runs import Run, load_weights, read_checkpoint, without_weights

if TYPE_CHECKING:
    import torch

    from quadrat.data.augment import Augment
    from quadrat.models.base import Model
    from quadrat.structures import Batch, Result, Schema


def load(
    run: Run, checkpoint: str = "best", device: str | None = None, changed: Callable[[Any], Any] = lambda model: model
) -> tuple[Model, Schema, Callable[[Any], Batch]]:
    """The model of a run with its weights, its classes as the checkpoint names them, and what makes a batch of a picture
    (H, W, 3) as the run's evaluation would. ``changed`` may give the model's config other values."""
    import torch

    from quadrat.structures import Schema

    settings, path = run.config(), run.checkpoint(checkpoint)
    stored = read_checkpoint(path)["schema"]
    schema = Schema(**{name: _tuples(value) for name, value in stored.items()})
    plain = changed(without_weights(OmegaConf.to_container(settings.model)))
    model = build(plain, schema=schema)
    load_weights(model, path)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    known = build(settings.data.get("proposals"))
    find = None if known is None else known.find
    augment = build(settings.data.eval_augment)
    return model.eval().to(place), schema, partial(prepare, augment, place, settings.data.divisor, find)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def prepare(
    augment: Augment,
    device: torch.device,
    divisor: int,
    find: Callable[[Any], torch.Tensor] | None,
    image: Any,
) -> Batch:
    """One uint8 RGB picture (H, W, 3) as a batch; ``find`` gives the regions that a model is to look at."""
    from quadrat.structures import Batch, Sample, Targets

    size = (int(image.shape[0]), int(image.shape[1]))
    regions = None if find is None else find(image)
    sample = augment(Sample(image, Targets.make([], [], size, "picture", proposals=regions)), seed=0)
    return Batch.collate([sample], divisor=divisor).to(device)


def see(model: Model, batch: Batch) -> Result:
    """What a model sees in the one picture of a batch, in the picture's own frame."""
    import torch

    with torch.inference_mode():
        return model.predict(model.features(batch), batch)[0].cpu().rescaled(batch.targets[0].original_size)
