"""The four numbers that stand for one box in a frame, and what they are measured in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

SMALLEST = 1e-3
"""A box that is read back is at least so wide and high, as a share of its frame."""

Encoding = Literal["centre", "edges"]


class BoxCode(nn.Module):
    """Boxes as four numbers: shares of a frame, less ``mean`` and divided by ``std``.

    ``centre``: cx / W, cy / H, w / W, h / H (the lecture, VGG); ``edges``: x1 / W, y1 / H, x2 / W, y2 / H (OverFeat).
    ``standardise`` is a hidden weight of the loss: null leaves the shares as they are, [means, stds] gives four numbers each,
    ``measured`` takes those of the training set (`measure` must be told them before training; they travel in the checkpoint).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoding: Encoding = "centre", standardise: Literal["measured"] | Sequence[Sequence[float]] | None = None
    ) -> None:
        super().__init__()
        if encoding not in ("centre", "edges"):
            raise ValueError(f"a box is encoded by its centre or its edges, got encoding={encoding}")
        self.encoding = encoding
        self.measured = standardise == "measured"
        mean, std = _given(standardise)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def measure(self, boxes: Tensor, frames: Tensor) -> None:
        """Take mean and deviation from the training set: boxes (N, 4) in frames (N, 4)."""
        if self.measured and len(boxes):
            shares = self._shares(boxes.double(), frames.double())
            self.mean.copy_(shares.mean(0))
            self.std.copy_(shares.std(0, correction=0).clamp(min=SMALLEST))

    def encode(self, boxes: Tensor, frames: Tensor) -> Tensor:
        """Numbers (..., 4) of boxes (..., 4) in frames (..., 4)."""
        return (self._shares(boxes, frames) - self.mean) / self.std

    def start(self) -> Tensor:
        """The numbers (4,) to begin with: the mean box where it is measured, else the middle half of the frame."""
        frame, half = self.mean.new_tensor([0.0, 0.0, 1.0, 1.0]), self.mean.new_tensor([0.25, 0.25, 0.75, 0.75])
        return torch.zeros_like(self.mean) if self.measured else self.encode(half, frame)

    def decode(self, codes: Tensor, frames: Tensor) -> Tensor:
        """Boxes (..., 4) of numbers (..., 4) in frames (..., 4); none is narrower or lower than a thousandth of its frame."""
        shares = codes.float() * self.std + self.mean
        first, second = shares[..., :2], shares[..., 2:]
        if self.encoding == "centre":
            first, second = first - second / 2, first + second / 2
        middle, half = (first + second) / 2, (second - first) / 2
        half = half + (half.clamp(min=SMALLEST / 2) - half).detach()  # what has no extent can still be told to grow
        corner, size = frames[..., :2], frames[..., 2:] - frames[..., :2]
        return torch.cat([corner + (middle - half) * size, corner + (middle + half) * size], dim=-1)

    def _shares(self, boxes: Tensor, frames: Tensor) -> Tensor:
        size = frames[..., 2:] - frames[..., :2]
        first = (boxes[..., :2] - frames[..., :2]) / size
        second = (boxes[..., 2:] - frames[..., :2]) / size
        if self.encoding == "centre":
            first, second = (first + second) / 2, second - first
        return torch.cat([first, second], dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if not self.measured:  # what the config gives holds, also for a run that begins from another's weights
            state_dict[f"{prefix}mean"], state_dict[f"{prefix}std"] = self.mean, self.std
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _given(standardise: Any) -> tuple[Tensor, Tensor]:
    if standardise is None or standardise == "measured":
        return torch.zeros(4), torch.ones(4)
    try:
        mean, std = ([float(number) for number in row] for row in standardise)
    except (TypeError, ValueError):
        mean = std = []
    if len(mean) != 4 or len(std) != 4 or min(std) <= 0:
        raise ValueError(
            f"standardise is null, measured, or [[four means], [four deviations above 0]] as shares of the frame, "
            f"got {standardise}"
        )
    return torch.tensor(mean), torch.tensor(std)
