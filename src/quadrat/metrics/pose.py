"""How near the joints of a person are to their truth: PDJ, PCP, PCKh, PCK and COCO's OKS-AP.

F: distances as shares of a length of the body, K: joints, L: limbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn

from quadrat.metrics.gathered import joined, numbered
from quadrat.metrics.limbs import ARMS_AND_LEGS, HEAD, TORSO, Limb, joint_kinds, limbs, pair
from quadrat.metrics.oks import BEFORE_JOINTS, BEFORE_POSE, oks_numbers, result_rows, sigmas_of, truth_rows
from quadrat.ops.principal import principal
from quadrat.structures import Detections, Schema, Targets

FRACTIONS = np.arange(51) / 100
"""Of the torso's diameter: the curve of PDJ from 0 to a half."""

PDJ_AT = 20  # a fifth, among `FRACTIONS`
PCKH_AT, PCK_AT, PCP_AT = 0.5, 0.2, 0.5


class PoseScores(Metric):
    """How many joints and limbs of a picture's person are right, each number 0..1; what is unlabelled counts for nothing.

    The first row of a result is compared with the principal object among those that have a labelled joint and are not
    ignored, so the model is expected to be given the person, or to put it first; no row at all misses every joint.

    ``pdj``: joints within a fifth of the torso's diameter, left shoulder to right hip, of persons that show both (DeepPose,
    section 4); ``pckh``: within half the head's length, neck to head top (Andriluka et al., CVPR 2014); ``pck``: within a
    fifth of the longer side of the person's box as annotated (after Yang and Ramanan, PAMI 2013, whose box is that of the
    joints). Each is the mean over joints of the joint's own share, so that a joint which is seldom labelled weighs as much as
    the others; ``pdj/<kind>`` counts left and right together. ``pcp``: limbs both of whose ends are within half the limb's
    length, the strict reading, which is DeepPose's; ``pcp_loose``: limbs whose two ends are so near on average (both in
    Pishchulin et al., CVPR 2012). They are means over the kinds of limbs of arms and legs, where there are such,
    ``pcp/<kind>`` is one of any kind. ``oks_ap``, ``oks_ap50``, ``oks_ap75``: COCO's, of all persons in a picture, by label,
    with the annotated areas (a box's own where there is no other); with ``sigmas`` by kind of joint beside the known ones,
    and left out with a warning where one is missing. A number that the joints' names cannot give is none of `names`. Every
    rank sees the same result.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = True

    pdj: Tensor
    pckh: Tensor
    pck: Tensor
    pcp: Tensor
    persons: Tensor
    truths: list[Tensor]
    poses: list[Tensor]

    def __init__(self, schema: Schema, sigmas: Mapping[str, float] | None = None, **options: object) -> None:
        super().__init__(**options)
        self.schema, self.kinds, self.limbs = schema, joint_kinds(schema), limbs(schema)
        self.torso, self.head = pair(schema, TORSO), pair(schema, HEAD)
        self.sigmas = sigmas_of(schema, sigmas or {})
        if self.sigmas is None:
            rank_zero_warn(
                f"no oks_ap: how exactly a joint can be annotated is not known of all of {list(self.kinds)}; "
                f"task.metric.sigmas={{<kind>: <sigma>}} tells it of the others",
                UserWarning,
            )
        joints = len(schema.joints)
        self._sums = {  # a row for each joint or limb: how many were measured, then how many were right
            "pdj": np.zeros((joints, 1 + len(FRACTIONS))),
            "pckh": np.zeros((joints, 2)),
            "pck": np.zeros((joints, 2)),
            "pcp": np.zeros((len(self.limbs), 3)),  # strictly, loosely
            "persons": np.zeros(3),  # pictures, persons, those that show their torso
        }
        for name, zeros in self._sums.items():
            self.add_state(name, default=torch.from_numpy(zeros), dist_reduce_fx="sum")
        self.add_state("truths", default=[], dist_reduce_fx="cat")
        self.add_state("poses", default=[], dist_reduce_fx="cat")

    def names(self) -> tuple[str, ...]:
        """The numbers that ``compute`` gives whenever every joint is labelled somewhere."""
        kinds = [f"pdj/{kind}" for kind in self.kinds] if self.torso else []
        return (*self._always(), *kinds, *(f"pcp/{kind}" for kind in dict.fromkeys(limb.kind for limb in self.limbs)))

    def _always(self) -> tuple[str, ...]:
        given = {"pdj": self.torso, "pcp": self.limbs, "pcp_loose": self.limbs, "pckh": self.head, "pck": True}
        oks = () if self.sigmas is None else ("oks_ap", "oks_ap50", "oks_ap75")
        return (*(name for name, there in given.items() if there), *oks)

    def update(self, results: Sequence[Detections], targets: Sequence[Targets]) -> None:
        """Add pictures: the poses found in each, in any frame of it, and its truth; compared in the original frame."""
        sums = {name: np.zeros_like(value) for name, value in self._sums.items()}
        truths, poses = [], []
        for image, (found, target) in enumerate(zip(results, targets, strict=True)):
            truth, seen = _true_joints(target), _found_joints(found, target, len(self.schema.joints))
            self._measure(seen, truth, target, sums)
            truths.append(truth_rows(target, truth, image))
            poses.append(result_rows(found, seen, image))
        if truths and self.sigmas is not None:  # OKS-AP ranks the poses of all pictures by their scores
            self.truths.append(numbered(torch.cat(truths), self.persons[0]))
            self.poses.append(numbered(torch.cat(poses), self.persons[0]))
        for name, value in sums.items():
            state = getattr(self, name)
            setattr(self, name, state + torch.from_numpy(value).to(state.device))

    def _measure(self, seen: Tensor, truth: Tensor, target: Targets, sums: dict[str, np.ndarray]) -> None:
        """Add to the sums what the person of one picture shows: of poses (N, K, 3) the first, of true ones (M, K, 3) one."""
        sums["persons"][0] += 1
        person = _person(truth, target)
        if person is None:
            return
        places, labelled = truth[person, :, :2].double().numpy(), truth[person, :, 2].numpy() > 0
        found = seen[0, :, :2].double().numpy() if len(seen) else np.full_like(places, np.inf)
        errors = np.hypot(*(found - places).T)
        torso, head = (_length(ends, places, labelled) for ends in (self.torso, self.head))
        x1, y1, x2, y2 = target.boxes_at(target.original_size)[person].tolist()
        sums["persons"] += (0, 1, torso is not None)
        sums["pdj"] += within(errors, labelled, torso, FRACTIONS)
        sums["pckh"] += within(errors, labelled, head, np.array([PCKH_AT]))
        sums["pck"] += within(errors, labelled, max(x2 - x1, y2 - y1), np.array([PCK_AT]))
        for row, limb in zip(sums["pcp"], self.limbs, strict=True):
            row += right_limb(limb, places, labelled, found)

    def compute(self) -> dict[str, float]:
        """The named numbers; warns of each that nothing could be measured for, and gives 0 in its place."""
        self._sums = {name: getattr(self, name).cpu().numpy() for name in self._sums}
        found = self._joint_numbers() | self._limb_numbers() | self._oks_numbers()
        missing = [name for name in self._always() if name not in found]
        if missing:
            rank_zero_warn(
                f"nothing labelled in {int(self._sums['persons'][0])} pictures to measure {', '.join(missing)} by: given as 0",
                UserWarning,
            )
        return {name: found.get(name, 0.0) for name in (*self._always(), *found)}

    def curves(self) -> dict[str, np.ndarray]:
        """PDJ (F,) at each of `FRACTIONS`, by kind of joint and in the ``mean``, as last computed; of what was measured."""
        counts = self._sums["pdj"]
        curves = {kind: shares(counts[rows].sum(axis=0)[None]) for kind, rows in self.kinds.items()}
        curves["mean"] = shares(counts)
        return {kind: values.mean(axis=0) for kind, values in curves.items() if len(values)}

    def table(self) -> str:
        """One line per kind of limb and of joint, and who was counted; call it on every rank, since it may compute first."""
        return "\n".join(self._lines(self.compute()))

    def _joint_numbers(self) -> dict[str, float]:
        measured = {name: shares(self._sums[name]) for name in ("pckh", "pck")}
        numbers = {name: float(values.mean()) for name, values in measured.items() if len(values)}
        curves = {kind: float(values[PDJ_AT]) for kind, values in self.curves().items()}
        return numbers | {"pdj" if kind == "mean" else f"pdj/{kind}": value for kind, value in curves.items()}

    def _limb_numbers(self) -> dict[str, float]:
        kinds = self._limbs_by_kind()
        if not kinds:
            return {}
        chosen = [kind for kind in kinds if kind in ARMS_AND_LEGS] or list(kinds)
        strict, loose = np.mean([kinds[kind][1:] / kinds[kind][0] for kind in chosen], axis=0).tolist()
        return {"pcp": strict, "pcp_loose": loose} | {f"pcp/{kind}": float(n[1] / n[0]) for kind, n in kinds.items()}

    def _limbs_by_kind(self) -> dict[str, np.ndarray]:
        """Measured, right, loosely right (3,) of each kind that was measured."""
        kinds: dict[str, np.ndarray] = {}
        for limb, counts in zip(self.limbs, self._sums["pcp"], strict=True):
            kinds[limb.kind] = kinds.get(limb.kind, 0) + counts
        return {kind: counts for kind, counts in kinds.items() if counts[0]}

    def _oks_numbers(self) -> dict[str, float]:
        if self.sigmas is None:
            return {}
        values = 3 * len(self.schema.joints)
        truth = joined(self.truths).reshape(-1, BEFORE_JOINTS + values).cpu().double().numpy()
        found = joined(self.poses).reshape(-1, BEFORE_POSE + values).cpu().double().numpy()
        return oks_numbers(truth, found, self.schema.classes, self.sigmas) if len(truth) else {}

    def _lines(self, numbers: Mapping[str, float]) -> list[str]:
        limb_kinds, pck = self._limbs_by_kind(), self._sums["pck"]
        width = max(len(name) for name in ("joint", *limb_kinds, *self.kinds))
        rows = [("limb", "limbs", "PCP", "loose")]
        rows += [(kind, _whole(n[0]), _cell(n[1] / n[0]), _cell(n[2] / n[0])) for kind, n in limb_kinds.items()]
        rows += [("mean", "", _cell(numbers.get("pcp")), _cell(numbers.get("pcp_loose"))), ("",) * 4]
        rows.append(("joint", "joints", "PDJ@0.2", "PCK@0.2"))
        for kind, joints in self.kinds.items():
            labelled, right = pck[joints].sum(axis=0)
            share = right / labelled if labelled else None
            rows.append((kind, _whole(labelled), _cell(numbers.get(f"pdj/{kind}")), _cell(share)))
        rows += [("mean", "", _cell(numbers.get("pdj")), _cell(numbers.get("pck"))), ("",) * 4]
        pictures, persons, torsos = self._sums["persons"].astype(int).tolist()
        return [
            *(f"{name:<{width}} {count:>7} {first:>7} {second:>7}".rstrip() for name, count, first, second in rows),
            f"{persons} persons in {pictures} pictures; {persons - torsos} do not show their torso and are not in PDJ",
        ]


def within(errors: np.ndarray, labelled: np.ndarray, length: float | None, fractions: np.ndarray) -> np.ndarray:
    """Whether each joint is measured, and its error (K,) within each of ``fractions`` (F,) of a length: (K, 1 + F).

    Without a length to measure by, none is.
    """
    if length is None:
        return np.zeros((len(errors), 1 + len(fractions)))
    near = errors[:, None] <= fractions * length
    return np.concatenate([np.ones_like(near[:, :1]), near], axis=1) * labelled[:, None]


def right_limb(limb: Limb, places: np.ndarray, labelled: np.ndarray, seen: np.ndarray) -> tuple[bool, bool, bool]:
    """Of joints (K, 2): is the limb measured, right with both ends, right with the mean of them?"""
    if not labelled[[*limb.start, *limb.end]].all():
        return False, False, False
    ends = np.array([[where[list(joints)].mean(axis=0) for joints in limb[1:]] for where in (places, seen)])
    reach = PCP_AT * np.hypot(*(ends[0, 0] - ends[0, 1]))  # 0 for an arm towards the camera: hardly ever right
    errors = np.hypot(*(ends[0] - ends[1]).T)
    return True, bool((errors <= reach).all()), bool(errors.mean() <= reach)


def shares(counts: np.ndarray) -> np.ndarray:
    """Measured and right (N, 1 + F) as shares of what was measured, of the rows that were."""
    measured = counts[counts[:, 0] > 0]
    return measured[:, 1:] / measured[:, :1]


def _length(ends: tuple[int, int] | None, places: np.ndarray, labelled: np.ndarray) -> float | None:
    """The distance of two joints (K, 2); None unless both are labelled."""
    if ends is None or not labelled[list(ends)].all():
        return None
    return float(np.hypot(*(places[ends[0]] - places[ends[1]])))


def _person(joints: Tensor, target: Targets) -> int | None:
    """The principal object among those that count and have a labelled joint (M, K, 3)."""
    counts = ~target.ignore & (joints[..., 2] > 0).any(dim=1)
    return int(principal(target.boxes, counts)[0]) if counts.any() else None


def _true_joints(target: Targets) -> Tensor:
    """The true joints (M, K, 3) in the original frame."""
    joints = target.keypoints_at(target.original_size)
    if joints is None:
        raise ValueError(f"image {target.image_id} has no joints to compare with; is this the right data?")
    return joints


def _found_joints(found: Detections, target: Targets, count: int) -> Tensor:
    """The joints found (N, K, 3), on the host, in the original frame."""
    where = f"image {target.image_id}: the result has"
    joints = found.cpu().rescaled(target.original_size).keypoints
    if joints is None:
        raise ValueError(f"{where} no joints; choose a model that sees them (model=deeppose)")
    if joints.shape[1] != count:
        raise ValueError(f"{where} {joints.shape[1]} joints, the data has {count}; this model is for other data")
    if not joints.isfinite().all():
        raise ValueError(f"{where} joints that are not finite")
    return joints


def _whole(count: float) -> str:
    return str(int(count))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
