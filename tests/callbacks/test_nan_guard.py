"""A loss that is NaN or infinite never reaches the weights: alone, within a window of batches, and with several ranks.

This file is also the script that Lightning starts twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from quadrat.callbacks import nan_guard
from quadrat.callbacks.nan_guard import LossNotFinite, NanGuard
from quadrat.configs import build, build_task, compose
from quadrat.data.module import DataModule
from quadrat.structures import Batch, Sample, Targets
from quadrat.tasks.base import Task

pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")  # on a machine of a cluster

SMALL = (
    *("~experiment", "model/backbone=tiny", "model.neck.channels=32", "model.layers.hidden=64"),
    *("model.sampler.count=32", "model.proposer.samples=64", "model.proposer.train_limits=[100,50]"),
    *("model.proposer.test_limits=[100,20]", "++data.source.size=[64,64]", "data.limit=8", "data.batch_size=2"),
    *("data.workers=0", "schedule=constant"),
)
"""Four batches an epoch."""


def make(*overrides: str) -> tuple[Task, DataModule]:
    config = compose("train", [*SMALL, *overrides])
    torch.manual_seed(0)
    data = build(config.data)
    return build_task(config, data), data


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """Quiet, on the CPU, without files."""
    names = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    settings: dict[str, Any] = dict.fromkeys(names, False) | {"callbacks": list(callbacks)}
    settings |= {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, "limit_val_batches": 0, "max_steps": 4}
    return Trainer(**settings | options)


class Poison(Callback):
    """The features of these batches (counted from 0 over the run) become NaN before a norm sees them."""

    def __init__(self, batches: Collection[int]) -> None:
        self.batches, self.seen = batches, -1

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        first = pl_module.model.backbone.stages["c1"][0]
        self.hook = first.register_forward_hook(lambda _, __, out: out * (torch.nan if self.now else 1.0))

    @property
    def now(self) -> bool:
        return self.seen in self.batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen += 1

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.hook.remove()


class LeaveOut(Callback):
    """What skipping a step should amount to, done by hand: no gradients, and the norms as they were before its batches."""

    def __init__(self, step: int, every: int = 1) -> None:
        self.step, self.every = step, every

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and batch_idx % self.every == 0:
            self.before = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.zero_grad(set_to_none=True)
            for name, buffer in pl_module.named_buffers():
                buffer.copy_(self.before[name])


class Rows(Logger):
    """Keeps what is logged, by step."""

    name = "rows"  # pyright: ignore[reportAssignmentType]
    version = "0"  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def snapshot(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def moments(runner: Trainer) -> list[Tensor]:
    """All that the optimiser remembers."""
    state = runner.optimizers[0].state_dict()["state"]
    return [value for entry in state.values() for value in entry.values() if isinstance(value, Tensor)]


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def stopped(folder: Path, *callbacks: Callback, overrides: Collection[str] = (), **options: Any) -> tuple[Task, str]:
    """The task as a run that stops leaves it, and what the error says."""
    task, data = make(*overrides)
    with pytest.raises(LossNotFinite) as raised:
        trainer(*callbacks, NanGuard(folder), **options).fit(task, data)
    return task, str(raised.value)


def trained(*callbacks: Callback, overrides: Collection[str] = (), **options: Any) -> tuple[Task, Trainer]:
    task, data = make(*overrides)
    runner = trainer(*callbacks, **options)
    runner.fit(task, data)
    return task, runner


# Stop


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Task, str]:
    """A run whose third step is bad."""
    folder = tmp_path_factory.mktemp("stop")
    return folder, *stopped(folder, Poison([2]))


def test_stop_leaves_the_weights_from_before_the_step(stop: tuple[Path, Task, str]) -> None:
    task, _ = trained(max_steps=2)
    wanted = dict(task.named_parameters())
    left = dict(stop[1].named_parameters())
    assert [name for name in wanted if not torch.equal(wanted[name], left[name])] == []


def test_stop_names_terms_pictures_place_and_remedies(stop: tuple[Path, Task, str]) -> None:
    folder, _, said = stop
    step = torch.load(folder / "nan-step-000002.pt", weights_only=True)
    assert "step 2 (epoch 0, batch 2)" in said
    assert all(f"{name} = nan" in said for name, value in step["losses"].items() if value != value)
    assert f"pictures: {', '.join(map(str, step['pictures']))}" in said
    assert f"quadrat-train replay={folder / 'nan-step-000002.pt'}" in said
    assert "trainer.on_nan=skip" in said


def test_stop_names_only_the_term_that_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = make("loss.weights.rpn_box=2")
    worsen(task, monkeypatch, rpn_box=torch.inf)
    with pytest.raises(
        LossNotFinite, match=r"not finite: rpn_box = inf \(weight 2\) \(beside rpn_objectness = 0\.\d+, "
    ):
        trainer(NanGuard(tmp_path)).fit(task, data)


def test_stop_blames_the_sum_when_no_term_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = make()
    worsen(task, monkeypatch, rpn_box=3e38, region_box=3e38)
    with pytest.raises(LossNotFinite, match=r"not finite: the sum of .*rpn_box = 3e\+38.* is inf"):
        trainer(NanGuard(tmp_path)).fit(task, data)


def test_a_term_of_weight_zero_may_be_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = make("loss.weights.rpn_box=0")
    worsen(task, monkeypatch, rpn_box=torch.nan)
    runner = trainer(NanGuard(tmp_path))
    runner.fit(task, data)
    assert runner.global_step == 4
    assert list(tmp_path.iterdir()) == []


def worsen(task: Task, monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Put these values in the place of the model's terms."""
    real = task.model.loss

    def loss(features: Any, batch: Any) -> dict[str, Tensor]:
        terms = real(features, batch)
        return terms | {name: terms[name] * 0 + value for name, value in values.items()}

    monkeypatch.setattr(task.model, "loss", loss)


