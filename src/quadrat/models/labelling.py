"""Between a batch's semantic maps and scores of pixels: what is learned from, and what is made of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quadrat.structures import Batch, SemanticMap


class Labelling(Protocol):
    """From the scores (S, H, W) of a picture and its uint8 pixels (3, H, W) to the class of every pixel (H, W) uint8."""

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor: ...


class Argmax:
    """Every pixel for itself."""

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        return scores.argmax(0).to(torch.uint8)


def semantic_of(batch: Batch) -> Tensor:
    """The semantic maps (B, H, W) of a batch; ValueError names the pictures and the remedy where there are none."""
    if batch.semantic is None:
        raise ValueError(
            f"pictures {[t.image_id for t in batch.targets]} have no semantic map to learn from: choose data that has them "
            f"(data=shapes, camvid, voc_segmentation, coco_painted ...)"
        )
    return batch.semantic


def semantic_maps(scores: Tensor, batch: Batch, labelling: Labelling) -> list[SemanticMap]:
    """The class of every pixel of each image from scores (B, S, H, W), without the padding."""
    return [
        SemanticMap(labelling(own[:, : t.size[0], : t.size[1]], image[:, : t.size[0], : t.size[1]]))
        for own, image, t in zip(scores, batch.images, batch.targets, strict=True)
    ]
