"""Where each joint is, as a regression: one network for all of them, then a cascade that looks again (DeepPose).

Toshev and Szegedy, CVPR 2014. Stage 1 sees the frame of a person. Every further stage has a network of its own, sees a part
round each joint that the stage before it has found, and says how far off that is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quadrat.backbones.base import Backbone
from quadrat.heads.vector import Vector
from quadrat.losses.joints import JointLoss
from quadrat.models.base import IMAGENET_MEAN, IMAGENET_STD, Model, Normalise
from quadrat.models.look import Frame, Look, WholePicture
from quadrat.models.misses import Misses
from quadrat.ops.match import gather_rows
from quadrat.ops.principal import principal
from quadrat.structures import Batch, Detections, Schema

SMALLEST_TORSO = 0.05
"""A torso is taken for at least this share of the frame's shorter side: a part without extent shows nothing."""


class JointHead(nn.Module):
    """What a network sees in a part, as numbers for each of K joints: (B, 3, H, W), (B, R, 4) -> (B, R, K, numbers)."""

    def __init__(self, look: Look, joints: int, numbers: int) -> None:
        super().__init__()
        self.look, self.joints = look, joints
        self.out = nn.Linear(look.out_features, joints * numbers)
        nn.init.normal_(self.out.weight, std=0.001)  # begins at the middle of the part
        nn.init.zeros_(self.out.bias)

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self.out(self.look(images, boxes)).float().view(*boxes.shape[:2], self.joints, -1)


class Blind(nn.Module):
    """The like without eyes: the same numbers for every part, which become the mean pose of the training set."""

    def __init__(self, joints: int, numbers: int) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.zeros(joints, numbers))

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        return self.out.expand(*boxes.shape[:2], -1, -1)


class Sides(NamedTuple):
    """Sides (B,) in pixels of the squares that a further stage sees."""

    found: Tensor
    true: Tensor


