"""Necks tell the truth about their maps, and the pyramid is torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from quadrat.backbones.base import Features
from quadrat.backbones.squeezenet import SqueezeNet
from quadrat.backbones.tiny import Tiny
from quadrat.necks.fpn import FPN
from quadrat.necks.select import Select


@pytest.fixture(scope="module")
def backbone() -> Tiny:
    return Tiny(8).eval()


@pytest.fixture(scope="module")
def maps(backbone: Tiny) -> dict[str, Tensor]:
    with torch.no_grad():
        return backbone(torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)))


def assert_true(neck: Features, out: dict[str, Tensor], size: tuple[int, int]) -> None:
    """The maps have the names, channels and strides that the neck promises."""
    assert list(out) == list(neck.out_channels) == list(neck.strides)
    for name, features in out.items():
        stride = neck.strides[name]
        assert features.shape[1:] == (neck.out_channels[name], size[0] // stride, size[1] // stride)


# Select


def test_select_takes_maps_as_they_are(backbone: Tiny, maps: dict[str, Tensor]):
    neck = Select(backbone, ("c3", "c5"))
    out = neck(maps)
    assert_true(neck, out, (128, 64))
    assert out["c3"] is maps["c3"]
    assert neck.region_maps == ("c3", "c5")
    assert list(neck.parameters()) == []


def test_select_follows_its_own_order(backbone: Tiny):
    assert Select(backbone, ("c4", "c2")).region_maps == ("c4", "c2")


def test_select_of_an_unknown_map_is_refused(backbone: Tiny):
    with pytest.raises(
        ValueError, match=r"there is no map \['c9'\]; the backbone offers \['c1', 'c2', 'c3', 'c4', 'c5'\]"
    ):
        Select(backbone, ("c4", "c9"))


# FPN


@pytest.mark.parametrize("names", [("c2", "c3", "c4", "c5"), ("c3", "c4"), ("c5",)])
@torch.no_grad()
def test_fpn_maps_are_as_promised(names: tuple[str, ...], backbone: Tiny, maps: dict[str, Tensor]):
    neck = FPN(backbone, 12, names)
    assert_true(neck, neck(maps), (128, 64))
    assert neck.region_maps == tuple(f"p{name[1:]}" for name in names)
    assert list(neck.strides)[-1] == f"p{int(names[-1][1:]) + 1}"


@torch.no_grad()
def test_fpn_equals_torchvision(backbone: Tiny, maps: dict[str, Tensor]):
    torch.manual_seed(0)
    neck = FPN(backbone, 12)
    inputs = {name: maps[name] for name in neck.reads}
    theirs = FeaturePyramidNetwork([m.shape[1] for m in inputs.values()], 12, LastLevelMaxPool())
    for i, name in enumerate(neck.reads):
        theirs.inner_blocks[i][0].load_state_dict(neck.lateral[name].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(neck.smooth[name].state_dict())
    for mine, other in zip(neck(maps).values(), theirs(inputs).values(), strict=True):
        torch.testing.assert_close(mine, other)


@torch.no_grad()
def test_fpn_carries_the_coarse_down_but_not_the_fine_up(backbone: Tiny, maps: dict[str, Tensor]):
    neck = FPN(backbone, 12)
    before = neck(maps)
    coarse = neck(maps | {"c5": maps["c5"] + 1})
    fine = neck(maps | {"c2": maps["c2"] + 1})
    assert [name for name in before if not torch.equal(before[name], coarse[name])] == ["p2", "p3", "p4", "p5", "p6"]
    assert [name for name in before if not torch.equal(before[name], fine[name])] == ["p2"]


@torch.no_grad()
def test_fpn_last_map_is_every_second_cell(backbone: Tiny, maps: dict[str, Tensor]):
    out = FPN(backbone, 12)(maps)
    assert torch.equal(out["p6"], out["p5"][:, :, ::2, ::2])


@torch.no_grad()
def test_fpn_of_a_backbone_that_ends_early_and_has_odd_maps():
    backbone = SqueezeNet().eval()
    neck = FPN(backbone, 12)
    maps = backbone(torch.zeros(1, 3, 64, 96))
    out = neck(maps)
    assert neck.region_maps == ("p2", "p3", "p4")
    assert list(out) == ["p2", "p3", "p4", "p5"]
    assert all(out[f"p{i}"].shape[2:] == maps[f"c{i}"].shape[2:] for i in (2, 3, 4))


def test_fpn_biases_start_at_zero_and_weights_do_not(backbone: Tiny):
    for name, parameter in FPN(backbone, 12).named_parameters():
        assert bool(parameter.any()) == name.endswith("weight"), name


def test_fpn_gradient_reaches_every_parameter(backbone: Tiny, maps: dict[str, Tensor]):
    neck = FPN(backbone, 12)
    sum((m**2).sum() for m in neck(maps).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in neck.parameters())


def test_fpn_over_no_map_is_refused(backbone: Tiny):
    with pytest.raises(ValueError, match=r"the pyramid reads maps c2\.\.c5, the backbone offers \['c1'\]"):
        FPN(Select(backbone, ("c1",)))
