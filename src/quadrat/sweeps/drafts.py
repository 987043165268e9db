"""Overrides become jobs: composed, named, told apart, and compared with what was frozen before."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from quadrat import signals
from quadrat.configs import NOT_IDENTITY, NOT_IDENTITY_WITHIN, ending, placeless, refuse_gaps, run_id, settings
from quadrat.launchers.base import Draft
from quadrat.runs import Run
from quadrat.sweeps.ledger import Job, Sweep

Compose = Callable[[Sequence[str]], DictConfig]

STEERING = ("launcher", "sweep", "hydra", "trace")
"""What is said of these changes how a sweep is run, not what it is."""

GROWING = tuple(f"hydra.sweeper.{key}" for key in ("trials", "batch", "failures", "max_batch_size"))
"""What may be said of a design when its sweep is launched again."""

LONG = 40
"""Characters of a label that nobody would read."""

BAR = 2.0
"""Seconds after which a progress bar appears."""

# --- names ---


def name(master: DictConfig) -> str:
    """`sweep.name`, or one that the same command gives again; ValueError for what cannot name a folder.

    A sweep file gives its own name, with a hash of what else is said: other jobs are another sweep. That some values of
    its own parameters are said does not count, since a ledger grows, but for a search, whose values depend on all others.
    """
    given = master.sweep.name
    if given is None:
        return _name_of_file(master) or f"{_plain(master.name or 'sweep')}-{_hash(_said(master, _params(master)))}"
    if _plain(str(given)) != str(given):
        raise ValueError(f"sweep.name={given} cannot name a folder; use letters, digits and any of . _ = + -")
    return str(given)


def _name_of_file(master: DictConfig) -> str | None:
    chosen = OmegaConf.select(master, "hydra.runtime.choices.sweep")
    if chosen in (None, "default"):
        return None
    own = set() if "trials" in master.hydra.sweeper else set(map(_key, _params(master)))
    said = [override for override in _said(master, {}) if _key(override) not in own]
    return f"{_plain(chosen)}-{_hash(said)}" if said else _plain(chosen)


def _said(master: DictConfig, params: Mapping[str, Any]) -> list[str]:
    """What a command says of its jobs, and of how they are chosen."""
    steering = OmegaConf.select(master, "hydra.overrides.hydra") or []
    design = [one for one in steering if one.startswith("hydra/sweeper") or one.startswith("hydra.sweeper.")]
    chosen = [one for one in design if _key(one) not in GROWING]
    return [*_settings(master.hydra.overrides.task), *chosen, *(f"{key}={value}" for key, value in params.items())]


def _params(master: DictConfig) -> Mapping[str, Any]:
    return OmegaConf.select(master, "hydra.sweeper.params") or {}


def _plain(text: str) -> str:
    return re.sub(r"[^\w.=+-]|^\.+", "-", text)


def _hash(overrides: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]


def _settings(overrides: Iterable[str]) -> list[str]:
    """The overrides that say what a job computes."""
    return [override for override in overrides if re.split(r"[.=@/]", _key(override))[0] not in STEERING]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _changed(sets: Sequence[Sequence[str]], master: DictConfig) -> list[str]:
    """The keys that tell jobs apart: those of a sweep file, and those that no job has just as the command line says it."""
    own = set(map(_key, _params(master)))
    said = {override for override in master.hydra.overrides.task if _key(override) not in own}
    keys = [_key(override) for overrides in sets for override in _settings(overrides) if override not in said]
    return list(dict.fromkeys(keys))


def _label(overrides: Sequence[str], changed: Sequence[str], folder: str) -> str:
    """`rpn_box=10 seed=1`: the changed keys, each by as much of its end as tells it from the others.

    A job of which nothing changes is told by all that is said of it, or by its folder where that would be much.
    """
    shown = [override for override in overrides if _key(override) in changed]
    keys = list(dict.fromkeys(map(_key, shown or overrides)))
    label = " ".join(f"{ending(_key(one), keys)}={one.partition('=')[2]}" for one in shown or overrides)
    return label if shown or 0 < len(label) <= LONG else folder


# --- composing ---


def drafts(sweep: Sweep, master: DictConfig, compose: Compose, sets: Sequence[Sequence[str]]) -> list[Draft]:
    """A draft for each set of overrides; those that come to the same run share its job, the one that was there first.

    ValueError names what was edited since jobs of the same overrides were frozen.
    """
    changed, known, made = _changed(sets, master), sweep.jobs(), []
    for overrides in tqdm(sets, "composing", unit="job", delay=BAR, leave=False):
        signals.leave_if_asked()
        made.append(_draft(sweep, compose(overrides), _settings(overrides), changed))
    _refuse_drift(sweep, known, made)
    return _merged(made, known)


def _draft(sweep: Sweep, config: DictConfig, overrides: Sequence[str], changed: Sequence[str]) -> Draft:
    with open_dict(config):
        config.pop("hydra", None)
    refuse_gaps(config)
    run = Run(config.paths.run)
    config.sweep.name, config.sweep.job = sweep.name, _label(overrides, changed, run.folder.name)
    return Draft(sweep.job(_hash(overrides), config.sweep.job, overrides, run_id(config), run), config)


def _merged(drafts: Sequence[Draft], known: dict[str, Job]) -> list[Draft]:
    """Overrides that come to the same run are one job, the one that was there first."""
    first = {job.id: job for job in known.values()}
    merged = []
    for draft in drafts:
        job = first.setdefault(draft.job.id, draft.job)
        draft.config.sweep.job = job.label
        merged.append(Draft(job, draft.config))
    return merged


# --- drift ---


def _refuse_drift(sweep: Sweep, known: dict[str, Job], drafts: Sequence[Draft]) -> None:
    """Raise ValueError when overrides that are in the ledger now come to another run, because files were edited since."""
    drifted = [
        draft
        for draft in drafts
        if draft.job.key in known
        and known[draft.job.key].id != draft.job.id
        and known[draft.job.key].run.config_file.exists()
    ]
    if not drifted:
        return
    first = known[drifted[0].job.key]
    differences = list(_differences(first.run.config(), drifted[0].config)) or ["the way in which a run gets its id"]
    lines = "\n".join(f"  {difference}" for difference in differences)
    raise ValueError(
        f"{len(drifted)} of {len(drafts)} jobs of the sweep {sweep.name} are no longer what was frozen when it was first "
        f"launched; nothing was started. {first.label} differs in\n{lines}\n"
        f"undo the change to go on with this sweep, or begin another one with sweep.name=<new>"
    )


def _differences(frozen: DictConfig, now: DictConfig) -> Iterator[str]:
    yield from differences(identity(frozen), identity(now), "when frozen")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], then: str) -> Iterator[str]:
    """One line for each setting that is not what it was ``then``."""
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key, 'absent')} {then}, {after.get(key, 'absent')} now"


def identity(config: DictConfig) -> dict[str, Any]:
    """The settings that make the run's id, by their dotted names, with places as in ``run_id``."""
    left_out = (*NOT_IDENTITY, *(f"{part}.{key}" for part, keys in NOT_IDENTITY_WITHIN.items() for key in keys))
    places = sorted(((str(place), key) for key, place in config.paths.items() if place), reverse=True)
    return {
        key: placeless(json.loads(text), places)
        for key, text in settings(config).items()
        if not f"{key}.".startswith(tuple(f"{one}." for one in left_out))
    }
