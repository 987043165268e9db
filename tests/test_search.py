"""Searches: what may be searched, what a trial is worth, and that a killed search goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import toys
from quadrat.sweeps.designs import axes
from quadrat.sweeps.ledger import Sweep
from quadrat.sweeps.search import Rules
from quadrat.sweeps.space import Space
from toys import CONFIG, attempts, ledger, runs, states, study, toy, toy_search, until

BOX = "loss.weights.box=tag(log,interval(0.01,100))"
CLIMB = "best = 1 - abs(math.log10(weight['box'] / 3)) / 5"
RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
NSGA2 = {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 4}
MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 0}


@pytest.fixture(autouse=True)
def pretending(monkeypatch: pytest.MonkeyPatch) -> None:
    toys.pretending(monkeypatch)
    pretend(monkeypatch, CLIMB)


def pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setenv("PRETEND", f"import math\n{code}")


def parsed(*overrides: str) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


# --- one at a time ---

BASE_AND_SEEDS = [["seed=0"], ["seed=1"]]
AXES = {
    "nothing": ([], [[]]),
    "fixed": (["lr=1"], [["lr=1"]]),
    "seeds alone": (["seed=0,1"], BASE_AND_SEEDS),
    "one seed": (["seed=3", "a=1,2"], [["seed=3"], ["a=1", "seed=3"], ["a=2", "seed=3"]]),
    "two axes": (["a=1,2", "b=3,4"], [[], ["a=1"], ["a=2"], ["b=3"], ["b=4"]]),
    "crossed with seeds": (
        ["a=1,2", "seed=0,1", "lr=1"],
        [["lr=1", *a, *s] for a in ([], ["a=1"], ["a=2"]) for s in BASE_AND_SEEDS],
    ),
    "later word counts": (["a=1,2", "a=5,6"], [[], ["a=5"], ["a=6"]]),
    "range": (["a=range(1,4)"], [[], ["a=1"], ["a=2"], ["a=3"]]),
}


@pytest.mark.parametrize(("overrides", "jobs"), AXES.values(), ids=AXES)
def test_axes(overrides: list[str], jobs: list[list[str]]) -> None:
    assert axes(parsed(*overrides)) == jobs


# --- what may be searched ---

RANGES: dict[str, tuple[str, BaseDistribution]] = {
    "interval": ("x=interval(1,3)", FloatDistribution(1, 3)),
    "logarithm": ("x=tag(log,interval(0.1,10))", FloatDistribution(0.1, 10, log=True)),
    "whole numbers": ("x=int(interval(1,9))", IntDistribution(1, 9)),
    "range": ("x=range(1,10,2)", IntDistribution(1, 9, step=2)),
    "range without its end": ("x=range(1,9,2)", IntDistribution(1, 7, step=2)),
    "downwards": ("x=range(9,1,-4)", IntDistribution(5, 9, step=4)),
    "range of parts": ("x=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
    "list": ("x=1,2.5,four", CategoricalDistribution(["1", "2.5", "four"])),
    "choice": ("x=choice(1,2)", CategoricalDistribution(["1", "2"])),
}


@pytest.mark.parametrize(("override", "distribution"), RANGES.values(), ids=RANGES)
def test_space(override: str, distribution: BaseDistribution) -> None:
    assert Space.of(parsed(override)).parameters == {"x": distribution}


def test_space_tells_apart() -> None:
    space = Space.of(parsed("lr=0.1", "seed=3,1", "a.b=interval(0,1)", "+c=x,y"))
    assert (space.fixed, space.seeds) == (["lr=0.1"], [["seed=3"], ["seed=1"]])
    assert space.overrides({"a.b": 0.25, "+c": "y"}) == ["lr=0.1", "a.b=0.25", "+c=y"]


UNSEARCHABLE = {
    "nothing": (["lr=1", "seed=0,1"], "something to search"),
    "seed": (["a=1,2", "seed=interval(0,9)"], r"seed=0,1,2"),
    "unknown tag": (["a=tag(lgo,interval(1,2))"], r"no tag lgo; tag\(log"),
    "logarithm of 0": (["a=tag(log,interval(0,1))"], r"a=tag\(log,interval\(0,1\)\) cannot be searched"),
    "logarithm of steps": (["a=tag(log,range(1,9))"], "equal steps"),
    "upside down": (["a=interval(2,1)"], "cannot be searched"),
    "empty": (["a=range(1,1)"], "range is empty"),
}


@pytest.mark.parametrize(("overrides", "says"), UNSEARCHABLE.values(), ids=UNSEARCHABLE)
def test_space_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Space.of(parsed(*overrides))


def test_numbers_are_rounded_within_their_range() -> None:
    space = Space.of(parsed("a=interval(0.00000011,0.12345678)", "b=1,2", "c=range(1,9)"))
    assert space.rounded({"a": 0.0123456789, "b": "1", "c": 7}) == {"a": 0.0123457, "b": "1", "c": 7}
    assert space.rounded({"a": 0.12345678}) == {"a": 0.12345678 if 0.123457 > 0.12345678 else 0.123457}
    assert space.rounded({"a": 0.00000011})["a"] == 0.00000011


RULES = {
    "no sampler": ({"sampler": None, "trials": 1}, "choose hydra/sweeper=random, tpe or nsga2"),
    "no trials": ({"sampler": RANDOM, "trials": 0}, r"hydra\.sweeper\.trials=0"),
    "no batch": ({"sampler": RANDOM, "trials": 1, "batch": 0}, r"hydra\.sweeper\.batch=0"),
    "no metrics": ({"sampler": NSGA2, "trials": 1, "objectives": []}, r"hydra\.sweeper\.objectives="),
    "pruning by two": ({"sampler": NSGA2, "trials": 1, "objectives": ["a", "b"], "pruner": MEDIAN}, "pruner=none"),
}


@pytest.mark.parametrize(("rules", "says"), RULES.values(), ids=RULES)
def test_rules_refused(rules: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rules(**rules)


# --- a search ---


def points(logs: Path) -> list[float]:
    return [trial.params["loss.weights.box"] for trial in study(logs).trials]


def values(logs: Path) -> list[float | None]:
    return [trial.value for trial in study(logs).trials]


def ends(logs: Path) -> list[str]:
    return [trial.state.name for trial in study(logs).trials]


def test_search_value_is_the_mean_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "best = weight['box'] + (10 if label.endswith('seed=1') else 0)")
    toy_search(tmp_path, BOX, "seed=0,1", trials=2)
    assert values(tmp_path) == [pytest.approx(box + 5) for box in points(tmp_path)]
    assert attempts(tmp_path) == {f"box={box} seed={seed}": 1 for box in points(tmp_path) for seed in (0, 1)}
    assert len(set(points(tmp_path))) == 2
    assert all(re.fullmatch(r"[\d.]{3,8}", str(box)) for box in points(tmp_path)), "six digits"


def test_search_trials_are_the_total(tmp_path: Path) -> None:
    for trials, jobs in ((2, 2), (2, 2), (1, 2), (4, 4)):
        toy_search(tmp_path, BOX, "sweep.name=mine", trials=trials)
        assert len(study(tmp_path).trials) == jobs
        assert set(attempts(tmp_path).values()) == {1}
    assert len(attempts(tmp_path)) == 4


def test_search_same_choice_is_one_job(tmp_path: Path) -> None:
    toy_search(tmp_path, "loss.weights.box=choice(2)", trials=2, batch=2)
    assert ends(tmp_path) == ["COMPLETE"] * 2
    assert attempts(tmp_path) == {"box=2": 1}
    assert len(ledger(tmp_path)["jobs"]) == 1


FRONT = """
at_best = {"2": {"val/a": 1, "val/b": 3}, "3": {"val/a": 0, "val/b": 2}, "5": {"val/a": 2, "val/b": 0}}[label[-1]]
"""
"""Weight 3 is beaten by weight 2 in both."""


def test_search_front_of_two_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FRONT)
    rules = {"sampler": NSGA2, "objectives": ["val/a", "val/b"], "batch": 5}
    found = toy_search(tmp_path, "loss.weights.box=2,3,5", trials=10, **rules)
    assert {tuple(trial.values) for trial in found.best_trials} == {(1, 3), (2, 0)}
    assert len(found.trials) == 10
    assert attempts(tmp_path) == {"box=2": 1, "box=3": 1, "box=5": 1}


def test_search_on_a_cluster_is_waited_for(tmp_path: Path) -> None:
    toy_search(tmp_path, BOX, trials=2, batch=2, launcher="toys.Cluster")
    written = [json.loads(runs(tmp_path)[f"box={box}"].metrics_file.read_text())["best"] for box in points(tmp_path)]
    assert values(tmp_path) == written


# --- failures ---


def test_search_failed_job_fails_its_trial_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "if label == 'box=2 seed=1': os.kill(os.getpid(), 9)")
    toy_search(tmp_path, "loss.weights.box=2,3", "seed=0,1", trials=6, sampler=RANDOM)
    assert set(ends(tmp_path)) == {"FAIL", "COMPLETE"}
    failed = [trial.params["loss.weights.box"] == "2" for trial in study(tmp_path).trials]
    assert [end == "FAIL" for end in ends(tmp_path)] == failed
    assert attempts(tmp_path)["box=2 seed=1"] == 1, "what has failed is not tried again by itself"


def test_search_failed_from_the_first_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "sys.exit(1)")
    with pytest.raises(SystemExit, match=r"all 2 trials .* sweep\.retry=failed"):
        toy_search(tmp_path, BOX, trials=5, failures=2)
    assert ends(tmp_path) == ["FAIL"] * 2
    pretend(monkeypatch, CLIMB)
    toy_search(tmp_path, BOX, "sweep.retry=failed", trials=5, failures=2)
    assert ends(tmp_path) == ["FAIL"] * 2 + ["COMPLETE"] * 5
    assert points(tmp_path)[2:4] == points(tmp_path)[:2], "the same once more, and three others"
    toy_search(tmp_path, BOX, "sweep.retry=failed", trials=5, failures=2)
    assert len(points(tmp_path)) == 7


def test_search_missing_metric_fails_the_trial(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toy_search(tmp_path, BOX, trials=1, objectives=["val/ap50"], failures=2)
    assert ends(tmp_path) == ["FAIL"]
    assert "it has no val/ap50" in capfd.readouterr().out


@pytest.mark.parametrize(
    "metric", ["train/total", "val/loss/box", "val/total_loss", "train/weighted/box", "val/Weight"]
)
def test_search_by_a_loss_is_refused(metric: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lowering the weights lowers it; choose by a metric: val/map"):
        toy_search(tmp_path, BOX, trials=1, objectives=[metric])
    assert not runs(tmp_path)


STOPPED_ONCE = f"""
{CLIMB}
if not (run.folder / "once").exists():
    (run.folder / "once").touch()
    os.kill(os.getpid(), 15)
