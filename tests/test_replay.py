"""`replay=<file>`: the bad step again, its losses to the last bit, and the module that began it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig

from quadrat.callbacks.freeze import Epochs, Freeze
from quadrat.callbacks.nan_guard import LossNotFinite, NanGuard
from quadrat.configs import build, build_task, compose
from quadrat.replay import Replay, replay, statistics, tensors
from quadrat.runs import Run
from quadrat.structures import Schema

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")  # on a machine of a cluster

SMALL = (
    *("~experiment", "model/backbone=tiny", "model.neck.channels=32", "model.layers.hidden=64"),
    *("model.sampler.count=32", "model.proposer.samples=64", "model.proposer.train_limits=[100,50]"),
    *("model.proposer.test_limits=[100,20]", "++data.source.size=[64,64]", "data.limit=8", "data.batch_size=2"),
    *("data.workers=0", "schedule=constant", "loss.weights.rpn_box=2"),
)
BAD = 2
"""The step, counted from 0, before which a weight is spoilt."""


class Spoil(Callback):
    """Change the model before the bad step, and run it without a word of that in the config."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self.change = change

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == BAD:
            self.change(pl_module.model)


def train_into(folder: Path, change: Callable[[Any], None], *overrides: str, beside: Sequence[Callback] = ()) -> Path:
    """A run folder whose run has stopped at the bad step, with callbacks ``beside``; gives the file of the step."""
    config = compose("train", [*SMALL, f"paths.logs={folder}", *overrides])
    run = Run(folder / "run")
    run.save_config(config)
    torch.manual_seed(config.seed)
    data = build(config.data)
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    settings: dict[str, Any] = dict.fromkeys(names, False)
    settings |= {"accelerator": "cpu", "devices": 1, "max_steps": BAD + 2, "limit_val_batches": 0}
    settings |= {"precision": config.trainer.precision, "callbacks": [*beside, Spoil(change), NanGuard(run.folder)]}
    trainer = Trainer(**settings)
    task = build_task(config, data)
    with pytest.raises(LossNotFinite):
        trainer.fit(task, data)
    return run.folder / f"nan-step-{BAD:06d}.pt"


def too_large(model: Any) -> None:
    """Finite weights whose products are not."""
    model.box.layers.second.weight.fill_(3e38)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_into(tmp_path_factory.mktemp("replay"), too_large)


@pytest.fixture
def own(file: Path, tmp_path: Path) -> Path:
    """The same in a folder that may be changed: that of a run which has been moved."""
    return Path(shutil.copytree(file.parent, tmp_path / "elsewhere")) / file.name


