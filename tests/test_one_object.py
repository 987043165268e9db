"""One object a picture, as a user would run it: where it is, where its joints are, drawn or in any kind of folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import default_rng
from PIL import Image

from makers import draw, make_coco, make_lsp, make_voc, write_picture
from quadrat.configs import build, build_task, compose, retuned
from quadrat.data.one_object import principal_boxes
from quadrat.evaluate import evaluate
from quadrat.jobs import train
from quadrat.metrics.localization import NAMES
from quadrat.predict import predict
from quadrat.runs import Run, read_checkpoint

SMALL = (
    *("experiment=none", "model/backbone=tiny", "model.backbone.width=4", "trainer.enable_progress_bar=false"),
    *("trainer.log_every_n_steps=1", "data.batch_size=3", "schedule.warmup.steps=0"),
)
BOX = ("model=localizer", "task=localization", "monitor=val/top1", "model.size=[64,64]")
POSE = ("model=deeppose", "task=pose", "monitor=val/pdj", "model.sizes=[[64,64],[32,32]]")
LEARNED = ("optimizer.lr=1e-2", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=3")
DRAWN = ("data.source.count=6", "+data.source.size=[64,64]")
JOINTS = ("left_shoulder", "right_hip", "right_shoulder", "left_hip", "nose")

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def trained(logs: Path, *overrides: str, pictures: str = "callbacks.pictures=null") -> Run:
    config = compose("train", [*SMALL, pictures, "trainer.max_epochs=1", f"paths.logs={logs}", *overrides])
    train(config)
    return Run(config.paths.run)


def boxes(logs: Path, *overrides: str, **more: str) -> Run:
    """A localizer on drawn pictures."""
    return trained(logs, "data=shapes_single", *BOX, *DRAWN, *overrides, **more)


def joints(logs: Path, *overrides: str, **more: str) -> Run:
    """A cascade on drawn persons."""
    return trained(logs, "data=shapes_persons", *POSE, *DRAWN, *overrides, **more)


def last(run: Run) -> dict[str, float]:
    return json.loads(run.metrics_file.read_text())["last"]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return read_checkpoint(run.last)["state_dict"]


def evaluated(run: Run, *overrides: str) -> dict[str, float]:
    return evaluate(compose("evaluate", [f"run={run.folder}", "progress.refresh_rate=0", *overrides]))


def written(run: Run, file: str, place: str = "val") -> Any:
    return json.loads((run.folder / "evaluation" / place / file).read_text())


@pytest.fixture(scope="module")
def box_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return boxes(tmp_path_factory.mktemp("boxes"), *LEARNED, pictures="callbacks.pictures.count=2")


@pytest.fixture(scope="module")
def pose_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return joints(tmp_path_factory.mktemp("joints"), *LEARNED, pictures="callbacks.pictures.count=2")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder with one picture of an odd size, of which nothing is known."""
    write_picture(tmp_path / "album" / "street.jpg", draw(default_rng(0), (90, 140), (0,))[0])
    return tmp_path / "album"


# --- what and where ---


def test_training_reports_guesses(box_run: Run) -> None:
    found = last(box_run)
    assert {f"val/{name}" for name in (*NAMES, "top1_error", "loss/object_class", "loss/object_box")} <= found.keys()
    assert all(np.isfinite(value) for value in found.values())
    assert (box_run.pictures / "latest.png").is_file()


