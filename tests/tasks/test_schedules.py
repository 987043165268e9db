"""The learning rate over a run, at its corners."""

import pytest

from quadrat.tasks.schedules import Cosine, Steps, Warmup


@pytest.mark.parametrize(
    ("step", "total", "factor"),
    [
        (0, 0, 1),
        (0, 9, 1),  # a tenth of nine steps is none
        (0, 1000, 0.1),
        (5, 1000, 0.55),
        (10, 1000, 1),
        (999, 1000, 1),
        (0, 50, 0.1),  # five steps are a tenth of the run
        (4, 50, 0.82),
        (5, 50, 1),
    ],
)
def test_warmup_by_hand(step: int, total: int, factor: float):
    assert Warmup(steps=10, factor=0.1)(step, total) == pytest.approx(factor)


def test_no_warmup_is_the_default():
    assert [Warmup()(step, 1000) for step in (0, 1, 500)] == [1, 1, 1]


@pytest.mark.parametrize("schedule", [Steps(), Cosine()], ids=["steps", "cosine"])
def test_a_run_of_no_steps_has_a_rate(schedule: Steps | Cosine):
    assert schedule(0, 0) == 1


def test_steps_without_milestones_is_constant():
    assert {Steps()(step, 100) for step in range(101)} == {1}


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1), (59, 1), (60, 0.5), (79, 0.5), (80, 0.25), (100, 0.25), (150, 0.25)]
)
def test_steps_by_hand(step: int, factor: float):
    assert Steps(milestones=(0.6, 0.8), gamma=0.5)(step, 100) == pytest.approx(factor)


@pytest.mark.parametrize("milestones", [(0,), (1,), (0.5, 8), (-0.1,), (float("nan"),)])
def test_steps_refuse_milestones_that_are_no_shares(milestones: tuple[float, ...]):
    with pytest.raises(ValueError, match=r"schedule\.milestones are shares of the run between 0 and 1, got \["):
        Steps(milestones=milestones)


@pytest.mark.parametrize(("step", "factor"), [(0, 1), (25, 0.8682), (50, 0.55), (75, 0.2318), (100, 0.1), (120, 0.1)])
def test_cosine_by_hand(step: int, factor: float):
    assert Cosine(floor=0.1)(step, 100) == pytest.approx(factor, abs=1e-4)


def test_cosine_ends_at_zero_by_default():
    assert Cosine()(100, 100) == pytest.approx(0)


@pytest.mark.parametrize("schedule", [Steps, Cosine])
def test_schedules_start_with_their_warmup(schedule: type):
    plain, warm = schedule(), schedule(warmup=Warmup(steps=10, factor=0.1))
    assert warm(0, 1000) == pytest.approx(0.1 * plain(0, 1000))
    assert warm(5, 1000) == pytest.approx(0.55 * plain(5, 1000))
    assert warm(10, 1000) == plain(10, 1000)
