"""The proposer of a trained run, as a finder of regions beside the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from quadrat.loading import load
from quadrat.models.regions import Regions
from quadrat.ops.match import gather_rows
from quadrat.runs import Run
from quadrat.structures import scale_between


class Trained:
    """Boxes (P, 4) of a picture uint8 RGB (H, W, 3), best first, as the proposer of a ``run`` proposes them in evaluation.

    ``limits`` are how many enter and leave its suppression. Raises ValueError for a run whose model has no proposer.
    """

    def __init__(self, run: str, limits: Sequence[int] = (6000, 2000)) -> None:
        model, _, self.prepared = load(Run.open(run), device="cpu")
        if not isinstance(model, Regions) or not model.proposer.loss_names:
            raise ValueError(
                f"{run}: {type(model).__name__} has no proposer that has learned; give a run of Faster R-CNN or R-FCN"
            )
        self.model, self.limits = model, type(model.proposer.test_limits)(*limits)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        batch = self.prepared(image)
        judged = self.model.proposer(self.model.features(batch))
        found = self.model.proposer.propose(judged, batch, self.limits)
        best = found.scores.where(found.valid, -1.0).argsort(dim=1, descending=True)
        boxes = gather_rows(found.boxes, best)[0][gather_rows(found.valid, best)[0]]
        target = batch.targets[0]
        return (boxes * scale_between(target.size, target.original_size)).numpy()
