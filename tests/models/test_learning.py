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
