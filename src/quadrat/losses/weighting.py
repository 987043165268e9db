"""The only place where weights meet losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class Weighting(nn.Module):
    """The contract of every weighting: named raw losses in, one number to minimise out; its state is in the checkpoint."""

    def check(self, names: Iterable[str]) -> None:
        """Raise KeyError, showing both sides, unless these are exactly the terms this object weighs."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor]:
        """The present weight of each term, for the log."""
        raise NotImplementedError

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError


class WeightedSum(Weighting):
    """Fixed weights: sum of w_i L_i. A weight of 0 means computed and logged, not trained."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not 0 <= float(weight) < float("inf"):
                raise ValueError(f"a loss weight is a finite number >= 0, got loss.weights.{name}={weight}")
        if not any(weights.values()):
            raise ValueError(f"all loss weights are 0, nothing would be trained: {dict(weights)}")
        self.names = tuple(weights)
        self.register_buffer("values", torch.tensor([float(w) for w in weights.values()]), persistent=False)
        self.values: Tensor

    def check(self, names: Iterable[str]) -> None:
        names = list(names)
        unknown, missing = sorted(set(self.names) - set(names)), sorted(set(names) - set(self.names))
        if unknown or missing:
            raise KeyError(
                f"loss.weights has {sorted(self.names)}, the model's terms are {sorted(names)}: "
                f"unknown {unknown}, without a weight {missing}"
            )

    def weights(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named scalars -> their weighted sum.

        A term of weight 0 adds nothing, not even if it is NaN; it stays in the graph, because several processes expect a
        gradient of every parameter.
        """
        self.check(losses)
        terms = [losses[name] for name in self.names]
        weighed = torch.stack(terms) * self.values
        return torch.where(self.values > 0, weighed, 0.0).sum()
