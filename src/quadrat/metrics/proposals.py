"""How much of what is there some proposals cover, whatever they come from: recall, AR, ABO and MABO.

Q: the numbers of proposals looked at, the last one all; T: overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from quadrat.metrics.gathered import joined
from quadrat.ops.boxes import iou
from quadrat.structures import Targets

NUMBERS = (100, 300, 500, 1000, 2000)
"""Of proposals a picture, where nothing else is asked for."""

AR_IOUS = np.linspace(0.5, 0.95, 10)
"""The overlaps that COCO's average recall is the mean over."""

CURVE_IOUS = np.linspace(0.5, 1, 51)
"""The overlaps of the curve of recall."""

ALL = "all"


class Curves(NamedTuple):
    """What `ProposalScores` last computed: at ``numbers`` (Q,) of proposals looked at, in the mean, recall (Q,) at the least IoU,
    AR (Q,), MABO (Q,), and the recall (Q, T) at each of ``ious`` (T,)."""

    numbers: np.ndarray
    recall: np.ndarray
    ar: np.ndarray
    mabo: np.ndarray
    ious: np.ndarray
    recall_by_iou: np.ndarray


class ProposalScores(Metric):
    """How well the best of the first 100, 300 .. and of all proposals of a picture covers each object, every number 0..1.

    ``recall50@300``: objects of which one of the first 300 proposals has an IoU of at least 0.5, likewise for the other
    ``ious``; ``ar@300``: the mean of such recalls over IoU 0.5, 0.55 .. 0.95 (COCO's average recall); ``abo@300/<class>``: the
    mean over the class's objects of their best IoU, ``mabo@300`` the mean of that over the classes with truth (Uijlings et al.,
    IJCV 2013, section 5); ``@all``: of all proposals; ``proposals``: how many there are, a picture.
    Each object looks for its best proposal on its own, as in the papers, so that one proposal may serve two objects; COCO's
    evaluator gives each proposal to one object only, and is lower where objects share their best one. Classes of proposals do
    not matter, ignored objects do not count. Every rank sees the same result.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True

    overlaps: list[Tensor]
    looked_at: Tensor
    images: Tensor

    def __init__(
        self, classes: Sequence[str], numbers: Sequence[int] = NUMBERS, ious: Sequence[float] = (0.5,), **options: Any
    ) -> None:
        super().__init__(**options)
        if not all(number >= 1 for number in numbers) or list(numbers) != sorted(set(numbers)):
            raise ValueError(
                f"numbers of proposals are 1 or more, each larger than the one before, got {list(numbers)}"
            )
        if not ious or not all(0 < value <= 1 for value in ious):
            raise ValueError(f"ious are one or more overlaps above 0 and up to 1, got {list(ious)}")
        self.classes, self.numbers, self.ious = tuple(classes), tuple(numbers), tuple(ious)
        self.at = (*(str(number) for number in numbers), ALL)
        self._rows = np.zeros((0, 1 + len(self.at)), dtype=np.float32)
        self._looked_at, self._images = np.zeros(len(self.at), dtype=np.int64), 0
        # a row for each object: its label, and its best IoU at each number; flat, see `gathered`
        self.add_state("overlaps", default=[], dist_reduce_fx="cat")
        self.add_state("looked_at", default=torch.zeros(len(self.at), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def names(self) -> tuple[str, ...]:
        """The numbers that ``compute`` gives whenever there is truth of every class."""
        return (*self._always(), *(f"abo@{at}/{name}" for at in self.at for name in self.classes))

    def _always(self) -> tuple[str, ...]:
        kinds = (*(f"recall{100 * value:g}" for value in self.ious), "ar", "mabo")
        return (*(f"{kind}@{at}" for kind in kinds for at in self.at), "proposals")

    def update(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> None:
        """Add pictures: the proposals (P, 4) of each, best first, and its truth in the same frame."""
        for boxes, target in zip(proposals, targets, strict=True):
            _check(boxes, target, self.classes)
            rows = self._best(boxes, target)
            self.overlaps.append(rows.flatten().to(self.looked_at.device))
            self.looked_at = self.looked_at + torch.tensor(self._counts(len(boxes)), device=self.looked_at.device)
            self.images = self.images + 1

    def _counts(self, proposals: int) -> list[int]:
        """How many of so many proposals are looked at, at each of the numbers (Q,)."""
        return [*(min(number, proposals) for number in self.numbers), proposals]

    def _best(self, boxes: Tensor, target: Targets) -> Tensor:
        """The label of each object that counts, and its best IoU at each of the numbers: (M, 1 + Q) float32."""
        truth, labels = target.boxes[~target.ignore], target.labels[~target.ignore]
        nothing = torch.zeros(len(truth), 1, dtype=torch.float64)
        overlaps = torch.cat([nothing, iou(truth.double(), boxes.cpu().double())], dim=1)
        best = overlaps.cummax(dim=1).values[:, self._counts(len(boxes))]
        return torch.cat([labels[:, None], best], dim=1).float()

    def compute(self) -> dict[str, float]:
        """The named numbers over all pictures of all ranks; warns and gives zeros when there was nothing to cover."""
        self._rows = joined(self.overlaps).reshape(-1, 1 + len(self.at)).cpu().numpy()
        self._looked_at, self._images = self.looked_at.cpu().numpy(), int(self.images)
        curves, abo = self.curves(), self._abo()
        if not len(self._rows):
            rank_zero_warn(f"no object in {self._images} pictures to cover, so recalls are given as 0", UserWarning)
        recalls = {f"recall{100 * value:g}": self._recall([value])[:, 0] for value in self.ious}
        kinds = recalls | {"ar": curves.ar, "mabo": curves.mabo}
        found = {
            f"{kind}@{at}": float(v) for kind, values in kinds.items() for at, v in zip(self.at, values, strict=True)
        }
        found["proposals"] = float(curves.numbers[-1])
        return found | {
            f"abo@{at}/{name}": float(abo[name][column]) for column, at in enumerate(self.at) for name in abo
        }

    def curves(self) -> Curves:
        """The numbers as arrays, as last computed."""
        abo = self._abo()
        return Curves(
            numbers=self._looked_at / max(self._images, 1),
            recall=self._recall(self.ious[:1])[:, 0],
            ar=self._recall(AR_IOUS).mean(axis=1),
            mabo=np.mean(list(abo.values()), axis=0) if abo else np.zeros(len(self.at)),
            ious=CURVE_IOUS,
            recall_by_iou=self._recall(CURVE_IOUS),
        )

    def _recall(self, ious: Sequence[float] | np.ndarray) -> np.ndarray:
        """The share of objects whose best IoU reaches each of ``ious`` (T,), at each number of proposals: (Q, T)."""
        limits = np.asarray(ious, dtype=np.float32)  # as the overlaps are, so that 0.65 reaches 0.65
        reached = self._rows[:, 1:, None] >= limits
        return reached.sum(axis=0) / max(len(reached), 1)

    def _abo(self) -> dict[str, np.ndarray]:
        """The mean best IoU (Q,) of the objects of each class with truth."""
        labels, best = self._rows[:, 0], self._rows[:, 1:].astype(np.float64)
        present = {name: labels == label for label, name in enumerate(self.classes, start=1)}
        return {name: best[rows].mean(axis=0) for name, rows in present.items() if rows.any()}

    def table(self) -> str:
        """One line per number of proposals, and one per class; call it on every rank, since it may compute first."""
        numbers = self.compute()
        kinds = [name.removesuffix(f"@{ALL}") for name in self._always() if name.endswith(f"@{ALL}")]
        heads = [kind.upper() if kind in ("ar", "mabo") else kind for kind in kinds]
        lines = [f"{'proposals':<9}" + "".join(f" {head:>8}" for head in heads)]
        lines += [f"{at:<9}" + "".join(f" {numbers[f'{kind}@{at}']:>8.3f}" for kind in kinds) for at in self.at]
        return "\n".join([*lines, "", *self._class_lines(), "", self._told(numbers["proposals"])])

    def _class_lines(self) -> list[str]:
        abo, width = self._abo(), max(map(len, ("class", *self.classes)))
        counts = {name: int((self._rows[:, 0] == label).sum()) for label, name in enumerate(self.classes, start=1)}
        cells = {name: f"{abo[name][-1]:.3f}" if name in abo else "-" for name in self.classes}
        return [
            f"{'class':<{width}} {'objects':>8} {'ABO':>6}",
            *(f"{name:<{width}} {counts[name]:>8} {cells[name]:>6}" for name in self.classes),
        ]

    def _told(self, proposals: float) -> str:
        return f"{len(self._rows)} objects in {self._images} pictures, {proposals:.0f} proposals a picture"


def _check(boxes: Tensor, target: Targets, classes: Sequence[str]) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not bool(boxes.isfinite().all()):
        raise ValueError(f"image {target.image_id}: wanted finite proposals (P, 4), got {tuple(boxes.shape)}")
    if len(target) and int(target.labels.max()) > len(classes):
        raise ValueError(f"image {target.image_id}: labels are 1..{len(classes)}, got {target.labels.tolist()}")
