"""The same weights in torchvision's Faster R-CNN and in ours: the same detections and the same four losses."""

from functools import partial

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from quadrat.backbones.resnet import ResNet
from quadrat.heads.linear import TwoLayer
from quadrat.heads.region_box import RegionBox
from quadrat.heads.region_pool import RoIAlign
from quadrat.heads.regions import RegionSampler
from quadrat.models.regions import Regions, assemble
from quadrat.models.torchvision_weights import load_torchvision, renamed
from quadrat.necks.fpn import FPN
from quadrat.ops.anchors import pyramid_anchors
from quadrat.proposers.rpn import RPN
from quadrat.structures import Batch, Sample, Schema, Targets

CLASSES = 5
EVERYTHING = 10**6  # a sample larger than the population leaves nothing to chance


def ours(*, sampled: int = 512, share: float = 0.25, rpn_sampled: int = 256, rpn_share: float = 0.5) -> Regions:
    return assemble(
        Schema(tuple(f"class {i}" for i in range(CLASSES))),
        ResNet(50, freeze_norm=True),
        FPN,
        partial(
            RPN,
            anchors=partial(pyramid_anchors, scales=(8,), ratios=(0.5, 1.0, 2.0)),
            samples=rpn_sampled,
            positive_fraction=rpn_share,
        ),
        partial(RoIAlign, aligned=False),  # torchvision's pooler is the legacy one
        TwoLayer,
        RegionSampler(sampled, share),
        RegionBox,
    )


def theirs(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, min_size=192, max_size=400, **options
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "fpn.inner_blocks" in name:  # random residual layers blow the maps up; bring them back to about 1
            parameter.data *= 0.02
        elif "cls_logits" in name or "cls_score" in name:  # spread the scores, or every box ties
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        elif "bbox_pred" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.01
    return model


@pytest.fixture(scope="module")
def scene() -> tuple[Batch, list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two pictures of different size whose short side is what torchvision would resize to, so that nobody resizes."""
    generator = np.random.default_rng(0)
    samples = []
    for height, width in ((192, 256), (224, 192)):
        image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        low = generator.uniform(0, [width - 90, height - 90], (4, 2))
        boxes = np.concatenate([low, low + generator.uniform(20, 88, (4, 2))], axis=1)
        samples.append(Sample(image, Targets.make(boxes, generator.integers(1, CLASSES + 1, 4), (height, width), "x")))
    images = [torch.from_numpy(s.image).permute(2, 0, 1).float() / 255 for s in samples]
    targets = [{"boxes": s.targets.boxes, "labels": s.targets.labels} for s in samples]
    return Batch.collate(samples), images, targets


@torch.no_grad()
def test_detections_are_equal(scene) -> None:
    batch, images, _ = scene
    peer, model = theirs().eval(), ours().eval()
    load_torchvision(model, peer.state_dict())
    expected = peer(images)
    got = model.predict(model.features(batch), batch)
    for mine, other in zip(got, expected, strict=True):
        assert len(mine) == len(other["boxes"]) > 5
        assert float(mine.scores[0] - mine.scores[-1]) > 0.05
        assert sorted(mine.labels.tolist()) == sorted(other["labels"].tolist())
        torch.testing.assert_close(mine.scores, other["scores"], atol=1e-4, rtol=0)
        # boxes whose scores tie to the last digits may change places
        distance = (mine.boxes[:, None] - other["boxes"]).abs().amax(-1)
        distance = distance + 1e6 * (mine.labels[:, None] != other["labels"])
        nearest, partner = distance.min(1)
        assert len(set(partner.tolist())) == len(mine)
        assert float(nearest.max()) < 0.01  # pixels of 256: 4e-5


def test_losses_are_equal(scene) -> None:
    batch, images, targets = scene
    peer = theirs(
        box_batch_size_per_image=EVERYTHING,
        box_positive_fraction=1.0,
        rpn_batch_size_per_image=EVERYTHING,
        rpn_positive_fraction=1.0,
    ).train()
    model = ours(sampled=EVERYTHING, share=1.0, rpn_sampled=EVERYTHING, rpn_share=1.0)
    load_torchvision(model, peer.state_dict())
    for module in peer.modules():  # without ImageNet weights torchvision has live norms, ours are still
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    expected = peer(images, targets)
    got = model.train().loss(model.features(batch), batch)
    names = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "region_class": "loss_classifier",
        "region_box": "loss_box_reg",
    }
    assert set(got) == set(names)
    for mine, other in names.items():
        assert expected[other].item() > 1e-4
        assert got[mine].item() == pytest.approx(expected[other].item(), abs=1e-4, rel=1e-4)


def test_the_published_spelling_of_keys() -> None:
    """The file that torchvision downloads was saved before its pyramid and proposer were renamed."""
    assert renamed("backbone.fpn.inner_blocks.3.weight") == "neck.lateral.c5.weight"
    assert renamed("backbone.fpn.inner_blocks.3.0.weight") == "neck.lateral.c5.weight"
    assert renamed("rpn.head.conv.weight") == renamed("rpn.head.conv.0.0.weight") == "proposer.conv.weight"
    with pytest.raises(ValueError, match="no parameter"):
        renamed("roi_heads.mask_head.mask_fcn1.weight")


def test_weights_of_another_model_are_refused() -> None:
    state = theirs().state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(7, 1024)
    with pytest.raises(ValueError, match="another number of classes"):
        load_torchvision(ours(), state)
    del state["rpn.head.cls_logits.bias"]
    with pytest.raises(ValueError, match=r"missing \['proposer.objectness.bias'\]"):
        load_torchvision(ours(), state)
