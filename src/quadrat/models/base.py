"""The model contract: features once, then losses and predictions from them, in training and in evaluation alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from quadrat.ops.constants import constant
from quadrat.structures import Batch, Detections, Result

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Model(nn.Module):
    """``loss`` returns the terms named in ``loss_names``: scalars, unweighted, normalised as the paper says.

    ``result`` is the kind that ``predict`` returns, ``adds`` the optional fields of it that the model fills. ``reading_names``
    are the scalars that ``readings`` returns. ``staged`` are the beginnings of the names of parameters that weights to begin from
    may lack: those of a coarser net of the family; ``fitted_late`` those of what a model of the family may do without.
    ``reads_proposals``: its pictures must bring regions found beforehand.
    """

    loss_names: tuple[str, ...]
    result: type[Result] = Detections
    adds: tuple[str, ...] = ()
    reading_names: tuple[str, ...] = ()
    staged: tuple[str, ...] = ()
    fitted_late: tuple[str, ...] = ()
    reads_proposals: bool = False

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Everything that losses and predictions share: maps by name."""
        raise NotImplementedError

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, features: dict[str, Tensor], batch: Batch) -> Sequence[Result]:
        """One result per image in the frame of the batch's images; detections best first."""
        raise NotImplementedError

    def readings(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scalars that tell something about the features; evaluation logs their means."""
        return {}

    def shared(self) -> Sequence[nn.Module]:
        """The parts that every term passes through, in the order of the forward pass: what the terms compete for."""
        raise NotImplementedError

    def shards(self) -> Iterator[nn.Module]:
        """The parts that sharded training gathers and releases one after another; all else is gathered for the whole step."""
        return iter(())


@runtime_checkable
class FitsLate(Protocol):
    """A model of which parts are fitted once, when the network has been trained: before the last validation of a run.

    ``fitted`` () is true from then on.
    """

    fitted: Tensor

    def finish(
        self, batches: Iterable[Batch], folder: str | Path, *, rank: int, world: int, barrier: Callable[[], Any]
    ) -> str:
        """Fit them from this rank's share of the training pictures, as they are; ``folder`` is for what takes room, one for all
        ranks, who wait for each other at the ``barrier``. What was kept there, in a sentence."""
        ...

    def unfit(self) -> None:
        """The network learns again: do without what was fitted."""
        ...


class Normalise(nn.Module):
    """Bytes to standardised floats on the device: (B, 3, H, W) uint8 -> float32; the padding becomes 0."""

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        mean = constant(self.mean, torch.float32, images.device)[:, None, None]
        std = constant(self.std, torch.float32, images.device)[:, None, None]
        inside = _inside(images, sizes)
        return ((images.float() / 255 - mean) / std) * inside


def _inside(images: Tensor, sizes: Tensor) -> Tensor:
    """Which pixels of padded images belong to the picture: (B, 1, H, W)."""
    y = torch.arange(images.shape[2], device=images.device)[None, :, None]
    x = torch.arange(images.shape[3], device=images.device)[None, None, :]
    return ((y < sizes[:, 0, None, None]) & (x < sizes[:, 1, None, None]))[:, None]
