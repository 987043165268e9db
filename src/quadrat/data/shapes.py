"""Scenes of simple shapes and stick figures, drawn on demand with the truth for every task: nothing to download.

A picture is a pure function of (seed, split, index). Objects are painted one after another; ``owners`` (H, W) holds for
every pixel the number of the object seen there (1..M in order of painting, 0 background), and all truth is read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import cv2
import numpy as np
import torch

from quadrat.data.lsp import FLIP_PAIRS, JOINTS, LIMBS
from quadrat.structures import IGNORE_INDEX, Polygons, Sample, Schema, Targets

MIN_SIDE, MAX_SIDE = 0.09, 0.6  # of the picture's shorter side
MIN_PERSON_SIDE = 0.22  # a smaller figure has limbs of a pixel
MIN_SIDE_PIXELS = 13.0  # at every picture size
MIN_TEXTURE_PIXELS = 22.0  # on a smaller object a texture would hide the shape
MIN_VISIBLE = 0.4  # of an object's own pixels
MIN_VISIBLE_PIXELS = 100  # a smaller object is not covered at all
MAX_OBJECTS = 100
PIXEL_CENTRE = 0.5  # from the index of a pixel to the continuous coordinate of its centre
TRIES = 10  # places tried for one object before it is left out


class Shapes:
    """Drawn pictures of one split, each ``size`` (H, W) with up to ``objects[1]`` objects of these ``kinds``.

    ``count`` pictures, whatever the split is called; or a mapping that gives the splits and their counts. Boxes and masks are
    of the visible pixels. Polygons go through the centres of the outermost pixels: ``cv2.fillPoly`` of the pixels they pass is
    the mask. ``empty`` is the share of pictures without any object.
    """

    def __init__(
        self,
        split: str,
        *,
        count: int | Mapping[str, int],
        size: tuple[int, int] = (160, 160),
        seed: int = 0,
        objects: tuple[int, int] = (1, 6),
        empty: float = 0.02,
        kinds: Sequence[str] = ("circle", "square", "triangle", "star", "cross", "person"),
    ) -> None:
        if isinstance(count, Mapping):
            if split not in count:
                raise ValueError(f"no count for the split {split} of shapes, there are {list(count)}")
            count = count[split]
        _check_counts(count, seed, objects, empty)
        if min(size) < 64:
            raise ValueError(f"shapes need pictures of at least 64x64 pixels, got size {tuple(size)} (H, W)")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"unknown kinds of shapes {unknown}, there are {list(KINDS)}")
        self.schema = Schema(classes=tuple(kinds), joints=JOINTS, flip_pairs=FLIP_PAIRS, limbs=LIMBS)
        self._key = (seed, crc32(split.encode()))
        self._count, self._empty = count, empty
        self._size, self._objects = (int(size[0]), int(size[1])), (int(objects[0]), int(objects[1]))

    def __len__(self) -> int:
        return self._count

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(f"picture {index} of {self._count}")
        rng = np.random.default_rng([*self._key, index])
        scene = Scene(background(rng, self._size))
        colours = rng.permutation(list(COLOURS))  # no two alike, so that neighbours stay apart and captions differ
        for i in range(self._wanted(rng)):
            label = int(rng.integers(len(self.schema.classes))) + 1
            colour = str(colours[i % len(colours)])
            scene.place(cut_out(rng, label, self.schema.name(label), colour, min(self._size)), rng)
        return Sample(scene.image, scene.targets(index, self.schema))

    def _wanted(self, rng: np.random.Generator) -> int:
        low, high = self._objects
        return 0 if rng.random() < self._empty else int(rng.integers(low, high + 1))


def _check_counts(count: int, seed: int, objects: tuple[int, int], empty: float) -> None:
    if count < 1:
        raise ValueError(f"a split of shapes needs at least one picture, got count={count}")
    if seed < 0:
        raise ValueError(f"the seed of shapes is 0 or more, got {seed}")
    if not 0 <= objects[0] <= objects[1] <= MAX_OBJECTS:
        raise ValueError(f"objects are the fewest and the most in a picture, 0..{MAX_OBJECTS}, got {tuple(objects)}")
    if not 0 <= empty <= 1:
        raise ValueError(f"empty is a share of pictures between 0 and 1, got {empty}")


# Objects


@dataclass(frozen=True)
class CutOut:
    """One object before it is placed: ``alpha`` (h, w), ``paint`` (h, w, 3), ``joints`` (14, 2) or none; ``look`` in words."""

    label: int
    kind: str
    look: str
    alpha: np.ndarray
    paint: np.ndarray
    joints: np.ndarray | None = None


def cut_out(rng: np.random.Generator, label: int, kind: str, colour_name: str, short_side: int) -> CutOut:
    """An object of a kind and colour in a random size, turn and texture, for a picture with this shorter side."""
    colour = COLOURS[colour_name] * rng.uniform(0.88, 1.08)
    person = kind == "person"
    side = _side(rng, short_side, least=MIN_PERSON_SIDE if person else MIN_SIDE)
    texture = str(rng.choice(list(TEXTURES), p=(0.5, 0.25, 0.25))) if side >= MIN_TEXTURE_PIXELS else ""
    look = f"{texture} {colour_name}".strip()
    if person:
        alpha, paint, joints = _person(rng, side, colour, TEXTURES[texture])
        return CutOut(label, kind, look, alpha, _rimmed(paint, alpha, 0.85), joints)
    alpha = _filled(_turned(KINDS[kind](rng), rng.uniform(0, 2 * np.pi)), side)
    return CutOut(label, kind, look, alpha, _rimmed(_cloth(rng, alpha.shape, colour, TEXTURES[texture]), alpha, 0.7))


def _side(rng: np.random.Generator, short_side: int, *, least: float) -> float:
    """The longest side in pixels, log-uniform: as many small objects as large ones."""
    smallest = max(MIN_SIDE_PIXELS, least * short_side)
    return float(np.exp(rng.uniform(np.log(smallest), np.log(MAX_SIDE * short_side))))


def _circle(rng: np.random.Generator) -> np.ndarray:
    return _ring(48)


def _square(rng: np.random.Generator) -> np.ndarray:
    return _ring(4)


def _triangle(rng: np.random.Generator) -> np.ndarray:
    return _ring(3) * (1.0, rng.uniform(0.85, 1.15))


def _star(rng: np.random.Generator) -> np.ndarray:
    radii = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.48), 1.0)
    return _ring(10) * radii[:, None]


def _cross(rng: np.random.Generator) -> np.ndarray:
    arm = rng.uniform(0.28, 0.38)
    quarter = np.array([(arm, arm), (arm, 1.0), (-arm, 1.0)])
    return np.concatenate([_turned(quarter, turn * np.pi / 2) for turn in range(4)])


def _ring(corners: int) -> np.ndarray:
    """A regular polygon (corners, 2) about the origin."""
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return points @ np.array([(cosine, sine), (-sine, cosine)])


FINE = 4  # an outline is filled on a grid this many times finer, then averaged: smooth edges
SHIFT = 4  # fractional bits of the coordinates given to cv2


def _filled(points: np.ndarray, side: float) -> np.ndarray:
    """The alpha (h, w) uint8 of a polygon (P, 2) scaled to this longest side."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = side / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int)
    fine = np.zeros((height * FINE, width * FINE), dtype=np.uint8)
    cv2.fillPoly(fine, [_fixed((points - low) * scale * FINE)], 255, shift=SHIFT)
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)


