"""Scores of joints: by hand on one figure, OKS-AP against pycocotools, on several ranks."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from quadrat.data.coco import COCO as CocoFolder
from quadrat.metrics.limbs import joint_kind, limbs
from quadrat.metrics.pose import FRACTIONS, PoseScores
from quadrat.structures import Detections, Schema, Targets

FIGURE = {
    **{"right ankle": (30, 110), "right knee": (30, 90), "right hip": (30, 60)},
    **{"left hip": (70, 60), "left knee": (70, 90), "left ankle": (70, 110)},
    **{"right wrist": (40, 52), "right elbow": (40, 40), "right shoulder": (40, 20)},
    **{"left shoulder": (60, 20), "left elbow": (60, 40), "left wrist": (60, 52)},
    **{"neck": (50, 20), "head top": (50, 10)},
}
"""The torso's diameter is 50, the head's length 10, that of the arms 20 and 12, of the legs 30 and 20, of the torso 40."""

LSP = Schema(("person", "ball"), joints=tuple(FIGURE))
SIZE = (120, 100)
BOX = (20, 10, 60, 60)  # the longer side is 50, a fifth is 10
COCO_JOINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee"),
    *("left_ankle", "right_ankle"),
)


def places(moves: dict | None = None, third: float = 2) -> torch.Tensor:
    """The figure (1, 14, 3) with some joints moved by (x, y)."""
    moved = [(np.array(place) + (moves or {}).get(name, (0, 0))).tolist() for name, place in FIGURE.items()]
    return torch.tensor([[*place, third] for place in moved], dtype=torch.float32)[None]


def truth(hidden: tuple = (), unlabelled: tuple = (), **more) -> Targets:
    joints = places()
    for names, visibility in ((hidden, 1), (unlabelled, 0)):
        for name in names:
            joints[0, LSP.joint(name), 2] = visibility
    return Targets.make([BOX], [1], SIZE, "p", keypoints=joints, **more)


def seen(moves: dict | None = None) -> Detections:
    return Detections(torch.tensor([BOX]).float(), torch.ones(1), torch.ones(1).long(), SIZE, places(moves, 0.9))


def nobody(schema: Schema = LSP) -> Detections:
    none = torch.zeros(0)
    return Detections(none.reshape(0, 4), none, none.long(), SIZE, torch.zeros(0, len(schema.joints), 3))


def measured(*pairs, schema: Schema = LSP) -> dict[str, float]:
    metric = PoseScores(schema)
    for found, target in pairs:
        metric.update([found], [target])
    return metric.compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize(
    "targets",
    [
        [],
        [Targets.make([], [], SIZE, 1, keypoints=torch.zeros(0, 14, 3))],
        [truth(unlabelled=tuple(FIGURE))],
        [truth(ignore=[True])],
    ],
    ids=["no picture", "no object", "nothing labelled", "a crowd"],
)
def test_nothing_to_score_is_zero_with_a_warning(targets: list) -> None:
    metric = PoseScores(LSP)
    metric.update([seen()] * len(targets), targets)
    always = ("pdj", "pcp", "pcp_loose", "pckh", "pck", "oks_ap", "oks_ap50", "oks_ap75")
    with pytest.warns(UserWarning, match=f"nothing labelled in {len(targets)} pictures to measure pdj, pcp"):
        assert metric.compute() == dict.fromkeys(always, 0.0)
    assert "0 persons in" in metric.table()


def test_the_truth_itself_is_perfect() -> None:
    found = measured((seen(), truth()))
    assert found == dict.fromkeys(PoseScores(LSP).names(), 1.0)


def test_nobody_seen_misses_everything() -> None:
    found = measured((nobody(), truth()))
    assert found == dict.fromkeys(PoseScores(LSP).names(), 0.0)


def test_scores_by_hand() -> None:
    """A wrist off by 8, where half the lower arm is 6; the other by 6; a knee by 12, half the lower leg is 10, half the
    upper one 15; the head's top by 6, where half the head is 5. A fifth of the torso is 10, as is a fifth of the box."""
    moves = {"right wrist": (8, 0), "left wrist": (0, 6), "right knee": (0, -12), "head top": (-6, 0)}
    found = measured((seen(moves), truth()))
    assert found["pdj"] == pytest.approx(13 / 14)
    assert (found["pdj/knee"], found["pdj/wrist"], found["pdj/head top"]) == (0.5, 1, 1)
    assert found["pckh"] == pytest.approx(10 / 14)
    assert found["pck"] == pytest.approx(13 / 14)
    assert {name: value for name, value in found.items() if name.startswith("pcp")} == {
        **{"pcp": 0.75, "pcp_loose": 1, "pcp/upper arm": 1, "pcp/lower arm": 0.5, "pcp/upper leg": 1},
        **{"pcp/lower leg": 0.5, "pcp/torso": 1, "pcp/head": 0},
    }


