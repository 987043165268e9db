"""Pictures continued beyond their edges, and windows cut from them."""

from __future__ import annotations

import torch
from torch import Tensor


def mirror(images: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """Continue (B, D, H, W) by so many pixels in its mirror image, however far: the edge pixel is not repeated."""
    rows = _mirrored(images.shape[2], top, bottom, images.device)
    columns = _mirrored(images.shape[3], left, right, images.device)
    return images[:, :, rows][:, :, :, columns]


def _mirrored(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices -before..length + after folded back into 0..length - 1."""
    places = torch.arange(-before, length + after, device=device)
    period = max(1, 2 * (length - 1))
    places = places.remainder(period)
    return torch.minimum(places, period - places).clamp(max=length - 1)


def crop(maps: Tensor, size: tuple[int, int], offset: tuple[int, int] | None = None) -> Tensor:
    """A part of (B, D, H, W) of this size (h, w), from ``offset`` (y, x) on, else from the middle."""
    y, x = offset or ((maps.shape[2] - size[0]) // 2, (maps.shape[3] - size[1]) // 2)
    return maps[:, :, y : y + size[0], x : x + size[1]]


def surround(images: Tensor, sizes: Tensor, margin: int) -> Tensor:
    """Continue each picture of (B, D, H, W) by its own mirror image: (B, D, H + 2 margin, W + 2 margin).

    ``sizes`` (B, 2) are the height and width of each; what lies right of and below it, the padding of the batch, is written over,
    so that a picture looks the same in every batch.
    """
    rows = _mirrored_each(sizes[:, 0], images.shape[2], margin)
    columns = _mirrored_each(sizes[:, 1], images.shape[3], margin)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored_each(lengths: Tensor, padded: int, margin: int) -> Tensor:
    """Indices -margin..padded + margin folded back into 0..length - 1 for each of ``lengths`` (B,): (B, padded + 2 margin)."""
    lengths = lengths.long()[:, None]
    places = torch.arange(-margin, padded + margin, device=lengths.device)[None]
    period = (2 * (lengths - 1)).clamp(min=1)
    places = places.remainder(period)
    return torch.minimum(torch.minimum(places, period - places), lengths - 1)


def windows_at(images: Tensor, image: Tensor, y: Tensor, x: Tensor, size: int) -> Tensor:
    """Windows (N, D, size, size) of (B, D, H, W) that begin at ``y``, ``x`` (N,) of the pictures ``image`` (N,)."""
    views = images.unfold(2, size, 1).unfold(3, size, 1)  # (B, D, H', W', size, size) without a copy
    return views[image, :, y, x]
