"""Proposals that are kept and proposals that are read: what is found once, damage, kills, other processes, the files' formats."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from makers import make_label_maps, make_voc
from quadrat import signals
from quadrat.data import proposals
from quadrat.data.label_maps import LabelMaps
from quadrat.data.proposals import Cached, FromFile
from quadrat.data.voc import VOC

SIZE = (48, 64)
CALLS: list[str] = []
"""What the finders of this process were asked to look at."""


@dataclass(frozen=True)
class Columns:
    """A finder of so many columns of a picture, and of the place of its brightest pixel, so that pictures differ."""

    count: int = 3

    def __call__(self, image: np.ndarray) -> np.ndarray:
        CALLS.append(image.tobytes()[:64].hex())
        height, width = image.shape[:2]
        edges = np.linspace(0, width, self.count + 1)
        columns = [[left, 0, right, height] for left, right in pairwise(edges)]
        y, x = np.unravel_index(image.sum(axis=2).argmax(), (height, width))
        return np.array([*columns, [x, y, x + 1, y + 1]][: self.count + 1 if self.count else 0], np.float32).reshape(
            -1, 4
        )


@dataclass(frozen=True)
class Failing(Columns):
    """The like that gives up at a picture with something red in it, by raising or by a wrong box."""

    box: tuple[float, ...] = ()

    def __call__(self, image: np.ndarray) -> np.ndarray:
        if (image[..., 0].astype(int) - image[..., 1] > 100).any():
            if not self.box:
                raise ZeroDivisionError("no similarity")
            return np.array([self.box], np.float32)
        return super().__call__(image)


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    CALLS.clear()


@pytest.fixture
def source(tmp_path: Path) -> VOC:
    return VOC(make_voc(tmp_path / "set", size=SIZE, suffix=".png"), "train")


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.npy"))


def cached(tmp_path: Path, finder: Any = Columns(), **options: Any) -> Cached:
    return Cached(finder, tmp_path / "kept", **{"workers": 1} | options)


def test_a_picture_in_which_nothing_is_found(tmp_path: Path, source: VOC):
    found = cached(tmp_path, Columns(0)).wrap(source, "train")
    assert [found[i].targets.proposals.shape for i in range(len(found))] == [(0, 4)] * 6
    assert len(CALLS) == 6


def test_every_sample_has_the_finders_boxes(tmp_path: Path, source: VOC):
    wrapped = cached(tmp_path).wrap(source, "train")
    for i in range(len(source)):
        image, targets = wrapped[i]
        np.testing.assert_array_equal(image, source[i].image)
        np.testing.assert_array_equal(targets.proposals, Columns()(image))
        assert targets.boxes.tolist() == source[i].targets.boxes.tolist()
    assert len({tuple(wrapped[i].targets.proposals[-1].tolist()) for i in range(len(source))}) > 1


def test_the_first_ones_are_handed_on_and_all_are_kept(tmp_path: Path, source: VOC):
    wrapped = cached(tmp_path, most=2).wrap(source, "train")
    assert wrapped[0].targets.proposals.tolist() == Columns()(source[0].image)[:2].tolist()
    assert {np.load(path).shape for path in kept(tmp_path)} == {(4, 4)}
    CALLS.clear()
    assert cached(tmp_path, most=4).wrap(source, "train")[0].targets.proposals.shape == (4, 4)
    assert CALLS == []


def test_the_source_shows_through(tmp_path: Path, source: VOC):
    wrapped = cached(tmp_path).wrap(source, "train")
    assert len(wrapped) == 6
    assert wrapped.schema is source.schema
    assert wrapped.size(3) == source.size(3)
    assert wrapped.truth(3).boxes.tolist() == source.truth(3).boxes.tolist()
    assert wrapped.truth(3).proposals is None


def test_a_semantic_map_shows_through(tmp_path: Path):
    source = LabelMaps(make_label_maps(tmp_path / "set"), "train", classes=["cat", "dog"])
    wrapped = cached(tmp_path).wrap(source, "train")
    np.testing.assert_array_equal(wrapped.semantic(0), source.semantic(0))


def test_nothing_is_found_or_decoded_twice(tmp_path: Path, source: VOC, capsys: pytest.CaptureFixture[str]):
    cached(tmp_path).wrap(source, "train")
    said = capsys.readouterr().out
    assert said.startswith("Columns: 6 pictures of train, 6 of them new, 4 proposals a picture, ")
    assert f"MB in {tmp_path}/kept/Columns-" in said
    CALLS.clear()
    for path in (tmp_path / "set" / "JPEGImages").iterdir():
        path.rename(path.with_suffix(".moved"))
    cached(tmp_path).wrap(source, "train")
    assert (CALLS, capsys.readouterr().out) == ([], "")


def test_the_same_pictures_under_other_names_are_known(tmp_path: Path, source: VOC):
    cached(tmp_path).wrap(source, "train")
    root = make_voc(tmp_path / "copy", splits={"other": 6}, size=SIZE, suffix=".png")
    CALLS.clear()
    cached(tmp_path).wrap(VOC(root, "other"), "other")
    assert CALLS == []


def test_other_settings_have_a_folder_of_their_own(tmp_path: Path, source: VOC):
    cached(tmp_path).wrap(source, "train")
    wrapped = cached(tmp_path, Columns(2)).wrap(source, "train")
    assert len(wrapped[0].targets.proposals) == 3
    folders = sorted((tmp_path / "kept").iterdir())
    assert [len(kept(folder)) for folder in folders] == [6, 6]
    told = [json.loads((folder / "settings.json").read_text()) for folder in folders]
    assert sorted(one["settings"]["count"] for one in told) == [2, 3]
    assert told[0]["finder"].endswith("test_proposals.Columns")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(bytes(200)),
        lambda path: np.save(path, np.zeros((3, 5), np.float32)),
        lambda path: path.unlink(),
    ],
    ids=["empty", "cut", "zeros", "no boxes", "gone"],
)
def test_a_broken_file_is_made_anew(tmp_path: Path, source: VOC, damage: Callable[[Path], Any]):
    wrapped = cached(tmp_path).wrap(source, "train")
    before = wrapped[2].targets.proposals
    path = cached(tmp_path).files.path(source[2].image)
    whole = path.read_bytes()
    damage(path)
    CALLS.clear()
    assert wrapped[2].targets.proposals.tolist() == before.tolist()
    assert (len(CALLS), path.read_bytes() == whole) == (1, True)


def test_a_picture_that_changed_is_looked_at_on_the_spot(tmp_path: Path, source: VOC):
    wrapped = cached(tmp_path).wrap(source, "train")
    picture = tmp_path / "set" / "JPEGImages" / "train_002.png"
    assert cv2.imwrite(str(picture), np.full((*SIZE, 3), 7, np.uint8))
    CALLS.clear()
    assert wrapped[2].targets.proposals.tolist() == Columns()(wrapped[2].image).tolist()
    assert len(kept(tmp_path)) == 7


def test_a_picture_of_no_data_set(tmp_path: Path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    finder = cached(tmp_path, most=2)
    assert finder.find(image).tolist() == finder.find(image[:, ::1]).tolist() == Columns()(image)[:2].tolist()
    assert len(CALLS) == 2  # the comparison's own, and one

    assert finder.find(image.reshape(30, 20, 3))[0].tolist() == pytest.approx(
        [0, 0, 20 / 3, 30]
    )  # not the same bytes' boxes


# Ends before the end


@pytest.mark.parametrize("end", ["a finder that is interrupted", "a signal"])
def test_the_rest_is_found_after_an_interruption(
    tmp_path: Path, source: VOC, end: str, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(self: Columns, image: np.ndarray) -> np.ndarray:
        if len(CALLS) == 3 and end != "a signal":
            raise KeyboardInterrupt
        if len(CALLS) == 2 and end == "a signal":  # during the third, which is still kept
            monkeypatch.setattr(signals, "_received", signal.SIGTERM)
        return plain(self, image)

    plain = Columns.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Columns, "__call__", interrupted)
        with pytest.raises((KeyboardInterrupt, signals.Stopped)):
            cached(tmp_path).wrap(source, "train")
    monkeypatch.setattr(signals, "_received", 0)
    assert len(kept(tmp_path)) == len(CALLS) == 3
    assert len(cached(tmp_path).wrap(source, "train")[5].targets.proposals) == 4
    assert len(CALLS) == len(kept(tmp_path)) == 6
    assert [path for path in tmp_path.rglob(".*")] == []


def test_two_ranks_may_do_it_at_the_same_time(tmp_path: Path, source: VOC, monkeypatch: pytest.MonkeyPatch):
    """While the one looks at its third picture, the other one finds all that is missing."""
    plain = Columns.__call__

    def joined(self: Columns, image: np.ndarray) -> np.ndarray:
        boxes = plain(self, image)
        if len(CALLS) == 3:
            cached(tmp_path).wrap(source, "train")
        return boxes

    monkeypatch.setattr(Columns, "__call__", joined)
    wrapped = cached(tmp_path).wrap(source, "train")
    assert len(CALLS) == 7  # the third picture twice
    assert len(kept(tmp_path)) == 6
    assert len(wrapped[0].targets.proposals) == 4


def test_errors_name_the_picture(tmp_path: Path, source: VOC):
    with pytest.raises(ValueError, match=r"Failing, image train_00\d \(64x48\): ZeroDivisionError: no similarity"):
        cached(tmp_path, Failing()).wrap(source, "train")


@pytest.mark.parametrize("box", [(0, 0, 65, 10), (5, 5, 5, 9), (0, 0, np.nan, 3), (-1, 0, 3, 3), (1, 2, 3)])
def test_a_finders_wrong_boxes_are_refused(tmp_path: Path, source: VOC, box: tuple[float, ...]):
    with pytest.raises(
        ValueError, match=r"image train_00\d \(64x48\): (region 0 is \[|wanted boxes \(P, 4\), got \(1, 3\))"
    ):
        cached(tmp_path, Failing(box=box)).wrap(source, "train")


def test_bad_settings_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="most keeps at least one proposal a picture, got 0"):
        cached(tmp_path, most=0)
    with pytest.raises(ValueError, match="workers is 1 or more, or null for one a core, got 0"):
        cached(tmp_path, workers=0)
    with pytest.raises(ValueError, match="make its class a frozen dataclass"):
        cached(tmp_path, lambda image: image)


# Other processes


CORNER = """
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Corner:
    limit: int = 255

    def __call__(self, image):
        if image.max() > self.limit:
            raise ZeroDivisionError("too bright")
        return np.array([[0, 0, 1 + image[0, 0, 0] % 8, 1 + image.sum() % 16]], np.float32)
