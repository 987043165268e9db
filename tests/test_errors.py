"""What a user can mend is one message that names the thing and the remedy, and never a trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from numpy.random import default_rng

from makers import draw, make_voc, voc_xml, write_picture
from quadrat.configs import compose, hints
from quadrat.evaluate import evaluate
from quadrat.jobs import train
from quadrat.predict import predict
from quadrat.runs import Run

COMMANDS = Path(sys.executable).parent
SMALL = ("model/backbone=tiny", "model.neck.channels=16", "model.layers.hidden=32")
VOC = ("~experiment", "data=voc", "augment=none", "data.batch_size=2", "trainer=smoke", *SMALL)
SHAPES = ("data.source.count=4", "data.batch_size=2", "trainer=smoke", *SMALL)

# Lightning's advice to users of its defaults
pytestmark = pytest.mark.filterwarnings("ignore:::lightning", "ignore::DeprecationWarning", "ignore::FutureWarning")


# --- data that cannot be used: the message of the exception ---


class Damage(NamedTuple):
    """How a folder of pictures is broken, and what the message has to say of it."""

    do: Callable[[Path], object]
    error: type[Exception]
    says: tuple[str, ...]


def annotate(name: str, xmin: int = 3, xmax: int = 20) -> Callable[[Path], object]:
    """Replace the objects of the first training picture."""
    item = {"name": name, "xmin": xmin, "ymin": 3, "xmax": xmax, "ymax": 20}
    return lambda root: (root / "Annotations" / "train_000.xml").write_text(voc_xml((48, 64), [item]))


DAMAGES = {
    "missing folder": Damage(
        lambda root: root.rename(root.with_name("moved")), FileNotFoundError, ("pets", "data.source.root=<folder>")
    ),
    "missing split": Damage(
        lambda root: (root / "ImageSets" / "Main" / "train.txt").unlink(), FileNotFoundError, ("'train'", "['val']")
    ),
    "empty split": Damage(
        lambda root: (root / "ImageSets" / "Main" / "train.txt").write_text("\n"),
        ValueError,
        ("train.txt", "empty", "one picture name a line"),
    ),
    "unknown class": Damage(annotate("bird"), ValueError, ("train_000.xml", "'bird'", "['cat', 'dog']", "correct")),
    "box outside": Damage(
        annotate("cat", xmax=80), ValueError, ("train_000.xml", "object 1", "xmax 80", "64x48", "on_bad_box")
    ),
    "degenerate box": Damage(
        annotate("cat", xmax=3), ValueError, ("train_000.xml", "object 1", "xmax 3", "on_bad_box")
    ),
    "missing picture": Damage(
        lambda root: (root / "JPEGImages" / "train_000.jpg").unlink(), FileNotFoundError, ("train_000", "JPEGImages")
    ),
    "unreadable picture": Damage(
        lambda root: (root / "JPEGImages" / "train_000.jpg").write_bytes(b"no picture"),
        ValueError,
        ("train_000.jpg", "cannot decode"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_train_damaged_data(damage: Damage, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", splits={"train": 4, "val": 2})
    damage.do(root)
    config = compose(
        "train",
        [
            *(*VOC, "data.workers=0", "data.source.classes=[cat,dog]"),
            *(f"paths.logs={tmp_path / 'logs'}", f"data.source.root={root}"),
        ],
    )
    with pytest.raises(damage.error) as caught:
        train(config)
    assert not [part for part in damage.says if part not in str(caught.value)], str(caught.value)
    assert Run(config.paths.run).status["state"] in ("new", "failed")


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        (["loss.weights.rpn_box=-1"], ValueError, "loss.weights.rpn_box=-1"),
        (["+loss.weights.rpn_bx=1"], KeyError, "unknown ['rpn_bx']"),
        (["~loss.weights.rpn_box"], KeyError, "without a weight ['rpn_box']"),
        (["task.metric.preset=coca"], ValueError, "'coca'"),
        (["model.backbone.freeze_stages=9"], ValueError, "freeze_stages is 0..5"),
        (["data.splits.train=trian", "data.source.count={train:4}"], ValueError, "no count for the split trian"),
        (["monitor=val/map50"], ValueError, "val/map50"),
        (["data.limit=0"], ValueError, "data.limit"),
    ],
)
def test_train_bad_value(overrides: list[str], error: type[Exception], says: str, tmp_path: Path) -> None:
    config = compose("train", [*SHAPES, f"paths.logs={tmp_path}", *overrides])
    with pytest.raises(error, match=re.escape(says)):
        train(config)
    assert not Run(config.paths.run).last.exists()


def test_train_failed_run_says_why_and_can_be_repaired(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "pets", splits={"train": 4, "val": 2})
    picture = root / "JPEGImages" / "val_000.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    config = compose("train", [*VOC, f"paths.logs={tmp_path / 'logs'}", f"data.source.root={root}", "data.workers=0"])
    run = Run(config.paths.run)
    with pytest.raises(ValueError, match="val_000"):
        train(config)
    assert run.status["state"] == "failed"
    assert "val_000.jpg" in run.status["reason"]
    picture.write_bytes(whole)
    train(config)
    assert run.status["state"] == "done"
    assert "reason" not in run.status


# --- runs and checkpoints ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a small model."""
    config = compose("train", [*SHAPES, f"paths.logs={tmp_path_factory.mktemp('logs')}"])
    train(config)
    return Run(config.paths.run)


