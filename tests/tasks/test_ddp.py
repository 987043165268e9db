"""Two processes, each with its share of every batch, do what one process does with all of it.

Nothing is left to chance, and every image has as many anchors and regions as every other, so that the mean of the two
processes' means is the mean. This file is also the script that Lightning starts twice.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from quadrat.configs import build, build_task, compose

OVERRIDES = (
    *("~experiment", "model/backbone=tiny", "model.backbone.freeze_norm=true", "model.neck.channels=16"),
    *("model.layers.hidden=16", "model.sampler.count=100000", "model.sampler.positive_fraction=1.0"),
    # every anchor is positive or negative, and no proposal is suppressed
    *("model.proposer.samples=100000", "model.proposer.positive_fraction=1.0", "model.proposer.negative_iou=0.7"),
    *("model.proposer.nms=1.0", "model.proposer.min_size=0", "model.proposer.train_limits=[50,50]"),
    *("model.proposer.test_limits=[50,20]", "optimizer=sgd", "optimizer.lr=0.1", "schedule=constant", "augment=none"),
    # one object in every picture
    *("++data.source.size=[64,64]", "++data.source.objects=[1,1]", "++data.source.empty=0.0"),
    *("data.limit=8", "data.splits.val=train", "data.workers=0"),
    "data.eval_batch_size=3",  # three batches: one rank has two of them, the other one
)
STEPS = 2


def run(folder: Path, processes: int) -> None:
    """Train two steps on batches of four in all; each rank leaves its losses, weights and validation in a file."""
    torch.set_num_threads(1)
    config = compose("train", [*OVERRIDES, f"data.batch_size={4 // processes}"])
    torch.manual_seed(0)
    data = build(config.data)
    task = build_task(config, data)
    losses: list[dict[str, float]] = []
    task.weighting.register_forward_pre_hook(lambda _, terms: losses.append({n: v.item() for n, v in terms[0].items()}))
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=STEPS,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    state = {"losses": losses, "weights": task.model.state_dict(), "values": values}
    torch.save(state, folder / f"{processes}-{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process left, and what each of two did."""
    folder = tmp_path_factory.mktemp("ddp")
    for processes in (1, 2):
        done = subprocess.run(
            [sys.executable, __file__, str(folder), str(processes)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / f"{processes}.log").write_text(done.stderr)
    states = [torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]
    return [*states, {"log": (folder / "2.log").read_text()}]


def test_ddp_losses_are_those_of_one_process(results: list[dict[str, Any]]) -> None:
    one, first, second = (state["losses"] for state in results[:3])
    assert len(one) == len(first) == len(second) == STEPS
    for step in range(STEPS):
        assert first[step] != second[step], "both ranks saw the same pictures"
        for name, value in one[step].items():
            assert (first[step][name] + second[step][name]) / 2 == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_ddp_ranks_hold_the_same_weights(results: list[dict[str, Any]]) -> None:
    first, second = results[1]["weights"], results[2]["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ddp_weights_are_those_of_one_process(results: list[dict[str, Any]]) -> None:
    one, two = results[0]["weights"], results[1]["weights"]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_ddp_validation_is_that_of_one_process(results: list[dict[str, Any]]) -> None:
    one, first, second = (state["values"] for state in results[:3])
    assert {"val/map", "val/loss/rpn_box"} <= set(one)
    assert first == second == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_ddp_logs_validation_as_lightning_wants_it(results: list[dict[str, Any]]) -> None:
    """Without `sync_dist` there is a warning for every name."""
    assert [line for line in results[3]["log"].splitlines() if "sync_dist" in line] == []


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
