"""One object, its class and its box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quadrat.heads.box_code import BoxCode
from quadrat.metrics.localization import LocalizationScores
from quadrat.models.base import Model
from quadrat.ops.boxes import whole
from quadrat.structures import Detections, Schema
from quadrat.tasks.base import Task


class LocalizationTask(Task):
    """Say what a picture shows and where; a result's rows are guesses, best first.

    A code of boxes that is measured in those of the training set is told them before the first step.
    """

    result = Detections

    def __init__(
        self,
        model: Model,
        schema: Schema,
        *,
        metric: Callable[..., LocalizationScores] = LocalizationScores,
        **base: Any,
    ) -> None:
        super().__init__(model, metric=metric(schema.classes), schema=schema, **base)

    def on_fit_start(self) -> None:
        """After a checkpoint was restored: a run that begins from another's state measures its own boxes."""
        measured = [part for part in self.model.modules() if isinstance(part, BoxCode) and part.measured]
        if measured:
            boxes, sizes = self.trainer.datamodule.principal_boxes()  # pyright: ignore[reportAttributeAccessIssue]
            for part in measured:
                part.measure(boxes, whole(sizes))

    def metric_names(self) -> tuple[str, ...]:
        assert isinstance(self.metric, LocalizationScores)
        return self.metric.names()
