"""Regions read as torchvision reads them, and where exactly that is."""

import pytest
import torch
from torchvision import ops
from torchvision.ops.poolers import LevelMapper

from quadrat.ops.rois import (
    assign_levels,
    cells_inside,
    closest_levels,
    ps_roi_pool,
    pyramid_pool,
    roi_align,
    roi_pool,
)

STRIDES = (4, 8, 16, 32)
IMAGE = 128

REGIONS = [
    [10, 12, 60, 70],
    [0, 0, 128, 128],
    [100, 90, 160, 200],  # partly outside
    [-50, -40, 20, 30],
    [200, 200, 260, 280],  # wholly outside
    [-90, -90, -40, -40],
    [33.3, 44.4, 33.3, 44.4],  # a point
    [33.3, 44.4, 33.8, 44.6],  # smaller than a cell
    [-400, -500, 900, 800],  # huge
    [60, 50, 40, 30],  # inside out
    [127, 127, 128, 128],
    [7.9, 16.1, 24.2, 119.7],
]


def maps(images: int = 2, channels: int = 3, strides: tuple[int, ...] = STRIDES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # taller than wide, so that nobody may mix up the axes
    shapes = [(images, channels, IMAGE // s + 2, IMAGE // s) for s in strides]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def regions(images: int = 2) -> torch.Tensor:
    """(B, R, 4), each image with its own shift."""
    shift = torch.arange(images)[:, None, None] * 3.7
    return torch.tensor(REGIONS, dtype=torch.float32)[None] + shift


def flat(boxes: torch.Tensor) -> torch.Tensor:
    """(B, R, 4) as torchvision's (B * R, 5)."""
    image = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])[:, None]
    return torch.cat([image, boxes.reshape(-1, 4)], dim=1)


def every_level(boxes: torch.Tensor) -> torch.Tensor:
    """Levels (B, R) in turn, so that every kind of region meets every map in one image or another."""
    return (torch.arange(boxes.shape[1]) + torch.arange(len(boxes))[:, None]) % len(STRIDES)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("bins", "samples"), [(7, 2), (1, 1), (3, 4)])
def test_roi_align_equals_torchvision(aligned: bool, bins: int, samples: int):
    features, boxes = maps(strides=(8,)), regions()
    levels = torch.zeros(boxes.shape[:2], dtype=torch.long)
    ours = roi_align(features, (8,), boxes, levels, bins=bins, samples=samples, aligned=aligned)
    theirs = ops.roi_align(features[0], flat(boxes), (bins, bins), 1 / 8, samples, aligned)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_of_several_maps_reads_each_region_from_its_own(aligned: bool):
    features, boxes = maps(images=4), regions(4)
    levels = every_level(boxes)
    ours = roi_align(features, STRIDES, boxes, levels, bins=5, samples=2, aligned=aligned)
    assert ours.shape == (4 * len(REGIONS), 3, 5, 5)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        alone = ops.roi_align(feature, flat(boxes), (5, 5), 1 / stride, 2, aligned)
        here = levels.flatten() == level
        torch.testing.assert_close(ours[here], alone[here], rtol=1e-4, atol=1e-4)


