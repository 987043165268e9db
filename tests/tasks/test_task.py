"""The one training step: what it refuses, logs, optimises and saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from contracts import CLASSES
from logged import Rows
from quadrat.configs import build, build_task, compose
from quadrat.data.module import DataModule
from quadrat.structures import Schema
from quadrat.tasks.base import Task

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings(
        "ignore:.*isinstance.treespec, LeafSpec:FutureWarning"
    ),  # Lightning's own, with torch 2.15
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Pictures this small are slower with several, very much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LOSSES = ("rpn_objectness", "rpn_box", "region_class", "region_box")
SMALL = (
    *(
        "~experiment",
        "model/backbone=tiny",
        "model.neck.channels=32",
        "model.layers.hidden=64",
        "model.sampler.count=32",
    ),
    *("model.proposer.samples=64", "model.proposer.train_limits=[100,50]", "model.proposer.test_limits=[100,20]"),
    *("++data.source.size=[64,64]", "data.limit=8", "data.batch_size=4", "data.workers=0", "schedule=constant"),
)


def config(*overrides: str) -> DictConfig:
    return compose("train", [*SMALL, *overrides])


def make(*overrides: str) -> tuple[Task, DataModule]:
    chosen = config(*overrides)
    torch.manual_seed(0)
    data = build(chosen.data)
    return build_task(chosen, data), data


def trainer(**options: Any) -> Trainer:
    """Quiet, on the CPU, without files."""
    silent = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    defaults = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    return Trainer(**(silent | defaults | {"use_distributed_sampler": False} | options))


def fit(task: Task, data: DataModule, **options: Any) -> dict[int, dict[str, float]]:
    """Train, and give the rows of the log."""
    rows = Rows()
    trainer(logger=rows, **options).fit(task, data)
    return rows.rows


# Names


def test_task_refuses_a_misspelt_loss() -> None:
    with pytest.raises(KeyError, match=r"unknown \['rpn_bax'\], without a weight \['rpn_box'\]"):
        make("~loss.weights.rpn_box", "+loss.weights.rpn_bax=1.0")


def test_task_refuses_a_loss_too_many() -> None:
    with pytest.raises(KeyError, match=r"unknown \['mask'\], without a weight \[\]"):
        make("+loss.weights.mask=1.0")


# The log


def test_log_has_losses_raw_and_weighted_with_their_weights() -> None:
    task, data = make("loss.weights.rpn_box=3", "loss.weights.region_class=0")
    row = fit(task, data, max_steps=1, log_every_n_steps=1)[0]
    weights = {"rpn_objectness": 1, "rpn_box": 3, "region_class": 0, "region_box": 1}
    total = 0.0
    for name, weight in weights.items():
        assert row[f"train/weight/{name}"] == weight
        assert row[f"train/loss/{name}"] > 0
        assert row[f"train/weighted/{name}"] == pytest.approx(weight * row[f"train/loss/{name}"])
        total += row[f"train/weighted/{name}"]
    assert row["train/total"] == pytest.approx(total)
    assert {name for name in row if name.startswith("train/lr/")} == {
        f"train/lr/{group['name']}" for group in task.configure_optimizers()["optimizer"].param_groups
    }


def losses_by_step(rows: dict[int, dict[str, float]]) -> dict[int, float]:
    return {step: row["train/total"] for step, row in rows.items() if "train/total" in row}


def test_log_is_written_every_few_steps() -> None:
    task, data = make()
    assert len(losses_by_step(fit(task, data, max_epochs=3, log_every_n_steps=2))) == 3  # of 6 steps


@pytest.mark.parametrize("batch_size", [1, 2])
def test_log_is_of_the_step_it_names(batch_size: int) -> None:
    """What is logged every third step is what logging every step says of those steps, also after an epoch's end."""
    size = f"data.batch_size={batch_size}"
    every = losses_by_step(fit(*make(size), max_steps=9, log_every_n_steps=1))
    third = losses_by_step(fit(*make(size), max_steps=9, log_every_n_steps=3))
    assert len(every) == 9
    assert len(third) == 3
    assert third == {step: every[step] for step in third}


def test_log_of_validation_has_losses_and_metrics() -> None:
    task, data = make("data.splits.val=train")
    rows = fit(task, data, max_epochs=1, log_every_n_steps=1, limit_val_batches=1.0)
    logged = {name: value for row in rows.values() for name, value in row.items() if name.startswith("val/")}
    assert {f"val/loss/{name}" for name in LOSSES} | {"val/map", "val/ap50"} <= set(logged)
    assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
    assert all(logged[f"val/loss/{name}"] > 0 for name in LOSSES)


