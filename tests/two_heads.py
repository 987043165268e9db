"""A model of two terms and a few parameters, trained for some steps of plain gradient descent.

As a program (`python two_heads.py <folder> <rank> <ranks> <port>`) this file is one of several processes that train it with
every weighting in turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from logged import Rows
from quadrat.data.module import DataModule
from quadrat.data.shapes import Shapes
from quadrat.losses.balancing import MGDA, CAGrad, GradNorm, ImtlG, NashMTL, PCGrad
from quadrat.losses.learned import DynamicAverage, Famo, ImtlL, RevisedUncertainty, Uncertainty
from quadrat.losses.weighting import Geometric, RandomWeights, ScaleInvariant, WeightedSum, Weighting
from quadrat.models.base import Model
from quadrat.structures import Batch, Detections
from quadrat.tasks.detection import DetectionTask
from quadrat.tasks.schedules import Steps

TERMS = ("near", "far")
BALANCING = {"pcgrad": PCGrad, "mgda": MGDA, "cagrad": CAGrad, "imtl_g": ImtlG, "nash": NashMTL}
KINDS: dict[str, Any] = BALANCING | {
    **{"static": WeightedSum, "geometric": Geometric, "scale_invariant": ScaleInvariant, "rlw": RandomWeights},
    **{"uncertainty": partial(Uncertainty, regression=["near"]), "uncertainty_revised": RevisedUncertainty},
    **{"imtl_l": ImtlL, "dwa": DynamicAverage, "famo": Famo, "gradnorm": GradNorm},
}


class TwoHeads(Model):
    """Two numbers of the mean colour, through one shared layer: means over the pictures of a batch, like a detector's terms."""

    loss_names = TERMS

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        self.backbone, self.neck = nn.Linear(3, 4), nn.Linear(4, 4)
        self.near, self.far = nn.Linear(4, 1), nn.Linear(4, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.5)

    def features(self, batch: Batch) -> dict[str, Tensor]:
        colours = batch.images.float().mean(dim=(2, 3)) / 255  # (B, 3)
        return {"all": self.neck(self.backbone(colours).tanh()).tanh(), "colours": colours}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        wanted = features["colours"].sum(dim=1)
        near, far = self.near(features["all"])[:, 0], self.far(features["all"])[:, 0]
        return {"near": ((near - wanted) ** 2).mean(), "far": 10 * ((far + 3 * wanted) ** 2).mean()}

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        return []

    def shared(self) -> Sequence[nn.Module]:
        return (self.backbone, self.neck)


def pictures(batch: int) -> DataModule:
    """Eight of them."""
    source = partial(Shapes, count=8, size=(64, 64))
    return DataModule(source, splits={"train": "train", "val": "train", "test": "train"}, batch_size=batch)


def train(
    weighting: Weighting, *, batch: int = 4, every: int = 0, goes_on: Path | None = None, **options: Any
) -> tuple[DetectionTask, Rows]:
    """Some steps of plain gradient descent, from a checkpoint on if one is given."""
    data = pictures(batch)
    task = DetectionTask(
        TwoHeads(),
        data.schema,
        weighting=weighting,
        optimizer=partial(torch.optim.SGD, lr=0.01),
        schedule=Steps(),
        gradients_every=every,
    )
    rows = Rows()
    silent = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        **({"max_steps": 4, "log_every_n_steps": 1, "accelerator": "cpu", "devices": 1} | options),
        **silent,
        logger=rows,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(task, data, ckpt_path=goes_on, weights_only=True)
    return task, rows


def make(name: str, **settings: Any) -> Weighting:
    return KINDS[name](dict.fromkeys(TERMS, 1.0), **settings)


def main(folder: Path, rank: int, ranks: int, port: int) -> None:
    """Three epochs of eight pictures, four in a step whatever the number of processes."""
    torch.set_num_threads(1)
    several: dict[str, Any] = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {}
    for name in KINDS:
        task, rows = train(make(name), batch=4 // ranks, max_steps=6, every=2, **several)
        slopes = {term: value.item() for term, value in task.weighting.weights().items()}
        found[name] = {"weights": task.model.state_dict(), "slopes": slopes, "rows": rows.rows}
    torch.save(found, folder / f"{ranks}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
