"""OverFeat: the contract, the dense classifier against single windows, whose box is trained, and how guesses become one."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from contracts import (
    SCHEMA,
    assert_asks_nothing,
    assert_detections,
    assert_losses,
    assert_model,
    batch_of,
    detections_of,
    drawn,
    losses_of,
)
from quadrat.backbones.base import Backbone
from quadrat.backbones.tiny import Tiny
from quadrat.configs import build, compose
from quadrat.heads.box_code import BoxCode
from quadrat.heads.overfeat import DenseLayers, DenseWindows, WindowSampler
from quadrat.jobs import train
from quadrat.losses.boxes import CodeLoss
from quadrat.losses.regression import l2
from quadrat.models.overfeat import OverFeat, assemble
from quadrat.structures import Batch

SMALL = (
    *("model.scales=[0.71,1,1.41]", "model.sampler.random=16", "model.sampler.hard=16"),
    *("model.classifier={hidden:32,last:32,last_std:0.1}", "model.regressor={hidden:32,last:32}"),
)
WIDTH = ("model.backbone.width=8",)


def configured(*overrides: str) -> tuple[OverFeat, list[str]]:
    """A model, whose scores are spread out, and the names in its loss config."""
    config = compose("train", ["~experiment", "model=overfeat", *SMALL, *overrides])
    torch.manual_seed(0)
    return build(config.model, schema=SCHEMA), list(config.loss.weights)


def unpadded() -> Backbone:
    """Cell i of its map sees pixels 2 i to 2 i + 5 and nothing else."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.ReLU())
    return Backbone({"c1": layers}, out_channels={"c1": 4}, strides={"c1": 2})


def overfeat(backbone: Backbone | None = None, **settings) -> OverFeat:
    """A small one on a map of stride 2, one scale."""
    torch.manual_seed(0)
    layers = partial(DenseLayers, hidden=8, last=6, dropout=0.0, last_std=0.3)
    parts = {
        "grid": DenseWindows(bins=2, pool=2),
        "code": BoxCode("edges"),
        "sampler": WindowSampler(random=8, hard=8),
        "scales": [1.0],
        **settings,
    }
    return assemble(
        SCHEMA, backbone or unpadded(), "c1", classifier=layers, regressor=layers, box_loss=CodeLoss(l2), **parts
    )


# --- the contract ---


FEW = "model.sampler={random:4,hard:4}"  # so that not all of a small picture's windows are drawn
OTHERS = ("model.shared_box=false", "model.train_scales=[2]", "model.grid.every=2", "model/box_loss=giou", FEW)


@pytest.mark.parametrize("overrides", [(), OTHERS])
def test_contract(overrides: tuple[str, ...]) -> None:
    assert_model(*configured(*WIDTH, *overrides))


def test_losses_and_detections_with_mobilenet() -> None:
    """The rest does not depend on the backbone."""
    model, names = configured("model/backbone=mobilenet_v2", "model.scales=[1]")
    batch = Batch.collate(drawn())
    assert_losses(model, batch, names)
    assert_detections(model.eval(), batch)


@pytest.mark.parametrize("overrides", [(), ("model.shared_box=false",)])
def test_a_step_asks_the_device_nothing(overrides: tuple[str, ...]) -> None:
    assert_asks_nothing(configured(*WIDTH, *overrides)[0].train(), Batch.collate(drawn()))


def test_paper_is_the_papers() -> None:
    config = compose("train", ["~experiment", "model=overfeat_paper"])
    with torch.device("meta"):
        model = build(config.model, schema=SCHEMA)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4 and "backbone" not in name}
    assert shapes == {
        "classifier.first.weight": (3072, 256, 5, 5),
        "classifier.second.weight": (4096, 3072, 1, 1),
        "classifier.scores.weight": (7, 4096, 1, 1),
        "regressor.first.weight": (4096, 256, 5, 5),
        "regressor.second.weight": (1024, 4096, 1, 1),
        "regressor.scores.weight": (4, 1024, 1, 1),
    }
    assert model.classifier.first.dilation == (3, 3)  # nine offsets
    assert (len(model.scales), model.train_scales) == (6, (1.0,))


