"""W&B with its real client, offline and against a server on this machine; nothing here can reach another."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.utilities import rank_zero_only

from quadrat import wandb_service
from quadrat.callbacks import tracking
from quadrat.callbacks.tracking import WandbLog
from wandb_files import read_attempts
from wandb_server import KEY, WandbServer

# of the client's own, when its service is gone
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings of the user's, a server that nobody answers for; bounds that a test can wait for."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr("wandb.sdk.lib.identity._RESOLVE_TIMEOUT_SECONDS", 0.5, raising=False)  # whose key it is
    monkeypatch.setattr(tracking, "INIT_SECONDS", 2.0)
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 2.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield
        tracking.close("failed", 1)
    assert "WANDB_SERVICE" not in os.environ


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "tiny-0123abcd"


def log(folder: Path, **more: object) -> WandbLog:
    return WandbLog(folder, folder.name, **more)  # pyright: ignore[reportArgumentType]


def with_server(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def service() -> subprocess.Popen[bytes]:
    process = wandb_service.service_process()
    assert process is not None
    return process


def sync_command(printed: str) -> list[str]:
    """The command that the user is told to type, as words."""
    (line,) = {line[line.index("wandb sync") :] for line in printed.splitlines() if "wandb sync" in line}
    return shlex.split(line)


def sync(command: list[str], server: WandbServer) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]],
        env={**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- offline ---


def test_offline_file_holds_what_was_logged(folder: Path) -> None:
    one = log(folder, name="rpn_box=2", group="weights", tags=["a", "b"], job_type="sweep")
    one.log_hyperparams({"loss": {"weights": {"rpn_box": 2.0}}, "seed": 0})
    one.log_metrics({"train/loss": 3.0}, step=0)
    one.log_image("val/pictures", [np.zeros((4, 5, 3), np.uint8)])
    one.log_metrics({"train/loss": 2.0, "val/map": 0.25}, step=7)
    tracking.close("done", 0)
    (written,) = read_attempts(folder)
    assert (written.run.run_id, written.run.project) == (folder.name, "quadrat")
    assert (written.run.display_name, written.run.run_group, written.run.job_type) == ("rpn_box=2", "weights", "sweep")
    assert list(written.run.tags) == ["a", "b"]
    assert written.config["loss"] == {"weights": {"rpn_box": 2.0}}
    assert written.steps() == [0, 0, 7]
    assert [row.get("train/loss") for row in written.history] == [3.0, None, 2.0]
    assert written.history[1]["val/pictures.count"] == 1
    assert written.step_metrics["*"] == "trainer/global_step"
    assert (written.summary["val/map"], written.summary["attempt"]) == (0.25, 1)


@pytest.mark.parametrize(
    ("state", "code", "exit_code", "preempting"),
    [("done", 0, 0, False), ("failed", 1, 1, False), ("failed", 0, 1, False), ("preempted", 143, 143, True)],
)
def test_close_says_how_the_run_ended(folder: Path, state: str, code: int, exit_code: int, preempting: bool) -> None:
    log(folder).log_metrics({"a": 1}, step=0)
    tracking.close(state, code)
    (written,) = read_attempts(folder)
    assert (written.exit_code, written.preempting) == (exit_code, preempting)


def test_offline_attempts_are_sent_as_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (range(5), range(3, 8)):
        one = log(folder)
        for step in steps:
            one.log_metrics({"loss": 1 / (1 + step)}, step=step)
        tracking.close("preempted" if step == 4 else "done", 143 if step == 4 else 0)
    assert [(one.steps(), one.summary["attempt"]) for one in read_attempts(folder)] == [
        ([0, 1, 2, 3, 4], 1),
        ([3, 4, 5, 6, 7], 2),
    ]
    with WandbServer() as server:
        sync(sync_command(capsys.readouterr().out), server)
    rows = [(row["attempt"], row["trainer/global_step"]) for row in server.runs[folder.name].history]
    assert rows == [*[(1, step) for step in range(5)], *[(2, step) for step in range(3, 8)]]
    assert [row["_step"] for row in server.runs[folder.name].history] == list(range(10))
    assert server.runs[folder.name].exit_code == 0


def test_one_run_leaves_nothing_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path / "first").log_metrics({"a": 1}, step=0)
    tracking.close("done", 0)
    assert "WANDB_MODE" not in os.environ
    with WandbServer() as server:
        with_server(server, monkeypatch)
        second = log(tmp_path / "second", offline=False)
        second.log_hyperparams({"b": 2})
        second.log_metrics({"b": 2}, step=0)
        tracking.close("done", 0)
    assert server.runs["second"].config["b"]["value"] == 2
    assert [row["b"] for row in server.runs["second"].history] == [2]


def test_other_ranks_do_without_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it is an error
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    one = log(folder)
    one.log_hyperparams({"seed": 3})
    one.log_metrics({"loss": 1}, step=0)
    one.experiment.watch()
    tracking.close("done", 0)
    assert not folder.exists()


def test_close_without_a_run_does_without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracking.close("failed", 1)


# --- with a server ---


def test_attempts_continue_one_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        with_server(server, monkeypatch)
        for attempt, (state, code) in enumerate([("preempted", 138), ("failed", 1), ("done", 0)], start=1):
            one = log(folder, group="weights")
            one.log_hyperparams({"epochs": attempt, "loss": {"weights": {"rpn_box": 2.0}}})
            for step in range(2 * attempt - 1, 2 * attempt + 1):
                one.log_metrics({"loss": 1 / step}, step=step)
            tracking.close(state, code)
            assert (server.runs[folder.name].exit_code, server.runs[folder.name].preempting) == (code, attempt == 1)
            server.runs[folder.name].preempting = False
    assert list(server.runs) == [folder.name]
    run = server.runs[folder.name]
    rows = [(row["attempt"], row["trainer/global_step"], row["_step"]) for row in run.history]
    assert rows == [(1, 1, 0), (1, 2, 1), (2, 3, 2), (2, 4, 3), (3, 5, 4), (3, 6, 5)]
    assert run.config["epochs"]["value"] == 3
    assert run.config["loss"]["value"] == {"weights": {"rpn_box": 2.0}}
    assert (run.fields["displayName"], run.fields["groupName"]) == (folder.name, "weights")


def test_refused_key_is_an_error_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer(known_key=False) as server:
        with_server(server, monkeypatch)
        with pytest.raises(ValueError, match=r"(?s)401.*`wandb login --relogin`.*WANDB_MODE=offline"):
            log(folder).log_hyperparams({})


def test_malformed_key_is_an_error_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(ValueError, match=r"(?s)40\+ characters.*`wandb login --relogin`"):
        log(folder).log_hyperparams({})


def test_unreachable_server_makes_the_run_offline(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    one = log(folder)
    one.log_hyperparams({"seed": 3})
    said = capsys.readouterr().out
    assert "connection refused" in said
    assert sync_command(said) == ["wandb", "sync", str(folder / "wandb")]
    for step in range(3):
        one.log_metrics({"loss": step}, step=step)
    tracking.close("done", 0)
    (written,) = read_attempts(folder)
    assert (written.steps(), written.config["seed"], written.summary["attempt"]) == ([0, 1, 2], 3, 1)
    assert written.exit_code == 0


def test_server_lost_in_the_middle_keeps_all_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with WandbServer() as server:
        with_server(server, monkeypatch)
        one = log(folder)
        for step in range(3):
            one.log_metrics({"loss": step}, step=step)
        assert server.streaming.wait(30)
        server.stop()
        for step in range(3, 6):
            one.log_metrics({"loss": step}, step=step)
        tracking.close("done", 0)
    assert server.runs[folder.name].exit_code is None
    with WandbServer() as again:
        sync(sync_command(capsys.readouterr().out), again)
    assert [row["trainer/global_step"] for row in again.runs[folder.name].history] == list(range(6))
    assert again.runs[folder.name].exit_code == 0


# --- the service process ---


@pytest.mark.parametrize("stopping", [signal.SIGTERM, signal.SIGKILL])
def test_lost_service_is_replaced_and_told_again(folder: Path, stopping: signal.Signals) -> None:
    one = log(folder)
    one.log_hyperparams({"seed": 3})
    for step in range(3):
        one.log_metrics({"loss": step}, step=step)
    lost = service()
    lost.send_signal(signal.SIGUSR1)
    lost.send_signal(stopping)
    lost.wait(30)
    for step in range(3, 6):
        one.log_metrics({"loss": step}, step=step)
    tracking.close("preempted", 143)
    last = read_attempts(folder)[-1]
    assert (last.steps(), last.config["seed"]) == ([0, 1, 2, 3, 4, 5], 3)
    assert (last.exit_code, last.preempting) == (143, True)


def test_service_lost_before_the_end_leaves_a_true_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        with_server(server, monkeypatch)
        log(folder).log_metrics({"loss": 1}, step=0)
        lost = service()
        lost.terminate()
        lost.wait(30)
        tracking.close("preempted", 143)
    run = server.runs[folder.name]
    assert {row["trainer/global_step"] for row in run.history} == {0}
    assert (run.exit_code, run.preempting) == (143, True)


def test_service_lost_again_and_again_does_not_stop_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = log(folder)
    for step in range(tracking.SERVICES):
        one.log_metrics({"loss": step}, step=step)
        lost = service()
        lost.kill()
        lost.wait(30)
    for step in range(3, 6):
        one.log_metrics({"loss": step}, step=step)
    tracking.close("done", 0)
    assert "the run goes on without" in capsys.readouterr().out


def test_hanging_service_does_not_hold_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.5)
    monkeypatch.setattr(wandb_service, "SECONDS", 0.5)
    log(folder).log_metrics({"loss": 1}, step=0)
    hanging = service()
    hanging.send_signal(signal.SIGSTOP)
    tracking.close("done", 0)
    assert hanging.returncode == -signal.SIGKILL


# --- which mode ---


@pytest.mark.parametrize(
    ("offline", "mode", "key", "meant"),
    [
        (None, "", "", "offline"),
        (None, "", KEY, "online"),
        (None, "offline", KEY, "offline"),
        (None, "disabled", KEY, "disabled"),
        (True, "", KEY, "offline"),
        (False, "offline", "", "online"),
    ],
)
def test_mode(
    folder: Path, monkeypatch: pytest.MonkeyPatch, offline: bool | None, mode: str, key: str, meant: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert log(folder, offline=offline).mode == meant


def test_disabled_mode_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    one = log(folder)
    one.log_hyperparams({"seed": 3})
    one.log_metrics({"loss": 1}, step=0)
    tracking.close("done", 0)
    assert not (folder / "wandb").exists()


def test_mode_is_online_with_a_key_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example:8080")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine wandb.example:8080 login user password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert log(tmp_path / "run").mode == "online"