def test_roi_align_without_regions():
    out = roi_align(maps(), STRIDES, torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), bins=7, samples=2, aligned=True)
    assert out.shape == (0, 3, 7, 7)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradient_equals_torchvision(aligned: bool):
    boxes = regions()
    levels = every_level(boxes)
    ours, theirs = ([m.requires_grad_() for m in maps()] for _ in range(2))
    pull = torch.randn(boxes.shape[0] * boxes.shape[1], 3, 4, 4, generator=torch.Generator().manual_seed(5))
    (roi_align(ours, STRIDES, boxes, levels, bins=4, samples=2, aligned=aligned) * pull).sum().backward()
    for level, (feature, stride) in enumerate(zip(theirs, STRIDES, strict=True)):
        here = (levels.flatten() == level)[:, None, None, None]
        (ops.roi_align(feature, flat(boxes), (4, 4), 1 / stride, 2, aligned) * pull * here).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert other.grad.abs().sum() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("aligned", "offset"), [(True, 0.0), (False, 8.0)])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_roi_align_on_a_ramp_reads_bin_centres(aligned: bool, offset: float, axis: str):
    """Each cell of a stride-16 map holds the coordinate of its own centre: without ``aligned`` reads are 8 pixels off."""
    ramp = (torch.arange(40.0) + 0.5) * 16
    feature = (ramp.expand(40, 40) if axis == "x" else ramp[:, None].expand(40, 40))[None, None]
    boxes = torch.tensor([[[100, 130, 420, 290], [77.7, 33.3, 391.2, 455.5], [64, 64, 80, 80]]])
    if not aligned:
        boxes = boxes[:, :2]  # the third is forced to one cell there, which is what the rounding of old did
    levels = torch.zeros(boxes.shape[:2], dtype=torch.long)
    out = roi_align([feature], (16,), boxes, levels, bins=7, samples=2, aligned=aligned)
    low, high = (boxes[0, :, 0], boxes[0, :, 2]) if axis == "x" else (boxes[0, :, 1], boxes[0, :, 3])
    centres = low[:, None] + (high - low)[:, None] * (torch.arange(7) + 0.5) / 7
    read = out[:, 0, 3, :] if axis == "x" else out[:, 0, :, 3]
    torch.testing.assert_close(read, centres + offset, rtol=0, atol=1e-3)


def test_roi_align_by_hand():
    """Pixel i of a ramp holds i, so a read gives a place counted in pixel centres: half less than the coordinate."""
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    box = torch.tensor([[[13.7, 10.0, 20.3, 16.0]]])
    out = roi_align([ramp], (1,), box, torch.zeros(1, 1).long(), bins=2, samples=2, aligned=True)
    torch.testing.assert_close(out[0, 0], torch.tensor([[14.85, 18.15]]).expand(2, 2))


@pytest.mark.parametrize("bins", [1, 7])
def test_roi_pool_equals_torchvision(bins: int):
    features, boxes = maps(strides=(16,)), regions()
    levels = torch.zeros(boxes.shape[:2], dtype=torch.long)
    theirs = ops.roi_pool(features[0], flat(boxes), (bins, bins), 1 / 16)
    assert torch.equal(roi_pool(features, (16,), boxes, levels, bins=bins), theirs)


def test_roi_pool_of_several_maps_reads_each_region_from_its_own():
    features, boxes = maps(images=4), regions(4)
    levels = every_level(boxes)
    ours = roi_pool(features, STRIDES, boxes, levels, bins=3)
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
        here = levels.flatten() == level
        assert torch.equal(ours[here], ops.roi_pool(feature, flat(boxes), (3, 3), 1 / stride)[here])


def test_roi_pool_gradient_reaches_only_the_regions_own_map():
    features = [m.requires_grad_() for m in maps()]
    boxes, levels = regions()[:, :2], torch.tensor([[0, 2], [2, 0]])
    roi_pool(features, STRIDES, boxes, levels, bins=2).sum().backward()
    assert [bool(m.grad.any()) for m in features] == [True, False, True, False]


@pytest.mark.parametrize(
    ("side", "level"),
    [
        (0, 0),
        (1, 0),
        (111.9, 0),
        (112, 1),
        (223.9, 1),
        (223.9999, 2),
        (224, 2),
        (447.9, 2),
        (448, 3),
        (895, 3),
        (5000, 3),
    ],
)
def test_assign_levels_at_the_boundaries(side: float, level: int):
    """The last digit of a float does not decide: 223.9999 is 224."""
    assert assign_levels(torch.tensor([[0.0, 0, side, side]]), STRIDES).item() == level


def test_assign_levels_goes_by_area_and_keeps_the_shape():
    boxes = torch.tensor([[[0.0, 0, 56, 224], [0, 0, 448, 112]], [[9, 9, 0, 0], [0, 0, 448, 448]]])
    assert assign_levels(boxes, STRIDES).tolist() == [[1, 2], [0, 3]]


def test_assign_levels_with_one_map_or_other_canons():
    boxes = torch.tensor([[0.0, 0, side, side] for side in (10, 32, 64, 128, 1000)])
    assert assign_levels(boxes, (16,)).tolist() == [0] * 5
    small = assign_levels(boxes, (8, 16, 32), canonical_size=64, canonical_stride=16)
    assert small.tolist() == [0, 0, 1, 2, 2]