"""


@pytest.fixture
def corner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A kind of finder in a module that other processes can import too."""
    (tmp_path / "corner_finder.py").write_text(CORNER)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("corner_finder").Corner
    del sys.modules["corner_finder"]


def test_helper_processes_do_the_same(tmp_path: Path, source: VOC, corner: Any):
    cached(tmp_path, corner()).wrap(source, "train")
    list(proposals._in_processes(Cached(corner(), tmp_path / "helped"), source, range(6), 1))
    plain, helped = kept(tmp_path / "kept"), kept(tmp_path / "helped")
    assert [path.name for path in plain] == [path.name for path in helped]
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in helped]
    assert len({path.read_bytes() for path in plain}) > 1


@pytest.mark.slow
def test_what_cannot_be_sent_to_helper_processes_is_told_of(tmp_path: Path, source: VOC):
    @dataclass(frozen=True)
    class Local(Columns): ...

    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        cached(tmp_path, Local(), workers=2).wrap(source, "train")


@pytest.mark.slow
def test_an_error_in_a_helper_process_names_the_picture(tmp_path: Path, source: VOC, corner: Any):
    with pytest.raises(ValueError, match=r"Corner, image train_00\d \(64x48\): ZeroDivisionError: too bright"):
        cached(tmp_path, corner(100), workers=2).wrap(source, "train")