def test_shapes_with_alexnet() -> None:
    """240 pixels are 15 cells of conv5: one window at 240 pixels, 2 x 3 at 256 x 272."""
    narrow = ("model.classifier={hidden:8,last:8}", "model.regressor={hidden:8,last:8}", "model.scales=[1]")
    config = compose("train", ["~experiment", "model=overfeat_paper", *narrow, "model.backbone.widths=[4,4,4,4,4]"])
    model = build(config.model, schema=SCHEMA).eval()
    batch = batch_of({}, size=(256, 288))
    with torch.no_grad():
        found = model.features(batch)
    height, width = 15 - 15 + 1, 17 - 15 + 1  # 63 -> 31 -> 15 and 71 -> 35 -> 17 cells
    assert found["logits"].shape == (1, height * width, 7)
    assert found["windows"].tolist() == [[16 * x, 0, 16 * x + 240, 240] for x in range(3)]


# --- dense, and window by window ---


@torch.no_grad()
def test_dense_scores_are_those_of_each_window_cut_out() -> None:
    """11 pixels under 4 x 4 cells of 5 pixels and stride 2; plain pooling and plain matrix products."""
    model, batch = overfeat(shared_box=False).eval(), Batch.collate(drawn())
    found = model.features(batch)
    images = model.normalise(batch.images, batch.sizes)
    windows = functional.unfold(images, 11, stride=2).transpose(1, 2).reshape(-1, 3, 11, 11)
    pooled = functional.max_pool2d(model.backbone(windows)["c1"], 2)  # (B * W, 4, 2, 2)
    for layers, name in ((model.classifier, "logits"), (model.regressor, "codes")):
        hidden = functional.linear(pooled.flatten(1), layers.first.weight.flatten(1), layers.first.bias).relu()
        hidden = functional.linear(hidden, layers.second.weight.flatten(1), layers.second.bias).relu()
        alone = functional.linear(hidden, layers.scores.weight.flatten(1), layers.scores.bias)
        assert alone.shape[0] == 2 * 27 * 27
        torch.testing.assert_close(found[name].flatten(2).flatten(0, 1), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_windows_of_another_scale_are_in_pixels_of_the_picture() -> None:
    """Twice as large, a window shows half as many pixels: 8 cells of 2 pixels and 61 places become 4 pixels, one apart."""
    model = overfeat(scales=[1, 2]).eval()
    windows = model.features(batch_of({}))["windows"]
    first, second = windows[: 27 * 27], windows[27 * 27 :]
    assert first[[0, 1, 27, -1]].tolist() == [[0, 0, 8, 8], [2, 0, 10, 8], [0, 2, 8, 10], [52, 52, 60, 60]]
    assert len(second) == 59 * 59
    assert second[[0, 1, 59]].tolist() == [[0, 0, 4, 4], [1, 0, 5, 4], [0, 1, 4, 5]]


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.71, 1.41])
def test_what_a_window_shows_lies_where_its_box_is(scale: float) -> None:
    """A bright square in the dark: the window with the largest sum of its pixels is the one around it."""
    brightness = nn.Conv2d(3, 1, 1)
    backbone = Backbone({"c1": nn.Sequential(brightness, nn.AvgPool2d(2))}, {"c1": 1}, {"c1": 2})
    model = overfeat(backbone, scales=[scale], grid=DenseWindows(bins=2, pool=1)).eval()
    for layer in (brightness, model.classifier.first, model.classifier.second, model.classifier.scores):
        nn.init.ones_(layer.weight)
    model.classifier.first.load_state_dict(
        {"bias": torch.full((8,), 100.0)}, strict=False
    )  # ReLU lets all of it through
    batch = batch_of({})
    batch.images[:, :, 20:26, 40:46] = 255
    found = model.features(batch)
    window = found["windows"][found["logits"][0, :, 0].argmax()]
    middle = (window[:2] + window[2:]) / 2
    assert (middle - torch.tensor([43.0, 23.0])).abs().max() <= 1 / scale  # half a step


def test_training_sees_its_own_scales() -> None:
    model = overfeat(scales=[0.5, 1], train_scales=[2]).train()
    assert len(model.features(batch_of({}))["windows"]) == 59 * 59
    assert len(model.eval().features(batch_of({}))["windows"]) == 27 * 27 + 11 * 11


