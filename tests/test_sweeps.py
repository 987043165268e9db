"""Sweeps: frozen at the launch, launched again to go on, refused when their configs have drifted."""

from __future__ import annotations

import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf

import toys
from hydra_plugins.quadrat_sweepers import AxesSweeper, GridSweeper
from quadrat.configs import compose, conf_dir, plain
from quadrat.configs import launch as console
from quadrat.jobs import run_job
from quadrat.launchers.base import Draft
from quadrat.runs import Run
from quadrat.sweeps.designs import parts
from quadrat.sweeps.drafts import name as sweep_name
from quadrat.sweeps.ledger import Sweep, alive, standing
from quadrat.sweeps.preflight import check, check_metrics
from quadrat.sweeps.space import Space
from toys import CONFIG, attempts, ledger, runs, states, toy, toy_name, until

SEEDS = "seed=0,1,2"


@pytest.fixture(autouse=True)
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.pretending(monkeypatch)


def pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setenv("PRETEND", code)


# --- one launch ---


def test_launch_no_job(tmp_path: Path) -> None:
    assert toys.launch(toys.compose([], tmp_path), lambda chosen: toys.compose(chosen, tmp_path), []) == []


def test_launch_runs_every_job_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = toy(tmp_path, SEEDS)
    assert states(tmp_path) == {"seed=0": "done", "seed=1": "done", "seed=2": "done"}
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 1, "seed=2": 1}
    assert [outcome.return_value for outcome in outcomes] == [0.5] * 3
    assert [outcome.overrides for outcome in outcomes] == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert "3 done" in capfd.readouterr().out


def test_launch_enters_jobs_in_ledger(tmp_path: Path) -> None:
    toy(tmp_path, SEEDS, "optimizer.lr=0.5")
    entries = ledger(tmp_path)["jobs"].values()
    assert [entry["label"] for entry in entries] == ["seed=0", "seed=1", "seed=2"]
    assert [entry["overrides"] for entry in entries] == [[f"seed={seed}", "optimizer.lr=0.5"] for seed in range(3)]
    (sweep,) = Sweep.all(tmp_path)
    for job in sweep.jobs().values():
        assert job.run.folder.name == f"toy-{job.id}"
        assert job.run.config().sweep == {"name": sweep.name, "retry": None, "job": job.label, "trial": None}
        assert "trained" in job.log.read_text()