def test_loose_pcp_takes_the_mean_of_both_ends() -> None:
    """Of 20 pixels of upper arm, half is 10: ends off by 8 and 14 are 11 on average, by 4 and 14 nine."""
    found = [measured((seen({"right shoulder": (x, 0), "right elbow": (14, 0)}), truth())) for x in (8, 4)]
    assert [f["pcp/upper arm"] for f in found] == [0.5, 0.5]
    # the lower arm, off by 14 and 0, is 7 on average, and half of it 6
    assert [f["pcp_loose"] for f in found] == pytest.approx([(0.5 + 0.5 + 2) / 4, (1 + 0.5 + 2) / 4])


def test_the_torsos_lower_end_is_between_the_hips() -> None:
    both_apart = {"right hip": (-30, 0), "left hip": (30, 0)}
    assert measured((seen(both_apart), truth()))["pcp/torso"] == 1
    assert measured((seen({"right hip": (42, 0)}), truth()))["pcp/torso"] == 0  # half of 42 is more than half of 40


def test_the_curve_of_pdj() -> None:
    metric = PoseScores(LSP)
    metric.update([seen({"neck": (0, 10)})], [truth()])
    assert metric.compute()["pck"] == 1
    curves = metric.curves()
    assert curves["neck"].tolist() == [float(fraction >= 0.2) for fraction in FRACTIONS]
    assert curves["mean"].tolist() == pytest.approx([13 / 14 + (fraction >= 0.2) / 14 for fraction in FRACTIONS])
    assert set(curves) == {*metric.kinds, "mean"}


def test_unlabelled_joints_count_for_nothing_and_hidden_ones_do() -> None:
    moves = {"right wrist": (500, 500), "left wrist": (500, 500)}
    found = measured((seen(moves), truth(hidden=("left wrist",), unlabelled=("right wrist",))))
    assert found["pdj/wrist"] == 0
    assert found["pdj"] == pytest.approx(12 / 13)
    assert found["pcp/lower arm"] == 0
    away = measured((seen(moves), truth(unlabelled=("left wrist", "right wrist"))))
    assert (away["pdj"], away["pcp"]) == (1, 1)
    assert "pdj/wrist" not in away
    assert "pcp/lower arm" not in away


def test_means_are_over_joints_and_not_over_what_was_labelled() -> None:
    """Three pictures; the head's top, labelled in one of them alone and missed there, weighs a fourteenth."""
    targets = [truth(), *[truth(unlabelled=("head top",))] * 2]
    found = measured(*[(seen({"head top": (40, 0)}), target) for target in targets])
    assert found["pdj"] == pytest.approx(13 / 14)
    assert found["pck"] == pytest.approx(13 / 14)


def test_a_person_that_does_not_show_the_torso_is_in_pcp_alone() -> None:
    far = seen(dict.fromkeys(FIGURE, (300, 300)))
    metric = PoseScores(LSP)
    metric.update([seen(), far], [truth(), truth(unlabelled=("right hip",))])
    found = metric.compute()
    assert found["pdj"] == 1
    assert found["pcp/lower arm"] == 0.5
    assert metric.table().splitlines()[-1] == ("2 persons in 2 pictures; 1 do not show their torso and are not in PDJ")


def test_the_person_is_the_largest_that_counts_and_is_labelled() -> None:
    """A larger one without joints and a larger crowd do not count."""
    joints = torch.cat([places(), torch.zeros(1, 14, 3), places(dict.fromkeys(FIGURE, (9, 300))), places()])
    joints[3, :, :2] += 60
    boxes = [BOX, (0, 0, 90, 90), (0, 0, 100, 100), (0, 0, 10, 10)]
    target = Targets.make(boxes, [1] * 4, SIZE, "p", ignore=[False, False, True, False], keypoints=joints)
    assert measured((seen(), target))["pdj"] == 1