def test_assign_levels_equals_torchvision():
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(500, 2, generator=generator) * 100
    boxes = torch.cat([low, low + torch.exp(torch.rand(500, 2, generator=generator) * 7.5)], dim=1)
    levels = assign_levels(boxes, STRIDES)
    assert torch.equal(levels, LevelMapper(2, 5)([boxes]))
    assert levels.unique().tolist() == [0, 1, 2, 3]


# SPPNet's pyramid


@pytest.mark.parametrize(
    ("box", "cells"),
    [
        ([0, 0, 64, 64], [0, 0, 3, 3]),  # all of a picture: all of its cells
        ([1, 1, 63, 63], [1, 1, 3, 3]),  # pixel 0 is outside
        ([0.5, 0.5, 64.5, 64.5], [1, 1, 3, 3]),  # the centres of cells 0 and 4 lie on the border, not inside
        ([0, 16, 65, 33], [0, 1, 4, 2]),
        ([17, 17, 30, 30], [1, 1, 1, 1]),  # no centre inside: the nearest cell
        ([154, 154, 160, 160], [10, 10, 10, 10]),  # one that a map of ten cells has not: its last is taken
    ],
)
def test_cells_inside_as_in_the_appendix(box: list[float], cells: list[float]):
    assert cells_inside(torch.tensor(box, dtype=torch.float32), 16).tolist() == cells


def test_pyramid_pool_by_hand():
    """A map of 4 x 4 cells numbered row by row, a region of the inner 2 x 2 and one of all but the first row and column."""
    plane = torch.arange(16.0).reshape(1, 1, 4, 4)
    boxes = torch.tensor([[[1.0, 1, 48 - 1, 48 - 1], [1, 1, 64, 64], [58, 58, 64, 64]]])
    found = pyramid_pool([plane], [16], boxes, torch.zeros(1, 3, dtype=torch.long), bins=(2, 1))
    assert found.tolist() == [[5, 6, 9, 10, 10], [10, 11, 14, 15, 15], [15] * 5]


def test_pyramid_pool_equals_adaptive_pooling_of_the_whole_map():
    plane = torch.rand(2, 3, 13, 11)
    boxes = torch.tensor([[[0.0, 0, 11 * 16, 13 * 16]]] * 2)
    found = pyramid_pool([plane], [16], boxes, torch.zeros(2, 1, dtype=torch.long), bins=(6, 3, 2, 1))
    wanted = [torch.nn.functional.adaptive_max_pool2d(plane, n).flatten(1) for n in (6, 3, 2, 1)]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def test_closest_levels_takes_the_scale_of_224_pixels():
    """Maps of stride 16 of the picture at 1, at half and at twice its size: a region of 224, 448 and 112 pixels."""
    boxes = torch.tensor([[0.0, 0, 224, 224], [0, 0, 448, 448], [0, 0, 112, 112], [0, 0, 4000, 4000], [0, 0, 1, 1]])
    assert closest_levels(boxes, [8, 16, 32], cells=14).tolist() == [1, 2, 0, 2, 0]


# R-FCN's position-sensitive pooling


@pytest.mark.parametrize("bins", [1, 3, 7])
def test_ps_roi_pool_equals_torchvision(bins: int):
    boxes = regions()
    planes = torch.randn(2, 2 * bins * bins, 18, 16, generator=torch.Generator().manual_seed(0))
    ours = ps_roi_pool(planes, 8, boxes, bins=bins)
    torch.testing.assert_close(ours, ops.ps_roi_pool(planes, flat(boxes), bins, 1 / 8))


def test_ps_roi_pool_reads_each_cell_from_its_own_plane():
    """Planes of one value each: class d, cell (i, j) is d * 4 + i * 2 + j."""
    planes = torch.arange(8.0)[None, :, None, None].expand(1, 8, 6, 6)
    found = ps_roi_pool(planes, 1, torch.tensor([[[0.0, 0, 4, 4]]]), bins=2)
    assert found[0].tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_ps_roi_pool_is_the_mean_of_a_cell():
    plane = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert ps_roi_pool(plane, 1, torch.tensor([[[0.0, 0, 2, 2]]]), bins=1).item() == (0 + 1 + 4 + 5) / 4
