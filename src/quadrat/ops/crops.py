"""Parts of pictures, brought to one size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def crop_resize(images: Tensor, boxes: Tensor, size: tuple[int, int], *, samples: int = 2) -> Tensor:
    """The parts of images (B, D, H, W) in boxes (B, R, 4), each warped to ``size`` (h, w): (B, R, D, h, w); 0 outside.

    A pixel is the mean of ``samples`` x ``samples`` bilinear reads, so that what is made up to twice that much smaller keeps all
    that it showed. All regions of an image are read in one go, as one tall picture.
    """
    count, regions = boxes.shape[:2]
    height, width = size[0] * samples, size[1] * samples
    y = _places(boxes[..., 1], boxes[..., 3], height, images.shape[2])[..., None].expand(-1, -1, -1, width)
    x = _places(boxes[..., 0], boxes[..., 2], width, images.shape[3])[:, :, None].expand(-1, -1, height, -1)
    grid = torch.stack([x, y], dim=-1).view(count, regions * height, width, 2)
    read = functional.grid_sample(
        images, grid.to(images.dtype), align_corners=False
    )  # (B, D, R * h * samples, w * samples)
    read = functional.avg_pool2d(read, samples) if samples > 1 else read
    return read.view(count, -1, regions, *size).transpose(1, 2)


def _places(low: Tensor, high: Tensor, steps: int, length: int) -> Tensor:
    """Where to read between two edges (B, R), in halves of an axis of ``length`` pixels from its middle: (B, R, steps)."""
    share = (torch.arange(steps, device=low.device, dtype=low.dtype) + 0.5) / steps
    position = low[..., None] + (high - low)[..., None] * share
    return position * (2 / length) - 1
