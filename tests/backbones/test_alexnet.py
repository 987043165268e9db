"""AlexNet's shapes, its response normalisation, and torchvision's weights in it."""

import pytest
import torch
from torchvision import models

from quadrat.backbones.alexnet import AlexNet, ResponseNorm

TORCHVISION = (64, 192, 384, 256, 256)


@torch.no_grad()
@pytest.mark.parametrize(("side", "padding"), [(220, 4), (224, 2)])
def test_maps_have_the_papers_sizes(side: int, padding: int) -> None:
    maps = AlexNet(padding=padding)(torch.zeros(1, 3, side, side))
    sizes = {name: tuple(one.shape[1:]) for name, one in maps.items()}
    assert sizes == {"c1": (96, 55, 55), "c2": (256, 27, 27), "c5": (256, 13, 13), "p5": (256, 6, 6)}


@torch.no_grad()
def test_response_norm_is_the_papers_formula() -> None:
    x = torch.rand(1, 8, 2, 2) * 20
    squares = torch.stack([(x[:, max(0, c - 2) : c + 3] ** 2).sum(1) for c in range(8)], dim=1)
    torch.testing.assert_close(ResponseNorm()(x), x / (2 + 1e-4 * squares) ** 0.75)


@torch.no_grad()
def test_weights_of_torchvision_give_its_map(tmp_path) -> None:
    theirs = models.alexnet(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "alexnet.pth")
    ours = AlexNet(widths=TORCHVISION, response_norm=False, weights=str(tmp_path / "alexnet.pth")).eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(images)["p5"], theirs.features(images))


def test_weights_for_other_widths_are_refused(tmp_path) -> None:
    torch.save(models.alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match="of another shape"):
        AlexNet(weights=str(tmp_path / "alexnet.pth"))
