"""Box arithmetic by hand and against torchvision."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, clip_boxes_to_image

from quadrat.ops.boxes import MAX_LOG_SCALE, area, clip, decode, encode, intersection, iou

UNIT = (1.0, 1.0, 1.0, 1.0)
FRCNN = (10.0, 10.0, 5.0, 5.0)


def random_boxes(*shape: int, seed: int = 0, size: float = 100) -> torch.Tensor:
    """Boxes (*shape, 4) at least one pixel wide and tall."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * size
    return torch.cat([low, low + 1 + torch.rand(*shape, 2, generator=generator) * size / 2], dim=-1)


@pytest.mark.parametrize(
    ("a", "b", "common", "union"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 0, 1),  # empty and empty; the union 1 stands for "0 / anything"
        ([3, 3, 3, 9], [0, 0, 10, 10], 0, 100),  # empty inside
        ([8, 8, 2, 2], [0, 0, 10, 10], 0, 100),  # inside out
        ([0, 0, 10, 10], [10, 0, 20, 10], 0, 200),  # touching at an edge
        ([0, 0, 10, 10], [10, 10, 20, 20], 0, 200),  # touching at a corner
        ([0, 0, 10, 10], [30, 0, 40, 10], 0, 200),  # apart
        ([0, 0, 10, 10], [0, 0, 10, 10], 100, 100),  # the same
        ([2, 2, 7, 6], [0, 0, 10, 10], 20, 100),  # nested
        ([0, 0, 10, 10], [5, 0, 15, 10], 50, 150),
        ([0, 0, 4, 4], [2, 3, 6, 7], 2, 30),
        ([-10, -10, 0, 0], [-5, -5, 5, 5], 25, 175),
    ],
)
def test_iou_by_hand(a: list, b: list, common: float, union: float):
    one, other = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert intersection(one, other).item() == intersection(other, one).item() == common
    assert iou(one, other).item() == pytest.approx(common / union)
    assert iou(other, one).item() == pytest.approx(common / union)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_iou_without_boxes(n: int, m: int):
    assert iou(random_boxes(n), random_boxes(m)).shape == (n, m)


def test_area_of_a_box_turned_inside_out_is_zero():
    boxes = torch.tensor([[0.0, 0, 4, 5], [4, 0, 0, 5], [4, 5, 0, 0], [2, 2, 2, 9]])
    assert area(boxes).tolist() == [20, 0, 0, 0]


def test_iou_equals_torchvision():
    a, b = random_boxes(40), random_boxes(30, seed=1)
    torch.testing.assert_close(iou(a, b), box_iou(a, b))


@pytest.mark.parametrize("pairwise", [iou, intersection])
def test_batched_equals_single(pairwise):
    a, b = random_boxes(3, 8), random_boxes(3, 5, seed=1)
    singles = torch.stack([pairwise(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.equal(pairwise(a, b), singles)


def test_one_set_of_boxes_meets_every_image():
    a, b = random_boxes(8), random_boxes(3, 5, seed=1)
    assert torch.equal(iou(a[None], b), torch.stack([iou(a, y) for y in b]))


def test_clip_each_image_to_its_own_size():
    box = torch.tensor([[[-5.0, -6, 70, 80], [3, 4, 5, 6], [90, 90, 99, 99]]]).expand(2, -1, -1)
    clipped = clip(box, torch.tensor([[40.0, 60.0], [100.0, 50.0]]))
    assert clipped[0].tolist() == [[0, 0, 60, 40], [3, 4, 5, 6], [60, 40, 60, 40]]
    assert clipped[1].tolist() == [[0, 0, 50, 80], [3, 4, 5, 6], [50, 90, 50, 99]]


def test_clip_equals_torchvision():
    boxes = random_boxes(1, 50) * 2 - 40
    assert torch.equal(clip(boxes, torch.tensor([[60.0, 80.0]]))[0], clip_boxes_to_image(boxes[0], (60, 80)))


@pytest.mark.parametrize(
    ("box", "deltas"),
    [
        ([0, 0, 10, 20], [0, 0, 0, 0]),
        ([5, 0, 15, 20], [0.5, 0, 0, 0]),
        ([0, -5, 10, 15], [0, -0.25, 0, 0]),
        ([-5, 0, 15, 20], [0, 0, math.log(2), 0]),
        ([0, 5, 10, 15], [0, 0, 0, -math.log(2)]),
    ],
)
def test_encode_by_hand(box: list, deltas: list):
    anchor = torch.tensor([[0.0, 0, 10, 20]])
    expected = torch.tensor([deltas]) * torch.tensor(FRCNN)
    torch.testing.assert_close(encode(torch.tensor([box]).float(), anchor, FRCNN), expected.float())


@pytest.mark.parametrize("weights", [UNIT, FRCNN])
@pytest.mark.parametrize("shape", [(0,), (50,), (2, 25)])
def test_decode_undoes_encode(weights: tuple, shape: tuple):
    boxes, anchors = random_boxes(*shape), random_boxes(*shape, seed=1)
    decoded = decode(encode(boxes, anchors, weights), anchors, weights)
    torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights", [UNIT, FRCNN])
def test_encode_and_decode_equal_torchvision(weights: tuple):
    boxes, anchors, coder = random_boxes(50), random_boxes(50, seed=1), BoxCoder(weights)
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 10
    torch.testing.assert_close(encode(boxes, anchors, weights), coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode(deltas, anchors, weights), coder.decode_single(deltas, anchors))


def test_decode_limits_growth():
    anchor = torch.tensor([[0.0, 0, 16, 16]])
    grown = decode(torch.tensor([[0.0, 0, 1000, 1000]]), anchor, UNIT)
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))
    assert pytest.approx(1000 / 16) == math.exp(MAX_LOG_SCALE)
