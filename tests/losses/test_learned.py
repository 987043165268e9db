"""Weights that are learned: where they must arrive, and the steps that the papers' formulas give by autograd and torch's Adam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quadrat.losses.learned import Adam, DynamicAverage, Famo, ImtlL, RevisedUncertainty, Uncertainty
from quadrat.losses.weighting import Moment, Weighting


def terms(*values: float) -> dict[str, Tensor]:
    return dict(zip("abc", map(torch.tensor, values), strict=False))


def settled(weighting: Uncertainty | RevisedUncertainty | ImtlL, *values: float) -> list[float]:
    """s after it was learned to the end with losses that stay."""
    optimizer = torch.optim.LBFGS(
        weighting.parameters(), max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = weighting(terms(*values))
        total.backward()
        return total

    optimizer.step(closure)
    return weighting.s.tolist()


def test_uncertainty_of_regressions_settles_at_log_of_the_loss():
    weighting = Uncertainty({"a": 1.0, "b": 1.0}, regression=["a", "b"])
    assert settled(weighting, 2.0, 0.05) == pytest.approx([math.log(2), math.log(0.05)], abs=1e-3)
    assert [value.item() for value in weighting.weights().values()] == pytest.approx([0.25, 10.0], rel=1e-3)
    total = weighting(terms(2.0, 0.05)).item()
    assert total == pytest.approx(0.5 * (math.log(2) + math.log(0.05)) + 1, abs=1e-4)
    assert total < 0


def test_uncertainty_of_likelihoods_settles_at_log_of_twice_the_loss():
    assert settled(Uncertainty({"a": 1.0}, regression=[]), 2.0) == pytest.approx([math.log(4)], abs=1e-3)


def test_uncertainty_total_by_hand():
    weighting = Uncertainty({"a": 1.0, "b": 1.0}, regression=["b"], start=math.log(2))
    assert weighting(terms(3.0, 4.0)).item() == pytest.approx(3 / 2 + 4 / 4 + math.log(2))


def test_uncertainty_bound_is_kept_from_the_next_step_on():
    weighting = Uncertainty({"a": 1.0, "b": 1.0}, regression=[], bound=4.0)
    with torch.no_grad():
        weighting.s.copy_(torch.tensor([-9.0, 3.0]))
    weighting.begin_step(Moment())
    assert weighting.s.tolist() == [-4.0, 3.0]


def test_uncertainty_of_an_unknown_term_is_refused():
    with pytest.raises(KeyError, match=r"loss.weighting.regression speaks of \['z'\]"):
        Uncertainty({"a": 1.0}, regression=["z"])


def test_revised_uncertainty_settles_where_its_derivative_is_zero():
    """exp(s) = x with 2 x^2 = L (1 + x)."""
    for loss in (2.0, 0.05):
        expected = math.log((loss + math.sqrt(loss**2 + 8 * loss)) / 4)
        assert settled(RevisedUncertainty({"a": 1.0}), loss) == pytest.approx([expected], abs=1e-3)


def test_revised_uncertainty_is_never_negative():
    weighting = RevisedUncertainty({"a": 1.0}, start=-20.0)
    assert weighting(terms(0.0)).item() >= 0


def test_imtl_l_draws_every_weighted_term_to_one():
    weighting = ImtlL({"a": 1.0, "b": 1.0})
    assert settled(weighting, 5.0, 0.02) == pytest.approx([-math.log(5), -math.log(0.02)], abs=1e-3)
    assert [value.item() for value in weighting.weights().values()] == pytest.approx([0.2, 50.0], rel=1e-3)


# --- dynamic weight average ---


def after_epochs(weighting: Weighting, *epochs: tuple[float, float]) -> list[float]:
    for first, second in epochs:
        weighting.end_epoch({"a": first, "b": second, "total": first + second})
    weighting(terms(1.0, 1.0))
    return [value.item() for value in weighting.weights().values()]


@pytest.mark.parametrize(
    ("epochs", "ratios"),
    [
        ([], (0, 0)),
        ([(4.0, 2.0)], (0, 0)),
        ([(4.0, 2.0), (2.0, 1.8)], (0.5, 0.9)),
        ([(4.0, 2.0), (2.0, 1.8), (2.0, 0.9)], (1.0, 0.5)),
        ([(0.0, 2.0), (0.0, 1.0)], (1.0, 0.5)),
        ([(0.0, 2.0), (3.0, 2.0)], (1.0, 1.0)),
    ],
    ids=["none", "one", "two", "three", "0 / 0", "3 / 0"],
)
def test_dwa_table(epochs: list[tuple[float, float]], ratios: tuple[float, float]):
    one, other = (math.exp(ratio / 2) for ratio in ratios)
    assert after_epochs(DynamicAverage({"a": 1.0, "b": 1.0}), *epochs) == pytest.approx(
        [2 * one / (one + other), 2 * other / (one + other)]
    )


def test_dwa_of_a_high_temperature_weighs_alike():
    weights = after_epochs(DynamicAverage({"a": 1.0, "b": 1.0}, temperature=1e6), (4.0, 2.0), (1.0, 2.0))
    assert weights == pytest.approx([1.0, 1.0], abs=1e-5)


def test_dwa_refuses_a_temperature_that_is_none():
    with pytest.raises(ValueError, match="temperature=0 is not above 0"):
        DynamicAverage({"a": 1.0}, temperature=0)


# --- Adam of its own ---


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torch_s(decay: float):
    draws = torch.Generator().manual_seed(0)
    ours, theirs = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    adam, reference = Adam(3, 0.025, decay=decay), torch.optim.Adam([theirs], lr=0.025, weight_decay=decay)
    for _ in range(20):
        gradient = torch.randn(3, generator=draws)
        adam.step(ours, gradient)
        theirs.grad = gradient.clone()
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_adam_leaves_all_as_it_is_at_a_gradient_that_is_not_finite():
    value, adam = torch.tensor([1.0, 2.0]), Adam(2, 0.1)
    adam.step(value, torch.tensor([1.0, 1.0]))
    before = {name: state.clone() for name, state in adam.state_dict().items()} | {"value": value.clone()}
    adam.step(value, torch.tensor([math.nan, 1.0]))
    after = dict(adam.state_dict()) | {"value": value}
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- FAMO ---


def test_famo_moves_as_in_its_paper():
    """Two quadratics of one number, the authors' loop written with autograd and torch's Adam."""
    weighting = Famo({"a": 1.0, "b": 1.0})
    x, y = (torch.tensor(0.3, requires_grad=True) for _ in range(2))
    xi = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.025, weight_decay=1e-3)

    def losses(at: Tensor) -> dict[str, Tensor]:
        return {"a": (at - 1) ** 2 + 0.1, "b": 5 * (at + 2) ** 2 + 0.5}

    for _ in range(10):
        total = weighting(losses(x))
        (gradient,) = torch.autograd.grad(total, x)
        with torch.no_grad():
            x -= 0.05 * gradient
            weighting.see_again(losses(x))

        before = torch.stack(list(losses(y).values()))
        z = xi.softmax(0).detach()
        reference = (z * (before + 1e-8).log()).sum() / (z / (before.detach() + 1e-8)).sum()
        (gradient,) = torch.autograd.grad(reference, y)
        assert total.item() == pytest.approx(reference.item(), rel=1e-5)
        with torch.no_grad():
            y -= 0.05 * gradient
        fallen = ((before + 1e-8).log() - (torch.stack(list(losses(y).values())) + 1e-8).log()).detach()
        xi.grad = torch.autograd.grad(xi.softmax(0), xi, grad_outputs=fallen)[0]
        adam.step()
    assert x.item() == pytest.approx(y.item(), rel=1e-5)
    torch.testing.assert_close(weighting.xi, xi.detach(), rtol=1e-4, atol=1e-6)


def test_famo_weighs_less_what_has_fallen_more():
    weighting = Famo({"a": 1.0, "b": 1.0})
    weighting(terms(1.0, 1.0))
    weighting.see_again(terms(0.1, 0.9))
    weighting(terms(1.0, 1.0))
    weights = weighting.weights()
    assert weights["a"].item() < weights["b"].item()
