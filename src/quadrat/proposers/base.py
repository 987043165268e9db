"""Where regions come from: what every proposer promises."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from quadrat.structures import Batch, Proposals


class Proposer(Protocol):
    """Judges the maps, proposes regions from that, and learns by terms of its own; a module.

    ``train_limits`` and ``test_limits`` say how many regions it proposes in training and otherwise, in its own way.
    """

    names: tuple[str, ...]
    """The maps that it reads."""

    @property
    def loss_names(self) -> tuple[str, ...]: ...

    train_limits: Any
    test_limits: Any

    def __call__(self, maps: dict[str, Tensor]) -> Any:
        """What losses and proposals share."""
        ...

    def propose(self, judged: Any, batch: Batch, limits: Any) -> Proposals: ...

    def loss(self, judged: Any, batch: Batch) -> dict[str, Tensor]: ...
