"""COCO's average precision of poses by object keypoint similarity (OKS), through faster_coco_eval.

N: poses found, M: true objects. The first column of every row is its picture's number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadrat.metrics.coco_boxes import IOU_50, IOU_75
from quadrat.metrics.limbs import joint_kind, joint_kinds
from quadrat.structures import Detections, Schema, Targets

log = logging.getLogger(__name__)

SIGMAS = {
    **{"nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062},
    **{"hip": 0.107, "knee": 0.087, "ankle": 0.089},  # COCO's seventeen
    **{"neck": 0.079, "head": 0.079, "head top": 0.079},  # CrowdPose's neck and head
}
"""How far annotators differ about a joint, as a share of the root of the person's area."""

HALF_PIXEL = 0.5  # COCO's joints name pixels, ours are continuous; its boxes are continuous too
BEFORE_JOINTS = 8  # columns of a row of the truth: picture, four of the box, label, area, ignore
BEFORE_POSE = 3  # of a row of a result: picture, label, score


def sigmas_of(schema: Schema, own: Mapping[str, float]) -> np.ndarray | None:
    """The sigmas (K,) of a schema's joints, by kind, ``own`` ones before the known; None when one has none.

    Raises ValueError when ``own`` names a kind that the schema does not have.
    """
    kinds = joint_kinds(schema)
    strange = sorted(set(own) - set(kinds))
    if strange:
        raise ValueError(f"task.metric.sigmas names {strange}, the kinds of joints are {list(kinds)}")
    known = {**SIGMAS, **own}
    if any(kind not in known for kind in kinds):
        return None
    return np.array([known[joint_kind(name)] for name in schema.joints])


def truth_rows(targets: Targets, joints: Tensor, image: int) -> Tensor:
    """One picture's objects in its original frame, ``joints`` (M, K, 3) as well: float32 (M, 8 + 3K)."""
    size = targets.original_size
    columns = (targets.labels, targets.areas_at(size), targets.ignore)
    boxes = targets.boxes_at(size)
    return torch.cat([_number(boxes, image), boxes, *(c[:, None].float() for c in columns), joints.flatten(1)], dim=1)


def result_rows(found: Detections, joints: Tensor, image: int) -> Tensor:
    """One picture's poses, their ``joints`` (N, K, 3) on the host and in its original frame: float32 (N, 3 + 3K)."""
    columns = (c.to(joints.device, torch.float32)[:, None] for c in (found.labels, found.scores))
    return torch.cat([_number(joints, image), *columns, joints.flatten(1).float()], dim=1)


def oks_numbers(truth: np.ndarray, found: np.ndarray, classes: Sequence[str], sigmas: np.ndarray) -> dict[str, float]:
    """`oks_ap`, `oks_ap50`, `oks_ap75`, each a mean over the classes with posed objects; nothing without such objects."""
    from faster_coco_eval import COCO, COCOeval_faster  # brings OpenCV, which training alone need not load

    dataset = {
        "info": {},
        "images": [{"id": image} for image in np.union1d(truth[:, 0], found[:, 0]).astype(int).tolist()],
        "annotations": truth_entries(truth),
        "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
    }
    coco = COCO(dataset)
    results = coco.loadRes(result_entries(found))
    evaluator = COCOeval_faster(coco, results, "keypoints", print_function=log.debug, kpt_oks_sigmas=sigmas.tolist())
    evaluator.evaluate()
    evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]  # (10 OKS, 101 recall points, C), any area
    cells = {"oks_ap": precision, "oks_ap50": precision[IOU_50], "oks_ap75": precision[IOU_75]}
    defined = {name: values[values > -1] for name, values in cells.items()}
    return {name: float(values.mean()) for name, values in defined.items() if values.size}


def truth_entries(rows: np.ndarray) -> list[dict[str, Any]]:
    """COCO annotations of M objects, in the order of the pictures; ids start at 1 because 0 reads as unmatched."""
    entries = []
    for number, row in enumerate(_by_picture(rows), 1):
        image, x1, y1, x2, y2, label, area, crowd = row[:BEFORE_JOINTS].tolist()
        joints = row[BEFORE_JOINTS:].reshape(-1, 3)
        entry = {"id": number, "image_id": int(image), "category_id": int(label), "iscrowd": int(crowd), "area": area}
        entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "keypoints": _pixels(joints)}
        entries.append(entry | {"num_keypoints": int((joints[:, 2] > 0).sum())})
    return entries


def result_entries(rows: np.ndarray) -> list[dict[str, Any]]:
    """COCO results of N poses, in the order of the pictures."""
    entries = []
    for row in _by_picture(rows):
        image, label, score = row[:BEFORE_POSE].tolist()
        entry = {"image_id": int(image), "category_id": int(label), "score": score}
        entries.append(entry | {"keypoints": _pixels(row[BEFORE_POSE:].reshape(-1, 3))})
    return entries


def _by_picture(rows: np.ndarray) -> np.ndarray:
    """So that the order in which ranks were gathered cannot decide between equal scores."""
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _pixels(joints: np.ndarray) -> list[float]:
    return (joints - (HALF_PIXEL, HALF_PIXEL, 0)).flatten().tolist()


def _number(rows: Tensor, image: int) -> Tensor:
    """A column (N, 1); float32 holds whole numbers up to 16.7 million."""
    return rows.new_full((len(rows), 1), image, dtype=torch.float32)
