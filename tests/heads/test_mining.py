"""Online hard examples: the largest losses of each picture, of what is no padding."""

import pytest
import torch

from quadrat.heads.mining import Every, Hardest

LOSSES = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.3, 0.2, 9.0, 0.0]])
VALID = torch.tensor([[True, True, True, True], [True, True, False, True]])


def test_hardest_takes_the_largest_of_each_picture() -> None:
    chosen = Hardest(2)(LOSSES, VALID)
    assert chosen.tolist() == [[False, True, False, True], [True, True, False, False]]


def test_hardest_of_fewer_than_it_keeps() -> None:
    assert torch.equal(Hardest(9)(LOSSES, VALID), VALID)
    assert Hardest(9)(LOSSES[:, :0], VALID[:, :0]).shape == (2, 0)


def test_every_counts_what_is_valid() -> None:
    assert torch.equal(Every()(LOSSES, VALID), VALID)


def test_hardest_refuses_none() -> None:
    with pytest.raises(ValueError, match="count=0"):
        Hardest(0)
