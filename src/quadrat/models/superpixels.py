"""One class for each segment of a picture that looks alike."""

from __future__ import annotations

import torch
from skimage.segmentation import felzenszwalb
from torch import Tensor


class Superpixels:
    """A vote of the pixels of each segment by the sum of their softmax (Farabet et al., TPAMI 2013, section 4.1).

    Segments are those of the graph segmentation of Felzenszwalb and Huttenlocher (IJCV 2004) by scikit-image, computed on the
    host: ``scale`` (larger: larger segments), ``sigma`` of the Gaussian before it, ``min_size`` of a segment in pixels.
    """

    def __init__(self, scale: float = 100.0, sigma: float = 0.5, min_size: int = 20) -> None:
        self.scale, self.sigma, self.min_size = scale, sigma, min_size

    def segments(self, image: Tensor) -> Tensor:
        """The number 0.. of the segment of every pixel of a picture uint8 (3, H, W): (H, W) int64 on the host."""
        pixels = image.permute(1, 2, 0).cpu().numpy()
        found = felzenszwalb(pixels, scale=self.scale, sigma=self.sigma, min_size=self.min_size, channel_axis=-1)
        return torch.from_numpy(found).long()

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """The class (H, W) uint8 of every pixel from scores (S, H, W)."""
        segments = self.segments(image).to(scores.device)
        shares = scores.float().softmax(0).flatten(1)  # (S, H * W)
        votes = shares.new_zeros((len(scores), int(segments.max()) + 1)).index_add_(1, segments.flatten(), shares)
        return votes.argmax(0)[segments].to(torch.uint8)