def test_results_in_another_frame_are_brought_to_the_original_one() -> None:
    """The original is twice as high: the lower arms are 24 long, so that a wrist off by 8 beside is right."""
    target = truth(original_size=(240, 100))
    found = seen({"right wrist": (8, 0)})
    assert measured((found, target))["pcp/lower arm"] == 1
    assert measured((found.rescaled((60, 50)), target)) == measured((found, target))
    assert measured((found, truth()))["pcp/lower arm"] == 0.5


def test_limbs_and_lengths_of_other_joints() -> None:
    """COCO's have no neck, so neither head nor torso; an animal's give what its own skeleton names."""
    person = Schema(("person",), joints=COCO_JOINTS)
    assert PoseScores(person).names()[:8] == (
        *("pdj", "pcp", "pcp_loose", "pck", "oks_ap", "oks_ap50", "oks_ap75"),
        "pdj/nose",
    )
    assert {limb.kind for limb in limbs(person)} == {"upper arm", "lower arm", "upper leg", "lower leg"}
    fish = Schema(("fish",), joints=("mouth", "L_fin", "tail"), limbs=((0, 1), (0, 2)))
    with pytest.warns(UserWarning, match=r"no oks_ap: .*\['mouth', 'fin', 'tail'\]; task.metric.sigmas="):
        names = PoseScores(fish).names()
    assert names == ("pcp", "pcp_loose", "pck", "pcp/mouth - L_fin", "pcp/mouth - tail")


def test_scores_of_an_animal_by_hand() -> None:
    fish = Schema(("fish",), joints=("mouth", "fin", "tail"), limbs=((0, 1), (0, 2)))
    joints = torch.tensor([[[10.0, 10, 2], [20, 10, 2], [50, 10, 2]]])
    target = Targets.make([(10, 5, 50, 15)], [1], SIZE, "p", keypoints=joints)
    found = replace(nobody(fish), boxes=target.boxes, scores=torch.ones(1), labels=torch.ones(1).long())
    found = replace(found, keypoints=joints + torch.tensor([[[0.0, 0, 0], [6, 0, 0], [9, 0, 0]]]))
    metric = PoseScores(fish, sigmas={"mouth": 0.1, "fin": 0.1, "tail": 0.1})
    metric.update([found], [target])
    numbers = metric.compute()
    assert (numbers["pcp"], numbers["pcp_loose"], numbers["pcp/mouth - fin"]) == (0.5, 1, 0)
    assert numbers["pck"] == pytest.approx(2 / 3)  # a fifth of 40 is 8
    assert "mean" in metric.table()
    assert metric.curves() == {}
    # area 400: exp(-36 / (2 * 400 * 0.04)) and exp(-81 / 32), beside 1
    similarity = (1 + np.exp(-36 / 32) + np.exp(-81 / 32)) / 3
    assert 0.45 < similarity < 0.5
    assert numbers["oks_ap50"] == 0


