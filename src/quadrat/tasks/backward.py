"""The backward pass of a step: the total's own, and beside it, or in its place, those of single terms."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from quadrat.losses.term_gradients import TermGradients
from quadrat.losses.weighting import Weighting
from quadrat.models.base import Model
from quadrat.structures import Batch


class Backward:
    """Collects the gradients of single terms where the weighting must see them, and for the log ``every`` optimiser steps.

    With several batches a step, and with several processes, they are those of the whole step.
    """

    def __init__(self, model: Model, weighting: Weighting, *, every: int) -> None:
        self.model, self.weighting, self.every = model, weighting, every
        self.collected: dict[str, TermGradients] = {}
        self.due = self.sharded = False
        self.losses: dict[str, Tensor] = {}
        self.batch: Batch | None = None

    def prepare(self, *, sharded: bool, batches: int) -> None:
        """Know whether parameters are sharded, in which case nothing is looked at for the log, and how many batches a step has.

        Raises ValueError for what cannot be right: weights that need gradients of whole parameters where ranks hold shares of
        them, or gradients on shared parameters where there are none or all are frozen, or the losses of a whole step once more
        where only its last batch is at hand.
        """
        self.sharded = sharded
        what = f"loss/weighting with {type(self.weighting).__name__}"
        if self.weighting.sees != "nothing" and sharded:
            raise ValueError(
                f"{what} compares gradients of whole parameters, of which a rank holds a part: trainer=ddp"
            )
        if self.weighting.sees != "nothing" and not self._parts():
            shared = any(True for part in self.model.shared() for _ in part.parameters())
            why = (
                "all of those are frozen: model.backbone.freeze_stages=0, or"
                if shared
                else f"those of {type(self.model).__name__} share none:"
            )
            raise ValueError(f"{what} balances the terms on the parameters they share, and {why} loss/weighting=static")
        if self.weighting.again and batches > 1:
            raise ValueError(
                f"{what} looks at the losses of a step once more, of which only the last of {batches} batches is at hand: "
                f"trainer.accumulate_grad_batches=1"
            )

    def expect(self, batch: Batch, losses: dict[str, Tensor]) -> None:
        """What the next backward pass is of; the terms still hold their graphs, the batch stays only where it is needed again."""
        self.losses, self.batch = losses, batch if self.weighting.again else None

    def __call__(self, loss: Tensor, scale: Tensor, *, share: float, step: int) -> None:
        """One batch: ``loss`` is the total times its ``share`` of the step, times the ``scale`` of float16."""
        self.due = self.every > 0 and (step + 1) % self.every == 0 and not self.sharded
        for scope in self._scopes():
            if scope not in self.collected:
                self.collected[scope] = self._gradients(scope)
            self.collected[scope].add([self.losses[name] for name in self.weighting.names], scale * share)
        self.losses = {}  # or their graph would outlive the step
        if self.weighting.sees != "all":
            loss.backward()

    def finish(self, scale: Tensor) -> dict[str, Tensor]:
        """After the last batch of a step: tell the weighting, give the optimiser its gradients; returns numbers for the log."""
        numbers: dict[str, Tensor] = {}
        for scope, gradients in self.collected.items():
            gradients.collect()
            gram = gradients.gram() / scale**2
            if scope == self.weighting.sees:
                self.weighting.see(gram, gradients.losses / scale)
            if scope == "all":
                gradients.set_gradients(torch.stack(list(self.weighting.weights().values())))
            if scope != "last" and self.due:
                numbers = similarity(self.weighting.names, gram)
        self.collected = {}
        return numbers

    def _scopes(self) -> list[str]:
        seen = [] if self.weighting.sees == "nothing" else [self.weighting.sees]
        return [*seen, "shared"] if self.due and "all" not in seen and self._parts() else seen

    def _parts(self) -> list[list[nn.Parameter]]:
        """What is trained of each shared part that is trained at all; this may change during a run."""
        parts = [[own for own in part.parameters() if own.requires_grad] for part in self.model.shared()]
        return [part for part in parts if part]

    def _gradients(self, scope: str) -> TermGradients:
        """Of the last shared part, of all shared parts, or of all with the plain sum for what is not shared."""
        parts = self._parts()
        if scope == "last":
            return TermGradients(parts[-1])
        shared = list(chain.from_iterable(parts))
        if scope == "shared":
            return TermGradients(shared)
        known = {id(parameter) for parameter in shared}
        rest = [one for one in self.model.parameters() if one.requires_grad and id(one) not in known]
        return TermGradients(shared, rest, self.weighting.base)


def similarity(names: tuple[str, ...], gram: Tensor) -> dict[str, Tensor]:
    """`gradient_norm/<term>`, and `cosine/<a>/<b>` for each pair, of inner products (terms, terms); with nothing it is 0."""
    norms = gram.diagonal().sqrt()
    cosines = torch.where(gram != 0, gram / (norms[:, None] * norms), 0.0)
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    return {f"gradient_norm/{name}": norms[i] for i, name in enumerate(names)} | {
        f"cosine/{names[i]}/{names[j]}": cosines[i, j] for i, j in pairs
    }
