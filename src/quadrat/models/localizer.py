"""What is it, and where: the class and the box of one object from one vector (the lecture's two heads)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.heads.box_code import BoxCode
from quadrat.heads.vector import Vector
from quadrat.losses.boxes import BoxLoss, Coded
from quadrat.losses.classification import cross_entropy, masked_mean
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.models.look import Look
from quadrat.ops.boxes import whole
from quadrat.ops.match import gather_rows
from quadrat.ops.principal import principal
from quadrat.structures import Batch, Detections, Schema


class Localizer(Model):
    """picture -> backbone -> vector -> class scores (B, C), and a box for each class, or one for all (``shared_box``).

    Per class, the loss looks at the true class's box only. ``box_vector``: hidden layers of the box's own, on the same maps
    (OverFeat). ``guesses``: keep so many best classes in a result, null: all of them.
    """

    loss_names = ("object_class", "object_box")

    def __init__(
        self,
        look: Look,
        num_classes: int,
        code: BoxCode,
        box_loss: BoxLoss,
        *,
        shared_box: bool = True,
        box_vector: Vector | None = None,
        guesses: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if guesses is not None and guesses < 1:
            raise ValueError(f"model.guesses={guesses}: keep 1 class or more, or null for all")
        self.normalise, self.look = Normalise(mean, std), look
        self.code, self.box_loss, self.box_vector = code, box_loss, box_vector
        self.num_classes, self.shared_box, self.guesses = num_classes, shared_box, guesses or num_classes
        self.classes = nn.Linear(look.out_features, num_classes)
        self.boxes = nn.Linear((box_vector or look).out_features, 4 if shared_box else 4 * num_classes)
        nn.init.normal_(self.boxes.weight, std=0.001)  # begins with the same box, whatever the picture
        with torch.no_grad():
            self.boxes.bias.copy_(code.start().repeat(self.boxes.out_features // 4))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """``frames`` (B, 4), ``logits`` (B, C) and ``codes`` (B, C or 1, 4)."""
        frames = whole(batch.sizes)
        maps = self.look.maps(self.normalise(batch.images, batch.sizes), frames[:, None])
        vector = self.look.vector(maps)
        boxes = self.boxes(vector if self.box_vector is None else self.box_vector(maps))
        codes = boxes.float().view(len(batch), -1, 4)
        return {"frames": frames, "logits": self.classes(vector).float(), "codes": codes}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``object_class`` and ``object_box``: means over the pictures with an object, of cross-entropy and of the box loss."""
        index, there = principal(batch.boxes, batch.valid & ~batch.ignore)
        label = (gather_rows(batch.labels, index[:, None])[:, 0] - 1).clamp(min=0)
        found, frames = features["codes"], features["frames"]
        own = torch.zeros_like(label) if self.shared_box else label
        codes = gather_rows(found, own[:, None])[:, 0]
        boxes = torch.where(there[:, None], gather_rows(batch.boxes, index[:, None])[:, 0], frames)
        terms = self.box_loss(
            Coded(codes, self.code.decode(codes, frames)), Coded(self.code.encode(boxes, frames), boxes)
        )
        return {
            "object_class": cross_entropy(features["logits"][:, None], label[:, None], there[:, None]),
            "object_box": masked_mean(terms, there),
        }

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        """The classes with their boxes, best first."""
        scores, classes = features["logits"].softmax(-1).topk(min(self.guesses, self.num_classes), dim=-1)
        codes = features["codes"].expand(-1, self.num_classes, -1)
        boxes = self.code.decode(gather_rows(codes, classes), features["frames"][:, None])
        boxes = _inside(boxes, batch.sizes)
        return [Detections(boxes[i], scores[i], classes[i] + 1, target.size) for i, target in enumerate(batch.targets)]

    def shared(self) -> Sequence[nn.Module]:
        stages = list(self.look.backbone.stages.values())
        return stages if self.box_vector is not None else (*stages, self.look.vector)


def _inside(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (B, N, 4) moved and cut into pictures of ``sizes`` (B, 2); each keeps a pixel at least."""
    limit = sizes.flip(-1)[:, None].to(boxes.dtype)  # width, height
    first = torch.minimum(boxes[..., :2].clamp(min=0), limit - 1)
    second = torch.minimum(torch.maximum(boxes[..., 2:], first + 1), limit)
    return torch.cat([first, second], dim=-1)


def assemble(
    schema: Schema,
    backbone: Backbone,
    vector: Callable[..., Vector],
    code: BoxCode,
    box_loss: BoxLoss,
    *,
    size: Sequence[int] = (224, 224),
    shared_box: bool = True,
    box_vector: Callable[..., Vector] | None = None,
    guesses: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Localizer:
    """Join parts that wait for what is before them, for the classes of a data set."""
    return Localizer(
        Look(backbone, vector(backbone), size),
        len(schema.classes),
        code,
        box_loss,
        shared_box=shared_box,
        box_vector=None if box_vector is None else box_vector(backbone),
        guesses=guesses,
        mean=mean,
        std=std,
    )