def test_sigmas_of_joints_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task.metric.sigmas names \['paw'\], the kinds of joints are \['ankle'"):
        PoseScores(LSP, sigmas={"paw": 0.1})


@pytest.mark.parametrize(
    ("name", "kind"), [("L-Shoulder", "shoulder"), ("right_ankle", "ankle"), ("head top", "head top")]
)
def test_kind_of_a_joint(name: str, kind: str) -> None:
    assert joint_kind(name) == kind


@pytest.mark.parametrize(
    ("found", "target", "message"),
    [
        (replace(seen(), keypoints=None), truth(), "image p: the result has no joints"),
        (replace(seen(), keypoints=torch.zeros(1, 17, 3)), truth(), "17 joints, the data has 14"),
        (seen({"neck": (float("nan"), 0)}), truth(), "image p: the result has joints that are not finite"),
        (seen(), Targets.make([BOX], [1], SIZE, "p"), "image p has no joints to compare with"),
    ],
    ids=["no joints", "other joints", "not finite", "no truth"],
)
def test_what_cannot_be_compared_is_refused(found: Detections, target: Targets, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoseScores(LSP).update([found], [target])


def test_table() -> None:
    metric = PoseScores(LSP)
    metric.update([seen({"right wrist": (8, 0)}), nobody()], [truth(), truth(unlabelled=tuple(FIGURE))])
    lines = metric.table().splitlines()
    assert lines[0].split() == ["limb", "limbs", "PCP", "loose"]
    assert lines[2].split() == ["lower", "arm", "2", "0.500", "1.000"]
    assert lines[7].split() == ["mean", "0.875", "1.000"]
    assert lines[9].split() == ["joint", "joints", "PDJ@0.2", "PCK@0.2"]
    assert lines[10].split() == ["ankle", "2", "1.000", "1.000"]
    assert lines[-1].startswith("1 persons in 2 pictures; 0 do not")


def by_definition(results: list[Detections], targets: list[Targets], schema: Schema) -> dict[str, float]:
    """PDJ, PCKh and strict PCP in plain loops over pictures with one person each."""
    place = {name: schema.joints.index(name.replace(" ", "_")) for name in FIGURE}
    hits: dict[str, list[float]] = {}
    for result, target in zip(results, targets, strict=True):
        at, true = result.keypoints[0].double(), target.keypoints[0].double()
        labelled = {name: bool(true[number, 2] > 0) for name, number in place.items()}
        off = {name: float((at - true)[number, :2].norm()) for name, number in place.items()}

        def length(first: str, second: str, true: torch.Tensor = true) -> float:
            return float((true[place[first]] - true[place[second]])[:2].norm())

        for kind, ends, share in (("pdj", ("left shoulder", "right hip"), 0.2), ("pckh", ("neck", "head top"), 0.5)):
            if labelled[ends[0]] and labelled[ends[1]]:
                for name in FIGURE:
                    if labelled[name]:
                        hits.setdefault(f"{kind} {name}", []).append(off[name] <= share * length(*ends))
        for kind, joints in (("upper leg", ("hip", "knee")), ("lower arm", ("elbow", "wrist"))):
            for side in ("left", "right"):
                first, second = (f"{side} {joint}" for joint in joints)
                if labelled[first] and labelled[second]:
                    right = max(off[first], off[second]) <= 0.5 * length(first, second)
                    hits.setdefault(f"pcp/{kind}", []).append(right)
    means = {kind: float(np.mean([np.mean(hits[f"{kind} {name}"]) for name in FIGURE])) for kind in ("pdj", "pckh")}
    return means | {kind: float(np.mean(hits[kind])) for kind in ("pcp/upper leg", "pcp/lower arm")}


def test_real_persons_equal_the_definitions(shared: Path) -> None:
    annotations = "annotations/person_keypoints_{split}.json"
    source = CocoFolder(shared / "data" / "lspet_1200", "val", images="images", annotations=annotations)
    targets = [source.truth(index) for index in range(len(source))]
    draws = torch.Generator().manual_seed(0)
    results = []
    for target in targets:
        joints = target.keypoints.clone()
        joints[..., :2] += torch.randn(1, 14, 2, generator=draws) * 6
        results.append(Detections(target.boxes, torch.ones(1), target.labels, target.size, joints))
    found = measured(*zip(results, targets, strict=True), schema=source.schema)
    expected = by_definition(results, targets, source.schema)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert 0.3 < expected["pdj"] < 0.9


# --- OKS-AP ---


def random_set(seed: int, pictures: int = 12) -> tuple[list[Detections], list[Targets], Schema]:
    """Several persons a picture, some unlabelled, some crowds; results near them, missing, doubled and in the way."""
    rng = np.random.default_rng(seed)
    schema = Schema(("person", "player"), joints=COCO_JOINTS)
    results, targets = [], []
    for image in range(pictures):
        count = int(rng.integers(0, 5))
        corners = rng.uniform(0, 100, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 100, (count, 2))], axis=1)
        joints = corners[:, None] + rng.uniform(0, 1, (count, 17, 2)) * (boxes[:, 2:] - corners)[:, None]
        visible = rng.integers(0, 3, (count, 17)) * (rng.random((count, 1)) < 0.8)
        truth = np.concatenate([joints, visible[..., None]], axis=2).astype(np.float32)
        truth[visible == 0] = 0
        labels = rng.integers(1, 3, count)
        sides = boxes[:, 2:] - boxes[:, :2]
        targets.append(
            Targets.make(
                boxes, labels, (200, 200), image, ignore=rng.random(count) < 0.2, areas=0.6 * sides.prod(axis=1),
                keypoints=torch.from_numpy(truth),
            )
        )  # fmt: skip
        near = rng.permutation(np.repeat(np.arange(count), 8))[: int(rng.integers(0, 8 * count + 1))]
        poses = joints[near] + rng.normal(0, 1, (len(near), 17, 2)) * rng.uniform(0, 12, (len(near), 1, 1))
        poses = np.concatenate([poses, rng.uniform(0, 200, (2, 17, 2))])
        results.append(
            Detections(
                torch.zeros(len(poses), 4),
                torch.from_numpy(rng.integers(0, 50, len(poses)) / 50).float(),
                torch.from_numpy(np.concatenate([labels[near], [1, 2]])).long(),
                (200, 200),
                torch.from_numpy(np.concatenate([poses, np.ones((len(poses), 17, 1))], axis=2)).float(),
            )
        )
    return results, targets, schema