def test_launch_freezes_all_before_the_first_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job sees the frozen config of the last."""
    pretend(monkeypatch, "assert 'seed: 2' in ''.join(c.read_text() for c in run.folder.parent.glob('*/config.yaml'))")
    toy(tmp_path, SEEDS)
    assert set(states(tmp_path).values()) == {"done"}


def test_launch_frozen_config_has_no_interpolation(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0")
    text = runs(tmp_path)["seed=0"].config_file.read_text()
    assert "${" not in text
    assert "hydra" not in text


def test_launch_same_run_is_one_job(tmp_path: Path) -> None:
    outcomes = toy(tmp_path, "loss.weights.box=1,1.0,2")
    assert attempts(tmp_path) == {"box=1": 1, "box=2": 1}
    assert [entry["label"] for entry in ledger(tmp_path)["jobs"].values()] == ["box=1", "box=2"]
    assert outcomes[0].working_dir == outcomes[1].working_dir != outcomes[2].working_dir


# --- failures ---


def test_failed_job_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "if label == 'seed=0': run.set_status('failed', reason='loss is nan'); sys.exit(1)")
    outcomes = toy(tmp_path, SEEDS)
    assert states(tmp_path) == {"seed=0": "failed", "seed=1": "done", "seed=2": "done"}
    assert [outcome.status for outcome in outcomes] == [JobStatus.FAILED, JobStatus.COMPLETED, JobStatus.COMPLETED]
    with pytest.raises(SystemExit, match=r"1 of 3 jobs .* sweep\.retry=failed") as raised:
        _ = outcomes[0].return_value
    assert raised.value.code == str(raised.value)  # a message, which the shell turns into exit code 1


DEATHS = {
    "killed": ("os.kill(os.getpid(), 9)", "failed", "killed by SIGKILL"),
    "segmentation fault": ("os.kill(os.getpid(), signal.SIGSEGV)", "failed", "killed by SIGSEGV"),
    "crashed": ("print('bar 1%\\rout of luck'); os._exit(3)", "failed", "exit code 3: out of luck; see "),
    "error": ("import nothing_like_it", "failed", "exit code 1: ModuleNotFoundError"),
    "left without a word": ("os._exit(0)", "failed", "exit code 0"),
    "terminated": ("os.kill(os.getpid(), 15)", "preempted", "SIGTERM"),
    "asked to stop early": ("sys.exit(128 + 12)", "preempted", "SIGUSR2"),
    "said it itself": (
        "run.set_status('failed', reason='as it says'); os.kill(os.getpid(), 9)",
        "failed",
        "as it says",
    ),
    "in a session of its own": ("os._exit(int(os.getsid(0) != os.getpid()))", "failed", "exit code 0"),
    "while running": ("run.set_status('running', **here()); os.kill(os.getpid(), 9)", "failed", "killed by SIGKILL"),
}


@pytest.mark.parametrize(("code", "state", "reason"), DEATHS.values(), ids=DEATHS)
def test_death_of_a_job(code: str, state: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, code)
    (outcome,) = toy(tmp_path, "seed=0")
    status = runs(tmp_path)["seed=0"].status
    assert outcome.status == JobStatus.FAILED
    assert status["state"] == state
    assert reason in status["reason"]


def test_death_of_a_job_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "os._exit(3)")
    toy(tmp_path, "seed=0")
    log = runs(tmp_path)["seed=0"].status["reason"].rpartition("see ")[2]
    assert Path(log).is_file()


# --- launched again ---

LONG_AGO = 1000.0
HERE: dict[str, Any] = {"host": socket.gethostname()}
AGAIN: dict[str, tuple[Callable[[Run], object], list[str], int]] = {
    "done": (lambda run: None, [], 1),
    "done, failed asked for": (lambda run: None, ["sweep.retry=failed"], 1),
    "queued": (lambda run: run.set_status("queued"), [], 2),
    "preempted": (lambda run: run.set_status("preempted", reason="SIGTERM"), [], 2),
    "failed": (lambda run: run.set_status("failed", reason="nan"), [], 1),
    "failed, failed asked for": (lambda run: run.set_status("failed", reason="nan"), ["sweep.retry=failed"], 2),
    "pruned by a search that is not this": (lambda run: run.set_status("pruned", reason="hopeless"), [], 2),
    "pruned": (lambda run: run.set_status("pruned", reason="hopeless"), ["sweep.trial.number=3"], 1),
    "running here": (lambda run: beating(run, pid=os.getpid(), **HERE), [], 1),
    "running elsewhere": (lambda run: beating(run, pid=os.getpid(), host="other"), [], 1),
    "gone from here": (lambda run: beating(run, pid=2**22 + 1, **HERE), [], 2),
    "silent elsewhere": (lambda run: beating(run, LONG_AGO, pid=os.getpid(), host="other"), [], 2),
    "damaged status": (lambda run: run.status_file.write_text('{"state": "do'), [], 2),
    "damaged heartbeat": (lambda run: run.heartbeat_file.write_text(""), [], 2),
    "status of another kind": (lambda run: run.status_file.write_text("[]"), [], 2),
}


def beating(run: Run, ago: float = 0.0, **who: Any) -> None:
    run.set_status("running", **who)
    run.write_json(run.heartbeat_file, {"heartbeat": time.time() - ago, "step": 3})


@pytest.mark.parametrize(("change", "overrides", "count"), AGAIN.values(), ids=AGAIN)
def test_launch_again(change: Callable[[Run], object], overrides: list[str], count: int, tmp_path: Path) -> None:
    toy(tmp_path, "seed=0,1")
    change(runs(tmp_path)["seed=1"])
    toy(tmp_path, "seed=0,1", *overrides)
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": count}
    if count == 2:
        assert states(tmp_path)["seed=1"] == "done"


def test_launch_again_deleted_folder(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0,1")
    Path(runs(tmp_path)["seed=1"].folder).rename(tmp_path / "sweeps" / "away")
    toy(tmp_path, "seed=0,1")
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 1}


def test_launch_again_names_the_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, "run.set_status('failed', reason='the loss is nan'); sys.exit(1)")
    toy(tmp_path, "seed=0")
    capfd.readouterr()
    (outcome,) = toy(tmp_path, "seed=0")
    assert "the loss is nan" in capfd.readouterr().out
    assert outcome.status == JobStatus.FAILED


def test_launch_again_for_longer(tmp_path: Path) -> None:
    """How long to train is no part of a run's identity, so the same job goes on."""
    toy(tmp_path, "seed=0", "sweep.name=both")
    toy(tmp_path, "seed=0", "trainer.max_epochs=5", "sweep.name=both")
    assert attempts(tmp_path) == {"seed=0": 2}
    assert runs(tmp_path)["seed=0"].config().trainer.max_epochs == 5
    assert len(ledger(tmp_path)["jobs"]) == 1


