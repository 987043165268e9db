"""Regions found beforehand: by a finder, kept on disk by picture and settings, or in a file that somebody else made.

P: proposals of a picture, all its regions or the first ``most``.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import time
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, is_dataclass, replace
from hashlib import blake2b
from itertools import groupby, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torch import Tensor
from tqdm import tqdm

from quadrat import signals
from quadrat.data.annotations import repair_boxes
from quadrat.data.label_maps import semantic_of
from quadrat.data.source import Source, truth_of
from quadrat.structures import Sample, Targets

log = logging.getLogger(__name__)


class Finder(Protocol):
    """Finds regions in a picture uint8 RGB (H, W, 3): (P, 4) x1 y1 x2 y2 in its pixels, best first; its repr is its settings."""

    def __call__(self, image: np.ndarray) -> np.ndarray: ...


class WithProposals(Source):
    """The pictures of a source, each with ``proposals``, as ``find`` gives them for a sample; `truth` is without them."""

    def __init__(self, source: Source, find: Callable[[Sample], np.ndarray]) -> None:
        self.source, self.schema, self.find = source, source.schema, find

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        sample = self.source[index]
        return sample._replace(targets=replace(sample.targets, proposals=torch.from_numpy(self.find(sample))))

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a picture without decoding it."""
        return self.source.size(index)

    def truth(self, index: int) -> Targets:
        """The truth of a picture, without decoding it where the source can, and so without proposals."""
        return truth_of(self.source, index)

    def semantic(self, index: int) -> Tensor:
        """The semantic map (H, W) of a picture."""
        return semantic_of(self.source, index)


# Found by a finder


FEW = 8
"""Pictures that are sooner done here than processes are started."""


class Cached:
    """Proposals of a finder, the first ``most`` of each picture; all of them are kept below ``folder``.

    A picture's file is named by its pixels and lies in a folder of the finder's settings, so that nothing is found twice,
    whatever the data set is called. `wrap` finds what is missing in parallel processes, as many as there are cores unless
    ``workers`` says otherwise; it may be killed at any time, and goes on where it was. Raises ValueError for a finder whose
    repr does not tell its settings.
    """

    def __init__(self, finder: Finder, folder: Path | str, most: int = 2000, workers: int | None = None) -> None:
        _check_most(most)
        if workers is not None and workers < 1:
            raise ValueError(f"data.proposals.workers is 1 or more, or null for one a core, got {workers}")
        self.finder, self.most, self.workers = finder, most, workers
        self.title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(finder).__name__)
        self.files = Files(Path(folder).expanduser().absolute() / settings_name(finder))

    def wrap(self, source: Source, split: str) -> WithProposals:
        """The source with proposals, once those of all its pictures are on disk."""
        marker = self.files.folder / f"complete-{_identity(source)}.json"
        if not marker.is_file():
            self._describe()
            made = self._make_all(source, split)
            report = {"split": split, "pictures": len(made), "proposals": sum(one.proposals for one in made)}
            write_whole(marker, json.dumps(report).encode())
        return WithProposals(source, self.of)

    def find(self, image: np.ndarray) -> Tensor:
        """Proposals (P, 4) in a picture uint8 RGB (H, W, 3) that belongs to no data set; kept like all others."""
        return torch.from_numpy(self._found(image, "of its own").boxes[: self.most])

    def of(self, sample: Sample) -> np.ndarray:
        """Proposals (P, 4) in the picture of a sample: read, or found on the spot where it has changed since `wrap`."""
        return self._found(sample.image, str(sample.targets.image_id)).boxes[: self.most]

    def make(self, source: Source, index: int) -> Made:
        """See to it that a picture's proposals are on disk."""
        sample = source[index]
        boxes, size, new = self._found(sample.image, str(sample.targets.image_id))
        return Made(len(boxes), size, new)

    def _found(self, image: np.ndarray, image_id: str) -> _Found:
        path = self.files.path(image)
        boxes = self.files.read(path)
        if boxes is not None:
            return _Found(boxes, path.stat().st_size, new=False)
        boxes = self._search(image, image_id)
        self.files.write(path, boxes)
        return _Found(boxes, path.stat().st_size, new=True)

    def _search(self, image: np.ndarray, image_id: str) -> np.ndarray:
        height, width = image.shape[:2]
        where = f"{self.title}, image {image_id} ({width}x{height})"
        try:
            boxes = np.asarray(self.finder(image), dtype=np.float32)
        except Exception as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
        _check_boxes(boxes, (height, width), where)
        return boxes

    def _describe(self) -> None:
        """Say beside the files which settings they belong to."""
        finder = self.finder
        settings = asdict(finder) if is_dataclass(finder) and not isinstance(finder, type) else repr(finder)
        words = {"finder": f"{type(finder).__module__}.{type(finder).__qualname__}", "settings": settings}
        text = json.dumps(words, indent=2, default=repr) + "\n"
        write_whole(self.files.folder / "settings.json", text.encode())

    def _make_all(self, source: Source, split: str) -> list[Made]:
        begun = time.monotonic()
        made = []
        with (
            closing(self._making(source)) as making,
            tqdm(total=len(source), desc=f"{self.title}: {split}", unit="picture", delay=2, leave=False) as bar,
        ):
            for one in making:
                made.append(one)
                bar.update()
                signals.leave_if_asked()
        self._tell(made, split, time.monotonic() - begun)
        return made

    def _making(self, source: Source) -> Generator[Made, None, None]:
        # in an order of its own, so that ranks which do this at the same time begin apart and share the work
        order = random.Random(os.getpid()).sample(range(len(source)), len(source))
        processes = self._processes(len(source))
        return _here(self, source, order) if processes == 1 else _in_processes(self, source, order, processes)

    def _processes(self, pictures: int) -> int:
        if self.workers is not None:
            return max(1, min(self.workers, pictures))
        return 1 if pictures <= FEW else min(cores(), pictures)

    def _tell(self, made: Sequence[Made], split: str, seconds: float) -> None:
        new = sum(one.new for one in made)
        proposals = sum(one.proposals for one in made) / max(len(made), 1)
        size = sum(one.size for one in made) / 1e6
        text = (
            f"{self.title}: {len(made)} pictures of {split}, {new} of them new, {proposals:.0f} proposals a picture, "
            f"{seconds:.1f} s, {size:.1f} MB in {self.files.folder}"
        )
        (print if new else log.info)(text)