def test_saved_step_holds_the_state_from_before_it(stop: tuple[Path, Task, str]) -> None:
    """The norms' statistics too, which the bad forward pass had made NaN."""
    step = torch.load(stop[0] / "nan-step-000002.pt", weights_only=True)
    task, _ = trained(max_steps=2)
    before = {name: value for name, value in snapshot(task).items() if name.startswith(("model.", "weighting."))}
    assert_equal(step["state_dict"], before)
    assert not all(bool(buffer.isfinite().all()) for buffer in stop[1].buffers())


def test_saved_step_holds_the_batch_and_where_its_randomness_is_from(stop: tuple[Path, Task, str]) -> None:
    step = torch.load(stop[0] / "nan-step-000002.pt", weights_only=True)
    _, data = make()
    third = list(data.train_dataloader())[2]
    saved = Batch.from_plain(step["batch"])
    for name in ("images", "sizes", "original_sizes", "boxes", "labels", "ignore", "valid"):
        assert torch.equal(getattr(saved, name), getattr(third, name)), name
    assert saved.images.stride() == third.images.stride()
    assert [target.image_id for target in saved.targets] == [target.image_id for target in third.targets]
    assert step["place"] == [0, 0, 0, 2, 0]
    assert step["pictures"] == [target.image_id for target in third.targets]


def test_batch_with_everything_goes_through_a_file(tmp_path: Path) -> None:
    outline = [np.array([[1, 1], [5, 1], [5, 5]], dtype=np.float32)]
    target = Targets.make(
        *([[1, 1, 5, 5], [0, 0, 4, 4]], [1, 2], (8, 8), "a"),
        masks=(outline, {"size": [8, 8], "counts": b"0a\x80"}),
        keypoints=torch.ones(2, 3, 3),
        captions=("one", "two"),
        semantic=torch.zeros(8, 8, dtype=torch.uint8),
    )
    batch = Batch.collate([Sample(np.zeros((8, 8, 3), dtype=np.uint8), target)])
    torch.save(batch.plain(), tmp_path / "batch.pt")
    (back,) = Batch.from_plain(torch.load(tmp_path / "batch.pt", weights_only=True)).targets
    assert back.masks is not None
    first, second = back.masks
    assert isinstance(first, list)
    assert np.array_equal(first[0], outline[0])
    assert second == {"size": [8, 8], "counts": b"0a\x80"}
    assert back.captions == ("one", "two")
    assert (back.size, back.image_id) == ((8, 8), "a")
    assert back.keypoints is not None
    assert back.semantic is not None
    assert torch.equal(back.boxes, target.boxes)


def test_stop_without_room_for_the_step_says_so(tmp_path: Path) -> None:
    (tmp_path / "full").touch()
    _, said = stopped(tmp_path / "full", Poison([0]))
    assert "this step is not saved" in said
    assert "trainer.on_nan=skip" in said


