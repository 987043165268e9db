"""One window classifier composed with itself from coarse to fine (Pinheiro and Collobert, ICML 2014)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.window import WindowNet
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.models.labelling import Argmax, Labelling, semantic_maps, semantic_of
from quadrat.models.patches import Scanner
from quadrat.ops.windows import mirror, surround
from quadrat.structures import Batch, Schema, SemanticMap


class Recurrent(Model):
    """The same net on 3 + S planes once for each of ``scales``: the picture at that scale, and what was said one scale before.

    The S planes are the softmax of the instance before, resized bilinearly, and gradients flow through them; the first sees
    zeros. ``instance1`` .. ``instanceP`` are the terms, each by ``criterion``; the last predicts. Instances before the last score
    every pixel of their scale. The last is trained on every ``net.stride``-th pixel from a random offset, and ``scanner`` scores
    all of them for prediction. Raises ValueError for scales that do not rise to 1.
    """

    result = SemanticMap

    def __init__(
        self,
        net: WindowNet,
        criterion: nn.Module,
        *,
        scales: Sequence[float],
        scanner: Scanner,
        labelling: Labelling | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if list(scales) != sorted(set(scales)) or not scales or scales[0] <= 0 or scales[-1] != 1:
            raise ValueError(f"scales rise from above 0 to 1, one for each instance, got {list(scales)}")
        self.normalise = Normalise(mean, std)
        self.net, self.criterion, self.scanner = net, criterion, scanner
        self.scales, self.labelling = tuple(scales), labelling or Argmax()
        self.loss_names = tuple(f"instance{number}" for number in range(1, len(scales) + 1))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Scores (B, S, h, w) of every instance but the last, by its name, and ``last``: what the last one sees."""
        images = surround(self.normalise(batch.images, batch.sizes), batch.sizes, 0)
        planes = images.new_zeros((len(images), self.net.num_classes, 1, 1))
        found = {}
        for name, scale in zip(self.loss_names[:-1], self.scales[:-1], strict=True):
            found[name] = self.net.dense(self._seen(images, scale, planes))
            planes = found[name].softmax(1)
        return {**found, "last": self._seen(images, 1.0, planes)}

    def _seen(self, images: Tensor, scale: float, planes: Tensor) -> Tensor:
        """Picture and planes at a scale, surrounded by their mirror image: (B, 3 + S, h + P - 1, w + P - 1)."""
        size = [max(1, round(length * scale)) for length in images.shape[2:]]
        if scale != 1:
            images = functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        planes = functional.interpolate(planes, size=size, mode="bilinear")
        return mirror(torch.cat([images, planes], dim=1), *[self.net.margin] * 4)

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The criterion of each instance at its own scale."""
        semantic, weights = semantic_of(batch), batch.pixel_weights
        terms = {}
        for name in self.loss_names[:-1]:
            size = features[name].shape[2:]
            own = None if weights is None else _nearest(weights, size)
            terms[name] = self.criterion(features[name], _nearest(semantic, size).to(torch.uint8), own)
        stride = self.net.stride
        y, x = (int(torch.randint(min(stride, length), ())) for length in semantic.shape[1:])
        grid = (slice(None), slice(y, None, stride), slice(x, None, stride))
        scores = self.net.strided(features["last"], (y, x))
        terms[self.loss_names[-1]] = self.criterion(scores, semantic[grid], None if weights is None else weights[grid])
        return terms

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[SemanticMap]:
        """The class of every pixel of each image by the last instance, without the padding."""
        return semantic_maps(self.scanner(self.net, features["last"]), batch, self.labelling)

    def shared(self) -> Sequence[nn.Module]:
        return (self.net,)


def _nearest(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Planes (B, H, W) at another size, every pixel the nearest one."""
    return functional.interpolate(planes[:, None].float(), size=list(size), mode="nearest-exact")[:, 0]


def assemble(
    schema: Schema,
    net: Callable[[int, int], WindowNet],
    criteria: Mapping[str, Callable[[int], nn.Module]],
    *,
    scales: Sequence[float],
    scanner: Scanner,
    labelling: Labelling | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Recurrent:
    """Join parts that wait for the pixel classes of a data set; ValueError unless there is one criterion, of every instance."""
    classes = len(schema.pixel_classes)
    if len(criteria) != 1:
        raise ValueError(
            f"every instance has the same one criterion, got {list(criteria)}; take model/criteria=cross_entropy"
        )
    (criterion,) = criteria.values()
    return Recurrent(
        net(3 + classes, classes),
        criterion(classes),
        scales=scales,
        scanner=scanner,
        labelling=labelling,
        mean=mean,
        std=std,
    )
