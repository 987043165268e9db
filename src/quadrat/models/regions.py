"""Detectors that look twice: where could something be, and what is each of those regions?

R-CNN and all that came of it: they differ in where regions come from, how a region becomes a feature, and what reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from quadrat.backbones.base import Backbone, Features, Neck
from quadrat.backbones.pixels import Pixels
from quadrat.heads.position_sensitive import PositionSensitive
from quadrat.heads.region_pool import RegionPool, WarpedCNN
from quadrat.heads.regions import RegionHead, RegionSampler
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.necks.select import Select
from quadrat.proposers.base import Proposer
from quadrat.proposers.precomputed import Precomputed
from quadrat.structures import Batch, Detections, Schema


class Regions(Model):
    """backbone -> neck -> proposer -> sampled regions -> box head; its terms are the proposer's and the head's."""

    fitted_late = ("svm.", "ridge.", "fitted")

    def __init__(
        self,
        backbone: Backbone,
        neck: Features,
        proposer: Proposer,
        sampler: RegionSampler,
        box: RegionHead,
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
        self.reads_proposals = isinstance(proposer, Precomputed)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        return self.neck(self.backbone(self.normalise(batch.images, batch.sizes)))

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        judged = self.proposer(features)
        proposals = self.proposer.propose(judged, batch, self.proposer.train_limits)
        regions = self.sampler(proposals, batch)
        return {**self.proposer.loss(judged, batch), **self.box.loss(features, regions, batch)}

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        proposals = self.proposer.propose(self.proposer(features), batch, self.proposer.test_limits)
        return self.box.predict(features, proposals, batch)

    def shared(self) -> Sequence[nn.Module]:
        """The trunk as far as the proposer reads it: from there on it has no part in what the head learns from."""
        stages = list(self.backbone.stages)
        read = [
            stages.index(name) for name in self.proposer.names if name in stages
        ]  # none of a pyramid, which needs all
        common = stages[: max(read) + 1] if read else stages
        return (*(self.backbone.stages[name] for name in common), self.neck)

    def shards(self) -> Iterator[nn.Module]:
        yield from self.backbone.stages.values()
        yield self.box.layers


def assemble(
    schema: Schema,
    backbone: Backbone,
    neck: Callable[[Features], Neck],
    proposer: Callable[[Features], Proposer],
    pool: Callable[[Features], RegionPool],
    layers: Callable[..., nn.Module],
    sampler: RegionSampler,
    box: Callable[..., RegionHead],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Regions:
    """Join parts that wait for what is before them: each is called with the part it reads from."""
    maps = neck(backbone)
    backbone.end_with(maps.reads)
    return Regions(
        backbone, maps, proposer(maps), sampler, box(pool(maps), layers, len(schema.classes)), mean=mean, std=std
    )


def assemble_c4(schema: Schema, backbone: Backbone, *, layers: Callable[..., nn.Module], **parts: Any) -> Regions:
    """The like where the trunk's last stage is the head's hidden layers (He et al., CVPR 2016, appendix A: "C4")."""
    trunk, stage = backbone.without_last_stage()
    return assemble(schema, trunk, layers=partial(layers, stage), **parts)


def assemble_warped(
    schema: Schema,
    backbone: Backbone,
    proposer: Callable[[Features], Proposer],
    pool: Callable[[Backbone], WarpedCNN],
    layers: Callable[..., nn.Module],
    sampler: RegionSampler,
    box: Callable[..., RegionHead],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Regions:
    """The like where the trunk sees each region by itself (R-CNN)."""
    pixels = Pixels()
    head = box(pool(backbone), layers, len(schema.classes))
    return Regions(pixels, Select(pixels, ("image",)), proposer(pixels), sampler, head, mean=mean, std=std)


def assemble_position_sensitive(
    schema: Schema,
    backbone: Backbone,
    neck: Callable[[Features], Neck],
    proposer: Callable[[Features], Proposer],
    sampler: RegionSampler,
    box: Callable[[Features, int], PositionSensitive],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Regions:
    """The like where nothing is computed for a region alone (R-FCN)."""
    maps = neck(backbone)
    backbone.end_with(maps.reads)
    return Regions(backbone, maps, proposer(maps), sampler, box(maps, len(schema.classes)), mean=mean, std=std)
