"""What every model promises, as assertions: `assert_model` runs them all, each is there alone too.

Pictures come from `shapes`; 64 x 64 pixels unless a test needs more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quadrat.data.shapes import Shapes
from quadrat.models.base import Model
from quadrat.structures import IGNORE_INDEX, Batch, Detections, Sample, Schema, SemanticMap, Targets

CLASSES = 6
SCHEMA = Schema(classes=("circle", "square", "triangle", "star", "cross", "person"))
SEED = 3


@cache
def drawn(count: int = 2, size: tuple[int, int] = (64, 64), objects: tuple[int, int] = (2, 4)) -> tuple[Sample, ...]:
    """Pictures with objects."""
    source = Shapes("contract", count=count, size=size, objects=objects, empty=0.0)
    return tuple(source[index] for index in range(count))


def without_objects(sample: Sample) -> Sample:
    """The same picture, whose truth says that nothing is there."""
    return Sample(sample.image, sample.targets.rows([]))


def only_ignored(sample: Sample) -> Sample:
    """The same picture and objects, all of them difficult."""
    return Sample(sample.image, replace(sample.targets, ignore=torch.ones(len(sample.targets), dtype=torch.bool)))


def awkward(samples: Sequence[Sample]) -> dict[str, Batch]:
    """Batches of two pictures in which something is missing, by what it is."""
    some, other = samples[:2]
    return {
        "one without objects": Batch.collate([some, without_objects(other)]),
        "none with objects": Batch.collate([without_objects(some), without_objects(other)]),
        "one with nothing but ignored objects": Batch.collate([some, only_ignored(other)]),
        "nothing but ignored objects": Batch.collate([only_ignored(some), only_ignored(other)]),
    }


def losses_of(model: Model, batch: Batch, *, seed: int = SEED) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.loss(model.features(batch), batch)


@torch.no_grad()
def detections_of(model: Model, batch: Batch) -> list[Detections]:
    return model.predict(model.features(batch), batch)


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """Leave a model as it was found: mode, statistics of its norms, gradients."""
    mode, state = model.training, {name: value.clone() for name, value in model.state_dict().items()}
    yield
    model.load_state_dict(state)
    model.train(mode).zero_grad(set_to_none=True)


def assert_model(model: Model, names: Iterable[str], samples: Sequence[Sample] = (), *, classes: int = CLASSES) -> None:
    """Everything below; ``names`` are the keys of the model's loss config, ``samples`` two pictures of one size."""
    samples = samples or drawn()
    batch = Batch.collate(samples)
    with standing_still(model):
        for training in (True, False):
            model.train(training)
            assert_terms_and_detections(model, names, samples, classes=classes)
            assert_shared(model, batch)
            assert_seeded(model, batch)
        model.eval()
        assert_batched_equals_single(model, samples)
        assert_object_padding_inert(model, batch)
        assert_half_precision(model, batch, classes=classes)


def assert_terms_and_detections(model: Model, names: Iterable[str], samples: Sequence[Sample], *, classes: int) -> None:
    """In the mode that the model is in: of whole batches, and of those in which something is missing."""
    batch = Batch.collate(samples)
    assert_losses(model, batch, names)
    assert_gradients(model, batch)
    assert_detections(model, batch, classes=classes)
    for what, missing in awkward(samples).items():
        assert_losses(model, missing, names, what)
        assert_detections(model, missing, classes=classes)


def assert_semantic_model(
    model: Model, names: Iterable[str], samples: Sequence[Sample] = (), *, classes: int = CLASSES + 1
) -> None:
    """The like for a model that gives every pixel a class; ``classes`` count the background."""
    samples = samples or drawn()
    batch = Batch.collate(samples)
    unlabelled = {
        "one without a labelled pixel": Batch.collate([samples[0], without_labels(samples[1])]),
        "no labelled pixel": Batch.collate([without_labels(sample) for sample in samples[:2]]),
    }
    with standing_still(model):
        for training in (True, False):
            model.train(training)
            assert_losses(model, batch, names)
            assert_gradients(model, batch, unlabelled)
            assert_shared(model, batch)
            assert_maps(model, batch, classes=classes)
            assert_readings(model, batch)
            for what, missing in unlabelled.items():
                assert_losses(model, missing, names, what)
            first, again = losses_of(model, batch), losses_of(model, batch)
            assert {n: v.item() for n, v in first.items()} == {n: v.item() for n, v in again.items()}
        model.eval()
        assert_batched_maps_equal_single(model, samples)
        assert_half_precision_pixels(model, batch, classes=classes)


def assert_one_object_model(
    model: Model,
    names: Iterable[str],
    samples: Sequence[Sample] = (),
    *,
    classes: int = CLASSES,
    drawn_at_random: bool = False,
) -> None:
    """The like for a model of one object a picture, which sees something in every picture."""
    samples = samples or drawn()
    batch = Batch.collate(samples)
    with standing_still(model):
        for training in (True, False):
            model.train(training)
            assert_terms_and_detections(model, names, samples, classes=classes)
            if model.shared():
                assert_shared(model, batch)
        model.eval()
        if drawn_at_random:  # in training, what was measured a moment ago differs
            assert_seeded(model, batch)
        assert_batched_equals_single(model, samples)
        assert_half_precision(model, batch, classes=classes)


