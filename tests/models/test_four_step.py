"""Faster R-CNN in four steps: who learns when, and from whose maps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from contracts import SCHEMA, assert_detections, awkward, batch_of, drawn, losses_of
from quadrat.callbacks.four_steps import FourSteps
from quadrat.configs import build, compose
from quadrat.losses.weighting import WeightedSum
from quadrat.models.four_step import FourStep
from quadrat.structures import Batch
from quadrat.tasks.schedules import InTurn, Steps

SMALL = (
    *("~experiment", "model=faster_rcnn_fpn", "model/backbone=tiny", "callbacks=four_steps", "model.neck.channels=32"),
    *("model.layers.hidden=64", "model.proposer.samples=64", "model.sampler.count=48"),
    *("model.proposer.train_limits=[200,100]", "model.proposer.test_limits=[100,50]"),
)
RPN, HEAD = {"rpn_objectness", "rpn_box"}, {"region_class", "region_box"}
LEARNS = {
    1: ({"front", "proposer"}, RPN),
    2: ({"backbone", "neck", "box"}, HEAD),
    3: ({"proposer"}, RPN),
    4: ({"box"}, HEAD),
}


def model(*more: str) -> FourStep:
    config = compose("train", [*SMALL, *more])
    torch.manual_seed(0)
    return build(config.model, schema=SCHEMA)


@pytest.mark.parametrize("number", LEARNS)
def test_each_step_trains_its_parts_by_its_terms(number: int) -> None:
    parts, terms = LEARNS[number]
    four = model().train()
    four.at(number)
    losses = losses_of(four, Batch.collate(drawn()))
    assert {name for name, value in losses.items() if value.requires_grad} == terms
    assert {name for name, value in losses.items() if value != 0} == terms
    torch.stack(list(losses.values())).sum().backward()
    named = list(four.named_parameters())
    assert {name.split(".")[0] for name, own in named if own.requires_grad} == parts
    assert [name for name, own in named if own.requires_grad and own.grad is None] == []
    assert [name for name, own in named if not own.requires_grad and own.grad is not None] == []


@pytest.mark.parametrize("number", LEARNS)
def test_all_terms_and_detections_in_evaluation(number: int) -> None:
    four = model().eval()
    four.at(number)
    for batch in (Batch.collate(drawn()), *awkward(drawn()).values()):
        losses = losses_of(four, batch)
        assert set(losses) == RPN | HEAD
        assert all(value.isfinite() for value in losses.values())
        assert_detections(four, batch)


def test_what_stands_still_keeps_its_statistics() -> None:
    four = model()
    four.at(4)
    four.train()
    before = {name: value.clone() for name, value in four.named_buffers()}
    losses_of(four, Batch.collate(drawn()))
    assert all(torch.equal(value, before[name]) for name, value in four.named_buffers())


def test_proposer_reads_the_shared_trunk_from_step_three_on() -> None:
    """What its own trunk was matters no longer."""
    four, batch = model().eval(), Batch.collate(drawn())
    found = {}
    for number in (2, 3):
        four.at(number)
        first = losses_of(four, batch)["rpn_box"]
        for own in four.front.parameters():
            own.data.mul_(0.5)
        found[number] = losses_of(four, batch)["rpn_box"] == first
    assert found == {2: False, 3: True}


def test_the_step_is_part_of_the_weights() -> None:
    four, again = model(), model()
    four.at(3)
    again.load_state_dict(four.state_dict())
    assert again.number == 3
    assert not any(own.requires_grad for own in again.backbone.parameters())


def test_own_freezing_comes_back_in_step_two() -> None:
    four = model("model.backbone.freeze_stages=2")
    four.at(2)
    learns = [name for name, stage in four.backbone.stages.items() if any(p.requires_grad for p in stage.parameters())]
    assert learns == ["c3", "c4", "c5"]


# The callback


def task(four: Any = None, **more: Any) -> Any:
    turns = {"schedule": InTurn([2, 1, 2, 1], Steps()), "weighting": WeightedSum({"rpn_box": 1.0}), "total_steps": 12}
    return SimpleNamespace(**{"model": four or model(), "device_mesh": None, **turns, **more})


def test_callback_goes_on_to_the_next_step_and_comes_back_by_its_state(capsys: pytest.CaptureFixture[str]) -> None:
    steps, own = FourSteps(), task()

    def trainer(step: int) -> Any:
        more = {"loggers": [], "is_global_zero": True, "strategy": None}
        return SimpleNamespace(current_epoch=0, global_step=step, **more)

    steps.setup(trainer(0), own, "fit")
    numbers = []
    for step in range(12):
        steps.on_train_batch_start(trainer(step), own, None, step)
        numbers.append(own.model.number)
    assert numbers == [1] * 4 + [2] * 2 + [3] * 4 + [4] * 2
    assert capsys.readouterr().out.splitlines()[0] == "step 2 of 4 from optimiser step 4 on"
    other, fresh = FourSteps(), task()
    other.setup(trainer(0), fresh, "fit")
    other.load_state_dict(steps.state_dict())
    assert fresh.model.number == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"schedule": Steps()}, "schedule=four_steps"),
        ({"weighting": torch.nn.Identity()}, "loss/weighting=static"),
        ({"device_mesh": 1}, "trainer=ddp"),
        ({"four": torch.nn.Identity()}, "not Identity: choose a model"),
    ],
)
def test_callback_refuses(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FourSteps().setup(cast(Any, None), task(**more), "fit")


@pytest.mark.parametrize("other", ["faster_rcnn_c4", "rfcn", "fast_rcnn"])
def test_models_joined_in_another_way_are_refused(other: str) -> None:
    config = compose("train", ["~experiment", f"model={other}", "model/backbone=tiny", "callbacks=four_steps"])
    with pytest.raises(ValueError, match="model=faster_rcnn_vgg or faster_rcnn_fpn"):
        build(config.model, schema=SCHEMA)


# The rate


def test_the_rate_begins_anew_in_each_part() -> None:
    turn = InTurn([2, 1], Steps(milestones=[0.5]))
    assert [turn(step, 12) for step in range(12)] == pytest.approx([1] * 4 + [0.1] * 4 + [1] * 2 + [0.1] * 2)


def test_a_batch_without_objects_has_terms() -> None:
    four = model().train()
    losses = losses_of(four, batch_of({}, {}))
    assert all(value.isfinite() for value in losses.values())
