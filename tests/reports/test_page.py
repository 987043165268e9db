"""The files of a report: whole, self-contained, and nothing else is touched."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from quadrat.reports import page as pages
from quadrat.reports.collect import collect
from quadrat.reports.compare import Comparison, comparison
from quadrat.reports.find import find
from quadrat.reports.page import runs_csv, table_csv, write_report
from quadrat.reports.terminal import text
from reported import draw, make_run

BOX = "loss.weights.rpn_box"


@pytest.fixture
def result(tmp_path: Path) -> Comparison:
    """Two settings with two seeds each, the first of them with pictures, and a failed run."""
    for i, (weight, seed, best) in enumerate([(1, 0, 0.5), (1, 1, 0.6), (10, 0, 0.7), (10, 1, 0.9)]):
        make_run(tmp_path / "logs" / f"r{i}", {BOX: weight}, seed, best, last={"val/ap50": best, "val/map": best / 2})
    draw(tmp_path / "logs" / "r3", 0)
    make_run(tmp_path / "logs" / "r4", {BOX: 100}, state="failed", reason="out of memory")
    return comparison("mine", collect(find(str(tmp_path / "logs"), tmp_path).jobs))


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_files(result: Comparison, tmp_path: Path) -> None:
    page = write_report(result, tmp_path / "report", "quadrat-train -m a=1,2")
    assert page == tmp_path / "report" / "index.html"
    names = {path.name for path in page.parent.iterdir()}
    assert names == {
        "index.html", "table.csv", "runs.csv", "best.jpg", "curve-loss.weights.rpn_box.png", "learning.png", "ranking.png",
    }  # fmt: skip
    html = page.read_text()
    assert "Best: rpn_box=10, val/ap50 0.800 ± 0.141 (mean ± deviation of 2 seeds)." in html
    assert "quadrat-train -m a=1,2" in html
    assert "out of memory" in html
    outside = [link for link in re.findall(r'(?:src|href)="([^"]{0,60})', html) if not link.startswith(("data:", "#"))]
    assert set(outside) == names - {"index.html", "table.csv", "runs.csv"}  # the charts beside it, to be opened alone


def test_page_without_a_command_or_runs(tmp_path: Path) -> None:
    html = write_report(comparison("mine", []), tmp_path / "report").read_text()
    assert "No run is finished" in html
    assert "<pre" not in html
    assert "<figure" not in html


def test_charts_of_an_earlier_report_go_and_other_files_stay(result: Comparison, tmp_path: Path) -> None:
    output = tmp_path / "report"
    write_report(result, output)
    (output / "notes.md").write_text("mine")
    (output / "mine.png").write_text("mine")
    write_report(comparison("mine", []), output)
    assert {path.name for path in output.iterdir()} == {"index.html", "table.csv", "runs.csv", "notes.md", "mine.png"}


def test_a_page_of_somebody_else_is_no_reason_to_remove_anything(tmp_path: Path) -> None:
    output = tmp_path / "report"
    output.mkdir()
    (output / "index.html").write_text('<meta name="quadrat-files" content="../a.png b/c.png">')
    (tmp_path / "a.png").write_text("mine")
    write_report(comparison("mine", []), output)
    assert (tmp_path / "a.png").exists()


def test_the_old_page_stays_when_the_new_one_cannot_be_made(
    result: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "report"
    before = write_report(result, output).read_bytes()

    def fail(*_: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr(pages, "html", fail)
    with pytest.raises(ValueError, match="no page"):
        write_report(result, output)
    assert (output / "index.html").read_bytes() == before
    assert not list(output.glob(".*"))


def test_table_csv(result: Comparison) -> None:
    first, second, third = table(table_csv(result))
    assert (first["rank"], first[BOX], first["runs"]) == ("1", "10", "2 done")
    assert float(first["val/ap50 mean"]) == pytest.approx(0.8)
    assert float(first["val/ap50 std"]) == pytest.approx(0.02**0.5)
    assert (first["val/ap50 n"], first["val/ap50 verdict"]) == ("2", "best")
    assert (second["val/ap50 verdict"], second["val/ap50 test"]) == ("within noise", "paired t test")
    assert 0.05 < float(second["val/ap50 p"]) < 1
    assert (third["val/ap50 mean"], third["val/ap50 n"], third["runs"]) == ("", "0", "1 failed")


def test_runs_csv(result: Comparison) -> None:
    lines = table(runs_csv(result))
    assert [line["state"] for line in lines] == ["done"] * 4 + ["failed"]
    assert (lines[3]["seed"], lines[3][BOX], lines[3]["val/ap50"], lines[3]["val/map"]) == ("1", "10", "0.9", "0.45")
    assert (lines[4]["reason"], lines[4]["val/ap50"], Path(lines[4]["folder"]).name) == ("out of memory", "", "r4")


def test_csv_of_nothing() -> None:
    assert table_csv(comparison("mine", [])).splitlines()[0].startswith("rank,runs")
    assert runs_csv(comparison("mine", [])).startswith("run,state,reason,seed")


def test_pictures_of_best_and_worst(result: Comparison, tmp_path: Path) -> None:
    """The worst run has none here, and one that is damaged is left out."""
    assert [one.file for one in pages._examples(result)] == ["best.jpg"]
    draw(tmp_path / "logs" / "r0", 1)
    best, worst = pages._examples(result)
    assert ("0.900" in best.title, "0.500" in worst.title) == (True, True)
    (tmp_path / "logs" / "r0" / "pictures" / "latest.png").write_bytes(b"\x89PNG\r\n")
    assert [one.file for one in pages._examples(result)] == ["best.jpg"]


def test_terminal(result: Comparison) -> None:
    lines = text(result).splitlines()
    assert lines[0] == "Best: rpn_box=10, val/ap50 0.800 ± 0.141 (mean ± deviation of 2 seeds)."
    cells = [line.split("  ") for line in lines if line.startswith(("  1", "  2", "  3"))]
    assert [[cell.strip() for cell in row if cell.strip()] for row in cells] == [
        ["1", "10", "0.800 ± 0.141", "best", "2 done"],
        ["2", "1", "0.550 ± 0.071", "within noise (p = 0.13)", "2 done"],
        ["3", "100", "–", "1 failed"],
    ]
    assert lines[-1].split()[0] == "failed"
    assert lines[-1].endswith("r4: out of memory")
