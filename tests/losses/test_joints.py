"""Losses of places: hand-made numbers, masks, and a likelihood that is one."""

import math

import pytest
import torch

from quadrat.losses.joints import Off, ResidualLogLikelihood
from quadrat.losses.regression import l2


def test_no_person():
    found = Off(l2)(torch.zeros(0, 14, 2), torch.zeros(0, 14, 2), torch.zeros(0, 14, dtype=torch.bool))
    assert found.shape == (0, 14)


@pytest.mark.parametrize("loss", [Off(l2), ResidualLogLikelihood()])
def test_unlabelled_joints_count_for_nothing(loss):
    raw = torch.randn(2, 3, loss.numbers, requires_grad=True)
    labelled = torch.tensor([[True, False, True], [False, False, False]])
    terms = loss(raw, torch.zeros(2, 3, 2), labelled)
    terms.sum().backward()
    assert raw.grad is not None
    assert not terms[~labelled].any()
    assert not raw.grad[~labelled].any()
    assert raw.grad[labelled].all()


def test_l2_by_hand():
    terms = Off(l2)(torch.tensor([[0.3, 0.4]]), torch.zeros(1, 2), torch.tensor([True]))
    assert terms.item() == pytest.approx(0.25)


def flat(loss: ResidualLogLikelihood) -> None:
    """A flow that changes nothing: a normal density."""
    for parameter in loss.flow.parameters():
        torch.nn.init.zeros_(parameter)


def test_likelihood_by_hand():
    """With a flow that is a normal density: log(2 sigma) + |e| + e^2 / 2 + log(2 pi) / 2 for x and for y."""
    loss = ResidualLogLikelihood()
    flat(loss)
    term = loss(
        torch.tensor([[0.1, 0.0, 0.0, 0.0]]), torch.tensor([[0.35, 0.0]]), torch.tensor([True])
    )  # sigma 0.5, e = 0.5, 0
    expected = 2 * math.log(1.0) + 0.5 + 0.125 + math.log(2 * math.pi)
    assert term.item() == pytest.approx(expected, abs=1e-6)


def test_flow_is_a_density():
    """Whatever its weights, it integrates to one."""
    torch.manual_seed(0)
    loss = ResidualLogLikelihood(couplings=4, width=8)
    for parameter in loss.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    axis = torch.linspace(-30, 30, 1501)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    with torch.no_grad():
        total = loss.log_density(points).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=0.01)


def test_likelihood_learns_where_and_how_sure():
    """Two joints with errors of scale 0.02 and 0.2: both are found, and the first is surer."""
    torch.manual_seed(0)
    loss = ResidualLogLikelihood()
    raw = torch.zeros(2, 4, requires_grad=True)
    optimizer = torch.optim.Adam([raw, *loss.parameters()], lr=0.02)
    noise = torch.distributions.Laplace(torch.tensor([[0.2], [-0.1]]), torch.tensor([[0.02], [0.2]]))
    for _ in range(300):
        optimizer.zero_grad()
        truth = noise.sample((128,)).expand(128, 2, 2)
        loss(raw.expand(128, 2, 4), truth, torch.ones(128, 2, dtype=torch.bool)).mean().backward()
        optimizer.step()
    place, sure = loss.place(raw), loss.confidence(raw)
    assert place[0].tolist() == pytest.approx([0.2, 0.2], abs=0.02)
    assert place[1].tolist() == pytest.approx([-0.1, -0.1], abs=0.1)
    assert sure[0] > sure[1] + 0.1
