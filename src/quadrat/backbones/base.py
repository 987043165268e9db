"""The backbone contract: an image in, named feature maps out, and the part itself knows their channels and strides."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Features(nn.Module):
    """A part that offers feature maps: ``out_channels`` and ``strides`` under the names of the maps it returns.

    ``region_maps`` are the maps that regions are read from, finest first.
    """

    out_channels: dict[str, int]
    strides: dict[str, int]

    @property
    def region_maps(self) -> tuple[str, ...]:
        return tuple(self.out_channels)


class Neck(Features):
    """A part that makes maps of the trunk's maps ``reads``."""

    reads: tuple[str, ...]


class Backbone(Features):
    """A trunk of ``stages`` run one after another; the map after stage i is called ``names[i]``.

    ``freeze_stages`` holds the first stages still; ``freeze_norm`` keeps every batch norm at its stored statistics and
    affine values, as detectors do whose batches are too small to estimate them.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        out_channels: dict[str, int],
        strides: dict[str, int],
        *,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= freeze_stages <= len(stages):
            raise ValueError(f"freeze_stages is 0..{len(stages)} for this backbone, got {freeze_stages}")
        self.stages = nn.ModuleDict(stages)
        self.out_channels = out_channels
        self.strides = strides
        self.freeze(freeze_stages, freeze_norm)

    def end_with(self, names: Iterable[str]) -> None:
        """Cut off the stages behind the last one of these maps: what nobody reads is neither computed nor trained."""
        order = list(self.stages)
        needed = max((order.index(name) for name in names if name in order), default=len(order) - 1)
        for name in order[needed + 1 :]:
            del self.stages[name]
            self.out_channels.pop(name, None)
            self.strides.pop(name, None)

    def without_last_stage(self) -> tuple[Backbone, LastStage]:
        """The trunk as far as its last but one stage, and the last for whoever reads regions with it; both as frozen as here."""
        *_, before, name = self.stages
        strides = self.strides[name] // self.strides[before]
        stage = LastStage({name: self.stages[name]}, {name: self.out_channels[name]}, {name: strides})
        stage.freeze(max(0, self.frozen_stages - len(self.stages) + 1), self.frozen_norm)
        kept = {key: part for key, part in self.stages.items() if key != name}
        channels = {key: count for key, count in self.out_channels.items() if key != name}
        trunk = Backbone(kept, channels, {key: self.strides[key] for key in channels})
        trunk.freeze(min(self.frozen_stages, len(kept)), self.frozen_norm)
        return trunk, stage

    def freeze(self, stages: int, norm: bool) -> None:
        """Hold the first ``stages`` still, and every batch norm if ``norm``; all else learns."""
        self.frozen_stages, self.frozen_norm = stages, norm
        self.requires_grad_(True)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def _frozen(self) -> Iterator[nn.Module]:
        yield from list(self.stages.values())[: self.frozen_stages]
        if self.frozen_norm:
            yield from (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def train(self, mode: bool = True) -> Backbone:
        """As nn.Module, but what is frozen stays in evaluation mode, so that its statistics stand still too."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> maps (B, D, H / stride, W / stride) by name."""
        maps = {}
        for name, stage in self.stages.items():
            images = stage(images)
            if name in self.out_channels:
                maps[name] = images
        return maps


class LastStage(Backbone):
    """The last stage of a trunk on its own; its stride is that to the stage before."""


def load_weights(body: nn.Module, weights: str | None, architecture: str, *, unused: tuple[str, ...]) -> None:
    """Fill a trunk from ``imagenet`` (torchvision's own, downloaded once), a state dict file, or leave it random (none).

    Keys that start with one of ``unused`` (the classifier) are passed over. Raises FileNotFoundError or ValueError that name
    the file and the keys when it is for another network.
    """
    if weights is None or weights == "none":
        return
    state = imagenet_state(architecture) if weights == "imagenet" else read_state(Path(weights).expanduser())
    state = {key: value for key, value in state.items() if not key.startswith(unused)}
    wanted = body.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    unlike = [key for key in state if key in wanted and state[key].shape != wanted[key].shape]
    if missing or unknown or unlike:
        raise ValueError(
            f"{weights} holds no weights of a {architecture}: {len(missing)} keys missing (first: {missing[:3]}), "
            f"{len(unknown)} unknown (first: {unknown[:3]}), {len(unlike)} of another shape (first: {unlike[:3]})"
        )
    body.load_state_dict(state, strict=False)
    log.info("%s: trunk weights from %s", architecture, weights)


def imagenet_state(architecture: str) -> dict[str, Tensor]:
    """The published ImageNet weights of a torchvision architecture, downloaded once; FileNotFoundError without a network."""
    from torchvision.models import get_model_weights

    published = get_model_weights(architecture)["IMAGENET1K_V1"]
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise FileNotFoundError(
            f"the ImageNet weights of {architecture} could not be downloaded ({error}); without a network, "
            f"set model.backbone.weights=<path of a state dict> or model.backbone.weights=none"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """A plain state dict from a file; FileNotFoundError or ValueError names a file that is missing or none."""
    if not path.is_file():
        raise FileNotFoundError(f"backbone weights {path} do not exist; give a state dict file, imagenet, or none")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no file of plain weights ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors by name")
    return state