class DeepPose(Model):
    """``stages`` find K joints one after another; their terms are ``joints``, ``joints_2``, ...

    Coordinates are shares of the ``frame`` from its middle. A further stage sees squares of ``context`` torso diameters (left
    shoulder to right hip: ``torso``, two numbers of joints) round ``parts`` random labelled joints of each person in training,
    and round every joint otherwise. In training a share ``simulate`` of the places that it starts from is made up, in the paper
    all: the truth, off by what the stage before was measured to be off (`Misses`); the others are as that stage found them. So
    stages can be trained at once, or one by one (loss.weights, loss/weighting=scheduled). ``use``: only so many stages in
    evaluation. Raises ValueError for data with another number of joints.
    """

    adds = ("keypoints",)

    def __init__(
        self,
        stages: Sequence[nn.Module],
        joint_loss: JointLoss,
        joints: int,
        torso: tuple[int, int] | None,
        *,
        frame: Frame | None = None,
        context: float = 2.0,
        parts: int = 2,
        simulate: float = 1.0,
        use: int | None = None,
        label: int = 1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if len(stages) > 1 and torso is None:
            raise ValueError("the parts of a cascade are measured in torsos: give model.torso=[<joint>,<joint>]")
        if len(stages) > 1 and not 1 <= parts <= joints:
            raise ValueError(f"model.parts={parts}: a person has 1..{joints} joints to look at again")
        if not 0 <= simulate <= 1:
            raise ValueError(f"model.simulate={simulate} is a share between 0 and 1")
        if use is not None and not 1 <= use <= len(stages):
            raise ValueError(f"model.use={use}: there are {len(stages)} stages")
        self.normalise, self.stages = Normalise(mean, std), nn.ModuleList(stages)
        # what a loss learns is its stage's own
        self.joint_losses = nn.ModuleList(copy.deepcopy(joint_loss) for _ in stages)
        self.frame = frame or WholePicture()
        self.misses = nn.ModuleList(Misses(joints) for _ in stages[1:])
        self.joints, self.torso, self.context, self.parts = joints, torso, context, parts
        self.simulate = simulate
        self.use, self.label = use or len(stages), label
        later = range(1, len(stages))
        self.staged = tuple(f"{part}.{number}" for number in later for part in ("stages", "joint_losses"))
        self.staged += tuple(f"misses.{number - 1}" for number in later)
        self.loss_names = ("joints", *(f"joints_{number}" for number in range(2, len(stages) + 1)))

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """``images`` normalised (B, 3, H, W), ``frames`` (B, 4), and what the first stage gives, ``raw`` (B, K, numbers)."""
        images, frames = self.normalise(batch.images, batch.sizes), self.frame(batch, posed(batch))
        return {"images": images, "frames": frames, "raw": self.stages[0](images, frames[:, None])[:, 0]}

    def loss(self, features: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """``joints`` and its likes: the sum over a person's labelled joints, the mean over the persons that have some."""
        truth, labelled = self.truth(batch)
        frames = features["frames"]
        terms = self.joint_losses[0](features["raw"], _shares(truth, frames), labelled)
        losses = {"joints": terms.sum() / labelled.any(1).sum().clamp(min=1)}
        found, known = self._first(features["raw"], frames).detach(), labelled
        for number in range(1, len(self.stages)):
            sides = self._sides(found, truth, labelled, frames)
            losses[f"joints_{number + 1}"], found, known = self._refining_loss(
                number, features["images"], found, truth, known, sides
            )
        return losses

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The joints (B, K, 2) of each picture's largest person with labelled ones, and which are labelled (B, K)."""
        if batch.keypoints is None:
            raise ValueError(
                "the data has no joints to learn from: data=lsp, data=coco_persons, data=shapes_persons, or keypoint annotations"
            )
        if batch.keypoints.shape[2] != self.joints:
            raise ValueError(f"the model has {self.joints} joints, the data {batch.keypoints.shape[2]}")
        index, there = principal(batch.boxes, posed(batch))
        own = gather_rows(batch.keypoints.flatten(2), index[:, None]).view(len(batch), self.joints, 3)
        return own[..., :2], (own[..., 2] > 0) & there[:, None]

    def _sides(self, found: Tensor, truth: Tensor, labelled: Tensor, frames: Tensor) -> Sides:
        """What a further stage sees of each person, by the torso as it was found and by the true one, where it is labelled."""
        assert self.torso is not None
        found_side = self.context * self._diameter(found, frames)
        both = labelled[:, self.torso[0]] & labelled[:, self.torso[1]]
        return Sides(found_side, torch.where(both, self.context * self._diameter(truth, frames), found_side))

    def _refining_loss(
        self, number: int, images: Tensor, found: Tensor, truth: Tensor, known: Tensor, sides: Sides
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The term of a further stage, the joints (B, K, 2) as they are known behind it, and for which (B, K) it has looked.

        Only ``known`` joints (B, K) are labelled and were looked at by the stage before.
        """
        misses: Any = self.misses[number - 1]
        if self.training:
            misses.see((found - truth) * (self.context / sides.true[:, None, None]), known)
        joint = (torch.rand_like(truth[..., 0]) + known).topk(self.parts, dim=1).indices  # (B, P): known ones first
        wanted = gather_rows(truth, joint)
        made_up = torch.rand_like(wanted[..., 0]) < self.simulate
        simulated = wanted + misses.draw(joint) * (sides.true / self.context)[:, None, None]
        start = torch.where(made_up[..., None], simulated, gather_rows(found, joint))
        side = torch.where(made_up, sides.true[:, None], sides.found[:, None])
        raw = self._look_again(number, images, start, joint, side)
        counts = known.gather(1, joint)
        terms = self.joint_losses[number](raw, (wanted - start) / side[..., None], counts)
        loss = terms.sum() / counts.sum().clamp(min=1) * self.joints  # as if every joint had been looked at
        after = start + self._moves(number, raw).detach() * side[..., None]
        looked = torch.zeros_like(known).scatter(1, joint, counts)
        return loss, found.scatter(1, joint[..., None].expand(-1, -1, 2), after), looked

    def _look_again(self, number: int, images: Tensor, middles: Tensor, joint: Tensor, sides: Tensor) -> Tensor:
        """What a stage gives for joints (B, P), each seen in a square round its middle (B, P, 2) of a side (B, P)."""
        half = sides[..., None] / 2
        raw = self.stages[number](images, torch.cat([middles - half, middles + half], dim=-1))  # (B, P, K, numbers)
        return raw.gather(2, joint[..., None, None].expand(-1, -1, 1, raw.shape[-1]))[:, :, 0]

    def _diameter(self, joints: Tensor, frames: Tensor) -> Tensor:
        """Torso diameters (B,) in pixels of joints (B, K, 2)."""
        assert self.torso is not None
        length = (joints[:, self.torso[0]] - joints[:, self.torso[1]]).norm(dim=-1)
        return torch.maximum(length, SMALLEST_TORSO * (frames[:, 2:] - frames[:, :2]).amin(-1))

    def _first(self, raw: Tensor, frames: Tensor) -> Tensor:
        """Joints (B, K, 2) in pixels of what the first stage gives (B, K, numbers) in frames (B, 4)."""
        middle, size = _middle_and_size(frames)
        return middle + self._moves(0, raw) * size

    def _moves(self, number: int, raw: Tensor) -> Tensor:
        """How far from the middle (..., 2) a stage says a joint is, in shares of what it sees."""
        joint_loss: Any = self.joint_losses[number]
        return joint_loss.place(raw).float()

    def predict(self, features: dict[str, Tensor], batch: Batch) -> list[Detections]:
        """One person a picture: its joints, and the smallest box round them, with the mean confidence."""
        raw, frames = features["raw"], features["frames"]
        joints = self._first(raw, frames)
        everyone = torch.arange(self.joints, device=joints.device).expand(len(batch), -1)
        for number in range(1, self.use):
            sides = self.context * self._diameter(joints, frames)[:, None].expand(-1, self.joints)
            raw = self._look_again(number, features["images"], joints, everyone, sides)
            joints = joints + self._moves(number, raw) * sides[..., None]
        last: Any = self.joint_losses[self.use - 1]
        sure = last.confidence(raw).float()
        labels = self._labels(batch)
        return [_person(joints[i], sure[i], labels[i], target.size) for i, target in enumerate(batch.targets)]

    def _labels(self, batch: Batch) -> Tensor:
        """The classes (B,) of those that were given: which it is, is not asked for."""
        index, there = principal(batch.boxes, posed(batch))
        return torch.where(there, gather_rows(batch.labels, index[:, None])[:, 0], self.label)

    def shared(self) -> Sequence[nn.Module]:
        """Stages share nothing; a single one is all its term's own."""
        return (*self.stages,) if len(self.stages) == 1 else ()


def posed(batch: Batch) -> Tensor:
    """Which objects (B, M) have joints to be found: all that are not ignored, where none has any labelled."""
    counts = batch.valid & ~batch.ignore
    if batch.keypoints is None:
        return counts
    with_joints = counts & (batch.keypoints[..., 2] > 0).any(-1)
    return torch.where(with_joints.any(1, keepdim=True), with_joints, counts)


def _person(joints: Tensor, sure: Tensor, label: Tensor, size: tuple[int, int]) -> Detections:
    """Joints (K, 2) of which each is so ``sure`` (K,), and the box round them inside a picture of ``size`` (H, W)."""
    limit = joints.new_tensor([size[1], size[0]])
    low = torch.minimum(joints.amin(0).clamp(min=0), limit - 1)
    high = torch.minimum(torch.maximum(joints.amax(0), low + 1), limit)
    keypoints = torch.cat([joints, sure[:, None]], dim=-1)
    return Detections(torch.cat([low, high])[None], sure.mean()[None], label[None], size, keypoints=keypoints[None])


def _shares(points: Tensor, frames: Tensor) -> Tensor:
    """Points (B, K, 2) as shares of frames (B, 4) from their middles."""
    middle, size = _middle_and_size(frames)
    return (points - middle) / size


def _middle_and_size(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, 1, 2), of frames (B, 4)."""
    low, high = frames[:, None, :2], frames[:, None, 2:]
    return (low + high) / 2, high - low


def assemble(
    schema: Schema,
    backbone: Backbone,
    vector: Callable[..., Vector],
    joint_loss: JointLoss,
    *,
    sizes: Sequence[Sequence[int]] = ((220, 220),),
    torso: Sequence[int] | None = None,
    frame: Frame | None = None,
    context: float = 2.0,
    parts: int = 2,
    simulate: float = 1.0,
    use: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> DeepPose:
    """A stage for each of ``sizes``, all of the same architecture with weights of their own, for the joints of a data set."""
    if not sizes or not all(isinstance(size, Sequence) and len(size) == 2 for size in sizes):
        raise ValueError(f"model.sizes={sizes}: give a height and a width for each stage, [[192,192],[96,96]]")
    stages = []
    for size in sizes:
        own = copy.deepcopy(backbone)
        stages.append(JointHead(Look(own, vector(own), size), _count(schema), joint_loss.numbers))
    return DeepPose(
        stages,
        joint_loss,
        len(schema.joints),
        _torso(schema, torso),
        frame=frame,
        context=context,
        parts=parts,
        simulate=simulate,
        use=use,
        label=_usual_label(schema),
        mean=mean,
        std=std,
    )


def mean_pose(schema: Schema, joint_loss: JointLoss, *, frame: Frame | None = None) -> DeepPose:
    """The baseline that sees nothing: every person has the mean pose of the training set."""
    return DeepPose(
        [Blind(_count(schema), joint_loss.numbers)],
        joint_loss,
        len(schema.joints),
        None,
        frame=frame,
        label=_usual_label(schema),
    )


def _count(schema: Schema) -> int:
    if not schema.joints:
        raise ValueError(
            f"the data names no joints (classes {list(schema.classes)}): data=lsp, data=coco_persons or data=shapes_persons, "
            f"or data.source.annotations=<a file of keypoints>"
        )
    return len(schema.joints)


def _torso(schema: Schema, given: Sequence[int] | None) -> tuple[int, int] | None:
    """The ends of a torso's diameter: those given, or left shoulder and right hip by their names."""
    if given is not None:
        first, second = given
        if not (0 <= first < len(schema.joints) and 0 <= second < len(schema.joints)):
            raise ValueError(f"model.torso={list(given)}: joints are 0..{len(schema.joints) - 1}")
        return first, second
    shoulder, hip = schema.joint("left shoulder"), schema.joint("right hip")
    return None if shoulder is None or hip is None else (shoulder, hip)


def _usual_label(schema: Schema) -> int:
    """The label of the class whose joints these are."""
    return schema.classes.index("person") + 1 if "person" in schema.classes else 1
