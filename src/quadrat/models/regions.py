"""Detectors that look twice: where could something be, and what is each of those regions?

Fast and Faster R-CNN, and what is built on them: they differ in the proposer, the pooling and the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from quadrat.backbones.base import Backbone, Features
from quadrat.heads.region_box import RegionBox
from quadrat.heads.region_pool import RegionPool
from quadrat.heads.regions import RegionSampler
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.proposers.rpn import RPN
from quadrat.structures import Batch, Detections, Schema


class Regions(Model):
    """backbone -> neck -> proposer -> sampled regions -> box head."""

    def __init__(
        self,
        backbone: Backbone,
        neck: Features,
        proposer: RPN,
        sampler: RegionSampler,
        box: RegionBox,
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.backbone, self.neck = backbone, neck
        self.proposer, self.box = proposer, box
        self.sampler = sampler
        self.loss_names = (*proposer.loss_names, *box.loss_names)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return self.neck(self.backbone(self.normalise(batch.images, batch.sizes)))

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``rpn_objectness``, ``rpn_box``, ``region_class``, ``region_box``."""
        judged = self.proposer(features)
        proposals = self.proposer.propose(judged, batch, self.proposer.train_limits)
        regions = self.sampler(proposals, batch)
        return {**self.proposer.loss(judged, batch), **self.box.loss(features, regions, batch)}

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        proposals = self.proposer.propose(self.proposer(features), batch, self.proposer.test_limits)
        return self.box.predict(features, proposals, batch)

    def shared(self) -> Sequence[nn.Module]:
        return (*self.backbone.stages.values(), self.neck)

    def shards(self) -> Iterator[nn.Module]:
        yield from self.backbone.stages.values()
        yield self.box.layers


def assemble(
    schema: Schema,
    backbone: Backbone,
    neck: Callable[[Features], Features],
    proposer: Callable[[Features], RPN],
    pool: Callable[[Features], RegionPool],
    layers: Callable[..., nn.Module],
    sampler: RegionSampler,
    box: Callable[..., RegionBox],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Regions:
    """Join parts that wait for what is before them: each is called with the part it reads from."""
    maps = neck(backbone)
    return Regions(
        backbone, maps, proposer(maps), sampler, box(pool(maps), layers, len(schema.classes)), mean=mean, std=std
    )
