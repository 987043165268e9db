"""How well every pixel is classified: accuracies and intersection over union of the whole set, and of its boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from quadrat.structures import IGNORE_INDEX, SemanticMap, Targets

TOLERANCE = 0.0075
"""How far a boundary may be off, as a share of the picture's diagonal (Csurka et al., BMVC 2013)."""


class PixelScores(Metric):
    """One confusion matrix over all pictures of all ranks, and what the papers read from it, each 0..1.

    ``pixel_accuracy``, ``class_accuracy`` (mean over the classes that the truth shows), ``miou`` (mean over the classes that
    truth or prediction shows, background included), ``fw_iou`` (weighted by the truth's pixels), ``iou/<class>``: Long et al.,
    CVPR 2015, section 5. ``boundary_f1``: the F1 of boundary pixels within ``tolerance`` of the diagonal, the mean over a
    picture's classes, then over pictures (Csurka et al., BMVC 2013; SegNet). Pixels of 255 count for nothing. Every rank sees
    the same result.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True

    confusion: Tensor
    boundaries: Tensor

    def __init__(self, classes: Sequence[str], tolerance: float = TOLERANCE, **options: object) -> None:
        super().__init__(**options)
        self.classes, self.tolerance = tuple(classes), tolerance
        count = len(self.classes)
        self._matrix = np.zeros((count, count), dtype=np.int64)
        self.add_state("confusion", default=torch.zeros(count, count, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("boundaries", default=torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def names(self) -> tuple[str, ...]:
        """The numbers that ``compute`` gives whenever every class is there."""
        return (*ALWAYS, *(f"iou/{name}" for name in self.classes))

    def update(self, results: Sequence[SemanticMap], targets: Sequence[Targets]) -> None:
        """Add pictures: the map seen in each, and its truth; compared in the original frame where its truth was kept."""
        for found, target in zip(results, targets, strict=True):
            truth = target.semantic if target.original_semantic is None else target.original_semantic
            if truth is None:
                raise ValueError(
                    f"image {target.image_id} has no semantic map to compare with; is this the right data?"
                )
            labels = found.rescaled((truth.shape[0], truth.shape[1])).labels
            counts = confusion(truth.to(labels.device), labels, len(self.classes))
            self.confusion = self.confusion + counts
            f1 = boundary_f1(truth.numpy(), labels.cpu().numpy(), self.tolerance)
            if f1:
                self.boundaries = self.boundaries + self.boundaries.new_tensor([sum(f1) / len(f1), 1])

    def compute(self) -> dict[str, float]:
        """The named numbers; warns and gives zeros when no pixel had a class."""
        self._matrix = self.confusion.cpu().numpy()
        if not self._matrix.any():
            rank_zero_warn("no pixel with a class, so the scores of pixels are given as 0", UserWarning)
            return dict.fromkeys(ALWAYS, 0.0)
        total, count = self.boundaries.tolist()
        return scores(self._matrix, self.classes) | {"boundary_f1": total / max(count, 1)}

    def matrix(self) -> np.ndarray:
        """The confusion (S, S) that was computed last: truth down, prediction across, in pixels."""
        return self._matrix

    def table(self) -> str:
        """One line per class: its share of the truth and its numbers; call it on every rank, since it may compute first."""
        self.compute()
        return _table(self._matrix, self.classes)


ALWAYS = ("miou", "pixel_accuracy", "class_accuracy", "fw_iou", "boundary_f1")


def confusion(truth: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts (S, S) of pixels by truth and prediction, from two maps (H, W); ValueError for a truth beyond the classes."""
    labelled = truth != IGNORE_INDEX
    truth, labels = truth[labelled].long(), labels[labelled].long()
    counts = torch.bincount(truth * classes + labels, minlength=classes**2)
    if len(counts) > classes**2:
        raise ValueError(f"{classes} classes of pixels are 0..{classes - 1}, the truth has {int(truth.max())}")
    return counts.view(classes, classes)


def scores(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """What the papers read from a confusion (S, S); a class that is nowhere has no number and is in no mean."""
    right, truth = np.diag(matrix).astype(np.float64), matrix.sum(1)
    union = truth + matrix.sum(0) - right
    there, shown = union > 0, truth > 0
    iou = right[there] / union[there]
    return {
        "miou": float(iou.mean()),
        "pixel_accuracy": float(right.sum() / truth.sum()),
        "class_accuracy": float((right[shown] / truth[shown]).mean()),
        "fw_iou": float((truth[there] * iou).sum() / truth.sum()),
        **{f"iou/{classes[c]}": float(value) for c, value in zip(np.flatnonzero(there).tolist(), iou, strict=True)},
    }


def boundary_f1(truth: np.ndarray, labels: np.ndarray, tolerance: float) -> list[float]:
    """F1 of the boundary of each class that the truth (H, W) shows, within a share ``tolerance`` of the diagonal.

    What is found among pixels without a class counts only where a boundary is wanted.
    """
    reach = max(1.0, tolerance * float(np.hypot(*truth.shape)))
    labelled = truth != IGNORE_INDEX
    return [
        _f1(_boundary(truth == c), _boundary(labels == c), labelled, reach) for c in np.unique(truth[labelled]).tolist()
    ]


def _boundary(inside: np.ndarray) -> np.ndarray:
    """The pixels (H, W) of a class beside another one; the picture's own edge is no boundary."""
    inside = inside.astype(np.uint8)
    return (inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)).astype(bool)


def _f1(truth: np.ndarray, found: np.ndarray, labelled: np.ndarray, reach: float) -> float:
    """Harmonic mean of the share of found pixels near the truth, and of the truth's near found ones."""
    near_truth = _near(truth, reach)
    found = found & (labelled | near_truth)
    wanted, given = int(truth.sum()), int(found.sum())
    if not wanted or not given:  # a class that fills the picture has no boundary, and then none should be found
        return float(wanted == given)
    precision = int((found & near_truth).sum()) / given
    recall = int((truth & _near(found, reach)).sum()) / wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(boundary: np.ndarray, reach: float) -> np.ndarray:
    """Where a boundary pixel is at most so far away, in pixels."""
    if not boundary.any():
        return np.zeros(boundary.shape, dtype=bool)
    return cv2.distanceTransform((~boundary).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= reach


def _table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """Class, share of the truth, accuracy, IoU."""
    right, truth = np.diag(matrix).astype(np.float64), matrix.sum(1)
    union = truth + matrix.sum(0) - right
    rows = [
        (name, f"{share:.3f}", _ratio(r, t), _ratio(r, u))
        for name, share, r, t, u in zip(classes, truth / max(truth.sum(), 1), right, truth, union, strict=True)
    ]
    width = max(len(name) for name in ("class", *classes))
    lines = [("class", "share", "acc", "IoU"), *rows]
    return "\n".join(f"{name:<{width}}" + "".join(f" {cell:>6}" for cell in cells) for name, *cells in lines)


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "-"
