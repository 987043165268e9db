"""Train, kill, resume, evaluate, predict and sweep, as a user would from the shell."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from numpy.random import default_rng

from makers import draw, make_voc, write_picture
from quadrat.configs import build, compose
from quadrat.evaluate import evaluate
from quadrat.jobs import train
from quadrat.predict import predict
from quadrat.runs import Run, same_schema
from quadrat.structures import Schema
from wandb_files import read_attempts

COMMANDS = Path(sys.executable).parent
EPOCHS, STEPS = 3, 12
TINY = (
    *("data.source.count=8", "data.batch_size=2", f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=1"),
    *("model.neck.channels=16", "model.layers.hidden=32", "callbacks.pictures.count=2", "task.gradients_every=4"),
)
RESIZED = ("augment=resize", "augment.short=96")  # the pictures are 160 x 160, the model sees 96 x 96

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def environment(logs: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "QUADRAT_LOGS": str(logs), "OMP_NUM_THREADS": "1", **more}


def shell(command: str, *overrides: str, logs: Path, **more: str) -> str:
    """What a console script prints; fails with its errors unless it ends well."""
    done = subprocess.run(
        [COMMANDS / f"quadrat-{command}", *overrides],
        env=environment(logs, **more),
        cwd=logs.parent,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def only_run(logs: Path) -> Run:
    (folder,) = logs.iterdir()
    return Run(folder)


def rows(run: Run) -> list[dict[str, str]]:
    with run.log.open(newline="") as file:
        return list(csv.DictReader(file))


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def here(logs: Path, *overrides: str) -> Run:
    """Train in this process."""
    config = compose("train", [*TINY, f"paths.logs={logs}", *overrides])
    train(config)
    return Run(config.paths.run)


# --- one whole run ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run by the console script."""
    logs = tmp_path_factory.mktemp("whole") / "logs"
    shell("train", *TINY, *RESIZED, logs=logs)
    return only_run(logs)


def test_train_leaves_run_folder(whole: Run) -> None:
    left = {str(path.relative_to(whole.folder)) for path in whole.folder.rglob("*") if path.is_file()}
    pictures = {f"pictures/epoch-{epoch:04d}.png" for epoch in range(EPOCHS)}
    assert left >= {"config.yaml", "last.ckpt", "best.ckpt", "metrics.csv", "metrics.json", "status.json", "train.log"}
    assert left >= {"pictures/latest.png", *pictures}
    assert not [name for name in left if name.endswith(".tmp")]


def test_train_status_finished(whole: Run) -> None:
    assert whole.status["state"] == "done"
    assert whole.status["epochs"] == EPOCHS
    assert whole.status["steps"] == STEPS
    assert whole.folder.name.endswith(whole.status["id"])
    assert "error" not in whole.status


def test_train_config_says_all(whole: Run) -> None:
    assert "${" not in whole.config_file.read_text()
    assert whole.config().augment.short == 96


def test_train_log_has_every_step_and_epoch(whole: Run) -> None:
    table = rows(whole)
    assert [int(row["step"]) for row in table if row["train/total"]] == list(range(STEPS))
    assert [int(row["epoch"]) for row in table if row["val/map"]] == list(range(EPOCHS))


def test_train_metrics_best_is_the_log_s(whole: Run) -> None:
    results = json.loads(whole.metrics_file.read_text())
    values = [float(row[results["monitor"]]) for row in rows(whole) if row[results["monitor"]]]
    assert results["best"] == max(values)
    assert results["last"][results["monitor"]] == values[-1]


def test_train_last_checkpoint_is_of_the_last_step(whole: Run) -> None:
    assert load(whole.last)["global_step"] == STEPS


def test_train_best_checkpoint_is_of_the_best_epoch(whole: Run) -> None:
    monitor = whole.config().monitor
    scored = [row for row in rows(whole) if row[monitor]]
    best = max(scored, key=lambda row: float(row[monitor]))
    assert load(whole.best)["epoch"] == int(best["epoch"])


def test_checkpoint_holds_plain_values(whole: Run) -> None:
    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {type(value)}.union(*(kinds(item) for pair in value.items() for item in pair))
        if isinstance(value, list | tuple):
            return {type(value)}.union(*map(kinds, value))
        return {type(value)}

    checkpoint = load(whole.best)
    allowed = {"dict", "OrderedDict", "list", "tuple", "str", "int", "float", "bool", "NoneType", "Tensor"}
    assert {kind.__name__ for kind in kinds(checkpoint)} <= allowed
    assert checkpoint["schema"]["classes"][0] == "circle"


