"""Pictures with an object to be found, and no more than so many: what a model of one object learns from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from quadrat.data.source import AnnotatedSource, Source, truth_of
from quadrat.ops.principal import principal
from quadrat.structures import Sample, Schema, Targets

log = logging.getLogger(__name__)


class OneObject:
    """The pictures of a source with at least one object that is not ignored, and at most ``most_objects`` of them.

    The picture's truth stays as it is, with all its objects. Raises ValueError when no picture is left.
    """

    schema: Schema

    def __init__(self, source: AnnotatedSource, *, most_objects: int | None = None) -> None:
        if most_objects is not None and most_objects < 1:
            raise ValueError(f"most_objects is 1 or more, or null for any number, got {most_objects}")
        self.source, self.schema = source, source.schema
        progress = tqdm(range(len(source)), "counting objects", unit="picture", delay=2, leave=False)
        counts = [int((~source.truth(index).ignore).sum()) for index in progress]
        most = max(counts) if most_objects is None else most_objects
        self._indices = [index for index, count in enumerate(counts) if 1 <= count <= most]
        told = f"{counts.count(0)} without an object, {sum(count > most for count in counts)} with more than {most}"
        if not self._indices:
            raise ValueError(
                f"none of {len(source)} pictures is left ({told}); raise data.source.most_objects, or choose another split"
            )
        log.info("%d of %d pictures kept; left out: %s", len(self), len(source), told)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self._indices[index]]

    def truth(self, index: int) -> Targets:
        """The truth of a picture without decoding it."""
        return self.source.truth(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        return self.source.size(self._indices[index])


def one_object(
    split: str, source: Callable[..., AnnotatedSource], *, most_objects: int | None = None, **options: Any
) -> OneObject:
    """One split of a source that is made for a split with these options, without the pictures that do not fit."""
    return OneObject(source(split=split, **options), most_objects=most_objects)


class PrincipalBoxes(NamedTuple):
    """Of the N pictures that have one, the principal object's box (N, 4), and the picture's size (N, 2) height and width."""

    boxes: Tensor
    sizes: Tensor


def principal_boxes(source: Source) -> PrincipalBoxes:
    """What a model of one object is to find in the pictures of a source, before any augmentation."""
    boxes, sizes = [], []
    for index in tqdm(range(len(source)), "measuring boxes", unit="picture", delay=2, leave=False):
        truth = truth_of(source, index)
        if (~truth.ignore).any():
            boxes.append(truth.boxes[principal(truth.boxes, ~truth.ignore)[0]])
            sizes.append(truth.size)
    return PrincipalBoxes(
        torch.stack(boxes) if boxes else torch.zeros(0, 4), torch.tensor(sizes, dtype=torch.float32).view(-1, 2)
    )