class Made(NamedTuple):
    """What is on disk of one picture: its proposals, the bytes of the file, and whether that is new."""

    proposals: int
    size: int
    new: bool


class _Found(NamedTuple):
    boxes: np.ndarray
    size: int
    new: bool


class Files:
    """Boxes (P, 4) of pictures in a folder, a file for each, named by what is seen in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, image: np.ndarray) -> Path:
        """Where the boxes of a picture uint8 RGB (H, W, 3) belong."""
        content = blake2b(repr(image.shape).encode(), digest_size=16)
        content.update(np.ascontiguousarray(image).data)
        name = content.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def read(self, path: Path) -> np.ndarray | None:
        """The boxes (P, 4) in a file; None if there is no such file, or a broken one."""
        try:
            boxes = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s is broken (%s) and is made anew", path, error)
            return None
        if boxes.dtype == np.float32 and boxes.ndim == 2 and boxes.shape[1] == 4:
            return boxes
        log.warning("%s holds %s %s instead of boxes (P, 4) and is made anew", path, boxes.dtype, boxes.shape)
        return None

    def write(self, path: Path, boxes: np.ndarray) -> None:
        """Keep the boxes (P, 4) float32 of a picture."""
        stream = io.BytesIO()
        np.save(stream, boxes)
        write_whole(path, stream.getvalue())


def settings_name(finder: Finder) -> str:
    """A folder's name for what a finder finds: its class, and a hash of its settings."""
    settings = repr(finder)
    if " at 0x" in settings:
        raise ValueError(
            f"repr is {settings}, which does not tell the finder's settings, so that what it finds cannot be kept; make its "
            f"class a frozen dataclass whose fields are the settings"
        )
    return f"{type(finder).__name__}-{blake2b(settings.encode(), digest_size=6).hexdigest()}"


def write_whole(path: Path, content: bytes) -> None:
    """A file is there with all of its content or not at all, whoever else writes the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cores() -> int:
    """The cores that this process may use, shared with the other ranks on this machine."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def _identity(source: Source) -> str:
    """A hash of the names, sizes and boxes of all pictures, none of which is decoded where the source can do without."""
    names = blake2b(digest_size=16)
    for index in tqdm(range(len(source)), "naming pictures", unit="picture", delay=2, leave=False):
        truth = truth_of(source, index)
        names.update(repr((truth.image_id, source.size(index))).encode())
        names.update(truth.boxes.numpy().tobytes())
    return names.hexdigest()


