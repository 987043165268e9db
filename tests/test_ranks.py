"""A job of two processes, as users start it: told to stop, killed in part, started by torchrun, started wrongly."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quadrat.ranks import wanted
from quadrat.runs import Run
from test_resume import same

TINY = (
    *("data.source.count=32", "data.batch_size=2", "data.eval_batch_size=3", "trainer.max_epochs=3"),
    *("trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "callbacks.pictures=null", "name=two"),
    *("model.neck.channels=8", "model.layers.hidden=16", "augment=flip", "++data.source.size=[96,96]"),
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "callbacks.checkpoints.minutes=0"),
)
TRAIN = [sys.executable, "-m", "quadrat.train"]


def start(logs: Path, *more: str, command: list[str] = TRAIN, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *TINY, f"paths.logs={logs}", *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the job hangs: {process.communicate()[0][-3000:]}")
    return process.returncode, said


def only(logs: Path) -> Run:
    (folder,) = logs.glob("two-*")
    return Run(folder)


def wait(ready: Callable[[], object], process: subprocess.Popen[str]) -> None:
    for _ in range(20_000):
        if ready():
            return
        assert process.poll() is None, f"the job ended too early: {process.communicate()[0][-3000:]}"
        time.sleep(0.01)
    pytest.fail("the job did not get so far in 200 s")


def steps(logs: Path) -> int:
    return sum(steps_of(file) for file in logs.glob("two-*/metrics.csv"))


def steps_of(file: Path) -> int:
    with file.open(newline="") as rows:
        return sum(bool(row.get("train/total")) for row in csv.DictReader(rows))


def ranks_of(logs: Path) -> list[int]:
    """The processes that train in a folder, found by their command lines."""
    wanted = f"{logs}/two-"
    return [
        int(place.name)
        for place in Path("/proc").iterdir()
        if place.name.isdigit() and wanted in command_line(place) and "quadrat.worker" in command_line(place)
    ]


def command_line(place: Path) -> str:
    try:
        return (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    logs = tmp_path_factory.mktemp("whole")
    code, said = end(start(logs, "trainer.devices=2"))
    assert code == 0, said
    return only(logs)


def test_two_ranks_one_writer(whole: Run) -> None:
    assert whole.status["state"] == "done"
    assert [int(row["step"]) for row in rows(whole) if row["train/total"]] == list(range(24))


def rows(run: Run) -> list[dict[str, str]]:
    with run.log.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow  # CI has the cluster's own preemption of two nodes
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signal_to_the_parent_stops_all_ranks_at_one_step(whole: Run, tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, "trainer.devices=2")
    wait(lambda: steps(tmp_path) > 5, process)
    process.send_signal(signum)
    code, said = end(process)
    assert code == 128 + signum, said
    run = only(tmp_path)
    assert (run.status["state"], run.status["reason"]) == ("preempted", signum.name)
    assert not ranks_of(tmp_path)
    code, said = end(start(tmp_path, "trainer.devices=2"))
    assert code == 0, said
    same(run, whole)


def test_handlers_stand_before_the_slow_imports(tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.devices=1")
    wait(lambda: catches(process.pid, signal.SIGUSR1), process)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGUSR1)
    code, said = end(process)
    assert code == 128 + signal.SIGUSR1, said
    assert steps(tmp_path) == 0


def catches(pid: int, signum: int) -> bool:
    """Has a process a handler of its own for a signal?"""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (signum - 1) & 1)


@pytest.mark.slow
def test_killed_rank_fails_the_job_and_only_once(whole: Run, tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.devices=2")
    wait(lambda: steps(tmp_path) > 5, process)
    os.kill(max(ranks_of(tmp_path)), signal.SIGKILL)
    code, said = end(process)
    assert code not in (0, None), said
    run = only(tmp_path)
    assert run.status["state"] == "failed"
    assert not ranks_of(tmp_path)
    code, said = end(start(tmp_path, "trainer.devices=2"))
    assert code == 0, said
    same(run, whole)


def test_killed_parent_takes_its_ranks_along(whole: Run, tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.devices=2")
    wait(lambda: steps(tmp_path) > 5, process)
    process.kill()
    process.communicate()
    code, said = end(start(tmp_path, "trainer.devices=2"))
    assert code == 0, said
    same(only(tmp_path), whole)


@pytest.mark.slow
def test_torchrun_trains_the_same(whole: Run, tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "quadrat.train",
    ]
    code, said = end(start(tmp_path, "trainer.devices=2", command=torchrun))
    assert code == 0, said
    same(only(tmp_path), whole)


@pytest.mark.slow
def test_sharded_trains_the_like_and_resumes(whole: Run, tmp_path: Path) -> None:
    """FSDP2: the first losses are those of ddp, validation needs no rank to wait, and checkpoints are whole."""
    process = start(tmp_path, "trainer.devices=2", "trainer=ddp_sharded")
    wait(lambda: steps(tmp_path) > 9, process)  # in the second epoch
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 143, said
    code, said = end(start(tmp_path, "trainer.devices=2", "trainer=ddp_sharded"))
    assert code == 0, said
    ours, theirs = ([row for row in rows(run) if row["train/total"]] for run in (only(tmp_path), whole))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert float(mine["train/total"]) == pytest.approx(float(other["train/total"]), rel=1e-3)


@pytest.mark.slow
def test_sweep_of_jobs_of_several_processes(tmp_path: Path) -> None:
    """Each job is one run, trained by its own ranks, whatever their number was in the job before."""
    code, said = end(start(tmp_path, "trainer.devices=2,1", "trainer.max_epochs=1", command=[*TRAIN, "-m"]))
    assert code == 0, said
    runs = [Run(folder) for folder in tmp_path.glob("two-*")]
    assert {run.config().trainer.devices: run.status["steps"] for run in runs} == {2: 8, 1: 16}
    assert {run.status["state"] for run in runs} == {"done"}


@pytest.mark.slow
def test_ranks_with_different_settings_refuse(tmp_path: Path) -> None:
    """As when each process draws its own values: nobody trains, and the setting is named."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    both = [
        start(tmp_path, "trainer.devices=2", f"optimizer.lr={rate}", LOCAL_RANK=str(rank), RANK=str(rank), **place)
        for rank, rate in enumerate((0.1, 0.2))
    ]
    for process in both:
        code, said = end(process)
        assert code == 1, said
        assert "optimizer.lr: 0.1 and 0.2" in said
    assert steps(tmp_path) == 0


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    [
        (1, "cpu", 1),
        (3, "cpu", 3),
        ("2", "gpu", 2),
        ([0, 2], "gpu", 2),
        ("0,1,3", "gpu", 3),
        ("auto", "cpu", 1),
        (-1, "cpu", 1),
    ],
)
def test_wanted_counts_processes(devices: object, accelerator: str, count: int) -> None:
    assert wanted(devices, accelerator) == count


@pytest.mark.parametrize("devices", [0, -2, "many", 1.5])
def test_wanted_refuses(devices: object) -> None:
    with pytest.raises(ValueError, match="give a number of processes"):
        wanted(devices, "cpu")
