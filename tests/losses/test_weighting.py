"""Given weights: fixed, two-sided, normalised, scheduled, random; and two products of the terms."""

import math

import pytest
import torch

from quadrat.losses.weighting import (
    Geometric,
    Moment,
    Ramp,
    RandomWeights,
    ScaleInvariant,
    Scheduled,
    WeightedSum,
    Weighting,
    alpha,
    simplex,
)


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


def slopes(weighting: Weighting, **values: float) -> dict[str, float]:
    """The gradient of the total in each raw term, found by autograd."""
    terms = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    weighting(terms).backward()
    return {name: term.grad.item() for name, term in terms.items() if term.grad is not None}


# --- two sides, ratios ---


def test_alpha_by_hand():
    weighting = alpha({"class": 1.0, "box": 2.0}, alpha=0.25, regression=["box"])
    assert weighting(losses(**{"class": 4.0}, box=2.0)).item() == 0.25 * 4 + 0.75 * 2 * 2


@pytest.mark.parametrize(("value", "trained"), [(0.0, ("box",)), (1.0, ("class",))])
def test_alpha_at_its_ends_trains_one_side(value: float, trained: tuple[str, ...]):
    assert alpha({"class": 1.0, "box": 1.0}, alpha=value, regression=["box"]).terms == trained


@pytest.mark.parametrize(
    ("value", "regression", "error", "message"),
    [
        (1.5, ["box"], ValueError, "alpha=1.5 is not between 0 and 1"),
        (-0.1, ["box"], ValueError, "alpha=-0.1 is not between 0 and 1"),
        (0.5, [], ValueError, "names none or all"),
        (0.5, ["box", "class"], ValueError, "names none or all"),
        (0.5, ["bax"], KeyError, r"speaks of \['bax'\], loss.weights has \['box', 'class'\]"),
    ],
)
def test_alpha_refuses(value: float, regression: list[str], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        alpha({"class": 1.0, "box": 1.0}, alpha=value, regression=regression)


def test_simplex_keeps_ratios_and_sums_to_the_number_of_terms():
    weights = simplex({"a": 1.0, "b": 3.0, "c": 0.0}).weights()
    assert [value.item() for value in weights.values()] == [0.75, 2.25, 0.0]


def test_simplex_refuses_nothing_to_train():
    with pytest.raises(ValueError, match="all loss weights are 0"):
        simplex({"a": 0.0})


# --- schedules ---


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Ramp(0, 1, 0.0, 0.5), {0.0: 0, 0.25: 0.5, 0.5: 1, 1.0: 1}),
        (Ramp(2, 1, 0.5, 1.0), {0.0: 2, 0.5: 2, 0.75: 1.5, 1.0: 1}),
        (Ramp(0, 1, 0.0, 1.0, "cosine"), {0.0: 0, 0.25: 0.5 - math.sqrt(0.125), 0.5: 0.5, 1.0: 1}),
        (Ramp(3, 0, 0.0, 0.5, "step"), {0.0: 3, 0.49: 3, 0.5: 0, 1.0: 0}),
    ],
)
def test_ramp_by_hand(ramp: Ramp, values: dict[float, float]):
    assert {share: ramp(share) for share in values} == pytest.approx(values)


def test_scheduled_weights_are_a_function_of_the_step():
    weighting = Scheduled({"a": 2.0, "b": 1.0}, ramps={"a": {"start": 0, "stop": 1, "end": 0.5}})
    seen = []
    for step in (0, 25, 100):
        weighting.begin_step(Moment(step=step, steps=100))
        seen.append(slopes(weighting, a=3.0, b=5.0))
    assert seen == [{"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 1.0}]
    assert weighting.state_dict() == {}


@pytest.mark.parametrize(
    ("ramps", "error", "message"),
    [
        ({}, ValueError, "without a ramp"),
        ({"c": {}}, KeyError, r"speaks of \['c'\]"),
        ({"a": {"shape": "wave"}}, ValueError, "linear, cosine or step, got wave"),
        ({"a": {"begin": 0.5, "end": 0.2}}, ValueError, "0 <= begin < end <= 1"),
        ({"a": {"start": -1}}, ValueError, "finite numbers >= 0, got -1 and 1.0"),
        ({"a": {"stapt": 1}}, ValueError, "start, stop, begin, end and shape"),
    ],
)
def test_scheduled_refuses(ramps: dict[str, dict[str, object]], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Scheduled({"a": 1.0, "b": 1.0}, ramps=ramps)


def test_random_weights_are_a_function_of_seed_and_step():
    drawn = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        weighting = RandomWeights({"a": 1.0, "b": 1.0, "c": 1.0})
        torch.manual_seed(step)  # the step's own draws are of no concern
        weighting.begin_step(Moment(seed=seed, step=step))
        drawn.append(tuple(slopes(weighting, a=1.0, b=1.0, c=1.0).values()))
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
    assert [sum(weights) for weights in drawn] == pytest.approx([1.0] * 4)


def test_random_weights_are_those_of_the_softmax_of_normal_numbers():
    weighting, firsts = RandomWeights({"a": 1.0, "b": 1.0}), []
    for step in range(2000):
        weighting.begin_step(Moment(step=step))
        firsts.append(weighting.factors[0].logit())
    differences = torch.stack(firsts)  # the logit of one of two is the difference of two normal numbers
    assert differences.mean().item() == pytest.approx(0, abs=0.1)
    assert differences.var().item() == pytest.approx(2, abs=0.2)


# --- products ---


def test_geometric_by_hand():
    weighting = Geometric({"a": 1.0, "b": 1.0})
    assert weighting(losses(a=2.0, b=8.0)).item() == pytest.approx(4.0)
    assert slopes(weighting, a=2.0, b=8.0) == pytest.approx({"a": 4 / (2 * 2), "b": 4 / (2 * 8)})


def test_scale_invariant_by_hand():
    weighting = ScaleInvariant({"a": 1.0, "b": 1.0})
    assert weighting(losses(a=2.0, b=8.0)).item() == pytest.approx(math.log(16))
    assert slopes(weighting, a=2.0, b=8.0) == pytest.approx({"a": 0.5, "b": 0.125})


@pytest.mark.parametrize("kind", [Geometric, ScaleInvariant])
def test_products_of_a_term_that_is_zero_are_finite(kind: type[Weighting]):
    found = slopes(kind({"a": 1.0, "b": 1.0}), a=0.0, b=1.0)
    assert all(math.isfinite(value) for value in found.values())


def test_a_moment_draws_the_same_in_the_same_step_and_stream():
    moments = [Moment(seed=1, step=5), Moment(seed=1, step=5, epoch=3), Moment(seed=1, step=6), Moment(seed=2, step=5)]
    drawn = [moment.draws(stream=1).random() for moment in moments]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert moments[0].draws(stream=2).random() != drawn[0]