def _here(cached: Cached, source: Source, order: Sequence[int]) -> Generator[Made, None, None]:
    for index in order:
        yield cached.make(source, index)


def _in_processes(cached: Cached, source: Source, order: Sequence[int], processes: int) -> Generator[Made, None, None]:
    """The same, as the pictures are done; when this ends early or the process is killed, so are its helpers."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads that do not go on in it
    ear, lifeline = spawn.Pipe(duplex=False)
    cached.finder(np.zeros((8, 8, 3), np.uint8))  # what it compiles, it compiles once and keeps for all of them
    pool = ProcessPoolExecutor(processes, spawn, _begin, (ear, cached, source))
    try:
        waiting, running = iter(order), set[Future[Made]]()
        while True:
            with _held_back():  # processes are started here
                running |= {pool.submit(_make, index) for index in islice(waiting, 2 * processes - len(running))}
            if not running:
                return
            done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            signals.leave_if_asked()
            yield from (future.result() for future in done)
    except BaseException as error:
        lifeline.close()  # files appear whole or not at all, so that nobody needs to wait
        signals.leave_if_asked()  # what asked this process to stop may have ended its helpers
        if isinstance(error, BrokenProcessPool):
            raise ChildProcessError(
                f"{cached.title}: one of {processes} processes that looked for proposals died (it may say why above, or was "
                f"killed for its memory); what was found is kept, go on with fewer: data.proposals.workers=1"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        lifeline.close()
        ear.close()


@contextmanager
def _held_back() -> Iterator[None]:
    """Processes that are started now are deaf to what a terminal or a cluster sends to all; this one hears it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_task: tuple[Cached, Source, Connection] | None = None
"""In a helper process: what to find in which pictures, and the pipe that closes when the parent is gone."""


def _begin(ear: Connection, cached: Cached, source: Source) -> None:
    global _task
    _task = cached, source, ear
    signals.arm_loader_worker()
    signals.die_with(ear.fileno())
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _make(index: int) -> Made:
    assert _task is not None
    cached, source, _ = _task
    return cached.make(source, index)


def _check_most(most: int) -> None:
    if most < 1:
        raise ValueError(f"data.proposals.most keeps at least one proposal a picture, got {most}")


def _check_boxes(boxes: np.ndarray, size: tuple[int, int], where: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: wanted boxes (P, 4), got {boxes.shape}")
    height, width = size
    inside = (boxes >= 0).all(axis=1) & (boxes <= (width, height, width, height)).all(axis=1)
    good = inside & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ValueError(f"{where}: region {row} is {boxes[row].tolist()}, wanted x1 < x2, y1 < y2, inside the picture")


# Read from a file


class FromFile:
    """Proposals that a file holds for every picture by its image id, the first ``most`` of each.

    ``{split}`` in ``path`` stands for the split.

    ``.npz``: an array (P, 4) for each image id, x1 y1 x2 y2 with exclusive ends, best first. ``.json``: COCO's results, by
    their scores; the categories do not matter. ``.mat``: R-CNN's selective search data, ``images`` and ``boxes``, 1-based
    y1 x1 y2 x2 with inclusive ends. `wrap` clips the boxes to their pictures, and drops those without area, with a count in the
    log; it raises FileNotFoundError and ValueError naming the file, and the picture that is lacking.
    """

    def __init__(self, path: Path | str, most: int = 2000) -> None:
        _check_most(most)
        suffix = Path(path).suffix.lower()
        if suffix not in READERS:
            raise ValueError(f"data.proposals.path={path}: wanted a file that ends in {', '.join(READERS)}")
        self.path, self.most, self.reader = str(path), most, READERS[suffix]

    def wrap(self, source: Source, split: str) -> WithProposals:
        """The source with the proposals of the split's file."""
        path = Path(self.path.replace("{split}", split)).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path} with proposals of {split}; give it with data.proposals.path=<file>"
            )
        return WithProposals(source, Known(_fitted(self.reader(path), source, path, split, self.most)))

    def find(self, image: np.ndarray) -> Tensor:
        """A file cannot know: ValueError."""
        raise ValueError(
            f"{self.path} has proposals for the pictures of a data set only; a run that was trained with "
            f"data/proposals=selective_search finds them in any picture"
        )