def test_stop_within_accumulated_batches(tmp_path: Path) -> None:
    """The third batch is the first of the second step; the fourth is good."""
    task, said = stopped(tmp_path, Poison([2]), accumulate_grad_batches=2)
    assert "step 1 (epoch 0, batch 2)" in said
    assert torch.load(tmp_path / "nan-step-000001.pt", weights_only=True)["batch_idx"] == 2
    reference, _ = trained(accumulate_grad_batches=2, max_steps=1)
    wanted, left = dict(reference.named_parameters()), dict(task.named_parameters())
    assert [name for name in wanted if not torch.equal(wanted[name], left[name])] == []


def test_on_nan_refuses_another_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.on_nan=ignore is neither stop nor skip"):
        NanGuard(tmp_path, "ignore")


# Skip


@pytest.mark.parametrize("overrides", [["optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer=adamw"]])
def test_skip_is_as_if_the_step_had_not_been(tmp_path: Path, overrides: list[str]) -> None:
    """Weights, norms and moments bit for bit; the rate goes on."""
    overrides = [*overrides, "schedule=cosine"]
    guard = NanGuard(tmp_path, "skip")
    task, runner = trained(Poison([1]), guard, overrides=overrides)
    wanted, by_hand = trained(LeaveOut(1), overrides=overrides)
    assert_equal(snapshot(task), snapshot(wanted))
    assert all(torch.equal(*pair) for pair in zip(moments(runner), moments(by_hand), strict=True))
    assert runner.optimizers[0].param_groups[0]["lr"] == by_hand.optimizers[0].param_groups[0]["lr"]
    assert runner.global_step == 4
    assert guard.skipped == 1
    assert all(bool(value.isfinite().all()) for value in task.state_dict().values())


def test_skip_leaves_out_the_whole_step_of_accumulated_batches(tmp_path: Path) -> None:
    guard = NanGuard(tmp_path, "skip")
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_steps": 3}
    task, _ = trained(Poison([2]), guard, **options)
    wanted, _ = trained(LeaveOut(1, every=2), **options)
    assert_equal(snapshot(task), snapshot(wanted))
    assert guard.skipped == 1


def test_skip_is_counted_logged_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rows = Rows()
    trained(Poison([1, 2]), NanGuard(tmp_path, "skip"), logger=rows, log_every_n_steps=2)
    assert {step: row["train/skipped"] for step, row in rows.rows.items() if "train/skipped" in row} == {1: 1, 3: 2}
    assert "2 of 4 steps were skipped" in capsys.readouterr().out
    said = [record.getMessage() for record in caplog.records if record.name == nan_guard.__name__]
    assert len(said) == 2
    assert "step 1 (epoch 0, batch 1) is not finite: rpn_objectness = nan" in said[0]
    assert "pictures: " in said[0]
    assert said[1].endswith("skipped, 2 so far")
    assert list(tmp_path.iterdir()) == []


def test_stop_logs_no_count(tmp_path: Path) -> None:
    rows = Rows()
    trained(NanGuard(tmp_path), logger=rows, log_every_n_steps=1)
    assert rows.rows
    assert not [row for row in rows.rows.values() if "train/skipped" in row]


def test_skip_count_survives_a_resume(tmp_path: Path) -> None:
    _, runner = trained(Poison([0, 2]), NanGuard(tmp_path, "skip"))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    task, data = make()
    guard = NanGuard(tmp_path, "skip")
    trainer(Poison([1]), guard, max_steps=8).fit(task, data, ckpt_path=tmp_path / "a.ckpt")
    assert guard.skipped == 3


def test_skip_with_a_gradient_scaler(tmp_path: Path) -> None:
    """The bad step changes nothing but the scale; those after it learn again."""
    guard = NanGuard(tmp_path, "skip")
    task, _ = trained(Poison([1]), guard, plugins=[half(2.0**8)])
    first, _ = trained(max_steps=1, plugins=[half(2.0**8)])
    two, _ = trained(Poison([1]), NanGuard(tmp_path, "skip"), max_steps=2, plugins=[half(2.0**8)])
    assert guard.skipped == 1
    assert_equal(snapshot(two), snapshot(first))
    assert all(bool(value.isfinite().all()) for value in task.state_dict().values())
    assert not torch.equal(next(task.parameters()), next(first.parameters()))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the scaler leaves out the first step
def test_a_scale_that_is_too_large_is_no_nan_loss(tmp_path: Path) -> None:
    guard, plugin = NanGuard(tmp_path), half(2.0**120)
    trained(guard, max_steps=2, plugins=[plugin])
    assert guard.skipped == 0
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 2.0**118