def test_launch_again_anew(tmp_path: Path) -> None:
    """`never` puts aside what was there, once: a job that a cluster starts again must not begin anew each time."""
    toy(tmp_path, "seed=0")
    run = runs(tmp_path)["seed=0"]
    run.last.touch()
    toy(tmp_path, "seed=0", "resume.mode=never")
    assert (run.folder / "attempt-1" / "last.ckpt").exists()
    assert not run.last.exists()
    assert run.config().resume.mode == "auto"
    assert run.status["state"] == "done"


def test_launch_more_jobs_under_the_same_name(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0,1", "sweep.name=mine")
    toy(tmp_path, "seed=1,2", "sweep.name=mine")
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 1, "seed=2": 1}
    assert [entry["label"] for entry in ledger(tmp_path)["jobs"].values()] == ["seed=0", "seed=1", "seed=2"]
    assert len(ledger(tmp_path)["launches"]) == 2


def test_launch_takes_over_what_a_single_run_has_done(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0", "sweep.name=one")
    toy(tmp_path, "seed=0,1", "sweep.name=two")
    assert sorted(attempts(tmp_path).values()) == [1, 1]
    assert len(Sweep(tmp_path / "sweeps" / "two").jobs()) == 2


def test_launch_logs_moved(tmp_path: Path) -> None:
    toy(tmp_path / "here", "seed=0,1")
    (tmp_path / "here").rename(tmp_path / "there")
    toy(tmp_path / "there", "seed=0,1")
    assert attempts(tmp_path / "there") == {"seed=0": 1, "seed=1": 1}


def test_alive() -> None:
    assert alive(os.getpid())
    assert alive(1)
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(child.pid), "it has ended, and nobody has asked how"
    child.wait()
    assert not alive(child.pid)


# --- drift ---


def test_drift_refused_with_both_values(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0,1")
    before = ledger(tmp_path)
    edited = CONFIG.replace("lr: 0.1", "lr: 0.2").replace("box: 1.0}}", "box: 1.0, mask: 3}}")
    edited = edited.replace("max_epochs: 2", "max_epochs: 9").replace("data: data", "data: elsewhere")
    with pytest.raises(ValueError, match=r"2 of 2 jobs .* nothing was started") as raised:
        toy(tmp_path, "seed=0,1", text=edited)
    said = str(raised.value)
    assert "optimizer.lr: 0.1 when frozen, 0.2 now" in said
    assert "loss.weights.mask: absent when frozen, 3 now" in said
    assert "sweep.name=<new>" in said
    assert len([line for line in said.splitlines() if " when frozen" in line]) == 2, "only what makes it another run"
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 1}
    assert ledger(tmp_path) == before


def test_drift_of_one_job_stops_the_whole_launch(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0", "sweep.name=mine")
    edited = CONFIG.replace("lr: 0.1", "lr: 0.2")
    with pytest.raises(ValueError, match="1 of 3 jobs"):
        toy(tmp_path, SEEDS, "sweep.name=mine", text=edited)
    assert attempts(tmp_path) == {"seed=0": 1}


def test_drift_undone(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0")
    with pytest.raises(ValueError, match="nothing was started"):
        toy(tmp_path, "seed=0", text=CONFIG.replace("lr: 0.1", "lr: 0.2"))
    toy(tmp_path, "seed=0")
    assert attempts(tmp_path) == {"seed=0": 1}


@pytest.mark.parametrize(
    "edit", [("max_epochs: 2", "max_epochs: 1"), ("data: data", "data: elsewhere"), ("workers: 0", "workers: 2")]
)
def test_drift_is_not_what_leaves_the_run_the_same(edit: tuple[str, str], tmp_path: Path) -> None:
    toy(tmp_path, "seed=0")
    toy(tmp_path, "seed=0", text=CONFIG.replace(*edit))
    assert attempts(tmp_path) == {"seed=0": 1}


# --- names ---


def test_name_same_command_same_name() -> None:
    assert toy_name("seed=0,1", "optimizer.lr=1") == toy_name("optimizer.lr=1", "seed=0,1")
    assert toy_name("seed=0,1") == toy_name("seed=0,1", "launcher._target_=other", "sweep.retry=failed")
    assert toy_name("seed=0,1").startswith("toy-")


def test_name_other_command_other_name() -> None:
    assert len({toy_name(), toy_name("seed=0,1"), toy_name("seed=0,2"), toy_name("seed=0,1", "optimizer.lr=1")}) == 4


def test_name_given() -> None:
    assert toy_name("seed=0,1", "sweep.name=box-weights") == "box-weights"


FILE = "a sweep file of two parameters"
SEARCH = "a sweep file of a search"
FILE_NAMES = {
    "nothing else": (FILE, [], [], "lam"),
    "values of its own": (FILE, ["loss.weights.box=1,2", "seed=7"], [], "lam"),
    "how it is run": (
        FILE,
        ["launcher=slurm", "sweep.retry=failed", "trace=true"],
        ["hydra.sweeper.max_batch_size=2"],
        "lam",
    ),
    "other setting": (FILE, ["epochs=3"], [], "lam-"),
    "other design": (FILE, [], ["hydra/sweeper=axes"], "lam-"),
    "search": (SEARCH, [], [], "lam"),
    "more of a search": (SEARCH, [], ["hydra.sweeper.trials=99", "hydra.sweeper.batch=4"], "lam"),
    "seeds of a search": (SEARCH, ["seed=7"], [], "lam-"),
    "range of a search": (SEARCH, ["loss.weights.box=interval(1,2)"], [], "lam-"),
    "pruned search": (SEARCH, [], ["hydra/sweeper/pruner=asha"], "lam-"),
}


@pytest.mark.parametrize(("file", "task", "steering", "name"), FILE_NAMES.values(), ids=FILE_NAMES)
def test_name_of_a_sweep_file(file: str, task: list[str], steering: list[str], name: str, tmp_path: Path) -> None:
    master = toys.compose([], tmp_path)
    sweeper: dict[str, Any] = {"params": {"loss.weights.box": "1,10", "seed": "0,1"}}
    if file == SEARCH:
        sweeper["trials"] = 20
    choices = {"runtime": {"choices": {"sweep": "lam"}}}
    master.hydra = {"overrides": {"task": ["sweep=lam", *task], "hydra": steering}, "sweeper": sweeper, **choices}
    pattern = f"{name}[0-9a-f]{{8}}" if name.endswith("-") else name
    assert re.fullmatch(pattern, sweep_name(master))


@pytest.mark.parametrize("given", ["a/b", "..", ".hidden", "with space"])
def test_name_that_is_no_folder(given: str) -> None:
    with pytest.raises(ValueError, match="cannot name a folder"):
        toy_name(f"sweep.name={given}")


LABELS = {
    "last part": (["loss.weights.rpn_box=1,2"], "rpn_box=1"),
    "only what changes": (["seed=0,1", "optimizer.lr=1"], "seed=0"),
    "in the order of the command": (["seed=0,1", "loss.weights.box=3,4"], "seed=0 box=3"),
    "same last part": (["loss.weights.box=1,2", "data.box=3,4"], "weights.box=1 data.box=3"),
    "nothing changes": (["seed=3", "optimizer.lr=1", "sweep.name=x"], "seed=3 lr=1"),
    "group": (["model/backbone=tiny,large"], "backbone=tiny"),
}


@pytest.mark.parametrize(("overrides", "label"), LABELS.values(), ids=LABELS)
def test_label(overrides: list[str], label: str, tmp_path: Path) -> None:
    toy(tmp_path, *overrides)
    assert next(iter(ledger(tmp_path)["jobs"].values()))["label"] == label


@pytest.mark.parametrize("overrides", [[], ["optimizer.lr=0.123456", "trainer.max_epochs=100", "data.root=somewhere"]])
def test_label_of_nothing_or_too_much_is_the_folder(overrides: list[str], tmp_path: Path) -> None:
    toy(tmp_path, *overrides)
    (job,) = ledger(tmp_path)["jobs"].values()
    assert job["label"] == f"toy-{job['id']}"


# --- the ledger ---


def test_ledger_survives_kill_while_it_is_written(tmp_path: Path) -> None:
    toy(tmp_path, "seed=0")
    (sweep,) = Sweep.all(tmp_path)
    before = sweep.read()
    code = (
        "import os, sys; from quadrat.sweeps.ledger import Sweep; "
        "os.replace = lambda *_: os.kill(os.getpid(), 9); Sweep(sys.argv[1]).enter([], [], {'command': []})"
    )
    assert subprocess.run([sys.executable, "-c", code, sweep.folder], timeout=60).returncode == -signal.SIGKILL
    assert sweep.read() == before
    toy(tmp_path, "seed=0,1", f"sweep.name={sweep.name}")
    assert len(sweep.jobs()) == 2


@pytest.mark.parametrize("text", ["", '{"jobs": {"a"', "[]", '{"launches": [], "jobs": {"a": {}}}'])
def test_ledger_damaged_names_the_way_out(text: str, tmp_path: Path) -> None:
    toy(tmp_path, "seed=0")
    (sweep,) = Sweep.all(tmp_path)
    sweep.ledger_file.write_text(text)
    with pytest.raises(ValueError, match=r"ledger\.json cannot be read .* move it away"):
        toy(tmp_path, "seed=0")
    sweep.ledger_file.unlink()
    toy(tmp_path, "seed=0")
    assert attempts(tmp_path) == {"seed=0": 1}, "what is done is found without the ledger"


def test_retry_unknown_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sweep\.retry=all: failed runs"):
        toy(tmp_path, "seed=0", "sweep.retry=all")
    assert not runs(tmp_path)


# --- a sweep that is stopped ---


def start(logs: Path, *overrides: str, pretend: str = toys.UNTIL_STOPPED) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, toys.__file__, logs, *overrides],
        env={**os.environ, "PRETEND": pretend},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(ready: Callable[[], bool], sweep: subprocess.Popen[str]) -> None:
    try:
        until(ready, lambda: sweep.poll() is None)
    except (AssertionError, TimeoutError):
        sweep.kill()
        pytest.fail(f"it did not get so far: {sweep.communicate()[0]}")


def second_runs(logs: Path) -> bool:
    return states(logs).get("seed=1") == "running"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_sweep_stops_its_job_and_goes_on_later(signum: signal.Signals, tmp_path: Path) -> None:
    sweep = start(tmp_path, SEEDS)
    wait_for(lambda: second_runs(tmp_path), sweep)
    sweep.send_signal(signum)
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signum
    assert "interrupted: 1 of 3 jobs are done; the same command goes on" in said
    assert "Traceback" not in said
    assert states(tmp_path) == {"seed=0": "done", "seed=1": "preempted", "seed=2": "queued"}
    first = runs(tmp_path)["seed=0"].status_file.stat().st_mtime_ns

    sweep = start(tmp_path, SEEDS)
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 0, said
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 2, "seed=2": 1}
    assert runs(tmp_path)["seed=0"].status_file.stat().st_mtime_ns == first
    assert set(states(tmp_path).values()) == {"done"}


def test_stopped_sweep_whose_job_is_killed_in_haste_goes_on_later(tmp_path: Path) -> None:
    hasty = toys.UNTIL_STOPPED.replace(
        '    run.set_status("preempted"', '    os.kill(os.getpid(), 9)\n    run.set_status("preempted"'
    )
    sweep = start(tmp_path, SEEDS, pretend=hasty)
    wait_for(lambda: second_runs(tmp_path), sweep)
    sweep.terminate()
    sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signal.SIGTERM
    toy(tmp_path, SEEDS)
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 2, "seed=2": 1}


