"""Truth and what a model sees, drawn on pictures: uint8 RGB (H, W, 3) in, a new picture out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from quadrat.structures import IGNORE_INDEX, Detections, Result, Schema, SemanticMap, Targets, joint_words

PALETTE = (
    *((230, 25, 75), (60, 180, 75), (0, 130, 200), (255, 225, 25), (245, 130, 48), (145, 30, 180), (70, 240, 240)),
    *((240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255), (170, 110, 40), (255, 250, 200)),
    *((128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (255, 255, 255)),
)
"""Twenty colours chosen to be far from each other; classes beyond the twentieth begin again."""

IGNORED = (150, 150, 150)
SIDES = {"left": (0, 130, 200), "right": (245, 130, 48), "middle": (60, 180, 75)}
"""The colours of joints and limbs."""

HOLLOW = (255, 255, 255)
UNSURE, SURE = 0.2, 0.5
"""A joint less sure than the first is not drawn, one less sure than the second is hollow, as a hidden one of the truth."""

FAR = 30_000  # pixels: what lies beyond is drawn there, since OpenCV counts in small numbers
FONT, FONT_SCALE, TAG_MARGIN = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 2


@singledispatch
def draw_result(
    found: Result, image: np.ndarray, schema: Schema, *, threshold: float = 0.5, zoom: int = 1
) -> np.ndarray:
    """The picture with what was seen in it, in the way of its kind: detections as boxes, a semantic map as colours."""
    raise TypeError(f"nothing draws a {type(found).__name__}")


@singledispatch
def draw_truth(found: Result, image: np.ndarray, targets: Targets, schema: Schema, *, zoom: int = 1) -> np.ndarray:
    """The picture with its truth of the same kind as ``found``."""
    raise TypeError(f"nothing draws the truth of a {type(found).__name__}")


@draw_result.register
def _(found: Detections, image: np.ndarray, schema: Schema, **how: Any) -> np.ndarray:
    return draw_detections(image, found, schema, **how)


@draw_truth.register
def _(found: Detections, image: np.ndarray, targets: Targets, schema: Schema, *, zoom: int = 1) -> np.ndarray:
    canvas = draw_targets(image, targets, schema, zoom=zoom)
    if found.keypoints is not None and targets.keypoints is not None:
        for joints in targets.keypoints.numpy():
            _draw_skeleton(canvas, joints[:, :2] * zoom, joints[:, 2], schema)
    return canvas


@draw_result.register
def _(found: SemanticMap, image: np.ndarray, schema: Schema, *, threshold: float = 0.5, zoom: int = 1) -> np.ndarray:
    return draw_semantic(image, found.labels.cpu().numpy(), schema, zoom=zoom)


@draw_truth.register
def _(found: SemanticMap, image: np.ndarray, targets: Targets, schema: Schema, **how: Any) -> np.ndarray:
    if targets.semantic is None:
        raise ValueError(f"image {targets.image_id} has no semantic map to draw")
    return draw_semantic(image, targets.semantic.numpy(), schema, **how)


def draw_semantic(image: np.ndarray, labels: np.ndarray, schema: Schema, *, zoom: int = 1) -> np.ndarray:
    """The picture under the colours of the classes in ``labels`` (H, W), named at the left; what is ignored is grey."""
    _check_size(image, (labels.shape[0], labels.shape[1]))
    colours = pixel_colours(schema)
    shown = [value for value in np.unique(labels).tolist() if value in colours]
    paint = image.copy()
    for value in shown:
        paint[labels == value] = colours[value]
    paint[labels == IGNORE_INDEX] = IGNORED
    canvas = _enlarged(cv2.addWeighted(image, 0.35, paint, 0.65, 0), zoom)
    y = 0
    for value in shown:
        y += _fill_tag(canvas, (0, y), colours[value], schema.pixel_classes[value])
    return canvas


def pixel_colours(schema: Schema) -> dict[int, tuple[int, int, int]]:
    """The RGB colour of every value of a semantic map; a background has none."""
    first = 1 if schema.background is not None else 0
    return {value: colour_of(value + 1 - first) for value in range(first, len(schema.pixel_classes))}


def draw_detections(
    image: np.ndarray, detections: Detections, schema: Schema, *, threshold: float = 0.5, zoom: int = 1
) -> np.ndarray:
    """The picture, ``zoom`` times enlarged, with what scores at least ``threshold``, boxes and joints; the best lie on top."""
    _check_size(image, detections.size)
    canvas = _enlarged(image, zoom)
    kept = detections.cpu()
    kept = kept[kept.scores >= threshold]
    boxes, scores, labels = kept.boxes.numpy() * zoom, kept.scores.tolist(), kept.labels.tolist()
    for i in sorted(range(len(kept)), key=scores.__getitem__):
        _draw_box(canvas, boxes[i], colour_of(labels[i]), f"{schema.name(labels[i])} {scores[i]:.2f}")
        if kept.keypoints is not None:
            joints = kept.keypoints[i].numpy()
            clear = (joints[:, 2] >= UNSURE).astype(int) + (joints[:, 2] >= SURE)
            _draw_skeleton(canvas, joints[:, :2] * zoom, clear, schema)
    return canvas


def draw_targets(image: np.ndarray, targets: Targets, schema: Schema, *, zoom: int = 1) -> np.ndarray:
    """The picture, ``zoom`` times enlarged, with the true boxes; those that do not count (difficult, crowd) are grey."""
    _check_size(image, targets.size)
    canvas = _enlarged(image, zoom)
    for box, label, ignore in zip(
        targets.boxes.numpy() * zoom, targets.labels.tolist(), targets.ignore.tolist(), strict=True
    ):
        _draw_box(canvas, box, IGNORED if ignore else colour_of(label), schema.name(label))
    return canvas


def grid(images: Sequence[np.ndarray], columns: int, *, padding: int = 4) -> np.ndarray:
    """Pictures side by side on white, row by row; each cell is as large as the largest picture."""
    if not images or columns < 1:
        raise ValueError(f"a grid needs pictures and columns, got {len(images)} pictures in {columns} columns")
    height = max(image.shape[0] for image in images) + padding
    width = max(image.shape[1] for image in images) + padding
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.full((rows * height + padding, columns * width + padding, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * height + padding, i % columns * width + padding
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a picture in the format of the path's suffix; ValueError names a path that cannot be written."""
    try:
        data = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        path.write_bytes(data.tobytes())
    except cv2.error as error:
        raise ValueError(f"cannot write the picture {path}: no image format for the suffix {path.suffix!r}") from error
    except OSError as error:
        raise ValueError(f"cannot write the picture {path}: {error.strerror or error}") from error


