"""What travels between the parts: the truth of one image, a padded batch, and what is seen in one image.

Conventions, obeyed everywhere:

* boxes: float32 ``(..., 4)`` x1 y1 x2 y2 in pixels of the image tensor, continuous, x2 and y2 exclusive
  (a Pascal VOC file is 1-based and inclusive: subtract 1 from x1 and y1 only);
* labels: int64, 1..C; 0 is background and padding;
* masks: polygons or RLE until the device, bool planes only where a model needs planes;
* keypoints: float32 ``(..., K, 3)`` x, y, visibility 0 unlabelled / 1 hidden / 2 visible, continuous coordinates;
* semantic map: uint8 in storage, int64 in a loss; 0 is background where a data set has one (else its first class), 255 is
  ignored;
* images: uint8 RGB until they are on the device and normalised there; padded right and bottom.

Letters in shapes: B images, C classes, H W height width, M objects, R regions, A anchors, L levels, K joints, T tokens,
D channels, N detections, S classes of pixels (with the background, where there is one).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = 255
"""The value of a pixel without a class in every semantic map."""

Polygons = list[np.ndarray]
"""One object's outline: float32 arrays ``(points, 2)`` of x, y in pixels."""

Mask = Polygons | dict[str, Any]
"""Polygons, or COCO's compressed RLE ``{"size": [H, W], "counts": bytes}``; an empty list is an object without a mask."""


@dataclass(frozen=True)
class Schema:
    """What a data set names: its classes (labels 1..C in this order), their ids in its own files, and its joints.

    ``background`` is what its semantic maps call 0; None where every pixel has a class, so that 0 is the first of them.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    joints: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()
    background: str | None = "background"

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("a data set needs at least one class, got none")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"class names must differ, got {list(self.classes)}")
        if not self.category_ids:
            object.__setattr__(self, "category_ids", tuple(range(1, len(self.classes) + 1)))
        if len(self.category_ids) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes need as many category ids, got {len(self.category_ids)}")

    def name(self, label: int) -> str:
        """The class of a label 1..C."""
        return self.classes[label - 1]

    def joint(self, name: str) -> int | None:
        """The number of a joint by its name, `left shoulder`, `left_shoulder` and `l-shoulder` alike; None if there is none."""
        known = {joint_words(joint): number for number, joint in enumerate(self.joints)}
        return known.get(joint_words(name))

    @property
    def pixel_classes(self) -> tuple[str, ...]:
        """What the values 0..S-1 of a semantic map mean."""
        return self.classes if self.background is None else (self.background, *self.classes)


def joint_words(name: str) -> tuple[str, ...]:
    """`L-Shoulder`, `LShoulder`, `shoulder_l` -> (left, shoulder): words in lower case, the side first."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    sides = {"l": "left", "r": "right"}
    plain = [sides.get(word.lower()) or word.lower() for word in words]
    return tuple(sorted(plain, key=lambda word: word not in sides.values()))


