"""Farabet's pyramid: its levels, its sparse net, the shared weights, and the model's contract."""

import numpy as np
import pytest
import torch

from contracts import SCHEMA, assert_semantic_model, drawn
from quadrat.backbones.multiscale import (
    GaussianPyramid,
    LaplacianPyramid,
    MultiScale,
    full_trunk,
    sparse_trunk,
    yuv,
)
from quadrat.configs import build, compose
from quadrat.models.dense import Dense
from quadrat.models.superpixels import Superpixels

NARROW = {
    "patch_multiscale": ["model.backbone.trunk.widths=[[4],[6],[8]]", "model.head.hidden=16"],
    "patch_multiscale_paper": ["model.backbone.trunk.widths=[16,12,16]", "model.head.hidden=16"],
}


def built(model: str, *overrides: str) -> Dense:
    torch.manual_seed(0)
    return build(compose("train", ["~experiment", f"model={model}", *overrides]).model, schema=SCHEMA)


@pytest.mark.parametrize("model", NARROW)
def test_contracts(model: str) -> None:
    assert_semantic_model(built(model, *NARROW[model], "model.head.dropout=0"), ["pixel_class"], drawn(size=(96, 96)))


def test_paper_joins_768_maps_and_labels_superpixels() -> None:
    model = built("patch_multiscale_paper")
    assert model.backbone.out_channels == {"c2": 768}
    assert model.backbone.strides == {"c2": 4}
    assert isinstance(model.labelling, Superpixels)


@pytest.mark.parametrize("size", [(32, 48), (33, 51)])
def test_levels_go_through_one_net_and_join_on_the_finest_grid(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    trunk = full_trunk([[4], [6]])
    backbone = MultiScale(trunk, GaussianPyramid(3)).eval()
    image = torch.randn(1, 3, *size)
    found = backbone(image)["c1"]
    assert found.shape == (1, 18, -(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(found[:, :6], trunk(image))
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in trunk.parameters())


def test_gaussian_pyramid_keeps_a_plain_picture() -> None:
    levels = GaussianPyramid(3)(torch.full((1, 3, 13, 20), 0.5))
    assert [tuple(level.shape[2:]) for level in levels] == [(13, 20), (7, 10), (4, 5)]
    assert all(torch.allclose(level, torch.tensor(0.5)) for level in levels)
    with pytest.raises(ValueError, match="a level or more, got 0"):
        GaussianPyramid(0)


def test_laplacian_pyramid_is_locally_standardised_and_plain_stays_plain() -> None:
    pyramid = LaplacianPyramid(3, window=15)
    torch.manual_seed(0)
    levels = pyramid(torch.rand(1, 3, 96, 96))
    for level in levels:
        inner = level[:, :, 4:-4, 4:-4]
        assert inner.mean().abs() < 0.05
        assert inner.square().mean().item() == pytest.approx(1, abs=0.15)
    for level in pyramid(torch.full((1, 3, 32, 32), 0.3)):
        assert level.abs().max() < 1e-3


def test_yuv_of_grey_and_red() -> None:
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0]]).T.view(1, 3, 1, 2)
    expected = torch.tensor([[1, 0, 0], [0.299, -0.147, 0.615]]).T.view(1, 3, 1, 2)
    torch.testing.assert_close(yuv(colours), expected, atol=1e-3, rtol=0)


def test_sparse_net_sees_what_the_paper_says() -> None:
    trunk = sparse_trunk()
    first, second, third = (m for m in trunk.modules() if hasattr(m, "table"))
    assert first.table[:10, :, 0, 0].tolist() == [[1, 0, 0]] * 10
    assert first.table[10:, :, 0, 0].tolist() == [[0, 1, 1]] * 6
    assert second.table.sum((1, 2, 3)).tolist() == [8] * 64
    assert third.table.sum((1, 2, 3)).tolist() == [32] * 256
    assert len(np.unique(second.table[:, :, 0, 0].numpy(), axis=0)) > 50  # drawn, not all alike
    again = [m for m in sparse_trunk().modules() if hasattr(m, "table")][1]
    assert torch.equal(second.table, again.table)


def test_brightness_alone_does_not_reach_the_colour_maps() -> None:
    trunk = sparse_trunk((4, 4, 4), luma=2, fan_in=(2, 2))
    grey, other = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    other[:, 0] = torch.rand(8, 8)
    before, after = trunk[0](grey), trunk[0](other)
    assert torch.equal(before[:, 2:], after[:, 2:])
    assert not torch.equal(before[:, :2], after[:, :2])
