"""Which settings tell runs apart, and how they and their values are written in little room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quadrat.configs import ending
from quadrat.reports.collect import Record

ABSENT = "–"
"""The value of a setting that a run's config does not have."""

TARGET = "._target_"
LONG = 28
"""Characters of a value that still fit into a table."""


def varying(records: Sequence[Record]) -> list[str]:
    """The settings that differ between runs, without those that only follow: the seed, the same value under another part's
    name, what belongs to a chosen part and changes only with it, what some runs lack and another setting tells."""
    keys = list(dict.fromkeys(key for record in records for key in record.config))
    values = {key: tuple(record.config.get(key, ABSENT) for record in records) for key in keys}
    differing = {key: column for key, column in values.items() if len(set(column)) > 1}
    told = [key for key in differing if key.rpartition(".")[2] != "seed"]
    kept = [key for key in told if not any(_alias(key, other, differing) for other in told)]
    kept = [key for key in kept if not any(_belongs(key, other, differing) for other in kept)]
    for key in [key for key in reversed(kept) if ABSENT in values[key]]:
        if any(key != other and _function(values[other], values[key]) for other in kept):
            kept.remove(key)
    return sorted(kept, key=lambda key: not key.startswith("loss."))


def telling(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], most: int) -> list[str]:
    """The settings by which rows are named: all, or of too many as few as still tell the rows apart."""
    kept = list(keys)
    for key in reversed(keys):
        fewer = [other for other in kept if other != key]
        if len(kept) > most and len({tuple(row[other] for other in fewer) for row in rows}) == len(rows):
            kept = fewer
    return kept


def _alias(key: str, other: str, values: Mapping[str, tuple[Any, ...]]) -> bool:
    """Is it the same value under another part's name, which is longer? Settings side by side are never aliases."""
    if (
        key == other
        or key.startswith("loss.weights.")
        or _parent(key) == _parent(other)
        or values[key] != values[other]
    ):
        return False
    return (key.count("."), key) > (other.count("."), other)


def _belongs(key: str, chosen: str, values: Mapping[str, tuple[Any, ...]]) -> bool:
    """Does it belong to the part whose class is ``chosen``, and have one value for each class?"""
    inside = chosen.endswith(TARGET) and key.startswith(chosen.removesuffix("_target_"))
    return inside and key != chosen and _function(values[chosen], values[key])


def _function(of: Sequence[Any], values: Sequence[Any]) -> bool:
    """Has each value of ``of`` one value beside it?"""
    return len(set(zip(of, values, strict=True))) == len(set(of))


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


# --- in little room ---


def short(keys: Sequence[str]) -> dict[str, str]:
    """Each key by as much of its end as tells it from the others: `rpn_box`, `proposer.nms`, `weighting`."""
    plain = {key: key.removesuffix(TARGET) for key in keys}
    return {key: ending(name, plain.values()) for key, name in plain.items()}


def shown(value: Any, key: str = "") -> str:
    """A value as it is read: numbers without needless digits, a class by its name, the middle of long text left out."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}"
    text = str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)
    return text if len(text) <= LONG else f"{text[: LONG // 2]}…{text[-LONG // 2 + 1 :]}"


def label(settings: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`rpn_box=10 box_normaliser=samples`; one class alone is its own label."""
    if len(settings) == 1 and next(iter(settings)).endswith("_target_"):
        return shown(*reversed(next(iter(settings.items()))))
    return " ".join(f"{names[key]}={shown(value, key)}" for key, value in settings.items()) or "all runs"


def numeric(values: Iterable[Any]) -> bool:
    """Are all values numbers, and more than one?"""
    values = list(values)
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return plain and len(set(values)) > 1
