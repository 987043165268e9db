"""One object's class and box: the errors of ILSVRC's localization task, and how well the box fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from quadrat.ops.boxes import iou
from quadrat.ops.principal import principal
from quadrat.structures import Detections, Targets

GUESSES = 5
"""How many guesses ILSVRC allows."""

NAMES = ("top1", "top5", "iou", "corloc", "class_accuracy", "class_top5", "given_class")
COLUMNS = {"class": "class_accuracy", "IoU": "iou", "CorLoc": "corloc", "top-1 err": "top1_error"}


class LocalizationScores(Metric):
    """How often a picture's class and box are right, each number a mean over pictures, 0..1.

    A picture's class is that of its principal object; every box of that class counts that is not ignored, and a box fits with
    an IoU of at least ``threshold``. ``top1``, ``top5``: one of the first 1 or 5 guesses has the class and a box that fits;
    ``top1_error``, ``top5_error`` are ILSVRC's errors, 1 less these (Russakovsky et al., IJCV 2015, section 4.2);
    ``class_accuracy``, ``class_top5``: the like for the class alone. ``iou``: of the first guess's box, whatever its class, with
    the best fitting box; ``corloc``: the share where it fits (Deselaers et al., IJCV 2012). ``given_class``: the box of the
    first guess of the right class fits. Nothing guessed is wrong; pictures without an object that counts are left out, and
    counted in the table. Every rank sees the same result.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True

    sums: Tensor
    left_out: Tensor

    def __init__(self, classes: Sequence[str], threshold: float = 0.5, **options: object) -> None:
        super().__init__(**options)
        self.classes, self.threshold = tuple(classes), threshold
        self._sums, self._left_out = np.zeros((len(self.classes), 1 + len(NAMES))), 0
        sums = torch.zeros(
            len(self.classes), 1 + len(NAMES), dtype=torch.float64
        )  # pictures, then the sum of each number
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        self.add_state("left_out", default=torch.tensor(0), dist_reduce_fx="sum")

    def names(self) -> tuple[str, ...]:
        """The numbers to choose by: the larger, the better."""
        return NAMES

    def update(self, results: Sequence[Detections], targets: Sequence[Targets]) -> None:
        """Add pictures: the guesses for each, best first, in any frame of it, and its truth."""
        sums, left_out = np.zeros(self.sums.shape), 0
        for found, target in zip(results, targets, strict=True):
            objects = ~target.ignore
            if not objects.any():
                left_out += 1
                continue
            label = int(target.labels[principal(target.boxes, objects)[0]])
            if label > len(self.classes):
                raise ValueError(f"image {target.image_id}: labels are 1..{len(self.classes)}, got {label}")
            boxes = target.boxes_at(target.original_size)[objects & (target.labels == label)]
            guesses = found.cpu().rescaled(target.original_size)
            if not guesses.boxes.isfinite().all():
                raise ValueError(f"image {target.image_id}: the result has boxes that are not finite")
            sums[label - 1] += (1, *judge(guesses, label, boxes, self.threshold))
        self.sums = self.sums + torch.from_numpy(sums).to(self.sums.device)
        self.left_out = self.left_out + left_out

    def compute(self) -> dict[str, float]:
        """The named numbers; warns and gives zeros, as errors ones, when no picture had an object."""
        self._sums, self._left_out = self.sums.cpu().numpy(), int(self.left_out)
        if not self._sums.any():
            rank_zero_warn(
                f"no object that counts in {self._left_out} pictures, so the scores of localization are given as 0",
                UserWarning,
            )
        return numbers(self._sums.sum(axis=0))

    def table(self) -> str:
        """One line per class, and the pictures that were left out; call it on every rank, since it may compute first."""
        self.compute()
        rows = [(name, row[0], numbers(row)) for name, row in zip(self.classes, self._sums, strict=True)]
        total = self._sums.sum(axis=0)
        width = max(len(name) for name in ("class", *self.classes))
        lines = [f"{'class':<{width}} {'pictures':>8}" + "".join(f" {column:>9}" for column in COLUMNS)]
        lines += [
            _line(name, width, count, values) for name, count, values in (*rows, ("all", total[0], numbers(total)))
        ]
        return "\n".join([*lines, f"{self._left_out} pictures without an object that counts were left out"])


def judge(guesses: Detections, label: int, boxes: Tensor, threshold: float) -> tuple[float, ...]:
    """`NAMES` for one picture of a class with true ``boxes`` (M, 4), M at least 1, in the frame of the guesses."""
    fits = iou(guesses.boxes.double(), boxes.double()).amax(dim=1)  # (N,)
    named, fitting = guesses.labels == label, fits >= threshold
    right = named & fitting
    first_named = fitting[named][:1]
    verdicts = (right[:1], right[:GUESSES], fits[:1], fitting[:1], named[:1], named[:GUESSES], first_named)
    return tuple(float(verdict.max()) if len(verdict) else 0.0 for verdict in verdicts)


def numbers(row: np.ndarray) -> dict[str, float]:
    """The means of pictures and sums (1 + numbers,), with the errors beside; of no picture, all wrong."""
    means = dict(zip(NAMES, (row[1:] / max(row[0], 1)).tolist(), strict=True))
    return means | {f"{name}_error": 1 - means[name] for name in ("top1", "top5")}


def _line(name: str, width: int, count: float, values: Mapping[str, float]) -> str:
    cells = [f"{values[key]:.3f}" if count else "-" for key in COLUMNS.values()]
    return f"{name:<{width}} {int(count):>8}" + "".join(f" {cell:>9}" for cell in cells)