"""


def test_search_whose_job_was_stopped_alone_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, STOPPED_ONCE)
    with pytest.raises(SystemExit, match=r"trial 0 .* \(preempted\); the same command goes on"):
        toy_search(tmp_path, BOX, trials=1)
    assert ends(tmp_path) == ["RUNNING"]
    toy_search(tmp_path, BOX, trials=1)
    assert ends(tmp_path) == ["COMPLETE"]
    assert list(attempts(tmp_path).values()) == [2]


# --- one search is one search ---

OTHER = {
    "range": (
        ["loss.weights.box=interval(1,2)"],
        {},
        "the search of loss.weights.box: tag(log,interval(0.01,100)) {} interval(1,2)",
    ),
    "parameters": ([BOX, "optimizer.lr=interval(1,2)"], {}, "the search of optimizer.lr: absent {} interval(1,2)"),
    "seeds": ([BOX, "seed=0,1"], {}, "seeds: absent {} seed=0, seed=1"),
    "fixed setting": ([BOX, "optimizer.lr=3"], {}, "optimizer.lr: 0.1 {} 3"),
    "length": ([BOX, "trainer.max_epochs=9"], {}, "trainer.max_epochs: 2 {} 9"),
    "sampler": (
        [BOX],
        {"sampler": RANDOM},
        "hydra.sweeper.sampler: " + json.dumps(toys.TPE) + " {} " + json.dumps(RANDOM),
    ),
    "pruner": ([BOX], {"pruner": MEDIAN}, "hydra.sweeper.pruner: null {} " + json.dumps(MEDIAN)),
    "objective": ([BOX], {"objectives": ["val/ap50"]}, 'hydra.sweeper.objectives: ["val/map"] {} ["val/ap50"]'),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of a search of one trial."""
    logs = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        toys.pretending(patch)
        toy_search(logs, BOX, "sweep.name=mine", trials=1)
    return logs


