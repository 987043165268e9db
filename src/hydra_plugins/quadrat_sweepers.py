"""Hydra's door to the designs of `quadrat.sweeps`. Like the launcher's, it imports nothing else of ours until it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GridSweeper(BasicSweeper):
    """Every combination of the values, as Hydra's own, which would compose each job once more before it is launched."""

    design = "grid"

    def __init__(self, max_batch_size: int | None = None, params: Any = None, **unknown: Any) -> None:
        super().__init__(max_batch_size, params)
        self.unknown = sorted(unknown)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs; what the user can mend is one message."""
        from quadrat.configs import friendly

        assert self.config is not None
        with friendly(self.config):
            if self.unknown:
                raise ValueError(
                    f"hydra/sweeper={self.design} has no {', '.join(self.unknown)}, which are for a search: random, tpe or nsga2"
                )
            return super().sweep(arguments)

    @classmethod
    def split_arguments(cls, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs, in batches; ValueError for a parameter without a list of values."""
        from quadrat.sweeps.designs import refuse_intervals

        refuse_intervals(overrides, cls.design)
        return cls.batches(overrides, max_batch_size)

    @classmethod
    def batches(cls, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """Every combination."""
        return BasicSweeper.split_arguments(overrides, max_batch_size)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> Any:
        """Nothing to do."""


class AxesSweeper(GridSweeper):
    """One at a time: the config as it is, and each value of each parameter alone, for every seed."""

    design = "axes"

    @classmethod
    def batches(cls, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The config as it is comes first."""
        from quadrat.sweeps.designs import axes

        return list(cls.split_overrides_to_chunks(axes(overrides), max_batch_size))


class SearchSweeper(Sweeper):
    """Optuna proposes what to try, within ranges in Hydra's own words; ``rules`` are those of `quadrat.sweeps.search`."""

    def __init__(self, params: DictConfig | None = None, **rules: Any) -> None:
        self.params, self.rules = params or {}, rules
        self.config: Any
        self.launcher: Any

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, which gives the sweep its name."""
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing; what the user can mend is one message."""
        from quadrat.configs import friendly, plain
        from quadrat.sweeps.search import Rules, search

        said = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(said)
        with friendly(self.config):
            rules = Rules(**{key: plain(value) for key, value in self.rules.items()})
            folder = Path(self.config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            search(self.config, rules, overrides, self._compose, lambda sets: self.launcher.launch(sets, 0))

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.config, list(overrides))
