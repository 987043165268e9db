"""Where conf/ is, how it becomes a config, and how a config becomes parts."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import hydra.errors
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from quadrat.data.module import DataModule
    from quadrat.models.base import Model
    from quadrat.structures import Schema
    from quadrat.tasks.base import Task

NOT_IDENTITY = ("name", "epochs", "trace", "paths", "logger", "hydra", "launcher", "resources", "sweep", "replay")
"""Parts of a config that do not change what a run computes, and how long it is trained."""

NOT_IDENTITY_WITHIN = {
    "trainer": ("max_epochs", "max_steps", "max_time", "enable_progress_bar", "log_every_n_steps", "on_nan"),
    "data": ("workers", "eval_batch_size"),
    "data.proposals": ("workers",),
    "callbacks": ("progress", "pictures", "checkpoints"),
    "task": ("gradients_every",),
    "loss": ("regression",),  # what a weighting takes of it is among the weighting's own settings
}
"""The like inside the other parts."""


def conf_dir() -> Path:
    """The configuration folder: beside the sources in a checkout, inside the package when installed."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def compose(name: str = "train", overrides: list[str] | None = None) -> DictConfig:
    """The config of a command, as in `quadrat-<name> <overrides>`, for notebooks and tests."""
    register_resolvers()
    within = GlobalHydra.instance().is_initialized()  # a command that composes the configs of others
    with nullcontext() if within else hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose(name, overrides or [])


def register_resolvers() -> None:
    """`${run_folder:}` in a config is the folder name of its run."""
    OmegaConf.register_new_resolver("run_folder", lambda *, _root_: folder_name(_root_), replace=True)


