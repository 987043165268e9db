"""Average precision of boxes under the rules of COCO and Pascal VOC."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from quadrat.metrics.box_rows import DetectionRows, TruthRows
from quadrat.metrics.coco_boxes import coco_box_numbers
from quadrat.metrics.gathered import joined, numbered
from quadrat.metrics.voc_boxes import area_under_precision, interpolated_precision, voc_box_numbers
from quadrat.structures import Detections, Targets


class Preset(NamedTuple):
    """One set of rules: its evaluator, the numbers it always gives, and the table's columns (per class -> over all)."""

    evaluate: Callable[[TruthRows, DetectionRows, Sequence[str]], dict[str, float]]
    always: tuple[str, ...]
    columns: dict[str, str]


PRESETS = {
    "coco": Preset(
        coco_box_numbers,
        always=("map", "ap50", "ap75", "ar1", "ar10", "ar100"),
        columns={"ap": "map", "ap50": "ap50"},
    ),
    "voc07": Preset(
        partial(voc_box_numbers, average_precision=interpolated_precision), always=("ap50",), columns={"ap50": "ap50"}
    ),
    "voc12": Preset(
        partial(voc_box_numbers, average_precision=area_under_precision), always=("ap50",), columns={"ap50": "ap50"}
    ),
}


class BoxAP(Metric):
    """Average precision of boxes in the images' original frames, by the rules named in ``preset``.

    ``coco``: ``map``, ``ap50``, ``ap75``, ``ap_small`` ... ``ar_large``, ``ap/<class>``, ``ap50/<class>``, with crowds
    ignored; ``voc07`` (eleven recall points) and ``voc12`` (area): ``ap50``, ``ap50/<class>``, with difficult ignored.
    Numbers are 0..1; one without truth of its size or class is left out. Every rank sees the same result.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True  # ``forward`` must not restart the image numbers at every batch

    detections: list[Tensor]
    truths: list[Tensor]
    images: Tensor

    def __init__(self, classes: Sequence[str], preset: str = "coco", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {list(PRESETS)}, got {preset!r}")
        self.classes = tuple(classes)
        self.preset = preset
        self._truth_counts: dict[str, int] = {}
        # Flat, because torchmetrics gathers a rank without images as an empty tensor of one dimension.
        self.add_state("detections", default=[], dist_reduce_fx="cat")
        self.add_state("truths", default=[], dist_reduce_fx="cat")
        self.add_state("images", default=torch.tensor(0), dist_reduce_fx="sum")

    def names(self) -> tuple[str, ...]:
        """The numbers that ``compute`` gives whenever there is truth of every class."""
        preset = PRESETS[self.preset]
        return (*preset.always, *(f"{kind}/{name}" for kind in preset.columns for name in self.classes))

    def update(self, detections: Sequence[Detections], targets: Sequence[Targets]) -> None:
        """Add images: the detections of each, in any frame of it, and its truth."""
        if len(detections) != len(targets):
            raise ValueError(f"one result per image wanted, got {len(detections)} results for {len(targets)} images")
        if not targets:
            return
        pairs = list(zip(detections, targets, strict=True))
        found = [DetectionRows.pack(d.rescaled(t.original_size), image) for image, (d, t) in enumerate(pairs)]
        truth = [TruthRows.pack(t, image) for image, (_, t) in enumerate(pairs)]
        self.detections.append(numbered(torch.cat(found), self.images))
        self.truths.append(numbered(torch.cat(truth), self.images))
        self.images = self.images + len(pairs)

    def compute(self) -> dict[str, float]:
        """The named numbers over all images of all ranks; warns and gives zeros when there was nothing to find."""
        truth, found = TruthRows.unpack(joined(self.truths)), DetectionRows.unpack(joined(self.detections))
        _check(truth, found, self.classes)
        counts = np.bincount(truth.labels[~truth.ignore], minlength=len(self.classes) + 1)
        self._truth_counts = dict(zip(self.classes, counts[1:].tolist(), strict=True))
        preset = PRESETS[self.preset]
        if not counts.any():
            rank_zero_warn(
                f"no truth box in {int(self.images)} images, so average precision is given as 0", UserWarning
            )
            return dict.fromkeys(preset.always, 0.0)
        return preset.evaluate(truth, found, self.classes)

    def table(self) -> str:
        """One line per class: its truth boxes and its numbers; call it on every rank, since it may compute first."""
        return _table(self.compute(), self._truth_counts, PRESETS[self.preset].columns)


def _check(truth: TruthRows, found: DetectionRows, classes: Sequence[str]) -> None:
    for what, labels in (("truth", truth.labels), ("detections", found.labels)):
        wrong = labels[(labels < 1) | (labels > len(classes))]
        if len(wrong):
            raise ValueError(f"labels of {what} must be 1..{len(classes)}, got {np.unique(wrong).tolist()}")
    bad = ~(np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(bad)} detections have a box or score that is not finite")


def _table(result: Mapping[str, float], counts: Mapping[str, int], columns: Mapping[str, str]) -> str:
    width = max(len(name) for name in ("class", *counts))
    lines = [("class", "truths", [column.upper() for column in columns])]
    lines += [(name, str(n), [_cell(result.get(f"{c}/{name}")) for c in columns]) for name, n in counts.items()]
    lines.append(("all", str(sum(counts.values())), [_cell(result.get(key)) for key in columns.values()]))
    return "\n".join(f"{name:<{width}} {n:>8}" + "".join(f" {c:>6}" for c in cells) for name, n, cells in lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
