"""Records become a comparison: rows of settings, each with its metrics over seeds and its difference from the best."""

from __future__ import annotations

import difflib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quadrat.reports.collect import Record
from quadrat.reports.noise import BEST, Spread, Verdict, compare, spread
from quadrat.reports.settings import ABSENT, label, short, telling, varying

MEASURED = ("monitor", "task._target_", "task.metric", "data.source", "data.splits.val", "data.limit")
MEASURED_TOO = ("trainer.limit_val_batches",)
"""Settings with which a metric is not the same thing: what is measured, and on which pictures."""

TOLD = 8
"""Settings that fit into a label."""

NOT_MEASURED = ("data.source.count.train", "data.source.count.test")
"""How many pictures there are to learn from changes the result, not what it means."""


SMALLER_IS_BETTER = ("/loss", "/checkerboard", "_error")
"""In the names of metrics that are best where they are smallest."""


@dataclass(frozen=True)
class Metric:
    """A metric by its name, and when it is taken: at its own best, at the best validation of the monitor, or at the end."""

    name: str
    when: str
    monitor: str

    @property
    def larger_is_better(self) -> bool:
        """All but losses and patterns that an upsampling leaves."""
        return not any(part in self.name for part in SMALLER_IS_BETTER)

    def value(self, record: Record) -> float | None:
        """The number of a finished run."""
        if self.when == "best":
            return record.best
        return (record.at_best if self.when == "at_best" else record.last).get(self.name)

    def explained(self) -> str:
        """For the note below the table."""
        when = {
            "best": "each run's best validation",
            "at_best": f"each run's validation with the best {self.monitor}",
            "last": "each run's last validation",
        }
        return f"{self.name} is that of {when[self.when]}"


@dataclass(frozen=True)
class Row:
    """The runs of one setting; ``number`` is its rank, ``spreads`` and ``verdicts`` are by the names of metrics."""

    number: int
    label: str
    settings: Mapping[str, Any]
    runs: tuple[Record, ...]
    spreads: Mapping[str, Spread | None]
    verdicts: Mapping[str, Verdict | None]

    @property
    def counted(self) -> list[Record]:
        """The runs that enter means."""
        return [run for run in self.runs if run.done]

    def seeds(self, metric: Metric) -> dict[Any, float]:
        """The values of a metric by seed."""
        return seeds(self.runs, metric)

    def mean(self, metric: Metric) -> float | None:
        """The mean of a metric, None where no run has it."""
        found = self.spreads[metric.name]
        return None if found is None else found.mean

    def states(self) -> str:
        """`2 done, 1 failed`"""
        return ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in self.runs).most_common())


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows: rows by rank in the first metric, those without a value last.

    ``names`` are the settings that differ, with what they are called; ``telling`` those that suffice to tell rows apart.
    """

    name: str
    metrics: tuple[Metric, ...]
    names: Mapping[str, str]
    telling: tuple[str, ...]
    rows: tuple[Row, ...]
    records: tuple[Record, ...]

    @property
    def metric(self) -> Metric:
        """The one that settings are ranked by."""
        return self.metrics[0]

    @property
    def keys(self) -> list[str]:
        """The settings that differ."""
        return list(self.names)

    @property
    def ranked(self) -> list[Row]:
        """The rows that have a value."""
        return [row for row in self.rows if row.mean(self.metric) is not None]

    @property
    def marked(self) -> list[Record]:
        """The runs that are not counted, with their reasons."""
        return [record for record in self.records if not record.done]


def comparison(name: str, records: Sequence[Record], asked: Sequence[str] = ()) -> Comparison:
    """Compare records by the metrics asked for, else by the runs' monitor; ValueError names a metric that none has."""
    records = _once(_one_kind(records))
    alike = [record for record in records if record.config and record.state != "incomparable"]
    metrics = _metrics(alike, asked)
    names = short(varying(alike))
    records = [_measured(record, metrics[0]) for record in records]
    rows, told = _rows(records, names, metrics)
    return Comparison(name, tuple(metrics), names, tuple(told), tuple(rows), tuple(records))


# --- which runs are compared ---


def _one_kind(records: Sequence[Record]) -> list[Record]:
    """Runs that measure something else than most are marked with the setting that makes the difference."""
    kinds = [_kind(record) for record in records]
    weights = Counter[tuple[tuple[str, Any], ...]]()
    for record, kind in zip(records, kinds, strict=True):
        if record.config:
            weights[kind] += 1 + len(records) * record.done  # what is finished decides, then what there is most of
    if len(weights) < 2:
        return list(records)
    most = weights.most_common(1)[0][0]
    return [
        record if kind == most or not record.config else _incomparable(record, dict(kind), dict(most))
        for record, kind in zip(records, kinds, strict=True)
    ]


