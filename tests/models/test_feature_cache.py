"""A feature cache keeps what was written, whole or not at all, and only for the weights it was made with."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from quadrat.models.feature_cache import FeatureCache, _readable, halves


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


def written(folder: Path, *ids: int | str) -> FeatureCache:
    cache = FeatureCache(folder, "a")
    for image_id in ids:
        value = np.full(3, float(len(str(image_id))), np.float16)
        cache.write(image_id, {"first": value, "second": np.arange(2), "unread": np.zeros(5)})
    return cache


def test_empty_cache_has_no_rows(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features", "a")
    assert len(cache.rows(Pair)) == 0
    assert list(cache.rows(Pair)) == []
    assert 7 not in cache
    assert cache.summary("first") == f"features of 0 pictures, 0 regions each: 0 B in {cache.folder}"


def test_rows_are_what_was_written(tmp_path: Path) -> None:
    cache = written(tmp_path, 7, "folder/a picture.jpg", "x" * 400)
    assert all(image_id in cache for image_id in (7, "folder/a picture.jpg", "x" * 400))
    rows = cache.rows(Pair)
    assert sorted(float(row.first[0]) for row in rows) == [1.0, 20.0, 400.0]
    assert all(row.first.dtype == np.float16 and row.second.tolist() == [0, 1] for row in rows)
    assert cache.size() == sum(file.stat().st_size for file in cache.folder.iterdir())
    assert cache.summary("first").startswith(f"features of 3 pictures, 3 regions each: {_readable(cache.size())} in")


def test_order_depends_on_the_ids_alone(tmp_path: Path) -> None:
    one, other = written(tmp_path / "1", 1, 22, 333), written(tmp_path / "2", 333, 1, 22)
    assert [row.first[0] for row in one.rows(Pair)] == [row.first[0] for row in other.rows(Pair)]


def test_other_weights_begin_anew_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    written(tmp_path, 7)
    assert 7 in FeatureCache(tmp_path, "a")
    other = FeatureCache(tmp_path, "b")
    assert 7 not in other
    other.drop_others()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "weights_b"]


def test_interrupted_write_leaves_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the renaming: the picture is written again, and nothing of the first attempt is left."""

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr("quadrat.models.feature_cache.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.write(7, {"first": np.zeros(3)})
    assert 7 not in cache
    assert len(cache.rows(Pair)) == 0
    cache.write(7, {"first": np.zeros(3), "second": np.zeros(1)})
    assert len(list(cache.folder.iterdir())) == 1


def test_full_disk_is_told_with_the_folder_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = FeatureCache(tmp_path, "a")
    monkeypatch.setattr("quadrat.models.feature_cache.np.savez", full)
    with pytest.raises(
        OSError, match=r"(?s)weights_a \(No space left.*are free there\): make room.*paths\.logs=<folder>"
    ):
        cache.write(7, {"first": np.zeros(3)})
    assert list(cache.folder.iterdir()) == []


def test_damaged_file_is_named(tmp_path: Path) -> None:
    cache = written(tmp_path, 7)
    (file,) = cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .*remove it"):
        list(cache.rows(Pair))


def test_features_beyond_half_precision_are_refused() -> None:
    assert halves(torch.tensor([[1.5, 65504.0]]), "image 7").tolist() == [[1.5, 65504.0]]
    assert halves(torch.zeros(0, 4), "image 7").shape == (0, 4)
    with pytest.raises(ValueError, match=r"image 7: a feature of 7e\+04 .*optimizer\.lr"):
        halves(torch.tensor([[1.0, -7e4]]), "image 7")


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1.9e9, "1.9 GB"), (2.5e13, "25.0 TB")]
)
def test_sizes_are_readable(size: float, words: str) -> None:
    assert _readable(size) == words