@pytest.mark.parametrize(("overrides", "rules", "says"), OTHER.values(), ids=OTHER)
def test_search_that_has_changed_is_refused(overrides: list[str], rules: dict, says: str, begun: Path) -> None:
    with pytest.raises(ValueError, match=r"search mine is no longer .* nothing was started") as raised:
        toy_search(begun, *overrides, "sweep.name=mine", trials=2, **rules)
    assert says.replace("{}", "when the search began,") + " now" in str(raised.value)
    assert len(study(begun).trials) == 1


def test_search_edited_config_is_refused(begun: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0\.1 when the search began, 0\.2 now"):
        toy_search(begun, BOX, "sweep.name=mine", trials=2, text=CONFIG.replace("lr: 0.1", "lr: 0.2"))


def test_journal_torn_last_line_is_dropped(tmp_path: Path) -> None:
    toy_search(tmp_path, BOX, trials=1)
    (journal,) = tmp_path.glob("sweeps/*/study.journal")
    with journal.open("a") as file:
        file.write('{"op_code":4,"worker_')
    toy_search(tmp_path, BOX, trials=2)
    assert ends(tmp_path) == ["COMPLETE"] * 2


def test_journal_damaged_names_the_way_out(tmp_path: Path) -> None:
    """Without its journal the search asks for the same trials, and finds their runs."""
    toy_search(tmp_path, BOX, trials=3)
    before = points(tmp_path)
    (journal,) = tmp_path.glob("sweeps/*/study.journal")
    journal.write_text("nonsense\n" + journal.read_text())
    with pytest.raises(ValueError, match=r"study\.journal cannot be read .* move it away"):
        toy_search(tmp_path, BOX, trials=3)
    journal.unlink()
    toy_search(tmp_path, BOX, trials=3)
    assert points(tmp_path) == before
    assert set(attempts(tmp_path).values()) == {1}


# --- killed ---

HELD = f"""
{CLIMB}
signals.die_with(int(os.environ['QUADRAT_PARENT']))
others = [file for file in run.folder.parent.glob('*/attempts')]
if len(others) == 6 and not (run.folder.parent / 'held').exists():
    run.set_status("running", heartbeat=time.time(), **here())
    (run.folder.parent / 'held').touch()
    time.sleep(600)
"""
"""The job that is the sixth to begin holds until it is killed, the first time."""


def kill(logs: Path, *arguments: str) -> dict[str, int]:
    """Launch, and kill the launching process while its sixth job is at work; what is done then, by label."""
    sweep = subprocess.Popen(
        [sys.executable, toys.__file__, logs, *arguments],
        env={**os.environ, "PRETEND": f"import math\n{HELD}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until((logs / "held").exists, lambda: sweep.poll() is None, lambda: sweep.communicate()[0])
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    done = [(label, run) for label, run in runs(logs).items() if run.status["state"] == "done"]
    return {label: run.status_file.stat().st_mtime_ns for label, run in done}


def only_the_rest_ran(logs: Path, done: dict[str, int]) -> None:
    """By states, by how often each job was started, and by when each was finished."""
    assert set(states(logs).values()) == {"done"}
    finished = {label: run.status_file.stat().st_mtime_ns for label, run in runs(logs).items()}
    assert {label: finished[label] for label in done} == done
    rest = finished.keys() - done.keys()
    assert all(finished[label] > max(done.values()) for label in rest)
    twice = [label for label, count in attempts(logs).items() if count == 2]
    assert len(twice) == 1, "the one that was at work when the sweep was killed"
    assert set(twice) <= rest
    assert set(attempts(logs).values()) == {1, 2}


HOLDER = """
import sys
from quadrat.sweeps.ledger import Sweep

sweep = Sweep(sys.argv[1])
with sweep.locked(sweep.folder / ".search"):
    print(flush=True)
    input()
"""


def test_second_search_at_the_same_time_is_refused(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweeps" / "mine")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, sweep.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(ValueError, match=f"is being run by process {holder.pid} "):
            toy_search(tmp_path, BOX, "sweep.name=mine", trials=1)
        holder.communicate(b"\n")
    assert not runs(tmp_path)


def test_killed_search_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """It is killed in the middle of its second batch, when the sampler has begun to learn."""
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    done = kill(killed, BOX, "trials=9", "batch=4")
    assert len(done) == 5
    assert ends(killed) == ["COMPLETE"] * 4 + ["RUNNING"] * 4
    toy_search(killed, BOX, trials=9, batch=4)
    only_the_rest_ran(killed, done)
    found = toy_search(undisturbed, BOX, trials=9, batch=4)
    assert points(killed) == points(undisturbed)
    assert values(killed) == values(undisturbed)
    assert found.best_value == max(value for value in values(undisturbed) if value is not None)


def test_killed_grid_runs_only_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = kill(tmp_path, "loss.weights.box=1,2,3,4", "seed=0,1")
    assert len(done) == 5
    toy(tmp_path, "loss.weights.box=1,2,3,4", "seed=0,1")
    assert "5 done, 3 to run" in capfd.readouterr().out
    only_the_rest_ran(tmp_path, done)


def test_killed_while_asking_leaves_whole_trials(tmp_path: Path) -> None:
    """Of a batch of three, one was asked for: the other two are asked for as they would have been."""
    toy_search(tmp_path / "undisturbed", BOX, trials=3, batch=3)
    toy_search(tmp_path / "killed", BOX, trials=1, batch=3)
    (journal,) = (tmp_path / "killed").glob("sweeps/*/study.journal")
    asked = [line for line in journal.read_text().splitlines() if '"op_code":6' not in line]
    journal.write_text("\n".join(asked) + "\n")
    assert ends(tmp_path / "killed") == ["RUNNING"]
    toy_search(tmp_path / "killed", BOX, trials=3, batch=3)
    assert points(tmp_path / "killed") == points(tmp_path / "undisturbed")
    assert set(attempts(tmp_path / "killed").values()) == {1}


# --- pruned trials ---

PRUNES = """
trial = re.search(r"number: (\\d+)", text)
if trial and int(trial[1]) == 1:
    run.write_json(run.metrics_file, {"best": 0.1, "at_best": {}})
    run.set_status("pruned", epochs=1, reason="hopeless")
    sys.exit()
"""
"""The second trial is pruned."""


def test_pruned_trial_other_seeds_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, PRUNES)
    toy_search(tmp_path, BOX, "seed=0,1,2", trials=3, pruner=MEDIAN, batch=3)
    assert ends(tmp_path) == ["COMPLETE", "PRUNED", "COMPLETE"]
    first, second, third = points(tmp_path)
    seeds = {first: 3, second: 1, third: 3}
    assert set(attempts(tmp_path)) == {
        f"box={box} seed={seed}" for box, count in seeds.items() for seed in range(count)
    }
    for label, run in runs(tmp_path).items():
        told = run.config().sweep.trial
        assert (told is not None) == label.endswith("seed=0"), "the first seed decides"
        assert told is None or told.pruner == MEDIAN


def test_pruned_run_is_left_by_its_search_and_finished_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, PRUNES)
    for _ in range(2):
        toy_search(tmp_path, "loss.weights.box=choice(2)", "sweep.name=search", trials=2, pruner=MEDIAN, failures=1)
    assert ends(tmp_path) == ["COMPLETE"] * 2
    run = runs(tmp_path)["box=2"]
    run.set_status("pruned", reason="hopeless")
    assert [outcome.return_value for outcome in toy(tmp_path, "loss.weights.box=2", "sweep.name=grid")] == [0.5]
    assert run.status["state"] == "done"
    assert attempts(tmp_path) == {"box=2": 2}


def test_pruned_counts_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, PRUNES)
    toy_search(tmp_path, BOX, trials=2, pruner=MEDIAN, batch=2)
    said = capfd.readouterr().out
    assert re.search(r"pruned +1 .*0\.100", said)
    assert "1 done, 1 pruned" in said
    assert "2 trials: 1 complete, 1 pruned" in said
    assert "hopeless" in said