def test_evaluate_writes_every_guess(box_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    results = evaluated(box_run, "checkpoint=last")
    assert results["iou"] == pytest.approx(last(box_run)["val/iou"], abs=1e-6)
    assert {name: written(box_run, "metrics.json")[name] for name in results} == results
    guesses = written(box_run, "detections.json")
    assert len(guesses) == 6 * 6
    assert sorted(one["category_id"] for one in guesses if one["image_id"] == 0) == [1, 2, 3, 4, 5, 6]
    assert guesses[0]["score"] >= guesses[1]["score"]
    said = capsys.readouterr().out
    assert all(word in said for word in ("top-1 err", "circle", "36 detections", "last.ckpt on val"))


def test_predict_draws_and_writes_guesses(box_run: Run, album: Path, tmp_path: Path) -> None:
    output = predict(compose("predict", [f"run={box_run.folder}", f"source={album}", f"output={tmp_path / 'out'}"]))
    guesses = json.loads((output / "detections.json").read_text())
    assert len(guesses) == 6
    for x, y, width, height in (one["bbox"] for one in guesses):
        assert 0 <= x < x + width <= 140.01
        assert 0 <= y < y + height <= 90.01
    with Image.open(output / "street.png") as drawn:
        assert drawn.size == (140, 90)


def test_measured_code_is_in_the_checkpoint_and_used(box_run: Run, tmp_path: Path) -> None:
    config = box_run.config()
    found, sizes = principal_boxes(build(config.data).source("train"))
    shares = torch.cat([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], dim=1) / sizes.flip(1).tile(2)
    state = weights(box_run)
    torch.testing.assert_close(state["model.code.mean"], shares.mean(0))
    torch.testing.assert_close(state["model.code.std"], shares.std(0, correction=0))
    evaluated(box_run, "checkpoint=last")
    before = written(box_run, "detections.json")
    evaluated(box_run, "checkpoint=last", "+model.code.standardise=null")
    assert written(box_run, "detections.json", "val+code.standardise=null") != before


def test_weighted_by_alpha() -> None:
    losses = step("data=shapes_single", *BOX, "loss/weighting=alpha", "loss.weighting.alpha=0.25")
    assert losses["total"] == pytest.approx(0.25 * losses["object_class"] + 0.75 * losses["object_box"], rel=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "iou", "giou", "diou", "ciou"])
def test_every_box_loss_takes_a_step(name: str) -> None:
    losses = step("data=shapes_single", *BOX, f"model/box_loss={name}")
    assert losses["object_box"] > 0


def test_a_box_for_each_class_and_a_vector_of_its_own(tmp_path: Path) -> None:
    own = "{_target_: quadrat.heads.vector.Vector, _partial_: true, bins: 2}"
    run = boxes(tmp_path, "model.shared_box=false", f"model.box_vector={own}", "model.guesses=2")
    assert weights(run)["model.boxes.weight"].shape == (24, 4 * 8 * 4)
    evaluated(run)
    assert len(written(run, "detections.json")) == 6 * 2


def test_frozen_first_then_gone_on_with(tmp_path: Path) -> None:
    """Stopped after the frozen epoch: the trunk is as it was made, and the same command goes on and moves it."""
    settings = ("callbacks=freeze", "callbacks.freeze.until.count=1", "schedule=constant", "optimizer.lr=1e-2")
    run = boxes(tmp_path, *settings)
    config = run.config()
    torch.manual_seed(config.seed)
    made = build_task(config, build(config.data)).state_dict()
    trunk = [name for name in made if "backbone" in name]
    first = weights(run)
    assert all(torch.equal(first[name], made[name]) for name in trunk)
    assert boxes(tmp_path, *settings, "trainer.max_epochs=2").folder == run.folder
    assert not any(torch.equal(weights(run)[name], made[name]) for name in trunk if name.endswith("conv.weight"))
    assert not torch.equal(weights(run)["model.look.backbone.stages.c1.0.weight"], first[trunk[0]])


def test_a_voc_folder_trains(tmp_path: Path) -> None:
    run = trained(tmp_path, "data=voc_single", *BOX, *folder(make_voc(tmp_path / "voc")))
    assert run.status["state"] == "done"


