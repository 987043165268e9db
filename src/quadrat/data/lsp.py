"""Leeds Sports Pose and its extended training set: pictures of one person with 14 joints."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from tqdm import tqdm

from quadrat.data.annotations import by_stem, existing_folder, listed_stems, read_annotated_image
from quadrat.data.source import header_size
from quadrat.structures import Sample, Schema, Targets

log = logging.getLogger(__name__)

JOINTS = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
    *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
    *("neck", "head top"),
)
"""The 14 joints in the order of the files; right and left are the person's own."""

FLIP_PAIRS = ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9))
LIMBS = (
    *((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 8), (3, 9)),
    *((6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13)),
)

LAYOUT = "a folder with joints.mat and images"
MARGIN = 0.1  # of the longer side of the joints' extent
FROM_MATLAB = 0.5  # its pixels count from 1, and ours have their centre at a half

Part = Sequence[int | None]
"""The first person of a split, and the one after the last, counted from 0; None for the end."""


class LSP:
    """One split of Leeds Sports Pose (Johnson and Everingham, BMVC 2010) or LSP Extended (CVPR 2011), checked when made.

    The root holds ``joints.mat`` and ``images/im<number>.jpg``. In LSP ``joints`` is (3, 14, N): every joint is there, and the
    third row marks the hidden ones; in LSP Extended (14, 3, N), and the third column marks the ones that are there. The
    numbers of the pictures are 1..N, or ``image_ids`` in the file. A split is a list of pictures in ``<split>.txt`` in the
    root, or else what ``parts`` says: None for LSP's first 1000 as train and the other 1000 as test, and for all of LSP
    Extended as train.

    A joint outside its picture counts as unlabelled. The box goes round the labelled joints with a tenth of its longer side
    added on every side, clipped to the picture; fewer than two labelled joints make no person, and the picture stays
    without one. ``image_id`` is the file's stem.
    """

    schema = Schema(classes=("person",), joints=JOINTS, flip_pairs=FLIP_PAIRS, limbs=LIMBS)

    def __init__(self, root: str | Path, split: str, *, parts: Mapping[str, Part] | None = None) -> None:
        folder = existing_folder(Path(root).expanduser(), LAYOUT)
        images = existing_folder(folder / "images", f"the pictures of {LAYOUT}")
        self._mat = folder / "joints.mat"
        poses = _read_poses(self._mat)
        pictures = by_stem(images)
        listed = folder / f"{split}.txt"
        if listed.is_file():
            stems = listed_stems(listed, split, pictures, images)
            rows = poses.numbered(stems, listed)
        else:
            rows = poses.part(split, parts, listed)
            stems = _stems(pictures, [poses.numbers[row] for row in rows], images, self._mat)
        self._stems, self._pictures = stems, [pictures[stem] for stem in stems]
        progress = tqdm(self._pictures, f"reading sizes of {split}", unit="picture", delay=2, leave=False)
        self._sizes = np.array([header_size(picture)[0] for picture in progress])
        self._joints = self._inside(poses.joints[rows], split)
        self._boxes = _boxes(self._joints, self._sizes)
        self._persons = ((self._joints[..., 2] > 0).sum(axis=1) >= 2).astype(int)  # 0 or 1 in each picture
        if not self._persons.all():
            log.warning("%s: %d persons with fewer than 2 joints left out", split, int((self._persons == 0).sum()))

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return Sample(read_annotated_image(self._pictures[index], self.size(index), self._mat), self.truth(index))

    def truth(self, index: int) -> Targets:
        """The truth of a picture without decoding it."""
        rows = slice(index, index + int(self._persons[index]))
        return Targets.make(
            self._boxes[rows].copy(),
            self._persons[rows].copy(),  # the only label
            self.size(index),
            self._stems[index],
            keypoints=torch.from_numpy(self._joints[rows].copy()),
        )

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        height, width = self._sizes[index].tolist()
        return height, width

    def _inside(self, joints: np.ndarray, split: str) -> np.ndarray:
        """Joints (N, 14, 3) float32, zeros where none is labelled or it lies outside its picture."""
        labelled = joints[..., 2] > 0
        limits = self._sizes[:, None, ::-1]
        inside = np.logical_and(joints[..., :2] >= 0, joints[..., :2] <= limits).all(axis=2)
        beyond = labelled & ~inside
        if beyond.any():
            log.warning(
                "%s: %d joints outside their pictures count as unlabelled; the first is in %s",
                split,
                int(beyond.sum()),
                self._pictures[int(beyond.any(axis=1).argmax())],
            )
        return np.where((labelled & inside)[..., None], joints, 0).astype(np.float32)


