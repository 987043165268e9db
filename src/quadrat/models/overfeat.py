"""OverFeat (Sermanet et al., ICLR 2014): a classifier and a box regressor at every place and scale, and boxes that are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quadrat.backbones.base import Backbone
from quadrat.heads.box_code import BoxCode
from quadrat.heads.overfeat import DenseLayers, DenseWindows, WindowSampler, middle_inside
from quadrat.losses.boxes import BoxLoss, Coded
from quadrat.losses.classification import cross_entropy, masked_mean
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.ops.boxes import clip
from quadrat.ops.match import gather_rows
from quadrat.ops.merge import merge_by_class
from quadrat.structures import Batch, Detections, Schema

SMALLEST = 1e-2
"""Least side of a box that is found, in pixels."""


class OverFeat(Model):
    """pictures at ``scales`` -> backbone -> one ``map`` -> windows of the grid -> C + 1 classes and a box for each window.

    The box is one for all classes or one for each (``shared_box``: how many numbers the regressor has). In training the pictures
    are seen at ``train_scales``. A result is made of the ``candidates`` best classes of all windows of a picture with a score
    above ``score_threshold``, merged by ``merge_threshold`` (`ops.merge`). The paper's confidence, the sum S of the merged
    scores, becomes S / (1 + S): it ranks the same, and lies between 0 and 1.
    """

    loss_names = ("window_class", "window_box")

    def __init__(
        self,
        backbone: Backbone,
        map: str,
        grid: DenseWindows,
        classifier: DenseLayers,
        regressor: DenseLayers,
        code: BoxCode,
        box_loss: BoxLoss,
        sampler: WindowSampler,
        *,
        scales: Sequence[float],
        train_scales: Sequence[float] | None = None,
        score_threshold: float = 0.05,
        candidates: int = 300,
        merge_threshold: float = 0.5,
        most_detections: int = 100,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if code.measured:
            raise ValueError(
                "model.code.standardise=measured is for whole pictures: give [[four means], [four deviations]]"
            )
        self.scales, self.train_scales = _positive(scales), _positive(train_scales or scales)
        self.normalise = Normalise(mean, std)
        self.backbone, self.map, self.grid = backbone, map, grid
        self.classifier, self.regressor = classifier, regressor
        self.code, self.box_loss, self.sampler = code, box_loss, sampler
        self.score_threshold, self.candidates = score_threshold, candidates
        self.merge_threshold, self.most_detections = merge_threshold, most_detections
        unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
        regressor.start(code.encode(unit, unit))  # with the window itself

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """All windows of all scales: ``windows`` (W, 4), ``logits`` (B, W, C + 1) and ``codes`` (B, W, C or 1, 4)."""
        images = self.normalise(batch.images, batch.sizes)
        views = [self._view(images, scale) for scale in (self.train_scales if self.training else self.scales)]
        windows, logits, codes = zip(*views, strict=True)
        return {"windows": torch.cat(windows), "logits": torch.cat(logits, dim=1), "codes": torch.cat(codes, dim=1)}

    def _view(self, images: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Windows, logits and codes of the pictures seen ``scale`` times as large."""
        features = self.backbone(_resized(images, scale))[self.map]
        height, width = features.shape[2:]
        windows = self.grid.windows(height, width, self.backbone.strides[self.map], images.device) / scale
        pooled = self.grid.pooled(features)
        scores, numbers = self.classifier(pooled), self.regressor(pooled)
        # (B, C + 1, h, w) -> (B, h * w, C + 1), and (B, 4 C, h, w) -> (B, h * w, C, 4): the order of the windows
        logits = scores.flatten(2).transpose(1, 2).float()
        return windows, logits, numbers.flatten(2).transpose(1, 2).float().unflatten(2, (-1, 4))

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``window_class`` and ``window_box``: means over the sampled windows, of cross-entropy and of the box loss."""
        windows, logits, codes = features["windows"], features["logits"], features["codes"]
        trained = self.sampler(windows, logits, batch)
        own = (trained.labels - 1).clamp(min=0) if codes.shape[2] > 1 else torch.zeros_like(trained.labels)
        codes = codes.gather(2, own[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]  # the true class's box
        boxed = trained.boxed[..., None]
        truth = torch.where(boxed, gather_rows(batch.boxes, trained.index), windows)
        found, target = Coded(codes, self.code.decode(codes, windows)), Coded(self.code.encode(truth, windows), truth)
        return {
            "window_class": cross_entropy(logits, trained.labels, trained.judged),
            "window_box": masked_mean(self.box_loss(found, target), trained.boxed),
        }

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        """The best candidates of each picture, merged class by class on the host."""
        boxes, scores, labels = self._candidates(features, batch)
        solid = ((boxes[..., 2:] - boxes[..., :2]) >= SMALLEST).all(-1)
        rows = torch.cat([boxes, scores[..., None], labels[..., None]], dim=-1).cpu()  # one copy to the host
        kept = (solid & (scores > self.score_threshold)).cpu()
        return [self._merged(rows[i][kept[i]], boxes.device, target.size) for i, target in enumerate(batch.targets)]

    def _candidates(self, features: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, K, 4), scores (B, K) and labels (B, K) of the best K pairs of a window and a class."""
        windows, codes = features["windows"], features["codes"]
        scores = features["logits"].softmax(-1)[..., 1:]  # (B, W, C)
        scores = scores * middle_inside(windows, batch.sizes)[..., None]
        classes = scores.shape[2]
        best, index = scores.flatten(1).topk(min(self.candidates, scores[0].numel()), dim=1)
        window = index // classes
        numbers = gather_rows(codes.flatten(1, 2), index if codes.shape[2] > 1 else window)
        return clip(self.code.decode(numbers, windows[window]), batch.sizes), best, index % classes + 1

    def _merged(self, rows: Tensor, device: torch.device, size: tuple[int, int]) -> Detections:
        """The result of one picture from rows (N, 6) of a box, a score and a label."""
        boxes, scores, labels = rows[:, :4].numpy(), rows[:, 4].numpy(), rows[:, 5].numpy()
        merged = merge_by_class(boxes, scores, labels, threshold=self.merge_threshold)
        boxes, scores, labels = (torch.from_numpy(part[: self.most_detections]).to(device) for part in merged)
        return Detections(boxes.float(), (scores / (1 + scores)).float(), labels.long(), size)

    def shared(self) -> Sequence[nn.Module]:
        return list(self.backbone.stages.values())

    def shards(self) -> Iterator[nn.Module]:
        yield from self.backbone.stages.values()
        yield from (self.classifier, self.regressor)