def test_killed_sweep_takes_its_job_along_and_goes_on_later(tmp_path: Path) -> None:
    """Nothing could be written down, so the state still says that it runs; its process tells otherwise."""
    held = "signals.die_with(int(os.environ['QUADRAT_PARENT']))" + toys.UNTIL_STOPPED
    sweep = start(tmp_path, SEEDS, pretend=held)
    wait_for(lambda: second_runs(tmp_path), sweep)
    sweep.kill()
    sweep.communicate()
    (folder,) = Sweep.all(tmp_path)
    job = next(job for job in folder.jobs().values() if job.label == "seed=1")
    assert job.run.status["state"] == "running"
    until(lambda: standing(job)["state"] == "lost")  # the kernel has closed the pipe, and the job has ended
    assert "process" in standing(job)["reason"]
    toy(tmp_path, SEEDS)
    assert attempts(tmp_path) == {"seed=0": 1, "seed=1": 2, "seed=2": 1}


def test_second_launch_of_a_running_sweep_is_refused(tmp_path: Path) -> None:
    sweep = start(tmp_path, SEEDS)
    wait_for(lambda: second_runs(tmp_path), sweep)
    again = start(tmp_path, SEEDS)
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 1
    assert f"is being run by process {sweep.pid}" in said
    assert "quadrat-report status" in said
    sweep.terminate()
    sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + signal.SIGTERM


