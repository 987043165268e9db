"""COCO's box numbers: entries as in COCO's files -> one evaluation -> named means.

faster_coco_eval is called directly: torchmetrics' wrapper of it asks for precision at float32 recall points and is off
in the fifth digit, and it evaluates again for every class although the one pass already holds them all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from quadrat.metrics.box_rows import DetectionRows, TruthRows

log = logging.getLogger(__name__)

IOU_50, IOU_75 = 0, 5
"""Where the IoU thresholds .5 and .75 stand among .5, .55, ... .95."""

ALL, SMALL, MEDIUM, LARGE = range(4)
"""The area ranges: any, under 32 squared, up to 96 squared, above."""

MOST_1, MOST_10, MOST_100 = range(3)
"""The limits on detections per class and image."""


class CocoCurves(NamedTuple):
    """What one evaluation yields, -1 where there is no truth to find.

    ``precision`` (10 IoU thresholds, 101 recall points, C, 4 area ranges, 3 limits), ``recall`` without the points.
    """

    precision: np.ndarray
    recall: np.ndarray


def coco_box_numbers(truth: TruthRows, found: DetectionRows, classes: Sequence[str]) -> dict[str, float]:
    """COCO's twelve numbers and ``ap/<class>``, ``ap50/<class>``; those without truth are left out."""
    images = np.union1d(truth.images, found.images).tolist()
    return summarise(evaluate(truth_entries(truth), result_entries(found), images, classes), classes)


def truth_entries(truth: TruthRows) -> list[dict[str, Any]]:
    """COCO annotations of M boxes; ids start at 1 because COCO's evaluator reads 0 as unmatched."""
    columns = (truth.images, truth.labels, _corner_and_size(truth.boxes), truth.areas, truth.ignore.astype(int))
    return [
        {"id": row, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
        for row, (image, label, box, area, crowd) in enumerate(zip(*(c.tolist() for c in columns), strict=True), 1)
    ]


def result_entries(found: DetectionRows) -> list[dict[str, Any]]:
    """COCO results of N boxes; the outline is named, or the evaluator would make a polygon of each box."""
    columns = (found.images, found.labels, _corner_and_size(found.boxes), found.scores)
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": score, "segmentation": None}
        for image, label, box, score in zip(*(c.tolist() for c in columns), strict=True)
    ]


def evaluate(
    truths: list[dict[str, Any]], results: list[dict[str, Any]], images: Sequence[int], classes: Sequence[str]
) -> CocoCurves:
    """Match the results with the truths at every threshold; category ids are the labels 1..C."""
    from faster_coco_eval import COCO, COCOeval_faster  # brings OpenCV, which training alone need not load

    dataset = {
        "info": {},
        "images": [{"id": image} for image in images],
        "annotations": truths,
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
    }
    coco = COCO(dataset)
    evaluator = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=log.debug)
    evaluator.evaluate()
    evaluator.accumulate()
    return CocoCurves(np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"]))


def summarise(curves: CocoCurves, classes: Sequence[str]) -> dict[str, float]:
    """Mean the curves into named numbers, each over what it has truth for, and leave out those that have none."""
    precision, recall = curves.precision[..., MOST_100], curves.recall  # (10, 101, C, 4), (10, C, 4, 3)
    cells = {
        "map": precision[..., ALL],
        "ap50": precision[IOU_50, ..., ALL],
        "ap75": precision[IOU_75, ..., ALL],
        "ap_small": precision[..., SMALL],
        "ap_medium": precision[..., MEDIUM],
        "ap_large": precision[..., LARGE],
        "ar1": recall[..., ALL, MOST_1],
        "ar10": recall[..., ALL, MOST_10],
        "ar100": recall[..., ALL, MOST_100],
        "ar_small": recall[..., SMALL, MOST_100],
        "ar_medium": recall[..., MEDIUM, MOST_100],
        "ar_large": recall[..., LARGE, MOST_100],
    }
    for index, name in enumerate(classes):
        cells[f"ap/{name}"] = precision[:, :, index, ALL]
        cells[f"ap50/{name}"] = precision[IOU_50, :, index, ALL]
    defined = {name: values[values > -1] for name, values in cells.items()}
    return {name: float(values.mean()) for name, values in defined.items() if values.size}


def _corner_and_size(boxes: np.ndarray) -> np.ndarray:
    """x1 y1 x2 y2 -> x1 y1 width height, both (N, 4)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
