"""quadrat-report: the table of a sweep, also while it runs, whatever its files look like; and the report of runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import toys
from quadrat.report import main, overview, status
from quadrat.runs import Run
from quadrat.sweeps.ledger import Sweep
from quadrat.sweeps.table import age, table
from reported import make_run, make_sweep
from toys import runs, toy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three jobs of a sweep called mine, done by the pretender."""
    folder = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        toys.pretending(patch)
        toy(folder, "seed=0,1,2", "sweep.name=mine")
    return folder


@pytest.fixture
def logs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them in the working folder, to be changed."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True))


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the rows of jobs by label."""
    lines = [line.split() for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0].startswith("seed=")}


# --- the table ---


def test_table_empty() -> None:
    assert table([]).splitlines()[-1].strip() == "no jobs"


def test_status_done(logs: Path) -> None:
    text = status("mine", logs)
    folder = runs(logs)["seed=0"].folder.name
    assert rows(text)["seed=0"] == ["done", "2", "8", "0.500", folder]
    assert text.splitlines()[-1].strip() == "3 done"


def test_status_while_it_runs(logs: Path) -> None:
    one = runs(logs)["seed=1"]
    one.set_status("running", pid=os.getpid(), host=socket.gethostname())
    one.write_json(one.heartbeat_file, {"heartbeat": time.time() - 50, "epoch": 3, "step": 120, "max_epochs": 12})
    runs(logs)["seed=2"].set_status("queued")
    text = status("mine", logs)
    assert rows(text)["seed=1"][:3] == ["running", "3/12", "120"]
    assert "50 s ago" in text or "51 s ago" in text
    assert text.splitlines()[-1].strip() == "1 done, 1 running, 1 queued"


STANDING: dict[str, tuple[Callable[[Run], object], str, str]] = {
    "failed": (lambda run: run.set_status("failed", reason="RuntimeError: out of memory"), "failed", "out of memory"),
    "preempted": (lambda run: run.set_status("preempted", reason="SIGUSR2"), "preempted", "SIGUSR2"),
    "process gone": (
        lambda run: run.set_status("running", pid=2**22 + 1, host=socket.gethostname()),
        "lost",
        f"process {2**22 + 1} is gone",
    ),
    "silent": (lambda run: run.set_status("running", pid=1, host="other"), "lost", "no sign of life"),
    "half written": (lambda run: run.status_file.write_text('{"state": "run'), "unreadable", "status.json"),
    "no state": (lambda run: run.status_file.write_text('{"state": null}'), "unreadable", "status.json"),
    "no number": (lambda run: run.set_status("done", best="good"), "unreadable", "status.json"),
    "folder deleted": (lambda run: run.folder.rename(run.folder.parent / "sweeps" / "away"), "new", ""),
    "best unreadable": (lambda run: run.metrics_file.write_text("{"), "done", ""),
}


@pytest.mark.parametrize(("change", "named", "reason"), STANDING.values(), ids=STANDING)
def test_status_of_a_job(change: Callable[[Run], object], named: str, reason: str, logs: Path) -> None:
    change(runs(logs)["seed=1"])
    text = status("mine", logs)
    assert rows(text)["seed=1"][0] == named
    assert reason in text
    assert rows(text)["seed=0"][0] == rows(text)["seed=2"][0] == "done"
    assert f"1 {named}" in text.splitlines()[-1] or named == "done"


def test_status_reason_of_the_past_is_not_shown(logs: Path) -> None:
    run = runs(logs)["seed=1"]
    run.set_status("preempted", reason="SIGTERM")
    run.set_status("done", epochs=2, steps=8)
    assert "SIGTERM" not in status("mine", logs)


def test_status_no_longer_in_the_queue(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was cancelled while it waited says queued for ever; the queue knows better."""
    folder = logs / "bin"
    folder.mkdir()
    (folder / "squeue").write_text("#!/bin/sh\necho 40_2\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    sweep = Sweep.find("mine", logs)
    for seed, state in enumerate(("done", "queued", "queued")):
        runs(logs)[f"seed={seed}"].set_status(state)
    sweep.submitted("slurm", {job.key: f"40_{job.label[-1]}" for job in sweep.jobs().values()})
    text = status("mine", logs)
    assert [cells[0] for cells in rows(text).values()] == ["done", "lost", "queued"]
    assert "no longer in the queue (40_1)" in text


def test_status_queue_does_not_answer(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (logs / "squeue").write_text("#!/bin/sh\necho down >&2; exit 1\n")
    (logs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{logs}:{os.environ['PATH']}")
    sweep = Sweep.find("mine", logs)
    runs(logs)["seed=0"].set_status("queued")
    sweep.submitted("slurm", {job.key: "40_0" for job in sweep.jobs().values()})
    assert rows(status("mine", logs))["seed=0"][0] == "queued"
    assert "note: SLURM does not say" in capsys.readouterr().err


def test_status_by_folder(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = status("mine", logs)
    assert status(str(logs / "sweeps" / "mine"), Path("nowhere")) == by_name


def test_status_unknown_names_the_close_ones(logs: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no sweep mime .* did you mean mine\?"):
        status("mime", logs)


def test_status_unknown_of_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is none at all; QUADRAT_LOGS"):
        status("mine", tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119.9, "119 s"), (120, "2 min"), (7200, "2 h"), (3e5, "3 d"), (-1, "0 s")]
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


# --- all sweeps ---


def test_overview_none(tmp_path: Path) -> None:
    assert overview(tmp_path).startswith("no sweeps in ")


def test_overview_latest_last_and_damaged_marked(logs: Path) -> None:
    shutil.copytree(logs / "sweeps" / "mine", logs / "sweeps" / "other")
    (logs / "sweeps" / "mine" / "ledger.json").write_text("{")
    os.utime(logs / "sweeps" / "mine" / "ledger.json", (0, 0))
    (logs / "sweeps" / "empty").mkdir()
    damaged, whole = overview(logs).splitlines()[:2]
    assert damaged.split()[:2] == ["mine", "unreadable:"]
    assert whole.split()[:5] == ["other", "3", "jobs:", "3", "done;"]


# --- the command ---


def shell(*arguments: str, logs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", Path(sys.executable).parent / "quadrat-report", *arguments],
        env={**os.environ, "QUADRAT_LOGS": str(logs)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_command_is_light(logs: Path) -> None:
    done = shell("status", "mine", logs=logs)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "3 done" in done.stdout
    assert "quadrat.sweeps.table" in imported
    assert not imported & {
        "torch",
        "hydra",
        "omegaconf",
        "lightning",
        "numpy",
        "submitit",
        "yaml",
        "matplotlib",
        "scipy",
    }


def test_command_unknown_sweep(tmp_path: Path) -> None:
    done = shell("status", "mine", logs=tmp_path)
    assert done.returncode == 1
    assert "error: there is no sweep mine" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_without_a_name_lists(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(logs))
    monkeypatch.setattr(sys, "argv", ["quadrat-report", "status"])
    main()
    assert "mine  3 jobs: 3 done" in capsys.readouterr().out


# --- what came of runs ---


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep called weights of two settings and two seeds, in logs/ of the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUADRAT_LOGS", raising=False)
    logs = tmp_path / "logs"
    chosen = [(1.0, 0, 0.5), (1.0, 1, 0.6), (10.0, 0, 0.7), (10.0, 1, 0.9)]
    last = {"val/map": 0.25}
    folders = [
        make_run(logs / f"r{i}", {"loss.weights.box": weight}, seed, best, last=last)
        for i, (weight, seed, best) in enumerate(chosen)
    ]
    make_sweep(logs, "weights", folders, ["-m", "loss.weights.box=1,10", "seed=0,1"])
    return logs


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["quadrat-report", *words])
    main()
    return capsys.readouterr().out


def test_report_of_a_sweep(swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in swept.rglob("*") if path.is_file()}
    out = told(monkeypatch, capsys, "runs=weights")
    assert "Best: box=10, val/ap50 0.800 ± 0.141 (mean ± deviation of 2 seeds)." in out
    assert "logs/sweeps/weights/report/index.html" in out
    page = (swept / "sweeps" / "weights" / "report" / "index.html").read_text()
    assert "quadrat-train -m loss.weights.box=1,10 seed=0,1" in page
    assert {path: path.read_bytes() for path in before} == before
    assert {path.parent.name for path in swept.rglob("*") if path.is_file() and path not in before} == {"report"}


def test_report_of_a_glob(swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Best: box=10" in told(monkeypatch, capsys, "runs=logs/r[0-2]")
    assert (swept / "reports" / "r-0-2" / "index.html").exists()


def test_report_of_one_run_elsewhere(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(monkeypatch, capsys, "runs=logs/r3", "output=here", "metrics=val/map,val/ap50")
    assert "val/map of all runs: 0.250 (one seed)." in out
    assert Path("here/index.html").exists()


def test_report_with_wandb_that_is_not_to_be_had(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(monkeypatch, capsys, "runs=weights", "--wandb")
    assert "W&B     none: the runs were not logged to it; train with logger=wandb" in out
    assert (swept / "sweeps" / "weights" / "report" / "index.html").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["runs=wieghts"], r"error: runs=wieghts is no sweep .* did you mean runs=weights\?"),
        (["runs=nothing/*"], r"error: runs=nothing/\* is no sweep"),
        (["runs=weights", "metric=val/map"], r"error: there is no metric=val/map; did you mean metrics=\?"),
        (["runs=weights", "metrics=val/mpa"], r"error: metrics=val/mpa: no finished run has it; there is val/map"),
        (["weights"], r"error: there is no weights; as in quadrat-report runs=<sweep>"),
        (["runs="], r"error: runs=<sweep or glob> is not given"),
        ([], r"error: runs=<sweep or glob> is not given"),
        (["status", "a", "b"], r"error: status is of one sweep or of all of them, got a b"),
    ],
)
def test_report_asked_wrongly(words: list[str], error: str, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quadrat-report", *words])
    with pytest.raises(SystemExit, match=error):
        main()


def test_report_into_a_place_that_is_no_folder(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").touch()
    monkeypatch.setattr(sys, "argv", ["quadrat-report", "runs=weights", "output=taken"])
    with pytest.raises(SystemExit, match=r"error: .*taken"):
        main()


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["quadrat-report", "--help"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert all(
        word in out
        for word in ("runs=rpn_lambda", "metrics=val/ap50,val/map", "output=", "--wandb", "status", "QUADRAT_LOGS")
    )
