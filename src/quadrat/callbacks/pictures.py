"""Look at what the model sees: validation pictures with truth and detections side by side, in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from quadrat.plots.draw import draw_result, draw_truth, grid, write_image
from quadrat.structures import Batch, Result, Schema


class Pictures(Callback):
    """Draw the first ``count`` validation pictures after every validation: truth on the left, what is seen on the right.

    Small pictures are enlarged to about ``side`` pixels, so that the words on them can be read. ``folder`` receives
    `epoch-0012.png` and the newest once more as `latest.png`, and what the task draws of its metric as `<name>.png`; loggers
    that show pictures get them too.
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

    def _draw(self, batch: Batch, results: Sequence[Result], schema: Schema) -> None:
        for picture, target, found in zip(batch.images, batch.targets, results, strict=True):
            if len(self.drawn) == self.count:
                return
            height, width = target.size
            image = picture[:, :height, :width].permute(1, 2, 0).cpu().numpy()
            zoom = max(1, self.side // max(height, width))
            truth = draw_truth(found, image, target, schema, zoom=zoom)
            seen = draw_result(found, image, schema, threshold=self.threshold, zoom=zoom)
            self.drawn.append(grid([truth, seen], columns=2))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures: dict[str, np.ndarray] = pl_module.figures()  # on every rank: it may gather a metric  # pyright: ignore
        if not self.drawn:
            return
        sheet = grid(self.drawn, columns=2)
        self.drawn = []
        self.folder.mkdir(parents=True, exist_ok=True)
        write_image(self.folder / f"epoch-{trainer.current_epoch:04d}.png", sheet)
        for name, picture in {"latest": sheet, **figures}.items():
            write_image(self.folder / f"{name}.png", picture)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                for name, picture in {"pictures": sheet, **figures}.items():
                    logger.log_image(f"val/{name}", [picture])  # pyright: ignore[reportAttributeAccessIssue]
