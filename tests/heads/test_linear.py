"""Layers that are evaluated by their largest singular values."""

import pytest
import torch

from quadrat.heads.linear import Truncated, TwoLayer


def test_truncated_at_full_rank_is_the_layer() -> None:
    layer, x = Truncated(6, 4, rank=4), torch.rand(3, 6)
    whole = layer(x)
    torch.testing.assert_close(layer.eval()(x), whole)


def test_truncated_is_the_best_of_its_rank() -> None:
    """A weight with singular values 3, 2, 1: at rank 2 only the last is gone."""
    layer = Truncated(3, 3, rank=2).eval()
    layer.load_state_dict({"weight": torch.diag(torch.tensor([1.0, 3, 2])), "bias": torch.tensor([0.0, 0, 5])})
    assert layer(torch.ones(1, 3))[0].tolist() == pytest.approx([0, 3, 7])


def test_truncated_forgets_its_factors_with_new_weights() -> None:
    layer, x = Truncated(3, 3, rank=3).eval(), torch.rand(2, 3)
    layer(x)
    layer.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    torch.testing.assert_close(layer(x), x)
    layer.train()
    layer.weight.data.mul_(2)
    torch.testing.assert_close(layer.eval()(x), 2 * x)


def test_truncated_refuses_a_rank_it_has_not() -> None:
    with pytest.raises(ValueError, match="3x2 has no rank 3"):
        Truncated(3, 2, rank=3)


def test_two_layers_with_svd_keep_their_names() -> None:
    plain, truncated = TwoLayer(2, 3, hidden=8), TwoLayer(2, 3, hidden=8, svd=[8, 8])
    truncated.load_state_dict(plain.state_dict())
    x = torch.rand(4, 2, 3, 3)
    torch.testing.assert_close(truncated.eval()(x), plain.eval()(x))
    assert TwoLayer(2, 3, hidden=8, svd=[1, 1]).eval()(x).shape == (4, 8)
