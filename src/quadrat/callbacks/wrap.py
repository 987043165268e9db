"""What a change of the parameters that learn asks of a strategy."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, Strategy


def wrap_again(strategy: Strategy) -> None:
    """The wrapper of several processes averages the gradients of what was to be trained when it was made, of nothing else."""
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
