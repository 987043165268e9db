"""From what a head says of regions to detections: the best of each class, without their doubles."""

from __future__ import annotations

from torch import Tensor

from quadrat.ops.boxes import clip
from quadrat.ops.match import gather_rows
from quadrat.ops.suppress import suppress
from quadrat.structures import Batch, Detections


def suppressed(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    batch: Batch,
    *,
    nms: float,
    most_detections: int,
    min_size: float = 1e-2,
) -> list[Detections]:
    """Suppress boxes (B, R, C, 4), or (B, R, 1, 4) for all classes alike, class by class, best first by scores (B, R, C).

    Only where ``valid`` (B, R, C), and where a box clipped to its picture still has sides of ``min_size`` pixels. Scores are
    0 or more.
    """
    classes = scores.shape[2]
    boxes = clip(boxes.expand(-1, -1, classes, -1).flatten(1, 2), batch.sizes)  # (B, R * C, 4)
    solid = ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(-1)
    counts, scores = valid.flatten(1) & solid, scores.flatten(1)
    # most candidates are far below the threshold: only as many as the fullest image has go on
    fullest = max(1, int(counts.sum(1).max()))
    ranked, index = scores.where(counts, scores.new_full((), -1.0)).topk(min(fullest, scores.shape[1]), dim=1)
    boxes, labels = gather_rows(boxes, index), index % classes + 1
    kept = suppress(boxes, ranked, labels, ranked >= 0, threshold=nms, keep=most_detections)
    boxes, labels = gather_rows(boxes, kept.index), gather_rows(labels, kept.index)
    ranked = gather_rows(ranked, kept.index)
    return [
        Detections(boxes[i][kept.valid[i]], ranked[i][kept.valid[i]], labels[i][kept.valid[i]], target.size)
        for i, target in enumerate(batch.targets)
    ]
