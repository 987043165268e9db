"""R-CNN and SPPNet: the network learns first; then what looks at its features is fitted, in stages of its own.

Girshick et al., CVPR 2014, and He et al., ECCV 2014. Fine-tuning is a softmax over the classes (`Regions` with the head
`RegionClass`). When it is over, features of all pictures go to a cache on disk, and from there come an SVM for each class
and a regression that moves boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from quadrat.heads.region_class import RegionClass
from quadrat.heads.suppressed import suppressed
from quadrat.models import regions
from quadrat.models.feature_cache import FeatureCache, halves, read_arrays, write_arrays
from quadrat.models.linear_svm import Examples, LinearSVMs
from quadrat.models.regions import Regions
from quadrat.models.ridge_boxes import CODER, Moves, RidgeBoxes
from quadrat.ops.boxes import area, encode, intersection, over_union
from quadrat.structures import Batch, Detections, Schema

_REGIONS = "labels"
"""The array of a picture that has a row for each region, whatever is fitted."""


class Staged(Regions):
    """`Regions` until `finish`; from then on margins of SVMs are its scores, and a ridge regression moves its boxes.

    Without ``svm`` the softmax still scores, without ``ridge`` the boxes stay where they were proposed. What is fitted are
    buffers, so a checkpoint holds it. A margin becomes a score by a sigmoid, which keeps the order: scores are 0..1, and 0.5
    where a margin is 0.
    """

    staged = Regions.fitted_late

    box: RegionClass
    fitted: Tensor

    def __init__(
        self,
        *parts: Any,
        svm: Callable[[int, int], LinearSVMs] | None = None,
        ridge: Callable[[int, int], RidgeBoxes] | None = None,
        **look: Any,
    ) -> None:
        super().__init__(*parts, **look)
        box = self.box
        if not isinstance(box, RegionClass):
            raise ValueError(
                f"SVMs and ridge regression look at the hidden features of quadrat.heads.region_class.RegionClass, and the head "
                f"is {type(box).__name__}: choose model=rcnn or model=sppnet, or leave both out (model.svm=null model.ridge=null)"
            )
        self.svm = None if svm is None else svm(box.classes.in_features, box.num_classes)
        self.ridge = None if ridge is None else ridge(box.pool.channels * box.pool.bins**2, box.num_classes)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        if not self.fitted:
            return super().predict(features, batch)
        proposals = self.proposer.propose(self.proposer(features), batch, self.proposer.test_limits)
        pooled, hidden = self.box.hidden(features, proposals.boxes)
        shape = (*proposals.valid.shape, self.box.num_classes)
        scores, chosen = (values.view(shape) for values in self._scores(hidden))
        boxes = self._moved(pooled, proposals.boxes)
        valid = chosen & proposals.valid[..., None]
        return suppressed(boxes, scores, valid, batch, nms=self.box.nms, most_detections=self.box.most_detections)

    def _scores(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, C) of hidden features, and which are high enough for a detection."""
        if self.svm is None:
            scores = self.box.classes(hidden).float().softmax(-1)[:, 1:]
            return scores, scores > self.box.score_threshold
        margins = self.svm(hidden)
        return margins.sigmoid(), margins > self.svm.threshold

    def _moved(self, pooled: Tensor, boxes: Tensor) -> Tensor:
        """Boxes (B, R, C, 4) of regions (B, R, 4), or (B, R, 1, 4) where nothing moves them."""
        if self.ridge is None:
            return boxes[:, :, None]
        return self.ridge(pooled.flatten(1), boxes.flatten(0, 1)).unflatten(0, boxes.shape[:2])

    def unfit(self) -> None:
        """Go back to the softmax and the boxes as proposed: the network learns again, and the fits are of an older one."""
        self.fitted.fill_(False)

    @torch.no_grad()
    def finish(
        self,
        batches: Iterable[Batch],
        folder: str | Path,
        *,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], Any] = lambda: None,
    ) -> str:
        """Fit what is fitted last, from pictures of the training set as they are; what is on disk, and where, in a sentence.

        Each rank is given its share of the pictures, with proposals, and fits its share of the classes; ``folder`` is one for all
        ranks, who wait for each other at the ``barrier``. Batches all of whose features are there already, of the very same
        weights, are not looked at again.
        """
        training = self.training
        self.eval()
        cache = FeatureCache(folder, self._fingerprint())
        if rank == 0:
            cache.drop_others()
        self._store(cache, batches)
        barrier()
        self._fit(cache, range(rank, self.box.num_classes, world), cache.folder / "fits" / f"{rank}.npz")
        barrier()
        for other in range(world):
            self._take(range(other, self.box.num_classes, world), cache.folder / "fits" / f"{other}.npz")
        self.fitted.fill_(True)
        self.train(training)
        return cache.summary(_REGIONS)

    def _fingerprint(self) -> str:
        """What features depend on: every weight and statistic but those of the fits, and which of them are kept."""
        kept = (self.proposer.train_limits, self.svm is not None, self.ridge and self.ridge.min_iou)
        digest = sha256(repr(kept).encode())
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            if not name.startswith(self.staged):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def _store(self, cache: FeatureCache, batches: Iterable[Batch]) -> None:
        for batch in tqdm(batches, "features", unit="batch", delay=2, leave=False):
            if not all(target.image_id in cache for target in batch.targets):
                self._store_batch(cache, batch.to(self.fitted.device))

    def _store_batch(self, cache: FeatureCache, batch: Batch) -> None:
        """The regions of a picture are its objects that count, and behind them the proposals."""
        maps = self.features(batch)
        proposals = self.proposer.propose(self.proposer(maps), batch, self.proposer.train_limits)
        boxes = torch.cat([batch.boxes, proposals.boxes], dim=1)
        labels = torch.cat([batch.labels, proposals.valid.new_zeros(proposals.valid.shape, dtype=torch.long)], dim=1)
        real = torch.cat([batch.valid & ~batch.ignore, proposals.valid], dim=1)
        pooled, hidden = (values.flatten(1).unflatten(0, boxes.shape[:2]) for values in self.box.hidden(maps, boxes))
        for i, target in enumerate(batch.targets):
            own, there = real[i], batch.valid[i]
            truth = (batch.boxes[i][there], batch.labels[i][there], batch.ignore[i][there])
            arrays = {_REGIONS: labels[i][own].cpu().numpy()}
            arrays |= self._examples(hidden[i][own], boxes[i][own], *truth, target.image_id)
            arrays |= self._moves(pooled[i][own], boxes[i][own], *truth, target.image_id)
            cache.write(target.image_id, arrays)

    def _examples(
        self, hidden: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, ignore: Tensor, image_id: int | str
    ) -> dict[str, np.ndarray]:
        """What the SVMs learn from beside the labels, by the names of `Examples`."""
        if self.svm is None:
            return {}
        overlaps = class_overlaps(boxes, truth, labels, ignore, self.box.num_classes)
        return {"hidden": halves(hidden, f"image {image_id}"), "overlaps": overlaps.cpu().numpy()}

    def _moves(
        self, pooled: Tensor, boxes: Tensor, truth: Tensor, labels: Tensor, ignore: Tensor, image_id: int | str
    ) -> dict[str, np.ndarray]:
        """What the ridge regression learns from, by the names of `Moves`."""
        if self.ridge is None:
            return {}
        truth, labels = truth[~ignore], labels[~ignore]
        overlaps = over_union(intersection(boxes, truth), area(boxes), area(truth))
        quality, index = torch.cat([overlaps, overlaps.new_zeros(len(boxes), 1)], dim=1).max(
            dim=1
        )  # there may be no object
        near = quality > self.ridge.min_iou
        return {
            "pooled": halves(pooled[near], f"image {image_id}"),
            "classes": labels[index[near]].cpu().numpy(),
            "deltas": encode(truth[index[near]], boxes[near], CODER).cpu().numpy(),
            "norms": pooled.float().norm(dim=1).cpu().numpy(),
        }

    def _fit(self, cache: FeatureCache, classes: Sequence[int], path: Path) -> None:
        """Fit some classes and leave the result for all ranks."""
        arrays: dict[str, np.ndarray] = {}
        if self.svm is not None and classes:
            arrays |= _named("svm", self.svm.fit(cache.rows(Examples), classes))
        if self.ridge is not None and classes:
            arrays |= _named("ridge", self.ridge.fit(cache.rows(Moves), classes))
        path.parent.mkdir(exist_ok=True)
        write_arrays(path, arrays)

    def _take(self, classes: Sequence[int], path: Path) -> None:
        """Read what a rank has fitted."""
        for name, buffer in self.named_buffers():
            if classes and name.startswith(("svm.", "ridge.")):
                buffer[list(classes)] = torch.from_numpy(read_arrays(path, (name,))[name]).to(buffer.device)