def test_a_picture_smaller_than_a_window_has_one() -> None:
    model = overfeat(scales=[0.1]).eval()
    assert model.features(batch_of({}))["windows"].tolist() == [[-20, -20, 60, 60]]


# --- losses ---


def test_losses_by_hand() -> None:
    """Zero heads: uniform scores over 7, and boxes that are their windows. One object is a window, moved by a quarter."""
    model = overfeat(sampler=WindowSampler(random=4, hard=4, positive_iou=0.6, background_iou=0.6)).eval()
    for layers in (model.classifier, model.regressor):
        nn.init.zeros_(layers.scores.weight)
    losses = losses_of(model, batch_of({"boxes": [[18, 16, 26, 24]], "labels": [2]}, {}))
    assert losses["window_class"].item() == pytest.approx(np.log(7))
    # at 18, 16 the window itself; beside it four that are 2 pixels off, IoU 6 / 10, in two edges of 8 pixels
    assert losses["window_box"].item() == pytest.approx(4 * 2 * 0.25**2 / 5)


def test_a_picture_without_objects_trains_no_box() -> None:
    assert losses_of(overfeat(), batch_of({}, {}))["window_box"].item() == 0


def test_only_the_true_classs_box_is_trained() -> None:
    model = overfeat(shared_box=False)
    batch = batch_of({"boxes": [[8, 8, 16, 16]], "labels": [3]}, {"boxes": [[20, 20, 28, 28]], "labels": [5]})
    losses_of(model, batch)["window_box"].backward()
    gradient = model.regressor.scores.weight.grad
    assert gradient is not None
    rows = gradient.view(6, 4, -1).abs().sum((1, 2))
    assert [label + 1 for label in range(6) if rows[label] > 0] == [3, 5]
    assert overfeat().regressor.scores.out_channels == 4


@pytest.mark.parametrize("standardise", [None, [[0, 0, 1, 1], [0.2, 0.2, 0.2, 0.2]]])
def test_the_first_box_is_the_window(standardise) -> None:
    model = overfeat(code=BoxCode("edges", standardise), shared_box=False).eval()
    nn.init.zeros_(model.regressor.scores.weight)
    found = model.features(batch_of({}))
    boxes = model.code.decode(found["codes"], found["windows"][:, None])
    torch.testing.assert_close(boxes, found["windows"][None, :, None].expand_as(boxes))


# --- predictions ---


def said(*windows: tuple[Sequence[float], int, float], classes: int = 6) -> dict[str, torch.Tensor]:
    """Features of one picture: windows that are what their box, label and probability say, boxes that are the windows."""
    boxes = torch.tensor([box for box, _, _ in windows], dtype=torch.float32).reshape(-1, 4)
    shares = torch.full((1, len(windows), classes + 1), 1e-9)
    for row, (_, label, share) in enumerate(windows):
        shares[0, row, label], shares[0, row, 0] = share, 1 - share
    codes = torch.tensor([0.0, 0, 1, 1]).expand(1, len(windows), 1, 4)
    return {"windows": boxes, "logits": shares.log(), "codes": codes}


def test_guesses_of_one_object_become_one_with_the_sum_of_their_scores() -> None:
    features = said(([10, 10, 30, 30], 2, 0.5), ([12, 10, 32, 30], 2, 0.25), ([40, 40, 60, 60], 2, 0.8))
    (found,) = overfeat().predict(features, batch_of({}))
    torch.testing.assert_close(found.boxes, torch.tensor([[40.0, 40, 60, 60], [11, 10, 31, 30]]))
    assert found.scores.tolist() == pytest.approx([0.8 / 1.8, 0.75 / 1.75])
    assert found.labels.tolist() == [2, 2]


def test_what_cannot_be_a_detection_is_dropped() -> None:
    features = said(
        ([10, 10, 30, 30], 1, 0.04),  # below the threshold
        ([50, 10, 90, 30], 1, 0.9),  # its middle is outside
        ([10, 40, 30, 60], 3, 0.9),
    )
    (found,) = overfeat().predict(features, batch_of({}))
    assert found.labels.tolist() == [3]
    (nothing,) = overfeat(score_threshold=0.95).predict(features, batch_of({}))
    assert (nothing.boxes.shape, nothing.scores.shape, nothing.labels.shape) == ((0, 4), (0,), (0,))