ASKING = (
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_numpy", "masked_select", "unique_dim", "equal"),
    *("_unique2", "unique_consecutive", "lift_fresh", "_to_copy_from_host"),
)
"""Operators after which the host waits for the device; `lift_fresh` is a tensor made from Python numbers in the step."""


class Operators(TorchDispatchMode):
    """Counts what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("index", "index_put", "index_put_") and any(_is_mask(index) for index in args[1]):
            name = "nonzero"  # what a boolean index becomes
        if name == "repeat_interleave":
            name = "nonzero" if "output_size" not in (kwargs or {}) else name  # its length is in the data
        self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def counted(model: Model, batch: Batch) -> Counter[str]:
    losses_of(model, batch)  # constants are made once
    model.zero_grad(set_to_none=True)
    with Operators() as operators:
        torch.stack(list(model.loss(model.features(batch), batch).values())).sum().backward()
    return operators.counts


def assert_asks_nothing(model: Model, batch: Batch) -> None:
    """In a training step the host never waits for the device."""
    counts = counted(model, batch)
    assert {name: counts[name] for name in ASKING if counts[name]} == {}


def without_labels(sample: Sample) -> Sample:
    """The same picture, none of whose pixels has a class."""
    assert sample.targets.semantic is not None
    nothing = torch.full_like(sample.targets.semantic, IGNORE_INDEX)
    return Sample(sample.image, replace(sample.targets, semantic=nothing))


@torch.no_grad()
def maps_of(model: Model, batch: Batch) -> list[SemanticMap]:
    return model.predict(model.features(batch), batch)


def assert_maps(model: Model, batch: Batch, *, classes: int) -> None:
    """One map an image, of its size, of classes 0..S-1."""
    results = maps_of(model, batch)
    assert len(results) == len(batch)
    for found, target in zip(results, batch.targets, strict=True):
        assert found.size == target.size
        assert found.labels.dtype == torch.uint8
        assert int(found.labels.max()) < classes


@torch.no_grad()
def assert_readings(model: Model, batch: Batch) -> None:
    """The readings are those it names: finite scalars."""
    found = model.readings(model.features(batch), batch)
    assert sorted(found) == sorted(model.reading_names)
    assert all(value.shape == () and value.isfinite() for value in found.values())


def assert_batched_maps_equal_single(model: Model, samples: Sequence[Sample]) -> None:
    """In evaluation a picture's map does not depend on its neighbours: all but a tied pixel or two."""
    together = maps_of(model, Batch.collate(samples))
    for sample, found in zip(samples, together, strict=True):
        alone = maps_of(model, Batch.collate([sample]))[0]
        assert (found.labels == alone.labels).float().mean() > 0.999


def assert_half_precision_pixels(model: Model, batch: Batch, *, classes: int) -> None:
    """bfloat16 autocast: float32 losses near the exact ones, and proper maps."""
    exact = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
        assert_maps(model, batch, classes=classes)
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert abs(value.item() - exact[name].item()) < 0.1 + 0.2 * exact[name].item(), name


def assert_losses(model: Model, batch: Batch, names: Iterable[str], what: str = "objects") -> None:
    """The terms are those of ``loss_names`` and of the loss config: finite scalars that can be learned from."""
    losses = losses_of(model, batch)
    assert sorted(losses) == sorted(model.loss_names) == sorted(names)
    for name, value in losses.items():
        assert value.shape == (), f"{name}: {tuple(value.shape)} is no scalar"
        assert value.isfinite(), f"{name} with {what} is {value}"
        assert value >= 0, f"{name} with {what} is {value}"
        assert value.requires_grad, f"{name} with {what} trains nothing"


def assert_gradients(model: Model, batch: Batch, lacking: Mapping[str, Batch] | None = None) -> None:
    """The sum of the terms reaches every parameter that is not frozen, finite and, with objects in the picture, not 0.

    A batch in which something is missing reaches them all as well (no None, which DDP would wait for), perhaps with 0.
    """
    pairs = list(zip(model.named_parameters(), _gradients(model, batch), strict=True))
    learning = {name: gradient for (name, parameter), gradient in pairs if parameter.requires_grad}
    assert [name for name, gradient in learning.items() if gradient is None] == []
    assert [name for name, gradient in learning.items() if not gradient.isfinite().all()] == []
    assert [name for name, gradient in learning.items() if not gradient.any()] == []
    if lacking is None:
        lacking = awkward([Sample(_picture(batch, i), batch.targets[i]) for i in range(len(batch))])
    for what, missing in lacking.items():
        gradients = zip(model.named_parameters(), _gradients(model, missing), strict=True)
        unreached = [name for (name, p), gradient in gradients if p.requires_grad and gradient is None]
        assert unreached == [], what