@pytest.fixture(scope="module")
def shown(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    folder = tmp_path_factory.mktemp("shown")
    return replay(Path(shutil.copytree(file.parent, folder / "run")) / file.name)


def test_replay_gives_the_same_losses_to_the_last_bit(file: Path, shown: Replay) -> None:
    stored = torch.load(file, weights_only=True)
    assert shown.same
    assert shown.losses["rpn_box"] == stored["losses"]["rpn_box"] > 0
    assert shown.losses["region_class"] != shown.losses["region_class"]  # NaN


def test_replay_names_the_first_module_and_what_went_in(shown: Replay) -> None:
    assert shown.culprit is not None
    assert (shown.culprit.name, shown.culprit.kind) == ("model.box.layers.second", "Linear")
    assert len(shown.culprit.inputs) == 1
    assert shown.culprit.inputs[0].startswith("(")
    assert "inf" not in shown.culprit.inputs[0]
    assert "inf" in shown.culprit.outputs[0]
    assert shown.culprit.own[0].startswith("weight (64, 64) float32 3e+38 to 3e+38")
    assert shown.not_finite == ()


def test_replay_draws_the_batch(shown: Replay) -> None:
    picture = cv2.imread(str(shown.picture))
    assert picture is not None
    assert shown.picture.name == f"nan-step-{BAD:06d}.png"
    assert picture.shape[1] > 2 * 320


def test_replay_says_all_of_it(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = replay(own)
    said = capsys.readouterr().out
    assert f"step {BAD} (epoch 0, batch {BAD})" in said
    assert "to the last bit" in said
    assert "model.box.layers.second (Linear)" in said
    assert "neither the weights nor the batch" in said
    assert f"{shown.losses['rpn_box']:.6g}  x weight 2" in said
    assert str(shown.picture) in said
    groups = [line.split()[0] for line in said.splitlines() if " norm " in line]
    assert groups == ["backbone", "backbone_norms", "heads", "heads_norms"]


def test_replay_changes_nothing_but_the_picture(own: Path) -> None:
    def left() -> dict[str, bytes]:
        return {
            str(path.relative_to(own.parent)): path.read_bytes() for path in own.parent.rglob("*") if path.is_file()
        }

    before = left()
    replay(own)
    after = left()
    assert after.keys() - before.keys() == {own.with_suffix(".png").name}
    assert {name: after[name] for name in before} == before


def test_replay_twice_is_the_same(own: Path) -> None:
    torch.manual_seed(5)
    first = replay(str(own))
    torch.manual_seed(6)
    second = replay(str(own))
    assert str(first) == str(second)


def test_replay_says_when_the_losses_differ(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = torch.load(own, weights_only=True)
    step["losses"]["rpn_box"] += 1e-6
    step["machine"]["device"] = "another card"
    torch.save(step, own)
    assert not replay(own).same
    assert "DIFFER from the first time" in (said := capsys.readouterr().out)
    assert "device another card then, cpu now" in said


def test_replay_of_mixed_precision_is_the_same(tmp_path: Path) -> None:
    assert replay(train_into(tmp_path, too_large, "trainer.precision=bf16-mixed")).same


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")  # what is frozen
def test_replay_of_a_frozen_phase_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The trunk stands still, its norms too, though the model's own settings let it learn."""
    file = train_into(tmp_path, too_large, beside=[Freeze(Epochs(9))])
    assert torch.load(file, weights_only=True)["frozen"] == {"model.backbone": [5, True]}
    assert replay(file).same
    assert "backbone         norm 0\n" in capsys.readouterr().out


def test_replay_of_a_thawed_phase_learns_again(file: Path) -> None:
    assert torch.load(file, weights_only=True)["frozen"] == {"model.backbone": [0, False]}


def test_replay_names_weights_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = replay(train_into(tmp_path, lambda model: model.neck.smooth["c3"].weight.fill_(torch.nan)))
    assert shown.not_finite == ("model.neck.smooth.c3.weight",)
    assert shown.culprit is not None
    assert shown.culprit.name == "model.neck.smooth.c3"
    assert "not finite in themselves: model.neck.smooth.c3.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weight", "said"),
    [("1", "region_box became what it is on the way"), ("1e9", "so is every term: their weighted sum")],
)
def test_replay_without_a_guilty_module_blames_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: str, said: str
) -> None:
    """Regions are coded very far away: their distance is finite in each coordinate, their sum is not; or that is, but not
    a thousand million times it."""
    bias = 3e38 if weight == "1" else 1e35
    far = train_into(tmp_path, lambda model: model.box.boxes.bias.fill_(bias), f"loss.weights.region_box={weight}")
    shown = replay(far)
    assert shown.culprit is None
    assert shown.same
    assert said in capsys.readouterr().out


def test_replay_without_the_accelerator_takes_the_cpu(own: Path) -> None:
    change_config(own, lambda config: config.trainer.update({"accelerator": "mps"}))
    assert replay(own).same


def test_replay_of_a_run_of_several_devices_takes_one(own: Path) -> None:
    change_config(own, lambda config: config.trainer.update({"devices": 4, "strategy": {"_target_": "here"}}))
    assert replay(own).same


def change_config(file: Path, change: Callable[[DictConfig], None]) -> None:
    run = Run(file.parent)
    config = run.config()
    change(config)
    run.save_config(config)


# What it refuses


def test_replay_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.pt; replay=<file> takes a nan-step"):
        replay(tmp_path / "gone.pt")


def test_replay_refuses_a_checkpoint(own: Path) -> None:
    torch.save({"state_dict": {}, "global_step": 3}, own.with_name("last.ckpt"))
    with pytest.raises(ValueError, match=r"last\.ckpt holds no step"):
        replay(own.with_name("last.ckpt"))


def test_replay_refuses_a_damaged_file(own: Path) -> None:
    own.write_bytes(own.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"nan-step-000002\.pt cannot be read"):
        replay(own)


def test_replay_refuses_a_file_without_its_run(own: Path) -> None:
    (own.parent / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        replay(own)


def test_replay_refuses_a_step_of_another_model(own: Path) -> None:
    change_config(own, lambda config: config.model.neck.update({"channels": 16}))
    with pytest.raises(ValueError, match=r"of another model than .*config\.yaml describes: \d+ names or shapes"):
        replay(own)


# What is said of a tensor


def test_statistics_of_what_is_finite_and_counts_of_the_rest() -> None:
    values = torch.tensor([1.0, 3.0, torch.nan, torch.inf, -torch.inf])
    assert statistics(values) == "(5,) float32 1 to 3, mean 2, 1 nan, 2 inf"
    assert statistics(torch.tensor([torch.nan])) == "(1,) float32 nothing finite, 1 nan"
    assert statistics(torch.empty(0, 4)) == "(0, 4) float32"
    assert statistics(torch.tensor([True, False])) == "(2,) bool 0 to 1, mean 0.5"


def test_tensors_are_found_wherever_they_are() -> None:
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [len(found) for found in tensors(({"a": one, "b": [two]}, 4, "word", (three,)))] == [1, 2, 3]
    assert list(tensors(Schema(("cat",)))) == []