def test_boxes_are_cut_to_the_picture_and_classes_stay_apart() -> None:
    features = said(([-4, 0, 20, 20], 1, 0.9), ([-4, 0, 20, 20], 2, 0.6))
    (found,) = overfeat().predict(features, batch_of({}))
    assert found.boxes.tolist() == [[0, 0, 20, 20]] * 2
    assert found.labels.tolist() == [1, 2]


def test_candidates_and_detections_are_limited() -> None:
    windows = [([x, y, x + 8, y + 8], 1, 0.5 + (x + y) / 1000) for x in range(0, 64, 16) for y in range(0, 64, 16)]
    (three,) = overfeat(candidates=3).predict(said(*windows), batch_of({}))
    (five,) = overfeat(most_detections=5).predict(said(*windows), batch_of({}))
    assert (len(three), len(five)) == (3, 5)
    assert three.boxes[0].tolist() == [48, 48, 56, 56]


def test_each_classs_own_box_is_read() -> None:
    features = said(([0, 0, 10, 10], 2, 0.9))
    codes = torch.zeros(1, 1, 6, 4)
    codes[0, 0, :, 2:] = torch.arange(1, 7)[:, None].float()
    (found,) = overfeat(shared_box=False).predict({**features, "codes": codes}, batch_of({}))
    assert found.boxes.tolist() == [[0, 0, 20, 20]]


def test_windows_over_the_padding_find_nothing() -> None:
    """A narrow picture beside a wide one, black both: whatever is found lies in the picture."""
    narrow, wide = batch_of({}, size=(64, 40)), batch_of({}, size=(64, 64))
    sample = [
        (b.images[0].permute(1, 2, 0).numpy()[: t.size[0], : t.size[1]], t) for b in (narrow, wide) for t in b.targets
    ]
    batch = Batch.collate([type(drawn()[0])(*pair) for pair in sample])
    found, other = detections_of(overfeat(score_threshold=0.0).eval(), batch)
    assert len(found) > 0
    assert float(found.boxes[:, 2].max()) <= 40 < float(other.boxes[:, 2].max())


# --- what is refused, and what is left out ---


def test_stages_behind_the_map_are_left_out() -> None:
    model = assemble(
        SCHEMA,
        Tiny(4),
        "c3",
        DenseWindows(bins=2, pool=1),
        partial(DenseLayers, hidden=4, last=4),
        partial(DenseLayers, hidden=4, last=4),
        BoxCode("edges"),
        CodeLoss(l2),
        WindowSampler(),
        scales=[1],
    )
    assert list(model.backbone.stages) == list(model.backbone.out_channels) == ["c1", "c2", "c3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.map=c9", r"model\.map=c9 is no map of the backbone"),
        ("model.scales=[]", "factors above 0"),
        ("model.train_scales=[0]", "factors above 0"),
        ("model.code.standardise=measured", "is for whole pictures"),
    ],
)
def test_settings_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(*WIDTH, override)


# --- learning ---


@pytest.mark.slow
def test_overfeat_learns_eight_pictures_by_heart(tmp_path: Path) -> None:
    config = compose(
        "train",
        [
            *("experiment=none", "model=overfeat", "trainer=overfit", "monitor=val/ap50", f"paths.logs={tmp_path}"),
            *(
                "+data.source.size=[96,96]",
                "data.source.objects=[1,3]",
                "optimizer.lr=3e-3",
                "schedule.warmup.steps=20",
            ),
            *("trainer.max_epochs=100", "trainer.check_val_every_n_epoch=100", "trainer.gradient_clip_val=10.0"),
            *("trainer.enable_progress_bar=false", "callbacks.checkpoints=null", "callbacks.pictures=null"),
        ],
    )
    train(config)
    results = json.loads((Path(config.paths.run) / "metrics.json").read_text())
    assert results["last"]["val/ap50"] >= 0.9
