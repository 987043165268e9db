"""A model of two terms on a backbone of four channels, trained with its backbone frozen at first.

As a program (`python two_phases.py <folder> <rank> <ranks> <port>`) this file is one of several processes that train it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.callbacks.freeze import Epochs, Freeze, Until
from quadrat.losses.weighting import WeightedSum, Weighting
from quadrat.structures import Batch
from quadrat.tasks.detection import DetectionTask
from quadrat.tasks.schedules import Steps
from two_heads import TERMS, TwoHeads, pictures

EPOCHS = 4


class OnBackbone(TwoHeads):
    """The shared layer is a backbone of two stages with batch norms."""

    def __init__(self, *, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        stages: dict[str, nn.Module] = {
            "c1": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            "c2": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        }
        self.backbone = Backbone(  # pyright: ignore[reportAttributeAccessIssue]
            stages, {"c2": 4}, {"c2": 1}, freeze_stages=freeze_stages, freeze_norm=freeze_norm
        )

    def features(self, batch: Batch) -> dict[str, Tensor]:
        colours = batch.images.float().mean(dim=(2, 3)) / 255  # (B, 3)
        maps = self.backbone(colours[..., None, None])["c2"].flatten(1)
        return {"all": self.neck(maps.tanh()).tanh(), "colours": colours}


class Diary(Callback):
    """All weights and statistics at the end of every epoch, and a checkpoint `<epochs done>.ckpt` if there is a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.epochs: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state: Mapping[str, Tensor] = pl_module.model.state_dict()  # pyright: ignore
        self.epochs.append({name: value.clone() for name, value in state.items()})
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{len(self.epochs)}.ckpt")


def fit(
    until: Until,
    *,
    model: TwoHeads | None = None,
    weighting: Weighting | None = None,
    batch: int = 4,
    folder: Path | None = None,
    goes_on: Path | None = None,
    **options: Any,
) -> tuple[Trainer, list[dict[str, Tensor]]]:
    """Train, from a checkpoint on if one is given; the trainer, and what the epochs left."""
    data, diary = pictures(batch), Diary(folder)
    task = DetectionTask(
        model or OnBackbone(),
        data.schema,
        weighting=weighting or WeightedSum(dict.fromkeys(TERMS, 1.0)),
        optimizer=partial(torch.optim.AdamW, lr=0.01),
        schedule=Steps(),
        backbone_rate=0.1,
    )
    silent = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **({"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "logger": False} | options),
        **silent,
        callbacks=[Freeze(until), diary],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )
    trainer.fit(task, data, ckpt_path=goes_on, weights_only=True)
    return trainer, diary.epochs


def main(folder: Path, rank: int, ranks: int, port: int) -> None:
    """Half of the epochs frozen, half thawed; then once more from a checkpoint before the thaw, and from one after it."""
    torch.set_num_threads(1)
    several: dict[str, Any] = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def again(**options: Any) -> list[dict[str, Tensor]]:
        return fit(Epochs(2), model=OnBackbone(freeze_norm=True), batch=4 // ranks, **several, **options)[1]

    states = folder / f"{ranks}"
    found = {"whole": again(folder=states)}
    found |= {f"from {done}": again(goes_on=states / f"{done}.ckpt") for done in (2, 3)}
    torch.save(found, folder / f"{ranks}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
