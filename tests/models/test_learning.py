"""Every system learns a handful of drawn pictures by heart."""

import json
from pathlib import Path

import pytest

from quadrat.configs import compose
from quadrat.jobs import train


@pytest.mark.slow
@pytest.mark.ci
def test_faster_rcnn_learns_eight_pictures_by_heart(tmp_path: Path) -> None:
    overrides = [
        f"paths.logs={tmp_path}",
        "trainer=overfit",
        "trainer.enable_progress_bar=false",
        "trainer.check_val_every_n_epoch=150",
    ]
    config = compose("train", overrides)
    train(config)
    results = json.loads((Path(config.paths.run) / "metrics.json").read_text())
    assert results["last"]["val/ap50"] > 0.95


def pixels_learned(logs: Path, model: str, size: int, epochs: int, *overrides: str) -> float:
    """The mIoU of four drawn pictures after that many passes over them."""
    config = compose(
        "train",
        [
            *("experiment=none", f"model={model}", "task=segmentation", "monitor=val/miou", "trainer=overfit"),
            *("data.limit=4", "data.batch_size=4", f"+data.source.size=[{size},{size}]", "data.source.objects=[1,3]"),
            *("optimizer.lr=4e-3", "schedule.warmup.steps=20", "trainer.precision=bf16-mixed"),
            *(f"trainer.max_epochs={epochs}", f"trainer.check_val_every_n_epoch={epochs}", f"paths.logs={logs}"),
            *("trainer.enable_progress_bar=false", *overrides),
        ],
    )
    train(config)
    return json.loads((Path(config.paths.run) / "metrics.json").read_text())["last"]["val/miou"]


@pytest.mark.slow
@pytest.mark.ci
def test_segnet_basic_learns_four_small_pictures_by_heart(tmp_path: Path) -> None:
    assert pixels_learned(tmp_path, "segnet_basic", 64, 220) > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("model", "size", "epochs"), [("segnet", 96, 400), ("unet", 96, 400), ("fcn_full", 96, 400)])
def test_dense_learns_four_pictures_by_heart(tmp_path: Path, model: str, size: int, epochs: int) -> None:
    assert pixels_learned(tmp_path, model, size, epochs) > 0.95
