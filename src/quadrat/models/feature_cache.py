"""Features of regions on disk: one file a picture, so that a run that was killed goes on with the picture it was at.

R-CNN keeps the pooled features of every region and works out the rest when it needs them (200 GB for VOC07). Here a file holds
the hidden features (fc7) of every region, on which the SVMs look, and the pooled ones (pool5) only of those that teach the
ridge regression, which are some per cent of them.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

Row = TypeVar("Row", bound=tuple)

_MARK = "weights_"
"""How the folders of this cache begin, so that nothing else is ever removed."""


class FeatureCache:
    """Arrays by name for every picture, in a folder named after a ``fingerprint`` of what they were computed with.

    Other weights or settings have another folder, empty at first; `drop_others` removes the old ones.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.parent, self.folder = Path(folder), Path(folder) / f"{_MARK}{fingerprint}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def drop_others(self) -> None:
        """Remove what other weights or settings have left here."""
        for other in self.parent.glob(f"{_MARK}*"):
            if other != self.folder:
                shutil.rmtree(other)

    def __contains__(self, image_id: int | str) -> bool:
        return self._file(image_id).exists()

    def write(self, image_id: int | str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of a picture, whole or not at all."""
        write_arrays(self._file(image_id), arrays)

    def rows(self, kind: type[Row]) -> Rows[Row]:
        """All pictures, each as a tuple of the arrays that ``kind`` names; their order is mixed, but depends on the ids alone."""
        return Rows(self._files(), kind)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self._files())

    def summary(self, name: str) -> str:
        """How much there is and where, in a sentence; ``name`` is an array with a row for each region."""
        files = self._files()
        regions = sum(len(read_arrays(file, (name,))[name]) for file in files) / max(1, len(files))
        return (
            f"features of {len(files)} pictures, {regions:.0f} regions each: {_readable(self.size())} in {self.folder}"
        )

    def _file(self, image_id: int | str) -> Path:
        return self.folder / f"{sha256(str(image_id).encode()).hexdigest()[:20]}.npz"  # an id may be a path, or long

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))


class Rows(Sequence[Row], Generic[Row]):
    """What a tuple names, read from files one at a time."""

    def __init__(self, files: Sequence[Path], kind: type[Row]) -> None:
        self.files, self.kind = files, kind
        self.names: tuple[str, ...] = kind._fields  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Row:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.kind(**read_arrays(self.files[index], self.names))


def halves(values: Tensor, what: str) -> np.ndarray:
    """Features in half precision; ValueError for what that cannot hold."""
    half = values.half().cpu().numpy()
    if not np.isfinite(half).all():
        raise ValueError(
            f"{what}: a feature of {float(values.abs().max()):.3g} is none that half precision can hold (65504 is the largest): "
            f"the network has diverged; train it with a smaller optimizer.lr"
        )
    return half


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file of arrays whole or not at all; OSError with what is free and what to do when the disk does not take it."""
    temporary = path.with_name(f".{path.name}.tmp")  # each file has one writer, who begins an interrupted one again
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"could not write features into {path.parent} ({error.strerror or error}; "
            f"{_readable(shutil.disk_usage(path.parent).free)} are free there): make room, or begin a run on a larger disk with "
            f"paths.logs=<folder>; the same command goes on with the picture that is missing"
        ) from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of the arrays of a file; ValueError naming it when it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and give the same command again") from error


def _readable(size: float) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
