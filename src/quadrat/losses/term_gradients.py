"""What each term alone asks of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quadrat.losses.weighting import mean_over_ranks


class TermGradients:
    """The gradient of every term on the ``shared`` parameters, summed over the batches of a step: rows (terms, numbers).

    Of the ``rest`` of the parameters there is one vector, the sum of the terms' gradients times ``factors`` (terms,).
    """

    def __init__(
        self, shared: Sequence[nn.Parameter], rest: Sequence[nn.Parameter] = (), factors: Tensor | None = None
    ) -> None:
        self.shared, self.others = list(shared), list(rest)
        self.factors = factors
        self.sizes = [parameter.numel() for parameter in (*self.shared, *self.others)]
        self.rows = self.rest = self.losses = torch.zeros(0)

    def add(self, losses: Sequence[Tensor], factor: Tensor) -> None:
        """The terms of one batch, whose graph stays; ``factor`` is the batch's share of the step, times the scale of float16."""
        if not len(self.losses):
            self._begin(losses)
        self.losses += torch.stack([loss.detach() * factor for loss in losses])
        for index, loss in enumerate(losses):
            gradients = self._gradients(loss * factor)
            self.rows[index] += _flat(gradients[: len(self.shared)])
            if self.factors is not None and self.others:
                own, weight = _flat(gradients[len(self.shared) :]), self.factors[index]
                self.rest += torch.where(weight != 0, own * weight, 0.0)

    def _begin(self, losses: Sequence[Tensor]) -> None:
        like = self.shared[0]
        shared = sum(self.sizes[: len(self.shared)])
        self.losses = torch.zeros(len(losses), device=like.device)
        self.rows = torch.zeros(len(losses), shared, device=like.device)
        self.rest = torch.zeros(sum(self.sizes) - shared, device=like.device)

    def _gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [*self.shared, *self.others], retain_graph=True, materialize_grads=True)

    def collect(self) -> None:
        """From here on, gradients and losses are the means of all processes."""
        self.rows, self.rest = mean_over_ranks(self.rows), mean_over_ranks(self.rest)
        self.losses = mean_over_ranks(self.losses)

    def gram(self) -> Tensor:
        """The inner products (terms, terms) on the shared parameters, in the scale of the rows, squared."""
        return self.rows @ self.rows.T

    def set_gradients(self, slopes: Tensor) -> None:
        """Give the shared parameters the sum of the rows times ``slopes`` (terms,), and the rest theirs.

        A row of slope 0 counts nothing, even if it is NaN.
        """
        shared = slopes @ torch.where((slopes != 0)[:, None], self.rows, 0.0)
        pieces = torch.cat([shared, self.rest]).split(self.sizes)
        for parameter, piece in zip((*self.shared, *self.others), pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
