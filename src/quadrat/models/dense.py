"""Every pixel of a picture scored in one pass: FCN, DeconvNet, SegNet, U-Net, and the network that never downsamples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone, Features
from quadrat.heads.pixels import PixelHead, chosen
from quadrat.losses.pixels import PixelLoss
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.models.labelling import Argmax, Labelling, semantic_maps, semantic_of
from quadrat.models.tiles import Tiles
from quadrat.necks.select import Select
from quadrat.ops.checkerboard import checkerboard_index
from quadrat.ops.windows import crop, surround
from quadrat.structures import Batch, Schema, SemanticMap


class Unpadded:
    """How much larger the input of an encoder and decoder without padding must be than its output (U-Net, figure 2).

    ``levels`` poolings; at every level ``convs`` convolutions of 3x3 on the way down and on the way up. An output of 388 pixels
    takes an input of 572; outputs that cannot be had exactly are made larger.
    """

    def __init__(self, levels: int = 4, convs: int = 2) -> None:
        self.levels, self.lost = levels, 2 * convs

    def __call__(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, D, H, W) with as much of each picture's mirror image around as is lost, and the size of what comes out.

        What comes out begins where the images do.
        """
        (tall, height), (wide, width) = (self.sizes(length) for length in images.shape[2:])
        before = (tall - height) // 2  # the same for every size
        around = max(tall - images.shape[2], wide - images.shape[3]) - before
        images = surround(images, sizes, around)
        return crop(images, (tall, wide), (around - before, around - before)), (height, width)

    def sizes(self, wanted: int) -> tuple[int, int]:
        """The smallest possible input and output length with an output of at least ``wanted``."""
        output = wanted
        for _ in range(self.levels):  # back through the decoder
            output = -(-(output + self.lost) // 2)
        inner = output
        for _ in range(self.levels):
            output = 2 * output - self.lost
        length = inner + self.lost
        for _ in range(self.levels):  # back through the encoder
            length = 2 * length + self.lost
        return length, output


def _whole(images: Tensor) -> Tensor:
    """Sizes (B, 2) of pictures that fill their images."""
    return images.new_tensor(images.shape[2:]).expand(len(images), 2)


class Dense(Model):
    """backbone -> neck -> head: scores (B, S, H, W) at the picture's size.

    ``criteria`` are the terms by name, ``auxiliary`` further heads on maps of the backbone, whose terms are ``aux_<map>`` by the
    first criterion. ``unpadded``: the picture is continued by its mirror image until the output covers it. ``tiles``: in
    evaluation, pictures are scored tile by tile. ``labelling`` makes classes of scores.
    """

    result = SemanticMap
    reading_names = ("checkerboard",)

    def __init__(
        self,
        backbone: Backbone,
        neck: Features,
        head: PixelHead,
        criteria: Mapping[str, nn.Module],
        *,
        auxiliary: Mapping[str, PixelHead] | None = None,
        unpadded: Unpadded | None = None,
        tiles: Tiles | None = None,
        labelling: Labelling | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.backbone, self.neck, self.head = backbone, neck, head
        self.criteria = nn.ModuleDict(criteria)
        self.auxiliary = nn.ModuleDict(auxiliary or {})
        self.unpadded, self.tiles, self.labelling = unpadded, tiles, labelling or Argmax()
        self.staged = tuple(f"head.{name}" for name in head.staged)
        self.loss_names = (*criteria, *(f"aux_{name}" for name in self.auxiliary))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """``scores`` and ``aux_<map>`` (B, S, H, W)."""
        images = self.normalise(batch.images, batch.sizes)
        if self.tiles is not None and not self.training:
            return self.tiles(lambda tile: self.scores(tile, _whole(tile)), images)
        return self.scores(images, batch.sizes)

    def scores(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """The like of normalised images (B, 3, H, W), whose pictures are of ``sizes`` (B, 2)."""
        size = outputs = (images.shape[2], images.shape[3])
        if self.unpadded is not None:
            images, outputs = self.unpadded(images, sizes)
        maps = self.backbone(images)
        found = {"scores": self.head({**maps, **self.neck(maps)}, outputs)}
        for name, head in self.auxiliary.items():
            found[f"aux_{name}"] = head(maps, outputs)
        return {name: crop(scores, size, (0, 0)) for name, scores in found.items()}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The criteria of the scores, and the first of them of every auxiliary head."""
        semantic = semantic_of(batch)
        terms = {}
        for name, criterion in self.criteria.items():
            terms[name] = criterion(features["scores"], semantic, batch.pixel_weights)
        first: PixelLoss = next(iter(self.criteria.values()))
        for name in self.auxiliary:
            terms[f"aux_{name}"] = first(features[f"aux_{name}"], semantic, batch.pixel_weights)
        return terms

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[SemanticMap]:
        """The class of every pixel of each image, without the padding."""
        return semantic_maps(features["scores"], batch, self.labelling)

    def readings(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """How unlike the phases of a picture's scores modulo 2 are: the pattern that an upsampling leaves."""
        own = [
            scores[None, :, : t.size[0], : t.size[1]]
            for scores, t in zip(features["scores"], batch.targets, strict=True)
        ]
        return {"checkerboard": torch.stack([checkerboard_index(scores, 2) for scores in own]).mean()}

    def shared(self) -> Sequence[nn.Module]:
        stages = self.backbone.stages
        if not self.auxiliary:
            return (*stages.values(), self.neck)
        first = min(self.auxiliary, key=list(stages).index)
        return (*(stages[name] for name in takewhile(lambda name: name != first, stages)), stages[first])


def assemble(
    schema: Schema,
    backbone: Backbone,
    head: Callable[..., PixelHead],
    criteria: Mapping[str, Callable[[int], nn.Module]],
    *,
    neck: Callable[[Features], Features] | None = None,
    auxiliary: Mapping[str, Callable[..., PixelHead]] | None = None,
    unpadded: Unpadded | None = None,
    tiles: Tiles | None = None,
    labelling: Labelling | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Dense:
    """Join parts that wait for what is before them, for the classes of a data set; without a neck the head reads the backbone."""
    classes = len(schema.pixel_classes)
    maps = Select(backbone, tuple(backbone.out_channels)) if neck is None else neck(backbone)
    others = {name: make(backbone, classes, map=chosen(backbone, name)) for name, make in (auxiliary or {}).items()}
    return Dense(
        backbone,
        maps,
        head(maps, classes),
        {name: make(classes) for name, make in criteria.items()},
        auxiliary=others,
        unpadded=unpadded,
        tiles=tiles,
        labelling=labelling,
        mean=mean,
        std=std,
    )