def _positive(scales: Sequence[float]) -> tuple[float, ...]:
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales are one or more factors above 0, got {list(scales)}")
    return tuple(float(scale) for scale in scales)


def _resized(images: Tensor, scale: float) -> Tensor:
    """Pictures (B, 3, H, W) ``scale`` times as large, whatever the rounding: pixel x is then at x * scale."""
    if scale == 1:
        return images
    return functional.interpolate(images, scale_factor=scale, mode="bilinear", antialias=scale < 1)


def assemble(
    schema: Schema,
    backbone: Backbone,
    map: str,
    grid: DenseWindows,
    classifier: Callable[..., DenseLayers],
    regressor: Callable[..., DenseLayers],
    code: BoxCode,
    box_loss: BoxLoss,
    sampler: WindowSampler,
    *,
    shared_box: bool = True,
    **settings: Any,
) -> OverFeat:
    """Join parts that wait for what is before them, for the classes of a data set; ValueError for a map that there is not."""
    if map not in backbone.out_channels:
        raise ValueError(f"model.map={map} is no map of the backbone, which has {list(backbone.out_channels)}")
    backbone.end_with([map])
    classes, channels = len(schema.classes), backbone.out_channels[map]
    return OverFeat(
        backbone,
        map,
        grid,
        classifier(channels, classes + 1, grid),
        regressor(channels, 4 if shared_box else 4 * classes, grid),
        code,
        box_loss,
        sampler,
        **settings,
    )
