"""The proposer's losses against numbers worked out by hand, and its proposals from a field that is right."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from contracts import batch_of
from quadrat.backbones.base import Features
from quadrat.ops.anchors import pyramid_anchors
from quadrat.ops.boxes import encode
from quadrat.proposers.rpn import CODER, RPN, Judged, Limits
from quadrat.structures import Batch

OFF = [10.0, 8, 26, 24]
"""Two pixels right of the 16 x 16 anchor of cell (1, 1): IoU 224 / 288, target dx 2 / 16; every other anchor is far off."""


class Maps(Features):
    """A neck that promises maps of these strides."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.strides = {f"p{stride}": stride for stride in strides}
        self.out_channels = dict.fromkeys(self.strides, 8)


def rpn(*strides: int, scales: tuple[float, ...] = (1, 2), **options: Any) -> RPN:
    """Square anchors of these scales; 2 a cell, 16 and 32 pixels wide, unless told otherwise; everything is sampled."""
    upstream = Maps(*(strides or (16,)))
    options = {"samples": 10_000, "positive_fraction": 1.0} | options
    return RPN(upstream, partial(pyramid_anchors, scales=scales, ratios=(1.0,)), **options)


def judged(part: RPN, batch: Batch) -> Judged:
    """What the part says with all weights 0: logit 0 and no move."""
    for parameter in part.parameters():
        parameter.data.zero_()
    height, width = batch.images.shape[2:]
    maps = {
        name: torch.zeros(len(batch), 8, -(-height // stride), -(-width // stride))
        for name, stride in zip(part.names, part.strides, strict=True)
    }
    return part(maps)


def anchor(said: Judged, box: list[float]) -> int:
    return int((said.anchors == torch.tensor(box)).all(1).nonzero())


def test_anchors_and_outputs_are_in_one_order() -> None:
    """Channel a of cell (y, x) judges the a-th anchor there."""
    part, batch = rpn(), batch_of({}, size=(32, 64))
    part.conv.weight.data.zero_()
    part.conv.weight.data[0, 0, 1, 1] = 1.0
    part.objectness.weight.data.zero_()
    part.objectness.weight.data[1, 0] = 1.0
    part.box.weight.data.zero_()
    part.box.weight.data[4 * 1 + 2, 0] = 1.0  # dw of the second anchor
    maps = torch.zeros(1, 8, 2, 4)
    maps[0, 0, 1, 2] = 5.0
    said = part({"p16": maps})
    assert said.counts == [2 * 4 * 2]
    assert said.objectness.nonzero().tolist() == [[0, anchor(said, [16, 0, 48, 32])]]  # 32 wide, on (x, y) = (32, 16)
    assert said.deltas.nonzero().tolist() == [[0, anchor(said, [16, 0, 48, 32]), 2]]
    assert len(batch) == 1


def test_levels_follow_each_other() -> None:
    part = rpn(16, 32, scales=(1,))
    said = judged(part, batch_of({}, size=(64, 96)))
    assert said.counts == [4 * 6, 2 * 3]
    sides = said.anchors[:, 2] - said.anchors[:, 0]
    assert sides.tolist() == [16.0] * 24 + [32.0] * 6


# Losses


def test_objectness_without_objects() -> None:
    """Every anchor is background: ln 2 at logit 0, and no box loss."""
    part, batch = rpn(), batch_of({})
    losses = part.loss(judged(part, batch), batch)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2))
    assert losses["rpn_box"].item() == 0.0


def test_objectness_is_the_mean_over_all_samples_of_all_images() -> None:
    """32 anchors of an image with one positive of logit 2, and 32 of one without objects."""
    part, batch = rpn(), batch_of({"boxes": [OFF]}, {})
    said = judged(part, batch)
    said.objectness.data[0, anchor(said, [8, 8, 24, 24])] = 2.0
    expected = (math.log(1 + math.exp(-2)) + 63 * math.log(2)) / 64
    assert part.loss(said, batch)["rpn_objectness"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("normaliser", "beta", "term", "denominator"),
    [
        ("samples", 1 / 9, 2 / 16 - 1 / 18, 64),
        ("samples", 0.0, 2 / 16, 64),
        ("samples", 1.0, 0.5 * (2 / 16) ** 2, 64),
        ("locations", 1.0, 0.5 * (2 / 16) ** 2, 2 * 4 * 4),  # cells, not anchors, of both images
    ],
)
def test_box_loss_of_one_anchor(normaliser: Any, beta: float, term: float, denominator: int) -> None:
    part = rpn(box_normaliser=normaliser, box_beta=beta)
    batch = batch_of({"boxes": [OFF]}, {})
    assert part.loss(judged(part, batch), batch)["rpn_box"].item() == pytest.approx(term / denominator, rel=1e-5)