def _fixed(points: np.ndarray) -> np.ndarray:
    """Continuous coordinates as cv2 takes them: pixel centres are whole numbers, and the last bits are the fraction."""
    return np.round((points - 0.5) * (1 << SHIFT)).astype(np.int32)


# Figures

HEAD_RADIUS, LIMB_WIDTH = 0.1, 0.095  # of the figure's height when it stands
SKINS = np.array([(255, 219, 188), (236, 188, 148), (198, 140, 98), (141, 92, 62), (98, 64, 48)], dtype=np.float64)
ARMS_AND_LEGS = ((-1, (0, 1, 2), (6, 7, 8)), (1, (5, 4, 3), (11, 10, 9)))
"""The right side, at the viewer's left, then the left one: ankle knee hip, wrist elbow shoulder."""


def _person(
    rng: np.random.Generator, side: float, colour: np.ndarray, texture: Texture
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Alpha (h, w), paint (h, w, 3) and joints (14, 2) of a figure that faces the viewer."""
    joints = _pose(rng)
    head = joints[12:].mean(axis=0)
    low = np.minimum(joints.min(axis=0) - LIMB_WIDTH / 2, head - HEAD_RADIUS)
    high = np.maximum(joints.max(axis=0) + LIMB_WIDTH / 2, head + HEAD_RADIUS)
    scale = side / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int)
    joints, head = (joints - low) * scale, (head - low) * scale

    paint = _cloth(rng, (height, width), colour, texture)
    fine = np.zeros((height * FINE, width * FINE), dtype=np.uint8)
    _draw_torso(fine, joints * FINE, scale * FINE)
    # Right sleeves and trouser legs are dark and left ones light, so that the sides can be told apart.
    for (_, leg, arm), tint in zip(ARMS_AND_LEGS, (colour * 0.52, colour * 0.45 + 140), strict=True):
        for limb in (leg, arm):
            _draw_limb(paint, joints[list(limb)], scale, tint)
            _draw_limb(fine, joints[list(limb)] * FINE, scale * FINE, (255,))
    _draw_head(paint, head, scale, SKINS[rng.integers(len(SKINS))])
    _draw_head(fine, head * FINE, scale * FINE, (255,))
    return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), paint, joints


def _pose(rng: np.random.Generator) -> np.ndarray:
    """Joints (14, 2) of a figure about one unit tall; angles are from straight down, positive away from the body."""
    joints = np.zeros((14, 2))
    joints[12:, 1] = 0.2, 0.02  # neck and head top, just inside the head
    for side, (ankle, knee, hip), (wrist, elbow, shoulder) in ARMS_AND_LEGS:
        joints[hip] = side * 0.075, 0.54
        joints[shoulder] = side * 0.125, 0.26
        thigh = rng.uniform(0.0, 0.8)
        upper_arm = rng.uniform(0.35, 2.6)
        joints[knee] = joints[hip] + 0.22 * _towards(side, thigh)
        joints[ankle] = joints[knee] + 0.22 * _towards(side, thigh - rng.uniform(0.0, 0.9))
        joints[elbow] = joints[shoulder] + 0.17 * _towards(side, upper_arm)
        joints[wrist] = joints[elbow] + 0.17 * _towards(side, upper_arm + rng.uniform(-0.9, 1.3))
    return _turned(joints, rng.uniform(-0.35, 0.35))


def _towards(side: int, angle: float) -> np.ndarray:
    return np.array([side * np.sin(angle), np.cos(angle)])


def _draw_torso(canvas: np.ndarray, joints: np.ndarray, scale: float) -> None:
    corners = _fixed(joints[[8, 9, 3, 2]])
    cv2.fillPoly(canvas, [corners], (255,), shift=SHIFT)
    cv2.polylines(canvas, [corners], True, (255,), _thickness(scale), shift=SHIFT)
    cv2.polylines(
        canvas,
        [_fixed(np.stack([joints[12], joints[12:].mean(axis=0)]))],
        False,
        (255,),
        _thickness(scale),
        shift=SHIFT,
    )


def _draw_limb(canvas: np.ndarray, points: np.ndarray, scale: float, colour: Sequence[float] | np.ndarray) -> None:
    cv2.polylines(canvas, [_fixed(points)], False, _scalar(colour), _thickness(scale), cv2.LINE_AA, SHIFT)


def _draw_head(canvas: np.ndarray, centre: np.ndarray, scale: float, colour: Sequence[float] | np.ndarray) -> None:
    x, y = _fixed(centre).tolist()
    radius = round(HEAD_RADIUS * scale * (1 << SHIFT))
    cv2.circle(canvas, (x, y), radius, _scalar(colour), cv2.FILLED, cv2.LINE_AA, SHIFT)


def _thickness(scale: float) -> int:
    return max(1, round(LIMB_WIDTH * scale))


def _scalar(colour: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(min(value, 255)) for value in colour)


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "person": _pose,
}
"""The kinds of objects and what draws the points of each: an outline, or a person's joints."""


# Colours and textures

COLOURS = {
    "red": np.array([222.0, 52, 48]),
    "orange": np.array([242.0, 140, 32]),
    "yellow": np.array([246.0, 212, 56]),
    "green": np.array([62.0, 172, 80]),
    "blue": np.array([52.0, 104, 220]),
    "purple": np.array([142.0, 70, 190]),
    "pink": np.array([240.0, 120, 176]),
    "white": np.array([236.0, 236, 232]),
}

Texture = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray | float]


