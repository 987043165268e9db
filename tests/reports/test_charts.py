"""Charts hold the numbers they should, and only those are made that make sense."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from quadrat.reports import against, by_loss, over_time
from quadrat.reports.charts import charts
from quadrat.reports.collect import Record, collect
from quadrat.reports.compare import Comparison, comparison
from quadrat.reports.find import find
from quadrat.reports.style import normalised, ordered, png, thousands, wide
from reported import TERMS, make_run, training

BOX, CLS = "loss.weights.box", "loss.weights.cls"
NORMALISER = "model.normaliser"


def run(
    settings: Mapping[str, Any], seed: int, best: float, history: Mapping[str, Any] | None = None, **more: Any
) -> Record:
    curves = {
        name: (np.array(steps, float), np.array(values, float)) for name, (steps, values) in (history or {}).items()
    }
    config = {"monitor": "val/map", **settings}
    return Record(
        Path(f"/runs/{seed}"),
        "",
        "done",
        config=config,
        seed=seed,
        monitor="val/map",
        best=best,
        history=curves,
        **more,
    )


def compared(records: list[Record], *asked: str) -> Comparison:
    return comparison("mine", records, asked)


def names(result: Comparison) -> list[str]:
    return [chart.name for chart in charts(result)]


def grid(*, normalisers: tuple[str, ...] = (), seeds: int = 2) -> Comparison:
    """3 x 3 weights, best at box=1, cls=1."""
    chosen = itertools.product((0.1, 1.0, 10.0), (0.1, 1.0, 10.0), normalisers or (None,), range(seeds))
    records = []
    for box, cls, normaliser, seed in chosen:
        settings = {BOX: box, CLS: cls} | ({NORMALISER: normaliser} if normaliser else {})
        best = 0.7 - 0.05 * abs(np.log10(box)) - 0.02 * abs(np.log10(cls)) + 0.01 * seed + 0.001 * (normaliser == "a")
        records.append(run(settings, seed, best, last={"val/ap50": 1 - best}))
    return compared(records)


# --- which are made ---


def test_no_charts_without_a_finished_run() -> None:
    assert charts(compared([])) == []
    assert charts(compared([Record(Path("x"), "x", "failed", config={"monitor": "val/map"}, monitor="val/map")])) == []


def test_one_run_has_its_curves_only() -> None:
    history = {"val/map": ([1, 2], [0.1, 0.2]), "train/loss/a": ([1], [2.0])}
    assert names(compared([run({}, 0, 0.2, history)])) == ["learning", "losses"]


def test_one_number() -> None:
    assert names(compared([run({BOX: w}, 0, w) for w in (0.1, 0.2)])) == ["curve-loss.weights.box", "ranking"]


def test_one_choice() -> None:
    """The ranking already shows it."""
    methods = ("quadrat.losses.A", "quadrat.losses.B", "quadrat.losses.C")
    result = compared([run({"loss.weighting._target_": one}, 0, i) for i, one in enumerate(methods)])
    assert names(result) == ["ranking"]


def test_two_numbers_and_a_choice() -> None:
    assert names(grid(normalisers=("a", "b"))) == [
        "curve-loss.weights.box",
        "curve-loss.weights.cls",
        "ranking",
        "choice-model.normaliser",
        "map-loss.weights.box-loss.weights.cls",
        "parallel",
    ]


def test_random_search_has_no_map() -> None:
    values = np.random.default_rng(0).uniform(0.1, 1, (12, 2))
    result = compared([run({BOX: a, CLS: b}, 0, a) for a, b in values.tolist()])
    assert names(result) == ["curve-loss.weights.box", "curve-loss.weights.cls", "ranking", "parallel"]


def test_two_metrics_have_a_front() -> None:
    records = [run({BOX: w}, 0, w, last={"val/ap50": 1 - w}) for w in (0.1, 0.2)]
    assert names(compared(records, "val/map", "val/ap50"))[-1] == "pareto"


def test_weights_and_cosines_only_where_they_say_something() -> None:
    still = {"train/weight/a": ([1, 2], [3.0, 3.0])}
    assert names(compared([run({}, 0, 0.5, still)])) == []
    learned = {"train/weight/a": ([1, 2], [3.0, 2.0]), "train/cosine/a/b": ([1], [-0.5])}
    assert names(compared([run({}, 0, 0.5, learned)])) == ["weights", "cosines"]


# --- what they show ---


def test_curve_points_and_bars() -> None:
    values = {0.1: (0.4, 0.6), 1.0: (0.6, 0.7), 10.0: (0.5, 0.5)}
    result = compared([run({BOX: w}, seed, best) for w, seeds in values.items() for seed, best in enumerate(seeds)])
    (ax,) = against.curve(result, BOX).axes
    (line,) = ax.containers
    assert line[0].get_xdata() == pytest.approx([0.1, 1.0, 10.0])
    assert line[0].get_ydata() == pytest.approx([0.5, 0.65, 0.5])
    bars = [segment[:, 1] for segment in line[2][0].get_segments()]
    deviation = 0.02**0.5  # of 0.4 and 0.6
    assert bars[0] == pytest.approx([0.5 - deviation, 0.5 + deviation])
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.1", "1", "10"]


def test_curve_has_a_line_for_each_other_setting() -> None:
    result = grid(normalisers=("a", "b"))
    assert len(against.lines(result, BOX)) == 6
    chart = against.curve(result, BOX)
    assert [text.get_text() for text in chart.legends[0].get_texts()][:2] == [
        "cls=0.1 normaliser=a",
        "cls=0.1 normaliser=b",
    ]


def test_curve_of_unrelated_settings_is_dots() -> None:
    result = compared([run({BOX: a, CLS: 2 * a + 1}, 0, a) for a in (0.1, 0.2, 0.4)])
    assert against.lines(result, BOX) == []
    (dots,) = against.curve(result, BOX).axes[0].lines
    assert sorted(np.asarray(dots.get_xdata()).tolist()) == [0.1, 0.2, 0.4]


def test_curve_keeps_the_best_lines() -> None:
    result = compared([run({BOX: a, CLS: b}, 0, b + a / 100) for a in (1, 2) for b in range(20)])
    chart = against.curve(result, BOX)
    assert [text.get_text() for text in chart.legends[0].get_texts()] == [f"cls={b}" for b in range(12, 20)]


def test_heat_map_cells() -> None:
    result = grid()
    ax = against.heat_map(result, BOX, CLS).axes[0]
    plane = np.asarray(ax.images[0].get_array())
    assert plane[1] == pytest.approx([0.655, 0.705, 0.655])  # cls=1 over box=0.1, 1, 10
    assert plane[:, 1] == pytest.approx([0.685, 0.705, 0.685])
    assert "0.705\n± 0.007" in [text.get_text() for text in ax.texts]
    (frame,) = ax.patches
    assert frame.get_xy() == pytest.approx((0.53, 0.54))  # around the middle


def test_ranking_is_in_order() -> None:
    result = grid()
    ax = against.ranking(result).axes[0]
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels[0] == "box=1 cls=1   1"
    assert len(labels) == 9


def test_parallel_ends_at_the_metric() -> None:
    ax = against.parallel(grid()).axes[0]
    lines = [line for line in ax.lines if len(np.asarray(line.get_xdata())) > 2]
    best = lines[-1]
    assert np.asarray(best.get_ydata())[[0, -1]] == pytest.approx([0.5, 1.0])  # box=1 is in the middle of its axis
    assert best.get_linewidth() > lines[0].get_linewidth()


def test_front() -> None:
    """Of (1, 1), (2, 3), (3, 2), (2, 2), (3, 2) nothing beats (2, 3) and both (3, 2)."""
    points = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (2.0, 2.0), (3.0, 2.0)]
    records = [run({BOX: i}, 0, one, last={"val/ap50": two}) for i, (one, two) in enumerate(points)]
    result = compared(records, "val/map", "val/ap50")
    first, second = result.metrics
    assert [row.settings[BOX] for row in against.front(result.rows, first, second)] == [1, 2, 4]
    assert against.pareto(result, first, second).axes[0].get_xlabel() == "val/map"


def test_front_of_a_loss() -> None:
    points = [(1.0, 0.1), (2.0, 0.3), (1.5, 0.3)]
    records = [run({BOX: i}, 0, one, last={"val/loss/a": two}) for i, (one, two) in enumerate(points)]
    result = compared(records, "val/map", "val/loss/a")
    assert [row.settings[BOX] for row in against.front(result.rows, *result.metrics)] == [0, 1]


def test_mean_curve_over_seeds_and_gaps() -> None:
    """Seeds that logged at the same steps are averaged there; a value that is not finite is left out."""
    runs = [run({}, 0, 0.5, {"a": ([1, 2, 3], [1.0, 2.0, np.nan])}), run({}, 1, 0.5, {"a": ([1, 2], [3.0, 6.0])})]
    steps, values = over_time.mean_curve(runs, "a")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [2.0, 4.0])
    assert over_time.mean_curve(runs, "b")[0].size == 0
    assert over_time.mean_curve([run({}, 0, 0.5, {"a": ([1], [np.nan])})], "a")[0].size == 0


def test_mean_curve_bins_long_logs() -> None:
    """240 steps in 40 bins of about six: the mean step and the mean value of each."""
    runs = [run({}, 0, 0.5, {"a": (range(240), range(240))})]
    steps, values = over_time.mean_curve(runs, "a")
    assert len(steps) == over_time.BINS
    assert steps[0] == pytest.approx(2.5)  # 0, 1, 2, 3, 4, 5
    assert values == pytest.approx(steps)


def test_losses_beside_gradient_norms() -> None:
    history = {f"train/{kind}/{term}": ([1, 2], [1.0, 2.0]) for term in "ab" for kind in ("loss", "gradient_norm")}
    chart = over_time.losses(compared([run({BOX: w}, 0, w, history) for w in (1, 2)]))
    assert [ax.get_title() for ax in chart.axes] == ["a: loss", "a: gradient norm", "b: loss", "b: gradient norm"]
    (lines,) = [one for one in chart.axes[0].collections if isinstance(one, LineCollection)]
    assert len(lines.get_segments()) == 2


def test_losses_without_gradient_norms() -> None:
    chart = over_time.losses(compared([run({}, 0, 0.5, {"train/loss/a": ([1, 2], [1.0, 2.0])})]))
    assert len(chart.axes) == 1


# --- the loss and the metric ---


ALPHA = "loss.weighting.alpha"


def minimised(
    settings: Mapping[str, Any], seed: int, best: float, weights: Mapping[str, float], losses: Mapping[str, float]
) -> Record:
    """A run with these weights in training and these validation losses."""
    weighted = {f"train/weighted/{term}": ([9], [weight]) for term, weight in weights.items()}
    history = {f"train/weight/{term}": ([4, 9], [7.0, weight]) for term, weight in weights.items()} | weighted
    history["train/total"] = ([9], [sum(weights.values())])
    last = {"val/map": best, **{f"val/loss/{term}": loss for term, loss in losses.items()}}
    return run(settings, seed, best, history, last=last)


def by_alpha(values: Mapping[float, tuple[float, ...]], losses: Mapping[str, float]) -> Comparison:
    """Runs with the same raw losses, whose total is what alpha makes of it; the metric of each seed."""
    return compared(
        [
            minimised({ALPHA: one}, seed, value, {"cls": one, "box": 1 - one}, losses)
            for one, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
    )


def test_total_has_the_last_weights() -> None:
    record = minimised({}, 0, 0.5, {"cls": 2.0, "box": 0.5, "off": 0.0}, {"cls": 0.3, "box": 0.4})
    assert by_loss.total(record) == pytest.approx(2 * 0.3 + 0.5 * 0.4)


def test_total_is_unknown_without_a_term_or_weights() -> None:
    assert by_loss.total(minimised({}, 0, 0.5, {"cls": 2.0, "box": 0.5}, {"cls": 0.3})) is None
    assert by_loss.total(minimised({}, 0, 0.5, {}, {"cls": 0.3})) is None


def test_total_is_unknown_where_more_was_minimised() -> None:
    """Learned weights have a term of their own, so that a lower total may be a larger loss."""
    record = minimised({}, 0, 0.5, {"cls": 2.0}, {"cls": 0.3})
    record = replace(record, history={**record.history, "train/total": (np.array([9.0]), np.array([1.3]))})
    assert by_loss.total(record) is None


def test_lowest_loss_is_not_the_best_metric() -> None:
    """0.9 * 0.2 + 0.1 * 0.8 = 0.26 is less than 0.5 * 0.2 + 0.5 * 0.8 = 0.5, for no better a run."""
    result = by_alpha({0.5: (0.6, 0.8), 0.9: (0.4, 0.6)}, {"cls": 0.2, "box": 0.8})
    chart = by_loss.loss_against_metric(result)
    (ax,) = chart.axes
    first, second = ax.containers
    assert (first[0].get_xdata(), first[0].get_ydata()) == (pytest.approx([0.5]), pytest.approx([0.7]))
    assert (second[0].get_xdata(), second[0].get_ydata()) == (pytest.approx([0.26]), pytest.approx([0.5]))
    deviation = 0.02**0.5  # of 0.6 and 0.8
    (bar,) = first[2][0].get_segments()  # none along the loss, which is the same for both seeds
    assert bar[:, 1] == pytest.approx([0.7 - deviation, 0.7 + deviation])
    assert [text.get_text() for text in chart.legends[0].get_texts()] == [
        "lowest loss: 2  alpha=0.9",
        "best val/map: 1  alpha=0.5",
    ]
    assert ax.get_xlabel().endswith("(another quantity for each alpha)")
    assert by_loss.answer(result) == (
        "The lowest loss has a val/map of 0.500, 0.200 from the best: different (p < 0.001)."
    )


def test_lowest_loss_is_the_best_metric() -> None:
    weights = {"cls": 1.0}
    result = compared([minimised({NORMALISER: n}, 0, 1 - n / 9, weights, {"cls": n}) for n in (1, 2)])
    chart = by_loss.loss_against_metric(result)
    assert [text.get_text() for text in chart.legends[0].get_texts()] == [
        "lowest loss and best val/map: 1  normaliser=1"
    ]
    assert chart.axes[0].get_xlabel() == "validation loss, weighted as in training"
    assert by_loss.answer(result) == "The lowest loss is that of the best val/map."


def test_weights_that_were_found_make_other_quantities() -> None:
    records = [minimised({NORMALISER: n}, 0, n, {"cls": n}, {"cls": 1.0}) for n in (1.0, 2.0)]
    assert by_loss.unlike(compared(records)) == "another quantity where the weights differ"


def test_settings_without_a_known_loss_are_left_out() -> None:
    known = [minimised({BOX: w}, 0, w, {"cls": 1.0}, {"cls": w}) for w in (0.1, 0.2)]
    result = compared([*known, run({BOX: 0.3}, 0, 0.3)])
    assert [point.row.settings[BOX] for point in by_loss.points(result)] == [0.2, 0.1]
    assert "loss-against-metric" in names(result)
    assert "loss-against-metric" not in names(compared([known[0], run({BOX: 0.3}, 0, 0.3)]))


def test_loss_against_metric_of_run_folders(tmp_path: Path) -> None:
    """In the files that training leaves."""
    for i, weight in enumerate((1.0, 10.0)):
        rows, last = training(0.5 + i / 10, 0, weights={"rpn_box": weight})
        make_run(tmp_path / f"r{i}", {"loss.weights.rpn_box": weight}, best=last["val/ap50"], rows=rows, last=last)
    found = by_loss.points(comparison("mine", collect(find(str(tmp_path), tmp_path).jobs)))
    assert [point.loss.mean for point in found] == pytest.approx([0.4 * 0.6 * 13, 0.4 * 0.7 * len(TERMS)])


# --- every one is a picture ---


def everything(settings: int, rows: int, seeds: int) -> Comparison:
    rng = np.random.default_rng(0)
    steps = list(range(10, 200, 10))
    history = {"val/map": ([100, 200], [0.1, 0.2])}
    history |= {f"train/{kind}/{term}": (steps, rng.uniform(0.1, 9, 19)) for term in "abc" for kind in KINDS}
    history |= {f"train/cosine/{pair}": (steps, rng.uniform(-1, 1, 19)) for pair in ("a/b", "a/c", "b/c")}
    keys = {f"part{i}.with_a_rather_long_name_{i}": i for i in range(settings)}
    chosen = [
        {key: float(f"{10 ** rng.uniform(-2, 2):.3g}") for key in keys} | {"w": f"method{i}"} for i in range(rows)
    ]
    last = {"val/map": 0.5, **{f"val/loss/{term}": 0.3 for term in "abc"}}
    history |= {f"train/weighted/{term}": ([190], [1.0]) for term in "abc"} | {"train/total": ([190], [3.0])}
    records = [
        run(one, seed, rng.uniform(), history, last=last | {"val/b": rng.uniform()})
        for one in chosen
        for seed in range(seeds)
    ]
    return compared(records, "val/map", "val/b")


KINDS = ("loss", "gradient_norm", "weight")


@pytest.mark.parametrize(("settings", "rows", "seeds"), [(0, 1, 1), (1, 2, 2), (2, 10, 1)])
def test_every_chart_is_drawn_without_a_warning(settings: int, rows: int, seeds: int) -> None:
    """Warnings are errors here: no chart is too small for its labels."""
    for chart in charts(everything(settings, rows, seeds)):
        image = Image.open(io.BytesIO(png(chart.draw)))
        assert min(image.size) > 150, chart.name
        assert np.asarray(image.convert("L")).std() > 5, chart.name  # it is not empty


def test_many_settings_fit_the_parallel_chart() -> None:
    png(lambda: against.parallel(everything(20, 20, 1)))


# --- small things ---


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1.0, 1.0], False),
        ([0.1, 1, 10, 100], True),
        ([0.25, 1, 4], True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], False),
        ([0.0, 1, 1000], False),
        ([-1, 1, 1000], False),
    ],
)
def test_wide(values: list[float], logarithmic: bool) -> None:
    assert wide(values) is logarithmic


def test_ordered() -> None:
    assert ordered(["b", 10, 2, "a", 2]) == [2, 10, "a", "b"]


def test_normalised_of_one_value() -> None:
    assert normalised([0.5, 0.5])(0.5) == 0.0


def test_thousands() -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots().xaxis
    thousands(axis)
    assert [axis.get_major_formatter()(value, 0) for value in (500, 20_000)] == ["500", "20k"]
