"""Boxes of many images as plain rows: one tensor that ranks can gather, one table that an evaluator can read.

N: detections, M: truth boxes. The first column of every row is its image's number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quadrat.structures import Detections, Targets


class TruthRows(NamedTuple):
    """The truth of many images, in the order of the image numbers; ``boxes`` (M, 4) float64, the others (M,)."""

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    ignore: np.ndarray

    @staticmethod
    def pack(targets: Targets, image: int) -> Tensor:
        """One image's truth in its original frame as float32 rows (M, 8)."""
        size = targets.original_size
        columns = (targets.labels, targets.areas_at(size), targets.ignore)
        return _pack(image, targets.boxes_at(size), columns)

    @classmethod
    def unpack(cls, flat: Tensor) -> TruthRows:
        """Read the packed rows of any number of images back from one flat tensor (M * 8,)."""
        rows = _unpack(flat, 8)
        labels, areas, ignore = rows[:, 5:].T
        return cls(rows[:, 0].astype(np.int64), rows[:, 1:5], labels.astype(np.int64), areas, ignore.astype(bool))


class DetectionRows(NamedTuple):
    """The detections of many images, in the order of the image numbers; ``boxes`` (N, 4) float64, the others (N,)."""

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @staticmethod
    def pack(detections: Detections, image: int) -> Tensor:
        """One image's detections as float32 rows (N, 7)."""
        return _pack(image, detections.boxes, (detections.labels, detections.scores))

    @classmethod
    def unpack(cls, flat: Tensor) -> DetectionRows:
        """Read the packed rows of any number of images back from one flat tensor (N * 7,)."""
        rows = _unpack(flat, 7)
        labels, scores = rows[:, 5:].T
        return cls(rows[:, 0].astype(np.int64), rows[:, 1:5], labels.astype(np.int64), scores)

    def best_first(self) -> DetectionRows:
        """The same detections by falling score; equal scores keep their order."""
        order = np.argsort(-self.scores, kind="stable")
        return DetectionRows(*(column[order] for column in self))


def _pack(image: int, boxes: Tensor, columns: tuple[Tensor, ...]) -> Tensor:
    # float32 holds whole numbers up to 16.7 million: enough for image numbers and labels.
    number = boxes.new_full((len(boxes), 1), image, dtype=torch.float32)
    return torch.cat([number, boxes.float(), *(column[:, None].float() for column in columns)], dim=1)


def _unpack(flat: Tensor, width: int) -> np.ndarray:
    rows = flat.reshape(-1, width).cpu().numpy().astype(np.float64)
    # By image, so that the order in which ranks were gathered cannot decide between equal scores.
    return rows[np.argsort(rows[:, 0], kind="stable")]
