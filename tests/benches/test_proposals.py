"""The bench of finders: what it writes, what it times, whose numbers they are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from makers import make_voc
from quadrat.benches.proposals import measure, table
from quadrat.data.voc import VOC
from quadrat.metrics.proposals import ProposalScores


def whole(image: np.ndarray) -> np.ndarray:
    """The whole picture, and its left half."""
    height, width = image.shape[:2]
    return np.array([[0, 0, width, height], [0, 0, width / 2, height]], np.float32)


class Slow:
    """The like, on a clock of its own that goes on by a second a call, by a hundred in the first; it notes who works."""

    def __init__(self) -> None:
        self.clock, self.threads = 0.0, []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.clock += 1 if self.threads else 100
        self.threads.append((cv2.getNumThreads(), torch.get_num_threads()))
        return whole(image)


def nothing(image: np.ndarray) -> np.ndarray:
    return np.zeros((0, 4), np.float32)


class Bench(NamedTuple):
    """What one run was given, and what came of it."""

    source: VOC
    out: Path
    report: dict[str, Any]
    slow: Slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    source, slow = VOC(make_voc(folder / "set", size=(48, 64)), "train"), Slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "process_time", lambda: slow.clock)
        report = measure(source, {"slow": slow, "nothing": nothing}, (1, 2), folder / "out")
    return Bench(source, folder / "out", report, slow)


def test_no_finder_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finder to measure"):
        measure(bench.source, {}, (1, 2), tmp_path / "out")


def test_what_is_measured_is_written(bench: Bench) -> None:
    assert sorted(path.name for path in bench.out.iterdir()) == [
        *("overlap_by_number.png", "proposals.json", "proposals.txt", "recall_by_iou.png", "recall_by_number.png")
    ]
    assert json.loads((bench.out / "proposals.json").read_text()) == bench.report
    assert bench.report["slow"]["curves"]["numbers"] == [1, 2, 2]
    assert [bench.report[name]["pictures"] for name in ("slow", "nothing")] == [6, 6]


def test_scores_are_the_metrics(bench: Bench) -> None:
    metric = ProposalScores(bench.source.schema.classes, (1, 2))
    for image, targets in (bench.source[i] for i in range(len(bench.source))):
        metric.update([torch.from_numpy(whole(image))], [targets])
    assert bench.report["slow"]["scores"] == metric.compute()
    assert 0 < bench.report["slow"]["scores"]["mabo@1"] < bench.report["slow"]["scores"]["mabo@2"] < 1
    assert bench.report["nothing"]["scores"]["mabo@all"] == bench.report["nothing"]["scores"]["proposals"] == 0


def test_one_thread_works_and_the_first_call_is_not_timed(bench: Bench) -> None:
    assert (bench.report["slow"]["seconds"], bench.report["slow"]["seconds_median"]) == (1, 1)
    assert bench.slow.threads == [(1, 1)] * 7


def test_the_table_has_a_block_for_each_score(bench: Bench) -> None:
    scores = bench.report["slow"]["scores"]
    lines = [line.split() for line in (bench.out / "proposals.txt").read_text().splitlines()]
    assert lines[0] == ["finder", "pictures", "proposals", "s/picture", "median", "s"]
    assert lines[1] == ["slow", "6", "2", "1.000", "1.000"]
    assert lines[2] == ["nothing", "6", "0", "0.000", "0.000"]
    for cells in (["2134"], ["0.980"], ["0.804"]):
        assert ["published:", "fast", *cells] in lines
    for title, kind in (("recall", "recall50"), ("MABO", "mabo"), ("AR", "ar")):
        row = next(i for i, line in enumerate(lines) if line[:1] == [title])
        assert lines[row][-3:] == ["1", "2", "all"]
        assert lines[row + 1] == ["slow", *(f"{scores[f'{kind}@{at}']:.3f}" for at in (1, 2, "all"))]
        assert lines[row + 2] == ["nothing", "0.000", "0.000", "0.000"]
    assert "published" not in table(bench.report, (1, 2))
