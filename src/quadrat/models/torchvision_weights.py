"""Read the weights of torchvision's Faster R-CNN into ours: the same network under other names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

RENAMES: tuple[tuple[str, str], ...] = (
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
)  # pyright: ignore[reportAssignmentType]


def renamed(key: str) -> str:
    """Our name of one of torchvision's parameters; ValueError for a key that its Faster R-CNN does not have."""
    for pattern, replacement in RENAMES:
        new, hits = re.subn(pattern, replacement, key)
        if hits:
            return new
    raise ValueError(f"{key} is no parameter of torchvision's Faster R-CNN with a feature pyramid")


def load_torchvision(model: nn.Module, weights: str | Path | dict[str, Tensor]) -> None:
    """Fill ``model`` (the config `faster_rcnn_fpn`) from a state dict, its file, or ``coco``: the published ResNet-50 weights.

    The published ones want ``norm_eps=0`` in the backbone and 90 classes. Raises ValueError naming the keys that differ.
    """
    state = _read(weights)
    translated = {renamed(key): value for key, value in state.items()}
    wanted = model.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # frozen norms do not keep them
    missing, unknown = sorted(set(wanted) - set(translated) - counters), sorted(set(translated) - set(wanted))
    if missing or unknown:
        raise ValueError(f"these weights are of another model: missing {missing[:4]}, unknown {unknown[:4]}")
    for key, value in translated.items():
        if wanted[key].shape != value.shape:
            raise ValueError(
                f"{key} is {tuple(value.shape)} in the weights and {tuple(wanted[key].shape)} in the model: "
                f"another number of classes, or another head"
            )
    model.load_state_dict(translated, strict=False)


def _read(weights: str | Path | dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(weights, dict):
        return weights
    if weights == "coco":
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        return dict(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.get_state_dict(progress=True, check_hash=True))
    return torch.load(weights, map_location="cpu", weights_only=True)
