"""The anchors that papers and libraries have published."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from quadrat.ops.anchors import grid_anchors, pyramid_anchors, reference_anchors

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)

PUBLISHED = [  # generate_anchors.py of Faster R-CNN: 1-based, both ends inside
    *((-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200)),
    *((-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264)),
    *((-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360)),
]


def test_reference_anchors_are_the_published_nine():
    (anchors,) = reference_anchors([16], (8, 16, 32), RATIOS)
    assert anchors.tolist() == [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in PUBLISHED]
    assert anchors.dtype == torch.float32


def test_reference_anchors_stand_on_the_middle_of_a_cell():
    for stride, anchors in zip((8, 16), reference_anchors((8, 16), (4, 8), RATIOS), strict=True):
        assert anchors.shape == (6, 4)
        assert ((anchors[:, :2] + anchors[:, 2:]) / 2 == stride / 2).all()


def test_pyramid_anchors_square_by_hand():
    levels = pyramid_anchors((4, 8), (8,), (1.0,))
    assert [level.tolist() for level in levels] == [[[-16, -16, 16, 16]], [[-32, -32, 32, 32]]]


@pytest.mark.parametrize("scales", [(8,), (8, 8 * 2 ** (1 / 3), 8 * 2 ** (2 / 3))], ids=["fpn", "retina"])
def test_pyramid_anchors_equal_torchvision(scales: tuple[float, ...]):
    theirs = AnchorGenerator(tuple(tuple(stride * s for s in scales) for stride in STRIDES), (RATIOS,) * len(STRIDES))
    for mine, cells in zip(pyramid_anchors(STRIDES, scales, RATIOS), theirs.cell_anchors, strict=True):
        torch.testing.assert_close(mine, cells, rtol=0, atol=0)


def test_grid_goes_row_by_row_and_cell_by_cell():
    base = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])
    grid = grid_anchors(base, height=2, width=3, stride=10)
    corners = [(x, y) for y in (0, 10) for x in (0, 10, 20)]
    assert grid.tolist() == [[x, y, x + side, y + side] for x, y in corners for side in (1, 2)]


@pytest.mark.parametrize(("height", "width"), [(0, 5), (1, 1), (3, 7)])
def test_grid_equals_torchvision(height: int, width: int):
    theirs = AnchorGenerator(((32, 64),), (RATIOS,))
    base = pyramid_anchors((8,), (4, 8), RATIOS)[0]
    expected = theirs.grid_anchors([[height, width]], [[torch.tensor(8), torch.tensor(8)]])[0]
    assert torch.equal(grid_anchors(base, height, width, 8), expected)
