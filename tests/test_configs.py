"""Every file of conf/ composes, names agree across groups, and the id of a run follows what it computes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from quadrat.configs import build, compose, conf_dir, folder_name, run_id
from quadrat.data.lsp import JOINTS
from quadrat.structures import Schema

COMMANDS = Path(sys.executable).parent
CONF = conf_dir()
OPTIONS = [
    str(file.relative_to(CONF).with_suffix(""))
    for file in sorted(CONF.rglob("*/*.yaml"))
    if file.relative_to(CONF).parts[0] not in ("experiment", "hydra", "bench")
    and file.parent not in (CONF / "model", CONF / "loss")  # composed below, a model with its loss
]


OWNERS = {
    **dict.fromkeys(("model/neck/upsample", "model/criteria"), "segnet_basic"),
    **dict.fromkeys(("model/vector", "model/box_loss"), "localizer"),
    **dict.fromkeys(("model/joint_loss", "model/frame"), "deeppose"),
    **dict.fromkeys(("model/svm", "model/ridge"), "rcnn"),
}
"""A model that has the groups which the default one has not."""


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def output(*command: str | Path, **more: str) -> str:
    """What a command prints; CalledProcessError if it fails."""
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=100, env={**os.environ, **more}
    ).stdout


# --- composing ---


@pytest.mark.parametrize("name", names("experiment"))
def test_compose_experiment_resolves(name: str) -> None:
    config = OmegaConf.to_container(compose("train", [f"experiment={name}"]), resolve=True)
    assert isinstance(config, dict)
    assert not OmegaConf.missing_keys(OmegaConf.create(config))


@pytest.mark.parametrize("option", OPTIONS)
def test_compose_option_resolves(option: str) -> None:
    group, _, name = option.rpartition("/")
    model = [f"model={OWNERS[group]}"] if group in OWNERS else []
    config = OmegaConf.to_container(compose("train", ["~experiment", *model, f"{group}={name}"]), resolve=True)
    assert isinstance(config, dict)


@pytest.mark.parametrize("name", names("bench"))
def test_compose_bench(name: str) -> None:
    config = compose("bench", [f"bench={name}", "paths.run=here", "output=there"])
    assert isinstance(OmegaConf.to_container(config.bench, resolve=True), dict)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_compose_command(command: str) -> None:
    assert "run" in OmegaConf.missing_keys(compose(command))


def test_compose_without_experiment_as_documented() -> None:
    """The words that the help, the README and the comments of conf/data give for one's own data."""
    overrides = ["experiment=none", "data=voc", "data.source.root=pets"]
    assert compose("train", overrides).data.source.root == "pets"


@pytest.mark.parametrize("model", names("model"))
def test_loss_file_names_equal_model_terms(model: str) -> None:
    config = compose("train", ["~experiment", f"model={model}"])
    with torch.device("meta"):  # no memory, no random numbers: only the names matter
        schema = Schema(classes=("cat", "dog", "cow"), joints=JOINTS)
        built = build(config.model, schema=schema)
    assert sorted(config.loss.weights) == sorted(built.loss_names)


def test_loss_follows_model_unless_chosen() -> None:
    follows = compose("train", ["~experiment", "model=faster_rcnn_vgg"])
    chosen = compose("train", ["~experiment", "model=faster_rcnn_vgg", "loss=faster_rcnn_fpn"])
    assert (follows.loss.weights.rpn_box, chosen.loss.weights.rpn_box) == (10, 1)


# --- the id of a run ---

SAME = {
    "nothing": [],
    "an integer for a float": ["loss.weights.rpn_box=1"],
    "duration": ["trainer.max_epochs=99"],
    "logger": ["logger=wandb"],
    "place of the logs": ["paths.logs=elsewhere"],
    "place of the data": ["paths.data=elsewhere"],
    "name": ["name=other"],
}
PROPOSALS = ["model=fast_rcnn", "experiment=none"]
OTHER = {
    "loss weight": ["loss.weights.rpn_box=2"],
    "seed": ["seed=1"],
    "learning rate": ["optimizer.lr=0.5"],
    "averaged weights": ["callbacks=ema"],
    "precision": ["trainer.precision=bf16-mixed"],
    "part": ["model/pool=roi_pool"],
    "pictures": ["data.batch_size=3"],
}


@pytest.mark.parametrize("overrides", SAME.values(), ids=SAME)
def test_run_id_same_computation(overrides: list[str]) -> None:
    assert run_id(compose("train", overrides)) == run_id(compose("train"))


@pytest.mark.parametrize("overrides", OTHER.values(), ids=OTHER)
def test_run_id_other_computation(overrides: list[str]) -> None:
    assert run_id(compose("train", overrides)) != run_id(compose("train"))


def test_run_id_other_weight_other_id_each() -> None:
    ids = {run_id(compose("train", [f"loss.weights.rpn_box={weight}"])) for weight in (0, 0.1, 1, 10)}
    assert len(ids) == 4


def test_run_id_of_proposals_is_of_what_is_found() -> None:
    ids = {
        what: run_id(compose("train", [*PROPOSALS, *more]))
        for what, more in {
            "as they are": [],
            "by more processes": ["data.proposals.workers=3"],
            "elsewhere": ["paths.proposals=there"],
            "others": ["data.proposals.finder.mode=quality"],
        }.items()
    }
    assert ids["as they are"] == ids["by more processes"] == ids["elsewhere"] != ids["others"]


def test_run_id_moved_data_same_computation() -> None:
    """A data set in another place is the same data set: a run goes on after its data was moved."""
    here, there = (
        compose("train", ["experiment=faster_rcnn_raccoon", f"paths.data={place}"]) for place in ("here", "there")
    )
    assert run_id(here) == run_id(there)


def test_folder_name_is_name_and_id() -> None:
    config = compose("train", ["name=trial"])
    assert folder_name(config) == f"trial-{run_id(config)}"
    assert config.paths.run.endswith(f"/trial-{run_id(config)}")


# --- the console script and the wheel ---


def test_help_is_quick_and_light() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", COMMANDS / "quadrat-train", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "torchvision", "cv2"}
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 2
    assert "quadrat-train -m loss.weights.rpn_box" in done.stdout


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_help_names_command(command: str) -> None:
    assert f"quadrat-{command}" in output(COMMANDS / f"quadrat-{command}", "--help")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return next(folder.glob("*.whl"))


def test_wheel_contains_conf(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("quadrat/conf/")}
    assert packed == {f"quadrat/conf/{file.relative_to(CONF)}" for file in CONF.rglob("*.yaml")}


def test_wheel_composes_like_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    show = ("-m", "quadrat.train", "--cfg", "job", "--resolve")
    unpacked = output(sys.executable, *show, PYTHONPATH=str(tmp_path))
    assert unpacked == output(sys.executable, *show)
    where = output(
        sys.executable, "-c", "from quadrat.configs import conf_dir; print(conf_dir())", PYTHONPATH=str(tmp_path)
    )
    assert Path(where.strip()) == tmp_path / "quadrat" / "conf"
