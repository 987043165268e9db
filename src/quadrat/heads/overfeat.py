"""A classifier of windows at every place of a map at once (OverFeat; Sermanet et al., ICLR 2014), and what it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.ops.anchors import grid_anchors
from quadrat.ops.constants import constant
from quadrat.ops.match import IGNORED, NEGATIVE, POSITIVE, gather_rows, match
from quadrat.ops.sample import sample
from quadrat.structures import Batch


@dataclass(frozen=True)
class DenseWindows:
    """Windows of a map: ``bins`` x ``bins`` cells of a max pooling by ``pool``, one window beginning at each ``every``-th cell.

    A plain net steps by a whole pooling (``every`` = ``pool``). OverFeat runs the pooling from each of its pool x pool offsets
    (section 3.3) and interlaces what follows: that is pooling at every cell (``every`` 1), and layers dilated by ``pool``.
    A window is ``side`` pixels wide where it was seen, null: the cells under it. Cell i is taken to begin at pixel i * stride.
    """

    bins: int = 5
    pool: int = 3
    every: int = 1
    side: float | None = None

    def __post_init__(self) -> None:
        if min(self.bins, self.pool, self.every) < 1:
            raise ValueError(
                f"model.grid has bins, pool and every of 1 or more, got {self.bins}, {self.pool} and {self.every}"
            )
        if self.side is not None and self.side <= 0:
            raise ValueError(f"model.grid.side is a number of pixels above 0, or null, got {self.side}")

    @property
    def cells(self) -> int:
        """Cells of the map under a window, on each axis."""
        return self.bins * self.pool

    def pooled(self, features: Tensor) -> Tensor:
        """The largest of pool x pool cells, from every cell on: (B, D, h, w) -> (B, D, h - pool + 1, w - pool + 1).

        A map smaller than a window is put in the middle of zeros, so that there is one.
        """
        (top, below), (left, right) = (self._missing(length) for length in features.shape[2:])
        return functional.max_pool2d(functional.pad(features, (left, right, top, below)), self.pool, stride=1)

    def windows(self, height: int, width: int, stride: int, device: torch.device) -> Tensor:
        """The boxes (W, 4) of all places on a map of height x width cells of ``stride`` pixels, row by row."""
        half = (self.side or self.cells * stride) / 2
        (top, below), (left, right) = (self._missing(length) for length in (height, width))
        y, x = ((self.cells / 2 - before) * stride for before in (top, left))
        base = constant((x - half, y - half, x + half, y + half), torch.float32, device)[None]
        rows, columns = (
            (length - self.cells) // self.every + 1 for length in (height + top + below, width + left + right)
        )
        return grid_anchors(base, rows, columns, self.every * stride)

    def _missing(self, length: int) -> tuple[int, int]:
        """Cells before and behind so many that make them enough for a window."""
        missing = max(0, self.cells - length)
        return missing // 2, missing - missing // 2


class DenseLayers(nn.Module):
    """A classifier's fully connected layers as convolutions: ``bins`` x ``bins``, then 1x1 twice, with ReLU and dropout between.

    On a map pooled by the grid: (B, D, h, w) -> (B, outputs, places down, places across). First weights are N(0, ``std``), or
    those of He et al. (ICCV 2015) where it is null; the last ones are N(0, ``last_std``).
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        grid: DenseWindows,
        *,
        hidden: int = 4096,
        last: int = 4096,
        dropout: float = 0.5,
        std: float | None = None,
        last_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, grid.bins, stride=grid.every, dilation=grid.pool)
        self.second = nn.Conv2d(hidden, last, 1)
        self.scores = nn.Conv2d(last, outputs, 1)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if std is not None:
                nn.init.normal_(layer.weight, std=std)
        nn.init.normal_(self.scores.weight, std=last_std)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def start(self, numbers: Tensor) -> None:
        """Begin with these numbers (n,) at every place, as often as they go into the outputs."""
        self.scores.bias.copy_(numbers.repeat(self.scores.out_channels // len(numbers)))  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, pooled: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.first(pooled)))
        return self.scores(self.dropout(torch.relu(self.second(hidden))))


class TrainingWindows(NamedTuple):
    """For every window of every picture, all (B, W): ``labels`` 0 for background, ``index`` the object it answers for,
    ``judged`` whether its class is trained and ``boxed`` whether its box is."""

    labels: Tensor
    index: Tensor
    judged: Tensor
    boxed: Tensor


class WindowSampler:
    """All windows that show an object, and of those that show background a fixed number an image, chosen on the fly.

    The paper tells the half of ``inside`` alone (section 4.2), the rest is ours. A window shows the object that it overlaps best
    if their IoU is ``positive_iou`` or more, or if no window does better for that object, and background if it is below
    ``background_iou``; a best window below that is left out. Of the background, ``random`` windows are drawn, and of the others
    the ``hard`` ones with the largest losses are added (section 5: on the fly, random or most offending). The box is trained
    where more than ``inside`` of the object lies in the window. Windows whose middle is not in the picture are left out.
    """

    def __init__(
        self,
        *,
        positive_iou: float = 0.5,
        background_iou: float = 0.3,
        inside: float = 0.5,
        random: int = 64,
        hard: int = 64,
    ) -> None:
        if not 0 < background_iou <= positive_iou <= 1:
            raise ValueError(
                f"model.sampler has 0 < background_iou <= positive_iou <= 1, got {background_iou} and {positive_iou}"
            )
        self.positive_iou, self.background_iou, self.inside = positive_iou, background_iou, inside
        self.random, self.hard = random, hard

    @torch.no_grad()
    def __call__(self, windows: Tensor, logits: Tensor, batch: Batch) -> TrainingWindows:
        """From windows (W, 4) and their logits (B, W, C + 1)."""
        seen = middle_inside(windows, batch.sizes)
        solid = torch.where(seen[..., None], windows, 0.0)  # an empty window matches nothing
        matched = match(
            solid,
            batch.boxes,
            batch.valid,
            batch.ignore,
            positive=self.positive_iou,
            negative=(0.0, self.background_iou),
            best_per_object=True,
        )
        poor = matched.quality < self.background_iou  # the best window for an object may be a bad one
        positive = seen & (matched.state == POSITIVE) & ~poor
        state = torch.where(seen & (matched.state == NEGATIVE), NEGATIVE, IGNORED)
        labels = torch.where(positive, gather_rows(batch.labels, matched.index), 0)
        within = share_inside(gather_rows(batch.boxes, matched.index), solid) > self.inside
        return TrainingWindows(labels, matched.index, positive | self._background(state, logits), positive & within)

    def _background(self, state: Tensor, logits: Tensor) -> Tensor:
        """Which negatives (B, W) are trained on."""
        random = sample(state, self.random, 0.0)
        drawn = _mask(random.index, random.valid, state)
        losses = -logits.log_softmax(-1)[..., 0]
        worst, index = torch.where((state == NEGATIVE) & ~drawn, losses, -1.0).topk(min(self.hard, state.shape[1]))
        return drawn | _mask(index, worst >= 0, state)


def _mask(index: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """The booleans ``values`` (B, S) at the columns ``index`` (B, S), false elsewhere, in the shape of ``like`` (B, W)."""
    return torch.zeros_like(like, dtype=torch.bool).scatter(1, index, values)


def middle_inside(windows: Tensor, sizes: Tensor) -> Tensor:
    """Which windows (W, 4) have their middle inside pictures of ``sizes`` (B, 2), and not in the batch's padding: (B, W)."""
    middle = (windows[:, :2] + windows[:, 2:]) / 2
    return (middle < sizes.flip(-1)[:, None]).all(-1)


def share_inside(boxes: Tensor, windows: Tensor) -> Tensor:
    """Which share of boxes (..., 4) lies in windows (..., 4), row by row: (...); none of an empty box."""
    low, high = torch.maximum(boxes[..., :2], windows[..., :2]), torch.minimum(boxes[..., 2:], windows[..., 2:])
    own = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return (high - low).clamp(min=0).prod(-1) / own.clamp(min=torch.finfo(own.dtype).tiny)
