"""The sliding window: its sampled pixels, its three forms, and the model's contract."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts import SCHEMA, assert_semantic_model, drawn, losses_of, maps_of
from quadrat.backbones.window import WindowNet
from quadrat.configs import build, compose
from quadrat.jobs import train
from quadrat.models.patches import Balanced, Dilated, Loop, Natural, Patches, Stitched
from quadrat.models.superpixels import Superpixels
from quadrat.ops.windows import mirror, surround, windows_at
from quadrat.structures import IGNORE_INDEX, Batch

NARROW = ["model.net.widths=[[4,4],[6,6]]", "model.net.hidden=[8]", "model.net.size=17", "model.samples=16"]
PAPER = ["model.net.widths=[[4],[4],[4],[4]]", "model.net.hidden=[8]", "model.samples=4"]


def built(model: str = "patch_segmentation", *overrides: str) -> Patches:
    torch.manual_seed(0)
    return build(compose("train", ["~experiment", f"model={model}", *overrides]).model, schema=SCHEMA)


def test_contracts() -> None:
    assert_semantic_model(built("patch_segmentation", *NARROW), ["pixel_class"])


def test_contracts_paper() -> None:
    model = built("patch_segmentation_paper", *PAPER, "model.scanner.stride=16")
    assert_semantic_model(model, ["pixel_class"])


# --- what is drawn ---


@pytest.mark.parametrize("sampler", [Natural(), Balanced()])
def test_sampler_draws_labelled_pixels_alone(sampler: Natural | Balanced) -> None:
    semantic = torch.full((3, 5, 7), IGNORE_INDEX, dtype=torch.uint8)
    assert [len(axis) for axis in sampler(semantic, 4)] == [4, 4, 4]  # nothing to draw: anything, which costs nothing
    semantic[1, 2, 3], semantic[2, 4, 6] = 0, 2
    places = sampler(semantic, 200)
    assert {(int(i), int(y), int(x)) for i, y, x in zip(*places, strict=True)} == {(1, 2, 3), (2, 4, 6)}
    assert len(sampler(semantic, 0).image) == 0


def test_natural_and_balanced_frequencies() -> None:
    semantic = torch.zeros(2, 10, 10, dtype=torch.uint8)
    semantic[0, 0, :2] = 4  # 2 of 190 labelled pixels
    semantic[1, 0] = IGNORE_INDEX
    torch.manual_seed(0)
    shares = [
        (semantic[places.image, places.y, places.x] == 4).float().mean().item()
        for places in (Natural()(semantic, 20000), Balanced()(semantic, 20000))
    ]
    assert shares == pytest.approx([2 / 190, 0.5], abs=0.015)


def test_loss_is_the_criterion_of_the_drawn_pixels() -> None:
    model, batch = built("patch_segmentation", *NARROW).eval(), Batch.collate(drawn())
    loss = losses_of(model, batch, seed=5)["pixel_class"]
    torch.manual_seed(5)
    image, y, x = model.sampler(batch.semantic, 32)
    scores = model.net.dense(model.features(batch)["surrounded"])
    expected = torch.nn.functional.cross_entropy(scores[image, :, y, x], batch.semantic[image, y, x].long())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_pixel_weights_go_with_their_pixels() -> None:
    model, batch = built("patch_segmentation", *NARROW).eval(), Batch.collate(drawn())
    plain = losses_of(model, batch)["pixel_class"]
    weighted = losses_of(model, replace(batch, pixel_weights=torch.full((2, 64, 64), 2.0)))["pixel_class"]
    assert weighted.item() == pytest.approx(3 * plain.item(), rel=1e-5)


def test_pictures_without_a_map_are_named() -> None:
    model, batch = built("patch_segmentation", *NARROW), Batch.collate(drawn())
    with pytest.raises(ValueError, match=r"pictures \[0, 1\] have no semantic map"):
        losses_of(model, replace(batch, semantic=None))


# --- scanners ---


@pytest.fixture(scope="module")
def net() -> WindowNet:
    torch.manual_seed(0)
    return WindowNet(3, 4, size=17, widths=[[4], [6]], kernels=[3, 2], hidden=[8]).eval()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (13, 21)])
@torch.no_grad()
def test_loop_dilated_and_stitched_score_alike(net: WindowNet, size: tuple[int, int]) -> None:
    surrounded = mirror(torch.randn(2, 3, *size), *[net.margin] * 4)
    loop, dilated, stitched = (scan(net, surrounded) for scan in (Loop(chunk=50), Dilated(), Stitched()))
    assert loop.shape == (2, 4, *size)
    torch.testing.assert_close(dilated, loop, atol=1e-5, rtol=0)
    torch.testing.assert_close(stitched, loop, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("size", "stride"), [((9, 12), 3), ((10, 14), 3), ((2, 5), 7)])
@torch.no_grad()
def test_loop_with_a_stride_is_exact_where_it_looks(net: WindowNet, size: tuple[int, int], stride: int) -> None:
    surrounded = mirror(torch.randn(1, 3, *size), *[net.margin] * 4)
    found, exact = Loop(stride)(net, surrounded), net.dense(surrounded)
    assert found.shape == exact.shape
    middle = (..., slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    torch.testing.assert_close(found[middle], exact[middle], atol=1e-5, rtol=0)


def test_loop_refuses_no_step() -> None:
    with pytest.raises(ValueError, match="1 or more, got 0 and 256"):
        Loop(0)


def test_a_picture_is_seen_alike_beside_a_larger_one() -> None:
    model = built("patch_segmentation", *NARROW).eval()
    small, large = drawn(1)[0], drawn(1, (96, 128))[0]
    together, alone = maps_of(model, Batch.collate([small, large])), maps_of(model, Batch.collate([small]))
    assert together[0].size == (64, 64)
    assert (together[0].labels == alone[0].labels).float().mean() > 0.999


def test_windows_are_of_the_pixels_they_are_drawn_for() -> None:
    image = torch.arange(35.0).view(1, 1, 5, 7)
    surrounded = surround(image, torch.tensor([[5.0, 7.0]]), 1)
    found = windows_at(surrounded, torch.tensor([0]), torch.tensor([2]), torch.tensor([3]), 3)
    assert found[0, 0].tolist() == [[9, 10, 11], [16, 17, 18], [23, 24, 25]]


# --- superpixels ---


def test_superpixels_vote_by_their_shares() -> None:
    """Two halves of one colour each: the sum of the softmax decides, not the number of pixels."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, :, 8:] = 200
    voting = Superpixels(scale=50, sigma=0, min_size=4)
    assert voting.segments(image).unique().tolist() == [0, 1]
    scores = torch.zeros(3, 16, 16)
    scores[1, :, :8] = 0.1  # a little of class 1 everywhere on the left,
    scores[2, :6, :8] = 9.0  # and very much of class 2 on 6 of its 16 rows
    scores[1, :, 8:] = 5.0
    labels = voting(scores, image)
    assert labels.dtype == torch.uint8
    assert labels[:, :8].unique().tolist() == [2]
    assert labels[:, 8:].unique().tolist() == [1]


# --- learning ---

LEARNT = {
    "patch_segmentation": (300, []),
    "patch_multiscale": (
        200,
        ["model.backbone.trunk.widths=[[32,32],[64,64]]"],
    ),  # stride 2: outlines of stride 4 cost 0.03
    "patch_recurrent": (250, []),
}
"""Epochs of one step each, and what differs from the preset; one or two minutes of one CPU core."""


@pytest.mark.slow
@pytest.mark.parametrize("model", LEARNT)
def test_learns_four_pictures_by_heart(model: str, tmp_path: Path) -> None:
    epochs, different = LEARNT[model]
    overrides = [
        *different,
        *("experiment=none", "task=segmentation", "monitor=val/miou", "trainer=overfit", f"model={model}"),
        *("data.limit=4", "+data.source.size=[96,96]", "data.source.objects=[1,3]", "optimizer.lr=4e-3"),
        f"paths.logs={tmp_path}",
        "trainer.enable_progress_bar=false",
        f"trainer.max_epochs={epochs}",
        f"trainer.check_val_every_n_epoch={epochs}",
    ]
    config = compose("train", overrides)
    train(config)
    results = json.loads((Path(config.paths.run) / "metrics.json").read_text())
    assert results["last"]["val/miou"] > 0.95