def by_pycocotools(results: list[Detections], targets: list[Targets], schema: Schema) -> dict[str, float]:
    annotations = []
    for target in targets:
        for row in range(len(target)):
            x1, y1, x2, y2 = target.boxes[row].double().tolist()
            joints = target.keypoints[row].double().numpy() - (0.5, 0.5, 0)
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": target.image_id, "bbox": [x1, y1, x2 - x1, y2 - y1]},
                    **{"category_id": int(target.labels[row]), "area": float(target.areas[row])},
                    **{"iscrowd": int(target.ignore[row]), "keypoints": joints.flatten().tolist()},
                    "num_keypoints": int((joints[:, 2] > 0).sum()),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": target.image_id} for target in targets],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(schema.classes, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        entries = [e for r, t in zip(results, targets, strict=True) for e in r.to_coco(t.image_id, schema.category_ids)]
        evaluation = COCOeval(coco, coco.loadRes(entries), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("oks_ap", "oks_ap50", "oks_ap75"), evaluation.stats[:3].tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_oks_ap_equals_pycocotools(seed: int) -> None:
    results, targets, schema = random_set(seed)
    expected = by_pycocotools(results, targets, schema)
    metric = PoseScores(schema)
    for i in range(0, len(targets), 5):
        metric.update(results[i : i + 5], targets[i : i + 5])
    found = metric.compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert 0.02 < expected["oks_ap"] < expected["oks_ap50"] < 1


def test_oks_ap_is_measured_in_the_original_frame() -> None:
    """Twice as large is as good; results in a frame of half the size are the same results."""
    results, targets, schema = random_set(0)
    usual = measured(*zip(results, targets, strict=True), schema=schema)
    larger = [replace(target, original_size=(400, 400)) for target in targets]
    smaller = [result.rescaled((100, 100)) for result in results]
    found = measured(*zip(smaller, larger, strict=True), schema=schema)
    assert {name: found[name] for name in usual if name.startswith("oks")} == pytest.approx(
        {name: usual[name] for name in usual if name.startswith("oks")}, abs=1e-6
    )


def test_two_ranks_are_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reduced are sums, and rows whose pictures have numbers of their own on every rank; the third had none."""
    results, targets, schema = random_set(1)
    ranks = [PoseScores(schema) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 3)
        for number, rank in enumerate(ranks[:2]):
            patch.setattr(torch.distributed, "get_rank", lambda number=number: number)
            for i in range(number, len(targets), 4):
                rank.update(results[i : i + 3 : 2], targets[i : i + 3 : 2])
    together = PoseScores(schema)
    for name, reduce in together._reductions.items():
        states = [getattr(rank, name) for rank in ranks]
        if isinstance(states[0], list):
            setattr(together, name, reduce([torch.cat(state) if state else torch.zeros(0) for state in states]))
        else:
            setattr(together, name, reduce(torch.stack(states)))
    together._update_count = 1
    assert together.compute() == pytest.approx(measured(*zip(results, targets, strict=True), schema=schema))
