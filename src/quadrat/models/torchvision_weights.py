"""Read the weights of torchvision's Faster R-CNN and FCN into ours: the same networks under other names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quadrat.models.dense import Dense

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


class Translation(NamedTuple):
    """How the keys of one of torchvision's models become ours, and its published weights by the name we give them."""

    model: str
    renames: Renames
    published: dict[str, tuple[str, str]]


FASTER_RCNN = Translation(
    "Faster R-CNN with a feature pyramid",
    (
        (r"^backbone\.body\.conv1\.", "backbone.stages.c1.0."),
        (r"^backbone\.body\.bn1\.", "backbone.stages.c1.1."),
        (r"^backbone\.body\.layer(\d)\.", lambda found: f"backbone.stages.c{int(found[1]) + 1}."),
        # the published file is older than the library's own renaming, so both spellings occur
        (r"^backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?", lambda found: f"neck.lateral.c{int(found[1]) + 2}."),
        (r"^backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?", lambda found: f"neck.smooth.c{int(found[1]) + 2}."),
        (r"^rpn\.head\.conv\.(?:0\.0\.)?", "proposer.conv."),
        (r"^rpn\.head\.cls_logits\.", "proposer.objectness."),
        (r"^rpn\.head\.bbox_pred\.", "proposer.box."),
        (r"^roi_heads\.box_head\.fc6\.", "box.layers.first."),
        (r"^roi_heads\.box_head\.fc7\.", "box.layers.second."),
        (r"^roi_heads\.box_predictor\.cls_score\.", "box.classes."),
        (r"^roi_heads\.box_predictor\.bbox_pred\.", "box.boxes."),
    ),
    {"coco": ("detection.fasterrcnn_resnet50_fpn", "COCO_V1")},
)

FCN = Translation(
    "FCN on a ResNet",
    (
        (r"^backbone\.conv1\.", "backbone.stages.c1.0."),
        (r"^backbone\.bn1\.", "backbone.stages.c1.1."),
        (r"^backbone\.layer(\d)\.", lambda found: f"backbone.stages.c{int(found[1]) + 1}."),
        (r"^classifier\.", "head.layers."),
        (r"^aux_classifier\.", "auxiliary.c4.layers."),
    ),
    {
        "coco_voc": ("segmentation.fcn_resnet50", "COCO_WITH_VOC_LABELS_V1"),
        "coco_voc_101": ("segmentation.fcn_resnet101", "COCO_WITH_VOC_LABELS_V1"),
    },
)


def renamed(key: str, translation: Translation = FASTER_RCNN) -> str:
    """Our name of one of torchvision's parameters; ValueError for a key that its model does not have."""
    for pattern, replacement in translation.renames:
        new, hits = re.subn(pattern, replacement, key)
        if hits:
            return new
    raise ValueError(f"{key} is no parameter of torchvision's {translation.model}")


def load_torchvision(model: nn.Module, weights: str | Path | dict[str, Tensor]) -> None:
    """Fill ``model`` from a state dict, its file, or published weights by name: configs `faster_rcnn_fpn`, `fcn_resnet`.

    Published are ``coco`` (Faster R-CNN, ResNet-50: wants ``norm_eps=0`` in the backbone and 90 classes), ``coco_voc`` and
    ``coco_voc_101`` (FCN, 20 classes and background). Raises ValueError naming the keys that differ.
    """
    translation = FCN if isinstance(model, Dense) else FASTER_RCNN
    state = _read(weights, translation)
    translated = {renamed(key, translation): value for key, value in state.items()}
    wanted = model.state_dict()
    ours = {key for key in wanted if key.endswith(("num_batches_tracked", "class_weights.weights"))}
    missing, unknown = sorted(set(wanted) - set(translated) - ours), sorted(set(translated) - set(wanted))
    if missing or unknown:
        raise ValueError(f"these weights are of another model: missing {missing[:4]}, unknown {unknown[:4]}")
    for key, value in translated.items():
        if wanted[key].shape != value.shape:
            raise ValueError(
                f"{key} is {tuple(value.shape)} in the weights and {tuple(wanted[key].shape)} in the model: "
                f"another number of classes, or another head"
            )
    model.load_state_dict(translated, strict=False)


def _read(weights: str | Path | dict[str, Tensor], translation: Translation) -> dict[str, Tensor]:
    if isinstance(weights, dict):
        return weights
    if weights in translation.published:
        from torchvision.models import get_model_weights

        name, version = translation.published[str(weights)]
        return dict(get_model_weights(name.rpartition(".")[2])[version].get_state_dict(progress=True, check_hash=True))
    return torch.load(weights, map_location="cpu", weights_only=True)
