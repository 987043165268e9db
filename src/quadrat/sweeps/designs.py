"""Which jobs a sweep has: Hydra's overrides told apart into what is fixed, what is swept, and the seeds that repeat it all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hydra.core.override_parser.types import Override

SEED = "seed"
"""The axis of every design: what is found is a mean over it, and it is never searched."""


class Parts(NamedTuple):
    """The overrides of a sweep; ``seeds`` are the overrides of each repetition, nothing for one where no seed is said."""

    fixed: list[str]
    swept: dict[str, Override]
    seeds: list[list[str]]


def parts(overrides: Iterable[Override]) -> Parts:
    """Tell overrides apart; of two with the same key the later one counts. ValueError for seeds that cannot be listed."""
    last = {override.get_key_element(): override for override in overrides}
    seed = last.pop(SEED, None)
    fixed = [str(override.input_line) for override in last.values() if not override.is_sweep_override()]
    swept = {key: override for key, override in last.items() if override.is_sweep_override()}
    return Parts(fixed, swept, [[]] if seed is None else [[f"{SEED}={value}"] for value in _seeds(seed)])


def _seeds(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_interval_sweep():
        raise ValueError(f"{override.input_line}: seeds are repeated, never searched; list them: seed=0,1,2")
    return list(override.sweep_string_iterator())


def refuse_intervals(overrides: Iterable[Override], design: str) -> None:
    """Raise ValueError for a parameter that has no list of values."""
    for override in overrides:
        if override.is_interval_sweep():
            raise ValueError(
                f"{override.input_line}: hydra/sweeper={design} needs a list of values, as {override.key_or_group}=1,2,5; "
                f"hydra/sweeper=random, tpe or nsga2 search in an interval"
            )


def axes(overrides: Sequence[Override]) -> list[list[str]]:
    """One at a time: the jobs of the config as it is, and of each value of each parameter alone, all of them for every seed."""
    fixed, swept, seeds = parts(overrides)
    alone = [f"{key}={value}" for key, override in swept.items() for value in override.sweep_string_iterator()]
    return [[*fixed, *changed, *seed] for changed in ([], *([one] for one in alone)) for seed in seeds]