def _kind(record: Record) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in sorted(record.config.items()) if _is_measured(key))


def _is_measured(key: str) -> bool:
    within = f"{key}.".startswith(tuple(f"{one}." for one in (*MEASURED, *MEASURED_TOO)))
    return within and key not in NOT_MEASURED


def _incomparable(record: Record, kind: Mapping[str, Any], most: Mapping[str, Any]) -> Record:
    key = next(key for key in [*kind, *most] if kind.get(key) != most.get(key))
    reason = f"it measures something else: {key} is {kind.get(key, 'absent')}, {most.get(key, 'absent')} in most runs"
    return replace(record, state="incomparable", reason=reason)


def _once(records: Sequence[Record]) -> list[Record]:
    """The same settings with the same seed in two folders are one result, not two."""
    first: dict[Any, Record] = {}
    return [
        record if first.setdefault(_identity(record), record) is record else _double(record, first[_identity(record)])
        for record in records
    ]


def _identity(record: Record) -> Any:
    return (record.seed, tuple(sorted(record.config.items(), key=lambda item: item[0]))) if record.done else id(record)


def _double(record: Record, other: Record) -> Record:
    return replace(record, state="double", reason=f"the same settings and seed as {other.folder}, which is counted")


def _measured(record: Record, metric: Metric) -> Record:
    if record.done and metric.value(record) is None:
        return replace(record, state="damaged", reason=f"metrics.json has no {metric.name} of {_when(metric)}")
    return record


def _when(metric: Metric) -> str:
    return "the best validation" if metric.when == "at_best" else "the last validation"


# --- which metrics ---


def _metrics(records: Sequence[Record], asked: Sequence[str]) -> list[Metric]:
    monitor = next((record.monitor for record in records), "")
    done = [record for record in records if record.done]
    known = sorted({name for record in done for name in (*record.last, *record.at_best)} | {monitor})
    for name in asked:
        if name not in known and done:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
            raise ValueError(f"metrics={name}: no finished run has it; there is {', '.join(close)}")
    return [_metric(name, monitor, done) for name in dict.fromkeys(asked or [monitor])]


def _metric(name: str, monitor: str, done: Sequence[Record]) -> Metric:
    everywhere = bool(done) and all(name in record.at_best for record in done)  # one moment for all runs
    return Metric(name, "best" if name == monitor else "at_best" if everywhere else "last", monitor)


# --- rows ---


def _rows(
    records: Sequence[Record], names: Mapping[str, str], metrics: Sequence[Metric]
) -> tuple[list[Row], list[str]]:
    """The rows by rank, and the settings by which they are called."""
    groups = _groups(records, list(names))
    spreads = [{metric.name: spread(list(seeds(runs, metric).values())) for metric in metrics} for _, runs in groups]
    ranked = sorted(range(len(groups)), key=lambda i: _rank(spreads[i][metrics[0].name], metrics[0]))
    verdicts = {metric.name: _verdicts([runs for _, runs in groups], metric) for metric in metrics}
    told = telling([settings for settings, _ in groups], list(names), TOLD)
    rows = []
    for number, i in enumerate(ranked, start=1):
        settings, runs = groups[i]
        called = label({key: settings[key] for key in told}, names)
        said = {name: column[i] for name, column in verdicts.items()}
        rows.append(Row(number, called, settings, tuple(runs), spreads[i], said))
    return rows, told


def _groups(records: Sequence[Record], keys: Sequence[str]) -> list[tuple[dict[str, Any], list[Record]]]:
    """The runs of each setting."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if record.config and record.state != "incomparable":
            groups.setdefault(tuple(record.config.get(key, ABSENT) for key in keys), []).append(record)
    return [(dict(zip(keys, chosen, strict=True)), runs) for chosen, runs in groups.items()]


def seeds(runs: Sequence[Record], metric: Metric) -> dict[Any, float]:
    """The values of a metric by seed, of the runs that are counted and have it."""
    values = {run.seed: metric.value(run) for run in runs if run.done}
    return {seed: value for seed, value in values.items() if value is not None}


def _rank(found: Spread | None, metric: Metric) -> tuple[bool, float]:
    if found is None:
        return True, 0.0
    return False, -found.mean if metric.larger_is_better else found.mean


def _verdicts(groups: Sequence[Sequence[Record]], metric: Metric) -> list[Verdict | None]:
    values = [seeds(runs, metric) for runs in groups]
    means = {i: statistics.fmean(one.values()) for i, one in enumerate(values) if one}
    if not means:
        return [None] * len(groups)
    best = (max if metric.larger_is_better else min)(means, key=lambda i: means[i])
    return [
        None if not one else Verdict(BEST) if i == best else compare(values[best], one) for i, one in enumerate(values)
    ]
