"""What each term alone asks of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quadrat.losses.weighting import mean_over_ranks


class TermGradients:
    """The gradient of every term with respect to some parameters, summed over the batches of a step: rows (terms, numbers).

    The first ``shared`` of the parameters are those whose inner products are compared.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], shared: int) -> None:
        self.parameters = list(parameters)
        self.compared = sum(parameter.numel() for parameter in self.parameters[:shared])
        self.rows: Tensor | None = None
        self.losses: Tensor | None = None

    def add(self, losses: Sequence[Tensor], factor: Tensor) -> None:
        """The terms of one batch, whose graph stays; ``factor`` is the batch's share of the step, times the scale of float16."""
        rows = torch.stack([self._row(loss * factor) for loss in losses])
        values = torch.stack([loss.detach() * factor for loss in losses])
        self.rows = rows if self.rows is None else self.rows + rows
        self.losses = values if self.losses is None else self.losses + values

    def _row(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, self.parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def collect(self) -> None:
        """From here on, rows and losses are the means of all processes."""
        assert self.rows is not None
        assert self.losses is not None
        self.rows, self.losses = mean_over_ranks(self.rows), mean_over_ranks(self.losses)

    def gram(self) -> Tensor:
        """The inner products (terms, terms) of the compared part, in the scale of the rows, squared."""
        assert self.rows is not None
        compared = self.rows[:, : self.compared]
        return compared @ compared.T

    def set_gradients(self, shared: Tensor, rest: Tensor) -> None:
        """Give the parameters the sum of the rows times ``shared`` (terms,) where they are compared, times ``rest`` elsewhere.

        A row of factor 0 counts nothing, even if it is NaN.
        """
        assert self.rows is not None
        parts = self.rows[:, : self.compared], self.rows[:, self.compared :]
        sums = [
            slopes @ torch.where((slopes != 0)[:, None], part, 0.0)
            for slopes, part in zip((shared, rest), parts, strict=True)
        ]
        pieces = torch.cat(sums).split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).to(parameter.dtype)
