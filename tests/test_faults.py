"""What goes wrong outside the code: the run says so, loses nothing, and the same command goes on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import interrupted
from quadrat.configs import compose
from quadrat.runs import Run
from test_resume import folder, load, overrides, rows, same, undisturbed

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def whole() -> Run:
    """Nobody disturbs this one."""
    return undisturbed("plain")


def test_disk_full_stops_with_the_old_checkpoint_whole(whole: Run, tmp_path: Path) -> None:
    command = overrides(tmp_path, "plain")
    run = folder(tmp_path, "plain")
    code, said = interrupted.run(command, ("disk full", 1))
    assert code == 1
    assert str(run.folder) in said
    assert "make room" in said
    assert run.status["state"] == "failed"
    assert load(run.last)["global_step"] == 4
    assert not list(run.folder.glob("*.tmp")) + list(run.folder.glob(".*.tmp"))
    assert interrupted.run(command).code == 0
    same(run, whole)


@pytest.mark.parametrize("place", ["/proc/quadrat", "/dev/null/quadrat"])
def test_unwritable_place_is_named(place: str) -> None:
    code, said = interrupted.run(overrides(Path(place), "plain"))
    assert code == 1
    assert f"cannot write into the run folder {place}" in said
    assert "paths.logs=" in said


def test_second_process_on_a_run_folder_refuses(tmp_path: Path) -> None:
    run = folder(tmp_path, "plain")
    with run.locked():
        run.save_config(compose("train", overrides(tmp_path, "plain")))
        run.set_status("running", pid=os.getpid(), host="here")
        code, said = interrupted.run(overrides(tmp_path, "plain"), ("impatient", 0))
    assert code == 1
    assert f"in use by process {os.getpid()} on here" in said
    assert "last sign of life" in said
    assert run.status["state"] == "running", "the owner's status is the owner's"


def test_killed_loader_worker_is_named(whole: Run, tmp_path: Path) -> None:
    command = overrides(tmp_path, "plain", "data.workers=1")
    ended = interrupted.run(command, ("in loading", 3))
    assert ended.code == 1
    assert "data.workers=" in ended.said
    assert folder(tmp_path, "plain").status["state"] == "failed"
    assert interrupted.run(command).code == 0
    same(folder(tmp_path, "plain"), whole)


def test_ctrl_c_saves_and_leaves(whole: Run, tmp_path: Path) -> None:
    command, run = overrides(tmp_path, "plain"), folder(tmp_path, "plain")
    ended = interrupted.run(command, ("interrupt in a step", 6))
    assert ended.code == 130
    assert run.status["state"] == "preempted"
    assert load(run.last)["global_step"] == 6
    assert "the same command goes on from step 6" in ended.said
    assert interrupted.run(command).code == 0
    same(run, whole)


def test_no_temporary_folder_is_needed(whole: Run, tmp_path: Path) -> None:
    """Checkpoints are renamed where they lie: a move from another file system is a copy, which a kill can cut."""
    assert interrupted.run(overrides(tmp_path, "plain"), ("no temporary folder", 0)).code == 0
    same(folder(tmp_path, "plain"), whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """One wrong byte among the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_damaged_checkpoint_is_named_and_passed_over(
    whole: Run, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    command, run = overrides(tmp_path, "plain"), folder(tmp_path, "plain")
    assert interrupted.run(command, ("in a step", 10)).code == -9
    damage(run.last)
    code, said = interrupted.run(command)
    assert code == 0
    assert f"passing over a damaged checkpoint: {run.last}" in said
    assert f"{run.last} is the newest" not in said
    same(run, whole)


def left_running(whole: Run, logs: Path) -> Run:
    """The files of the whole run, as if it had been killed at its very end."""
    run = folder(logs, "plain")
    shutil.copytree(whole.folder, run.folder)
    run.set_status("running")
    return run


def test_checkpoint_cut_off_before_its_naming_becomes_the_last(whole: Run, tmp_path: Path) -> None:
    """Killed between writing the last checkpoint of all and renaming it: there is nothing left to train or to save."""
    run = left_running(whole, tmp_path)
    run.last.rename(run.new)
    run.previous.rename(run.last)
    before = run.last.read_bytes()
    code, said = interrupted.run(overrides(tmp_path, "plain"))
    assert code == 0
    assert f"{run.new} is the newest checkpoint that loads" in said
    assert not run.new.exists()
    assert run.last.read_bytes() == whole.last.read_bytes()
    assert run.previous.read_bytes() == before
    assert run.status["state"] == "done"


def test_damaged_new_checkpoint_never_becomes_the_last(whole: Run, tmp_path: Path) -> None:
    run = left_running(whole, tmp_path)
    shutil.copy(run.last, run.new)
    flip(run.new)
    assert interrupted.run(overrides(tmp_path, "plain")).code == 0
    assert run.last.read_bytes() == whole.last.read_bytes()


# --- resume.mode ---


def test_never_begins_anew_and_keeps_what_was_there(whole: Run, tmp_path: Path) -> None:
    command, run = overrides(tmp_path, "plain"), folder(tmp_path, "plain")
    assert interrupted.run(command, ("in a step", 10)).code == -9
    assert interrupted.run([*command, "resume.mode=never"]).code == 0
    same(run, whole)
    assert load(run.folder / "attempt-1" / "last.ckpt")["global_step"] == 8


def test_branch_takes_the_whole_state_into_a_new_run(whole: Run, tmp_path: Path) -> None:
    command = overrides(
        tmp_path, "plain", "resume.mode=branch", f"resume.source={whole.folder}", "trainer.max_epochs=4"
    )
    assert interrupted.run(command, ("in validation", 1)).code == -9
    assert interrupted.run(command).code == 0
    run = Run(compose("train", command).paths.run)
    assert run.folder.name != whole.folder.name
    assert run.status["begun_from"] == str(whole.last)
    assert [int(row["step"]) for row in rows(run) if row["train/total"]] == [12, 13, 14, 15]
    longer = overrides(tmp_path / "straight", "plain", "trainer.max_epochs=4", "schedule=constant")
    assert Run(compose("train", longer).paths.run).folder.name != run.folder.name


def test_weights_begin_a_new_run(whole: Run, tmp_path: Path) -> None:
    command = overrides(tmp_path, "plain", "resume.mode=weights", f"resume.source={whole.best}", "trainer.max_steps=1")
    assert interrupted.run([*command, "optimizer.lr=0"]).code == 0
    run = Run(compose("train", [*command, "optimizer.lr=0"]).paths.run)
    ours, theirs = load(run.last)["state_dict"], load(whole.best)["state_dict"]
    learned = [name for name in theirs if name.endswith(("weight", "bias"))]
    assert all(torch.equal(ours[name], theirs[name]) for name in learned)
    assert load(run.last)["global_step"] == 1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["resume.mode=sometimes"], "resume.mode=sometimes is none of auto"),
        (["resume.mode=branch"], "resume.source=None"),
        (["resume.source=somewhere"], "resume.source=somewhere"),
        (["resume.mode=branch", "resume.source=/nowhere"], "neither a run folder nor a checkpoint"),
    ],
)
def test_wrong_resume_is_refused(more: list[str], named: str, tmp_path: Path) -> None:
    ended = interrupted.run(overrides(tmp_path, "plain", *more))
    assert ended.code == 1
    assert named in ended.said


def test_changed_settings_are_said_on_resuming(tmp_path: Path) -> None:
    command = overrides(tmp_path, "plain")
    assert interrupted.run(command, ("in a step", 6)).code == -9
    ended = interrupted.run([*command, "trainer.max_epochs=2"])
    assert ended.code == 0
    assert "changed since: trainer.max_epochs was 3, is 2" in ended.said
