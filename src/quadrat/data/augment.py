"""Change a picture and its truth together, by albumentations.

Every object is a numbered row: boxes carry the numbers, and masks, joints and captions follow the numbers that survive.
Outlines, joints and the corners of proposals travel as points: no mask is drawn here, and no crop is made to suit proposals.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.augmentations.geometric.distortion import BaseDistortion
from faster_coco_eval.core import mask as rle
from scipy.ndimage import map_coordinates
from torch.nn import functional

from quadrat.ops.boxes import area, clip
from quadrat.structures import IGNORE_INDEX, Mask, Sample, Targets

PIXEL_CENTRE = 0.5
"""albumentations counts points in pixel indices, Quadrat in continuous coordinates."""


class ResizeShortEdge(A.DualTransform):
    """Scale so that the short edge is one of ``short`` pixels, unless the long edge would pass ``long``; no padding."""

    def __init__(self, short: int | Sequence[int], long: int, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.short = [short] if isinstance(short, int) else list(short)
        self.long = long

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        height, width = params["shape"][:2]
        short = self.py_random.choice(self.short)
        scale = min(short / min(height, width), self.long / max(height, width))
        return {"size": (max(1, int(height * scale)), max(1, int(width * scale)))}

    def apply(self, img: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        return cv2.resize(img, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)

    def apply_to_mask(self, mask: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        # the pixel at the centre, as in the picture; INTER_NEAREST takes the one at the upper left corner
        return cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)

    def apply_to_bboxes(self, bboxes: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        return bboxes  # albumentations keeps them relative to the picture

    def apply_to_keypoints(self, keypoints: np.ndarray, size: tuple[int, int], **params: Any) -> np.ndarray:
        height, width = params["shape"][:2]
        factors = np.array([size[1] / width, size[0] / height], dtype=keypoints.dtype)
        moved = keypoints.copy()
        moved[:, :2] = (keypoints[:, :2] + PIXEL_CENTRE) * factors - PIXEL_CENTRE
        return moved


class ElasticGrid(A.DualTransform):
    """U-Net's elastic deformation (Ronneberger 2015, section 3.1): ``nodes`` x ``nodes`` points over the picture, its corners
    among them, move by N(0, ``std``) pixels in x and in y, and what is between them bicubically. For training: the
    picture's original size is known only roughly afterwards.
    """

    def __init__(self, nodes: int = 3, std: float = 10.0, p: float = 1.0) -> None:
        super().__init__(p=p)
        if nodes < 2:
            raise ValueError(f"an elastic grid has at least 2 nodes a side, got {nodes}")
        self.nodes, self.std = nodes, std

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        moves = self.random_generator.normal(0, self.std, (1, 2, self.nodes, self.nodes)).astype(np.float32)
        size = params["shape"][:2]
        field = functional.interpolate(torch.from_numpy(moves), size=size, mode="bicubic", align_corners=True)
        return {"field": field[0].numpy()}  # (2, H, W): how far from a pixel, in x and in y, lies what it will show

    def apply(self, img: np.ndarray, field: np.ndarray, **params: Any) -> np.ndarray:
        return cv2.remap(img, *_places(field), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)

    def apply_to_mask(self, mask: np.ndarray, field: np.ndarray, **params: Any) -> np.ndarray:
        fill = (IGNORE_INDEX,)
        return cv2.remap(mask, *_places(field), cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)

    def apply_to_bboxes(self, bboxes: np.ndarray, field: np.ndarray, **params: Any) -> np.ndarray:
        size = np.array(field.shape[:0:-1], dtype=np.float32)  # width and height: boxes are relative to them
        x1, y1, x2, y2 = bboxes[:, :4].T[..., None]  # (N, 1) each
        along_x, along_y = x1 + (x2 - x1) * EDGE, y1 + (y2 - y1) * EDGE  # (N, points)
        xs = np.concatenate([along_x, along_x, x1 + 0 * EDGE, x2 + 0 * EDGE], axis=1)
        ys = np.concatenate([y1 + 0 * EDGE, y2 + 0 * EDGE, along_y, along_y], axis=1)
        edges = np.stack([xs, ys], axis=2) * size - PIXEL_CENTRE  # (N, 4 * points, 2)
        edges = (_moved_by(edges.reshape(-1, 2), field).reshape(edges.shape) + PIXEL_CENTRE) / size
        return np.concatenate([edges.min(axis=1), edges.max(axis=1), bboxes[:, 4:]], axis=1)

    def apply_to_keypoints(self, keypoints: np.ndarray, field: np.ndarray, **params: Any) -> np.ndarray:
        moved = keypoints.copy()
        moved[:, :2] = _moved_by(keypoints[:, :2], field)
        return moved


EDGE = np.linspace(0, 1, 9)
"""Where the points of a box's side lie that are moved to find the box around them."""


