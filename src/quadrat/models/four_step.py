"""Faster R-CNN trained in four steps (Ren et al., NIPS 2015, section 3.2): proposer and detector learn in turns, then share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.models import regions
from quadrat.models.regions import Regions
from quadrat.structures import Batch, Detections

REMEDY = "model=faster_rcnn_vgg or faster_rcnn_fpn, or callbacks=default"

FRONT = "front."
"""Before the names of the maps that the proposer reads while it has a trunk of its own."""


class FourStep(Regions):
    """In step 1 the proposer learns on a trunk of its own, in step 2 the detector on the other one, with the regions that the
    first pair proposes; then the first trunk is given up: in step 3 the proposer, in step 4 the detector's head learns on the
    second, which stands still.

    A term that is not trained in a step is 0 in training, and what it is in evaluation. The proposer of step 3 goes on from step
    1's (the released code begins it anew). The step is part of the weights.
    """

    step: Tensor

    def __init__(self, backbone: Backbone, *parts: Any, **settings: Any) -> None:
        super().__init__(backbone, *parts, **settings)
        if not self.proposer.loss_names:
            raise ValueError(
                f"four steps need a proposer that learns, {type(self.proposer).__name__} does not: {REMEDY}"
            )
        self.front = nn.ModuleDict({"backbone": copy.deepcopy(backbone), "neck": copy.deepcopy(self.neck)})
        self.own = backbone.frozen_stages, backbone.frozen_norm
        self.register_buffer("step", torch.tensor(1))
        self.at(1)

    def at(self, number: int) -> None:
        """Begin a step 1..4: hold still what does not learn in it."""
        self.number = number
        self.step.fill_(number)
        for trunk, neck, learns in (
            (self.front["backbone"], self.front["neck"], number == 1),
            (self.backbone, self.neck, number == 2),
        ):
            assert isinstance(trunk, Backbone)
            trunk.freeze(*(self.own if learns else (len(trunk.stages), True)))
            neck.requires_grad_(learns)
        _module(self.proposer).requires_grad_(number in (1, 3))
        _module(self.box).requires_grad_(number in (2, 4))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.at(int(self.step))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """The maps of each trunk that somebody reads now."""
        images = self.normalise(batch.images, batch.sizes)
        maps = {}
        if self.number <= 2:
            seen = self.front["neck"](self.front["backbone"](images))
            maps = {f"{FRONT}{name}": plane for name, plane in seen.items()}
        if self.number >= 2 or not self.training:
            maps |= self.neck(self.backbone(images))
        return maps

    def _read_by_proposer(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.number > 2:
            return features
        return {name.removeprefix(FRONT): plane for name, plane in features.items() if name.startswith(FRONT)}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        judged = self.proposer(self._read_by_proposer(features))
        proposes, detects = self.number in (1, 3), self.number in (2, 4)
        terms = dict.fromkeys(self.loss_names, batch.boxes.new_zeros(()))
        if proposes or not self.training:
            terms |= self.proposer.loss(judged, batch)
        if detects or not self.training:
            proposals = self.proposer.propose(judged, batch, self.proposer.train_limits)
            terms |= self.box.loss(features, self.sampler(proposals, batch), batch)
        return terms

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        judged = self.proposer(self._read_by_proposer(features))
        return self.box.predict(features, self.proposer.propose(judged, batch, self.proposer.test_limits), batch)

    def shards(self) -> Iterator[nn.Module]:
        """None: sharded parameters cannot be held still and freed again."""
        return iter(())


def _module(part: Any) -> nn.Module:
    assert isinstance(part, nn.Module)
    return part


def assemble(*parts: Any, **settings: Any) -> FourStep:
    """As `regions.assemble`, to be trained in four steps; ValueError for the parts of a model that is joined in another way."""
    try:
        whole = regions.assemble(*parts, **settings)
    except TypeError as error:
        raise ValueError(f"callbacks=four_steps cannot join the parts of this model ({error}): {REMEDY}") from error
    mean, std = whole.normalise.mean, whole.normalise.std
    return FourStep(whole.backbone, whole.neck, whole.proposer, whole.sampler, whole.box, mean=mean, std=std)
