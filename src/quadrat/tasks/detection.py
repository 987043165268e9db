"""Boxes with classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quadrat.metrics.detection import BoxAP
from quadrat.models.base import Model
from quadrat.structures import Detections, Schema
from quadrat.tasks.base import Task


class DetectionTask(Task):
    """Find every object of every class; chosen by average precision."""

    result = Detections

    def __init__(self, model: Model, schema: Schema, *, metric: Callable[..., BoxAP] = BoxAP, **base: Any) -> None:
        super().__init__(model, metric=metric(schema.classes), schema=schema, **base)

    def metric_names(self) -> tuple[str, ...]:
        assert isinstance(self.metric, BoxAP)
        return self.metric.names()
