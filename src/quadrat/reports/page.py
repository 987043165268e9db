"""The report as files: one page that holds everything, the charts beside it, and the table as csv."""

from __future__ import annotations

import base64
import csv
import io
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from quadrat.reports.charts import charts
from quadrat.reports.collect import BAR, Record
from quadrat.reports.compare import Comparison, Row
from quadrat.reports.noise import BEST
from quadrat.reports.settings import shown
from quadrat.reports.style import png
from quadrat.reports.words import conclusion, explained, notes, written
from quadrat.runs import write

PAGE = "index.html"
PICTURE_WIDTH = 1100
"""Pixels of an example picture."""

OURS = re.compile(r'<meta name="quadrat-files" content="([^"]*)">')
"""The charts of an earlier report, so that those that are no longer made do not stay."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page and of the folder beside it."""

    file: str
    title: str
    note: str
    content: bytes

    @property
    def data(self) -> str:
        """Itself as an address that needs no network."""
        kind = "png" if self.file.endswith(".png") else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


def write_report(result: Comparison, output: Path, command: str = "") -> Path:
    """Write all files of a report, each as a whole and the page last; returns the page. OSError says what cannot be."""
    drawn = [
        Picture(f"{chart.name}.png", chart.title, chart.note, png(chart.draw))
        for chart in tqdm(charts(result), "drawing", unit="chart", delay=BAR, leave=False)
    ]
    examples = list(_examples(result))
    page = output / PAGE
    former = _files(page)
    output.mkdir(parents=True, exist_ok=True)
    write(output / "table.csv", table_csv(result))
    write(output / "runs.csv", runs_csv(result))
    for picture in [*drawn, *examples]:
        write(output / picture.file, picture.content)
    write(page, html(result, drawn, examples, command))
    for name in former - _files(page):
        (output / name).unlink(missing_ok=True)
    return page


def _files(page: Path) -> set[str]:
    """The pictures that a page of ours has beside it."""
    try:
        found = OURS.search(page.read_text())
    except (OSError, UnicodeDecodeError):
        return set()
    return {name for name in (found[1].split() if found else []) if re.fullmatch(r"[\w.-]+\.(png|jpg)", name)}


# --- example pictures ---


def _examples(result: Comparison) -> Iterable[Picture]:
    """What the best and the worst run drew last, where there is such a picture and it can be read."""
    runs = [
        (run, value) for row in result.ranked for run in row.counted if (value := result.metric.value(run)) is not None
    ]
    runs.sort(key=lambda pair: pair[1], reverse=result.metric.larger_is_better)
    for name, (run, value) in zip(("best", "worst"), [runs[0], runs[-1]] if len(runs) > 1 else runs, strict=False):
        with suppress(OSError):
            title = f"The {name} run: {run.label} ({result.metric.name} {value:.3f})"
            yield Picture(f"{name}.jpg", title, str(run.folder), _small(run.pictures))


def _small(path: Path) -> bytes:
    """The picture as JPEG, no larger than a page shows it; OSError when it cannot be read."""
    image = cv2.imread(str(path))
    if image is None:
        raise OSError(f"{path} is no picture")
    scale = min(1.0, PICTURE_WIDTH / image.shape[1], 4 * PICTURE_WIDTH / image.shape[0])
    fitted = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", fitted, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


# --- the page ---


def html(result: Comparison, drawn: Sequence[Picture], examples: Sequence[Picture], command: str) -> str:
    """The page with everything inside it."""
    template = Environment(
        loader=PackageLoader("quadrat.reports", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html.j2")
    return template.render(
        result=result,
        conclusion=conclusion(result),
        notes=notes(result),
        command=command,
        charts=drawn,
        examples=examples,
        files=[picture.file for picture in (*drawn, *examples)],
        made=time.strftime("%Y-%m-%d %H:%M"),
        cells=_cells,
        shown=shown,
        best=BEST,
        value=lambda record: result.metric.value(record) if record.done else None,
    )


def _cells(row: Row, result: Comparison) -> list[dict[str, Any]]:
    """What is shown of a row's metrics, with the number to sort by."""
    return [
        {
            "text": written(row.spreads[metric.name]),
            "mean": row.mean(metric),
            "says": explained(row.verdicts[metric.name]),
            "best": (verdict := row.verdicts[metric.name]) is not None and verdict.says == BEST,
        }
        for metric in result.metrics
    ]


# --- csv ---


def table_csv(result: Comparison) -> str:
    """A line for each setting: its values, and of each metric mean, deviation, seeds, what is said of it, p and test."""
    head = ["rank", *result.keys, "runs"]
    head += [f"{metric.name} {part}" for metric in result.metrics for part in PARTS]
    return _csv(
        head, ([row.number, *row.settings.values(), row.states(), *_numbers(row, result)] for row in result.rows)
    )


PARTS = ("mean", "std", "n", "verdict", "p", "test")


def _numbers(row: Row, result: Comparison) -> Iterable[Any]:
    for metric in result.metrics:
        found, verdict = row.spreads[metric.name], row.verdicts[metric.name]
        yield from (None, None, 0) if found is None else (found.mean, found.deviation, found.count)
        yield from (None, None, None) if verdict is None else (verdict.says, verdict.p, verdict.test)


def runs_csv(result: Comparison) -> str:
    """A line for each run: state, reason, settings, seed, its metrics if it is counted, folder."""
    names = [metric.name for metric in result.metrics]
    others = sorted({name for record in result.records for name in (*record.last, *record.at_best)} - set(names))
    keys = result.keys

    def line(record: Record) -> list[Any]:
        settings: Mapping[str, Any] = record.config
        values = [metric.value(record) if record.done else None for metric in result.metrics]
        more = [{**record.last, **record.at_best}.get(name) if record.done else None for name in others]
        chosen = [settings.get(key) for key in keys]
        return [record.label, record.state, record.reason, *chosen, record.seed, *values, *more, str(record.folder)]

    head = ["run", "state", "reason", *keys, "seed", *names, *others, "folder"]
    return _csv(head, map(line, result.records))


def _csv(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return file.getvalue()