def _named(part: str, fit: Any) -> dict[str, np.ndarray]:
    """The arrays of a named tuple by the names of the buffers that they fill."""
    return {f"{part}.{name}": value for name, value in fit._asdict().items()}


def class_overlaps(boxes: Tensor, truth: Tensor, labels: Tensor, ignore: Tensor, num_classes: int) -> Tensor:
    """The largest IoU (R, C) of boxes (R, 4) with an object of each class; of one to ignore, the share of the box inside it.

    So what lies in a crowd is no negative of its class, however small it is beside it.
    """
    common = intersection(boxes, truth)
    covered = common / area(boxes)[:, None].clamp(min=torch.finfo(common.dtype).tiny)
    shares = torch.where(ignore, covered, over_union(common, area(boxes), area(truth)))
    best = shares.new_zeros(len(boxes), num_classes)
    return best.scatter_reduce(1, (labels - 1).expand(len(boxes), -1), shares, "amax")


def assemble(schema: Schema, *, svm: Any = None, ridge: Any = None, **parts: Any) -> Regions:
    """Join the parts of `regions.assemble` with what is fitted last, if anything is; the trunk stands still, as SPPNet's does."""
    model = regions.assemble(schema, **parts)
    model.backbone.freeze(len(model.backbone.stages), True)
    return _staged(model, svm, ridge)


def assemble_warped(schema: Schema, *, svm: Any = None, ridge: Any = None, **parts: Any) -> Regions:
    """The like for `regions.assemble_warped` (R-CNN: the trunk sees each region by itself)."""
    return _staged(regions.assemble_warped(schema, **parts), svm, ridge)


def _staged(model: Regions, svm: Any, ridge: Any) -> Regions:
    if svm is None and ridge is None:
        return model
    parts: Any = (model.backbone, model.neck, model.proposer, model.sampler, model.box)
    return Staged(*parts, svm=svm, ridge=ridge, mean=model.normalise.mean, std=model.normalise.std)
