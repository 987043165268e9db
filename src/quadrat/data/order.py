"""In which order pictures are seen: a function of (seed, epoch), so that there is nothing to save and nothing to lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, index): with the seed, all that a picture's augmentation depends on."""


class TrainingOrder(Sampler[list[Key]]):
    """Batches of pictures of like shape, in an order that is a function of (seed, epoch) and the same on every rank.

    Portraits and landscapes are batched apart, which saves padding; each rank takes its share of every global batch. The last
    batch is filled up from the start of the order, so that all batches and all ranks are alike. ``start`` is (epoch, batches
    of it that have been trained on already): they are left out, once, when a run goes on inside an epoch.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        batch_size: int,
        *,
        seed: int = 0,
        group_by_shape: bool = True,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        self.tall = np.array([height > width for height, width in sizes]) & group_by_shape
        self.batch_size, self.world_size, self.rank = batch_size, world_size, rank
        self.seed, self.start = seed, start
        self.epoch = start[0]  # loader workers ask for batches before Lightning names the epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.tall) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Key]]:
        seen = self.start[1] if self.epoch == self.start[0] else 0
        for batch in islice(self._global_batches(), seen, None):
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    def _global_batches(self) -> Iterator[np.ndarray]:
        size = self.batch_size * self.world_size
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.tall))
        groups = [order[self.tall[order]], order[~self.tall[order]]]
        whole = [
            batch for group in groups for batch in np.split(group, range(size, len(group), size)) if len(batch) == size
        ]
        rest = np.concatenate([group[len(group) // size * size :] for group in groups])
        rest = np.resize(np.concatenate([rest, order]), -(-len(rest) // size) * size)
        batches = [*whole, *(rest.reshape(-1, size))]
        for index in generator.permutation(len(batches)):
            yield batches[index]


class EvaluationOrder(Sampler[list[Key]]):
    """Every picture once, in the data set's order; ranks take turns, and the last batches may be smaller or missing."""

    def __init__(self, length: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        starts = range(0, length, batch_size)
        self.batches = [range(start, min(start + batch_size, length)) for start in starts][rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, index) for index in batch]