def colour_of(label: int) -> tuple[int, int, int]:
    """The RGB colour of a label 1..C, the same in every picture."""
    return PALETTE[(label - 1) % len(PALETTE)]


def _check_size(image: np.ndarray, size: tuple[int, int]) -> None:
    if image.shape[:2] != tuple(size):
        raise ValueError(f"what is drawn is in a frame of {tuple(size)} (H, W), the picture is {image.shape[:2]}")


def _enlarged(image: np.ndarray, zoom: int) -> np.ndarray:
    if zoom < 1:
        raise ValueError(f"zoom is a whole factor of 1 or more, got {zoom}")
    if zoom == 1:
        return image.copy()
    return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)


def _draw_box(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], text: str) -> None:
    thickness = _thickness(canvas)
    x1, y1 = (round(float(value)) for value in box[:2])
    x2, y2 = (round(float(value)) - 1 for value in box[2:])  # the last pixel inside
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
    _draw_tag(canvas, (x1, y1), colour, text)


def _draw_skeleton(canvas: np.ndarray, places: np.ndarray, clear: np.ndarray, schema: Schema) -> None:
    """Limbs and joints at ``places`` (K, 2) in the canvas; ``clear`` (K,) is 0 not there, 1 hollow with thin limbs, 2 clear."""
    pixels = [(x, y) for x, y in np.floor(places).clip(-FAR, FAR).astype(int).tolist()]
    thick = _thickness(canvas)
    for start, end in schema.limbs:
        least = min(clear[start], clear[end])
        if least:
            colour = SIDES[_side(schema.joints[start], schema.joints[end])]
            cv2.line(canvas, pixels[start], pixels[end], colour, 1 + thick if least == 2 else 1, cv2.LINE_AA)
    for name, place, how in zip(schema.joints, pixels, clear, strict=True):
        if how:
            cv2.circle(canvas, place, 1 + thick, SIDES[_side(name)] if how == 2 else HOLLOW, cv2.FILLED)
            cv2.circle(canvas, place, 1 + thick, SIDES[_side(name)], 1)


def _side(*names: str) -> str:
    """`left` or `right` where the joints' names say this and not the other one, else `middle`."""
    sides = {word for name in names for word in joint_words(name) if word in ("left", "right")}
    return sides.pop() if len(sides) == 1 else "middle"


def _thickness(canvas: np.ndarray) -> int:
    return 1 if min(canvas.shape[:2]) < 240 else 2


def _draw_tag(canvas: np.ndarray, corner: tuple[int, int], colour: tuple[int, int, int], text: str) -> None:
    """A filled tag above a box's corner, or below it where the picture ends."""
    width, height = _tag_size(text)
    x = max(0, min(corner[0], canvas.shape[1] - width))
    _fill_tag(canvas, (x, corner[1] - height if corner[1] >= height else corner[1]), colour, text)


def _tag_size(text: str) -> tuple[int, int]:
    (width, height), baseline = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    return width + 2 * TAG_MARGIN, height + baseline + TAG_MARGIN


def _fill_tag(canvas: np.ndarray, corner: tuple[int, int], colour: tuple[int, int, int], text: str) -> int:
    """A tag whose upper left corner is here; its height."""
    (x, y), (width, height) = corner, _tag_size(text)
    baseline = cv2.getTextSize(text, FONT, FONT_SCALE, 1)[1]
    cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), colour, cv2.FILLED)
    dark = np.dot(colour, (0.299, 0.587, 0.114)) < 128
    origin = (x + TAG_MARGIN, y + height - baseline)
    cv2.putText(canvas, text, origin, FONT, FONT_SCALE, (255, 255, 255) if dark else (0, 0, 0), 1, cv2.LINE_AA)
    return height
