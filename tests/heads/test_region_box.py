"""The box head's losses against numbers worked out by hand, and which of its boxes become detections."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from contracts import batch_of
from quadrat.backbones.base import Features
from quadrat.heads.linear import TwoLayer
from quadrat.heads.region_box import RegionBox
from quadrat.heads.region_pool import RoIAlign, RoIPool
from quadrat.heads.regions import TrainingRegions
from quadrat.ops.boxes import encode
from quadrat.structures import Batch, Proposals

CODER = (10.0, 10.0, 5.0, 5.0)
REGION = [0.0, 0, 10, 10]
OFF = [1.0, 0, 11, 10]
"""One pixel right of the region: target dx 1 / 10 times 10 = 1, the others 0."""


class OneMap(Features):
    def __init__(self) -> None:
        super().__init__()
        self.out_channels, self.strides = {"p": 4}, {"p": 8}


MAPS = {"p": torch.zeros(1, 4, 8, 8)}


def head(classes: int = 2, **options: Any) -> RegionBox:
    return RegionBox(RoIAlign(OneMap(), bins=2), partial(TwoLayer, hidden=8), classes, **options)


def says(part: RegionBox, logits: Tensor, deltas: Tensor) -> RegionBox:
    """The same head, of which these are the outputs."""
    part.forward = lambda maps, boxes: (logits, deltas)
    return part


def regions(
    labels: list[list[int]], boxes: list[float] = REGION, *, valid: list[list[bool]] | None = None
) -> TrainingRegions:
    kinds = torch.tensor(labels)
    real = torch.tensor(valid) if valid else torch.ones_like(kinds, dtype=torch.bool)
    places = torch.tensor(boxes).expand(*kinds.shape, 4) * real[..., None]
    return TrainingRegions(places, kinds, torch.zeros_like(kinds), (kinds > 0) & real, real)


# Outputs


@pytest.mark.parametrize("pool", [RoIAlign, RoIPool])
@pytest.mark.parametrize(("shared", "boxes"), [(False, 3), (True, 1)])
def test_forward_shapes(pool: Any, shared: bool, boxes: int) -> None:
    part = RegionBox(pool(OneMap()), TwoLayer, 2, shared_box=shared)
    logits, deltas = part({"p": torch.rand(2, 4, 8, 8)}, torch.tensor(REGION).expand(2, 5, 4))
    assert logits.shape == (2, 5, 3)
    assert deltas.shape == (2, 5, boxes, 4)


def test_forward_keeps_regions_and_images_in_order() -> None:
    """The classifier sees the brightness of the map below the region."""
    part = head()
    for parameter in part.parameters():
        parameter.data.zero_()
    part.layers.first.weight.data[0] = 1 / 16  # pyright: ignore[reportIndexIssue]
    part.layers.second.weight.data[0, 0] = 1.0  # pyright: ignore[reportIndexIssue]
    part.classes.weight.data[1, 0] = 1.0
    bright = torch.arange(4.0).reshape(2, 1, 1, 2).repeat_interleave(4, 3).expand(2, 4, 8, 8)  # halves of two images
    left, right = [4.0, 4, 20, 20], [40.0, 4, 56, 20]
    logits, _ = part({"p": bright}, torch.tensor([[left, right], [right, left]]))
    assert logits[..., 1].tolist() == [[0.0, 1.0], [3.0, 2.0]]


# Losses


def test_losses_without_regions() -> None:
    part, batch = head(), batch_of({})
    losses = part.loss(MAPS, regions([[0, 0]], valid=[[False, False]]), batch)
    assert {name: value.item() for name, value in losses.items()} == {"region_class": 0.0, "region_box": 0.0}


def test_class_loss_is_the_mean_over_valid_regions_of_all_images() -> None:
    """Logits (0, 1, 2) for all: labels 2, 0 and 1 count, the padding does not."""
    part, batch = head(), batch_of({"boxes": [OFF]}, {"boxes": [OFF]})
    logits = torch.tensor([0.0, 1, 2]).expand(2, 2, 3)
    says(part, logits, torch.zeros(2, 2, 3, 4))
    total = math.log(1 + math.exp(1) + math.exp(2))
    found = regions([[2, 0], [1, 0]], valid=[[True, True], [True, False]])
    loss = part.loss(MAPS, found, batch)["region_class"].item()
    assert loss == pytest.approx(((total - 2) + total + (total - 1)) / 3)


@pytest.mark.parametrize(("beta", "term"), [(1.0, 0.5 * 0.6**2), (1 / 9, 0.6 - 1 / 18), (0.0, 0.6)])
def test_box_loss_reads_the_true_class_and_counts_all_regions(beta: float, term: float) -> None:
    """One of three valid regions is positive; of its three boxes only that of class 2 is asked: dx 0.4, wanted 1."""
    part, batch = head(box_beta=beta), batch_of({"boxes": [OFF]}, {})
    deltas = torch.full((2, 2, 3, 4), 77.0)
    deltas[0, 0, 2] = torch.tensor([0.4, 0, 0, 0])
    says(part, torch.zeros(2, 2, 3), deltas)
    found = regions([[2, 0], [0, 0]], valid=[[True, True], [True, False]])
    assert part.loss(MAPS, found, batch)["region_box"].item() == pytest.approx(term / 3)


def test_box_loss_trains_only_the_box_of_the_true_class() -> None:
    part, batch = head(), batch_of({"boxes": [OFF]})
    deltas = torch.zeros(1, 2, 3, 4, requires_grad=True)
    says(part, torch.zeros(1, 2, 3), deltas)
    part.loss(MAPS, regions([[2, 0]]), batch)["region_box"].backward()
    assert deltas.grad is not None
    assert deltas.grad.nonzero().tolist() == [[0, 0, 2, 0]]


def test_box_loss_of_a_shared_box() -> None:
    part, batch = head(shared_box=True, box_beta=0.0), batch_of({"boxes": [OFF]})
    says(part, torch.zeros(1, 2, 3), torch.full((1, 2, 1, 4), 0.25))
    assert part.loss(MAPS, regions([[2, 0]]), batch)["region_box"].item() == pytest.approx((0.75 + 3 * 0.25) / 2)


def test_box_loss_scales_with_the_coder() -> None:
    """An object twice as wide around the same middle: log 2 times the third number."""
    batch = batch_of({"boxes": [[5, 10, 25, 20]]})
    part = says(head(coder=(1, 1, 3, 1), box_beta=0.0), torch.zeros(1, 1, 3), torch.zeros(1, 1, 3, 4))
    loss = part.loss(MAPS, regions([[1]], [10.0, 10, 20, 20]), batch)["region_box"].item()
    assert loss == pytest.approx(3 * math.log(2))


def test_losses_are_finite_next_to_padding() -> None:
    """A region that is padding is an empty box, whose offsets would be infinite; no NaN in the gradient either."""
    part, batch = head(), batch_of({"boxes": [OFF]})
    deltas = torch.zeros(1, 2, 3, 4, requires_grad=True)
    says(part, torch.zeros(1, 2, 3), deltas)
    loss = part.loss(MAPS, regions([[1, 0]], valid=[[True, False]]), batch)["region_box"]
    loss.backward()
    assert loss.isfinite()
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()


# Detections


LEFT, RIGHT, NEAR_LEFT = [0.0, 0, 20, 20], [40.0, 40, 60, 60], [2.0, 0, 22, 20]
"""``NEAR_LEFT`` has IoU 360 / 440 = 0.82 with ``LEFT``."""


def detect(
    boxes: list[list[float]], probabilities: list[list[float]], batch: Batch | None = None, **options: Any
) -> tuple[list[list[float]], list[float], list[int]]:
    """What the head finds in the first image with these class probabilities (background first), nothing moved."""
    part = head(len(probabilities[0]) - 1, **options)
    logits = torch.tensor([probabilities]).log()
    says(part, logits, torch.zeros(1, len(boxes), part.num_classes + 1, 4))
    found = part.predict(MAPS, _proposals(boxes), batch or batch_of({}))[0]
    return found.boxes.tolist(), [round(score, 4) for score in found.scores.tolist()], found.labels.tolist()


def _proposals(boxes: list[list[float]]) -> Proposals:
    places = torch.tensor([boxes])
    return Proposals(places, torch.ones(places.shape[:2]), torch.ones(places.shape[:2], dtype=torch.bool))


def test_predict_nothing_above_the_threshold() -> None:
    assert detect([LEFT], [[0.94, 0.03, 0.03]]) == ([], [], [])


def test_predict_every_class_of_every_proposal_above_the_threshold() -> None:
    found = detect([LEFT, RIGHT], [[0.3, 0.66, 0.04], [0.4, 0.1, 0.5]])
    assert found == ([LEFT, RIGHT, RIGHT], [0.66, 0.5, 0.1], [1, 2, 1])
    assert detect([LEFT, RIGHT], [[0.3, 0.66, 0.04], [0.4, 0.1, 0.5]], score_threshold=0.6)[2] == [1]


def test_predict_suppresses_within_a_class_only() -> None:
    found = detect([LEFT, NEAR_LEFT], [[0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
    assert found == ([LEFT, NEAR_LEFT], [0.8, 0.6], [1, 2])
    assert len(detect([LEFT, NEAR_LEFT], [[0.1, 0.8, 0.1], [0.1, 0.3, 0.6]], nms=0.9)[2]) == 4


def test_predict_at_most_so_many() -> None:
    boxes = [[float(x), float(y), x + 2.0, y + 2.0] for x in range(0, 44, 2) for y in range(0, 44, 2)]
    probabilities = [[0.9 - i / 1000, 0.1 + i / 1000, 0.0] for i in range(len(boxes))]
    found = detect(boxes, probabilities)
    assert len(found[0]) == 100
    assert found[0] == boxes[:-101:-1]
    assert len(detect(boxes, probabilities, most_detections=7)[0]) == 7


def test_predict_takes_the_box_of_each_class() -> None:
    part = head(2)
    deltas = torch.zeros(1, 1, 3, 4)
    deltas[0, 0, 1] = encode(torch.tensor([0.0, 0, 30, 20]), torch.tensor(LEFT), CODER)
    deltas[0, 0, 2] = encode(torch.tensor([10.0, 4, 24, 20]), torch.tensor(LEFT), CODER)
    says(part, torch.tensor([[[0.1, 0.6, 0.3]]]).log(), deltas)
    found = part.predict(MAPS, _proposals([LEFT]), batch_of({}))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0, 30, 20], [10, 4, 24, 20]]))


def test_predict_with_a_shared_box() -> None:
    part = head(2, shared_box=True)
    deltas = encode(torch.tensor([10.0, 4, 24, 20]), torch.tensor(LEFT), CODER).reshape(1, 1, 1, 4)
    says(part, torch.tensor([[[0.1, 0.6, 0.3]]]).log(), deltas)
    found = part.predict(MAPS, _proposals([LEFT]), batch_of({}))[0]
    torch.testing.assert_close(found.boxes, torch.tensor([[10.0, 4, 24, 20]] * 2))
    assert found.labels.tolist() == [1, 2]


def test_predict_cuts_to_the_picture_and_drops_what_is_outside() -> None:
    batch = batch_of({}, size=(50, 30))  # padded to 64 x 32
    found = detect([[-5.0, 10, 35, 60], [31.0, 10, 32, 20]], [[0.1, 0.9, 0.0]] * 2, batch)
    assert found == ([[0.0, 10, 30, 50]], [0.9], [1])


def test_predict_passes_over_padding_of_proposals() -> None:
    part = says(head(1), torch.tensor([[[0.1, 0.9], [0.1, 0.9]]]).log(), torch.zeros(1, 2, 2, 4))
    proposals = _proposals([LEFT, RIGHT])
    proposals.valid[0, 1] = False
    assert part.predict(MAPS, proposals, batch_of({}))[0].boxes.tolist() == [LEFT]


def test_predict_keeps_images_apart() -> None:
    """The second image finds more than the first, the third nothing."""
    part = head(1)
    probabilities = torch.tensor([[[0.3, 0.7], [0.99, 0.01]], [[0.2, 0.8], [0.1, 0.9]], [[0.99, 0.01]] * 2])
    says(part, probabilities.log(), torch.zeros(3, 2, 2, 4))
    places = torch.tensor([LEFT, RIGHT]).expand(3, 2, 4)
    batch = batch_of({}, {}, {})
    found = part.predict(MAPS, Proposals(places, torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool)), batch)
    assert [detections.boxes.tolist() for detections in found] == [[LEFT], [RIGHT, LEFT], []]
