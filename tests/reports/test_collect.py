"""Run folders as records: what is whole is read, what is damaged is marked and never a number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quadrat.reports.collect import Record, collect, flat
from quadrat.reports.find import find
from reported import log, make_run, make_sweep


def record(folder: Path) -> Record:
    (one,) = collect(find(str(folder), Path("nowhere")).jobs)
    return one


def test_collect_nothing() -> None:
    assert collect([]) == []


def test_record_of_a_finished_run(tmp_path: Path) -> None:
    rows = [{"step": 20, "train/loss/a": 1.5}, {"step": 30, "val/ap50": 0.25}, {"step": 40, "train/loss/a": 0.5}]
    last = {"val/ap50": 0.6, "val/map": 0.3}
    one = record(
        make_run(tmp_path / "r", {"loss.weights.rpn_box": 10}, 3, 0.7, last=last, at_best={"val/map": 0.4}, rows=rows)
    )
    assert (one.state, one.reason, one.seed, one.monitor, one.best) == ("done", "", 3, "val/ap50", 0.7)
    assert (one.last, one.at_best) == (last, {"val/map": 0.4})
    assert one.config["loss.weights.rpn_box"] == 10
    assert [values.tolist() for values in one.history["train/loss/a"]] == [[20, 40], [1.5, 0.5]]
    assert [values.tolist() for values in one.history["val/ap50"]] == [[30], [0.25]]


def test_settings_say_what_and_not_where(tmp_path: Path) -> None:
    keys = set(record(make_run(tmp_path / "r")).config)
    assert {"epochs", "loss.weights.rpn_box", "data.source._target_", "trainer.max_epochs"} <= keys
    parts = {key.split(".")[0] for key in keys}
    assert not parts & {"name", "seed", "paths", "sweep", "logger", "launcher", "replay", "trace"}
    assert not keys & {
        "trainer.enable_progress_bar",
        "trainer.log_every_n_steps",
        "data.workers",
        "callbacks.checkpoints.minutes",
    }


def test_flat_places_and_lists() -> None:
    config = {
        "paths": {"data": "/a", "run": "/logs/x"},
        "root": "/a/voc",
        "best": {"path": "/logs/x/best.ckpt"},
        "l": [1, 2],
    }
    assert flat(config) == {"root": "<data>/voc", "best.path": "<run>/best.ckpt", "l": "[1, 2]"}


def test_flat_resume_mode_that_changes_nothing() -> None:
    assert flat({"resume": {"mode": "never"}}) == flat({"resume": {"mode": "auto"}})
    assert flat({"resume": {"mode": "weights"}}) == {"resume.mode": "weights"}


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "config empty": (lambda run: (run / "config.yaml").write_text(""), "damaged", "config.yaml is empty"),
    "config cut off": (
        lambda run: (run / "config.yaml").write_text((run / "config.yaml").read_text().partition("paths:")[0]),
        "damaged",
        "config.yaml is cut off or no frozen config: it has no paths",
    ),
    "config no yaml": (lambda run: (run / "config.yaml").write_text("a: [1"), "damaged", "config.yaml cannot be read"),
    "config a list": (lambda run: (run / "config.yaml").write_text("- a"), "damaged", "config.yaml is cut off"),
    "config missing": (lambda run: (run / "config.yaml").unlink(), "damaged", "config.yaml cannot be read"),
    "config not text": (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "damaged", "config.yaml"),
    "metrics missing": (lambda run: (run / "metrics.json").unlink(), "damaged", "there is no metrics.json"),
    "metrics half written": (
        lambda run: (run / "metrics.json").write_text((run / "metrics.json").read_text()[:40]),
        "damaged",
        "metrics.json cannot be read",
    ),
    "metrics a list": (lambda run: (run / "metrics.json").write_text("[1]"), "damaged", "holds no best value"),
    "best null": (lambda run: best(run, None), "damaged", "val/ap50 was never measured: its best value is null"),
    "best NaN": (lambda run: best(run, float("nan")), "damaged", "its best value is NaN"),
    "best a word": (lambda run: best(run, "0.9"), "damaged", 'its best value is "0.9"'),
    "other monitor": (
        lambda run: (run / "metrics.json").write_text('{"monitor": "val/map", "best": 0.5}'),
        "damaged",
        "metrics.json is of val/map, config.yaml monitors val/ap50",
    ),
    "log empty": (lambda run: (run / "metrics.csv").write_text(""), "damaged", "metrics.csv is empty"),
    "log cut off in a number": (
        lambda run: cut(run / "metrics.csv", 4),
        "damaged",
        "metrics.csv is cut off in its last line",
    ),
    "log with a short row": (
        lambda run: (run / "metrics.csv").write_text("step,a,b\n1,2\n"),
        "damaged",
        "metrics.csv, line 2: 2 cells in 3 columns",
    ),
    "log with a word": (
        lambda run: (run / "metrics.csv").write_text("step,a\n1,0.5\n2,x\n"),
        "damaged",
        "metrics.csv, line 3: could not convert string to float: 'x'",
    ),
    "status half written": (lambda run: (run / "status.json").write_text('{"sta'), "unreadable", "status.json"),
    "failed": (lambda run: status(run, "failed", reason="RuntimeError: memory"), "failed", "RuntimeError: memory"),
    "queued": (lambda run: status(run, "queued"), "queued", "not finished"),
    "preempted": (lambda run: status(run, "preempted", reason="SIGTERM", epoch=3, step=9), "preempted", "SIGTERM"),
    "dead": (lambda run: status(run, "running", host="elsewhere", pid=1), "lost", "no sign of life"),
}


def best(run: Path, value: object) -> None:
    (run / "metrics.json").write_text(json.dumps({"monitor": "val/ap50", "best": value, "last": {}}))


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def status(run: Path, state: str, **more: object) -> None:
    (run / "status.json").write_text(json.dumps({"state": state, **more}))


@pytest.mark.parametrize(("damage", "state", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_or_unfinished_is_marked(
    damage: Callable[[Path], object], state: str, reason: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "r")
    damage(run)
    one = record(run)
    assert (one.state, one.done) == (state, False)
    assert reason in one.reason
    assert one.best is None


def test_log_without_rows_or_file_is_no_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    (run / "metrics.csv").write_text("step\n")
    assert (record(run).state, record(run).history) == ("done", {})
    (run / "metrics.csv").unlink()
    assert (record(run).state, record(run).best) == ("done", 0.5)


def test_log_with_nan_is_no_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", rows=[{"step": 1, "train/loss/a": float("nan")}])
    assert record(run).state == "done"


def test_last_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", last={"val/map": float("nan"), "val/ap75": 0.25})
    assert record(run).last == {"val/ap75": 0.25}


def test_job_whose_folder_is_not_there(tmp_path: Path) -> None:
    make_sweep(tmp_path, "mine", [tmp_path / "gone"])
    (one,) = collect(find("mine", tmp_path).jobs)
    assert (one.state, one.reason) == ("new", "it has not begun: there is no config.yaml")


def test_reading_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()}
    record(run)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.iterdir()} == before


def test_two_hundred_runs_each_with_its_own_numbers(tmp_path: Path) -> None:
    columns = {f"train/loss/term_{i}": float(i) for i in range(38)}
    for i in range(200):
        rows = [{"step": step, **columns, "val/ap50": i / 1000} for step in range(20)]
        make_run(tmp_path / f"r{i:03}", {"loss.weights.rpn_box": i // 4}, i % 4, i / 1000, rows=rows, padding=60)
    records = collect(find(f"{tmp_path}/r*", tmp_path).jobs)
    assert [one.best for one in records] == [i / 1000 for i in range(200)]
    assert [(one.seed, one.config["loss.weights.rpn_box"]) for one in records] == [(i % 4, i // 4) for i in range(200)]
    assert all(len(one.history) == 39 and one.history["val/ap50"][1][-1] == one.best for one in records)


def test_log_is_written_as_runs_write_it() -> None:
    """The maker's log ends its lines as the csv logger's does, which is how a cut is seen."""
    assert log([{"step": 1, "a": 2.0}]) == "step,a\r\n1,2.0\r\n"
