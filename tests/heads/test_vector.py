"""A map as one vector: which map, how many cells, how wide."""

from functools import partial

import pytest
import torch
from torch import nn

from quadrat.backbones.tiny import Tiny
from quadrat.heads.linear import TwoLayer
from quadrat.heads.vector import Vector


def test_mean_of_the_coarsest_map():
    vector = Vector(Tiny(4))
    map = torch.rand(2, 32, 3, 3)
    assert vector.out_features == 32
    torch.testing.assert_close(vector({"c5": map}), map.mean((2, 3)))


def test_largest_of_each_cell_through_two_layers():
    vector = Vector(Tiny(4), bins=2, pool=nn.AdaptiveMaxPool2d, layers=partial(TwoLayer, hidden=6, last=5), map="c4")
    assert vector.layers.first.in_features == 24 * 4
    assert vector.out_features == 5
    assert vector({"c4": torch.rand(3, 24, 4, 6)}).shape == (3, 5)


def test_unknown_map_is_refused():
    with pytest.raises(ValueError, match="which has \\['c1', 'c2'"):
        Vector(Tiny(4), map="p5")
