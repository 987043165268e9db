"""The order of pictures is a function of (seed, epoch), whatever the number of ranks."""

from collections import Counter
from itertools import pairwise

import pytest

from quadrat.data.order import EvaluationOrder, Key, TrainingOrder

WIDE, TALL = (40, 60), (60, 40)
MIXED = [WIDE, TALL, WIDE, WIDE, TALL, WIDE, TALL] * 3  # 12 wide, 9 tall


def epoch_of(order: TrainingOrder, epoch: int = 0) -> list[list[Key]]:
    order.set_epoch(epoch)
    return list(order)


def indices(batches: list[list[Key]]) -> list[int]:
    return [index for batch in batches for _, index in batch]


def merged(world_size: int, global_batch: int, **options) -> list[list[int]]:
    """What all ranks together see in each step, in the order in which it was dealt out."""
    size = global_batch // world_size
    ranks = [
        epoch_of(TrainingOrder(MIXED, size, rank=rank, world_size=world_size, **options), 3)
        for rank in range(world_size)
    ]
    return [[batch[i][1] for i in range(size) for batch in step] for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("group_by_shape", [True, False])
def test_ranks_share_the_order_of_one(world_size: int, group_by_shape: bool):
    alone = merged(1, 6, seed=5, group_by_shape=group_by_shape)
    assert merged(world_size, 6, seed=5, group_by_shape=group_by_shape) == alone


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 21])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_picture_comes_once_but_for_the_fill(world_size: int, count: int, batch_size: int):
    orders = [TrainingOrder(MIXED[:count], batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    ranks = [epoch_of(order) for order in orders]
    steps = -(-count // (batch_size * world_size))
    assert [len(order) for order in orders] == [len(batches) for batches in ranks] == [steps] * world_size
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    seen = Counter(index for batches in ranks for index in indices(batches))
    assert set(seen) == set(range(count))
    if count >= batch_size * world_size:
        assert max(seen.values()) <= 2


def test_without_a_fill_every_picture_comes_exactly_once():
    assert sorted(indices(epoch_of(TrainingOrder(MIXED[:20], 5, group_by_shape=False)))) == list(range(20))


def test_fewer_pictures_than_a_batch_are_repeated():
    (batch,) = epoch_of(TrainingOrder([WIDE, TALL, WIDE], 8))
    assert set(Counter(index for _, index in batch).values()) <= {2, 3}


def test_the_same_seed_and_epoch_give_the_same_order_again():
    order = TrainingOrder(MIXED, 4, seed=1)
    assert epoch_of(order, 7) == epoch_of(order, 7) == epoch_of(TrainingOrder(MIXED, 4, seed=1), 7)


def test_epochs_and_seeds_differ():
    orders = {
        tuple(indices(epoch_of(TrainingOrder(MIXED, 4, seed=seed), epoch))) for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_keys_carry_the_epoch():
    assert {epoch for batch in epoch_of(TrainingOrder(MIXED, 4), 9) for epoch, _ in batch} == {9}


@pytest.mark.parametrize("epoch", range(3))
def test_shapes_are_batched_apart(epoch: int):
    batches = epoch_of(TrainingOrder(MIXED, 4), epoch)
    mixed = [batch for batch in batches if len({MIXED[index] for _, index in batch}) > 1]
    assert len(mixed) <= 1  # 12 wide are three batches, 9 tall are two and one left over, which is filled up


def test_shapes_are_mixed_when_not_grouped():
    batches = epoch_of(TrainingOrder(MIXED, 4, group_by_shape=False))
    assert sum(len({MIXED[index] for _, index in batch}) > 1 for batch in batches) > 1


def test_shapes_take_turns():
    """Whole batches are shuffled too: not all tall pictures before all wide ones."""
    sizes = [WIDE, TALL] * 40
    kinds = [sizes[batch[0][1]] for batch in epoch_of(TrainingOrder(sizes, 4))]
    assert sum(a != b for a, b in pairwise(kinds)) > 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 4, 7, 13])
def test_evaluation_sees_every_picture_once(world_size: int, length: int):
    orders = [EvaluationOrder(length, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for order in orders for index in indices(list(order))) == list(range(length))
    assert all(len(order) == len(list(order)) for order in orders)


def test_evaluation_goes_in_order_and_at_epoch_zero():
    assert list(EvaluationOrder(5, 2)) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(0, 4)]]


def test_evaluation_ranks_take_turns():
    ranks = [list(EvaluationOrder(5, 2, rank=rank, world_size=2)) for rank in (0, 1)]
    assert ranks == [[[(0, 0), (0, 1)], [(0, 4)]], [[(0, 2), (0, 3)]]]