def _plain(rng: np.random.Generator, shape: tuple[int, ...]) -> float:
    return 1.0


def _striped(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    along = _ramp(shape, rng.uniform(0, np.pi)) * (2 * np.pi / _period(rng, shape))
    return 0.8 + 0.2 * np.clip(3 * np.sin(along), -1, 1)


def _spotted(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    angle, pitch = rng.uniform(0, np.pi), 2 * np.pi / _period(rng, shape)
    wave = np.cos(_ramp(shape, angle) * pitch) + np.cos(_ramp(shape, angle + np.pi / 2) * pitch)
    return 0.8 - 0.2 * np.clip(4 * (wave - 0.8), -1, 1)


def _period(rng: np.random.Generator, shape: tuple[int, ...]) -> float:
    return max(4.5, max(shape) * rng.uniform(0.14, 0.24))


TEXTURES: dict[str, Texture] = {"": _plain, "striped": _striped, "spotted": _spotted}


def _cloth(rng: np.random.Generator, shape: tuple[int, ...], colour: np.ndarray, texture: Texture) -> np.ndarray:
    """A textured piece (h, w, 3) of one colour, a little darker towards one side."""
    ramp = _ramp(shape, rng.uniform(0, 2 * np.pi))
    light = texture(rng, shape) * (1 - 0.12 * ramp / max(shape))
    return np.clip(light[..., None] * colour.astype(np.float32), 0, 255).astype(np.uint8)


def _rimmed(paint: np.ndarray, alpha: np.ndarray, strength: float) -> np.ndarray:
    """Darken the outermost pixel: neighbours of one colour stay apart, and pale objects show on a pale ground."""
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0.0)
    light = strength + (1 - strength) / 255 * inner.astype(np.float32)
    return (paint * light[..., None]).astype(np.uint8)


def _ramp(shape: tuple[int, ...], angle: float) -> np.ndarray:
    """Distance (h, w) float32 from the middle along a direction, in pixels."""
    height, width = shape[:2]
    x = np.arange(width, dtype=np.float32) - width / 2
    y = np.arange(height, dtype=np.float32) - height / 2
    return x * np.float32(np.cos(angle)) + y[:, None] * np.float32(np.sin(angle))


# Backgrounds


def background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A muted ground (H, W, 3) uint8: two related colours mixed by a pattern, with uneven light and fine grain."""
    pattern = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    first, second = _muted_pair(rng)
    mix = 0.7 * pattern(rng, size) + 0.3 * _blobs(rng, size)
    grain = rng.integers(0, 256, size=size, dtype=np.uint8).astype(np.float32) * np.float32(rng.uniform(0.02, 0.06))
    ground = mix[..., None] * (second - first) + first + grain[..., None]
    return np.clip(ground, 0, 255).astype(np.uint8)


def _muted_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two greyish colours (3,), near each other and dark or light enough to set off saturated objects."""
    hue, value = rng.uniform(0, 2 * np.pi), rng.uniform(45, 90) if rng.random() < 0.35 else rng.uniform(150, 205)
    return _muted(rng, hue, value - 16), _muted(rng, hue + rng.uniform(-1.2, 1.2), value + 16)


def _muted(rng: np.random.Generator, hue: float, value: float) -> np.ndarray:
    thirds = np.array([0.0, 2 * np.pi / 3, 4 * np.pi / 3])
    return (value * (1 + rng.uniform(0.05, 0.2) * np.cos(hue - thirds))).astype(np.float32)


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return 0.5 + _ramp(size, rng.uniform(0, 2 * np.pi)) / max(size)


def _blobs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    cells = int(rng.integers(3, 9))
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _bands(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    along = _ramp(size, rng.uniform(0, np.pi)) * (2 * np.pi / (max(size) * rng.uniform(0.06, 0.25)))
    return 0.5 + 0.5 * np.clip(rng.uniform(0.7, 4) * np.sin(along), -1, 1)


def _tiles(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    angle, pitch = rng.uniform(0, np.pi), 2 * np.pi / (max(size) * rng.uniform(0.15, 0.4))
    wave = np.sin(_ramp(size, angle) * pitch) * np.sin(_ramp(size, angle + np.pi / 2) * pitch)
    return 0.5 + 0.5 * np.clip(6 * wave, -1, 1)


BACKGROUNDS = (_gradient, _blobs, _bands, _tiles)


# Scenes

SHRED = 255  # the owner of pixels of an object too few to be outlined; their class is ignored
SHRED_AREA = 3.0  # in pixels between the centres of the outermost pixels


class Scene:
    """A picture in the making: ``image`` (H, W, 3) uint8, ``owners`` (H, W) uint8, and the objects placed so far."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.owners: np.ndarray = np.zeros(image.shape[:2], dtype=np.uint8)
        self._placed: list[tuple[CutOut, tuple[int, int]]] = []
        self._needed = [0.0]  # pixels by owner that must stay visible; the background needs none

    def place(self, piece: CutOut, rng: np.random.Generator) -> None:
        """Paint an object somewhere inside where it hides no earlier one too much; leave it out when no place is found."""
        height, width = piece.alpha.shape
        solid = piece.alpha >= 128
        visible = np.bincount(self.owners.ravel(), minlength=len(self._needed))
        for _ in range(TRIES):
            x = int(rng.integers(self.image.shape[1] - width + 1))
            y = int(rng.integers(self.image.shape[0] - height + 1))
            covered = self.owners[y : y + height, x : x + width][solid]
            hidden = np.bincount(covered, minlength=len(self._needed))
            if ((visible - hidden >= self._needed) | (hidden == 0)).all():
                self._paint(piece, solid, x, y)
                return

    def _paint(self, piece: CutOut, solid: np.ndarray, x: int, y: int) -> None:
        height, width = solid.shape
        area = int(np.count_nonzero(solid))
        self._placed.append((piece, (x, y)))
        self._needed.append(max(MIN_VISIBLE * area, min(area, MIN_VISIBLE_PIXELS)))
        region = self.image[y : y + height, x : x + width]
        weight = piece.alpha.astype(np.float32) / 255
        region[:] = cv2.blendLinear(np.ascontiguousarray(region), piece.paint, 1 - weight, weight)
        self.owners[y : y + height, x : x + width][solid] = len(self._placed)

    def targets(self, image_id: int, schema: Schema) -> Targets:
        """The truth of what is visible, objects in the order of painting."""
        owners = self.owners.copy()
        height, width = owners.shape
        masks = tuple(_outlines(owners, owner) for owner in range(1, len(self._placed) + 1))
        boxes = np.array([_box(polygons) for polygons in masks], dtype=np.float32).reshape(-1, 4)
        labels = [piece.label for piece, _ in self._placed]
        classes = np.zeros(256, dtype=np.uint8)
        classes[1 : len(labels) + 1] = labels
        classes[SHRED] = IGNORE_INDEX
        areas = np.bincount(owners.ravel(), minlength=256)[1 : len(labels) + 1]
        return Targets.make(
            boxes,
            labels,
            (height, width),
            image_id,
            areas=areas,
            masks=masks,
            keypoints=torch.from_numpy(self._keypoints(len(schema.joints))),
            captions=tuple(
                _caption(piece, box, owners.shape) for (piece, _), box in zip(self._placed, boxes, strict=True)
            ),
            semantic=torch.from_numpy(classes[owners]),
        )

    def _keypoints(self, joints: int) -> np.ndarray:
        """Joints (M, K, 3); a joint whose pixel went to a later object is hidden."""
        keypoints = np.zeros((len(self._placed), joints, 3), dtype=np.float32)
        for owner, (piece, corner) in enumerate(self._placed, start=1):
            if piece.joints is not None:
                keypoints[owner - 1, :, :2] = piece.joints + corner
                x, y = keypoints[owner - 1, :, :2].astype(int).T
                keypoints[owner - 1, :, 2] = np.where(self.owners[y, x] == owner, 2, 1)
        return keypoints


def _outlines(owners: np.ndarray, owner: int) -> Polygons:
    """One polygon for each visible part of an object; parts too thin for one become shreds in ``owners``."""
    found, hierarchy = cv2.findContours((owners == owner).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    loops = [contour[:, 0] for contour in found]
    parents = hierarchy[0][:, 3].tolist()
    outer = {i: loop for i, loop in enumerate(loops) if parents[i] < 0}
    for i, parent in enumerate(parents):
        if parent >= 0:
            outer[parent] = _keyhole(outer[parent], loops[i])
    shreds = [i for i in outer if cv2.contourArea(loops[i]) < SHRED_AREA]
    for i in shreds:
        cv2.fillPoly(owners, [outer.pop(i)], SHRED)
    return [loop.astype(np.float32) + PIXEL_CENTRE for loop in outer.values()]


def _keyhole(loop: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One outline around a part with a hole: in along the shortest cut, round the hole, and out along the same cut."""
    distances = ((loop[:, None] - hole[None]) ** 2).sum(axis=2)
    at, to = np.unravel_index(distances.argmin(), distances.shape)
    around = np.roll(hole, -int(to), axis=0)
    return np.concatenate([loop[: at + 1], around, around[:1], loop[at:]])


def _box(polygons: Polygons) -> np.ndarray:
    points = np.concatenate(polygons)
    return np.concatenate([points.min(axis=0) - PIXEL_CENTRE, points.max(axis=0) + PIXEL_CENTRE])


def _caption(piece: CutOut, box: np.ndarray, size: tuple[int, ...]) -> str:
    words = f"{_size_word(box, size)} {piece.look} {piece.kind}".split()
    article = "an" if words[0][0] in "aeiou" else "a"
    return f"{article} {' '.join(words)} {_place_words(box, size)}"


def _size_word(box: np.ndarray, size: tuple[int, ...]) -> str:
    side = max(box[2] - box[0], box[3] - box[1]) / min(size)
    return "small" if side < 0.2 else "large" if side > 0.4 else ""


def _place_words(box: np.ndarray, size: tuple[int, ...]) -> str:
    column = int(3 * (box[0] + box[2]) / 2 / size[1])
    row = int(3 * (box[1] + box[3]) / 2 / size[0])
    if row == 1:
        return ("on the left", "in the middle", "on the right")[column]
    vertical = ("at the top", "", "at the bottom")[row]
    return vertical + (" left", "", " right")[column]
