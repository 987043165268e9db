"""Hydra's door to `quadrat.sweeps`. Hydra imports this file in every application, so it imports nothing else of ours."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class QuadratLauncher(Launcher):
    """Composes all jobs of a batch at once and hands them to what `launcher` in the config says."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Give the sweep its name, by which Hydra finds the folder for its own files."""
        from quadrat.configs import friendly
        from quadrat.sweeps.drafts import name

        self.context, self.config = hydra_context, config
        with friendly(config):
            config.sweep.name = name(config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs that are not done yet; what came of each, a failure too, is a value."""
        from quadrat.configs import friendly
        from quadrat.sweeps.launch import launch

        with friendly(self.config):
            return launch(self.config, self._compose, job_overrides)

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(overrides))