# --- by Hydra ---


def shell(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """quadrat-train in this process."""
    monkeypatch.setattr(sys, "argv", ["quadrat-train", *arguments])
    console("train", run_job)


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of configs in front of our own, of which the first job of a sweep changes a file."""
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path / "logs"))
    folder = tmp_path / "conf"
    (folder / "optimizer").mkdir(parents=True)
    text = "_target_: torch.optim.SGD\n_partial_: true\nlr: {}\n"
    (folder / "optimizer" / "mine.yaml").write_text(text.format(0.25))
    pretend(monkeypatch, f"Path({str(folder)!r}, 'optimizer', 'mine.yaml').write_text({text.format(9)!r})")
    return folder


def test_hydra_later_edits_change_nothing_that_is_frozen(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(monkeypatch, "--config-dir", str(edited), "-m", "experiment=none", "optimizer=mine", "seed=0,1")
    logs = edited.parent / "logs"
    assert [run.config().optimizer.lr for run in runs(logs).values()] == [0.25, 0.25]
    assert states(logs) == {"seed=0": "done", "seed=1": "done"}
    with pytest.raises(SystemExit) as raised:
        shell(monkeypatch, "--config-dir", str(edited), "-m", "experiment=none", "optimizer=mine", "seed=0,1")
    assert raised.value.code == 1


def test_hydra_drift_is_one_message(
    edited: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ("--config-dir", str(edited), "-m", "experiment=none", "optimizer=mine", "seed=0")
    shell(monkeypatch, *command)
    capfd.readouterr()
    with pytest.raises(SystemExit) as raised:
        shell(monkeypatch, *command)
    assert raised.value.code == 1
    said = capfd.readouterr().err
    assert "error: 1 of 1 jobs of the sweep sweep-" in said
    assert "optimizer.lr: 0.25 when frozen, 9 now" in said
    assert "Traceback" not in said
    assert "HYDRA_FULL_ERROR" not in said


def test_hydra_failed_job_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    pretend(monkeypatch, "if label == 'rpn_box=1': os.kill(os.getpid(), 9)")
    with pytest.raises(SystemExit, match=r"error: 1 of 2 jobs .* sweep\.retry=failed"):
        shell(monkeypatch, "-m", "loss.weights.rpn_box=1,2")
    said = capfd.readouterr()
    assert "killed by SIGKILL" in said.out
    assert "Error executing job" not in said.err
    assert states(tmp_path) == {"rpn_box=1": "failed", "rpn_box=2": "done"}
    (sweep,) = Sweep.all(tmp_path)
    assert sweep.name.startswith("shapes-")
    assert sorted(file.name for file in sweep.folder.iterdir()) == [".lock", "jobs", "ledger.json", "multirun.yaml"]


def test_hydra_sweep_of_a_missing_value_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    with pytest.raises(SystemExit) as raised:
        shell(monkeypatch, "-m", "experiment=none", "data=voc", "seed=0,1")
    assert raised.value.code == 1
    assert "data.source.root is not set" in capfd.readouterr().err
    assert not runs(tmp_path)


def test_hydra_sweep_file_needs_no_m(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The values that are said take the place of the file's, whose parameters all are in the labels, as more may be added."""
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    pretend(monkeypatch, "run.set_status('done', epochs=99, steps=8); sys.exit()")
    lam = ("sweep=rpn_lambda", "loss.weights.rpn_box=1,10", "model.proposer.box_normaliser=samples")
    shell(monkeypatch, *lam, "seed=0")
    shell(monkeypatch, *lam, "seed=0,1")
    labels = [f"rpn_box={weight} box_normaliser=samples seed={seed}" for weight in (1, 10) for seed in (0, 1)]
    assert attempts(tmp_path) == dict.fromkeys(labels, 1)
    assert [sweep.name for sweep in Sweep.all(tmp_path)] == ["rpn_lambda"]
    assert "2 done, 2 to run" in capfd.readouterr().out


def test_hydra_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    shell(monkeypatch, "-m", "hydra/sweeper=axes", "loss.weights.rpn_box=4", "loss.weights.region_box=0.5,2", "seed=1")
    weights = [run.config().loss.weights.region_box for run in runs(tmp_path).values()]
    assert sorted(weights) == [0.5, 1, 2]
    assert {run.config().loss.weights.rpn_box for run in runs(tmp_path).values()} == {4}


def test_hydra_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    command = ("sweep=rpn_search", "hydra/sweeper=random", "seed=0", "loss.weights.region_box=range(1,9)")
    shell(monkeypatch, *command, "hydra.sweeper.trials=1")
    shell(monkeypatch, *command, "hydra.sweeper.trials=2")
    assert "2 trials: 2 complete" in capfd.readouterr().out
    assert [trial.state.name for trial in toys.study(tmp_path).trials] == ["COMPLETE"] * 2
    for trial in toys.study(tmp_path).trials:
        box, region = trial.params["loss.weights.rpn_box"], trial.params["loss.weights.region_box"]
        weights = runs(tmp_path)[f"rpn_box={box} region_box={region} seed=0"].config().loss.weights
        assert (weights.rpn_box, weights.region_box) == (box, region)
        assert 0.1 <= box <= 100
        assert isinstance(region, int)


REFUSED = {
    "term that the model lacks": (
        ["+loss.weights.mask=1,2"],
        r"the job mask=1: .*unknown \['mask'\].*nothing was started",
    ),
    "misspelt weight": (
        ["loss.weights.rpn_bax=1,2"],
        r"no loss\.weights\.rpn_bax; did you mean loss\.weights\.rpn_box",
    ),
    "interval in a grid": (["loss.weights.rpn_box=interval(1,2)"], r"hydra/sweeper=grid needs .* tpe or nsga2 search"),
    "grid of a search": (["sweep=rpn_search", "hydra/sweeper=grid"], "hydra/sweeper=grid has no .*trials"),
}


@pytest.mark.parametrize(("command", "says"), REFUSED.values(), ids=REFUSED)
def test_hydra_refused_before_anything_starts(
    command: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUADRAT_LOGS", str(tmp_path))
    with pytest.raises(SystemExit) as raised:
        shell(monkeypatch, "-m", *command)
    assert raised.value.code == 1
    said = capfd.readouterr().err
    assert re.search(says, said), said
    assert "Traceback" not in said
    assert not runs(tmp_path)


# --- what would be wrong with every job ---


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    """Its backbone asks for weights, which are not looked for."""
    return compose("train", ["model/backbone=resnet18", "model.backbone.weights=/nowhere.pth"])


def checked(config: DictConfig, *changes: str) -> None:
    changed = copy.deepcopy(config)
    OmegaConf.set_struct(changed, False)
    changed.merge_with_dotlist(list(changes))
    job = Sweep("anywhere").job("key", "label", [], "id", Run("run"))
    check([Draft(job, changed)])


FINE = {
    "as it is": [],
    "a term that is not trained": ["loss.weights.rpn_box=0"],
    "a class that only the data knows": ["monitor=val/ap50/total_loss"],
}


@pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
def test_check_fine(changes: list[str], composed: DictConfig) -> None:
    checked(composed, *changes)


WRONG = {
    "unknown term": (["loss.weights.mask=1"], r"unknown \['mask'\]"),
    "negative weight": (["loss.weights.rpn_box=-1"], r"got loss\.weights\.rpn_box=-1"),
    "no number": (["loss.weights.rpn_box=high"], "high"),
    "no weight": (
        [f"loss.weights.{name}=0" for name in ("rpn_box", "rpn_objectness", "region_box", "region_class")],
        "all loss",
    ),
    "unknown part of a weighting": (["loss.weighting.wrong=1"], "wrong"),
    "total": (["monitor=train/total"], "train/total cannot choose .* choose by a metric: val/map, val/ap50"),
    "loss": (["monitor=val/loss/rpn_box"], "lowering the weights lowers it; choose by a metric: val/map"),
    "no such metric": (["monitor=val/ap51"], "val/ap51 is no metric of this task; choose by a metric: val/map"),
}


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_check_names_the_job(changes: list[str], says: str, composed: DictConfig) -> None:
    with pytest.raises(ValueError, match=f"the job label: .*{says}.*nothing was started"):
        checked(composed, *changes)


def test_check_toy_has_no_model_but_a_monitor(tmp_path: Path) -> None:
    check(toys.drafted(tmp_path, "seed=0"))
    with pytest.raises(ValueError, match=r"the job monitor=loss: loss cannot choose .* metric: val/map"):
        check(toys.drafted(tmp_path, "seed=0", "monitor=loss"))


# --- files of conf/sweep ---

FILES = sorted(file.stem for file in (conf_dir() / "sweep").glob("*.yaml") if file.stem != "default")


def sweeper_of(*overrides: str) -> dict[str, Any]:
    """What Hydra makes of hydra/sweeper."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("train", list(overrides), return_hydra_config=True)
    assert config.hydra.mode.name == "MULTIRUN"
    return plain(config.hydra.sweeper)


@pytest.mark.parametrize("file", FILES)
def test_sweep_file_is_what_it_says(file: str) -> None:
    """As many jobs as its header says, of three seeds; a job of it has what is swept, and the metrics that it is chosen by."""
    (said,) = re.findall(
        rf"quadrat-train sweep={file} +(\d+) jobs", (conf_dir() / "sweep" / f"{file}.yaml").read_text()
    )
    sweeper = sweeper_of(f"sweep={file}")
    overrides = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in sweeper["params"].items()])
    if "trials" in sweeper:
        space = Space.of(overrides)
        jobs, last = len(space.seeds) * sweeper["trials"], space.overrides(space.example())
    else:
        design = {"GridSweeper": GridSweeper, "AxesSweeper": AxesSweeper}[sweeper["_target_"].rpartition(".")[2]]
        (sets,) = design.split_arguments(overrides, None)
        jobs, last = len(sets), sets[-1]
    assert jobs == int(said)
    assert parts(overrides).seeds == [["seed=0"], ["seed=1"], ["seed=2"]]
    config = compose("train", [f"sweep={file}", *last])
    check_metrics(sweeper.get("objectives") or [config.monitor], config)


def test_sweep_weighter_has_every_weighting() -> None:
    swept = re.split(r",\s*", sweeper_of("sweep=weighter")["params"]["loss/weighting"])
    there = [file.stem for file in (conf_dir() / "loss" / "weighting").glob("*.yaml")]
    assert sorted([*swept, "simplex", "scheduled"]) == sorted(there)


# --- for real ---

TINY = (
    *("data.source.count=8", "data.batch_size=2", "epochs=2", "trainer.log_every_n_steps=1"),
    *("model.neck.channels=16", "model.layers.hidden=32", "callbacks.pictures.count=2"),
)


@pytest.mark.slow
def test_real_sweep_stopped_and_launched_again(tmp_path: Path) -> None:
    """The second of two jobs is training when the sweep is asked to stop; the same command goes on with that one alone."""
    logs = tmp_path / "logs"

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).parent / "quadrat-train", "-m", *TINY, "loss.weights.rpn_box=0,1"],
            env={**os.environ, "QUADRAT_LOGS": str(logs), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def second_trains() -> bool:
        trained = [log for log in logs.glob("*/metrics.csv") if len(log.read_text().splitlines()) > 2]
        return len(trained) == 2

    sweep = begin()
    wait_for(second_trains, sweep)
    sweep.terminate()
    said, _ = sweep.communicate(timeout=100)
    assert sweep.returncode == 128 + signal.SIGTERM, said
    assert "interrupted: 1 of 2 jobs are done" in said
    assert states(logs) == {"rpn_box=0": "done", "rpn_box=1": "preempted"}
    first, second = (runs(logs)[label] for label in ("rpn_box=0", "rpn_box=1"))
    before = first.last.stat().st_mtime_ns

    said, _ = (sweep := begin()).communicate(timeout=200)
    assert sweep.returncode == 0, said
    assert "1 done, 1 to run" in said
    assert said.count("resuming from step") == 1
    assert states(logs) == {"rpn_box=0": "done", "rpn_box=1": "done"}
    assert first.last.stat().st_mtime_ns == before
    assert (first.config().loss.weights.rpn_box, second.config().loss.weights.rpn_box) == (0, 1)
    assert second.config().logger.csv.path.endswith(f"{second.folder.name}/metrics.csv")