class Known:
    """The proposals (P, 4) of a sample, by its image id."""

    def __init__(self, boxes: dict[str, np.ndarray]) -> None:
        self.boxes = boxes

    def __call__(self, sample: Sample) -> np.ndarray:
        return self.boxes[str(sample.targets.image_id)]


def _fitted(boxes: dict[str, np.ndarray], source: Source, path: Path, split: str, most: int) -> dict[str, np.ndarray]:
    """The boxes of the pictures of a source, clipped, without those that have no area, the first ``most`` of each."""
    names = [str(truth_of(source, index).image_id) for index in range(len(source))]
    lacking = [name for name in names if name not in boxes]
    if lacking:
        raise ValueError(
            f"{path} has no proposals for image {lacking[0]!r} ({len(lacking)} of {len(names)} pictures of {split} are lacking; "
            f"its own are called {', '.join(map(repr, list(boxes)[:3]))} ..); add them, or name the file of this split with "
            f"data.proposals.path='<file>', in which {{split}} stands for train, val .."
        )
    counts = [len(boxes[name]) for name in names]
    owners = np.repeat(np.arange(len(names)), counts)
    together = np.concatenate([np.zeros((0, 4), np.float32), *(boxes[name] for name in names)])
    sizes = np.array([source.size(index) for index in range(len(source))])[owners]
    clipped, solid = repair_boxes(
        together,
        sizes.reshape(-1, 2),
        split=f"{path} for {split}",
        describe=lambda row: f"{together[row].tolist()} of image {names[owners[row]]!r}",
        on_bad_box="drop",
    )
    parts = zip(np.split(clipped, np.cumsum(counts)[:-1]), np.split(solid, np.cumsum(counts)[:-1]), strict=True)
    return {name: rows[keep][:most] for name, (rows, keep) in zip(names, parts, strict=True)}


def _rows(boxes: Any, path: Path, name: str) -> np.ndarray:
    """Numbers as float32 (P, 4); an empty array of any shape is no box."""
    try:
        rows = np.asarray(boxes, dtype=np.float32)
        return rows.reshape(-1, 4) if rows.size == 0 or (rows.ndim == 2 and rows.shape[1] == 4) else _refuse(rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: image {name!r}: wanted boxes (P, 4), {error}; write the file again") from error


def _refuse(rows: np.ndarray) -> np.ndarray:
    raise ValueError(f"got {rows.shape}")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Boxes (P, 4) by image id from numpy's archive: np.savez(path, **{image_id: boxes})."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _rows(archive[name], path, name) for name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path}: {error}; write it with np.savez(path, **{{image_id: boxes}})") from error


def read_results(path: Path) -> dict[str, np.ndarray]:
    """Boxes (P, 4) by image id from COCO's results, best first; pictures without one are not in such a file."""
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise TypeError(f"got a {type(entries).__name__}")
        ranked = sorted(entries, key=lambda entry: (str(entry["image_id"]), -entry["score"]))
        return {
            name: _corners(_rows([entry["bbox"] for entry in group], path, name))
            for name, group in groupby(ranked, key=lambda entry: str(entry["image_id"]))
        }
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: wanted COCO's results, a list of {{image_id, bbox: [x, y, width, height], score}}, "
            f"{type(error).__name__}: {error}"
        ) from error


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def read_rcnn(path: Path) -> dict[str, np.ndarray]:
    """Boxes (P, 4) by image id from the selective search data of R-CNN and Fast R-CNN."""
    try:
        content = loadmat(path, variable_names=["images", "boxes"])
        names = [str(np.ravel(name)[0]) for name in content["images"].ravel()]
        cells = list(content["boxes"].ravel())
    except (OSError, KeyError, IndexError, ValueError, NotImplementedError, MatReadError, zlib.error) as error:
        raise ValueError(
            f"{path}: wanted R-CNN's cells images and boxes, {type(error).__name__}: {error}; "
            f"a file of version 7.3 is to be saved again with MATLAB's -v7"
        ) from error
    if len(names) != len(cells):
        raise ValueError(f"{path}: got {len(names)} images but {len(cells)} cells of boxes")
    return {name: _exclusive(_rows(cell, path, name)) for name, cell in zip(names, cells, strict=True)}


def _exclusive(boxes: np.ndarray) -> np.ndarray:
    """MATLAB's y1 x1 y2 x2, 1-based with inclusive ends, as ours."""
    return boxes[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0], dtype=np.float32)


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": read_npz,
    ".json": read_results,
    ".mat": read_rcnn,
}
"""What reads a file of proposals, by its suffix."""
