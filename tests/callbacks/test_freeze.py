"""The heads learn first and the trunk stands still to the last bit; then all learns, also after a kill and on several ranks."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import two_phases
from quadrat.backbones.base import Backbone
from quadrat.backbones.tiny import Tiny
from quadrat.callbacks.freeze import Epochs, Freeze, Plateau, Until
from quadrat.configs import compose, run_id
from quadrat.losses.balancing import PCGrad
from two_heads import TERMS, TwoHeads
from two_phases import OnBackbone, fit

pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


# --- until when ---


@pytest.mark.parametrize(("count", "phases"), [(0, [False] * 4), (2, [True, True, False, False]), (9, [True] * 4)])
def test_epochs(count: int, phases: list[bool]) -> None:
    assert [not Epochs(count)(epoch, []) for epoch in range(4)] == phases


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.5], False),
        ([0.5, 0.5, 0.4], True),
        ([0.5, 0.55, 0.6, 0.9], True),  # it was over after the third
        ([0.5, 0.55, 0.7, 0.75], False),
        ([0.0, 0.0, 0.5], False),
    ],
)
def test_plateau(values: list[float], over: bool) -> None:
    assert Plateau("val/map", patience=2, least=0.1000001)(len(values), values) == over


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epochs(-1), "count is 0 or more, got -1"),
        (lambda: Plateau("val/map", patience=0), "patience=0 and least=0.0"),
        (lambda: Plateau("val/map", least=-1.0), "patience=3 and least=-1.0"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- the phases, without a training ---


class Task(nn.Module):
    """What the callback asks of a task."""

    device_mesh = None

    def __init__(self, *backbones: Backbone, sees: str = "nothing") -> None:
        super().__init__()
        self.model: Any = nn.ModuleList(backbones)
        self.model.shared = lambda: backbones
        self.weighting: Any = SimpleNamespace(sees=sees)
        self.train()

    def check_monitor(self, name: str) -> None:
        assert name == "val/map"


def begun(until: Until, *backbones: Backbone) -> tuple[Freeze, LightningModule]:
    freeze, task = Freeze(until), cast(LightningModule, Task(*backbones))
    freeze.setup(trainer(), task, "fit")
    return freeze, task


def trainer(epoch: int = 0, value: float = 0.0, **more: Any) -> Trainer:
    state = {
        **{"current_epoch": epoch, "global_step": 0, "sanity_checking": False, "is_global_zero": True, "loggers": []},
        **{"callback_metrics": {"val/map": torch.tensor(value)}, "strategy": None},
    }
    return cast(Trainer, SimpleNamespace(**{**state, **more}))


def learns(backbone: Backbone) -> list[str]:
    """The stages with a parameter that learns."""
    return [name for name, stage in backbone.stages.items() if any(own.requires_grad for own in stage.parameters())]


def norms(backbone: Backbone) -> set[bool]:
    return {part.training for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)}


def test_every_backbone_gets_its_own_settings_back() -> None:
    first, second = Tiny(4, freeze_stages=2), Tiny(4, freeze_norm=True)
    freeze, task = begun(Epochs(1), first, second)
    for backbone in (first, second):
        backbone.train()  # as after a validation
        assert learns(backbone) == []
        assert norms(backbone) == {False}
    freeze.on_train_epoch_start(trainer(0), task)
    assert learns(first) == []
    freeze.on_train_epoch_start(trainer(1), task)
    assert learns(first) == ["c3", "c4", "c5"]
    assert norms(first) == {False, True}
    assert learns(second) == ["c1", "c2", "c3", "c4", "c5"]
    assert norms(second) == {False}


def test_zero_epochs_freeze_nothing() -> None:
    backbone = Tiny(4)
    freeze, _ = begun(Epochs(0), backbone)
    assert not freeze.frozen
    assert norms(backbone) == {True}
    assert len(learns(backbone)) == 5


def test_other_stages_are_left_alone() -> None:
    backbone = Tiny(4)
    freeze = Freeze(Epochs(2))
    freeze.setup(trainer(), cast(LightningModule, Task(backbone)), "test")
    freeze.on_validation_end(trainer(), cast(LightningModule, Task(backbone)))
    assert len(learns(backbone)) == 5
    assert freeze.values == []


def test_plateau_is_seen_at_validations() -> None:
    freeze, task = begun(Plateau("val/map", patience=1), Tiny(4))
    freeze.on_validation_end(trainer(value=0.9, sanity_checking=True), task)
    for epoch, (value, frozen) in enumerate([(0.1, True), (0.2, True), (0.2, False), (0.5, False)]):
        freeze.on_validation_end(trainer(epoch, value), task)
        freeze.on_train_epoch_start(trainer(epoch + 1), task)
        assert freeze.frozen == frozen
    assert freeze.values == pytest.approx([0.1, 0.2, 0.2])  # none is needed afterwards


@pytest.mark.parametrize("frozen", [True, False])
def test_state_brings_the_phase_back(frozen: bool) -> None:
    freeze, task = begun(Plateau("val/map", patience=2), Tiny(4))
    freeze.values = [0.5, 0.5]
    freeze._hold(frozen)
    backbone = Tiny(4, freeze_stages=1)
    again, _ = begun(Plateau("val/map", patience=2), backbone)
    again.load_state_dict(freeze.state_dict())
    assert learns(backbone) == ([] if frozen else ["c2", "c3", "c4", "c5"])
    again.on_validation_end(trainer(value=0.5), task)
    again.on_train_epoch_start(trainer(3), task)
    assert not again.frozen


def test_thawing_is_told_and_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = []
    log = SimpleNamespace(log_metrics=lambda row, step: rows.append((step, row)))
    freeze, task = begun(Epochs(2), Tiny(4))
    for epoch in range(4):
        freeze.on_train_epoch_start(trainer(epoch, global_step=10 * epoch, loggers=[log]), task)
    assert rows == [(20, {"epoch": 2, "train/thawed": 1.0})]
    assert capsys.readouterr().out == "the trunk learns from epoch 2 on\n"


# --- refusals ---


def test_no_backbone() -> None:
    with pytest.raises(ValueError, match="TwoHeads has no backbone to freeze: callbacks=default"):
        fit(Epochs(1), model=TwoHeads())


def test_unknown_metric() -> None:
    with pytest.raises(ValueError, match="monitor=val/mop is no metric of this task; did you mean val/map"):
        fit(Plateau("val/mop"))


def test_sharded() -> None:
    task = Task(Tiny(4))
    task.device_mesh = object()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"trainer=ddp, or freeze for good with model.backbone.freeze_stages"):
        Freeze(Epochs(1)).setup(trainer(), cast(LightningModule, task), "fit")
    Freeze(Epochs(0)).setup(trainer(), cast(LightningModule, task), "fit")


class OnlyBackboneShared(OnBackbone):
    def shared(self) -> Sequence[nn.Module]:
        return list(self.backbone.stages.values())


def test_weights_of_frozen_parameters() -> None:
    balanced = PCGrad(dict.fromkeys(TERMS, 1.0))
    with pytest.raises(ValueError, match=r"PCGrad balances the terms .* callbacks.freeze holds all of those still"):
        fit(Epochs(1), model=OnlyBackboneShared(), weighting=balanced)


def test_terms_that_share_nothing_are_another_matter() -> None:
    """The task itself refuses those, and says so."""
    task = Task(Tiny(4), sees="all")
    task.model.shared = lambda: ()
    Freeze(Epochs(1)).setup(trainer(), cast(LightningModule, task), "fit")


# --- trainings ---


def alike(before: dict[str, Tensor], after: dict[str, Tensor], part: str) -> bool:
    return all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith(part))


@pytest.mark.parametrize("weighting", [None, PCGrad(dict.fromkeys(TERMS, 1.0))], ids=["plain", "neck shared"])
def test_trunk_stands_still_to_the_last_bit_and_then_learns(weighting: Any) -> None:
    start = {name: value.clone() for name, value in OnBackbone().state_dict().items()}
    _, epochs = fit(Epochs(2), weighting=weighting)
    states = [start, *epochs]
    assert [alike(one, two, "backbone") for one, two in pairwise(states)] == [True, True, False, False]
    assert not any(alike(one, two, "near") for one, two in pairwise(states))
    moved = {name for name, value in start.items() if not torch.equal(value, states[-1][name])}
    assert {"backbone.stages.c1.0.weight", "backbone.stages.c2.1.running_mean", "neck.weight"} <= moved


def test_never_is_to_the_end() -> None:
    start = {name: value.clone() for name, value in OnBackbone().state_dict().items()}
    assert alike(start, fit(Epochs(1000))[1][-1], "backbone")


def test_own_settings_hold_after_the_thaw() -> None:
    start = {name: value.clone() for name, value in OnBackbone().state_dict().items()}
    _, epochs = fit(Epochs(1), model=OnBackbone(freeze_stages=1))
    assert alike(start, epochs[-1], "backbone.stages.c1")
    assert not alike(start, epochs[-1], "backbone.stages.c2")


@pytest.mark.parametrize("stop", [1, 2, 3], ids=["before", "at the thaw", "after"])
def test_resumed_in_either_phase_same_bits(stop: int, tmp_path: Path) -> None:
    _, whole = fit(Epochs(2), folder=tmp_path)
    last, epochs = fit(Epochs(2), goes_on=tmp_path / f"{stop}.ckpt")
    assert len(epochs) >= 4 - stop
    assert alike(whole[-1], epochs[-1], "")
    groups = last.optimizers[0].param_groups
    assert {group["name"]: group["lr"] for group in groups} == pytest.approx(
        {"backbone": 0.001, "backbone_norms": 0.001, "heads": 0.01, "heads_norms": 0.01}
    )


@pytest.mark.slow
def test_ranks_thaw_together_as_one_process_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, two_phases.__file__, str(tmp_path), *which, port] for which in ("01", "02", "12")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said[-3000:]
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for way, epochs in one.items():
        for alone, ours, theirs in zip(epochs, first[way], second[way], strict=True):
            assert alike(ours, theirs, ""), way
            for name, value in alone.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=f"{way}: {name}")
    for way in ("from 2", "from 3"):
        assert alike(first["whole"][-1], first[way][-1], ""), way
    assert not alike(first["whole"][1], first["whole"][2], "backbone")


# --- configs ---


def test_it_is_part_of_what_a_run_is() -> None:
    commands = [(), ("callbacks=freeze",), ("callbacks=freeze", "callbacks.freeze.until.count=3")]
    commands.append(("callbacks=freeze_plateau",))
    assert len({run_id(compose("train", list(command))) for command in commands}) == 4
