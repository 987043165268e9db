"""One person, its joints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from quadrat.metrics.pose import FRACTIONS, PoseScores
from quadrat.models.base import Model
from quadrat.plots.pdj import draw_pdj
from quadrat.structures import Detections, Schema
from quadrat.tasks.base import Task


class PoseTask(Task):
    """Say where the joints of a picture's person are.

    Raises ValueError for data without joints, and for a model that sees none.
    """

    result = Detections

    def __init__(
        self, model: Model, schema: Schema, *, metric: Callable[..., PoseScores] = PoseScores, **base: Any
    ) -> None:
        if not schema.joints:
            raise ValueError(
                f"PoseTask wants data with joints, this data has classes {list(schema.classes)} and no joints: data=lsp, "
                f"data=shapes_persons, or data=coco_persons"
            )
        if "keypoints" not in model.adds:
            raise ValueError(
                f"PoseTask wants a model that sees joints, {type(model).__name__} adds {list(model.adds)} to its detections: "
                f"choose task= and model= that belong together (task=pose model=deeppose)"
            )
        super().__init__(model, metric=metric(schema), schema=schema, **base)

    def figures(self) -> dict[str, np.ndarray]:
        assert isinstance(self.metric, PoseScores)
        self.metric.compute()
        curves = self.metric.curves()
        if not self.trainer.is_global_zero or not curves:
            return {}
        return {"pdj": draw_pdj(FRACTIONS, curves)}

    def metric_names(self) -> tuple[str, ...]:
        assert isinstance(self.metric, PoseScores)
        return self.metric.names()
