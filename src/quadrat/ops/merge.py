"""Greedy merging of boxes: many guesses of one object become one, instead of all but the best being dropped."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Merged(NamedTuple):
    """``boxes`` (K, 4), best first, ``scores`` (K,) and ``labels`` (K,)."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def merge_by_class(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, *, threshold: float) -> Merged:
    """`greedy_merge` of boxes (N, 4) of each class for itself; a merged box's score is the sum of those it was made of."""
    parts = [(boxes[:0].astype(np.float64), scores[:0].astype(np.float64), labels[:0])]  # nothing was found: nothing
    for label in np.unique(labels):
        own = labels == label
        merged, sums = greedy_merge(boxes[own], scores[own], threshold=threshold)
        parts.append((merged, sums, np.full(len(sums), label, labels.dtype)))
    everything = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(-everything[1], kind="stable")
    return Merged(*(column[order] for column in everything))


def greedy_merge(boxes: np.ndarray, scores: np.ndarray, *, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Merge the two best matching of boxes (N, 4) until none match by ``threshold`` (OverFeat, section 4.3): (K, 4), (K,).

    Two boxes become the mean of their coordinates and the sum of their scores, at the place of the first of them.
    """
    boxes, scores = boxes.astype(np.float64), scores.astype(np.float64)
    pairs = match_scores(boxes, boxes)
    np.fill_diagonal(pairs, np.inf)
    alive = np.ones(len(boxes), dtype=bool)
    for _ in range(len(boxes) - 1):
        first, second = np.unravel_index(pairs.argmin(), pairs.shape)
        if pairs[first, second] > threshold:
            break
        boxes[first] = (boxes[first] + boxes[second]) / 2
        scores[first] += scores[second]
        alive[second] = False
        others = match_scores(boxes[first][None], boxes)[0]
        others[~alive] = others[first] = np.inf
        pairs[second] = pairs[:, second] = np.inf
        pairs[first] = pairs[:, first] = others
    return boxes[alive], scores[alive]


def match_scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far boxes (N, 4) and (M, 4) are from being the same, 0 if they are: (N, M).

    OverFeat adds the distance of the centres and the area of the intersection, without saying how. Ours, the same at every
    scale: the distance over the side of a square of their mean area, plus the share of the larger box that is not in both.
    Two squares of one size, half a side apart, score 1/2 + 1/2; a box and one of half its area about the same centre 0 + 1/2.
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clip(min=0).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b))
    centre_a, centre_b = ((boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (a, b))
    distance = np.hypot(*np.moveaxis(centre_a[:, None] - centre_b[None], -1, 0))
    side = np.sqrt((area_a[:, None] + area_b[None]) / 2)
    return distance / side + 1 - common / np.maximum(area_a[:, None], area_b[None])
