"""Pascal VOC's box numbers, as the devkit computes them, without its loop over detections.

The devkit measures inclusive pixel boxes, so it adds 1 to every width and height. Boxes here end one pixel later
(``structures``: 1 is subtracted from x1 and y1 only), so their plain areas already are the devkit's areas.
N: detections, M: truth boxes, P: pairs of both that share image and class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from quadrat.metrics.box_rows import DetectionRows, TruthRows

IOU_THRESHOLD = 0.5

RECALL_POINTS = np.linspace(0, 1, 11)
"""VOC 2007's recall points, with the rounding of every public Python copy: 3 found of 10 do not reach the fourth."""

CHUNK = 8192
"""Detections that are paired with truth at once: bounds memory where a class is crowded."""


def voc_box_numbers(
    truth: TruthRows,
    found: DetectionRows,
    classes: Sequence[str],
    average_precision: Callable[[np.ndarray, int], float],
) -> dict[str, float]:
    """``ap50`` and ``ap50/<class>`` for each class with truth that is not difficult."""
    found = found.best_first()
    true, false = judge(truth, found)
    per_class = {}
    for label, name in enumerate(classes, 1):
        positives = int(((truth.labels == label) & ~truth.ignore).sum())
        if positives:
            counts = (found.labels == label) & (true | false)  # what hit a difficult object is not there at all
            per_class[f"ap50/{name}"] = average_precision(true[counts], positives)
    return {"ap50": float(np.mean(list(per_class.values()))), **per_class} if per_class else {}


def interpolated_precision(true: np.ndarray, positives: int) -> float:
    """VOC 2007: the mean over eleven recalls of the best precision from there on; ``true`` (N,) bool, best first."""
    recall, precision = _curve(true, positives)
    reached = recall >= RECALL_POINTS[:, None]  # (11, N)
    return float(np.where(reached, precision, 0.0).max(axis=1, initial=0.0).mean())


def area_under_precision(true: np.ndarray, positives: int) -> float:
    """VOC 2010 on: the area under precision made monotone; ``true`` (N,) bool, best first."""
    recall, precision = _curve(true, positives)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def judge(truth: TruthRows, found: DetectionRows) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, given best first, are true and which are false, both (N,) bool; neither on a difficult object.

    A detection answers only to the truth box it overlaps best, and the first to answer takes it.
    """
    best, overlap = best_truth(truth, found)
    hit = overlap >= IOU_THRESHOLD
    difficult = np.zeros_like(hit)
    difficult[hit] = truth.ignore[best[hit]]
    candidates = np.flatnonzero(hit & ~difficult)
    _, first = np.unique(best[candidates], return_index=True)
    true = np.zeros_like(hit)
    true[candidates[first]] = True
    return true, ~true & ~difficult


def best_truth(truth: TruthRows, found: DetectionRows) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the truth row of its image and class with the highest IoU, and that IoU, both (N,).

    The first row wins a tie; where the image has none of the class the IoU is 0.
    """
    groups = 1 + max(truth.labels.max(initial=0), found.labels.max(initial=0))
    truth_group = truth.images * groups + truth.labels
    order = np.argsort(truth_group, kind="stable")
    found_group = found.images * groups + found.labels
    start = np.searchsorted(truth_group[order], found_group, side="left")
    counts = np.searchsorted(truth_group[order], found_group, side="right") - start

    best = np.zeros(len(found.images), dtype=np.int64)
    overlap = np.zeros(len(found.images))
    with_truth = np.flatnonzero(counts)
    for chunk in np.split(with_truth, range(CHUNK, len(with_truth), CHUNK)):
        best[chunk], overlap[chunk] = _best_in_range(
            found.boxes[chunk], truth.boxes[order], start[chunk], counts[chunk]
        )
    best[with_truth] = order[best[with_truth]]
    return best, overlap


def _best_in_range(
    boxes: np.ndarray, truth: np.ndarray, start: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``boxes`` (N, 4) the best row among ``counts`` >= 1 rows of ``truth`` from ``start``, and its IoU."""
    if not len(boxes):
        return start, np.zeros(0)
    first = np.cumsum(counts) - counts  # each box's first pair
    rows = np.arange(counts.sum()) + np.repeat(start - first, counts)  # (P,)
    ious = _paired_iou(np.repeat(boxes, counts, axis=0), truth[rows])
    overlap = np.maximum.reduceat(ious, first)
    rows_of_best = np.where(ious == np.repeat(overlap, counts), rows, len(truth))
    return np.minimum.reduceat(rows_of_best, first), overlap


def _paired_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of box a[i] with box b[i]: (P, 4), (P, 4) -> (P,); the truth ``b`` has area, so nothing divides by 0."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    return shared / (_areas(a) + _areas(b) - shared)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


def _curve(true: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (N,) after each detection, best first."""
    hits = np.cumsum(true)
    return hits / positives, hits / np.arange(1, len(true) + 1)
