"""Region proposal network (Ren et al., NIPS 2015): is there an object at this anchor, and how must the anchor move?

Objectness is one logit per anchor; the paper's two-way softmax is the same function of the difference of its two logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import Features
from quadrat.losses.classification import binary_cross_entropy
from quadrat.losses.regression import smooth_l1
from quadrat.ops.anchors import grid_anchors
from quadrat.ops.boxes import clip, decode, encode
from quadrat.ops.match import IGNORED, gather_rows, match
from quadrat.ops.sample import sample
from quadrat.ops.suppress import suppress
from quadrat.structures import Batch, Proposals

CODER = (1.0, 1.0, 1.0, 1.0)
"""Offsets of anchors are regressed as they are, without the region head's multipliers."""


class Judged(NamedTuple):
    """What the network says of its anchors: ``objectness`` (B, A), ``deltas`` (B, A, 4), ``anchors`` (A, 4), per-level counts."""

    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    counts: list[int]


class Limits(NamedTuple):
    """How many boxes enter suppression on each level, and how many leave it in each image."""

    before: int
    after: int


class RPN(nn.Module):
    """One small head slid over every map, or over ``maps``, its anchors, their targets, two losses, and the proposals.

    ``box_normaliser`` is the denominator of ``rpn_box``: the anchors sampled (every released code), or the locations of the
    maps (the paper, N_reg; with weight 10 it balances the two terms). ``inside_only`` trains no anchor that crosses the
    border (the paper). ``min_size`` is the least side of a proposal, in pixels of the original picture.
    """

    loss_names = ("rpn_objectness", "rpn_box")

    def __init__(
        self,
        upstream: Features,
        anchors: Callable[[Sequence[int]], list[Tensor]],
        *,
        maps: Sequence[str] | None = None,
        hidden: int | None = None,
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        samples: int = 256,
        positive_fraction: float = 0.5,
        inside_only: bool = False,
        box_beta: float = 1 / 9,
        box_normaliser: Literal["samples", "locations"] = "samples",
        train_limits: tuple[int, int] = (2000, 2000),
        test_limits: tuple[int, int] = (1000, 1000),
        nms: float = 0.7,
        min_size: float = 1e-3,
    ) -> None:
        super().__init__()
        if box_normaliser not in ("samples", "locations"):
            raise ValueError(f"box_normaliser is samples or locations, got {box_normaliser}")
        self.names = tuple(maps or upstream.out_channels)
        self.strides = [upstream.strides[name] for name in self.names]
        base = anchors(self.strides)
        self.per_cell = len(base[0])
        for index, boxes in enumerate(base):
            self.register_buffer(f"base_{index}", boxes, persistent=False)
        channels = upstream.out_channels[self.names[0]]
        self.conv = nn.Conv2d(channels, hidden or channels, 3, padding=1)
        self.objectness = nn.Conv2d(hidden or channels, self.per_cell, 1)
        self.box = nn.Conv2d(hidden or channels, self.per_cell * 4, 1)
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.01) if name.endswith("weight") else nn.init.zeros_(parameter)
        self.positive_iou, self.negative_iou = positive_iou, negative_iou
        self.samples, self.positive_fraction = samples, positive_fraction
        self.inside_only = inside_only
        self.box_beta, self.box_normaliser = box_beta, box_normaliser
        self.train_limits, self.test_limits = Limits(*train_limits), Limits(*test_limits)
        self.nms, self.min_size = nms, min_size

    def forward(self, maps: dict[str, Tensor]) -> Judged:
        """Judge every anchor of every map."""
        logits, deltas, anchors = [], [], []
        for index, (name, stride) in enumerate(zip(self.names, self.strides, strict=True)):
            hidden = functional.relu(self.conv(maps[name]))
            # (B, A, H, W) -> (B, H*W*A), and (B, A*4, H, W) -> (B, H*W*A, 4): the order of the anchor grid
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.box(hidden).permute(0, 2, 3, 1).reshape(len(hidden), -1, 4))
            anchors.append(grid_anchors(self.get_buffer(f"base_{index}"), hidden.shape[2], hidden.shape[3], stride))
        return Judged(
            torch.cat(logits, dim=1).float(),
            torch.cat(deltas, dim=1).float(),
            torch.cat(anchors),
            [len(a) for a in anchors],
        )

    def loss(self, judged: Judged, batch: Batch) -> dict[str, Tensor]:
        """``rpn_objectness`` over the sampled anchors, ``rpn_box`` over the positive ones among them."""
        inside = self._trainable(judged.anchors, batch)
        matched = match(
            torch.where(inside[..., None], judged.anchors, 0.0),  # an empty anchor matches nothing
            batch.boxes,
            batch.valid,
            batch.ignore,
            positive=self.positive_iou,
            negative=(0.0, self.negative_iou),
            best_per_object=True,
        )
        drawn = sample(torch.where(inside, matched.state, IGNORED), self.samples, self.positive_fraction)
        positive = drawn.positive & drawn.valid
        truth = gather_rows(batch.boxes, gather_rows(matched.index, drawn.index))  # (B, S, 4)
        anchors = judged.anchors[drawn.index]
        # where nothing is positive the anchor answers for itself, which keeps the logarithms finite
        target = encode(torch.where(positive[..., None], truth, anchors), anchors, CODER)
        box = smooth_l1(gather_rows(judged.deltas, drawn.index), target, self.box_beta).sum(-1)
        locations = len(judged.anchors) // self.per_cell * len(batch)
        denominator = drawn.valid.sum().clamp(min=1) if self.box_normaliser == "samples" else locations
        return {
            "rpn_objectness": binary_cross_entropy(gather_rows(judged.objectness, drawn.index), positive, drawn.valid),
            "rpn_box": (box * positive).sum() / denominator,
        }

    def _trainable(self, anchors: Tensor, batch: Batch) -> Tensor:
        """Which anchors (B, A) are matched at all: each image's own insides, or one row for all where any will do."""
        if self.inside_only:
            return _inside(anchors, batch.sizes)
        return torch.ones((1, len(anchors)), dtype=torch.bool, device=anchors.device)

    @torch.no_grad()
    def propose(self, judged: Judged, batch: Batch, limits: Limits) -> Proposals:
        """The best boxes of each image, suppressed level by level; no gradient flows through their coordinates."""
        index, level = self._best_per_level(judged, limits.before)
        scores = gather_rows(judged.objectness, index)
        boxes = clip(decode(gather_rows(judged.deltas, index), judged.anchors[index], CODER), batch.sizes)
        scale = (batch.sizes / batch.original_sizes).mean(1)[:, None, None]  # input pixels per original pixel
        valid = ((boxes[..., 2:] - boxes[..., :2]) >= self.min_size * scale).all(-1)
        kept = suppress(boxes, scores, level, valid, threshold=self.nms, keep=limits.after)
        return Proposals(gather_rows(boxes, kept.index), gather_rows(scores, kept.index).sigmoid(), kept.valid)

    def _best_per_level(self, judged: Judged, most: int) -> tuple[Tensor, Tensor]:
        """Anchors (B, K) with the highest objectness on each level, and the level each is from."""
        picks, levels, start = [], [], 0
        for level, part in enumerate(judged.objectness.split(judged.counts, dim=1)):
            best = part.topk(min(most, part.shape[1]), dim=1).indices
            picks.append(best + start)
            levels.append(torch.full_like(best, level))
            start += part.shape[1]
        return torch.cat(picks, dim=1), torch.cat(levels, dim=1)


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Anchors (B, A) that do not cross the border of images of sizes (B, 2)."""
    height, width = sizes[:, 0:1], sizes[:, 1:2]
    low = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0)
    return low & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
