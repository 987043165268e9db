"""One person at a time: a picture with several is seen once for each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from tqdm import tqdm

from quadrat.data.source import AnnotatedSource
from quadrat.structures import Sample, Schema, Targets

log = logging.getLogger(__name__)


class Persons:
    """A sample for each object of a source that has at least ``least_joints`` labelled joints and is not ignored.

    It is the whole picture with only that object's row of truth. Its ``image_id`` is the picture's where the picture gives one
    sample, and ``<id>-<row>`` where it gives more. Raises ValueError for a source without joints, or when nothing is left.
    """

    schema: Schema

    def __init__(self, source: AnnotatedSource, *, least_joints: int = 1) -> None:
        if not source.schema.joints:
            raise ValueError(
                f"the source has no joints (its classes are {source.schema.classes[:5]}), wanted annotations of keypoints, "
                "such as data.source.annotations=annotations/person_keypoints_{split}.json"
            )
        if not 1 <= least_joints <= len(source.schema.joints):
            raise ValueError(f"least_joints is 1..{len(source.schema.joints)}, got {least_joints}")
        self.source, self.schema = source, source.schema
        progress = tqdm(range(len(source)), "looking for persons", unit="picture", delay=2, leave=False)
        truths = [source.truth(index) for index in progress]
        found = [_posed(truth, least_joints) for truth in truths]
        self._places = [
            _Place(index, row, _name(truth.image_id, row, rows))
            for index, (truth, rows) in enumerate(zip(truths, found, strict=True))
            for row in rows
        ]
        if not self._places:
            raise ValueError(
                f"no object of {len(source)} pictures has {least_joints} labelled joints; lower least_joints"
            )
        objects, pictures = sum(map(len, truths)), sum(map(bool, found))
        log.info("%d persons in %d pictures; left out: %d objects", len(self), pictures, objects - len(self))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        place = self._places[index]
        image, targets = self.source[place.index]
        return Sample(image, place.only(targets))

    def truth(self, index: int) -> Targets:
        """The truth of a sample without decoding its picture."""
        place = self._places[index]
        return place.only(self.source.truth(place.index))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a sample's picture without decoding it."""
        return self.source.size(self._places[index].index)


class _Place(NamedTuple):
    """One sample: which picture of the source, which row of its truth, and what it is called."""

    index: int
    row: int
    image_id: int | str

    def only(self, targets: Targets) -> Targets:
        return replace(targets.rows([self.row]), image_id=self.image_id)


def _posed(truth: Targets, least_joints: int) -> list[int]:
    """The rows with enough labelled joints that are not ignored."""
    if truth.keypoints is None:
        return []
    enough = (truth.keypoints[..., 2] > 0).sum(dim=1) >= least_joints
    return (enough & ~truth.ignore).nonzero().flatten().tolist()


def _name(image_id: int | str, row: int, rows: list[int]) -> int | str:
    return image_id if len(rows) == 1 else f"{image_id}-{row}"


def persons(split: str, source: Callable[..., AnnotatedSource], *, least_joints: int = 1, **options: Any) -> Persons:
    """One split of a source that is made for a split with these options, one person at a time."""
    return Persons(source(split=split, **options), least_joints=least_joints)
