"""How good and how slow finders of proposals are, on the same pictures, on one core."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from quadrat import signals
from quadrat.benches.threads import one_thread
from quadrat.data.module import First
from quadrat.data.source import Source
from quadrat.metrics.proposals import ALL, Curves, ProposalScores
from quadrat.plots.proposals import (
    SELECTIVE_SEARCH_VOC07,
    Published,
    draw_overlap_by_number,
    draw_recall_by_iou,
    draw_recall_by_number,
)

Finder = Callable[[np.ndarray], np.ndarray]
"""A picture uint8 RGB (H, W, 3) to boxes (P, 4) in it, best first."""


def run(
    source: Callable[..., Source],
    split: str,
    limit: int | None,
    finders: Mapping[str, Finder],
    numbers: Sequence[int],
    out: Path,
) -> dict[str, Any]:
    """The first ``limit`` pictures of a split, or all, by each finder; see `measure`."""
    pictures = source(split=split)
    return measure(pictures if limit is None else First(pictures, limit), finders, numbers, out)


def measure(
    source: Source,
    finders: Mapping[str, Finder],
    numbers: Sequence[int],
    out: Path,
    published: Sequence[Published] = SELECTIVE_SEARCH_VOC07,
) -> dict[str, Any]:
    """Let each finder look at every picture, in this process with one thread, and write what comes of it to ``out``.

    There lie then proposals.txt (the table), proposals.json (what is returned: plain numbers by finder), and the figures
    recall_by_number.png, recall_by_iou.png and overlap_by_number.png. The seconds are a core's, of the finder's own call: the
    picture is decoded before, and the very first call, in which something may be compiled, is made once more.
    """
    if not finders:
        raise ValueError("no finder to measure; name one, such as SelectiveSearch(mode='fast')")
    with one_thread():
        measured = _measured(source, finders, numbers)
    report = {name: one.report(len(source)) for name, one in measured.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "proposals.json").write_text(json.dumps(report, indent=2) + "\n")
    text = table(report, numbers, published)
    print(f"\n{text}")
    (out / "proposals.txt").write_text(text + "\n")
    for name, figure in _figures({name: one.curves for name, one in measured.items()}, published).items():
        Image.fromarray(figure).save(out / f"{name}.png")
    return report


class Measured(NamedTuple):
    """One finder on all pictures: seconds (N,) of one core for each, the named scores, and their curves."""

    seconds: np.ndarray
    scores: dict[str, float]
    curves: Curves

    def report(self, pictures: int) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "pictures": pictures,
            "seconds": float(self.seconds.mean()),
            "seconds_median": float(np.median(self.seconds)),
            "scores": self.scores,
            "curves": {name: values.tolist() for name, values in self.curves._asdict().items()},
        }


def _measured(source: Source, finders: Mapping[str, Finder], numbers: Sequence[int]) -> dict[str, Measured]:
    scores = {name: ProposalScores(source.schema.classes, numbers) for name in finders}
    seconds: dict[str, list[float]] = {name: [] for name in finders}
    for index in tqdm(range(len(source)), "finding proposals", unit="picture", delay=2, leave=False):
        image, targets = source[index]
        for name, finder in finders.items():
            if index == 0:
                finder(image)
            begun = time.process_time()
            boxes = finder(image)
            seconds[name].append(time.process_time() - begun)
            scores[name].update([torch.from_numpy(boxes)], [targets])
        signals.leave_if_asked()
    results = {name: score.compute() for name, score in scores.items()}
    return {name: Measured(np.array(seconds[name]), results[name], scores[name].curves()) for name in finders}


def table(report: Mapping[str, Mapping[str, Any]], numbers: Sequence[int], published: Sequence[Published] = ()) -> str:
    """What was measured of each finder, as text: a block for its cost, and one each for recall, MABO and AR."""
    width = max(len("published: "), *(len(name) for name in report), *(len(f"published: {p.name}") for p in published))
    ends = [f"{number:>7}" for number in numbers]
    lines = [f"{'finder':<{width}} {'pictures':>9} {'proposals':>10} {'s/picture':>10} {'median s':>10}"]
    lines += [
        f"{name:<{width}} {one['pictures']:>9} {one['scores']['proposals']:>10.0f} {one['seconds']:>10.3f} "
        f"{one['seconds_median']:>10.3f}"
        for name, one in report.items()
    ]
    lines += [f"{f'published: {one.name}':<{width}} {'':>9} {one.proposals:>10}" for one in published]
    for kind, title in (("recall50", "recall at 0.5"), ("mabo", "MABO"), ("ar", "AR .5:.95")):
        lines += ["", f"{title:<{width}} " + "".join([*ends, f"{ALL:>7}"])]
        for name, one in report.items():
            cells = [f"{one['scores'][f'{kind}@{at}']:>7.3f}" for at in (*numbers, ALL)]
            lines.append(f"{name:<{width}} " + "".join(cells))
        told = {"recall50": "recall", "mabo": "mabo"}.get(kind)
        blank = " " * 7 * len(numbers)
        lines += [f"{f'published: {one.name}':<{width}} {blank}{getattr(one, told):>7.3f}" for one in published if told]
    return "\n".join(lines)


def _figures(curves: Mapping[str, Curves], published: Sequence[Published]) -> dict[str, np.ndarray]:
    by_iou = {f"{name}, {one.numbers[-1]:.0f} proposals": one.recall_by_iou[-1] for name, one in curves.items()}
    ious = next(iter(curves.values())).ious
    mabo, ar = ({name: (c.numbers, getattr(c, kind)) for name, c in curves.items()} for kind in ("mabo", "ar"))
    return {
        "recall_by_number": draw_recall_by_number({n: (c.numbers, c.recall) for n, c in curves.items()}, published),
        "recall_by_iou": draw_recall_by_iou(ious, by_iou),
        "overlap_by_number": draw_overlap_by_number(mabo, ar, published),
    }