def run_id(config: DictConfig) -> str:
    """Eight hex digits of the hash of everything in a config that changes what the run computes."""
    elsewhere = copy.deepcopy(config)
    for name in elsewhere.paths:  # the same data and weights in another place, the same run
        elsewhere.paths[name] = name
    parts = {str(key): plain(elsewhere[key]) for key in elsewhere if str(key) not in NOT_IDENTITY}
    for part, names in NOT_IDENTITY_WITHIN.items():
        within: Any = parts
        for key in part.split("."):
            within = within.get(key) or {}
        for name in names:
            within.pop(name, None)
    if parts.get("resume", {}).get("mode") in ("auto", "never"):
        del parts["resume"]  # how often it took to get there is no part of it; what it began from is
    text = json.dumps(_numbers_alike(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def plain(value: Any) -> Any:
    """A part of a config as lists, dicts and numbers, every interpolation replaced."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _numbers_alike(value: Any) -> Any:
    """1 and 1.0 are the same setting."""
    if isinstance(value, dict):
        return {str(key): _numbers_alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_alike(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def folder_name(config: DictConfig) -> str:
    """`<name>-<id>`, or the id alone for a run without a name."""
    return f"{config.name}-{run_id(config)}" if config.get("name") else run_id(config)


def build(config: Any, **more: Any) -> Any:
    """Make what a config describes, from plain lists and dicts, with ``more`` objects that no config can hold.

    An error of the part itself comes out as it is, without Hydra's wrapping.
    """
    try:
        if not more:
            return hydra.utils.instantiate(config, _convert_="all")
        return hydra.utils.instantiate(config, _convert_="all", _partial_=True)(**more)
    except hydra.errors.InstantiationException as error:
        if error.__cause__ is None:
            raise
        raise _for_users(error.__cause__) from None
    except TypeError as error:
        raise _for_users(error) from None


def _for_users(error: BaseException) -> BaseException:
    """An error of a part, with what to do if it was given settings of another one."""
    if not isinstance(error, TypeError) or "unexpected keyword argument" not in str(error):
        return error
    return ValueError(
        f"{error}: that is a setting of another part; an experiment's settings are for its own parts (those of the default one "
        f"too), begin with experiment=none to choose others"
    )


def build_task(config: DictConfig, data: DataModule) -> Task:
    """Model, weighting, metric, optimiser and schedule of a config, for the classes of its data."""
    model = build(config.model, schema=data.schema)
    if model.reads_proposals and data.proposals is None:
        from quadrat.proposers.precomputed import LACKING

        raise ValueError(LACKING)
    return assemble_task(config, model, data.schema)


def assemble_task(config: DictConfig, model: Model, schema: Schema) -> Task:
    """The like around a model that there is already."""
    weighting = build(config.loss.weighting, weights=dict(config.loss.weights))
    return build(
        config.task,
        model=model,
        weighting=weighting,
        schema=schema,
        optimizer=build(config.optimizer),
        schedule=build(config.schedule),
        seed=config.seed,
    )


def tiled(model: dict[str, Any], size: Any, overlap: int) -> dict[str, Any]:
    """The config of a model that scores its pictures in tiles of ``size`` (h, w), if one is given.

    ValueError for a model that does not score pixels.
    """
    if size is None:
        return model
    if "tiles" not in model:
        raise ValueError(f"tiles={size}: {model['_target_']} does not score pictures as a whole, and takes no tiles")
    if not OmegaConf.is_list(size) or len(size) != 2:
        raise ValueError(f"tiles={size}: give a height and a width, tiles=[512,512]")
    return {**model, "tiles": {"_target_": "quadrat.models.tiles.Tiles", "size": size, "overlap": overlap}}


def retuned(model: Any, changes: Any, where: str = "model") -> Any:
    """The config of a run's model with other values of settings that it has, as those that matter at test time.

    ValueError for a setting that it has not.
    """
    if not isinstance(changes, dict):
        return changes
    if not isinstance(model, dict):
        raise ValueError(f"+{where}={changes}: {where} of this run is {model}, which has no settings")
    for key in changes:
        if key not in model:
            close = difflib.get_close_matches(key, model, n=3, cutoff=0.5) or list(model)
            raise ValueError(f"+{where}.{key}: this run's {where} has no {key}; did you mean {' or '.join(close)}?")
    return {**model, **{key: retuned(model[key], value, f"{where}.{key}") for key, value in changes.items()}}


def launch(name: str, run: Callable[[DictConfig], Any]) -> None:
    """Run a command from the shell; what the user can mend is one message, not a trace."""
    register_resolvers()
    composed = False

    def guarded(config: DictConfig) -> Any:
        nonlocal composed
        composed = True
        with friendly(config):
            refuse_gaps(config)
            return run(config)

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code == 1 and not composed:
            for hint in hints(name, sys.argv[1:]):
                print(hint, file=sys.stderr)
        raise


@contextmanager
def friendly(config: DictConfig) -> Iterator[None]:
    """Show an error that the user can mend as one message and exit with 1; ``trace`` in the config shows all of it."""
    try:
        yield
    except (ValueError, KeyError, OSError) as error:
        if config.get("trace"):
            raise
        print(f"\nerror: {message(error)}\n(trace=true shows where)", file=sys.stderr)
        sys.exit(1)


def settings(config: DictConfig) -> dict[str, str]:
    """Every setting of a config by its dotted name, but for where things lie."""
    every = flat(OmegaConf.to_container(config, resolve=True))
    return {
        name: value
        for name, value in every.items()
        if name.split(".")[0] not in ("paths", "hydra", "launcher", "sweep")
    }


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of nested dicts as JSON, by their dotted names."""
    if not isinstance(value, dict):
        return {prefix: json.dumps(value)}
    return {
        name: text
        for key, item in value.items()
        for name, text in flat(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def ending(key: str, keys: Iterable[str]) -> str:
    """As much of a dotted key's end as tells it from the other ``keys``: `rpn_box`, `proposer.nms`."""
    parts = re.split(r"[./]", key)
    ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
    others = ["." + other.replace("/", ".") for other in keys if other != key]
    return next((end for end in ends if not any(other.endswith("." + end) for other in others)), key)


def placeless(value: Any, places: Iterable[tuple[str, str]]) -> Any:
    """A setting with the folder it begins with as `<name>`: the same file in another place is the same setting."""
    for place, key in places:
        if isinstance(value, str) and (value == place or value.startswith(f"{place}/")):
            return f"<{key}>{value.removeprefix(place)}"
    return value


NO_NEWS = (
    "Checkpoint directory .* exists and is not empty",
    "The number of training batches .* is smaller than the logging interval",  # steps are counted across epochs
    ".*does not have many workers",
    "Detected call of `lr_scheduler.step\\(\\)` before",  # when the very first step is skipped for its NaN
    "You're using the WeightAveraging callback with a model that overrides",  # which does something when sharded only
    "The `srun` command is available",  # the ranks are started by whom `quadrat.ranks` says
    "Found \\d+ module\\(s\\) in eval mode at the start of training",  # what is frozen stands still
    ".*LeafSpec.* is deprecated",  # inside Lightning 2.6, under torch 2.15
)


def quiet() -> None:
    """Keep from the terminal what a user can do nothing about."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message=message)


def refuse_gaps(config: DictConfig) -> None:
    """What has no default must be given: ValueError names all of it."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(
            f"{', '.join(missing)} is not set; add {' '.join(f'{key}=<...>' for key in missing)} to the command"
        )


def message(error: Exception) -> str:
    """What an error says, without the quotes of a KeyError and without the trace that a loader worker wraps around it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Original Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    return text


def hints(name: str, overrides: list[str]) -> Iterator[str]:
    """For each override whose key does not exist, the keys that look like it."""
    chosen = [override for override in overrides if override.split("=")[0] in groups()]
    try:
        config = compose(name, chosen)
    except hydra.errors.HydraException:
        config = compose(name)
    known = list(dict.fromkeys([*_keys(config), *groups()]))
    for override in overrides:
        key = override.lstrip("+~").split("=")[0].split("@")[0]
        if "=" in override and not override.startswith(("+", "-", "hydra.")) and key not in known:
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            if close:
                yield f"there is no {key}; did you mean {' or '.join(close)}?"


def groups() -> list[str]:
    """The names that choose a file: model, model/backbone, data ..."""
    root = conf_dir()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir())


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    if not OmegaConf.is_dict(config):
        return
    for key in config:
        yield f"{prefix}{key}"
        if not OmegaConf.is_missing(config, key) and not OmegaConf.is_interpolation(config, key):
            yield from _keys(config[key], f"{prefix}{key}.")
