"""Faster R-CNN keeps the models' contracts with every part it can be built of, and the paper's preset is the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from contracts import (
    ASKING,
    SCHEMA,
    Operators,
    assert_asks_nothing,
    assert_detections,
    assert_losses,
    assert_model,
    batch_of,
    counted,
    drawn,
    keys_by_place,
    losses_of,
    padded,
)
from quadrat.backbones.base import Features
from quadrat.configs import build, compose
from quadrat.models.regions import Regions
from quadrat.ops.match import POSITIVE
from quadrat.proposers.rpn import RPN
from quadrat.structures import Batch

SMALL = (
    "model.neck.channels=32",
    "model.layers.hidden=64",
    "model.proposer.samples=64",
    "model.proposer.train_limits=[200,100]",
    "model.proposer.test_limits=[100,50]",
    "model.sampler.count=48",
)


def fpn_config(backbone: str = "tiny", *overrides: str) -> DictConfig:
    return compose("train", ["~experiment", "model=faster_rcnn_fpn", f"model/backbone={backbone}", *SMALL, *overrides])


def fpn(backbone: str = "tiny", *overrides: str) -> tuple[Regions, list[str]]:
    """A model whose scores are spread out, or all boxes would tie, and the names in its loss config."""
    config = fpn_config(backbone, *overrides)
    torch.manual_seed(0)
    model = build(config.model, schema=SCHEMA)
    with torch.no_grad():
        for layer in (model.proposer.objectness, model.box.classes):
            layer.weight.normal_(std=0.2)
    return model, list(config.loss.weights)


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2", "squeezenet1_1", "resnet18"])
def test_contracts_with_each_backbone(backbone: str) -> None:
    assert_model(*fpn(backbone))


def test_losses_and_detections_with_resnet50() -> None:
    """The rest does not depend on the depth."""
    model, names = fpn("resnet50")
    batch = Batch.collate(drawn())
    assert_losses(model, batch, names)
    assert_detections(model.eval(), batch)


@pytest.mark.parametrize("override", ["model/pool=roi_pool", "model.box.shared_box=true", "model.pool.aligned=false"])
def test_contracts_with_each_part(override: str) -> None:
    assert_model(*fpn("tiny", override))


def test_contracts_with_frozen_parts() -> None:
    """What is frozen takes no gradient, and its statistics stand still in training."""
    model, names = fpn("tiny", "model.backbone.freeze_stages=2", "model.backbone.freeze_norm=true")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert len(frozen) > 10
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert_losses(model.train(), Batch.collate(drawn()), names)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert_model(model, names)


def test_pictures_of_different_sizes() -> None:
    """Detections stay inside their own picture, not only inside the padded one."""
    model, names = fpn()
    batch = Batch.collate([*drawn(1, (64, 96)), *drawn(1, (90, 70))])
    assert batch.images.shape[2:] == (96, 96)
    assert_losses(model, batch, names)
    assert_detections(model.eval(), batch)


def test_padding_of_the_picture_is_not_seen() -> None:
    """Bytes beyond the size of a picture change no bit."""
    model, _ = fpn()
    batch = Batch.collate([*drawn(1, (64, 96)), *drawn(1, (90, 70))])
    before = losses_of(model.eval(), batch)
    batch.images[0, :, 64:] = 255
    batch.images[1, :, :, 70:] = 255
    after = losses_of(model, batch)
    assert {n: v.item() for n, v in before.items()} == {n: v.item() for n, v in after.items()}


# Without a loop over images and without waiting for the device


@pytest.fixture
def still_nms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first hundred boxes survive: torchvision's kernel has to tell the host how many did, and is not ours."""
    monkeypatch.setattr(
        "quadrat.ops.suppress.batched_nms",
        lambda boxes, *_: torch.arange(100, device=boxes.device).clamp(max=len(boxes)),
    )
    return


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.usefixtures("still_nms")
def test_the_training_step_asks_the_device_nothing(pool: str) -> None:
    model, _ = fpn("tiny", f"model/pool={pool}")
    assert_asks_nothing(model, Batch.collate(drawn(2)))


