"""What would be wrong with every job is said before the first one starts, without reading any data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from quadrat.configs import assemble_task, build, message, plain
from quadrat.launchers.base import Draft
from quadrat.runs import without_weights

if TYPE_CHECKING:
    from quadrat.models.base import Model

WEIGHED = re.compile(r"loss|total|weight", re.IGNORECASE)
"""In the name of a number that a sweep is not chosen by; what follows the second slash is the name of a class."""


def check(drafts: Sequence[Draft]) -> None:
    """Raise ValueError naming the first job whose monitor, weights or terms its model does not have.

    A model is built once, without memory for its weights, and a weighting once for each different one.
    """
    checked = set[str]()
    for draft in drafts:
        said = json.dumps([plain(draft.config.get(key)) for key in ("monitor", "model", "loss", "task")])
        if said not in checked:
            checked.add(said)
            _check_one(draft)


def _check_one(draft: Draft) -> None:
    try:
        check_metrics([draft.config.monitor] if "monitor" in draft.config else [], draft.config)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the job {draft.job.label}: {message(error)}; nothing was started") from error


def check_metrics(names: Iterable[str], config: DictConfig) -> None:
    """Raise ValueError unless runs of a config report these metrics, and KeyError when its weights are not its model's."""
    names = list(names)
    known = _metrics(config)
    for name in names:
        _refuse_loss(name, known)
        if known and _kind(name) not in map(_kind, known):
            raise ValueError(f"{name} is no metric of this task; {_offer(known)}")


def _refuse_loss(name: str, known: Sequence[str]) -> None:
    if name.startswith("train/") or WEIGHED.search(_kind(name)):
        raise ValueError(
            f"{name} cannot choose between runs: it is a loss or depends on the weights. A total under other weights is another "
            f"quantity, and lowering the weights lowers it; {_offer(known)}"
        )


def _kind(name: str) -> str:
    """`val/ap50` of `val/ap50/raccoon`: whether there is such a class only the data knows."""
    return "/".join(name.split("/")[:2])


def _offer(known: Sequence[str]) -> str:
    """The metrics over all classes."""
    named = [name for name in known if _kind(name) == name] or ["val/map", "val/ap50", "val/miou"]
    return f"choose by a metric: {', '.join(named[:6])}"


def _metrics(config: DictConfig) -> list[str]:
    """The names of what a run's validation reports; nothing for a config that has no model."""
    if "model" not in config:
        return []
    from quadrat.structures import Schema

    model = _model(json.dumps(without_weights(plain(config.model))))
    return [f"val/{name}" for name in assemble_task(config, model, Schema(("object",))).metric_names()]


@lru_cache(maxsize=8)
def _model(described: str) -> Model:
    """A model without memory for its weights."""
    import torch

    from quadrat.structures import Schema

    with torch.device("meta"):
        return build(json.loads(described), schema=Schema(classes=("object",)))
