"""The detectors of regions as a user would run them: train, evaluate with fewer singular values, predict, measure."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from quadrat.bench import chosen
from quadrat.configs import build, build_task, compose
from quadrat.data.shapes import Shapes
from quadrat.evaluate import evaluate
from quadrat.jobs import train
from quadrat.predict import predict
from quadrat.runs import Run

TINY = (
    *("experiment=none", "model/backbone=tiny", "monitor=val/ap50", "trainer.log_every_n_steps=1"),
    *("data.limit=4", "+data.source.size=[96,96]", "data.batch_size=2", "trainer.enable_progress_bar=false"),
    *("callbacks.pictures.count=2", "trainer.max_epochs=1", "data.proposals.finder.width=null"),
    *("data.proposals.finder.min_side=8", "data.proposals.most=200", "model.layers.hidden=32"),
)

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def trained(logs: Path, *overrides: str) -> Run:
    config = compose("train", [*TINY, f"paths.logs={logs}", *overrides])
    train(config)
    return Run(config.paths.run)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("fast"), "model=fast_rcnn")


def test_training_finds_regions_once(fast: Run) -> None:
    last = json.loads(fast.metrics_file.read_text())["last"]
    assert all(np.isfinite(last[f"val/{name}"]) for name in ("map", "loss/region_class", "loss/region_box"))
    found = list((fast.folder.parent / "proposals").rglob("*.npy"))
    assert len(found) == 8  # four pictures of train, four of val


def test_evaluation_with_fewer_singular_values(fast: Run) -> None:
    overrides = [f"run={fast.folder}", "progress.refresh_rate=0"]
    whole = evaluate(compose("evaluate", overrides))
    same = evaluate(compose("evaluate", [*overrides, "+model.layers.svd=[32,32]"]))
    assert same == pytest.approx(whole, abs=1e-3)
    evaluate(compose("evaluate", [*overrides, "+model.layers.svd=[2,2]"]))
    assert {path.name for path in (fast.folder / "evaluation").iterdir()} >= {"val", "val+layers.svd=[2, 2]"}


def test_prediction_finds_the_regions_of_a_new_picture(fast: Run, tmp_path: Path) -> None:
    image = Shapes("test", count=1, size=(90, 120), seed=7)[0].image
    cv2.imwrite(str(tmp_path / "new.png"), image[..., ::-1])
    found = predict(compose("predict", [f"run={fast.folder}", f"source={tmp_path}", f"output={tmp_path / 'out'}"]))
    assert (found / "new.png").is_file()
    assert (found / "detections.json").is_file()


def test_late_fits_are_part_of_the_run(tmp_path: Path) -> None:
    """The checkpoint of the only validation holds SVMs, and evaluation scores as the run did."""
    run = trained(tmp_path, "model=sppnet", "model.neck.names=[c3]", "trainer.check_val_every_n_epoch=2")
    assert list((run.folder / "features").rglob("*.npz"))
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert state["model.fitted"]
    assert state["model.svm.weight"].any()
    assert state["model.ridge.weight"].any()
    last = json.loads(run.metrics_file.read_text())["last"]
    again = evaluate(compose("evaluate", [f"run={run.folder}", "progress.refresh_rate=0"]))
    assert again["ap50"] == pytest.approx(last["val/ap50"], abs=1e-6)
    assert last["val/ap50"] > 0
    softmax = evaluate(compose("evaluate", [f"run={run.folder}", "progress.refresh_rate=0", "+model.svm=null"]))
    assert softmax["ap50"] != again["ap50"]


def test_a_run_without_regions_stops_before_it_begins() -> None:
    config = compose("train", ["experiment=none", "model=fast_rcnn", "model/backbone=tiny", "data.limit=2"])
    config.data.proposals = None
    with pytest.raises(ValueError, match="add data/proposals=selective_search"):
        build_task(config, build(config.data))


def test_settings_of_a_finder_without_one_name_the_remedy() -> None:
    config = compose("train", ["experiment=shapes_fast", "model=faster_rcnn_fpn"])
    with pytest.raises(ValueError, match="experiment=none, or choose one with data/proposals"):
        build(config.data)


# quadrat-bench


@pytest.mark.parametrize(
    ("words", "became"),
    [
        (["rcnn-family", "output=x"], ["bench=rcnn_family", "output=x"]),
        (["bench=proposals"], ["bench=proposals"]),
        (["--help"], ["--help"]),
        ([], []),
    ],
)
def test_bench_takes_its_name_first(words: list[str], became: list[str]) -> None:
    assert chosen(words) == became


def test_bench_unknown_name_tells_the_known() -> None:
    with pytest.raises(SystemExit, match=r"no benchmark rcnn; quadrat-bench proposals \| rcnn-family"):
        chosen(["rcnn"])


def test_bench_of_proposals_on_drawn_pictures(tmp_path: Path) -> None:
    shapes = ["data.source.count=2", "+data.source.size=[64,64]"]
    one = [f"~bench.finders.selective_search_{mode}" for mode in ("single", "fast", "quality")]
    config = compose("bench", ["bench=proposals", "output=there", "paths.run=there", *shapes, *one])
    report = build(config.bench, out=tmp_path)
    assert report["sliding_windows"]["pictures"] == 2
    assert (tmp_path / "proposals.txt").is_file()


@pytest.mark.slow
def test_bench_of_the_family_on_drawn_pictures(tmp_path: Path) -> None:
    tiny = [
        *TINY[:2],
        *("data.limit=2", "+data.source.size=[64,64]", "data.batch_size=2", "epochs=1", "callbacks.pictures=null"),
        *("trainer.enable_progress_bar=false", "monitor=val/ap50"),
    ]
    systems = {
        "R-CNN": ["model=rcnn", "model.pool.size=32", "model.pool.bins=1", "model.pool.context=2"],
        "SPPNet": ["model=sppnet", "model.neck.names=[c3]"],
        "Fast R-CNN": ["model=fast_rcnn"],
        "Faster R-CNN": ["model=faster_rcnn_c4", "model.pool.bins=4"],
    }
    from quadrat.benches.rcnn_family import run

    costs = run(systems, tiny, 2, str(tmp_path / "proposals"), tmp_path)
    assert all(cost.training > 0 and cost.network > 0 and cost.proposals > 0 for cost in costs.values())
    assert costs["R-CNN"].disk > 0 == costs["Fast R-CNN"].disk
    assert "R-CNN" in (tmp_path / "rcnn_family.txt").read_text()
    assert (tmp_path / "rcnn_family.png").is_file()