@pytest.mark.parametrize("pool", ["roi_align", "roi_pool"])
@pytest.mark.usefixtures("still_nms")
def test_the_training_step_runs_where_there_are_no_numbers(pool: str) -> None:
    """On the meta device every question for a value is an error, in whatever way it is asked."""
    model, names = fpn("tiny", f"model/pool={pool}")
    model, batch = model.to("meta"), Batch.collate(drawn(2)).to("meta")
    losses = model.loss(model.features(batch), batch)
    assert sorted(losses) == sorted(names)
    assert all(value.shape == () and value.is_meta for value in losses.values())


@pytest.mark.usefixtures("still_nms")
def test_the_training_step_has_no_loop_over_images() -> None:
    model, _ = fpn()
    two, six = counted(model, Batch.collate(drawn(2))), counted(model, Batch.collate(drawn(6)))
    assert two == six
    assert sum(two.values()) > 100


def test_the_count_sees_what_it_should() -> None:
    """`Operators` is no good if it misses a question."""
    x = torch.arange(4.0)
    questions = (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.masked_select(x > 1),
        lambda: torch.tensor([1.0]),
        lambda: x.unique(),
        lambda: x.repeat_interleave(x.long()),
    )
    for number, question in enumerate(questions):
        with Operators() as operators:
            question()
        assert any(operators.counts[name] for name in ASKING), number


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_training_step_waits_for_no_more_than_nms() -> None:
    """With CUDA's own alarm: one wait for the length of what NMS leaves, and two inside torchvision's NMS."""
    model, _ = fpn()
    model, batch = model.cuda(), Batch.collate(drawn(2)).to("cuda")
    losses_of(model, batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quadrat.ops.suppress.batched_nms", lambda boxes, *_: torch.arange(100, device=boxes.device))
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.stack(list(model.loss(model.features(batch), batch).values())).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# The paper's preset


@cache
def paper() -> DictConfig:
    return compose("train", ["~experiment", "model=faster_rcnn_vgg"])


class OneMap(Features):
    """A neck that promises one map."""

    def __init__(self, channels: int = 512, stride: int = 16) -> None:
        super().__init__()
        self.out_channels, self.strides = {"c5": channels}, {"c5": stride}


def paper_rpn(channels: int = 8) -> RPN:
    rpn = build(paper().model.proposer)(OneMap(channels))
    assert isinstance(rpn, RPN)
    return rpn


def test_paper_config_has_the_numbers_of_the_paper() -> None:
    """`systems.md`, sheet 2.14."""
    model, loss = paper().model, paper().loss
    proposer, sampler, box = model.proposer, model.sampler, model.box
    assert (proposer.samples, proposer.positive_fraction) == (256, 0.5)
    assert (proposer.positive_iou, proposer.negative_iou) == (0.7, 0.3)
    assert proposer.inside_only
    assert (proposer.box_normaliser, proposer.box_beta) == ("locations", 1.0)
    assert (list(proposer.train_limits), list(proposer.test_limits)) == ([12000, 2000], [6000, 300])
    assert (proposer.nms, proposer.min_size, proposer.hidden) == (0.7, 16, 512)
    assert (sampler.count, sampler.positive_fraction, sampler.positive_iou) == (128, 0.25, 0.5)
    assert list(sampler.background_iou) == [0.0, 0.5]
    assert (box.nms, box.box_beta, box.shared_box) == (0.3, 1.0, False)
    assert list(box.coder) == [1 / 0.1, 1 / 0.1, 1 / 0.2, 1 / 0.2]
    assert model.pool["_target_"].endswith("RoIPool")
    assert model.pool.bins == 7
    assert model.backbone.freeze_stages == 2
    assert dict(loss.weights) == {"rpn_objectness": 1, "rpn_box": 10, "region_class": 1, "region_box": 1}


def test_paper_anchors_are_those_of_the_released_code() -> None:
    """Its table counts pixels from 1 and includes the last: 1 less at the top left."""
    published = [
        *((-83, -39, 100, 56), (-175, -87, 192, 104), (-359, -183, 376, 200)),
        *((-55, -55, 72, 72), (-119, -119, 136, 136), (-247, -247, 264, 264)),
        *((-35, -79, 52, 96), (-79, -167, 96, 184), (-167, -343, 184, 360)),
    ]
    expected = torch.tensor(published, dtype=torch.float32) - torch.tensor([1.0, 1, 0, 0])
    anchors = paper_rpn()({"c5": torch.zeros(1, 8, 1, 1)}).anchors
    assert sorted(anchors.tolist()) == sorted(expected.tolist())


def test_paper_box_loss_is_divided_by_the_locations() -> None:
    """An object exactly on an anchor, which is right, and its four neighbours, off by 16 of 128 pixels in one coordinate.

    Their overlap is 112 / 144, so that they are positive too; each pays half of the square of 1/8. The other image is empty.
    """
    rpn = paper_rpn()
    batch = batch_of({"boxes": [[72, 72, 200, 200]]}, {}, size=(256, 256))
    judged = rpn({"c5": torch.zeros(2, 8, 16, 16)})
    assert _positives(rpn, judged.anchors, batch).sum(1).tolist() == [5, 0]
    loss = rpn.loss(judged, batch)
    assert loss["rpn_box"].item() == pytest.approx(4 * 0.5 * (16 / 128) ** 2 / (2 * 16 * 16))
    assert loss["rpn_objectness"].item() == pytest.approx(math.log(2))


def _positives(rpn: RPN, anchors: Tensor, batch: Batch) -> Tensor:
    """Which anchors (B, A) the loss takes for positive, read where they are drawn."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        from quadrat.proposers import rpn as module

        real = module.sample
        patch.setattr(module, "sample", lambda state, *rest: (seen.append(state), real(state, *rest))[1])
        zeros = torch.zeros(len(batch), len(anchors))
        rpn.loss(module.Judged(zeros, zeros[..., None].expand(-1, -1, 4), anchors, [len(anchors)]), batch)
    return seen[0] == POSITIVE


def test_paper_trains_no_anchor_across_the_border() -> None:
    rpn = paper_rpn()
    anchors = rpn({"c5": torch.zeros(1, 8, 20, 20)}).anchors
    crossing = (anchors < 0).any(1) | (anchors > 320).any(1)
    boxes = [[0, 0, 130, 130], [180, 0, 320, 120], [100, 90, 230, 240], [10, 200, 140, 320]]
    batch = batch_of({"boxes": boxes}, size=(320, 320))
    positive = _positives(rpn, anchors, batch)[0]
    assert positive.any()
    assert crossing.any()
    assert not (positive & crossing).any()
    rpn.inside_only = False
    assert (_positives(rpn, anchors, batch)[0] & crossing).any()


@pytest.mark.parametrize(("side", "kept"), [(31.0, False), (33.0, True)])
def test_paper_proposals_are_of_16_pixels_before_scaling(side: float, kept: bool) -> None:
    """The input is twice the original picture: 32 pixels of it."""
    rpn = paper_rpn()
    batch = batch_of({}, size=(256, 256), original_size=(128, 128))
    judged = rpn({"c5": torch.zeros(1, 8, 16, 16)})
    best = 9 * (8 * 16 + 8) + 3  # in the middle
    width, height = judged.anchors[best, 2:] - judged.anchors[best, :2]
    judged.objectness[0, best] = 10.0
    judged.deltas[0, best, 2:] = torch.log(torch.stack([100 / width, side / height]))
    proposals = rpn.propose(judged, batch, rpn.test_limits)
    assert bool(proposals.scores[0, 0] > 0.99) == kept
    assert proposals.valid[0, 0]


def test_paper_model_gives_losses_and_detections() -> None:
    """Built as configured, but for the picture: fc6 and fc7 are 120 million numbers, so that no more is asked of it."""
    model = build(paper().model, schema=SCHEMA)
    batch = Batch.collate(drawn(1, (96, 96)))
    assert_losses(model, batch, paper().loss.weights)
    with torch.no_grad():
        assert_detections(model.eval(), batch)
    frozen = {name.split(".")[2] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"c1", "c2"}
    assert not any(p.requires_grad for stage in ("c1", "c2") for p in model.backbone.stages[stage].parameters())


def test_padding_of_the_objects_is_not_drawn_from() -> None:
    """However many rows of padding, the regions of the head are the same ones."""
    model, _ = fpn()
    batch = Batch.collate(drawn())
    with torch.no_grad(), keys_by_place():
        features = model.eval().features(batch)
        proposals = model.proposer.propose(model.proposer(features), batch, model.proposer.train_limits)
        few, many = model.sampler(proposals, batch), model.sampler(proposals, padded(batch, 30))
    for image in range(len(batch)):
        assert sorted(few.boxes[image].tolist()) == sorted(many.boxes[image].tolist())
        assert sorted(few.labels[image].tolist()) == sorted(many.labels[image].tolist())
