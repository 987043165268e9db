"""What the tasks of one object and of its joints refuse, and what they show."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quadrat.losses.weighting import WeightedSum
from quadrat.models.base import Model
from quadrat.structures import Detections, Schema, Targets
from quadrat.tasks.localization import LocalizationTask
from quadrat.tasks.pose import PoseTask
from quadrat.tasks.schedules import Steps

JOINTS = ("left shoulder", "right hip", "neck")
POSED = Schema(("person",), joints=JOINTS)
BASE: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.1), "schedule": Steps()}


class Boxes(Model):
    """Sees no joints."""

    loss_names = ("box",)


class Joints(Model):
    loss_names = ("joints",)
    adds = ("keypoints",)


def pose_task(model: Model, schema: Schema = POSED) -> PoseTask:
    return PoseTask(model, schema, weighting=WeightedSum(dict.fromkeys(model.loss_names, 1.0)), **BASE)


def test_data_without_joints_are_refused():
    with pytest.raises(ValueError, match=r"classes \['cat'\] and no joints: .*data=coco_persons"):
        pose_task(Joints(), Schema(("cat",)))


def test_a_model_that_sees_no_joints_is_refused():
    with pytest.raises(ValueError, match=r"Boxes adds \[\] to its detections"):
        pose_task(Boxes())


def test_a_monitor_is_one_of_the_scores():
    pose_task(Joints()).check_monitor("val/pdj")
    with pytest.raises(ValueError, match="monitor=val/pckh is no metric of this task"):
        pose_task(Joints()).check_monitor("val/pckh")  # a neck, but no head's top
    localization = LocalizationTask(Boxes(), POSED, weighting=WeightedSum({"box": 1.0}), **BASE)
    localization.check_monitor("val/top1")
    message = (
        r"val/top1_error is no metric of this task; did you mean val/top1 .*\(a run is chosen by the largest value"
    )
    with pytest.raises(ValueError, match=message):
        localization.check_monitor("val/top1_error")


@pytest.mark.parametrize(("writes", "shown"), [(True, {"pdj"}), (False, set())])
def test_the_curves_are_drawn_on_one_rank(writes: bool, shown: set):
    task = pose_task(Joints())
    task._trainer = SimpleNamespace(is_global_zero=writes)  # pyright: ignore[reportAttributeAccessIssue]
    places = torch.tensor([[[10.0, 10, 2], [20, 30, 2], [15, 5, 1]]])
    target = Targets.make([(0, 0, 40, 40)], [1], (40, 40), "p", keypoints=places)
    found = Detections(target.boxes, torch.ones(1), torch.ones(1).long(), (40, 40), places)
    task.metric.update([found], [target])
    assert set(task.figures()) == shown