@dataclass(frozen=True)
class Targets:
    """One image's truth, checked when made; every per-object field has M rows in the same order.

    ``boxes`` (M, 4), ``labels`` (M,), ``ignore`` (M,) true for VOC's difficult and COCO's crowd, ``areas`` (M,) in pixels,
    ``size`` and ``original_size`` (H, W), ``keypoints`` (M, K, 3), ``semantic`` (H, W) uint8, ``pixel_weights`` (H, W)
    float32: what a pixel weighs beside its class, ``original_semantic`` the map as it was at ``original_size``, for scores,
    ``proposals`` (P, 4) regions that were found beforehand, best first.
    Raises ValueError naming the image, the row and the value when something is outside the conventions.
    """

    boxes: Tensor
    labels: Tensor
    size: tuple[int, int]
    image_id: int | str
    original_size: tuple[int, int]
    ignore: Tensor
    areas: Tensor
    masks: tuple[Mask, ...] | None = None
    keypoints: Tensor | None = None
    captions: tuple[str, ...] | None = None
    semantic: Tensor | None = None
    pixel_weights: Tensor | None = None
    original_semantic: Tensor | None = None
    proposals: Tensor | None = None

    @classmethod
    def make(
        cls,
        boxes: Any,
        labels: Any,
        size: tuple[int, int],
        image_id: int | str,
        *,
        ignore: Any = None,
        areas: Any = None,
        original_size: tuple[int, int] | None = None,
        **optional: Any,
    ) -> Targets:
        """Build from lists, arrays or tensors; areas default to the boxes' own, ignore to none."""
        boxes = torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)
        labels = torch.as_tensor(np.asarray(labels, dtype=np.int64)).reshape(-1)
        if ignore is None:
            ignore = np.zeros(len(boxes), dtype=bool)
        if areas is None:
            areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).numpy()
        return cls(
            boxes=boxes,
            labels=labels,
            size=size,
            image_id=image_id,
            original_size=original_size or size,
            ignore=torch.as_tensor(np.asarray(ignore, dtype=bool)).reshape(-1),
            areas=torch.as_tensor(np.asarray(areas, dtype=np.float32)).reshape(-1),
            **optional,
        )

    def __post_init__(self) -> None:
        self._check_rows()
        self._check_boxes()
        if len(self.labels) and int(self.labels.min()) < 1:
            raise ValueError(f"image {self.image_id}: labels are 1..C (0 is background), got {self.labels.tolist()}")
        if self.keypoints is not None and (self.keypoints.ndim != 3 or self.keypoints.shape[2] != 3):
            raise ValueError(f"image {self.image_id}: keypoints are (M, K, 3), got {tuple(self.keypoints.shape)}")
        if self.proposals is not None and (self.proposals.ndim != 2 or self.proposals.shape[1] != 4):
            raise ValueError(f"image {self.image_id}: proposals are (P, 4), got {tuple(self.proposals.shape)}")
        for what, plane in (("semantic map", self.semantic), ("map of pixel weights", self.pixel_weights)):
            if plane is not None and tuple(plane.shape) != self.size:
                raise ValueError(
                    f"image {self.image_id}: {what} {tuple(plane.shape)} is not the image's size {self.size}"
                )

    def _check_rows(self) -> None:
        for name in ("labels", "ignore", "areas", "masks", "keypoints", "captions"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != len(self.boxes):
                raise ValueError(f"image {self.image_id}: {len(self.boxes)} boxes but {len(rows)} rows of {name}")

    def _check_boxes(self) -> None:
        height, width = self.size
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        inside = (self.boxes >= -0.01) & (self.boxes <= limit + 0.01)
        ordered = self.boxes[:, 2:] > self.boxes[:, :2]
        good = inside.all(1) & ordered.all(1)  # NaN fails every comparison
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            problem = "degenerate (x2 > x1 and y2 > y1 wanted)" if inside[row].all() else "outside the image"
            raise ValueError(
                f"image {self.image_id}: box {row} {self.boxes[row].tolist()} is {problem}, image is {width}x{height} (WxH)"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, keep: Sequence[int]) -> Targets:
        """The same image with only these objects, in this order."""
        index = torch.as_tensor(keep, dtype=torch.long)
        return replace(
            self,
            boxes=self.boxes[index],
            labels=self.labels[index],
            ignore=self.ignore[index],
            areas=self.areas[index],
            masks=None if self.masks is None else tuple(self.masks[i] for i in keep),
            keypoints=None if self.keypoints is None else self.keypoints[index],
            captions=None if self.captions is None else tuple(self.captions[i] for i in keep),
        )

    def plain(self) -> dict[str, Any]:
        """Tensors, numbers and words alone, which `torch.load(weights_only=True)` reads; `from_plain` undoes it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["masks"] = _masks_as(self.masks, torch.from_numpy)
        return values

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Targets:
        """What `plain` was made from."""
        return cls(**{**values, "masks": _masks_as(values["masks"], Tensor.numpy)})

    def boxes_at(self, size: tuple[int, int]) -> Tensor:
        """The boxes (M, 4) in the frame of the same image at another size (H, W)."""
        return self.boxes * scale_between(self.size, size)

    def keypoints_at(self, size: tuple[int, int]) -> Tensor | None:
        """The joints (M, K, 3) in the frame of the same image at another size (H, W)."""
        factors = torch.cat([scale_between(self.size, size)[:2], torch.ones(1)])
        return None if self.keypoints is None else self.keypoints * factors

    def areas_at(self, size: tuple[int, int]) -> Tensor:
        """The areas (M,) in pixels of the same image at another size (H, W)."""
        return self.areas * (size[0] * size[1]) / (self.size[0] * self.size[1])


def _masks_as(masks: tuple[Any, ...] | None, change: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    """The same masks with the points of their polygons in another kind of array."""
    if masks is None:
        return None
    return tuple(mask if isinstance(mask, dict) else [change(points) for points in mask] for mask in masks)


class Sample(NamedTuple):
    """One picture uint8 RGB (H, W, 3) and its truth in the same frame."""

    image: np.ndarray
    targets: Targets


def scale_between(source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Factors (4,) that carry x1 y1 x2 y2 from an image of size (H, W) to the same image at another size."""
    y, x = target[0] / source[0], target[1] / source[1]
    return torch.tensor([x, y, x, y], dtype=torch.float32)


@dataclass(frozen=True)
class Batch:
    """B images padded to one size, and their truth padded to M objects; ``valid`` tells the objects from the padding.

    ``images`` (B, 3, H, W) uint8, ``sizes`` and ``original_sizes`` (B, 2) float32 height and width, ``boxes`` (B, M, 4),
    ``labels`` (B, M), ``ignore`` (B, M), ``valid`` (B, M); where every picture has them, ``keypoints`` (B, M, K, 3), ``semantic``
    (B, H, W) uint8, the padding ignored, ``pixel_weights`` (B, H, W), and ``proposals`` (B, P, 4), empty boxes behind.
    ``targets`` keeps the ragged truth on the host: for metrics, pictures, and what is rasterised late (masks, captions).
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    valid: Tensor
    targets: tuple[Targets, ...]
    keypoints: Tensor | None = None
    semantic: Tensor | None = None
    pixel_weights: Tensor | None = None
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def collate(cls, samples: Sequence[Sample], *, divisor: int = 32) -> Batch:
        """Pad images right and bottom to a multiple of ``divisor`` pixels, and objects to the largest M (at least 1)."""
        if not samples:
            raise ValueError("a batch needs at least one sample")
        targets = tuple(sample.targets for sample in samples)
        tallest = max(t.size[0] for t in targets)
        widest = max(t.size[1] for t in targets)
        height, width = -(-tallest // divisor) * divisor, -(-widest // divisor) * divisor
        images = np.zeros((len(samples), height, width, 3), dtype=np.uint8)
        for canvas, sample in zip(images, samples, strict=True):
            canvas[: sample.image.shape[0], : sample.image.shape[1]] = sample.image
        most = max(1, *(len(t) for t in targets)) if targets else 1
        return cls(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),  # channels-last in memory
            sizes=torch.tensor([t.size for t in targets], dtype=torch.float32),
            original_sizes=torch.tensor([t.original_size for t in targets], dtype=torch.float32),
            boxes=_padded([t.boxes for t in targets], most),
            labels=_padded([t.labels for t in targets], most),
            ignore=_padded([t.ignore for t in targets], most),
            valid=_padded([torch.ones(len(t), dtype=torch.bool) for t in targets], most),
            targets=targets,
            keypoints=_where_all([t.keypoints for t in targets], most),
            semantic=_planes([t.semantic for t in targets], (height, width), fill=IGNORE_INDEX),
            pixel_weights=_planes([t.pixel_weights for t in targets], (height, width), fill=0),
            proposals=_where_all([t.proposals for t in targets], _longest([t.proposals for t in targets])),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's loader calls this."""
        return self._map(Tensor.pin_memory)

    def plain(self) -> dict[str, Any]:
        """Tensors, numbers and words alone, which `torch.load(weights_only=True)` reads; `from_plain` undoes it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["targets"] = [target.plain() for target in self.targets]
        return values

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Batch:
        """What `plain` was made from."""
        return cls(**{**values, "targets": tuple(Targets.from_plain(target) for target in values["targets"])})

    def _map(self, change: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})


def _padded(rows: list[Tensor], length: int) -> Tensor:
    """Stack ragged rows into (B, length, ...) with zeros behind."""
    out = rows[0].new_zeros((len(rows), length, *rows[0].shape[1:]))
    for slot, row in zip(out, rows, strict=True):
        slot[: len(row)] = row
    return out


def _longest(rows: list[Tensor | None]) -> int:
    """The most rows that a picture has, and at least one."""
    return max(1, *(0 if row is None else len(row) for row in rows))


def _where_all(rows: list[Tensor | None], length: int) -> Tensor | None:
    """Ragged rows as (B, length, ...) with zeros behind; None unless every picture has them."""
    present = [row for row in rows if row is not None]
    return _padded(present, length) if len(present) == len(rows) else None


def _planes(planes: list[Tensor | None], size: tuple[int, int], *, fill: int) -> Tensor | None:
    """Stack planes (h, w) into (B, H, W), padded right and bottom; None unless every picture has one."""
    if any(plane is None for plane in planes):
        return None
    present = [plane for plane in planes if plane is not None]
    out = present[0].new_full((len(present), *size), fill)
    for canvas, plane in zip(out, present, strict=True):
        canvas[: plane.shape[0], : plane.shape[1]] = plane
    return out


class Proposals(NamedTuple):
    """Regions of a batch where something may be, best first: ``boxes`` (B, R, 4), ``scores`` (B, R), ``valid`` (B, R)."""

    boxes: Tensor
    scores: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Detections:
    """One image's result, best first: ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) in a frame of ``size`` (H, W).

    ``keypoints`` (N, K, 3) are x, y and how sure each joint is (0..1), from models that see joints.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    keypoints: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: Any) -> Detections:
        """Filter or reorder by a mask, an index tensor or a slice."""
        return self._map(lambda rows: rows[keep])

    def rescaled(self, size: tuple[int, int]) -> Detections:
        """The same detections in the frame of the same image at another size (H, W)."""
        factors = scale_between(self.size, size).to(self.boxes.device)
        moved = replace(self, boxes=self.boxes * factors, size=size)
        if self.keypoints is None:
            return moved
        per_joint = torch.cat([factors[:2], factors.new_ones(1)])  # x, y, and what is no place
        return replace(moved, keypoints=self.keypoints * per_joint)

    def cpu(self) -> Detections:
        """The same detections on the host."""
        return self._map(Tensor.cpu)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Detections:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, Tensor)})

    def to_coco(self, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO result entries: ``bbox`` is x, y, width, height, ``category_id`` the data set's own id, joints name pixels."""
        boxes, scores, labels = self.boxes.tolist(), self.scores.tolist(), self.labels.tolist()
        entries: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(boxes, scores, labels, strict=True)
        ]
        if self.keypoints is not None:
            for entry, joints in zip(entries, self.keypoints - self.keypoints.new_tensor([0.5, 0.5, 0]), strict=True):
                entry["keypoints"] = joints.flatten().tolist()
        return entries


@dataclass(frozen=True)
class SemanticMap:
    """One image's result: ``labels`` (H, W) uint8, the class of every pixel as a value of `Schema.pixel_classes`."""

    labels: Tensor

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.labels.shape
        return height, width

    def rescaled(self, size: tuple[int, int]) -> SemanticMap:
        """The same map for the same image at another size (H, W): every pixel as the nearest one."""
        if size == self.size:
            return self
        planes = self.labels[None, None].float()
        return SemanticMap(functional.interpolate(planes, size=size, mode="nearest-exact")[0, 0].to(torch.uint8))

    def cpu(self) -> SemanticMap:
        """The same map on the host."""
        return SemanticMap(self.labels.cpu())


Result = Detections | SemanticMap
"""What a model says of one image; every kind has ``size``, ``rescaled(size)`` and ``cpu()``."""
