"""Pictures continued by their mirror image, and windows cut from them."""

import numpy as np
import pytest
import torch

from quadrat.ops.windows import crop, mirror, surround, windows_at


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values)[None, None, None]


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 4), (9, 2)])
def test_mirror_as_numpy_reflects(length: int, before: int, after: int) -> None:
    image = torch.rand(2, 3, length, 4)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (before, after), (after, before)), mode="reflect")
    assert torch.equal(mirror(image, after, before, before, after), torch.from_numpy(expected))


def test_crop_from_the_middle_and_from_an_offset() -> None:
    maps = torch.arange(25.0).view(1, 1, 5, 5)
    assert crop(maps, (3, 1)).flatten().tolist() == [7, 12, 17]
    assert crop(maps, (1, 2), (4, 0)).flatten().tolist() == [20, 21]


def test_surround_continues_the_picture_over_its_padding() -> None:
    images = torch.stack([row(1, 2, 3, 0, 0)[0], row(1, 2, 3, 4, 5)[0]])
    found = surround(images, torch.tensor([[1.0, 3.0], [1.0, 5.0]]), 2)
    assert found.shape == (2, 1, 5, 9)
    assert found[0, 0, 2].tolist() == [3, 2, 1, 2, 3, 2, 1, 2, 3]
    assert found[1, 0, 2].tolist() == [3, 2, 1, 2, 3, 4, 5, 4, 3]


def test_surround_of_full_pictures_is_mirror() -> None:
    images = torch.rand(2, 3, 5, 7)
    sizes = torch.tensor([[5.0, 7.0]]).expand(2, 2)
    assert torch.equal(surround(images, sizes, 6), mirror(images, 6, 6, 6, 6))


def test_windows_at_none_and_some() -> None:
    images = torch.rand(2, 3, 6, 8)
    none = torch.zeros(0, dtype=torch.long)
    assert windows_at(images, none, none, none, 3).shape == (0, 3, 3, 3)
    image, y, x = torch.tensor([1, 0]), torch.tensor([3, 0]), torch.tensor([5, 2])
    found = windows_at(images, image, y, x, 3)
    assert torch.equal(found[0], images[1, :, 3:6, 5:8])
    assert torch.equal(found[1], images[0, :, 0:3, 2:5])
