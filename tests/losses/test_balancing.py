"""Weightings by gradients: hand-made vectors, the papers' vector formulas written out, and problems with known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from quadrat.losses.balancing import MGDA, CAGrad, GradNorm, ImtlG, NashMTL, PCGrad, shortest
from quadrat.losses.weighting import Moment, Weighting

CONFLICT = np.array([[1.0, 0.0], [-1.0, 1.0]])
"""g_1 . g_2 = -1."""


def random_vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 5)) * np.array([1.0, 0.1, 5.0, 2.0])[:count, None]


def weighting(kind: type[Weighting], count: int, **settings: object) -> Weighting:
    return kind({"abcd"[i]: 1.0 for i in range(count)}, **settings)  # pyright: ignore[reportCallIssue]


def coefficients(kind: type[Weighting], vectors: np.ndarray, losses: list[float] | None = None, **settings: object):
    """What a weighting multiplies gradients with that are these rows."""
    balancing = weighting(kind, len(vectors), **settings)
    balancing.see(torch.from_numpy(vectors @ vectors.T), torch.tensor(losses or [1.0] * len(vectors)))
    return np.array([value.item() for value in balancing.weights().values()])


def direction(kind: type[Weighting], vectors: np.ndarray, **settings: object) -> np.ndarray:
    return coefficients(kind, vectors, **settings) @ vectors


# --- PCGrad ---


def test_pcgrad_by_hand():
    """g_1 without its part against g_2 is (1/2, 1/2), g_2 without its part against g_1 is (0, 1)."""
    assert direction(PCGrad, CONFLICT) == pytest.approx([0.5, 1.5])


def test_pcgrad_leaves_gradients_that_agree():
    assert coefficients(PCGrad, np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])) == pytest.approx([1, 1, 1])


def pcgrad_on_vectors(vectors: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Algorithm 1 of the paper."""
    surgery = vectors.copy()
    for i in range(len(vectors)):
        for j in draws.permutation(len(vectors)):
            along = surgery[i] @ vectors[j]
            if i != j and along < 0:
                surgery[i] -= along / (vectors[j] @ vectors[j]) * vectors[j]
    return surgery.sum(axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_its_algorithm_on_vectors(seed: int):
    vectors = random_vectors(4, seed)
    expected = pcgrad_on_vectors(vectors, Moment().draws(PCGrad.STREAM))
    assert direction(PCGrad, vectors) == pytest.approx(expected, rel=1e-4)


def test_pcgrad_order_is_a_function_of_the_step():
    vectors, balancing, found = random_vectors(4, 8), weighting(PCGrad, 4), []
    for step in (0, 1, 2, 3, 0):
        balancing.begin_step(Moment(step=step))
        balancing.see(torch.from_numpy(vectors @ vectors.T), torch.ones(4))
        found.append(tuple(value.item() for value in balancing.weights().values()))
    assert found[0] == found[4]
    assert len(set(found)) > 1


# --- MGDA ---


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5]),
        ([[2.0, 0.0], [0.0, 1.0]], [0.2, 0.8]),
        ([[1.0, 0.0], [3.0, 0.0]], [1.0, 0.0]),  # the shorter of two that agree
        ([[1.0, 0.0], [-3.0, 0.0]], [0.75, 0.25]),  # opposite ones cancel
        ([[1.0, 0.0], [1.0, 0.5]], [1.0, 0.0]),  # the closed form is cut off at 1
    ],
)
def test_mgda_of_two_by_hand(vectors: list[list[float]], expected: list[float]):
    assert coefficients(MGDA, np.array(vectors)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_mgda_of_two_is_the_closed_form(seed: int):
    first, second = random_vectors(2, seed)
    share = np.clip((second - first) @ second / ((first - second) @ (first - second)), 0, 1)
    assert coefficients(MGDA, np.stack([first, second])) == pytest.approx([share, 1 - share], abs=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_shortest_satisfies_its_optimality(seed: int):
    """v is shortest in the hull of the vectors when none of them is shorter along v than v itself."""
    vectors = random_vectors(4, seed)
    share = shortest(vectors @ vectors.T)
    point = share @ vectors
    assert share.min() >= 0
    assert share.sum() == pytest.approx(1)
    assert (vectors @ point).min() >= point @ point - 1e-8


@pytest.mark.parametrize(("normalise", "divisors"), [("l2", [2.0, 1.0]), ("loss", [4.0, 0.5]), ("loss+", [8.0, 0.5])])
def test_mgda_normalised(normalise: str, divisors: list[float]):
    vectors = np.array([[2.0, 0.0], [0.0, 1.0]])
    scaled = vectors / np.array(divisors)[:, None]
    expected = coefficients(MGDA, scaled)
    assert coefficients(MGDA, vectors, [4.0, 0.5], normalise=normalise) == pytest.approx(expected, abs=1e-6)


def test_mgda_refuses_an_unknown_normaliser():
    with pytest.raises(ValueError, match=r"normalise=l1 is neither none, l2, loss nor loss\+"):
        MGDA({"a": 1.0}, normalise="l1")  # pyright: ignore[reportArgumentType]


def test_mgda_descends_two_quadratics_to_a_pareto_point():
    """|x - a|^2 and 4 |x - b|^2: between a and b no step makes both smaller, and the shortest vector is 0."""
    a, b, x = np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([0.3, 2.0])
    for _ in range(300):
        vectors = np.stack([2 * (x - a), 8 * (x - b)])
        x = x - 0.1 * direction(MGDA, vectors)
    assert x[1] == pytest.approx(0, abs=1e-3)
    assert 0 <= x[0] <= 1
    assert np.linalg.norm(direction(MGDA, np.stack([2 * (x - a), 8 * (x - b)]))) < 1e-2


# --- CAGrad ---


def test_cagrad_without_a_radius_is_the_mean():
    vectors = random_vectors(3)
    assert direction(CAGrad, vectors, radius=0.0) == pytest.approx(vectors.mean(axis=0), rel=1e-5)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_cagrad_is_its_formula_at_the_best_of_a_fine_grid(count: int, seed: int):
    vectors, radius = random_vectors(count, seed), 0.5
    mean = vectors.mean(axis=0)
    reach = radius * np.linalg.norm(mean)
    shares = np.linspace(0, 1, 401)
    grid = [np.array([*w, 1 - sum(w)]) for w in itertools.product(shares, repeat=count - 1) if sum(w) <= 1]
    mixed = np.stack(grid) @ vectors
    best = mixed[(mixed @ mean + reach * np.linalg.norm(mixed, axis=1)).argmin()]
    expected = (mean + reach * best / np.linalg.norm(best)) / (1 + radius**2)
    found = direction(CAGrad, vectors, radius=radius)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_cagrad_helps_the_worst_term_more_than_the_mean_does():
    vectors = np.array([[1.0, 0.0], [-3.0, 1.0]])
    assert (vectors @ vectors.mean(axis=0)).min() < 0
    assert (vectors @ direction(CAGrad, vectors)).min() > (vectors @ vectors.mean(axis=0)).min()


@pytest.mark.parametrize("radius", [-0.1, 1.0])
def test_cagrad_refuses_a_radius(radius: float):
    with pytest.raises(ValueError, match=f"radius={radius} is not within"):
        CAGrad({"a": 1.0}, radius=radius)


# --- IMTL-G ---


def imtl_formula(vectors: np.ndarray) -> np.ndarray:
    """alpha_{2..K} = g_1 U^T (D U^T)^-1, alpha_1 = 1 - their sum."""
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    differences, u = vectors[0] - vectors[1:], units[0] - units[1:]
    rest = vectors[0] @ u.T @ np.linalg.inv(differences @ u.T)
    return np.array([1 - rest.sum(), *rest])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_imtl_g_is_its_formula(count: int):
    vectors = random_vectors(count, 3)
    found = coefficients(ImtlG, vectors)
    assert found == pytest.approx(imtl_formula(vectors), rel=1e-4)
    along = vectors / np.linalg.norm(vectors, axis=1)[:, None] @ (found @ vectors)
    assert along == pytest.approx(np.full(count, along[0]), rel=1e-3)


def test_imtl_g_of_two_by_hand():
    """Equally long along (2, 0) and (0, 1) is a multiple of (1, 1)."""
    assert coefficients(ImtlG, np.array([[2.0, 0.0], [0.0, 1.0]])) == pytest.approx([1 / 3, 2 / 3])


# --- Nash-MTL ---


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_nash_is_the_bargaining_solution(count: int, seed: int):
    vectors = random_vectors(count, seed)
    matrix = vectors @ vectors.T / np.linalg.norm(vectors @ vectors.T)
    found = coefficients(NashMTL, vectors)
    assert found.min() > 0
    assert matrix @ found == pytest.approx(1 / found, rel=1e-3)


def test_nash_of_orthogonal_gradients_by_hand():
    """G is diag(4, 1) / sqrt 17, so a = (17^(1/4) / 2, 17^(1/4)): equal parts of the move along both."""
    found = coefficients(NashMTL, np.array([[2.0, 0.0], [0.0, 1.0]]))
    assert found == pytest.approx([17**0.25 / 2, 17**0.25], rel=1e-4)


def test_nash_of_opposite_gradients_is_finite():
    found = coefficients(NashMTL, np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert np.isfinite(found).all()
    assert np.linalg.norm(found @ np.array([[1.0, 0.0], [-1.0, 0.0]])) < 1e-2


# --- GradNorm ---


def test_gradnorm_moves_as_in_its_paper():
    """The authors' update by autograd and torch's Adam, on norms and losses that are given."""
    balancing = weighting(GradNorm, 3)
    w = torch.ones(3, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.025)
    draws = np.random.default_rng(0)
    first = None
    for _ in range(12):
        vectors, losses = torch.from_numpy(random_vectors(3, 5)).float(), torch.tensor(draws.uniform(0.5, 2, 3)).float()
        balancing.see(vectors @ vectors.T, losses)
        first = losses if first is None else first
        norms = vectors.norm(dim=1)
        progress = losses / first
        target = ((w * norms).mean() * (progress / progress.mean()) ** 1.5).detach()
        w.grad = torch.autograd.grad((w * norms - target).abs().sum(), w)[0]
        adam.step()
        with torch.no_grad():
            w.clamp_(min=GradNorm.LEAST).mul_(3 / w.sum())
    assert isinstance(balancing, GradNorm)
    torch.testing.assert_close(balancing.factors, w.detach(), rtol=1e-4, atol=1e-5)


def test_gradnorm_brings_the_norms_together():
    balancing = weighting(GradNorm, 2, asymmetry=0.0)
    gram = torch.diag(torch.tensor([9.0, 1.0]))  # norms 3 and 1
    for _ in range(400):
        balancing.see(gram, torch.tensor([1.0, 1.0]))
    assert isinstance(balancing, GradNorm)
    assert balancing.factors.tolist() == pytest.approx([0.5, 1.5], abs=0.05)


def test_gradnorm_weights_begin_at_one_and_sum_to_their_number():
    balancing = weighting(GradNorm, 2)
    assert balancing({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}).item() == 5
    balancing.see(torch.eye(2), torch.tensor([2.0, 3.0]))
    balancing.see(torch.eye(2), torch.tensor([1.0, 3.0]))
    balancing({"a": torch.tensor(2.0), "b": torch.tensor(3.0)})
    weights = [value.item() for value in balancing.weights().values()]
    assert sum(weights) == pytest.approx(2)
    assert weights[0] < weights[1], "the slower one counts more"


# --- the contract ---


@pytest.mark.parametrize("kind", [PCGrad, MGDA, CAGrad, ImtlG, NashMTL])
def test_a_term_without_a_gradient_is_left_out(kind: type[Weighting]):
    vectors = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    found, alone = coefficients(kind, vectors), coefficients(kind, CONFLICT)
    assert found[1] == 1
    if kind is not PCGrad:  # whose order is another among three
        assert found[[0, 2]] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", [PCGrad, MGDA, CAGrad, ImtlG, NashMTL])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_coefficients_do_not_depend_on_the_size_of_all_gradients(kind: type[Weighting], scale: float):
    vectors = random_vectors(3, 1)
    assert coefficients(kind, vectors * scale) == pytest.approx(coefficients(kind, vectors), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", [PCGrad, MGDA, CAGrad, ImtlG, NashMTL])
def test_equal_gradients_are_followed(kind: type[Weighting]):
    vectors = np.array([[1.0, 2.0], [1.0, 2.0]])
    along = direction(kind, vectors)
    assert along @ vectors[0] > 0
    assert along[1] == pytest.approx(2 * along[0])


def test_nash_without_a_solution_keeps_the_last_coefficients():
    """Gradients that cancel, over many decades: its linear algebra leaves the finite numbers."""

    class Unsolved(NashMTL):
        def _in_logarithms(self, matrix: np.ndarray) -> np.ndarray:
            raise ValueError("array must not contain infs or NaNs")

    balancing = weighting(Unsolved, 2)
    balancing.factors.copy_(torch.tensor([2.0, 3.0]))
    balancing.see(torch.eye(2), torch.ones(2))
    assert [value.item() for value in balancing.weights().values()] == [2.0, 3.0]


def test_gradnorm_leaves_out_a_term_without_a_gradient():
    """The others' targets are those of two terms, not of three."""
    two, three = weighting(GradNorm, 2, asymmetry=0.0), weighting(GradNorm, 3, asymmetry=0.0)
    for _ in range(5):
        two.see(torch.diag(torch.tensor([9.0, 1.0])), torch.ones(2))
        three.see(torch.diag(torch.tensor([9.0, 1.0, 0.0])), torch.tensor([1.0, 1.0, 0.0]))
    assert isinstance(two, GradNorm)
    assert isinstance(three, GradNorm)
    first, second = two.factors, three.factors[:2]
    assert (second / second.sum()).tolist() == pytest.approx((first / first.sum()).tolist(), abs=0.02)
