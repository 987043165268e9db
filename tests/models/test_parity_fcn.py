"""The same weights in torchvision's FCN and in ours: the same scores."""

import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50

from quadrat.configs import build, compose
from quadrat.data.shapes import Shapes
from quadrat.models.torchvision_weights import load_torchvision
from quadrat.structures import Batch, Schema

SCHEMA = Schema(classes=tuple(f"class {i}" for i in range(20)))


@torch.no_grad()
def test_scores_are_equal() -> None:
    torch.manual_seed(0)
    peer = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    model = build(compose("train", ["~experiment", "model=fcn_resnet"]).model, schema=SCHEMA).eval()
    load_torchvision(model, peer.state_dict())
    source = Shapes("parity", count=2, size=(96, 64))
    batch = Batch.collate([source[0], source[1]])
    images = model.normalise(batch.images, batch.sizes)
    expected, got = peer(images), model.features(batch)
    assert expected["out"].std() > 0.01
    torch.testing.assert_close(got["scores"], expected["out"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["aux_c4"], expected["aux"], atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_refused() -> None:
    state = fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True).state_dict()
    model = build(compose("train", ["~experiment", "model=fcn_resnet"]).model, schema=SCHEMA)
    with pytest.raises(ValueError, match="another number of classes"):
        load_torchvision(model, state)
    with pytest.raises(ValueError, match="no parameter of torchvision's FCN"):
        load_torchvision(model, {"decoder.weight": torch.zeros(1)})
