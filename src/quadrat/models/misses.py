"""By how much a stage of a cascade is off, measured while it learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEMORY = 0.99
"""Share of what is known that is kept at each step: about the last hundred steps count."""


class Misses(nn.Module):
    """A normal distribution of errors for each of K joints, in torso diameters, from the latest steps (DeepPose, section 3.2).

    The paper measures them once, when the stage before is trained; here they follow it, so that stages may learn at the same
    time. They are buffers, so a checkpoint holds them.
    """

    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(joints, 1))
        self.register_buffer("total", torch.zeros(joints, 2))
        self.register_buffer("squares", torch.zeros(joints, 2))

    @torch.no_grad()
    def see(self, errors: Tensor, labelled: Tensor) -> None:
        """Errors (B, K, 2) of joints of which some are ``labelled`` (B, K)."""
        errors = torch.where(labelled[..., None], errors.float(), 0.0)
        for known, new in (
            (self.count, labelled.sum(0)[:, None]),
            (self.total, errors.sum(0)),
            (self.squares, errors.square().sum(0)),
        ):
            known.mul_(MEMORY).add_(new)

    def draw(self, joint: Tensor) -> Tensor:
        """An error (B, P, 2) for each of joints (B, P), drawn anew."""
        mean, deviation = self.mean(), self.deviation()
        return mean[joint] + deviation[joint] * torch.randn(*joint.shape, 2, device=joint.device)

    def mean(self) -> Tensor:
        """(K, 2)."""
        return self.total / self.count.clamp(min=1e-6)

    def deviation(self) -> Tensor:
        """(K, 2)."""
        return (self.squares / self.count.clamp(min=1e-6) - self.mean().square()).clamp(min=0).sqrt()
