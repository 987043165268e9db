"""Weights and terms must be the same set; the rest is a sum."""

import pytest
import torch

from quadrat.losses.weighting import WeightedSum


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_weighted_sum_by_hand():
    total = WeightedSum({"box": 2.0, "class": 0.5, "mask": 1})(losses(box=3.0, **{"class": 4.0}, mask=0.25))
    assert total.shape == ()
    assert total.item() == 8.25


def test_weighted_sum_goes_by_name_not_by_order():
    assert WeightedSum({"a": 1.0, "b": 10.0})(losses(b=2.0, a=3.0)).item() == 23


def test_gradients_are_the_weights():
    terms = {name: torch.tensor(5.0, requires_grad=True) for name in "abc"}
    WeightedSum({"a": 2.0, "b": 0.5, "c": 0.0})(terms).backward()
    grads = [0.0 if term.grad is None else term.grad.item() for term in terms.values()]
    assert grads == [2.0, 0.5, 0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_zero_keeps_a_broken_term_out_of_the_sum(value: float):
    assert WeightedSum({"a": 2.0, "b": 0.0})(losses(a=3.0, b=value)).item() == 6


def test_weight_zero_still_gives_its_parameters_a_gradient():
    """Of nothing: with several processes a parameter without a gradient is an error."""
    own = torch.tensor(3.0, requires_grad=True)
    WeightedSum({"a": 2.0, "b": 0.0})({"a": torch.tensor(1.0), "b": own * own}).backward()
    assert own.grad is not None
    assert own.grad.item() == 0


def test_a_broken_term_that_counts_is_seen():
    assert WeightedSum({"a": 2.0, "b": 0.1})(losses(a=3.0, b=float("nan"))).isnan()


def test_weights_are_there_for_the_log():
    weights = WeightedSum({"a": 2.0, "b": 0.0}).weights()
    assert {name: value.item() for name, value in weights.items()} == {"a": 2, "b": 0}


def test_fixed_weights_are_no_parameters_and_not_in_a_checkpoint():
    weighting = WeightedSum({"a": 2.0})
    assert list(weighting.parameters()) == []
    assert weighting.state_dict() == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bx", "class"], r"has \['box', 'class'\].* terms are \['bx', 'class'\].*unknown \['box'\].*weight \['bx'\]"),
        (["class"], r"unknown \['box'\], without a weight \[\]"),
        (["box", "class", "mask"], r"unknown \[\], without a weight \['mask'\]"),
        ([], r"unknown \['box', 'class'\], without a weight \[\]"),
    ],
    ids=["misspelt", "no such term", "no weight", "no terms"],
)
@pytest.mark.parametrize("when", ["check", "forward"])
def test_names_that_differ_are_refused(names: list[str], message: str, when: str):
    weighting = WeightedSum({"box": 1.0, "class": 1.0})
    with pytest.raises(KeyError, match=message):
        weighting.check(names) if when == "check" else weighting(losses(**dict.fromkeys(names, 1.0)))


def test_check_accepts_the_same_names_in_any_order():
    WeightedSum({"box": 1.0, "class": 1.0}).check(iter(["class", "box"]))


@pytest.mark.parametrize("weight", [-1.0, -1e-9, float("nan"), float("inf")])
def test_a_weight_that_is_no_weight_is_refused(weight: float):
    with pytest.raises(ValueError, match=rf"finite number >= 0, got loss\.weights\.box={weight}"):
        WeightedSum({"class": 1.0, "box": weight})


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 0, "b": 0.0}])
def test_all_weights_zero_are_refused(weights: dict[str, float]):
    with pytest.raises(ValueError, match="all loss weights are 0, nothing would be trained"):
        WeightedSum(weights)