def half(scale: float) -> MixedPrecision:
    """fp16 with this scale of the gradients, which a trainer for the CPU does not offer by name."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def test_skip_stops_when_the_weights_are_broken(tmp_path: Path) -> None:
    """As gradients leave them that are not finite though the loss was."""
    task, data = make()
    with torch.no_grad():
        next(task.model.box.parameters())[0] = torch.nan  # pyright: ignore
    with pytest.raises(LossNotFinite, match=r"weights were not finite before this step .*model\.box\."):
        trainer(NanGuard(tmp_path, "skip")).fit(task, data)
    assert [path.name for path in tmp_path.iterdir()] == ["nan-step-000000.pt"]


def test_skip_stops_when_no_step_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nan_guard, "IN_A_ROW", 2)
    guard = NanGuard(tmp_path, "skip")
    task, data = make()
    with pytest.raises(LossNotFinite, match=r"step 6 .*(\n.*)+the 2 steps before were skipped"):
        trainer(Poison([1, 2, 4, 5, 6]), guard, max_steps=20).fit(task, data)
    assert guard.skipped == 4


def test_spread_tensors_are_saved_whole() -> None:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        spread = distribute_tensor(torch.arange(4.0), init_device_mesh("cpu", (1,)), [Shard(0)])
        assert type(nan_guard._whole(spread)) is Tensor
        assert nan_guard._not_finite({"spread": nan_guard._local(spread / 0)}) == ["spread"]
    finally:
        dist.destroy_process_group()


# The device


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_reading_the_loss_waits_for_no_more_than_the_forward_pass() -> None:
    """CUDA's own alarm stays silent, and the number is there while the device is still busy with what came later."""
    device = torch.device("cuda")
    number, value = nan_guard._OnItsWay(device), torch.tensor(2.0, device=device)
    buffers = nan_guard._Buffers(_norm(device))  # pyright: ignore[reportArgumentType]
    later, torch_sleep = torch.cuda.Event(), torch.cuda._sleep
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        buffers.remember()
        number.send(value + 1)
        torch_sleep(2_000_000_000)
        later.record()
        assert number.arrived() == 3.0
        assert not later.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _norm(device: torch.device) -> nn.Module:
    return nn.ModuleDict({"model": nn.BatchNorm2d(4)}).to(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_skip_on_a_device(tmp_path: Path, precision: str) -> None:
    guard = NanGuard(tmp_path, "skip")
    task, _ = trained(Poison([1]), guard, accelerator="gpu", precision=precision)
    assert guard.skipped == 1
    assert all(bool(value.isfinite().all()) for value in task.state_dict().values())


# Several ranks: only the second one's second batch is bad


def run(folder: Path, on_nan: str) -> None:
    """Each rank leaves its error, weights, moments and count in a file."""
    torch.set_num_threads(1)
    second = int(os.environ.get("LOCAL_RANK", 0)) == 1
    task, data = make("data.batch_size=1")
    guard = NanGuard(folder, on_nan)
    runner = trainer(Poison([1] if second else []), guard, devices=2, strategy="ddp", default_root_dir=folder)
    error = ""
    try:
        runner.fit(task, data)
    except LossNotFinite as stop:
        error = str(stop)
    state = {
        "weights": dict(task.named_parameters()),
        "error": error,
        "skipped": guard.skipped,
        "step": runner.global_step,
    }
    torch.save(state | {"moments": moments(runner)}, folder / f"{on_nan}-{runner.global_rank}.pt")


def two_ranks(folder: Path, on_nan: str) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, str(folder), on_nan]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{on_nan}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_ranks_stop_together(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "stop")
    assert first["error"] == second["error"]
    assert "step 1 (epoch 0, batch 1 on rank 1) is not finite" in first["error"]
    assert f"replay={tmp_path / 'nan-step-000001-rank1.pt'}" in first["error"]
    assert [path.name for path in tmp_path.glob("nan-*")] == ["nan-step-000001-rank1.pt"]
    assert (first["step"], second["step"]) == (1, 1)
    assert_equal(first["weights"], second["weights"])
    assert torch.load(tmp_path / "nan-step-000001-rank1.pt", weights_only=True)["place"] == [0, 0, 0, 1, 1]


def test_two_ranks_skip_together(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, "skip")
    assert (first["skipped"], second["skipped"]) == (1, 1)
    assert (first["step"], second["step"]) == (4, 4)
    assert_equal(first["weights"], second["weights"])
    assert first["moments"]
    assert all(torch.equal(*pair) for pair in zip(first["moments"], second["moments"], strict=True))
    assert all(bool(value.isfinite().all()) for value in first["weights"].values())


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
