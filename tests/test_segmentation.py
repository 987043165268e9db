"""Semantic segmentation as a user would run it: train, evaluate in tiles, predict, weigh classes, begin from a coarser net."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from makers import make_label_maps, make_voc
from quadrat.configs import build, build_task, compose, tiled
from quadrat.data.shapes import Shapes
from quadrat.evaluate import evaluate
from quadrat.jobs import train
from quadrat.predict import predict
from quadrat.runs import Run, read_checkpoint
from quadrat.structures import Schema

TINY = (
    *("experiment=none", "model=segnet_basic", "task=segmentation", "monitor=val/miou", "trainer.log_every_n_steps=1"),
    *("data.source.count=6", "+data.source.size=[96,128]", "data.batch_size=3", "trainer.enable_progress_bar=false"),
    *("model.backbone.widths=[[8],[8],[8],[8]]", "model.neck.convs=[[8],[8],[8],[8]]", "callbacks.pictures.count=2"),
)

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def trained(logs: Path, *overrides: str, base: tuple[str, ...] = TINY) -> Run:
    config = compose("train", [*base, "trainer.max_epochs=1", f"paths.logs={logs}", *overrides])
    train(config)
    return Run(config.paths.run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("whole"))


def test_training_reports_pixels_and_the_pattern(whole: Run) -> None:
    last = json.loads((whole.folder / "metrics.json").read_text())["last"]
    for name in (
        "miou",
        "pixel_accuracy",
        "class_accuracy",
        "fw_iou",
        "boundary_f1",
        "checkerboard",
        "loss/pixel_class",
    ):
        assert np.isfinite(last[f"val/{name}"])
    assert {path.name for path in (whole.folder / "pictures").iterdir()} >= {"latest.png", "confusion.png"}


def test_evaluate_writes_maps_and_confusion(whole: Run) -> None:
    results = evaluate(compose("evaluate", [f"run={whole.folder}", "progress.refresh_rate=0"]))
    folder = whole.folder / "evaluation" / "val"
    stored = json.loads((whole.folder / "metrics.json").read_text())["last"]
    assert results["miou"] == pytest.approx(stored["val/miou"], abs=1e-6)
    assert (folder / "confusion.png").is_file()
    maps = sorted((folder / "labels").glob("*.png"))
    assert len(maps) == 6
    with Image.open(maps[0]) as picture:
        assert picture.mode == "P"
        assert picture.size == (128, 96)
        assert int(np.asarray(picture).max()) <= 6
    assert (folder / "labels" / "classes.txt").read_text().splitlines()[:2] == ["background", "circle"]


def test_evaluate_in_tiles_is_nearly_the_same(whole: Run) -> None:
    tiles = ["tiles=[64,64]", "overlap=32"]
    results = evaluate(compose("evaluate", [f"run={whole.folder}", "progress.refresh_rate=0", *tiles]))
    plain = evaluate(compose("evaluate", [f"run={whole.folder}", "progress.refresh_rate=0"]))
    assert results["pixel_accuracy"] == pytest.approx(plain["pixel_accuracy"], abs=0.1)
    assert results["loss/pixel_class"] != plain["loss/pixel_class"]


def test_predict_large_picture_in_tiles(whole: Run, tmp_path: Path) -> None:
    """A picture of two megapixels: drawn, and its map at its own size."""
    image = np.random.default_rng(0).integers(0, 255, (1200, 1700, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "street.jpg"), image)
    overrides = [f"run={whole.folder}", f"source={tmp_path}", f"output={tmp_path / 'out'}", "tiles=[512,512]"]
    output = predict(compose("predict", overrides))
    with Image.open(output / "labels" / "street.png") as labels, Image.open(output / "street.png") as drawn:
        assert labels.size == drawn.size == (1700, 1200)


def test_tiles_are_refused_for_boxes() -> None:
    with pytest.raises(ValueError, match="takes no tiles"):
        tiled({"_target_": "quadrat.models.regions.assemble"}, [64, 64], 8)


def test_class_weights_are_counted_and_kept(tmp_path: Path) -> None:
    run = trained(tmp_path, "model.criteria.pixel_class.class_weights=median_frequency")
    source = Shapes("train", count=6, size=(96, 128), objects=(1, 5))
    maps = np.stack([source[i].targets.semantic for i in range(6)])
    pixels = np.bincount(maps.ravel(), minlength=256)[:7]
    shared = [sum(int((m != 254).sum()) for m in maps if (m == c).any()) for c in range(7)]
    frequency = np.array([p / s if s else 0 for p, s in zip(pixels, shared, strict=True)])
    expected = np.where(frequency > 0, np.median(frequency[frequency > 0]) / np.where(frequency > 0, frequency, 1), 0)
    state = read_checkpoint(run.folder / "last.ckpt")["state_dict"]
    torch.testing.assert_close(
        state["model.criteria.pixel_class.class_weights.weights"], torch.as_tensor(expected, dtype=torch.float32)
    )


def test_dice_is_a_second_term(tmp_path: Path) -> None:
    run = trained(
        tmp_path, "model/criteria=cross_entropy_dice", "loss=segmentation_dice", "loss.weights.pixel_dice=0.5"
    )
    last = json.loads((run.folder / "metrics.json").read_text())["last"]
    assert 0 < last["val/loss/pixel_dice"] < 1


def test_border_weights_change_the_loss(tmp_path: Path) -> None:
    weigh = "{_target_: quadrat.data.pixel_weights.BorderWeights, w0: 10, sigma: 5}"
    losses = []
    for overrides in ([], [f"data.weigh_pixels={weigh}", "data.source.objects=[5,5]"], ["data.source.objects=[5,5]"]):
        config = compose("train", [*TINY, *overrides])
        data = build(config.data)
        batch = next(iter(data.train_dataloader()))
        torch.manual_seed(0)
        task = build_task(config, data)
        losses.append(task.model.loss(task.model.features(batch), batch)["pixel_class"].item())
    assert losses[1] > losses[2]


@pytest.mark.parametrize(("task", "model"), [("segmentation", "faster_rcnn_fpn"), ("detection", "segnet_basic")])
def test_task_and_model_that_do_not_belong_together_are_refused(task: str, model: str) -> None:
    config = compose("train", ["experiment=none", f"model={model}", f"task={task}"])
    with pytest.raises(ValueError, match="choose task= and model= that belong together"):
        build_task(config, build(config.data))


def test_boxes_alone_have_no_map_to_learn_from(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    base = ("experiment=none", "model=segnet_basic", "task=segmentation", "monitor=val/miou", "data=voc")
    with pytest.raises(ValueError, match="no semantic map to learn from"):
        trained(tmp_path, f"data.source.root={root}", "data.workers=0", base=base)


def test_a_folder_of_label_maps_trains(tmp_path: Path) -> None:
    root = make_label_maps(tmp_path / "maps")
    overrides = ["data=voc_segmentation", f"data.source.root={root}", "data.source.classes=[cat,dog]", "data.workers=0"]
    base = tuple(one for one in TINY if not one.startswith(("data.source.count", "+data.source.size")))
    run = trained(tmp_path, *overrides, base=base)
    assert run.status["state"] == "done"


# --- staged training ---

FCN = (
    *("experiment=none", "model/backbone=tiny", "model.backbone.width=8", "task=segmentation", "monitor=val/miou"),
    *("data.source.count=4", "+data.source.size=[96,96]", "data.batch_size=2", "trainer.enable_progress_bar=false"),
)


def test_fcn16s_begins_from_a_run_of_fcn32s(tmp_path: Path) -> None:
    coarse = trained(tmp_path, "model=fcn32s", base=FCN)
    begun = ["model=fcn16s", "resume.mode=weights", f"resume.source={coarse.folder}", "optimizer.lr=0"]
    fine = trained(tmp_path, *begun, base=FCN)
    before, after = (read_checkpoint(run.folder / "last.ckpt")["state_dict"] for run in (coarse, fine))
    assert {key for key in after if key not in before} == {
        "model.head.score.c4.weight",
        "model.head.score.c4.bias",
        "model.head.up.c4.weight",
    }
    learned = [key for key in before if key.startswith("model.") and key.endswith(("weight", "bias"))]
    assert all(before[key].equal(after[key]) for key in learned)
    assert not after["model.head.score.c4.weight"].any()


def test_class_weights_are_the_configs_own_after_beginning_from_another_run(tmp_path: Path) -> None:
    plain = trained(tmp_path)
    begun = [
        "resume.mode=weights",
        f"resume.source={plain.folder}",
        "model.criteria.pixel_class.class_weights=[1,2,3,4,5,6,7]",
    ]
    run = trained(tmp_path, *begun)
    state = read_checkpoint(run.folder / "last.ckpt")["state_dict"]
    assert state["model.criteria.pixel_class.class_weights.weights"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_scores_are_of_the_original_frame(tmp_path: Path) -> None:
    """Pictures of 96x128 seen at 48x64: validation keeps their own maps to compare with."""
    resized = ["augment=segment_resize", "augment.height=48", "augment.width=64", "data.divisor=16"]
    config = compose("train", [*TINY, *resized])
    data = build(config.data)
    target = next(iter(data.val_dataloader())).targets[0]
    assert target.semantic.shape == (48, 64)
    assert target.original_semantic.shape == (96, 128)
    assert next(iter(data.train_dataloader())).targets[0].original_semantic is None


def test_settings_of_another_experiment_are_named() -> None:
    with pytest.raises(ValueError, match="begin with experiment=none"):
        build(compose("train", ["model=segnet_basic"]).model, schema=Schema(("cat",)))


@pytest.mark.parametrize("tiles", [512, [512]])
def test_tiles_of_no_size_are_refused(tiles: object) -> None:
    with pytest.raises(ValueError, match=r"tiles=\[512,512\]"):
        tiled({"_target_": "x", "tiles": None}, OmegaConf.create({"t": tiles}).t, 8)


def test_segnet_does_not_begin_from_a_run_of_fcn32s(tmp_path: Path) -> None:
    coarse = trained(tmp_path, "model=fcn32s", base=FCN)
    with pytest.raises(ValueError, match="checkpoint of another model"):
        trained(tmp_path, "resume.mode=weights", f"resume.source={coarse.folder}")


# --- several processes ---


@pytest.mark.slow
def test_two_processes_score_one_set(tmp_path: Path) -> None:
    """A net that learns nothing: its scores and its counted class weights are those of one process."""
    still = [*TINY, "trainer.max_epochs=1", "optimizer.lr=0", "data.batch_size=2", "data.source.count=8"]
    still += [
        "model.criteria.pixel_class.class_weights=median_frequency",
        "model.backbone.norm=false",
        "model.neck.norm=false",
    ]
    runs = []
    for name, ranks in (
        ("one", []),
        ("two", ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]),
    ):
        command = [Path(sys.executable).parent / "quadrat-train", *still, *ranks, f"paths.logs={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder,) = (tmp_path / name).iterdir()
        runs.append(json.loads((folder / "metrics.json").read_text())["last"])
    for name in ("val/miou", "val/boundary_f1", "val/checkerboard", "val/loss/pixel_class"):
        assert runs[1][name] == pytest.approx(runs[0][name], abs=1e-5), name
