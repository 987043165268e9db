"""What all ranks must agree on: when to save or stop, and which config they train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer


class Vote:
    """The largest wish of any rank, known to all of them at the same step, without a wait on the device.

    The wishes travel between the hosts (gloo) while the next step runs, so with several ranks the answer is one step old.
    """

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo") if several else None
        self.sent: tuple[torch.Tensor, Any] | None = None

    def __call__(self, wish: int) -> int:
        """Say this rank's wish, and hear what all ranks wished at the last call."""
        if self.group is None:
            return wish
        agreed = self._collect()
        if not agreed:
            value = torch.tensor([wish])
            self.sent = value, dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed

    def _collect(self) -> int:
        if self.sent is None:
            return 0
        value, work = self.sent
        work.wait()
        self.sent = None
        return int(value)

    def least(self, value: int) -> int:
        """The smallest value of any rank; waits for all of them."""
        if self.group is None:
            return value
        shared = torch.tensor([value])
        dist.all_reduce(shared, op=dist.ReduceOp.MIN, group=self.group)
        return int(shared)


class SameConfig(Callback):
    """Raise ValueError on every rank, naming the settings that differ, unless all ranks were started with the same ones.

    A sweeper that draws its own values in every process would otherwise train each GPU for another experiment.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        everywhere: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(everywhere, self.settings)
        first = everywhere[0]
        for rank, other in enumerate(everywhere):
            differing = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
            if differing:
                shown = "; ".join(f"{key}: {first.get(key)} and {other.get(key)}" for key in differing[:8])
                raise ValueError(
                    f"rank 0 and rank {rank} were started with different settings ({shown}); "
                    f"start all ranks with the same command"
                )
