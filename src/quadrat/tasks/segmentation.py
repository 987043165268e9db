"""Every pixel a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quadrat.losses.pixels import ClassWeights
from quadrat.metrics.pixels import PixelScores
from quadrat.models.base import Model
from quadrat.plots.confusion import draw_confusion
from quadrat.structures import Schema, SemanticMap
from quadrat.tasks.base import Task


class SegmentationTask(Task):
    """Give every pixel its class; chosen by the mean intersection over union of the whole set.

    Class weights that follow from how often a class occurs are counted in the training set before the first step.
    """

    result = SemanticMap

    def __init__(
        self, model: Model, schema: Schema, *, metric: Callable[..., PixelScores] = PixelScores, **base: Any
    ) -> None:
        super().__init__(model, metric=metric(schema.pixel_classes), schema=schema, **base)

    def on_fit_start(self) -> None:
        """After a checkpoint was restored: a run that begins from another's state has its own class weights."""
        counted = [part for part in self.model.modules() if isinstance(part, ClassWeights) and part.scheme is not None]
        if counted:
            counts = self.trainer.datamodule.pixel_counts()  # pyright: ignore[reportAttributeAccessIssue]
            for part in counted:
                part.count(*counts)

    def figures(self) -> dict[str, np.ndarray]:
        assert isinstance(self.metric, PixelScores)
        self.metric.compute()
        if not self.trainer.is_global_zero:
            return {}
        return {"confusion": draw_confusion(self.metric.matrix(), self.schema.pixel_classes)}

    def metric_names(self) -> tuple[str, ...]:
        assert isinstance(self.metric, PixelScores)
        return self.metric.names()
