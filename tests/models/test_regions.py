"""The detectors of regions keep the models' contracts, whatever their parts, and the presets are the papers'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from contracts import (
    SCHEMA,
    assert_asks_nothing,
    assert_detections,
    assert_losses,
    assert_model,
    drawn,
    losses_of,
)
from quadrat.configs import build, compose
from quadrat.heads.linear import Truncated
from quadrat.models.base import Model
from quadrat.models.regions import Regions
from quadrat.structures import Batch, Sample

TINY = ["~experiment", "model/backbone=tiny"]
RPN = ["model.proposer.samples=64", "model.proposer.train_limits=[200,100]", "model.proposer.test_limits=[100,50]"]
# bilinear reads of a fine map: where two regions of so small a picture see the same whole cells, their scores tie
FAST = [
    "model=fast_rcnn",
    "model.layers.hidden=64",
    "model.sampler.count=48",
    "model.neck.names=[c2]",
    "model/pool=roi_align",
]
FINE = ["model.neck.names=[c2,c3]", "model.proposer.maps=[c2]", "model.proposer.anchors.scales=[4]"]
SYSTEMS = {
    "fast": FAST,
    "fast, one box for all": [*FAST, "model.box.shared_box=true"],
    "faster c4": ["model=faster_rcnn_c4", "model.sampler.count=32", "model.pool.bins=4", *RPN],
    "rfcn": ["model=rfcn", "model.box.hidden=32", "model.box.mining.count=16", "model.sampler.count=48", *RPN, *FINE],
}


@cache
def proposed(count: int = 2) -> tuple[Sample, ...]:
    """Pictures with objects, and regions round and beside them."""
    generator = torch.Generator().manual_seed(0)
    return tuple(Sample(s.image, replace(s.targets, proposals=_regions(s, generator))) for s in drawn(count))


def _regions(sample: Sample, generator: torch.Generator) -> torch.Tensor:
    height, width = sample.targets.size
    near = sample.targets.boxes.repeat(8, 1) + 4 * torch.randn(8 * len(sample.targets), 4, generator=generator)
    low = torch.rand(60, 2, generator=generator) * 40
    far = torch.cat([low, low + 8 + 16 * torch.rand(60, 2, generator=generator)], dim=1)
    boxes = torch.cat([near, far]).clamp(min=0)
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height], dtype=torch.float32))
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 3).all(1)]


def system(overrides: Sequence[str]) -> tuple[Model, list[str]]:
    """A model whose scores are spread out, or all boxes would tie, and the names in its loss config."""
    config = compose("train", [*TINY, *overrides])
    torch.manual_seed(0)
    model = build(config.model, schema=SCHEMA)
    with torch.no_grad():
        spread = [model.box.classes] + ([model.proposer.objectness] if hasattr(model.proposer, "objectness") else [])
        for layer in spread:
            layer.weight.normal_(std=0.2)
    return model, list(config.loss.weights)


@pytest.mark.parametrize("name", SYSTEMS)
def test_contracts(name: str) -> None:
    assert_model(*system(SYSTEMS[name]), samples=proposed())


@pytest.mark.parametrize("name", ["fast", "rfcn"])
def test_training_step_never_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(  # torchvision's kernel has to tell the host how many boxes survive, and is not ours
        "quadrat.ops.suppress.batched_nms",
        lambda boxes, *_: torch.arange(100, device=boxes.device).clamp(max=len(boxes)),
    )
    assert_asks_nothing(system(SYSTEMS[name])[0].train(), Batch.collate(proposed()))


@pytest.mark.parametrize("backbone", ["mobilenet_v2"])
def test_c4_on_other_trunks_uses_the_last_stage_as_head(backbone: str) -> None:
    config = compose("train", ["~experiment", *SYSTEMS["faster c4"], f"model/backbone={backbone}"])
    model = build(config.model, schema=SCHEMA)
    assert list(model.backbone.stages) == ["c1", "c2", "c3", "c4"]
    assert list(model.box.layers.backbone.stages) == ["c5"]
    assert_losses(model.train(), Batch.collate(drawn()), model.loss_names)


def test_c4_keeps_what_is_frozen_frozen() -> None:
    freeze = ["model.backbone.freeze_stages=5", "model.backbone.freeze_norm=true"]
    model = build(compose("train", [*TINY, "model=faster_rcnn_c4", *freeze]).model, schema=SCHEMA)
    trunk = [p for n, p in model.named_parameters() if "backbone" in n.split(".")]
    assert trunk
    assert not any(p.requires_grad for p in trunk)


def test_rfcn_proposer_reads_c4_and_regions_read_c5() -> None:
    model = build(compose("train", [*TINY, "model=rfcn"]).model, schema=SCHEMA)
    assert (model.proposer.names, model.box.map) == (("c4",), "c5")


def test_rfcn_hard_examples_leave_the_others_alone() -> None:
    """With one region a picture the terms are the largest loss of it."""
    model, _ = system([*SYSTEMS["rfcn"], "model.box.mining.count=1"])
    every, _ = system([*SYSTEMS["rfcn"], "model.box.mining=null"])
    batch = Batch.collate(proposed())
    hardest, mean = losses_of(model, batch), losses_of(every, batch)
    assert hardest["region_class"] + hardest["region_box"] > mean["region_class"] + mean["region_box"]


PYRAMID = ["model/neck=fpn", "~model.neck.names", "model.neck.channels=32"]


@pytest.mark.parametrize("parts", [["model/pool=roi_pool"], PYRAMID], ids=["whole cells", "pyramid"])
def test_fast_rcnn_of_other_parts(parts: list[str]) -> None:
    model, names = system([*FAST, *parts])
    assert_losses(model, Batch.collate(proposed()), names)
    assert_detections(model.eval(), Batch.collate(proposed()))


def test_fast_rcnn_paper_is_the_papers() -> None:
    config = compose("train", ["~experiment", "model=fast_rcnn_paper"])
    with torch.device("meta"):
        model = build(config.model, schema=SCHEMA)
    assert isinstance(model, Regions)
    widths = {n: tuple(m.weight.shape) for n, m in model.box.named_modules() if isinstance(m, nn.Linear)}
    assert widths == {
        "layers.first": (4096, 25088),
        "layers.second": (4096, 4096),
        "classes": (7, 4096),
        "boxes": (28, 4096),
    }
    assert model.box.pool.strides == [16]
    assert not any(p.requires_grad for p in model.backbone.stages["c2"].parameters())
    assert all(p.requires_grad for p in model.backbone.stages["c3"].parameters())
    assert (model.sampler.count, model.sampler.background_iou) == (64, (0.1, 0.5))
    assert (config.data.proposals.finder.mode, config.data.proposals.most) == ("fast", 2000)


def test_rfcn_paper_is_the_papers() -> None:
    config = compose("train", ["~experiment", "model=rfcn_paper"])
    with torch.device("meta"):
        model = build(config.model, schema=SCHEMA)
    assert (model.box.classes.out_channels, model.box.boxes.out_channels) == (49 * 7, 49 * 4)
    assert model.box.layers[0].in_channels == 2048
    assert model.backbone.strides["c5"] == model.proposer.strides[0] == 16
    assert (model.proposer.per_cell, model.proposer.train_limits.after) == (9, 300)


def test_svd_is_chosen_at_evaluation() -> None:
    """The same weights, by fewer singular values."""
    whole, _ = system(FAST)
    truncated, _ = system([*FAST, "model.layers.svd=[64,64]"])
    truncated.load_state_dict(whole.state_dict())
    assert isinstance(truncated.box.layers.first, Truncated)  # pyright: ignore
    batch = Batch.collate(proposed())
    with torch.no_grad():
        one, other = (m.eval().predict(m.features(batch), batch) for m in (whole, truncated))
    torch.testing.assert_close(one[0].scores, other[0].scores, atol=1e-4, rtol=0)


def test_pictures_without_proposals_name_the_remedy() -> None:
    model, _ = system(FAST)
    batch = Batch.collate(drawn())
    with pytest.raises(ValueError, match=re.escape("add data/proposals=selective_search")):
        model.loss(model.features(batch), batch)
