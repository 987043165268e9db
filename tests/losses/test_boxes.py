"""Losses of one box against one box: by hand, and against torchvision's."""

import pytest
import torch
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from quadrat.losses.boxes import Coded, CodeLoss, OverlapLoss, ciou, diou, giou, iou
from quadrat.losses.regression import l1

A = torch.tensor([[0.0, 0, 2, 2]])


def boxes(count: int, seed: int) -> torch.Tensor:
    numbers = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10
    return torch.cat([numbers[:, :2], numbers[:, :2] + numbers[:, 2:] + 0.1], dim=1)


@pytest.mark.parametrize("overlap", [iou, giou, diou, ciou])
def test_no_box(overlap):
    assert overlap(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("overlap", [iou, giou, diou, ciou])
def test_the_same_box_overlaps_fully(overlap):
    assert overlap(A, A).item() == pytest.approx(1)


def test_by_hand():
    b = torch.tensor([[1.0, 1, 3, 3]])  # one pixel of seven in common, nine around both
    assert iou(A, b).item() == pytest.approx(1 / 7)
    assert giou(A, b).item() == pytest.approx(1 / 7 - 2 / 9)
    assert diou(A, b).item() == pytest.approx(1 / 7 - 2 / 18)
    assert ciou(A, b).item() == pytest.approx(1 / 7 - 2 / 18)  # both are square


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(giou, generalized_box_iou_loss), (diou, distance_box_iou_loss), (ciou, complete_box_iou_loss)],
)
def test_values_and_gradients_equal_torchvision(ours, theirs):
    first, second = boxes(200, 0).requires_grad_(), boxes(200, 1)
    own = OverlapLoss(ours)(Coded(first, first), Coded(second, second))
    other = theirs(first, second)
    torch.testing.assert_close(own, other, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad(values.sum(), first, retain_graph=True)[0] for values in (own, other)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_apart_only_giou_and_diou_pull():
    far = torch.tensor([[10.0, 10, 12, 12]], requires_grad=True)
    slopes = {one: torch.autograd.grad(one(far, A).sum(), far)[0].abs().sum().item() for one in (iou, giou, diou)}
    assert slopes[iou] == 0
    assert slopes[giou] > 0
    assert slopes[diou] > 0


def test_code_loss_sums_four_numbers():
    codes = Coded(torch.tensor([[1.0, 2, 3, 4]]), A), Coded(torch.zeros(1, 4), A)
    assert CodeLoss(l1)(*codes).tolist() == [10]