def test_validation_losses_are_means_over_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 5 and 3 count as 5 and 3; the second epoch starts anew."""
    task, data = make("data.eval_batch_size=5", "data.splits.val=train")
    seen: list[tuple[float, int]] = []
    real = task.model.loss

    def spy(features: Any, batch: Any) -> dict[str, torch.Tensor]:
        losses = real(features, batch)
        seen.append((losses["rpn_objectness"].item(), len(batch)))
        return losses

    monkeypatch.setattr(task.model, "loss", spy)
    for _ in range(2):
        seen.clear()
        found = trainer(limit_val_batches=1.0).validate(task, data, verbose=False)[0]
        assert [size for _, size in seen] == [5, 3]
        expected = sum(value * size for value, size in seen) / 8
        assert found["val/loss/rpn_objectness"] == pytest.approx(expected, rel=1e-5)


def test_validation_does_not_change_what_training_draws() -> None:
    """With and without validation between the epochs the losses are bit-equal."""
    without = losses_by_step(fit(*make(), max_epochs=2, log_every_n_steps=1))
    between = losses_by_step(fit(*make(), max_epochs=2, log_every_n_steps=1, limit_val_batches=1.0))
    assert without == between
    assert len(without) == 4


def test_two_runs_are_bit_equal_and_another_seed_is_not() -> None:
    first, again = (losses_by_step(fit(*make(), max_steps=3, log_every_n_steps=1)) for _ in range(2))
    assert first == again
    task, data = make()
    task.seed = 1  # the same pictures and weights, other draws
    assert losses_by_step(fit(task, data, max_steps=3, log_every_n_steps=1)) != first


# The optimiser


def groups(task: Task) -> list[dict[str, Any]]:
    task.trainer = trainer(max_steps=10)
    return task.configure_optimizers()["optimizer"].param_groups


def test_parameter_groups_have_their_rates_and_decays() -> None:
    task, _ = make("optimizer=sgd", "optimizer.lr=0.5", "optimizer.weight_decay=0.1", "task.backbone_rate=0.2")
    settings = {group["name"]: (group["initial_lr"], group["weight_decay"]) for group in groups(task)}
    assert settings == {
        "backbone": (0.1, 0.1),
        "backbone_norms": (0.1, 0.0),
        "heads": (0.5, 0.1),
        "heads_norms": (0.5, 0.0),
    }


def test_parameter_groups_hold_every_parameter_once() -> None:
    """Also the frozen ones, or unfreezing would need another optimiser."""
    task, _ = make("model.backbone.freeze_stages=3", "model.backbone.freeze_norm=true")
    held = [id(parameter) for group in groups(task) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in task.parameters())


def test_parameter_groups_put_each_where_it_belongs() -> None:
    task, _ = make()
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    for group in groups(task):
        members = [names[id(parameter)] for parameter in group["params"]]
        assert all(name.startswith("model.backbone.") == group["name"].startswith("backbone") for name in members)
        assert all((p.ndim == 1) == group["name"].endswith("_norms") for p in group["params"])


def test_parameter_groups_are_in_the_same_order_whatever_is_frozen() -> None:
    free, _ = make()
    frozen, _ = make("model.backbone.freeze_stages=5")
    shapes = [[[tuple(p.shape) for p in group["params"]] for group in groups(task)] for task in (free, frozen)]
    assert shapes[0] == shapes[1]


def test_decay_norms_decays_everything() -> None:
    task, _ = make("task.decay_norms=true", "optimizer.weight_decay=0.1")
    assert [(group["name"], group["weight_decay"]) for group in groups(task)] == [("backbone", 0.1), ("heads", 0.1)]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 6),
        ({"max_steps": 5}, 5),
        ({"max_epochs": 3, "limit_train_batches": 1}, 3),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 3),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 3),
    ],
)
def test_total_steps_of_the_schedule_are_those_taken(options: dict[str, Any], steps: int) -> None:
    """8 pictures in batches of 4."""
    task, data = make()
    totals: list[int] = []

    def noted(step: int, total: int) -> float:
        totals.append(total)
        return 1.0

    task.schedule = noted
    runner = trainer(**options)
    runner.fit(task, data)
    assert set(totals) == {steps}
    assert runner.global_step == steps


# Checkpoints


def test_checkpoint_names_its_classes_and_holds_plain_values(tmp_path: Path) -> None:
    task, data = make()
    runner = trainer(max_steps=1)
    runner.fit(task, data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert Schema(**state["schema"]) == data.schema
    assert len(state["schema"]["classes"]) == CLASSES


def test_checkpoint_gives_the_same_model_back(tmp_path: Path) -> None:
    task, data = make()
    runner = trainer(max_steps=2)
    runner.fit(task, data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(99)
    other, _ = make()
    other.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    batch = next(iter(data.val_dataloader()))
    first, second = (part.eval().model.predict(part.model.features(batch), batch) for part in (task, other))
    for mine, theirs in zip(first, second, strict=True):
        assert torch.equal(mine.boxes, theirs.boxes)
        assert torch.equal(mine.scores, theirs.scores)


# Learning


def test_a_short_fit_lowers_the_loss() -> None:
    task, data = make("data.batch_size=8", "optimizer.lr=0.003")
    rows = fit(task, data, max_steps=40, log_every_n_steps=1, gradient_clip_val=10.0)
    totals = list(losses_by_step(rows).values())
    assert sum(totals[-5:]) < 0.6 * sum(totals[:5])