def _places(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the new picture comes from, x (H, W) and y (H, W), for a field (2, H, W)."""
    y, x = np.indices(field.shape[1:], dtype=np.float32)
    return x + field[0], y + field[1]


def _moved_by(points: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Where points (N, 2) go: a new place plus the field there is the old one, solved by a few repetitions."""
    moved = points
    for _ in range(10):
        at = [moved[:, 1], moved[:, 0]]
        moved = points - np.stack([map_coordinates(plane, at, order=1, mode="nearest") for plane in field], axis=1)
    return moved


class Augment:
    """A list of albumentations transforms applied to a Sample; what is drawn is a function of the seed alone.

    An object or proposal whose box keeps less than ``min_visibility`` of its area, or less than ``min_area`` pixels, is dropped.
    ``flip_pairs`` are the joints that change names in a mirror.
    """

    def __init__(
        self,
        transforms: Sequence[A.BasicTransform] = (),
        *,
        min_visibility: float = 0.1,
        min_area: float = 1.0,
        flip_pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.transforms = list(transforms)
        for transform in _each(self.transforms):
            _refuse_loss_of_points(transform)
            if hasattr(transform, "fill_mask"):  # what a pad or a turn uncovers has no class
                transform.fill_mask = IGNORE_INDEX  # pyright: ignore[reportAttributeAccessIssue]
        self.flip_pairs = tuple(flip_pairs)
        self.min_visibility, self.min_area = min_visibility, min_area
        with warnings.catch_warnings():  # a list of colour changes alone has no use for boxes, and that is fine
            warnings.filterwarnings("ignore", message="Got processor for")
            self.compose = A.Compose(
                list[Any](self.transforms),
                bbox_params=A.BboxParams(
                    "pascal_voc", label_fields=["rows"], clip=True, min_visibility=min_visibility, min_area=min_area
                ),
                keypoint_params=A.KeypointParams("xy", remove_invisible=False),
            )

    def __call__(self, sample: Sample, seed: int) -> Sample:
        if not self.transforms:
            return sample
        self._seed(seed)
        targets = sample.targets
        points = _Points(targets)
        result = self.compose(
            image=np.ascontiguousarray(sample.image),
            bboxes=targets.boxes.numpy(),
            rows=np.arange(len(targets)),
            keypoints=points.flat,
            **_planes(targets),
        )
        return self._rebuilt(result, targets, points)

    def _seed(self, seed: int) -> None:
        self.compose.set_random_seed(seed)
        for number, transform in enumerate(self.transforms):  # alike seeds would flip and recolour the same pictures
            transform.set_random_seed((seed + 7919 * number) % 2**32)

    def _rebuilt(self, result: dict[str, Any], targets: Targets, points: _Points) -> Sample:
        image = result["image"]
        size = (image.shape[0], image.shape[1])
        rows = [int(row) for row in result["rows"]]
        boxes = torch.from_numpy(np.asarray(result["bboxes"], dtype=np.float32).reshape(-1, 4))
        # the way to relative coordinates and back costs the last digit
        boxes = clip(boxes[None], torch.tensor([size]))[0]
        kept = targets.rows(rows)
        moved = points.moved(result["keypoints"], size)
        share = area(boxes) / area(kept.boxes).clamp(min=1e-6)
        changed = replace(
            kept,
            boxes=boxes,
            areas=kept.areas * share,
            size=size,
            original_size=moved.original_size(targets),
            masks=None if kept.masks is None else _masks(rows, targets, moved, result.get("masks")),
            keypoints=None if kept.keypoints is None else moved.joints(rows, targets, self.flip_pairs),
            semantic=None if targets.semantic is None else torch.from_numpy(np.ascontiguousarray(result["mask"])),
            proposals=None if targets.proposals is None else moved.proposals(self.min_visibility, self.min_area),
        )
        return Sample(image, changed)


def _each(transforms: Sequence[Any]) -> Iterator[Any]:
    """All transforms, those within a choice such as OneOf too."""
    for transform in transforms:
        yield transform
        yield from _each(getattr(transform, "transforms", ()))


def _refuse_loss_of_points(transform: Any) -> None:
    if isinstance(transform, BaseDistortion | A.GridElasticDeform):
        raise ValueError(
            f"albumentations.{type(transform).__name__} loses points at the border of a picture, and with them the outlines "
            "and joints; use quadrat.data.augment.ElasticGrid"
        )


def _planes(targets: Targets) -> dict[str, Any]:
    """Only what has no outline is a plane: RLE masks (crowds) and the semantic map."""
    planes: dict[str, Any] = {}
    bitmaps = [rle.decode(mask) for mask in targets.masks or () if isinstance(mask, dict)]
    if bitmaps:  # albumentations cannot stack an empty list
        planes["masks"] = np.stack(bitmaps)
    if targets.semantic is not None:
        planes["mask"] = targets.semantic.numpy()
    return planes


class _Points:
    """Three sentinels, every joint, the corners of every proposal, every vertex of every outline in one array, and the way back.

    The sentinels are three corners of the picture: what becomes of them tells the scale and whether there was a mirror.
    """

    def __init__(self, targets: Targets) -> None:
        height, width = targets.size
        sentinels = np.array([[0, 0], [width, 0], [0, height]], dtype=np.float32)
        keypoints = targets.keypoints
        joints = np.zeros((0, 2), np.float32) if keypoints is None else keypoints[..., :2].reshape(-1, 2).numpy()
        outlines = [polygon for mask in targets.masks or () if isinstance(mask, list) for polygon in mask]
        corners = np.zeros((0, 2), np.float32) if targets.proposals is None else _corners(targets.proposals.numpy())
        self.ends, self.size = np.cumsum([3, len(joints), len(corners)]), targets.size
        self.flat = np.concatenate([sentinels, joints, corners, *outlines]).astype(np.float32) - PIXEL_CENTRE

    def moved(self, flat: Any, size: tuple[int, int]) -> _Moved:
        """Where the points are now, in a picture of this size (H, W)."""
        flat = np.asarray(flat, dtype=np.float32).reshape(-1, 2) + PIXEL_CENTRE
        height, width = self.size
        axes = (flat[1:3] - flat[0]).astype(np.float64) / [[width], [height]]
        _, joints, corners, vertices = np.split(flat, self.ends)
        return _Moved(axes, joints, corners, vertices, size)


def _corners(boxes: np.ndarray) -> np.ndarray:
    """The four corners of boxes (N, 4), one box after the other: (4 N, 2)."""
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].reshape(-1, 2)


class _Moved:
    """The points after the change; ``axes`` (2, 2) are the x and the y direction of the old picture in the new one."""

    def __init__(
        self, axes: np.ndarray, joints: np.ndarray, corners: np.ndarray, vertices: np.ndarray, size: tuple[int, int]
    ) -> None:
        self.axes, self.flat_joints, self.corners, self.vertices, self.size = axes, joints, corners, vertices, size

    @property
    def mirrored(self) -> bool:
        return float(np.linalg.det(self.axes)) < 0

    def original_size(self, targets: Targets) -> tuple[int, int]:
        """The size this view had before it was scaled: the picture's own if it is whole, the crop's otherwise."""
        scale_x, scale_y = np.linalg.norm(self.axes, axis=0)
        before = targets.size[0] / targets.original_size[0], targets.size[1] / targets.original_size[1]
        return max(1, round(self.size[0] / scale_y / before[0])), max(1, round(self.size[1] / scale_x / before[1]))

    def joints(self, rows: list[int], targets: Targets, flip_pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Joints (M, K, 3) of the surviving rows; one that left the picture is unlabelled, a mirror swaps left and right."""
        assert targets.keypoints is not None
        joints = targets.keypoints.clone()
        joints[..., :2] = torch.from_numpy(self.flat_joints).reshape(*joints.shape[:2], 2)
        if self.mirrored:
            order = list(range(joints.shape[1]))
            for left, right in flip_pairs:
                order[left], order[right] = order[right], order[left]
            joints = joints[:, order]
        joints = joints[torch.as_tensor(rows, dtype=torch.long)]
        limit = torch.tensor([self.size[1], self.size[0]])
        inside = ((joints[..., :2] >= 0) & (joints[..., :2] <= limit)).all(-1)
        labelled = (joints[..., 2] > 0) & inside
        return torch.where(labelled[..., None], joints, 0.0)

    def proposals(self, min_visibility: float, min_area: float) -> torch.Tensor:
        """The boxes (P, 4) round each proposal's corners, cut to the picture; those of which too little is left are dropped."""
        corners = torch.from_numpy(self.corners).reshape(-1, 4, 2)
        whole = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
        boxes = clip(whole[None], torch.tensor([self.size]))[0]
        left = area(boxes)
        return boxes[(left >= min_visibility * area(whole)) & (left >= min_area)]

    def outlines(self, targets: Targets) -> list[Mask | None]:
        """Every row's outline with its vertices where they are now; None for a row that has an RLE."""
        outlines: list[Mask | None] = []
        start = 0
        for mask in targets.masks or ():
            if not isinstance(mask, list):
                outlines.append(None)
                continue
            polygons = []
            for polygon in mask:
                polygons.append(self.vertices[start : start + len(polygon)])
                start += len(polygon)
            outlines.append(polygons)
        return outlines


def _masks(rows: list[int], targets: Targets, moved: _Moved, planes: Any) -> tuple[Mask, ...]:
    """The surviving rows' masks: outlines moved, RLEs encoded anew from their planes."""
    masks = moved.outlines(targets)
    bitmaps = iter(planes if planes is not None else ())
    # a plane is 1 on the object; the fill of a pad is the ignore value and no object
    full: list[Mask] = [
        rle.encode(np.asfortranarray((next(bitmaps) == 1).astype(np.uint8))) if mask is None else mask for mask in masks
    ]
    return tuple(full[row] for row in rows)
