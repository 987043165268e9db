"""Parts of pictures: which pixels they show, and that every box of every picture is read from its own."""

import torch
from torchvision.ops import roi_align

from quadrat.ops.crops import crop_resize


def test_whole_picture_at_its_own_size_is_the_picture():
    images = torch.rand(2, 3, 6, 9)
    boxes = torch.tensor([0.0, 0, 9, 6]).expand(2, 1, 4)
    torch.testing.assert_close(crop_resize(images, boxes, (6, 9), samples=1)[:, 0], images)


def test_half_size_is_the_mean_of_four_pixels():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    found = crop_resize(images, torch.tensor([[[0.0, 0, 4, 4]]]), (2, 2), samples=2)
    assert found.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_outside_is_nothing():
    found = crop_resize(torch.ones(1, 1, 4, 4), torch.tensor([[[-4.0, 0, 4, 4]]]), (1, 2), samples=1)
    assert found.flatten().tolist() == [0.0, 1.0]


def test_every_box_reads_its_own_picture():
    images = torch.stack([torch.full((1, 8, 8), 1.0), torch.full((1, 8, 8), 2.0)])
    boxes = torch.tensor([[[1.0, 1, 4, 4], [2, 2, 6, 7]], [[1, 1, 7, 7], [3, 3, 5, 5]]])
    found = crop_resize(images, boxes, (3, 5))
    assert found.shape == (2, 2, 1, 3, 5)
    torch.testing.assert_close(found.amin((2, 3, 4)), torch.tensor([[1.0, 1], [2, 2]]))
    torch.testing.assert_close(found.amax((2, 3, 4)), torch.tensor([[1.0, 1], [2, 2]]))


def test_equals_aligned_rois_inside_the_picture():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 20, 24)
    boxes = torch.tensor([[[3.2, 2.1, 17.4, 12.9], [1, 1, 21.5, 18]], [[5, 6, 12, 14], [2.5, 3.5, 20, 17]]])
    rows = torch.cat([torch.tensor([0.0, 0, 1, 1])[:, None], boxes.view(-1, 4)], dim=1)
    theirs = roi_align(images, rows, (5, 7), sampling_ratio=2, aligned=True)
    torch.testing.assert_close(crop_resize(images, boxes, (5, 7), samples=2).flatten(0, 1), theirs, atol=1e-5, rtol=0)
