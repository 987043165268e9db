"""The budget of a sample, and that chance is fair."""

import pytest
import torch

from quadrat.ops.match import IGNORED, NEGATIVE, POSITIVE
from quadrat.ops.sample import Sampled, sample


def states(positive: int, negative: int, ignored: int = 0, *, images: int = 1) -> torch.Tensor:
    """States (images, N) in a mixed order."""
    row = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORED] * ignored, dtype=torch.int8)
    return row[torch.randperm(len(row), generator=torch.Generator().manual_seed(len(row)))].expand(images, -1)


def seeded(state: torch.Tensor, count: int, fraction: float, seed: int = 0) -> Sampled:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sample(state, count, fraction)


@pytest.mark.parametrize(
    ("population", "count", "fraction", "positives", "negatives"),
    [
        ((0, 0, 20), 8, 0.5, 0, 0),  # nothing to draw
        ((0, 20, 0), 8, 0.5, 0, 8),
        ((20, 0, 0), 8, 0.5, 4, 0),  # positives never pass their share, even when that leaves the sample short
        ((20, 20, 0), 8, 0.5, 4, 4),
        ((20, 20, 5), 8, 0.25, 2, 6),
        ((1, 20, 5), 8, 0.5, 1, 7),  # negatives fill up
        ((1, 2, 20), 8, 0.5, 1, 2),  # too few
        ((20, 2, 20), 8, 0.5, 4, 2),
        ((20, 20, 0), 8, 0.0, 0, 8),
        ((20, 20, 0), 8, 1.0, 8, 0),
        ((20, 20, 0), 9, 0.5, 4, 5),  # the share is rounded down
    ],
)
def test_sample_keeps_to_its_budget(population: tuple, count: int, fraction: float, positives: int, negatives: int):
    state = states(*population)
    drawn = seeded(state, count, fraction)
    assert drawn.index.shape == drawn.positive.shape == drawn.valid.shape == (1, count)
    assert drawn.positive.sum() == positives
    assert drawn.valid.sum() == positives + negatives
    assert not (drawn.positive & ~drawn.valid).any()


def test_sample_tells_the_truth_about_what_it_drew():
    state = states(6, 30, 14, images=3)
    drawn = seeded(state, 20, 0.25)
    found = state.gather(1, drawn.index)
    assert torch.equal(found == POSITIVE, drawn.positive)
    assert drawn.valid.all()
    assert not (found == IGNORED).any()


def test_sample_puts_positives_first_and_the_invalid_last():
    drawn = seeded(states(5, 4, 20, images=2), 16, 0.25)
    assert drawn.positive.tolist() == [[True] * 4 + [False] * 12] * 2
    assert drawn.valid.tolist() == [[True] * 8 + [False] * 8] * 2


def test_sample_draws_nothing_twice():
    drawn = seeded(states(20, 40, images=4), 32, 0.5)
    assert all(len(set(row.tolist())) == 32 for row in drawn.index)


def test_sample_has_one_budget_for_each_image():
    state = torch.stack([states(10, 30)[0], states(0, 40)[0], states(2, 3, 35)[0]])
    drawn = seeded(state, 8, 0.5)
    assert drawn.positive.sum(1).tolist() == [4, 0, 2]
    assert drawn.valid.sum(1).tolist() == [8, 8, 5]


def test_sample_of_more_than_there_are_takes_all():
    drawn = seeded(states(2, 6), 100, 0.5)
    assert drawn.index.shape == (1, 8)
    assert sorted(drawn.index[0].tolist()) == list(range(8))
    assert drawn.valid.all()


def test_sample_share_is_of_the_count_asked_for():
    """Of 100 a quarter is 25, so all three positives may come although only eight boxes are there."""
    assert seeded(states(3, 5), 100, 0.25).positive.sum() == 3


def test_sample_same_seed_same_draw():
    state = states(30, 300)
    first, again, other = seeded(state, 32, 0.5, 7), seeded(state, 32, 0.5, 7), seeded(state, 32, 0.5, 8)
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)


def test_sample_every_box_is_equally_likely():
    images = 4000
    state = states(20, 40, 10, images=images)
    drawn = seeded(state, 16, 0.25)
    hits = torch.zeros(70).scatter_add_(0, drawn.index.flatten(), torch.ones(drawn.index.numel())) / images
    for kind, share in ((POSITIVE, 4 / 20), (NEGATIVE, 12 / 40), (IGNORED, 0.0)):
        spread = (share * (1 - share) / images) ** 0.5
        assert ((hits[state[0] == kind] - share).abs() <= 5 * spread).all()