def assert_shared(model: Model, batch: Batch) -> None:
    """Every term asks something of every part that the model says they share."""
    parts = model.shared()
    own = {id(module) for module in model.modules()}
    assert parts
    assert all(id(part) in own for part in parts)
    for name, value in losses_of(model, batch).items():
        for part in parts:
            parameters = [parameter for parameter in part.parameters() if parameter.requires_grad]
            if not parameters:  # a neck that only picks maps
                continue
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in found), (name, part)


def _gradients(model: Model, batch: Batch) -> list[Tensor | None]:
    model.zero_grad(set_to_none=True)
    torch.stack(list(losses_of(model, batch).values())).sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def _picture(batch: Batch, index: int) -> np.ndarray:
    height, width = batch.targets[index].size
    return batch.images[index, :, :height, :width].permute(1, 2, 0).numpy()


def assert_detections(model: Model, batch: Batch, *, classes: int = CLASSES) -> None:
    """One result an image, in its frame and inside it, best first, labels 1..C."""
    results = detections_of(model, batch)
    assert len(results) == len(batch)
    for found, target in zip(results, batch.targets, strict=True):
        assert found.size == target.size
        assert found.boxes.shape == (len(found), 4)
        assert found.scores.shape == found.labels.shape == (len(found),)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        assert found.labels.dtype == torch.int64
        assert found.boxes.isfinite().all()
        height, width = target.size
        assert (found.boxes >= 0).all()
        assert (found.boxes <= torch.tensor([width, height, width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.scores.diff() <= 0).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert ((found.labels >= 1) & (found.labels <= classes)).all()


def assert_batched_equals_single(model: Model, samples: Sequence[Sample]) -> None:
    """In evaluation a picture's result does not depend on its neighbours."""
    together = detections_of(model, Batch.collate(samples))
    for sample, found in zip(samples, together, strict=True):
        alone = detections_of(model, Batch.collate([sample]))[0]
        assert len(found) == len(alone) > 0, "nothing was found, so nothing was compared"
        torch.testing.assert_close(found.scores, alone.scores, atol=1e-4, rtol=0)
        assert found.labels.tolist() == alone.labels.tolist()
        torch.testing.assert_close(found.boxes, alone.boxes, atol=1e-2, rtol=0)  # pixels: 1e-4 of the picture


def assert_seeded(model: Model, batch: Batch) -> None:
    """The same seed draws the same; where something is drawn at all, another seed draws something else."""
    first, again, other = (losses_of(model, batch, seed=seed) for seed in (SEED, SEED, SEED + 1))
    assert {n: v.item() for n, v in first.items()} == {n: v.item() for n, v in again.items()}
    assert any(first[name] != other[name] for name in first), "another seed changed nothing: is anything drawn?"


def padded(batch: Batch, extra: int) -> Batch:
    """The same batch with ``extra`` more rows of padding behind the objects of every image."""

    def longer(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows.new_zeros((len(rows), extra, *rows.shape[2:]))], dim=1)

    fields = ("boxes", "labels", "ignore", "valid")
    return replace(batch, **{name: longer(getattr(batch, name)) for name in fields})


@contextmanager
def keys_by_place() -> Iterator[None]:
    """Let `ops.sample` draw keys that are a function of image and row, whatever the number of rows."""

    def rand(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
        table = np.random.default_rng(0).random((100_000, 16), dtype=np.float32)
        return torch.from_numpy(table[: shape[1], : shape[0]].T.copy()).to(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quadrat.ops.sample.torch.rand", rand)
        yield


def assert_object_padding_inert(model: Model, batch: Batch) -> None:
    """Rows of padding behind the objects change no loss by more than the order of its sum.

    The random keys of sampling are held: torch draws other ones for another number of rows.
    """
    with keys_by_place():
        plain, longer = losses_of(model, batch), losses_of(model, padded(batch, 7))
    for name, value in plain.items():
        assert longer[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name


def assert_half_precision(model: Model, batch: Batch, *, classes: int = CLASSES) -> None:
    """bfloat16 autocast: float32 losses near the exact ones, and proper detections."""
    exact = losses_of(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
        assert_detections(model, batch, classes=classes)
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
        assert abs(value.item() - exact[name].item()) < 0.1 + 0.2 * exact[name].item(), name


def batch_of(*truth: dict, size: tuple[int, int] = (64, 64), original_size: tuple[int, int] | None = None) -> Batch:
    """Black pictures of one size with this truth each: ``boxes``, ``labels`` (all 1), ``ignore`` (none)."""
    samples = []
    for image_id, fields in enumerate(truth):
        boxes = fields.get("boxes", [])
        labels = fields.get("labels", [1] * len(boxes))
        target = Targets.make(
            boxes, labels, size, image_id, ignore=fields.get("ignore"), original_size=original_size or size
        )
        samples.append(Sample(np.zeros((*size, 3), dtype=np.uint8), target))
    return Batch.collate(samples)
