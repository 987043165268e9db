"""Pictures too large for one pass: scored tile by tile with overlap, and blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Maps = dict[str, Tensor]


class Tiles:
    """Score pictures in tiles of ``size`` (h, w) pixels that overlap by at least ``overlap``.

    Where tiles overlap their scores are averaged, a pixel of each weighing the more the further it lies from that tile's edge, so
    that no seam is left. Tiles of one batch are scored together, one place after another.
    """

    def __init__(self, size: tuple[int, int], overlap: int = 64) -> None:
        if not 0 <= overlap < min(size):
            raise ValueError(
                f"tiles of {size[0]}x{size[1]} pixels overlap by 0..{min(size) - 1}, got {overlap}; overlap={min(size) // 4}"
            )
        self.size, self.overlap = (int(size[0]), int(size[1])), overlap

    def __call__(self, score: Callable[[Tensor], Maps], images: Tensor) -> Maps:
        """Scores (B, S, H, W) by name of images (B, 3, H, W), from a function that gives them for images of any size."""
        height, width = images.shape[2:]
        sums: Maps = {}
        weights = images.new_zeros((height, width), dtype=torch.float32)
        for y, x in self.places(height, width):
            window = images[:, :, y : y + self.size[0], x : x + self.size[1]]
            weight = self._weight(window.shape[2], window.shape[3], images.device)
            weights[y : y + window.shape[2], x : x + window.shape[3]] += weight
            for name, scores in score(window).items():
                if name not in sums:
                    sums[name] = scores.new_zeros((*scores.shape[:2], height, width), dtype=torch.float32)
                sums[name][:, :, y : y + window.shape[2], x : x + window.shape[3]] += scores.float() * weight
        return {name: total / weights for name, total in sums.items()}

    def places(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """The upper left corner of each tile; the last ones end where the picture does."""
        for y in _starts(height, self.size[0], self.overlap):
            for x in _starts(width, self.size[1], self.overlap):
                yield y, x

    def _weight(self, height: int, width: int, device: torch.device) -> Tensor:
        return _ramp(height, self.overlap, device)[:, None] * _ramp(width, self.overlap, device)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    """Up over the overlap at one end and down at the other, never 0."""
    from_edge = torch.minimum(torch.arange(length, device=device), torch.arange(length - 1, -1, -1, device=device))
    return ((from_edge + 1) / (overlap + 1)).clamp(max=1.0)
