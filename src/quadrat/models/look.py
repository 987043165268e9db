"""Looking at one place of a picture: which part it is, and the vector that a network makes of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.heads.vector import Vector
from quadrat.ops.boxes import clip, whole
from quadrat.ops.crops import crop_resize
from quadrat.ops.match import gather_rows
from quadrat.ops.principal import principal
from quadrat.structures import Batch

log = logging.getLogger(__name__)


class Frame(Protocol):
    """The part (B, 4) of each picture that a model looks at, and that its coordinates are shares of."""

    def __call__(self, batch: Batch, counts: Tensor) -> Tensor:
        """``counts`` (B, M): the objects that it may be about."""
        ...


class WholePicture:
    """All of the picture, without the padding: no box is known (DeepPose on LSP)."""

    def __call__(self, batch: Batch, counts: Tensor) -> Tensor:
        return whole(batch.sizes)


class ObjectBox:
    """The box of the picture's principal object, ``enlarge`` times as large; all of a picture that has none.

    The box is given, as a detector would give it: in evaluation, too, it is the true one. Where pictures come without any truth
    (quadrat-predict), they should be cut to the person; the log says so once.
    """

    def __init__(self, enlarge: float = 1.25) -> None:
        if enlarge <= 0:
            raise ValueError(f"a box is enlarged by a factor above 0, got enlarge={enlarge}")
        self.enlarge, self.told = enlarge, False

    def __call__(self, batch: Batch, counts: Tensor) -> Tensor:
        if not self.told and not any(len(target) for target in batch.targets):
            self.told = True
            log.warning("no boxes are given: the person is taken to fill the picture (model/frame=object_box)")
        index, there = principal(batch.boxes, counts)
        boxes = gather_rows(batch.boxes, index[:, None])[:, 0]
        centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (self.enlarge / 2)
        larger = clip(torch.cat([centre - half, centre + half], dim=-1)[:, None], batch.sizes)[:, 0]
        return torch.where(there[:, None], larger, whole(batch.sizes))


class Look(nn.Module):
    """Parts of pictures, warped to ``size`` (h, w), through a network of their own: (B, 3, H, W), (B, R, 4) -> (B * R, D)."""

    def __init__(self, backbone: Backbone, vector: Vector, size: Sequence[int]) -> None:
        super().__init__()
        self.backbone, self.vector = backbone, vector
        height, width = size
        self.size = (int(height), int(width))
        self.out_features = vector.out_features

    def maps(self, images: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """The backbone's maps of every part (B * R, D, h, w)."""
        parts = crop_resize(images, boxes, self.size).flatten(0, 1)
        return self.backbone(parts.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self.vector(self.maps(images, boxes))