class _Poses(NamedTuple):
    """All persons of a file: ``joints`` (N, 14, 3) as ours, the ``numbers`` (N) of their pictures, and the usual splits."""

    joints: np.ndarray
    numbers: list[int]
    parts: Mapping[str, Part]

    def numbered(self, stems: list[str], listed: Path) -> list[int]:
        """The rows of these pictures; ValueError for one that has none."""
        rows = {number: row for row, number in enumerate(self.numbers)}
        unknown = [stem for stem in stems if _number(stem) not in rows]
        if unknown:
            raise ValueError(
                f"{listed} lists {unknown[0]!r}, but joints.mat has no joints of that number (of {len(unknown)} listed "
                f"pictures); remove the lines, or add the numbers to image_ids"
            )
        return [rows[_number(stem)] for stem in stems]

    def part(self, split: str, parts: Mapping[str, Part] | None, listed: Path) -> list[int]:
        """The rows of a split without a list; ValueError where there is none of this name, or it passes the end."""
        known = parts or self.parts
        if split not in known:
            raise ValueError(
                f"no split {split!r}: there is no {listed} and the parts of joints.mat are {list(known)}; write the names "
                f"of its pictures to that file, or give it as data.source.parts.{split}=[first,end]"
            )
        first, end = known[split]
        count, first = len(self.numbers), first or 0
        end = count if end is None else end
        if not 0 <= first < end <= count:
            raise ValueError(
                f"{listed.parent / 'joints.mat'} has the joints of {count} persons, so that the split {split!r} cannot go from "
                f"{first} to {end}; write the names of its pictures to {listed}, or set data.source.parts"
            )
        return list(range(first, end))


def _leeds(joints: np.ndarray) -> np.ndarray:
    x, y, hidden = joints
    return np.stack([x, y, np.where(hidden > 0, 1, 2)]).transpose(2, 1, 0)


def _extended(joints: np.ndarray) -> np.ndarray:
    x, y, labelled = joints.transpose(1, 0, 2)
    return np.stack([x, y, np.where(labelled > 0, 2, 0)]).transpose(2, 1, 0)


class _Layout(NamedTuple):
    """How a file tells joints: (N, 14, 3) of its array, third x, y, visibility 0..2, and its splits where no file lists them."""

    read: Callable[[np.ndarray], np.ndarray]
    parts: Mapping[str, Part]


LAYOUTS = {
    (3, 14): _Layout(_leeds, {"train": (0, 1000), "test": (1000, 2000)}),
    (14, 3): _Layout(_extended, {"train": (0, None)}),
}
"""By the first two sides of ``joints``: LSP and LSP Extended."""


def _read_poses(path: Path) -> _Poses:
    content = _load(path)
    joints = np.asarray(content.get("joints", ()))
    layout = LAYOUTS.get(joints.shape[:2]) if joints.ndim == 3 and joints.size else None
    if layout is None:
        raise ValueError(
            f"{path}: got joints of shape {joints.shape}, wanted (3, 14, N) as in LSP or (14, 3, N) as in LSP Extended; "
            "take joints.mat from the archive as it is"
        )
    poses = layout.read(joints.astype(np.float64))
    bad = np.argwhere((poses[..., 2] > 0) & ~np.isfinite(poses).all(axis=2))
    if len(bad):
        row, joint = bad[0].tolist()
        raise ValueError(
            f"{path}: person {row + 1}, {JOINTS[joint]}: got {poses[row, joint, :2].tolist()}, wanted x and y"
        )
    poses[..., :2] -= FROM_MATLAB
    numbers = np.ravel(content.get("image_ids", np.arange(1, len(poses) + 1))).astype(int).tolist()
    if len(set(numbers)) != len(poses) or len(numbers) != len(poses):
        raise ValueError(
            f"{path}: got {len(set(numbers))} different image_ids for {len(poses)} persons, wanted one for each"
        )
    return _Poses(poses, numbers, layout.parts)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no joints {path}: wanted joints.mat of LSP or LSP Extended; unpack it from the archive"
        )
    try:
        return loadmat(path, variable_names=["joints", "image_ids"])
    except (OSError, TypeError, ValueError, NotImplementedError, MatReadError, zlib.error) as error:
        raise ValueError(f"{path}: not a MATLAB file that can be read ({error}); download it again") from error


def _number(stem: str) -> int:
    """im0012 -> 12; -1 for a file that is no picture of the set."""
    match = re.fullmatch(r"im(\d+)", stem)
    return int(match[1]) if match else -1


def _stems(pictures: Mapping[str, Path], numbers: list[int], images: Path, mat: Path) -> list[str]:
    """The names of the pictures of these numbers, with as many leading zeros as they happen to have."""
    stems = {_number(stem): stem for stem in pictures}
    missing = [number for number in numbers if number not in stems]
    if missing:
        raise FileNotFoundError(
            f"{mat} has joints of picture {missing[0]}, but {images} has no im{missing[0]:04}.jpg or im{missing[0]:05}.jpg "
            f"({len(missing)} of {len(numbers)} pictures are missing); add the pictures, or list those there are in a "
            "<split>.txt in the root"
        )
    return [stems[number] for number in numbers]


def _boxes(joints: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) round the labelled joints (N, 14, 3), with a margin, inside pictures of ``sizes`` (N, 2)."""
    labelled = joints[..., 2:] > 0
    low = np.where(labelled, joints[..., :2], np.inf).min(axis=1)
    high = np.where(labelled, joints[..., :2], -np.inf).max(axis=1)
    margin = MARGIN * (high - low).max(axis=1, keepdims=True)
    return np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin, sizes[:, ::-1])], axis=1).astype(
        np.float32
    )
