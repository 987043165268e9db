"""The same comparison as a report of Weights & Biases: the runs of the sweep's group, kept up to date by the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quadrat.reports.collect import Record
from quadrat.reports.compare import Comparison, Metric
from quadrat.reports.over_time import COSINE, GRADIENT, LOSS, WEIGHT, columns, moving_weights
from quadrat.reports.style import wide
from quadrat.reports.words import conclusion, notes

STEP = "trainer/global_step"
"""The x axis of all that was logged."""

WEIGHTS = "loss.weights."


def save(result: Comparison) -> str:
    """Make the report on the server and return its address; ValueError says why there is none."""
    tracked = _tracked(result.records)
    from quadrat import wandb_service  # after what needs no import of seconds

    if not wandb_service.has_key():  # or wandb would ask for one
        raise ValueError("there is no API key; `wandb login` or WANDB_API_KEY gives one")
    try:
        return _save(result, tracked)
    finally:
        wandb_service.end_service()  # which may hang, and the process with it at its end


def _save(result: Comparison, tracked: Mapping[str, str]) -> str:
    import wandb

    try:
        entity = tracked["entity"] or str(wandb.Api().default_entity)
        report = build(result, entity, tracked["project"], tracked["group"])
        report.save()
    except (wandb.Error, ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"W&B does not take it ({str(error).splitlines()[0]})") from error
    return report.url


def _tracked(records: Sequence[Record]) -> dict[str, str]:
    """Where the runs were logged; ValueError when they were not, or not in one place."""
    places = {
        tuple(str(run.tracked.get(key) or "") for key in ("entity", "project", "group"))
        for run in records
        if run.tracked
    }
    if not places:
        raise ValueError("the runs were not logged to it; train with logger=wandb")
    if len(places) > 1 or not all(place[2] for place in places):
        raise ValueError(f"the runs are of no one group but of {', '.join('/'.join(one) for one in sorted(places))}")
    return dict(zip(("entity", "project", "group"), places.pop(), strict=True))


def build(result: Comparison, entity: str, project: str, group: str) -> Any:
    """The report itself, not yet on the server: conclusion, runs of the group as table, charts of metric, terms and settings."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as wr

    names = [metric.name for metric in result.metrics]
    mine = expr.And(
        expr.Metric("Group") == group, expr.Metric("JobType") == "train"
    )  # evaluations are runs of their own
    runs = wr.Runset(
        entity=entity,
        project=project,
        name=group,
        filters=mine,
        groupby=[f"config.{key}" for key in result.keys],
        visible_columns=[
            *(f"summary:{_summary(result, metric)}" for metric in result.metrics),
            *(f"config:{_column(key)}" for key in result.keys),
        ],
    )
    blocks = [
        wr.P(" ".join(conclusion(result))),
        wr.H2("Settings"),
        wr.PanelGrid(runsets=[runs], panels=list(_against(result, wr))),
        wr.H2("Over the steps"),
        wr.PanelGrid(runsets=[runs], panels=list(_over_time(result, wr)), hide_run_sets=True),
        wr.UnorderedList([*notes(result)] or ["no run was finished when this was made"]),
    ]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"{group}: {names[0]}"[:128],
        description=conclusion(result)[0],
        blocks=blocks,
        width="fluid",
    )


def _column(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{first}.value" + (f".{rest}" if rest else "")


def _against(result: Comparison, wr: Any) -> Iterator[Any]:
    """All settings at once, and the metric against each that is a number."""
    metric, summary = result.metric.name, wr.SummaryMetric(_summary(result, result.metric))
    log = {key: _logarithmic(result, key) for key in result.keys}
    weights = [key for key in result.keys if key.startswith(WEIGHTS)] or [
        key for run in result.records[:1] for key in run.config if key.startswith(WEIGHTS)
    ]
    shown = list(dict.fromkeys([*weights, *result.keys]))
    axes = [wr.ParallelCoordinatesPlotColumn(wr.Config(key), log=log.get(key) or None) for key in shown]
    axes.append(wr.ParallelCoordinatesPlotColumn(summary, display_name=metric))
    yield wr.ParallelCoordinatesPlot(title="all settings at once", columns=axes, layout=wr.Layout(w=24, h=9))
    for key, logarithmic in log.items():
        if logarithmic is not None:
            title = f"{metric} against {result.names[key]}"
            yield wr.ScatterPlot(title=title, x=wr.Config(key), y=summary, log_x=logarithmic or None)
    if len(result.metrics) > 1:
        second = result.metrics[1]
        other = wr.SummaryMetric(_summary(result, second))
        yield wr.ScatterPlot(title=f"{metric} and {second.name}", x=summary, y=other)


def _summary(result: Comparison, metric: Metric) -> str:
    """The name under which a run's summary has a metric: of the monitor it has the largest value."""
    best = any(run.tracked.get("monitor") == metric.name for run in result.records)
    return f"{metric.name}.max" if best else metric.name


def _logarithmic(result: Comparison, key: str) -> bool | None:
    """None for what is no number."""
    values = [row.settings[key] for row in result.rows]
    if any(not isinstance(value, int | float) for value in values):
        return None
    return wide(values)


def _over_time(result: Comparison, wr: Any) -> Iterator[Any]:
    """Metrics, then every term's loss, gradient norm, weight and agreement, as far as they were logged."""
    lines: Mapping[str, Sequence[str]] = {
        "metrics": [metric.name for metric in result.metrics],
        "losses": columns(result, LOSS),
        "gradient norms": columns(result, GRADIENT),
        "weights": columns(result, WEIGHT) if moving_weights(result) else [],
        "agreement of terms": columns(result, COSINE),
    }
    for kind, names in lines.items():
        for name in names:
            title = (
                name if kind == "metrics" else f"{kind}: {name.partition('/')[2].partition('/')[2].replace('/', ', ')}"
            )
            yield wr.LinePlot(title=title, x=STEP, y=[name], groupby_aggfunc="mean", groupby_rangefunc="stddev")