def test_box_loss_adds_the_four_coordinates_and_skips_negatives() -> None:
    """The anchor that is positive is right in x and 0.5, 1 and 2 off in the others; what negatives say does not count."""
    part = rpn(box_beta=0.0)
    batch = batch_of({"boxes": [OFF]})
    said = judged(part, batch)
    said.deltas.data.fill_(100.0)
    said.deltas.data[0, anchor(said, [8, 8, 24, 24])] = torch.tensor([2 / 16, 0.5, -1.0, 2.0])
    assert part.loss(said, batch)["rpn_box"].item() == pytest.approx(3.5 / 32)


def test_samples_divide_what_was_drawn_not_what_was_wanted() -> None:
    """8 of 32 anchors are drawn, the positive among them."""
    part = rpn(samples=8, box_beta=0.0)
    batch = batch_of({"boxes": [OFF]})
    assert part.loss(judged(part, batch), batch)["rpn_box"].item() == pytest.approx((2 / 16) / 8)


def test_anchors_between_the_thresholds_are_in_no_denominator() -> None:
    """An object 4 pixels right of its best anchor, 192 / 320; the right neighbour has 64 / 448, between 0.1 and 0.7."""
    part = rpn(scales=(1,), box_beta=0.0, negative_iou=0.1)
    batch = batch_of({"boxes": [[12, 8, 28, 24]]})
    said = judged(part, batch)
    said.objectness.data[0, anchor(said, [24, 8, 40, 24])] = 50.0
    losses = part.loss(said, batch)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2))
    assert losses["rpn_box"].item() == pytest.approx((4 / 16) / 15)


def test_best_anchor_of_an_object_is_positive_below_the_threshold() -> None:
    """A 24 x 24 object: 256 / 576 = 0.44 with the best of its anchors."""
    part, batch = rpn(box_beta=0.0, scales=(1,)), batch_of({"boxes": [[4, 4, 28, 28]]})
    assert part.loss(judged(part, batch), batch)["rpn_box"].item() == pytest.approx(2 * math.log(24 / 16) / 16)


def test_objects_to_ignore_teach_nothing() -> None:
    """The anchors inside them are not background either: all of [8, 8, 24, 24], no other."""
    part = rpn()
    batch = batch_of({"boxes": [[8, 8, 24, 24]], "ignore": [True]})
    said = judged(part, batch)
    said.objectness.data[0, anchor(said, [8, 8, 24, 24])] = 50.0  # would cost 50 as background
    losses = part.loss(said, batch)
    assert losses["rpn_objectness"].item() == pytest.approx(math.log(2))
    assert losses["rpn_box"].item() == 0.0


def test_inside_only_trains_what_lies_inside() -> None:
    """Of 16 anchors of 16 pixels on the corners of cells 9 are inside; the others may say what they like."""
    part = rpn(scales=(1,), inside_only=True)
    batch = batch_of({})
    said = judged(part, batch)
    crossing = (said.anchors < 0).any(1)
    assert crossing.sum() == 16 - 9
    said.objectness.data[0, crossing] = 50.0
    assert part.loss(said, batch)["rpn_objectness"].item() == pytest.approx(math.log(2))


def test_inside_only_looks_at_the_picture_not_at_its_padding() -> None:
    part = rpn(scales=(1,), inside_only=True)
    batch = batch_of({}, size=(64, 40))  # padded to 64 x 64
    said = judged(part, batch)
    said.objectness.data[0, said.anchors[:, 2] > 40] = 50.0
    assert part.loss(said, batch)["rpn_objectness"].item() == pytest.approx(math.log(2))


def test_inside_only_gives_every_object_its_best_anchor_inside() -> None:
    """The released code drops the anchors across the border before it looks for the best one of an object."""
    part, batch = rpn(scales=(1,), inside_only=True, box_beta=0.0), batch_of({"boxes": [[0, 8, 14, 24]]})
    # [-8, 8, 8, 24] crosses the border: 128 / 352; of those inside [8, 8, 24, 24] is the best: 96 / 384, 9 off in x
    loss = part.loss(judged(part, batch), batch)["rpn_box"].item()
    assert loss == pytest.approx((9 / 16 + math.log(16 / 14)) / 9, rel=1e-5)


