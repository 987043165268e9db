"""Every pixel classified from the window around it: the sliding window, and the forms that compute it without waste."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.window import WindowNet
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.models.labelling import Argmax, Labelling, semantic_maps, semantic_of
from quadrat.ops.windows import surround, windows_at
from quadrat.structures import IGNORE_INDEX, Batch, Schema, SemanticMap


class Places(NamedTuple):
    """Pixels of a batch: ``image``, ``y``, ``x``, each (N,)."""

    image: Tensor
    y: Tensor
    x: Tensor


class Sampler(Protocol):
    """From semantic maps (B, H, W) to ``count`` of their pixels that have a class, drawn with replacement from the whole batch.

    Where no pixel has one, any are drawn: they cost nothing.
    """

    def __call__(self, semantic: Tensor, count: int) -> Places: ...


class Natural:
    """Every labelled pixel of the batch is as likely as any other: classes come as often as they are."""

    def __call__(self, semantic: Tensor, count: int) -> Places:
        return _drawn((semantic != IGNORE_INDEX).double(), count)


class Balanced:
    """Every class that the batch shows is as likely as any other, and within it every pixel."""

    def __call__(self, semantic: Tensor, count: int) -> Places:
        labels = semantic.flatten().long()
        pixels = torch.zeros(IGNORE_INDEX + 1, dtype=torch.float64, device=labels.device)
        pixels.scatter_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        weights = pixels.clamp(min=1).reciprocal()[labels] * (labels != IGNORE_INDEX)
        return _drawn(weights.view(semantic.shape), count)


def _drawn(weights: Tensor, count: int) -> Places:
    """Places drawn in proportion to ``weights`` (B, H, W) by inverting their cumulated sum; any places where all are 0."""
    _, height, width = weights.shape
    cumulated = weights.flatten().cumsum(0)
    keys = torch.rand(count, dtype=torch.float64, device=weights.device) * cumulated[-1]
    index = torch.searchsorted(cumulated, keys, right=True).clamp(max=weights.numel() - 1)
    inside = index % (height * width)
    return Places(index // (height * width), inside // width, inside % width)


class Scanner(Protocol):
    """Scores (B, S, H, W) of every pixel from a net and pictures surrounded by its margin."""

    def __call__(self, net: WindowNet, surrounded: Tensor) -> Tensor: ...


class Loop:
    """Cut the window of every ``stride``-th pixel out and classify it, ``chunk`` windows at a time.

    What lies between is filled bilinearly. This is the sliding window as the lecture draws it, and as slow.
    """

    def __init__(self, stride: int = 1, chunk: int = 256) -> None:
        if stride < 1 or chunk < 1:
            raise ValueError(f"the stride and the chunk of a loop are 1 or more, got {stride} and {chunk}")
        self.stride, self.chunk = stride, chunk

    def __call__(self, net: WindowNet, surrounded: Tensor) -> Tensor:
        height, width = (length - net.size + 1 for length in surrounded.shape[2:])
        image = torch.arange(len(surrounded), device=surrounded.device)
        rows, columns = (self._every(length, surrounded.device) for length in (height, width))
        places = [axis.flatten() for axis in torch.meshgrid(image, rows, columns, indexing="ij")]
        chunks = zip(*(axis.split(self.chunk) for axis in places), strict=True)
        scores = torch.cat([net(windows_at(surrounded, i, y, x, net.size)) for i, y, x in chunks])
        planes = scores.view(len(image), len(rows), len(columns), -1).permute(0, 3, 1, 2)
        if self.stride == 1:
            return planes
        size = (len(rows) * self.stride, len(columns) * self.stride)
        return functional.interpolate(planes, size=size, mode="bilinear")[:, :, :height, :width]

    def _every(self, length: int, device: torch.device) -> Tensor:
        """The middle of every ``stride`` pixels; the last pixel where the middle lies outside."""
        cells = -(-length // self.stride)
        return (torch.arange(cells, device=device) * self.stride + self.stride // 2).clamp(max=length - 1)


class Dilated:
    """The whole picture in one pass (`WindowNet.dense`)."""

    def __call__(self, net: WindowNet, surrounded: Tensor) -> Tensor:
        return net.dense(surrounded)


class Stitched:
    """Shift and stitch: one strided pass for every offset, their scores interlaced; slower than `Dilated`, in less memory."""

    def __call__(self, net: WindowNet, surrounded: Tensor) -> Tensor:
        height, width = (length - net.size + 1 for length in surrounded.shape[2:])
        stride = net.stride
        offsets = list(product(range(min(stride, height)), range(min(stride, width))))
        parts = [net.strided(surrounded, offset) for offset in offsets]
        scores = parts[0].new_empty((*parts[0].shape[:2], height, width))
        for (y, x), part in zip(offsets, parts, strict=True):
            scores[:, :, y::stride, x::stride] = part
        return scores


class Patches(Model):
    """A classifier of windows: trained on ``samples`` pixels a picture, which ``sampler`` draws from the batch.

    The criteria see the drawn pixels as scores (1, S, N, 1), in training and evaluation alike; a batch without a labelled pixel
    costs 0. ``scanner`` scores every pixel for prediction, ``labelling`` makes classes of scores. Pictures are continued by their
    mirror image.
    """

    result = SemanticMap

    def __init__(
        self,
        net: WindowNet,
        criteria: Mapping[str, nn.Module],
        *,
        samples: int,
        sampler: Sampler,
        scanner: Scanner,
        labelling: Labelling | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.net, self.criteria = net, nn.ModuleDict(criteria)
        self.samples, self.sampler, self.scanner = samples, sampler, scanner
        self.labelling = labelling or Argmax()
        self.loss_names = tuple(criteria)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """``surrounded`` (B, 3, H + P - 1, W + P - 1): the pictures as windows are cut from them."""
        images = self.normalise(batch.images, batch.sizes)
        return {"surrounded": surround(images, batch.sizes, self.net.margin)}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The criteria of pixels drawn anew."""
        semantic = semantic_of(batch)
        places = self.sampler(semantic, self.samples * len(batch))
        scores = self.net(windows_at(features["surrounded"], *places, self.net.size))
        target, weights = (
            None if plane is None else plane[places.image, places.y, places.x][None, :, None]
            for plane in (semantic, batch.pixel_weights)
        )
        return {
            name: criterion(scores.T[None, :, :, None], target, weights) for name, criterion in self.criteria.items()
        }

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[SemanticMap]:
        """The class of every pixel of each image, without the padding."""
        return semantic_maps(self.scanner(self.net, features["surrounded"]), batch, self.labelling)

    def shared(self) -> Sequence[nn.Module]:
        return (self.net,)


def assemble(
    schema: Schema,
    net: Callable[[int, int], WindowNet],
    criteria: Mapping[str, Callable[[int], nn.Module]],
    *,
    samples: int,
    sampler: Sampler,
    scanner: Scanner,
    labelling: Labelling | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Patches:
    """Join parts that wait for the pixel classes of a data set."""
    classes = len(schema.pixel_classes)
    return Patches(
        net(3, classes),
        {name: make(classes) for name, make in criteria.items()},
        samples=samples,
        sampler=sampler,
        scanner=scanner,
        labelling=labelling,
        mean=mean,
        std=std,
    )