def test_train_again_does_nothing(whole: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole.last, whole.best, whole.log, whole.status_file)}
    said = shell("train", *TINY, *RESIZED, logs=whole.folder.parent)
    assert "finished already" in said
    assert f"run folder  {whole.folder}" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- killed and launched again ---


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """The same run, killed in its second epoch and launched again; and what the second launch said."""
    logs = tmp_path_factory.mktemp("killed") / "logs"
    process = subprocess.Popen(
        [COMMANDS / "quadrat-train", *TINY, *RESIZED],
        env=environment(logs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait(lambda: any(_steps(log) > STEPS // EPOCHS + 1 for log in logs.glob("*/metrics.csv")), process)
    process.kill()
    assert process.wait() == -9
    run = only_run(logs)
    assert run.last.exists()
    assert run.status["state"] == "running"
    return run, shell("train", *TINY, *RESIZED, logs=logs)


def _steps(log: Path) -> int:
    with log.open(newline="") as file:
        return sum(bool(row.get("train/total")) for row in csv.DictReader(file))


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    for _ in range(10_000):
        if ready():
            return
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    pytest.fail("the run did not get so far in 100 s")


def test_resume_says_where(resumed: tuple[Run, str]) -> None:
    run, said = resumed
    assert f"resuming from step {STEPS // EPOCHS}, epoch 0: {run.last} is the newest checkpoint that loads" in said
    assert run.status["state"] == "done"


@pytest.mark.parametrize("which", ["last", "best"])
def test_resume_ends_with_the_same_weights(whole: Run, resumed: tuple[Run, str], which: str) -> None:
    ours, theirs = load(resumed[0].checkpoint(which)), load(whole.checkpoint(which))
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    differing = [key for key, value in ours["state_dict"].items() if not torch.equal(value, theirs["state_dict"][key])]
    assert not differing
    moments, wanted = (state["optimizer_states"][0]["state"] for state in (ours, theirs))
    assert all(torch.equal(moments[i]["exp_avg_sq"], wanted[i]["exp_avg_sq"]) for i in wanted)


def test_resume_log_has_no_double_and_no_missing_row(whole: Run, resumed: tuple[Run, str]) -> None:
    assert rows(resumed[0]) == rows(whole)


# --- evaluate ---


@pytest.fixture(scope="module")
def evaluated(whole: Run) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """What quadrat-evaluate writes of val, and what it prints."""
    said = shell("evaluate", f"run={whole.folder}", logs=whole.folder.parent)
    folder = whole.folder / "evaluation" / "val"
    return *(json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "detections")), said


def test_evaluate_gives_the_metrics_of_the_best_epoch(whole: Run, evaluated: tuple[Any, Any, str]) -> None:
    metrics, detections, _ = evaluated
    epoch = load(whole.best)["epoch"]
    (row,) = [row for row in rows(whole) if row["val/map"] and int(row["epoch"]) == epoch]
    wanted = {name.removeprefix("val/"): float(value) for name, value in row.items() if name.startswith("val/")}
    wanted = {name: value for name, value in wanted.items() if not name.startswith("loss/")}  # these draw samples
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert detections, "a test of empty results shows nothing"
    assert max(wanted["ar100"], wanted["ap50"]) > 0, "a test of zeros shows nothing"


def test_evaluate_detections_are_coco_results(whole: Run, evaluated: tuple[Any, Any, str]) -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    metrics, detections, _ = evaluated
    truth = coco.COCO()
    truth.dataset = _coco_truth(whole)
    truth.createIndex()
    judged = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[:2] == pytest.approx([metrics["map"], metrics["ap50"]], abs=1e-6)
    assert judged.stats[8] == pytest.approx(metrics["ar100"], abs=1e-6)


def _coco_truth(run: Run) -> dict[str, Any]:
    """The val split in the frame of the pictures as they are, made without the code under test."""
    source = build(run.config().data).source("val")
    targets = [source[index].targets for index in range(len(source))]
    entries = [
        {"image_id": one.image_id, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "area": float(area)}
        for one in targets
        for (x1, y1, x2, y2), label, area in zip(one.boxes.tolist(), one.labels, one.areas, strict=True)
    ]
    return {
        "images": [{"id": one.image_id, "height": one.size[0], "width": one.size[1]} for one in targets],
        "annotations": [{**entry, "id": number, "iscrowd": 0} for number, entry in enumerate(entries, start=1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(source.schema.classes, start=1)],
    }


def test_evaluate_prints_table_and_place(whole: Run, evaluated: tuple[Any, Any, str]) -> None:
    said = evaluated[2]
    assert "circle" in said
    place = re.escape(str(whole.folder / "evaluation" / "val"))
    assert re.search(rf"best\.ckpt on val; metrics and \d+ detections in {place}", said)


def test_evaluate_leaves_no_other_files(whole: Run, evaluated: tuple[Any, Any, str]) -> None:
    assert not (whole.folder / "lightning_logs").exists()


def test_evaluate_test_split_and_last_checkpoint(whole: Run) -> None:
    results = evaluate(compose("evaluate", [f"run={whole.folder}", "split=test", "checkpoint=last"]))
    written = json.loads((whole.folder / "evaluation" / "test" / "metrics.json").read_text())
    assert written["checkpoint"].endswith("last.ckpt")
    assert {name: written[name] for name in results} == results


# --- predict ---


def picture(path: Path, size: tuple[int, int]) -> Path:
    write_picture(path, draw(default_rng(0), size, (0, 1))[0])
    return path


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes; equal file names in sub-folders; a file that is no picture."""
    root = tmp_path_factory.mktemp("album")
    picture(root / "first.jpg", (120, 200))
    picture(root / "a" / "000.jpg", (200, 120))
    picture(root / "b" / "000.jpg", (300, 400))
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def predicted(whole: Run, album: Path) -> tuple[list[dict[str, Any]], str]:
    said = shell("predict", f"run={whole.folder}", f"source={album}", logs=whole.folder.parent)
    return json.loads((whole.folder / "predictions" / "detections.json").read_text()), said


def test_predict_folder_draws_every_picture_at_its_size(whole: Run, predicted: tuple[Any, str]) -> None:
    output = whole.folder / "predictions"
    drawn = {str(file.relative_to(output)): cv2.imread(str(file)).shape[:2] for file in output.rglob("*.png")}
    assert drawn == {"first.png": (120, 200), "a/000.png": (200, 120), "b/000.png": (300, 400)}
    assert f"{len(predicted[0])} detections in 3 pictures: {output}" in predicted[1]


def test_predict_folder_boxes_in_the_frame_of_each_picture(predicted: tuple[Any, str]) -> None:
    sizes = {"first.jpg": (120, 200), "a/000.jpg": (200, 120), "b/000.jpg": (300, 400)}
    assert {entry["file_name"] for entry in predicted[0]} == set(sizes)
    for name, (height, width) in sizes.items():
        boxes = torch.tensor([entry["bbox"] for entry in predicted[0] if entry["file_name"] == name])
        right, bottom = (boxes[:, :2] + boxes[:, 2:]).amax(0).tolist()
        assert boxes.min() >= 0
        assert 0.75 * width < right <= width + 0.01  # the model saw 96 pixels of the shorter side
        assert 0.75 * height < bottom <= height + 0.01


def test_predict_folder_ids_tell_pictures_apart(predicted: tuple[Any, str]) -> None:
    assert len({(entry["file_name"], entry["image_id"]) for entry in predicted[0]}) == 3
    assert len({entry["image_id"] for entry in predicted[0]}) == 3


def test_predict_same_stem_other_suffix_both_drawn(whole: Run, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "one.jpg", (64, 64))
    picture(tmp_path / "in" / "one.png", (64, 96))
    predict(compose("predict", [f"run={whole.folder}", f"source={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]))
    assert len(list((tmp_path / "out").glob("one*.png"))) == 2


def test_predict_output_in_source_keeps_the_pictures(whole: Run, tmp_path: Path) -> None:
    """Drawings must not take the place of the pictures they were drawn from."""
    original = picture(tmp_path / "one.png", (64, 64))
    before = original.read_bytes()
    overrides = [f"run={whole.folder}", f"source={tmp_path}", f"output={tmp_path}", "threshold=0"]
    with pytest.raises(ValueError, match="output"):
        predict(compose("predict", overrides))
    assert original.read_bytes() == before


def test_predict_one_picture(whole: Run, album: Path, tmp_path: Path) -> None:
    predict(compose("predict", [f"run={whole.folder}", f"source={album / 'first.jpg'}", f"output={tmp_path}"]))
    entries = json.loads((tmp_path / "detections.json").read_text())
    assert {(entry["file_name"], entry["image_id"]) for entry in entries} == {("first.jpg", "first.jpg")}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["detections.json", "first.png"]


# --- a data set of files ---

VOC = ("~experiment", "data=voc", "data.workers=0", "augment=none", "model/backbone=tiny", "trainer=smoke")


@pytest.fixture
def on_voc(tmp_path: Path) -> tuple[Run, Path]:
    root = make_voc(tmp_path / "pets")
    config = compose(
        "train",
        [
            *(*VOC, "data.batch_size=2", "model.neck.channels=16", "model.layers.hidden=32", "data.splits.test=val"),
            *(f"paths.logs={tmp_path / 'logs'}", f"data.source.root={root}"),
        ],
    )
    train(config)
    return Run(config.paths.run), root


def test_predict_does_not_need_the_data(on_voc: tuple[Run, Path], tmp_path: Path) -> None:
    run, root = on_voc
    source = shutil.copy(root / "JPEGImages" / "val_000.jpg", tmp_path)
    shutil.rmtree(root)
    predict(compose("predict", [f"run={run.folder}", f"source={source}"]))
    assert (run.folder / "predictions" / "val_000.png").exists()


def test_evaluate_moved_data(on_voc: tuple[Run, Path], tmp_path: Path) -> None:
    run, root = on_voc
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=str(root)):
        evaluate(compose("evaluate", [f"run={run.folder}"]))
    assert evaluate(compose("evaluate", [f"run={run.folder}", f"data.root={moved}"]))["map"] >= 0


# --- other ways to run ---


def test_sweep_makes_a_folder_for_each_value(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    shell("train", "-m", *TINY, "trainer=smoke", "trainer.max_epochs=1", "loss.weights.rpn_box=0,1", logs=logs)
    runs = [Run(folder) for folder in logs.iterdir() if folder.name != "sweeps"]
    assert sorted(run.config().loss.weights.rpn_box for run in runs) == [0, 1]
    assert [run.status["state"] for run in runs] == ["done", "done"]
    for run in runs:
        assert float(rows(run)[0]["train/loss/rpn_box"]) > 0  # computed and logged, whatever its weight
    untrained = next(run for run in runs if run.config().loss.weights.rpn_box == 0)
    assert float(rows(untrained)[0]["train/weighted/rpn_box"]) == 0


def test_wandb_holds_a_sweep_s_run_and_its_evaluation(tmp_path: Path) -> None:
    """Group, type, settings by their names, the numbers of the csv log, the best of the metric, pictures."""
    logs = tmp_path / "logs"
    alone = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": "", "WANDB_ERROR_REPORTING": "false"}
    sweep = ("sweep.name=weights", "sweep.job=rpn_box\\=2", "loss.weights.rpn_box=2", "loss/weighting=gradnorm")
    shell("train", *TINY, *sweep, "logger=wandb", "logger.wandb.tags=[tiny]", logs=logs, **alone)
    run = only_run(logs)
    shell("evaluate", f"run={run.folder}", logs=logs, **alone)

    (offline,) = run.folder.glob("wandb/offline-run-*")  # as there is no key
    assert (offline / f"run-{run.folder.name}.wandb").is_file()
    (trained,) = read_attempts(run.folder)
    assert (trained.run.run_group, trained.run.job_type, trained.run.display_name) == ("weights", "train", "rpn_box=2")
    assert list(trained.run.tags) == ["tiny"]
    assert trained.config["loss"]["weights"]["rpn_box"] == 2
    assert trained.config["loss"]["weighting"]["asymmetry"] == 1.5
    with run.log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {name for row in rows for name, cell in row.items() if cell} - {"step"}
    assert names <= {name for row in trained.history for name in row}
    assert {"train/weight/rpn_box", "train/gradient_norm/rpn_box", "train/cosine/rpn_box/region_box"} <= names
    best = json.loads(run.metrics_file.read_text())["best"]
    assert trained.summary["val/ap50"]["max"] == pytest.approx(best)
    assert any(name.startswith("val/pictures") for row in trained.history for name in row)

    (evaluated,) = read_attempts(run.folder / "evaluation" / "val")
    assert (evaluated.run.run_group, evaluated.run.job_type) == ("weights", "evaluate")
    assert evaluated.config["evaluated"] == {"split": "val", "checkpoint": "best"}
    written = json.loads((run.folder / "evaluation" / "val" / "metrics.json").read_text())
    assert evaluated.summary["val/map"] == pytest.approx(written["map"])


def test_ddp_on_two_processes_makes_one_run(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    shell("train", *TINY, *two, "trainer.max_epochs=1", logs=logs)
    run = only_run(logs)
    assert run.status["state"] == "done"
    assert run.status["steps"] == 2  # eight pictures in batches of two on each of two ranks
    assert [int(row["step"]) for row in rows(run) if row["train/total"]] == [0, 1]


def test_trainer_smoke(tmp_path: Path) -> None:
    run = here(tmp_path, "trainer=smoke", "trainer.max_epochs=1")
    assert run.status["steps"] == 2


def test_trainer_overfit(tmp_path: Path) -> None:
    run = here(tmp_path, "trainer=overfit", "trainer.check_val_every_n_epoch=2", "data.limit=4")
    assert run.config().data.splits == {"train": "train", "val": "train", "test": "train"}
    assert [int(row["epoch"]) for row in rows(run) if row["val/map"]] == [1]
    assert run.status["steps"] == EPOCHS * 2


def test_train_validation_in_every_second_epoch_keeps_the_last(tmp_path: Path) -> None:
    run = here(tmp_path, "trainer.check_val_every_n_epoch=2")
    assert load(run.best)["epoch"] == 1
    assert load(run.last)["epoch"] == 2


def test_train_without_validation_says_only_what_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here(tmp_path, "trainer.limit_val_batches=0", "trainer.max_epochs=1")
    assert not run.pictures.exists()
    assert "latest.png" not in capsys.readouterr().out


def test_train_without_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here(tmp_path, "trainer.enable_progress_bar=false", "trainer.max_epochs=1")
    assert run.status["state"] == "done"
    assert "it/s" not in capsys.readouterr().out


def test_train_epochs_says_how_long(tmp_path: Path) -> None:
    tiny = [setting for setting in TINY if not setting.startswith("trainer.max_epochs")]
    config = compose("train", [*tiny, f"paths.logs={tmp_path}", "epochs=1", "trainer.enable_progress_bar=false"])
    train(config)
    assert Run(config.paths.run).status["epochs"] == 1


def test_train_longer_goes_on(tmp_path: Path) -> None:
    short = here(tmp_path, "trainer.max_epochs=1")
    longer = here(tmp_path, "trainer.max_epochs=2")
    assert longer.folder == short.folder
    assert longer.status["epochs"] == 2
    assert [int(row["step"]) for row in rows(longer) if row["train/total"]] == list(range(8))


def test_train_shorter_keeps_the_results(tmp_path: Path) -> None:
    longer = here(tmp_path, "trainer.max_epochs=2")
    before = longer.metrics_file.read_text()
    here(tmp_path, "trainer.max_epochs=1")
    assert longer.metrics_file.read_text() == before


def test_train_options_together(tmp_path: Path) -> None:
    run = here(
        tmp_path,
        *("trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed", "trainer.max_epochs=1"),
        *("callbacks=ema", "schedule=step", "schedule.warmup.steps=0", "optimizer=sgd", "task.backbone_rate=0.1"),
    )
    assert run.status["steps"] == 2  # four batches, two at a time
    row = next(row for row in rows(run) if row["train/total"])
    assert float(row["train/lr/backbone"]) == pytest.approx(0.1 * float(row["train/lr/heads"]))


SEEN = {"classes": ("person",), "joints": ("neck", "head top")}


def test_a_checkpoint_of_the_same_classes_and_joints() -> None:
    same_schema({"classes": ["cat"], "joints": []}, Schema(("cat",)), Path("last.ckpt"))
    same_schema(SEEN, Schema(("person",), joints=("neck", "head top")), Path("last.ckpt"))
    same_schema(SEEN, Schema(("person",)), Path("last.ckpt"))  # a detector does not ask for joints


@pytest.mark.parametrize(
    ("present", "message"),
    [
        (Schema(("cat",), joints=SEEN["joints"]), r"trained on 1 classes \['person'\], the data has 1 \['cat'\]"),
        (
            Schema(("person",), joints=("head top", "neck")),
            r"trained on 2 joints \['neck', 'head top'\], the data has 2 \['head top', 'neck'\]; give it data of the same",
        ),
    ],
)
def test_a_checkpoint_of_other_classes_or_joints(present: Schema, message: str) -> None:
    with pytest.raises(ValueError, match=f"last.ckpt was .*{message}"):
        same_schema(SEEN, present, Path("last.ckpt"))