@pytest.mark.parametrize("command", [evaluate, predict])
def test_open_no_run_folder(command: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run folder .*/nowhere.*printed by quadrat-train"):
        command(compose(command.__name__, [f"run={tmp_path / 'nowhere'}"]))
    with pytest.raises(FileNotFoundError, match=r"holds no config\.yaml"):
        command(
            compose(command.__name__, [f"run={tmp_path}"] + ["source=one.jpg"] * (command is predict)),
        )


@pytest.mark.parametrize("command", [evaluate, predict])
def test_checkpoint_of_another_model(command: Callable[..., object], run: Run, tmp_path: Path) -> None:
    checkpoint = torch.load(run.last, weights_only=True)
    key = next(key for key, value in checkpoint["state_dict"].items() if value.ndim == 4)
    checkpoint["state_dict"][key] = checkpoint["state_dict"][key][:, :1]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    write_picture(tmp_path / "one.png", draw(default_rng(0), (64, 64), (0,))[0])
    more = [f"source={tmp_path / 'one.png'}"] if command is predict else []
    config = compose(command.__name__, [f"run={run.folder}", f"checkpoint={tmp_path / 'other.ckpt'}", *more])
    with pytest.raises(ValueError, match=f"other.ckpt is a checkpoint of another model: 1 param.*{key[6:]}"):
        command(config)


def test_checkpoint_missing(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint none\.ckpt; checkpoint=best\|last\|<path>"):
        evaluate(compose("evaluate", [f"run={run.folder}", "checkpoint=none.ckpt"]))


def test_checkpoint_is_no_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"text\.ckpt"):
        evaluate(compose("evaluate", [f"run={run.folder}", f"checkpoint={tmp_path / 'text.ckpt'}"]))


def test_evaluate_root_of_data_without_folder(run: Run) -> None:
    with pytest.raises(ValueError, match="has no folder"):
        evaluate(compose("evaluate", [f"run={run.folder}", "data.root=elsewhere"]))


def test_predict_no_picture(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(FileNotFoundError, match=f"no picture at {tmp_path}; source=.*jpg"):
        predict(compose("predict", [f"run={run.folder}", f"source={tmp_path}"]))


def test_predict_file_that_is_no_picture(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot decode the picture .*notes\.txt"):
        predict(compose("predict", [f"run={run.folder}", f"source={tmp_path / 'notes.txt'}"]))


# --- hints ---


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimizer.lrr=1", "optimizer.lr"),
        ("loss.weights.rpn_bx=2", "loss.weights.rpn_box"),
        ("optimiser=sgd", "optimizer"),
        ("model/backbon=tiny", "model/backbone"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
    ],
)
def test_hints_misspelt(override: str, meant: str) -> None:
    (hint,) = hints("train", [override])
    wrong = override.partition("=")[0]
    assert hint.startswith(f"there is no {wrong}; did you mean {meant}")
    offered = re.findall(r"[\w./]+", hint.partition("did you mean")[2].replace(" or ", " "))
    assert len(set(offered)) == len(offered), "each key once"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.lr=1", "model/backbone=resnet18", "+trainer.profiler=simple"],
        ["~experiment", "data=voc", "data.source.root=pets"],  # a key of the chosen option
        ["optimizer=sgd", "optimizer.momentum=0.8"],
    ],
)
def test_hints_nothing_wrong(overrides: list[str]) -> None:
    assert list(hints("train", overrides)) == []


# --- the printed form ---

PRINTED = {
    "misspelt key": (["train", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean optimizer.lr"]),
    "misspelt loss": (["train", "loss.weights.rpn_bx=2"], ["did you mean loss.weights.rpn_box"]),
    "misspelt option": (["train", "model=fast_rcn"], ["model/fast_rcn", "faster_rcnn_fpn", "faster_rcnn_vgg"]),
    "root not given": (["train", "~experiment", "data=voc"], ["data.source.root"]),
    "run not given": (["evaluate"], ["run"]),
    "source not given": (["predict", "run={run}"], ["source"]),
    "no run": (["evaluate", "run=nowhere"], ["error: there is no run folder", "trace=true"]),
    "damaged picture": (["train", *VOC, "data.source.root={damaged}"], ["error: ", "train_000.jpg", "cannot decode"]),
}


@pytest.mark.parametrize(("command", "says"), PRINTED.values(), ids=PRINTED)
def test_shell_prints_message_without_trace(command: list[str], says: list[str], run: Run, tmp_path: Path) -> None:
    damaged = make_voc(tmp_path / "pets", splits={"train": 4, "val": 2})
    (damaged / "JPEGImages" / "train_000.jpg").write_bytes(b"no picture")
    name, *overrides = (part.format(run=run.folder, damaged=damaged) for part in command)
    done = subprocess.run(
        [COMMANDS / f"quadrat-{name}", *overrides],
        env={**os.environ, "QUADRAT_LOGS": str(tmp_path / "logs"), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert not [part for part in says if part not in done.stderr], done.stderr[-1500:]
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