def test_inside_only_without_any_anchor_inside() -> None:
    part, batch = rpn(scales=(8,), inside_only=True), batch_of({"boxes": [[0, 0, 64, 64]]})
    assert [value.item() for value in part.loss(judged(part, batch), batch).values()] == [0.0, 0.0]


def test_unknown_normaliser_is_refused() -> None:
    with pytest.raises(ValueError, match="box_normaliser is samples or locations, got anchors"):
        rpn(box_normaliser="anchors")


# Proposals


def perfect(part: RPN, batch: Batch, boxes: list[list[list[float]]]) -> Judged:
    """The first anchors of each image are sure of these boxes, the first most; the others are sure of nothing."""
    said = judged(part, batch)
    said.objectness.data.fill_(-10.0)
    for image, truth in enumerate(boxes):
        for row, box in enumerate(truth):
            at = 5 + 2 * row
            said.objectness.data[image, at] = 10.0 - row
            said.deltas.data[image, at] = encode(torch.tensor(box), said.anchors[at], CODER)
    return said


def test_a_perfect_field_proposes_the_truth() -> None:
    part = rpn()
    boxes = [[[4.0, 6, 30, 41], [20.0, 30, 60, 50]], [[0.0, 0, 64, 64]]]
    batch = batch_of({}, {})
    proposals = part.propose(perfect(part, batch, boxes), batch, Limits(100, 10))
    assert proposals.boxes.shape == (2, 10, 4)
    torch.testing.assert_close(proposals.boxes[0, :2], torch.tensor(boxes[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(proposals.boxes[1, :1], torch.tensor(boxes[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(proposals.scores[0, :2], torch.tensor([10.0, 9.0]).sigmoid())
    assert proposals.scores[0, 2] < 1e-4


def test_proposals_are_cut_to_the_picture() -> None:
    part, batch = rpn(), batch_of({}, size=(48, 40))  # padded to 64 x 64
    proposals = part.propose(perfect(part, batch, [[[-20.0, 10, 100, 90]]]), batch, Limits(100, 10))
    torch.testing.assert_close(proposals.boxes[0, 0], torch.tensor([0.0, 10, 40, 48]), atol=1e-4, rtol=0)


def test_proposals_that_overlap_are_suppressed() -> None:
    """IoU 0.8 with the first: gone; 0.6: stays."""
    part, batch = rpn(), batch_of({})
    said = perfect(part, batch, [[[0.0, 0, 40, 40], [0.0, 0, 40, 32], [0.0, 0, 40, 24]]])
    sure = part.propose(said, batch, Limits(100, 10))
    assert sure.boxes[0, sure.scores[0] > 0.5].round().tolist() == [[0, 0, 40, 40], [0, 0, 40, 24]]


def test_levels_do_not_suppress_each_other() -> None:
    """The same box from two maps comes twice."""
    part, batch = rpn(16, 32, scales=(1,)), batch_of({})
    said = perfect(part, batch, [[[10.0, 10, 40, 40]]])
    said.objectness.data[0, 17] = 9.0  # the second anchor of the coarser map
    said.deltas.data[0, 17] = encode(torch.tensor([10.0, 10, 40, 40]), said.anchors[17], CODER)
    proposals = part.propose(said, batch, Limits(100, 10))
    assert proposals.boxes[0, :2].round().tolist() == [[10, 10, 40, 40]] * 2
    assert (proposals.scores[0, :2] > 0.9).all()


def test_limits_before_count_each_level_and_after_each_image() -> None:
    part, batch = rpn(16, 32, scales=(1,), nms=1.0), batch_of({}, {})
    said = judged(part, batch)
    said.objectness.data.normal_()
    assert part.propose(said, batch, Limits(3, 100)).valid.sum(1).tolist() == [6, 6]
    assert part.propose(said, batch, Limits(3, 4)).valid.sum(1).tolist() == [4, 4]


def test_small_proposals_are_not_valid() -> None:
    part, batch = rpn(min_size=8.0), batch_of({})
    said = perfect(part, batch, [[[10.0, 10, 17, 60], [10.0, 10, 19, 60]]])
    proposals = part.propose(said, batch, Limits(100, 10))
    torch.testing.assert_close(proposals.boxes[0, 0], torch.tensor([10.0, 10, 19, 60]), atol=1e-4, rtol=0)


def test_no_gradient_flows_through_proposals() -> None:
    part, batch = rpn(), batch_of({})
    said = part({"p16": torch.ones(1, 8, 4, 4)})
    assert said.objectness.requires_grad
    assert not part.propose(said, batch, Limits(10, 5)).boxes.requires_grad
