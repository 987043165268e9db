"""What every weighting of conf/loss/weighting keeps to."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from quadrat.configs import build, compose, conf_dir
from quadrat.losses.balancing import Balancing
from quadrat.losses.weighting import Moment, Weighting

NAMES = sorted(path.stem for path in (conf_dir() / "loss" / "weighting").glob("*.yaml"))
TERMS = ("rpn_objectness", "rpn_box", "region_class", "region_box")
RAMP = "+loss.weighting.ramps.rpn_box={start: 0.5, stop: 1, begin: 0, end: 0.5, shape: linear}"


@functools.cache
def config(name: str) -> Any:
    return compose("train", [f"loss/weighting={name}", *([RAMP] if name == "scheduled" else [])]).loss


def make(name: str, **weights: Any) -> Weighting:
    """As a run builds it."""
    return build(config(name).weighting, weights=dict(config(name).weights) | weights)


def terms(*values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, requires_grad=True) for name, value in zip(TERMS, values, strict=True)}


def lived(name: str) -> Weighting:
    """One that has seen some steps, so that all of its state differs from where it began."""
    weighting, draws = make(name), np.random.default_rng(0)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1) if list(weighting.parameters()) else None
    for step in range(6):
        weighting.begin_step(Moment(step=step, steps=20))
        losses = terms(*draws.uniform(0.1, 2, 4).tolist())
        weighting(losses).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        vectors = torch.from_numpy(draws.standard_normal((4, 7))).float()
        weighting.see(vectors @ vectors.T, torch.stack(list(losses.values())).detach())
        weighting.see_again({name: value.detach() * draws.uniform(0.5, 1) for name, value in losses.items()})
        weighting.end_epoch({name: draws.uniform(0.1, 2) for name in TERMS})
    return weighting


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_slopes_of_the_total(name: str):
    weighting = lived(name)
    weighting.begin_step(Moment(step=7, steps=20))
    losses = terms(0.7, 0.05, 1.3, 0.4)
    total = weighting(losses)
    assert total.shape == ()
    assert total.isfinite()
    total.backward()
    slopes = {name: value.grad.item() for name, value in losses.items() if value.grad is not None}
    assert slopes == pytest.approx({name: value.item() for name, value in weighting.weights().items()}, abs=1e-7)
    assert any(slopes.values())


@pytest.mark.parametrize("name", NAMES)
def test_state_is_all_that_a_resumed_one_needs(name: str):
    before, after = lived(name), make(name)
    after.load_state_dict(before.state_dict())
    numbers = []
    for weighting in (before, after):
        weighting.begin_step(Moment(step=8, steps=20))
        total = weighting(terms(0.7, 0.05, 1.3, 0.4))
        numbers.append((total.item(), *(value.item() for value in weighting.weights().values())))
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_term_of_weight_zero_is_left_out(name: str):
    weighting = make(name, region_box=0)
    assert weighting.terms == ("rpn_objectness", "rpn_box", "region_class")
    losses = terms(0.7, 0.05, 1.3, math.nan)
    total = weighting(losses)
    total.backward()
    assert total.isfinite()
    assert losses["region_box"].grad is not None
    assert losses["region_box"].grad.item() == 0
    assert weighting.weights()["region_box"].item() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_single_term_is_trained(name: str):
    if name == "alpha":
        pytest.skip("weighs two kinds of terms")
    other = "rpn_objectness" if name == "scheduled" else "rpn_box"
    weighting = make(name, region_class=0, region_box=0, **{other: 0})
    weighting.begin_step(Moment())
    losses = terms(0.7, 0.6, 1.3, 0.4)
    weighting.see(torch.eye(4) * 4, torch.stack(list(losses.values())).detach())
    weighting(losses).backward()
    (trained,) = weighting.terms
    assert losses[trained].grad is not None
    assert losses[trained].grad.item() > 0


@pytest.mark.parametrize("name", NAMES)
def test_terms_that_are_none_are_refused(name: str):
    with pytest.raises(KeyError, match=r"unknown \['rpn_box'\], without a weight \['mask'\]"):
        make(name).check(["rpn_objectness", "region_class", "region_box", "mask"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, "much", None])
def test_a_weight_that_is_none_is_refused(name: str, weight: Any):
    with pytest.raises(
        ValueError, match=rf"a loss weight is a finite number >= 0, got loss\.weights\.region_box={weight}"
    ):
        make(name, region_box=weight)


@pytest.mark.parametrize("name", NAMES)
def test_steps_without_any_gradient_or_with_a_broken_one_do_no_harm(name: str):
    weighting = make(name)
    weighting.see(torch.zeros(4, 4), torch.tensor([0.7, 0.0, 1.3, 0.0]))
    weighting.see(torch.full((4, 4), math.nan), torch.tensor([0.7, 0.1, math.inf, 0.3]))
    weighting.see_again(dict.fromkeys(TERMS, torch.tensor(math.nan)))
    assert weighting(terms(0.7, 0.05, 1.3, 0.4)).isfinite()
    assert all(value.isfinite() for value in weighting.weights().values())


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_config_come_first(name: str):
    """A base weight of 2 is the same as a term twice as large, whatever the weighting does with it."""
    doubled, plain = make(name, rpn_box=2), make(name)
    vectors = torch.tensor([[1.0, 0.2, 0.0], [0.3, 1.0, 0.0], [-0.5, 0.4, 1.0], [0.1, 0.0, -0.7]])
    values = torch.tensor([0.7, 0.3, 1.3, 0.4])
    twice = torch.tensor([1.0, 2.0, 1.0, 1.0])
    doubled.see(vectors @ vectors.T, values)
    plain.see((vectors @ vectors.T) * twice * twice[:, None], values * twice)
    one, other = doubled(terms(*values.tolist())), plain(terms(*(values * twice).tolist()))
    if name == "simplex":  # whose base weights are scaled once more
        one = one * 5 / 4
    assert one.item() == pytest.approx(other.item())


def test_every_weighting_that_needs_all_gradients_is_a_balancing_one():
    needing = [name for name in NAMES if make(name).sees == "all"]
    assert needing == ["cagrad", "imtl_g", "mgda", "nash", "pcgrad"]
    assert all(isinstance(make(name), Balancing) for name in needing)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_not_rounded_by_autocast(name: str):
    plain, cast = lived(name), lived(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = cast(terms(0.7, 0.05, 1.3, 0.4))
    assert rounded.item() == plain(terms(0.7, 0.05, 1.3, 0.4)).item()
    assert cast.slopes.tolist() == plain.slopes.tolist()


@pytest.mark.parametrize("name", ["geometric", "scale_invariant", "famo", "gradnorm"])
def test_a_term_that_is_zero_in_one_batch_leaves_the_others_their_weights(name: str):
    """A box loss without objects: nothing is learned of it, and nothing is lost of the others."""
    weighting = make(name)
    weighting.see(torch.eye(4), torch.tensor([0.7, 0.3, 1.3, 0.4]))
    weighting(terms(0.7, 0.3, 1.3, 0.4))
    before = torch.stack(list(weighting.weights().values()))
    weighting.see(torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])), torch.tensor([0.7, 0.0, 1.3, 0.4]))
    weighting(terms(0.7, 0.0, 1.3, 0.4))
    after = torch.stack(list(weighting.weights().values()))
    assert ((after / before)[[0, 2, 3]].log().abs() < np.log(2)).all()
    assert after[1].item() <= 2 * before[1].item()
