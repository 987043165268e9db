"""Look at what the model sees: validation pictures with truth and detections side by side, in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from quadrat.plots.draw import draw_detections, draw_targets, grid, write_image
from quadrat.structures import Batch, Detections, Schema


class Pictures(Callback):
    """Draw the first ``count`` validation pictures after every validation: truth on the left, detections on the right.

    Small pictures are enlarged to about ``side`` pixels, so that the words on them can be read. ``folder`` receives
    `epoch-0012.png` and the newest once more as `latest.png`; loggers that show pictures get it too.
    """

    def __init__(self, folder: str | Path, count: int = 6, threshold: float = 0.5, side: int = 320) -> None:
        self.folder, self.count, self.threshold, self.side = Path(folder), count, threshold, side
        self.drawn: list[np.ndarray] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and len(self.drawn) < self.count:
            self._draw(batch, outputs, pl_module.schema)  # pyright: ignore[reportArgumentType]

    def _draw(self, batch: Batch, detections: list[Detections], schema: Schema) -> None:
        for picture, target, found in zip(batch.images, batch.targets, detections, strict=True):
            if len(self.drawn) == self.count:
                return
            height, width = target.size
            image = picture[:, :height, :width].permute(1, 2, 0).cpu().numpy()
            zoom = max(1, self.side // max(height, width))
            truth = draw_targets(image, target, schema, zoom=zoom)
            seen = draw_detections(image, found.cpu(), schema, threshold=self.threshold, zoom=zoom)
            self.drawn.append(grid([truth, seen], columns=2))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.drawn:
            return
        sheet = grid(self.drawn, columns=2)
        self.drawn = []
        self.folder.mkdir(parents=True, exist_ok=True)
        write_image(self.folder / f"epoch-{trainer.current_epoch:04d}.png", sheet)
        write_image(self.folder / "latest.png", sheet)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("val/pictures", [sheet])  # pyright: ignore[reportAttributeAccessIssue]
