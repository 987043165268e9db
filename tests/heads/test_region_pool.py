"""How a region becomes a feature: the warp of R-CNN, the pyramid of SPPNet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.backbones.scales import Scales
from quadrat.heads.region_pool import PyramidPool, WarpedCNN


class Copy(Backbone):
    """A trunk that hands on what it sees."""

    def __init__(self) -> None:
        super().__init__({"c1": nn.Identity()}, {"c1": 3}, {"c1": 1})


class Halves(Backbone):
    def __init__(self) -> None:
        super().__init__({"c1": nn.AvgPool2d(2)}, {"c1": 3}, {"c1": 2})


def ramp(height: int = 40, width: int = 60) -> Tensor:
    """A picture whose first plane is x, the second y, the third 1."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])[None]


def warp(boxes: list[list[float]], **settings: int) -> Tensor:
    size = settings.get("size", 8)
    pool = WarpedCNN(Copy(), **{"size": size, "bins": size, "context": 0, **settings})
    return pool({"image": ramp()}, torch.tensor([boxes]))


def test_warp_stretches_a_region_to_a_square() -> None:
    (seen,) = warp([[10.0, 20, 26, 28]])
    torch.testing.assert_close(seen[0, 0], 11.0 + 2 * torch.arange(8))  # 16 pixels wide: every other one
    torch.testing.assert_close(seen[1, :, 0], 20.5 + torch.arange(8.0))


def test_warp_of_context_surrounds_the_region() -> None:
    """Of 8 pixels 2 on each side are context: the region's own 8 pixels are seen as 4."""
    (seen,) = warp([[20.0, 20, 28, 28]], context=2)
    torch.testing.assert_close(seen[0, 0], 17.0 + 2 * torch.arange(8))


def test_warp_as_released_scales_the_box_by_227_of_195() -> None:
    pool = WarpedCNN(Copy(), size=227, context=16, bins=6)
    box = pool.surrounded(torch.tensor([[[100.0, 50, 295, 245]]]))
    torch.testing.assert_close(box, torch.tensor([[[84.0, 34, 311, 261]]]))


def test_warp_outside_the_picture_is_the_mean() -> None:
    (seen,) = warp([[-8.0, 0, 8, 16]])
    assert (seen[2, :, :4] == 0).all()
    assert (seen[2, :, 4:] == 1).all()


def test_warp_in_chunks_is_the_same() -> None:
    boxes = [[float(i), 2.0 * i, i + 20.0, 2 * i + 10.0] for i in range(7)]
    torch.testing.assert_close(warp(boxes, chunk=3), warp(boxes))


def test_warp_refuses_nothing_but_context() -> None:
    with pytest.raises(ValueError, match="context=4"):
        warp([], context=4)


def test_pyramid_channels_and_scales() -> None:
    """A region of 64 pixels is read from the picture at twice its size where that is nearer to the canonical size."""
    scales = Scales(Halves(), [1.0, 2.0])
    assert scales.strides == {"c1_1": 1.0, "c1_2": 2.0}
    pool = PyramidPool(scales, cells=[2, 1], canonical_size=256)
    assert (pool.channels, pool.bins) == (15, 1)
    levels = pool.levels(torch.tensor([[[0.0, 0, 16, 16], [0, 0, 32, 32]]]))
    assert levels.tolist() == [[0, 1]]
    maps = scales(ramp())
    assert [tuple(m.shape[2:]) for m in maps.values()] == [(40, 60), (20, 30)]
    assert pool(maps, torch.tensor([[[0.0, 0, 16, 16], [0, 0, 32, 32]]])).shape == (2, 15, 1, 1)


def test_scales_refuse_nothing() -> None:
    with pytest.raises(ValueError, match=r"factors above 0, got \[\]"):
        Scales(Halves(), [])
