"""Weightings that look at the gradient of each single term on the shared parameters.

All of them but GradNorm move the shared parameters along d = sum c_i g_i, with coefficients that depend only on the inner
products G_ij = g_i . g_j (a projection, too, subtracts multiples of other gradients): each is a function of a small matrix.
What is not shared, the heads, learns from the plain sum, as in the papers of IMTL and CAGrad and in LibMTL for all; the authors'
code of MGDA, PCGrad and Nash-MTL lets the coefficients reach the heads too, where some (0, or below) would train nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from quadrat.losses.learned import Adam
from quadrat.losses.weighting import TINY, Weighting


class GradNorm(Weighting):
    """GradNorm (Chen et al., ICML 2018): gradients on the last shared part come to norms that fit how fast each term is learned.

    With r_i = (L_i / L_i(0)) / mean, the sum of |w_i n_i - mean(w n) r_i^asymmetry| is lowered in w by an Adam of its own; then
    w is scaled to sum K. L(0) are the losses of the first step, as in the paper (LibMTL takes the means of the first epoch).
    """

    sees = "last"
    factors: Tensor
    first: Tensor

    LEAST = 1e-3
    """No weight falls below this: a negative one would raise its term."""

    def __init__(self, weights: Mapping[str, float], *, asymmetry: float = 1.5, step_size: float = 0.025) -> None:
        super().__init__(weights)
        self.asymmetry = asymmetry
        count = len(self.terms)
        self.register_buffer("factors", torch.ones(count))
        self.register_buffer("first", torch.zeros(count))
        self.adam = Adam(count, step_size)

    def combine(self, terms: Tensor) -> Tensor:
        return terms @ self.factors

    @torch.no_grad()
    def see(self, gram: Tensor, losses: Tensor) -> None:
        norms = (gram.diagonal().sqrt() * self.base)[self.trained]
        terms = (losses * self.base)[self.trained]
        unset = (self.first == 0) & terms.isfinite()
        self.first.copy_(torch.where(unset, terms, self.first))
        progress = (terms + TINY) / (self.first + TINY)
        weighed, moving = (
            self.factors * norms,
            norms != 0,
        )  # without objects a box loss moves nothing, and tells nothing
        count = moving.sum().clamp(min=1)
        relative = progress / (torch.where(moving, progress, 0.0).sum() / count)
        target = weighed.sum() / count * relative**self.asymmetry
        self.adam.step(self.factors, torch.where(moving, (weighed - target).sign() * norms, 0.0))
        self.factors.clamp_(min=self.LEAST)
        self.factors.mul_(len(self.factors) / self.factors.sum())


class Balancing(Weighting):
    """The contract of those that only need coefficients for the inner products: ``solve`` gives them.

    A term without any gradient (a picture without objects) keeps coefficient 1 and is left out; when inner products are not
    finite (a step that the scaler of float16 will skip), or no solution is, the last coefficients stay. Once a step the host
    waits for G.
    """

    sees = "all"
    factors: Tensor

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.register_buffer("factors", torch.ones(len(self.terms)))

    def combine(self, terms: Tensor) -> Tensor:
        return terms @ self.factors

    def see(self, gram: Tensor, losses: Tensor) -> None:
        scale = self.base[self.trained].double()
        picked = gram.double()[self.trained][:, self.trained] * scale[:, None] * scale
        values = (losses * self.base)[self.trained].double()
        table = torch.cat([picked, values[:, None]], dim=1).cpu().numpy()  # one look at the device
        if np.isfinite(table).all():
            self.factors.copy_(torch.from_numpy(self._coefficients(table[:, :-1], table[:, -1])))
        self.slopes.index_copy_(0, self.trained, self.factors * self.base[self.trained])

    def _coefficients(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        moving = gram.diagonal() > 0
        found = np.ones(len(gram))
        if moving.any():
            found[moving] = self.solve(gram[np.ix_(moving, moving)], losses[moving])
        return found if np.isfinite(found).all() else self.factors.cpu().double().numpy()

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """The coefficients (K,) for inner products (K, K), whose diagonal is positive, and losses (K,), float64."""
        raise NotImplementedError


class PCGrad(Balancing):
    """Gradient surgery (Yu et al., NeurIPS 2020): each gradient loses what points against another one; then they are summed.

    The others come in random order, a function of the seed and the step.
    """

    STREAM = 2

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        draws = self.moment.draws(self.STREAM)
        projected = np.eye(len(gram))  # row i: g_i, as a combination of the original gradients
        for i, row in enumerate(projected):
            for j in draws.permutation(len(gram)):
                along = row @ gram[:, j]
                if j != i and along < 0:
                    row[j] -= along / gram[j, j]
        return projected.sum(axis=0)


class MGDA(Balancing):
    """Multiple gradient descent (Desideri 2012; Sener and Koltun, NeurIPS 2018): the shortest vector in the gradients' hull.

    ``normalise`` divides each gradient by its length (l2), its loss (loss), or both (loss+) before it is looked for; what is
    found multiplies the gradients as they are, as in the authors' code.
    """

    def __init__(
        self, weights: Mapping[str, float], *, normalise: Literal["none", "l2", "loss", "loss+"] = "none"
    ) -> None:
        super().__init__(weights)
        if normalise not in ("none", "l2", "loss", "loss+"):
            raise ValueError(f"loss.weighting.normalise={normalise} is neither none, l2, loss nor loss+")
        self.normalise = normalise

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        length, loss = np.sqrt(gram.diagonal()), losses + TINY
        divisor = {"none": np.ones(len(gram)), "l2": length, "loss": loss, "loss+": loss * length}[self.normalise]
        return shortest(gram / np.outer(divisor, divisor))


def shortest(gram: np.ndarray) -> np.ndarray:
    """The point of the simplex (K,) whose combination of vectors with these inner products is shortest.

    Least distance programming: nonnegative u that bring [vectors; ones] nearest to [0; 1], scaled to sum 1.
    """
    values, vectors = np.linalg.eigh(gram / gram.diagonal().max())
    root = np.sqrt(values.clip(min=0))[:, None] * vectors.T  # its columns have these inner products
    found, _ = optimize.nnls(np.vstack([root, np.ones(len(gram))]), np.append(np.zeros(len(gram)), 1.0))
    return found / found.sum()


class CAGrad(Balancing):
    """Conflict-averse gradient (Liu et al., NeurIPS 2021): best worst case within ``radius`` |g| of the mean gradient g.

    d = (g + radius |g| / |g_w| g_w) / (1 + radius^2), where w of the simplex makes g_w . g + radius |g| |g_w| smallest.
    """

    def __init__(self, weights: Mapping[str, float], *, radius: float = 0.5) -> None:
        super().__init__(weights)
        if not 0 <= radius < 1:
            raise ValueError(f"loss.weighting.radius={radius} is not within 0..1, where it converges")
        self.radius = radius

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        count = len(gram)
        mean = np.full(count, 1 / count)
        reach = self.radius * _length(gram, mean)

        def worst(w: np.ndarray) -> float:
            return float(w @ gram @ mean) + reach * _length(gram, w)

        def slope(w: np.ndarray) -> np.ndarray:
            return gram @ mean + reach * gram @ w / max(_length(gram, w), TINY)

        w = _on_simplex(worst, slope, count, size=np.trace(gram) / count)
        return (mean + reach / max(_length(gram, w), TINY) * w) / (1 + self.radius**2)


def _length(gram: np.ndarray, coefficients: np.ndarray) -> float:
    return float(np.sqrt(max(coefficients @ gram @ coefficients, 0.0)))


def _on_simplex(
    value: Callable[[np.ndarray], float], slope: Callable[[np.ndarray], np.ndarray], count: int, size: float
) -> np.ndarray:
    """Where on the simplex a convex function, whose values are about ``size``, is lowest."""
    found = optimize.minimize(
        lambda w: value(w) / size,
        np.full(count, 1 / count),
        jac=lambda w: slope(w) / size,
        method="SLSQP",
        bounds=[(0, 1)] * count,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 200},
    )
    return found.x


class ImtlG(Balancing):
    """IMTL-G (Liu et al., ICLR 2021): coefficients of sum 1, with which the sum is equally long along every gradient."""

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        count = len(gram)
        along = gram / np.sqrt(gram.diagonal())[:, None]  # row i: every gradient's length along the i-th
        equal = np.block([[along, -np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
        return np.linalg.lstsq(equal, np.append(np.zeros(count), 1.0), rcond=None)[0][:count]


class NashMTL(Balancing):
    """Nash-MTL (Navon et al., ICML 2022): the bargaining solution, G a = 1 / a, with G scaled to norm 1.

    It is where a G a / 2 - sum log a is lowest, which has one stationary point; it is looked for in log a.
    """

    RIDGE = 1e-8
    """The share of the diagonal of G that is added to it, as otherwise opposite gradients would have no solution."""

    def solve(self, gram: np.ndarray, losses: np.ndarray) -> np.ndarray:
        matrix = gram / np.linalg.norm(gram)
        matrix = matrix + self.RIDGE * np.diag(matrix.diagonal())
        try:
            return np.exp(self._in_logarithms(matrix))
        except ValueError:  # its linear algebra has left the finite numbers: gradients that cancel, over many decades
            return np.full(len(gram), np.nan)

    def _in_logarithms(self, matrix: np.ndarray) -> np.ndarray:
        return optimize.minimize(
            lambda b: np.exp(b) @ matrix @ np.exp(b) / 2 - b.sum(),
            -np.log(matrix.diagonal()) / 2,
            jac=lambda b: np.exp(b) * (matrix @ np.exp(b)) - 1,
            hess=lambda b: matrix * np.outer(np.exp(b), np.exp(b)) + np.diag(np.exp(b) * (matrix @ np.exp(b))),
            method="trust-exact",
            options={"gtol": 1e-10},
        ).x