def test_a_coco_folder_trains(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    run = trained(tmp_path, "data=coco_single", *BOX, *folder(root), "data.splits={train: train, val: val, test: val}")
    evaluated(run)
    assert {one["category_id"] for one in written(run, "detections.json")} == {3, 6}


def folder(root: Path) -> tuple[str, ...]:
    return f"data.source.root={root}", "data.workers=0"


def test_a_detector_is_judged_by_its_first_boxes(tmp_path: Path) -> None:
    parts = ("model.neck.channels=8", "model.layers.hidden=16", "model.proposer.test_limits=[50,10]")
    detector = ("model=faster_rcnn_fpn", "task=localization", "monitor=val/top1", *parts)
    run = trained(tmp_path, "data=shapes_single", *DRAWN, *detector)
    assert 0 <= last(run)["val/iou"] <= 1


# --- joints ---


def test_training_reports_joints_and_limbs(pose_run: Run) -> None:
    found = last(pose_run)
    names = ("pdj", "pcp", "pcp_loose", "pckh", "pck", "oks_ap", "pdj/wrist", "pcp/lower arm", "loss/joints_2")
    assert {f"val/{name}" for name in names} <= found.keys()
    assert all(np.isfinite(value) for value in found.values())
    assert {path.name for path in pose_run.pictures.iterdir()} >= {"latest.png", "pdj.png"}


def test_evaluate_writes_joints_and_curves(pose_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    results = evaluated(pose_run, "checkpoint=last")
    assert results["pck"] == pytest.approx(last(pose_run)["val/pck"], abs=1e-6)
    found = written(pose_run, "detections.json")
    assert [len(one["keypoints"]) for one in found] == [3 * 14] * 6
    assert (pose_run.folder / "evaluation" / "val" / "pdj.png").is_file()
    said = capsys.readouterr().out
    assert all(word in said for word in ("PDJ@0.2", "lower arm", "6 persons in 6 pictures"))


def test_fewer_stages_see_other_joints(pose_run: Run) -> None:
    evaluated(pose_run)
    both = written(pose_run, "detections.json")
    evaluated(pose_run, "+model.use=1")
    first = written(pose_run, "detections.json", "val+use=1")
    assert written(pose_run, "metrics.json", "val+use=1")["model"] == {"use": 1}
    assert written(pose_run, "detections.json") == both
    assert all(one["keypoints"] != other["keypoints"] for one, other in zip(both, first, strict=True))


def test_predict_draws_a_skeleton(pose_run: Run, album: Path, tmp_path: Path) -> None:
    output = predict(compose("predict", [f"run={pose_run.folder}", f"source={album}", f"output={tmp_path / 'out'}"]))
    (found,) = json.loads((output / "detections.json").read_text())
    assert len(found["keypoints"]) == 3 * 14
    with Image.open(output / "street.png") as drawn, Image.open(album / "street.jpg") as picture:
        assert drawn.size == picture.size == (140, 90)
        changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(picture)).max(axis=2) > 40
    places = np.array(found["keypoints"]).reshape(-1, 3)[:, :2].round().astype(int).clip(0, (139, 89))
    assert changed[places[:, 1], places[:, 0]].mean() > 0.5


@pytest.mark.parametrize("name", ["l1", "l2", "wing", "rle"])
def test_every_joint_loss_takes_a_step(name: str) -> None:
    losses = step("data=shapes_persons", *POSE, f"model/joint_loss={name}")
    assert all(np.isfinite(value) for value in losses.values())
    assert losses["joints"] != 0


def test_the_object_s_box_as_frame_takes_a_step() -> None:
    framed, whole = (
        step("data=shapes_persons", *POSE, f"model/frame={name}") for name in ("object_box", "whole_picture")
    )
    assert 0 < framed["joints"] != whole["joints"]


def test_keypoints_of_a_coco_folder_train(tmp_path: Path) -> None:
    run = trained(tmp_path, *persons(tmp_path / "coco", JOINTS), *POSE)
    evaluated(run)
    assert {len(one["keypoints"]) for one in written(run, "detections.json")} == {3 * 5}


def persons(root: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    make_coco(root, classes=("person", "dog"), joints=names, file="person_keypoints")
    return ("data=coco_persons", *folder(root), "data.splits={train: train, val: val, test: val}")


def test_an_lsp_folder_trains(tmp_path: Path) -> None:
    root = make_lsp(tmp_path / "lsp", extended=False)  # in LSP the last joint is hidden, not missing
    run = trained(tmp_path, "data=lsp", "augment=pose", *folder(root), "data.splits={val: val, test: val}", *POSE)
    assert run.status["state"] == "done"


def test_other_joints_are_refused_in_evaluation(tmp_path: Path) -> None:
    run = trained(tmp_path, *persons(tmp_path / "five", JOINTS), *POSE)
    persons(tmp_path / "six", (*JOINTS, "left_knee"))
    with pytest.raises(ValueError, match=r"trained on 5 joints \['left_shoulder', .* the data has 6 \["):
        evaluated(run, f"data.root={tmp_path / 'six'}")


def test_data_without_joints_are_refused_before_training(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    with pytest.raises(ValueError, match=r"names no joints .*data=lsp, data=coco_persons"):
        trained(tmp_path / "logs", "data=voc_single", *POSE, *folder(root))


def test_a_localizer_is_refused_for_joints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task=pose model=deeppose"):
        trained(tmp_path, "data=shapes_persons", *DRAWN, *BOX, "task=pose", "monitor=val/pdj")


def step(*overrides: str) -> dict[str, float]:
    """The losses of a first batch and their total, before a step of gradient descent that every part takes."""
    config = compose("train", [*SMALL, *DRAWN, *overrides])
    data = build(config.data)
    task = build_task(config, data)
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-3)
    losses, total = task.terms(batch)
    total.backward()
    optimizer.step()
    assert [name for name, value in task.model.named_parameters() if value.grad is None] == []
    assert all(value.isfinite().all() for value in task.model.parameters())
    return {name: value.item() for name, value in {**losses, "total": total}.items()}


# --- a run's model with other settings ---

MODEL = {"_target_": "a.Model", "use": None, "size": [64, 64], "box": {"nms": 0.5, "name": "box"}}


def test_nothing_is_changed_without_changes() -> None:
    assert retuned(MODEL, {}) == MODEL


def test_settings_are_changed_at_any_depth_and_the_others_stay() -> None:
    changed = retuned(MODEL, {"use": 1, "box": {"nms": 0.3}})
    assert changed == {"_target_": "a.Model", "use": 1, "size": [64, 64], "box": {"nms": 0.3, "name": "box"}}
    assert MODEL["use"] is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"uze": 1}, r"\+model\.uze: this run's model has no uze; did you mean use or size\?"),
        ({"box": {"nns": 1}}, r"\+model\.box\.nns: this run's model\.box has no nns; did you mean nms"),
        ({"zzz": 1}, r"has no zzz; did you mean _target_ or use or size or box"),
        (
            {"use": {"stages": 1}},
            r"\+model\.use=\{'stages': 1\}: model\.use of this run is None, which has no settings",
        ),
    ],
)
def test_settings_that_a_model_has_not_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        retuned(MODEL, changes)