@pytest.mark.slow
def test_a_helper_process_that_dies_is_told_of(tmp_path: Path, source: VOC, corner: Any):
    path = tmp_path / "corner_finder.py"
    path.write_text(path.read_text().replace('raise ZeroDivisionError("too bright")', "import os; os._exit(3)"))
    with pytest.raises(ChildProcessError, match=r"one of 2 processes .* go on with fewer: data\.proposals\.workers=1"):
        cached(tmp_path, corner(100), workers=2).wrap(source, "train")


def test_cores_are_shared_with_the_ranks_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert proposals.cores() == 12
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert proposals.cores() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert proposals.cores() == 1


WRAP = """
import sys, time
from pathlib import Path
from dataclasses import dataclass
import numpy as np
from quadrat import signals
from quadrat.data.proposals import Cached
from quadrat.data.voc import VOC

@dataclass(frozen=True)
class Slow:
    def __call__(self, image):
        while len(list(Path("kept").rglob("*.npy"))) >= 3 and not Path("go").exists():
            time.sleep(0.05)
        Path("log").open("a").write("x")
        return np.zeros((0, 4), np.float32)

if __name__ == "__main__":
    signals.arm()
    Cached(Slow(), "kept", workers=int(sys.argv[2])).wrap(VOC(sys.argv[1], "train"), "train")
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_any_time_it_goes_on(tmp_path: Path, signum: int):
    """After three pictures its helpers wait, and would for ever."""
    root = make_voc(tmp_path / "set", splits={"train": 8}, size=SIZE)
    (tmp_path / "wrap.py").write_text(WRAP)
    command = [sys.executable, "wrap.py", str(root)]
    process = subprocess.Popen([*command, "2"], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True)
    await_(lambda: len(kept(tmp_path)) >= 3)
    if signum == signal.SIGINT:  # as a terminal does it
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in said
    await_(lambda: not alive(process.pid))  # nor are its helpers
    before = len(kept(tmp_path))
    assert before in (3, 4)
    (tmp_path / "log").unlink()
    (tmp_path / "go").touch()
    subprocess.run([*command, "1"], cwd=tmp_path, check=True, timeout=60)
    assert len(kept(tmp_path)) == 8
    assert len((tmp_path / "log").read_text()) == 8 - before


def await_(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.05)


def alive(session: int) -> bool:
    """Is there a process of a session that is no zombie?"""
    listed = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return any(not state.startswith("Z") for state in listed.split())


# Files


def ids(source: VOC) -> list[str]:
    return [str(source.truth(i).image_id) for i in range(len(source))]


def test_an_empty_array_is_no_proposal(tmp_path: Path, source: VOC):
    np.savez(tmp_path / "p.npz", **dict.fromkeys(ids(source), np.zeros(0)))
    assert FromFile(tmp_path / "p.npz").wrap(source, "train")[0].targets.proposals.shape == (0, 4)


def test_an_archive(tmp_path: Path, source: VOC):
    boxes = {name: [[0, 0, 10 + i, 20], [1, 2, 3.5, 4], [5, 5, 9, 9]] for i, name in enumerate(ids(source))}
    np.savez(tmp_path / "train.npz", another=np.zeros((0, 4)), **boxes)
    wrapped = FromFile(tmp_path / "{split}.npz", most=2).wrap(source, "train")
    assert [wrapped[i].targets.proposals.tolist() for i in (0, 5)] == [
        [[0, 0, 10, 20], [1, 2, 3.5, 4]],
        [[0, 0, 15, 20], [1, 2, 3.5, 4]],
    ]


def test_coco_results_are_sorted(tmp_path: Path, source: VOC):
    entries = [{"image_id": name, "bbox": [1, 2, 10, 20], "score": 0.5, "category_id": 7} for name in ids(source)]
    entries.insert(2, {"image_id": ids(source)[0], "bbox": [0, 0, 5, 5], "score": 0.75})
    entries.append({"image_id": ids(source)[0], "bbox": [4, 4, 2, 2], "score": -1})
    (tmp_path / "p.json").write_text(json.dumps(entries))
    wrapped = FromFile(tmp_path / "p.json").wrap(source, "train")
    assert wrapped[0].targets.proposals.tolist() == [[0, 0, 5, 5], [1, 2, 11, 22], [4, 4, 6, 6]]
    assert wrapped[1].targets.proposals.tolist() == [[1, 2, 11, 22]]


def cells(*values: Any) -> np.ndarray:
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


def test_rcnns_file(tmp_path: Path, source: VOC):
    """1-based y1 x1 y2 x2 with inclusive ends: the first three rows of the picture, and its corner pixel."""
    boxes = [np.array([[1, 1, 3, 64], [1, 1, 1, 1]], dtype=np.uint16)] * 5 + [np.array([[11, 21, 48, 30]], np.uint16)]
    savemat(tmp_path / "p.mat", {"images": cells(*ids(source)), "boxes": np.array([*boxes, None], dtype=object)[:6]})
    wrapped = FromFile(tmp_path / "p.mat").wrap(source, "train")
    assert wrapped[0].targets.proposals.tolist() == [[0, 0, 64, 3], [0, 0, 1, 1]]
    assert wrapped[5].targets.proposals.tolist() == [[20, 10, 30, 48]]


def test_boxes_are_clipped_and_those_without_area_dropped(
    tmp_path: Path, source: VOC, caplog: pytest.LogCaptureFixture
):
    boxes = {name: [[0, 0, 10, 10]] for name in ids(source)}
    boxes[ids(source)[1]] = [[70, 0, 80, 9], [-5, 40, 70, 50], [3, 3, 3, 9], [1, 1, 2, 2]]
    np.savez(tmp_path / "p.npz", **boxes)
    wrapped = FromFile(tmp_path / "p.npz", most=2).wrap(source, "train")
    assert wrapped[1].targets.proposals.tolist() == [[0, 40, 64, 48], [1, 1, 2, 2]]
    assert wrapped[2].targets.proposals.tolist() == [[0, 0, 10, 10]]
    assert (
        "p.npz for train: 1 bad boxes clipped and kept, 2 dropped; the first is [70.0, 0.0, 80.0, 9.0]" in caplog.text
    )
    assert "image 'train_001'" in caplog.text


def test_a_picture_that_is_lacking_is_named(tmp_path: Path, source: VOC):
    np.savez(tmp_path / "p.npz", **dict.fromkeys(ids(source)[:4], np.zeros((0, 4))))
    with pytest.raises(
        ValueError, match=r"p\.npz has no proposals for image 'train_004' \(2 of 6 pictures of train are"
    ):
        FromFile(tmp_path / "p.npz").wrap(source, "train")


def test_a_file_that_is_lacking_is_named(tmp_path: Path, source: VOC):
    with pytest.raises(FileNotFoundError, match=r"no file .*/train\.npz with proposals of train"):
        FromFile(tmp_path / "{split}.npz").wrap(source, "train")
    with pytest.raises(ValueError, match=r"wanted a file that ends in \.npz, \.json, \.mat"):
        FromFile("proposals.pkl")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.npz", b"nothing", "cannot read .*p.npz: .*np.savez"),
        ("p.npz", b"", "cannot read .*p.npz: .*np.savez"),
        ("p.json", b"[{", "wanted COCO's results.*JSONDecodeError"),
        ("p.json", b"\xff", "wanted COCO's results.*UnicodeDecodeError"),
        ("p.json", b"{}", "wanted COCO's results.*got a dict"),
        ("p.json", b'[{"image_id": 1, "bbox": [0, 0, 1, 1]}]', "wanted COCO's results.*KeyError: 'score'"),
        (
            "p.json",
            b'[{"image_id": 1, "bbox": [0, 0, 1], "score": 1}]',
            r"image '1': wanted boxes \(P, 4\), got \(1, 3\)",
        ),
        ("p.mat", b"nothing at all", "wanted R-CNN's cells images and boxes"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, source: VOC, name: str, content: bytes, problem: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        FromFile(tmp_path / name).wrap(source, "train")


def test_a_mat_file_of_something_else_is_refused(tmp_path: Path, source: VOC):
    savemat(tmp_path / "p.mat", {"images": cells("a", "b"), "boxes": cells(np.zeros((0, 4)))})
    with pytest.raises(ValueError, match="got 2 images but 1 cells of boxes"):
        FromFile(tmp_path / "p.mat").wrap(source, "train")
    savemat(tmp_path / "q.mat", {"images": cells("a")})
    with pytest.raises(ValueError, match="wanted R-CNN's cells images and boxes, KeyError"):
        FromFile(tmp_path / "q.mat").wrap(source, "train")


def test_a_file_knows_no_picture_of_its_own(tmp_path: Path):
    with pytest.raises(ValueError, match="data/proposals=selective_search"):
        FromFile(tmp_path / "p.npz").find(np.zeros((4, 4, 3), np.uint8))
