import torch

from quadrat.ops.principal import principal

BOXES = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 9, 9], [1, 1, 5, 4]], [[0.0, 0, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]]])


def test_nothing_counts():
    _, there = principal(BOXES, torch.zeros(2, 3, dtype=torch.bool))
    assert there.tolist() == [False, False]


def test_largest_that_counts():
    index, there = principal(BOXES, torch.tensor([[True, False, True], [True, False, False]]))
    assert index.tolist() == [2, 0]
    assert there.tolist() == [True, True]


def test_of_two_alike_the_first():
    assert principal(torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]]), torch.ones(2, dtype=torch.bool))[0] == 0
