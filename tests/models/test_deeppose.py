"""Joints by regression: the contract, what is masked, the cascade, and data with other joints."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from contracts import assert_asks_nothing, assert_one_object_model, losses_of
from quadrat.backbones.tiny import Tiny
from quadrat.configs import build, compose
from quadrat.data.shapes import Shapes
from quadrat.heads.vector import Vector
from quadrat.losses.joints import Off, ResidualLogLikelihood
from quadrat.losses.regression import l1, l2
from quadrat.models.deeppose import DeepPose, JointHead, assemble, mean_pose
from quadrat.models.look import ObjectBox, WholePicture
from quadrat.models.misses import Misses
from quadrat.structures import Batch, Sample, Schema, Targets

SOURCE = Shapes("pose", count=3, size=(64, 64), objects=(1, 1), empty=0.0, kinds=["person"])
PERSONS = tuple(SOURCE[index] for index in range(3))


def deeppose(schema: Schema = SOURCE.schema, **options) -> DeepPose:
    torch.manual_seed(0)
    parts = {"vector": partial(Vector, bins=2), "joint_loss": Off(l1), "sizes": [(64, 64), (32, 32)], **options}
    return assemble(schema, Tiny(8), **parts)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"sizes": [(64, 64)]}, ["joints"]),
        ({}, ["joints", "joints_2"]),
        ({"sizes": [(64, 64), (32, 32), (32, 32)], "frame": ObjectBox(1.2)}, ["joints", "joints_2", "joints_3"]),
    ],
)
def test_contract(options, names) -> None:
    assert_one_object_model(deeppose(**options), names, PERSONS[:2], drawn_at_random=len(names) > 1)


def test_likelihood_reaches_every_parameter() -> None:
    model = deeppose(joint_loss=ResidualLogLikelihood(couplings=2, width=8))
    torch.stack(list(losses_of(model, Batch.collate(PERSONS)).values())).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def joints_batch(joints: np.ndarray, size: tuple[int, int] = (64, 64)) -> Batch:
    """One person with these joints (K, 3) in a black picture."""
    targets = Targets.make([[0, 0, size[1], size[0]]], [1], size, "one", keypoints=torch.tensor(joints[None]).float())
    return Batch.collate([Sample(np.zeros((*size, 3), np.uint8), targets)])


SMALL = Schema(classes=("person",), joints=("left shoulder", "right hip", "nose"))


def test_loss_by_hand_in_shares_of_the_frame() -> None:
    """Joints 16 pixels right and 8 below the middle of 64x64: 0.25 and 0.125; one of three is not labelled."""
    model = deeppose(SMALL, sizes=[(64, 64)], joint_loss=Off(l2))
    torch.nn.init.zeros_(model.stages[0].out.weight)
    batch = joints_batch(np.array([[48, 40, 2], [48, 40, 1], [0, 0, 0]]))
    assert losses_of(model, batch)["joints"].item() == pytest.approx(2 * (0.25**2 + 0.125**2))


def test_unlabelled_joints_change_nothing() -> None:
    model = deeppose(SMALL).eval()
    first, second = (joints_batch(np.array([[40, 20, 2], [20, 50, 2], [x, x, 0]])) for x in (0, 60))
    assert losses_of(model, first)["joints"] == losses_of(model, second)["joints"]


def test_nobody_with_joints_costs_nothing() -> None:
    losses = losses_of(deeppose(SMALL), joints_batch(np.zeros((3, 3))))
    assert [value.item() for value in losses.values()] == [0, 0]


def test_data_with_other_joints_is_refused() -> None:
    with pytest.raises(ValueError, match="the model has 3 joints, the data 14"):
        losses_of(deeppose(SMALL), Batch.collate(PERSONS))


def test_data_without_joints_is_refused() -> None:
    with pytest.raises(ValueError, match="names no joints"):
        deeppose(Schema(classes=("cat",)))
    with pytest.raises(ValueError, match="no joints to learn from"):
        losses_of(deeppose(), replace(Batch.collate(PERSONS), keypoints=None))


def test_a_cascade_without_a_torso_wants_one() -> None:
    paws = Schema(classes=("cat",), joints=("paw", "tail", "nose"))
    with pytest.raises(ValueError, match=r"model\.torso"):
        deeppose(paws)
    assert deeppose(paws, torso=[1, 2]).torso == (1, 2)
    assert deeppose(paws, sizes=[(64, 64)]).loss_names == ("joints",)


def test_stages_have_weights_of_their_own() -> None:
    model = deeppose()
    first, second = (set(map(id, stage.parameters())) for stage in model.stages)
    assert not first & second
    losses_of(model, Batch.collate(PERSONS))["joints_2"].backward()
    assert all(parameter.grad is None for parameter in model.stages[0].parameters())


class Points(JointHead):
    """A stage that knows where the truth is, and says a share of the way to it."""

    def __init__(self, truth: torch.Tensor, share: float) -> None:
        torch.nn.Module.__init__(self)
        self.truth, self.share, self.seen = truth, share, []

    def forward(self, images, boxes):
        self.seen.append(boxes)
        middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        return self.share * (self.truth - middle[:, :, None]) / size[:, :, None]


@torch.no_grad()
def test_cascade_goes_on_from_what_was_found() -> None:
    """Each stage goes half of what is left; parts are squares of twice the torso round what was found."""
    truth = torch.tensor([[16.0, 16], [46, 56], [50, 10]])  # a torso of 50 pixels
    stages = [Points(truth, 0.5) for _ in range(3)]
    model = DeepPose(stages, Off(l2), 3, (0, 1), context=2.0).eval()
    batch = joints_batch(np.concatenate([truth.numpy(), np.full((3, 1), 2)], axis=1))
    (found,) = model.predict(model.features(batch), batch)
    torch.testing.assert_close(found.keypoints[0, :, :2], 32 + (truth - 32) * 0.875)
    first = 32 + (truth - 32) / 2  # its torso is 25 pixels
    torch.testing.assert_close(stages[1].seen[0][0], torch.cat([first - 25, first + 25], dim=1))
    only = DeepPose(stages, Off(l2), 3, (0, 1), use=1).eval()
    (found,) = only.predict(only.features(batch), batch)
    torch.testing.assert_close(found.keypoints[0, :, :2], first)


def test_training_parts_lie_round_the_truth_as_far_off_as_was_measured() -> None:
    truth = torch.tensor([[16.0, 16], [46, 56], [50, 10]])
    stages = [Points(truth, 0.5), Points(truth, 0.5)]
    model = DeepPose(stages, Off(l2), 3, (0, 1), parts=3).train()
    batch = joints_batch(np.concatenate([truth.numpy(), np.full((3, 1), 2)], axis=1))
    model.loss(model.features(batch), batch)
    errors = (32 - truth) / 2 / 50  # in torsos; one person, so the deviation is 0
    torch.testing.assert_close(model.misses[0].mean(), errors)
    middles = (stages[1].seen[0][0, :, :2] + stages[1].seen[0][0, :, 2:]) / 2
    expected = truth + errors * 50
    torch.testing.assert_close(middles[middles[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_parts_that_are_not_simulated_lie_where_joints_were_found() -> None:
    """With the torso as it was found, too: half as long as the true one."""
    truth = torch.tensor([[16.0, 16], [46, 56], [50, 10]])
    stages = [Points(truth, 0.5), Points(truth, 0.5)]
    model = DeepPose(stages, Off(l2), 3, (0, 1), parts=3, simulate=0.0).train()
    batch = joints_batch(np.concatenate([truth.numpy(), np.full((3, 1), 2)], axis=1))
    model.loss(model.features(batch), batch)
    first = 32 + (truth - 32) / 2
    seen = stages[1].seen[0][0]
    middles = (seen[:, :2] + seen[:, 2:]) / 2
    torch.testing.assert_close(middles[middles[:, 0].argsort()], first[first[:, 0].argsort()])
    torch.testing.assert_close(seen[:, 2:] - seen[:, :2], torch.full((3, 2), 50.0))


def test_only_labelled_joints_are_shown_to_a_further_stage() -> None:
    truth = torch.tensor([[16.0, 16], [46, 56], [50, 10]])
    stages = [Points(truth, 1.0), Points(truth, 1.0)]
    model = DeepPose(stages, Off(l2), 3, (0, 1), parts=2).train()
    batch = joints_batch(np.array([[16, 16, 2], [46, 56, 2], [0, 0, 0]]))
    for _ in range(5):
        model.loss(model.features(batch), batch)
    middles = torch.stack([(boxes[0, :, :2] + boxes[0, :, 2:]) / 2 for boxes in stages[1].seen])
    assert set(map(tuple, middles.flatten(0, 1).tolist())) == {(16, 16), (46, 56)}


def test_misses_are_means_and_deviations() -> None:
    misses = Misses(2)
    errors = torch.tensor([[[1.0, 0], [9, 9]], [[3, 2], [5, 5]]])
    misses.see(errors, torch.tensor([[True, False], [True, False]]))
    assert misses.mean().tolist() == [[2, 1], [0, 0]]
    assert misses.deviation().tolist() == [[1, 1], [0, 0]]


def test_misses_forget() -> None:
    misses = Misses(1)
    for _ in range(300):
        misses.see(torch.full((4, 1, 2), 1.0), torch.ones(4, 1, dtype=torch.bool))
    for _ in range(500):
        misses.see(torch.full((4, 1, 2), -1.0), torch.ones(4, 1, dtype=torch.bool))
    assert misses.mean()[0, 0] < -0.95


def test_evaluation_measures_nothing() -> None:
    model = deeppose().eval()
    losses_of(model, Batch.collate(PERSONS))
    assert not model.misses[0].count.any()


def test_mean_pose_learns_the_mean() -> None:
    model = mean_pose(SMALL, Off(l2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    poses = [np.array([[16, 16, 2], [46, 56, 2], [50, 10, 2]]), np.array([[26, 36, 2], [46, 46, 2], [50, 30, 2]])]
    batches = [joints_batch(pose) for pose in poses]
    for step in range(400):
        optimizer.zero_grad()
        losses_of(model, batches[step % 2])["joints"].backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.2 / (1 + step / 20)
        optimizer.step()
    (found,) = model.predict(model.features(batches[0]), batches[0])
    torch.testing.assert_close(
        found.keypoints[0, :, :2], torch.tensor([[21.0, 26], [46, 51], [50, 20]]), atol=0.5, rtol=0
    )


def test_frames() -> None:
    truth = Targets.make([[10, 20, 30, 60], [0, 0, 5, 5]], [1, 1], (64, 48), "one")
    empty = Targets.make([], [], (32, 32), "none")
    batch = Batch.collate([Sample(np.zeros((*t.size, 3), np.uint8), t) for t in (truth, empty)])
    assert WholePicture()(batch, batch.valid).tolist() == [[0, 0, 48, 64], [0, 0, 32, 32]]
    assert ObjectBox(1.5)(batch, batch.valid).tolist() == [[5, 10, 35, 64], [0, 0, 32, 32]]
    small = torch.tensor([[False, True], [False, False]])
    assert ObjectBox(1.0)(batch, small)[0].tolist() == [0, 0, 5, 5]
    with pytest.raises(ValueError, match="enlarge=0"):
        ObjectBox(0)


def test_paper_preset_is_the_papers() -> None:
    with torch.device("meta"):
        model = build(compose("train", ["~experiment", "model=deeppose_paper"]).model, schema=SOURCE.schema)
    assert model.loss_names == ("joints", "joints_2", "joints_3")
    assert [stage.look.size for stage in model.stages] == [(220, 220)] * 3
    assert model.stages[0].out.in_features == 4096
    assert model.stages[0].out.out_features == 28
    assert model.context == 2.0
    count = sum(p.numel() for p in model.stages[0].parameters())
    assert 40e6 < count < 60e6  # "about 40 M" in the paper, whose convolutions are in two groups


@pytest.mark.parametrize("options", [{}, {"joint_loss": ResidualLogLikelihood(), "frame": ObjectBox()}])
def test_a_step_asks_the_device_nothing(options) -> None:
    assert_asks_nothing(deeppose(**options).train(), Batch.collate(PERSONS))


@pytest.mark.parametrize(
    ("options", "message"), [({"parts": 15}, "1..14 joints"), ({"simulate": 1.5}, "a share"), ({"use": 3}, "2 stages")]
)
def test_settings_that_cannot_be_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        deeppose(**options)


def test_a_third_stage_measures_only_what_the_second_has_looked_at() -> None:
    """Stage 1 finds the middle, stage 2 everything: nothing is left to be off by, though it sees one joint at a time."""
    truth = torch.tensor([[16.0, 16], [46, 56], [50, 10]])
    stages = [Points(truth, 0.0), Points(truth, 1.0), Points(truth, 1.0)]
    model = DeepPose(stages, Off(l2), 3, (0, 1), parts=1).train()
    batch = joints_batch(np.concatenate([truth.numpy(), np.full((3, 1), 2)], axis=1))
    for _ in range(20):
        model.loss(model.features(batch), batch)
    assert model.misses[0].deviation().max() + model.misses[0].mean().abs().max() > 0.2
    torch.testing.assert_close(model.misses[1].mean(), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.misses[1].deviation(), torch.zeros(3, 2), atol=1e-3, rtol=0)


def test_a_stage_may_be_added_to_weights_of_those_before() -> None:
    one, two = deeppose(sizes=[(64, 64)]).state_dict(), deeppose()
    lacking = [name for name in two.state_dict() if name not in one]
    assert lacking
    assert all(name.startswith(two.staged) for name in lacking)
    assert not [name for name in one if name not in two.state_dict()]


def test_frame_and_truth_are_of_the_same_person() -> None:
    """The larger person has no labelled joint."""
    joints = torch.zeros(2, 3, 3)
    joints[1] = torch.tensor([50.0, 50, 2])
    targets = Targets.make([[0, 0, 40, 40], [44, 44, 60, 60]], [1, 1], (64, 64), "two", keypoints=joints)
    batch = Batch.collate([Sample(np.zeros((64, 64, 3), np.uint8), targets)])
    model = deeppose(SMALL, frame=ObjectBox(1.0)).eval()
    assert model.features(batch)["frames"].tolist() == [[44, 44, 60, 60]]
    assert model.truth(batch)[0][0, 0].tolist() == [50, 50]


def test_a_torso_of_joints_that_are_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.torso=\[0, 9\]"):
        deeppose(SMALL, torso=[0, 9])
    with pytest.raises(ValueError, match="a height and a width for each stage"):
        deeppose(SMALL, sizes=[64, 64])