def test_a_misspelt_setting_is_refused_by_both_commands(pose_run: Run, album: Path) -> None:
    with pytest.raises(ValueError, match=r"\+model\.uses: .* did you mean use"):
        evaluated(pose_run, "+model.uses=1")
    with pytest.raises(ValueError, match=r"\+model\.uses: .* did you mean use"):
        predict(compose("predict", [f"run={pose_run.folder}", f"source={album}", "+model.uses=1"]))


# --- several processes ---

STILL = ("trainer.max_epochs=1", "optimizer.lr=0", "data.batch_size=2", "data.source.count=8")
FIXED = ("model.backbone.freeze_norm=true", "+data.source.size=[64,64]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (("data=shapes_single", *BOX), (*NAMES, "loss/object_class", "loss/object_box")),
        (("data=shapes_persons", *POSE), ("pdj", "pcp", "pckh", "pck", "oks_ap", "oks_ap50", "pdj/hip", "loss/joints")),
    ],
    ids=["boxes", "joints"],
)
def test_two_processes_score_one_set(tmp_path: Path, parts: tuple[str, ...], names: tuple[str, ...]) -> None:
    """A net that learns nothing: its scores are those of one process."""
    runs = []
    for name, ranks in (
        ("one", []),
        ("two", ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]),
    ):
        command = [Path(sys.executable).parent / "quadrat-train", *SMALL, *parts, *STILL, *FIXED, *ranks]
        command.append(f"paths.logs={tmp_path / name}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        (run,) = (tmp_path / name).iterdir()
        runs.append(last(Run(run)))
    for name in names:
        assert runs[1][f"val/{name}"] == pytest.approx(runs[0][f"val/{name}"], abs=1e-5), name
