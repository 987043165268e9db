"""Which runs are compared, by which settings, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from quadrat.reports.collect import Record, collect
from quadrat.reports.compare import Comparison, comparison
from quadrat.reports.find import find
from quadrat.reports.noise import BEST, DIFFERENT, UNTOLD, WITHIN, Spread
from quadrat.reports.settings import label, short, shown, telling, varying
from quadrat.reports.words import conclusion, explained, notes, number, written
from reported import make_run, make_sweep

BOX = "loss.weights.rpn_box"


def run(settings: Mapping[str, Any] | None = None, seed: int = 0, best: float | None = 0.5, **more: Any) -> Record:
    """A record as of a run folder, without one."""
    config = {"monitor": "val/ap50", "data.source.root": "a", "data.seed": seed, BOX: 1.0, **(settings or {})}
    given = {"state": "done", "monitor": config["monitor"], "last": {"val/ap50": best}, **more}
    return Record(Path(f"/runs/{seed}"), "", config=config, seed=seed, best=best, **given)


def compared(records: Sequence[Record], *asked: str) -> Comparison:
    return comparison("mine", records, asked)


THREE = {0: 0.70, 1: 0.72, 2: 0.74}


def swept(values: Mapping[float, Mapping[int, float]]) -> list[Record]:
    return [run({BOX: weight}, seed, best) for weight, seeds in values.items() for seed, best in seeds.items()]


# --- settings ---


def test_varying_nothing() -> None:
    assert varying([]) == []
    assert varying([run(), run(seed=1)]) == []  # the seed, under both of its names
    assert varying([run({BOX: 1}, seed=1), run({BOX: 2}, seed=2)]) == [BOX]  # which happens to be equal to it


def test_varying_numbers_alike() -> None:
    assert varying([run({BOX: 1}), run({BOX: 1.0})]) == []


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ([{"a.x": 1}, {"a.x": 2}], ["a.x"]),
        (
            [{"optimizer.lr": 1, BOX: 1.0}, {"optimizer.lr": 2, BOX: 2.0}],
            [BOX, "optimizer.lr"],
        ),  # a weight is a setting
        ([{"optimizer.lr": 1, "m.n.r": 1.0}, {"optimizer.lr": 2, "m.n.r": 2.0}], ["optimizer.lr"]),  # an alias, shorter
        ([{"epochs": 6, "trainer.max_epochs": 6}, {"epochs": 12, "trainer.max_epochs": 12}], ["epochs"]),
        ([{"w.a": 1, "w.b": 1}, {"w.a": 2, "w.b": 2}], ["w.a", "w.b"]),  # side by side: two settings
        ([{"p._target_": "q.A", "p.t": 1}, {"p._target_": "q.B", "p.t": 2}], ["p._target_"]),
        ([{"p._target_": "q.A"}, {"p._target_": "q.B", "p.t": 2}], ["p._target_"]),
        ([{"p._target_": "A"}, {"p._target_": "B", "p.t": 1}, {"p._target_": "B", "p.t": 2}], ["p._target_", "p.t"]),
        ([{"m.k": 1, "m.n": 1, "b": 1}, {"b": 2}], ["b"]),  # what some lack and another setting tells
        ([{"b": 1, BOX: 3}, {"b": 2, BOX: 5}, {"b": 1, BOX: 5}], [BOX, "b"]),
    ],
)
def test_varying(settings: list[dict[str, Any]], keys: list[str]) -> None:
    assert varying([run(one) for one in settings]) == keys


def test_short_names() -> None:
    names = short([BOX, "model.a.nms", "model.b.nms", "loss.weighting._target_"])
    assert list(names.values()) == ["rpn_box", "a.nms", "b.nms", "weighting"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.1 + 0.2, "0.3"),
        (1e-5, "1e-05"),
        (True, "true"),
        (None, "null"),
        ("x" * 40, "x" * 14 + "…" + "x" * 13),
    ],
)
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text


def test_label() -> None:
    assert label({}, {}) == "all runs"
    assert label({"a.b": 1.0, "c": "x"}, {"a.b": "b", "c": "c"}) == "b=1 c=x"
    assert label({"loss.weighting._target_": "quadrat.losses.Uncertainty"}, {}) == "Uncertainty"


def test_telling_leaves_out_what_is_not_needed() -> None:
    rows = [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 2}, {"a": 2, "b": 2, "c": 3}]
    assert telling(rows, ["a", "b", "c"], 3) == ["a", "b", "c"]
    assert telling(rows, ["a", "b", "c"], 2) == ["a", "b"]


# --- rows ---


def test_compare_nothing() -> None:
    result = compared([])
    assert (result.rows, conclusion(result), notes(result)) == (
        (),
        ["No run is finished, so there is nothing to compare yet."],
        [],
    )


def test_rows_by_rank_with_means_over_seeds() -> None:
    result = compared(swept({1.0: {0: 0.3, 1: 0.5}, 10.0: THREE}))
    assert [row.label for row in result.rows] == ["rpn_box=10", "rpn_box=1"]
    assert result.rows[0].spreads["val/ap50"] == Spread(pytest.approx(0.72), pytest.approx(0.02), 3)
    assert result.rows[1].spreads["val/ap50"] == Spread(pytest.approx(0.4), pytest.approx(0.02**0.5), 2)
    assert result.rows[0].states() == "3 done"


def test_verdicts() -> None:
    within = {seed: value - 0.01 * (-1) ** seed for seed, value in THREE.items()}
    different = {seed: value - 0.1 - 0.001 * seed for seed, value in THREE.items()}
    result = compared(swept({1.0: THREE, 2.0: within, 3.0: different, 4.0: {0: 0.1}}))
    said = [row.verdicts["val/ap50"] for row in result.rows]
    assert [one and one.says for one in said] == [BEST, WITHIN, DIFFERENT, UNTOLD]
    assert explained(said[3]) == "one seed: cannot be told"


def test_runs_that_are_not_done_are_in_no_mean() -> None:
    marked = [run({BOX: 2.0}, 1, 0.9, state=state) for state in ("failed", "pruned", "damaged", "running")]
    result = compared([run({BOX: 2.0}, 0, 0.5), *marked, run({BOX: 3.0}, 0, 0.9, state="queued")])
    assert result.rows[0].spreads["val/ap50"] == Spread(0.5, None, 1)
    assert result.rows[0].states() == "1 done, 1 failed, 1 pruned, 1 damaged, 1 running"
    assert (result.rows[1].label, result.rows[1].spreads["val/ap50"]) == ("rpn_box=3", None)
    assert len(result.marked) == 5
    assert conclusion(result) == [
        "Best: rpn_box=2, val/ap50 0.500 (one seed).",
        "1 of 1 other settings has no finished run.",
    ]


def test_one_seed_of_several_that_are_under_way() -> None:
    finished = [run({BOX: weight}, 0, weight / 10) for weight in (1.0, 2.0)]
    assert "seed=0,1,2 in the sweep would tell" in conclusion(compared(finished))[1]
    assert (
        "their other seeds are not finished" in conclusion(compared([*finished, run({BOX: 1.0}, 1, state="queued")]))[1]
    )


def test_means_over_different_seeds_are_told() -> None:
    alike = [run({BOX: weight}, seed, weight / 10 + seed / 20) for weight in (1.0, 2.0) for seed in (0, 1)]
    assert "same seeds" not in " ".join(conclusion(compared(alike)))
    assert "The means are not all over the same seeds" in conclusion(compared(alike[1:]))[-1]


def test_none_finished() -> None:
    result = compared([run(state="running"), run({BOX: 2.0}, state="failed")])
    assert [row.mean(result.metric) for row in result.rows] == [None, None]
    assert conclusion(result) == ["No run is finished, so there is nothing to compare yet."]


def test_a_run_that_cannot_be_read_is_no_row() -> None:
    result = compared([run(), Record(Path("x"), "x", "damaged", "config.yaml is empty")])
    assert (len(result.rows), len(result.records), result.names) == (1, 2, {})


def test_no_setting_differs() -> None:
    result = compared([run(seed=seed, best=best) for seed, best in THREE.items()])
    assert [row.label for row in result.rows] == ["all runs"]
    assert conclusion(result) == ["val/ap50 of all runs: 0.720 ± 0.020 (mean ± deviation of 3 seeds)."]


def test_the_same_run_in_two_folders_counts_once() -> None:
    result = compared([run(seed=0, best=0.5), run(seed=0, best=0.5), run(seed=1, best=0.7)])
    assert result.rows[0].spreads["val/ap50"] == Spread(pytest.approx(0.6), pytest.approx(0.02**0.5), 2)
    (double,) = result.marked
    assert (double.state, "the same settings and seed as" in double.reason) == ("double", True)


# --- what is comparable ---


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"monitor": "val/map"}, "monitor is val/map, val/ap50 in most runs"),
        ({"task.metric.preset": "voc12"}, "task.metric.preset is voc12, absent in most runs"),
        ({"data.source.root": "b"}, "data.source.root is b, a in most runs"),
        ({"data.limit": 8}, "data.limit is 8, absent in most runs"),
        ({"data.source.count.val": 9}, "data.source.count.val is 9"),
    ],
)
def test_runs_of_another_metric_are_marked(other: dict[str, Any], named: str) -> None:
    result = compared([run(seed=0), run(seed=1), run(other, 2, 0.9)])
    assert (len(result.rows), result.rows[0].spreads["val/ap50"]) == (1, Spread(0.5, 0.0, 2))
    (marked,) = result.marked
    assert marked.state == "incomparable"
    assert f"it measures something else: {named}" in marked.reason


def test_how_much_there_is_to_learn_from_is_a_setting() -> None:
    result = compared([run({"data.source.count.train": 100}), run({"data.source.count.train": 200})])
    assert list(result.names) == ["data.source.count.train"]
    assert not result.marked


# --- metrics ---


def test_metric_at_the_best_validation_where_all_runs_have_it() -> None:
    both = [run(seed=i, best=0.5, last={"val/map": 0.1}, at_best={"val/map": 0.2 + i / 10}) for i in (0, 1)]
    result = compared(both, "val/ap50", "val/map")
    assert result.rows[0].spreads["val/map"] == Spread(pytest.approx(0.25), pytest.approx(0.005**0.5), 2)
    assert "val/map is that of each run's validation with the best val/ap50" in notes(result)


def test_metric_of_the_last_validation_where_one_run_lacks_it() -> None:
    """Values of two moments are not one metric."""
    one = run(seed=0, last={"val/map": 0.1}, at_best={"val/map": 0.2})
    result = compared([one, run(seed=1, last={"val/map": 0.3})], "val/map")
    assert result.rows[0].spreads["val/map"] == Spread(pytest.approx(0.2), pytest.approx(0.02**0.5), 2)
    assert "val/map is that of each run's last validation" in notes(result)


def test_monitor_is_the_best_of_the_run() -> None:
    result = compared([run(best=0.5, last={"val/ap50": 0.4}, at_best={"val/ap50": 0.5})])
    assert result.rows[0].spreads["val/ap50"] == Spread(0.5, None, 1)
    assert "val/ap50 is that of each run's best validation" in notes(result)


def test_metric_that_is_a_loss_is_better_when_smaller() -> None:
    records = [run({BOX: w}, last={"val/loss/box": loss}) for w, loss in ((1.0, 0.3), (2.0, 0.1))]
    result = compared(records, "val/loss/box")
    assert [row.label for row in result.rows] == ["rpn_box=2", "rpn_box=1"]
    verdict = result.rows[0].verdicts["val/loss/box"]
    assert verdict is not None
    assert verdict.says == BEST


def test_metric_that_one_run_lacks_marks_it() -> None:
    result = compared([run(last={"val/map": 0.3}), run(seed=1, last={})], "val/map")
    assert result.rows[0].spreads["val/map"] == Spread(0.3, None, 1)
    assert result.marked[0].reason == "metrics.json has no val/map of the last validation"


def test_metric_misspelt() -> None:
    with pytest.raises(ValueError, match=r"metrics=val/mpa: no finished run has it; there is val/map"):
        compared([run(last={"val/map": 0.3})], "val/mpa")


# --- in words ---


def test_conclusion_names_what_is_within_noise() -> None:
    within = {seed: value - 0.01 * (-1) ** seed for seed, value in THREE.items()}
    different = {seed: value - 0.1 - 0.001 * seed for seed, value in THREE.items()}
    said = conclusion(compared(swept({1.0: THREE, 2.0: within, 3.0: different})))
    assert said == [
        "Best: rpn_box=1, val/ap50 0.720 ± 0.020 (mean ± deviation of 3 seeds).",
        "Within noise of it: 1 of 2 other settings (rpn_box=2).",
        "Different from it: 1 of 2 other settings (rpn_box=3).",
    ]


def test_notes_say_which_test() -> None:
    records = swept({1.0: THREE, 2.0: {0: 0.5, 1: 0.6, 2: 0.5}, 3.0: {5: 0.5, 6: 0.6}})
    text = "; ".join(notes(compared(records)))
    assert "a paired t test where the seeds are the same (1 row)" in text
    assert "Welch's t test where they are not (1 row)" in text
    assert "by chance about 0.1 of 2 rows would be called different" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.71249, "0.712"), (-0.5, "-0.500"), (0.00123, "0.00123"), (12345.6, "1.235e+04")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_written() -> None:
    assert [written(one) for one in (None, Spread(0.5, None, 1), Spread(0.5, 0.01, 2))] == [
        "",
        "0.500",
        "0.500 ± 0.010",
    ]


# --- which folders ---


def test_find_by_glob_folder_and_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shapes-1", "shapes-2", "voc-1"):
        make_run(tmp_path / "logs" / name)
    (tmp_path / "logs" / "shapes-empty").mkdir()
    monkeypatch.chdir(tmp_path)
    logs = Path("logs")
    found = {
        asked: [job.key for job in find(asked, logs).jobs] for asked in ("logs/shapes-*", "shapes-*", "voc-1", "logs")
    }
    assert found["logs/shapes-*"] == found["shapes-*"] == ["shapes-1", "shapes-2"]
    assert (found["voc-1"], found["logs"]) == (["voc-1"], ["shapes-1", "shapes-2", "voc-1"])
    assert find("shapes-*", logs).output == logs / "reports" / "shapes"


def test_find_objectives_of_a_search(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, "search", [make_run(tmp_path / "r")])
    assert find("search", tmp_path).metrics == ()
    design = {"hydra.sweeper.objectives": '["val/ap50", "val/map"]'}
    lines = [{"op_code": 0}, {"op_code": 2, "user_attr": {"design": design}}]
    (sweep.folder / "study.journal").write_text("\n".join(map(json.dumps, lines)) + "\n{half")
    assert find("search", tmp_path).metrics == ("val/ap50", "val/map")
    (sweep.folder / "study.journal").write_text("{half")
    assert find("search", tmp_path).metrics == ()


def test_find_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"runs=x\* is no sweep .* QUADRAT_LOGS=<folder> says where to look"):
        find("x*", tmp_path)
    make_run(tmp_path / "shapes-1")
    with pytest.raises(FileNotFoundError, match=r"did you mean runs=shapes-1\?"):
        find("shape-1", tmp_path)
    (tmp_path / "hollow").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no run folder \(one with a config.yaml\) in .*hollow"):
        find(str(tmp_path / "hollow"), tmp_path)


def test_rows_of_real_folders(tmp_path: Path) -> None:
    """From files to the table: a sweep of two weights and two seeds, one of whose runs is half written."""
    for i, (weight, seed, best) in enumerate([(1, 0, 0.5), (1, 1, 0.7), (10, 0, 0.8), (10, 1, 0.9)]):
        make_run(tmp_path / f"r{i}", {BOX: weight}, seed, best)
    (tmp_path / "r3" / "metrics.json").write_text(json.dumps({"best": 0.9})[:-4])
    result = compared(collect(find(f"{tmp_path}/r*", tmp_path).jobs))
    assert [(row.label, written(row.spreads["val/ap50"]), row.states()) for row in result.rows] == [
        ("rpn_box=10", "0.800", "1 done, 1 damaged"),
        ("rpn_box=1", "0.600 ± 0.141", "2 done"),
    ]
