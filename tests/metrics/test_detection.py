"""Average precision of boxes: by hand, against pycocotools, and against a slow evaluation from the definition."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from quadrat.metrics.detection import BoxAP
from quadrat.structures import Detections, Targets

CLASSES = ("cat", "dog", "bird")
COCO_NAMES = (
    *("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
PRESETS = ("coco", "voc07", "voc12")

A, B, C = (10, 10, 50, 50), (60, 10, 90, 50), (10, 60, 50, 90)
FAR = (60, 60, 95, 95)
INSIDE_A = (12, 12, 22, 22)  # its IoU with A is small, but all of it lies in A


def truth(*rows, size=(100, 100), image_id=1, **more):
    """Rows are (box, label) or (box, label, ignore)."""
    boxes, labels = [row[0] for row in rows], [row[1] for row in rows]
    ignore = [len(row) > 2 and row[2] for row in rows]
    return Targets.make(boxes, labels, size, image_id, ignore=ignore, **more)


def found(*rows, size=(100, 100)):
    """Rows are (box, label, score)."""
    return Detections(
        boxes=torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([row[1] for row in rows], dtype=torch.int64),
        scores=torch.tensor([row[2] for row in rows], dtype=torch.float32),
        size=size,
    )


def numbers(preset, detections, targets, classes=CLASSES):
    metric = BoxAP(classes, preset)
    metric.update(detections, targets)
    return metric.compute()


# One image each: (truth, detections, expected ap50 of coco, voc07, voc12).
HAND = {
    "no detections": ([(A, 1)], [], 0, 0, 0),
    "perfect": ([(A, 1), (B, 2)], [(A, 1, 0.9), (B, 2, 0.8)], 1, 1, 1),
    "right first": ([(A, 1)], [(A, 1, 0.9), (FAR, 1, 0.8)], 1, 1, 1),
    "wrong first": ([(A, 1)], [(A, 1, 0.8), (FAR, 1, 0.9)], 1 / 2, 1 / 2, 1 / 2),
    "half found": ([(A, 1), (B, 1)], [(A, 1, 0.9)], 51 / 101, 6 / 11, 1 / 2),
    "wrong class": ([(A, 1)], [(A, 2, 0.9)], 0, 0, 0),
    "mean over classes with truth": ([(A, 1), (B, 2)], [(A, 1, 0.9), (FAR, 3, 0.9)], 1 / 2, 1 / 2, 1 / 2),
    "found twice": (
        [(A, 1), (B, 1)],
        [(A, 1, 0.9), (A, 1, 0.8), (B, 1, 0.7)],
        (51 + 50 * 2 / 3) / 101,
        (6 + 5 * 2 / 3) / 11,
        (1 + 2 / 3) / 2,
    ),
    "on an ignored object": ([(A, 1), (B, 1, True)], [(B, 1, 0.9), (A, 1, 0.8)], 1, 1, 1),
    "ignored object missed": ([(A, 1), (B, 1, True)], [(A, 1, 0.9)], 1, 1, 1),
    "ignored object found twice": ([(A, 1), (B, 1, True)], [(B, 1, 0.9), (B, 1, 0.85), (A, 1, 0.8)], 1, 1, 1),
    "class with ignored truth only": ([(A, 1), (B, 2, True)], [(A, 1, 0.9), (FAR, 2, 0.8)], 1, 1, 1),
    # A crowd swallows what lies inside it; a difficult object wants the usual overlap.
    "inside an ignored object": ([(C, 1), (A, 1, True)], [(INSIDE_A, 1, 0.9), (C, 1, 0.8)], 1, 1 / 2, 1 / 2),
    # Both detections overlap A best, so VOC never offers the second one the other truth, where COCO does.
    "neighbour already taken": (
        [((0, 0, 40, 40), 1), ((10, 0, 50, 40), 1)],
        [((0, 0, 40, 40), 1, 0.9), ((4, 0, 44, 40), 1, 0.8)],
        1,
        6 / 11,
        1 / 2,
    ),
    "overlap of exactly one half": ([((0, 0, 20, 10), 1)], [((0, 0, 10, 10), 1, 0.9)], 1, 1, 1),
}


@pytest.mark.parametrize("case", HAND)
@pytest.mark.parametrize("preset", PRESETS)
def test_ap50_by_hand(preset, case):
    objects, detections, *expected = HAND[case]
    result = numbers(preset, [found(*detections)], [truth(*objects)])
    assert result["ap50"] == pytest.approx(expected[PRESETS.index(preset)], abs=1e-9)


@pytest.mark.parametrize("objects", [[], [(A, 1, True)]], ids=["none", "ignored only"])
@pytest.mark.parametrize("detections", [[], [(A, 1, 0.9)]], ids=["none found", "one found"])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_truth_warns_and_gives_zeros(preset, detections, objects):
    metric = BoxAP(CLASSES, preset)
    metric.update([found(*detections)], [truth(*objects)])
    with pytest.warns(UserWarning, match="no truth box in 1 images"):
        result = metric.compute()
    assert result["ap50"] == 0.0
    assert set(result) == ({"map", "ap50", "ap75", "ar1", "ar10", "ar100"} if preset == "coco" else {"ap50"})


@pytest.mark.parametrize("preset", PRESETS)
def test_images_without_truth_cost_their_false_positives(preset):
    result = numbers(preset, [found((FAR, 1, 0.9)), found((A, 1, 0.8))], [truth(image_id=1), truth((A, 1), image_id=2)])
    assert result["ap50"] == pytest.approx(0.5)


def test_coco_leaves_out_what_has_no_truth():
    result = numbers("coco", [found((A, 1, 0.9))], [truth((A, 1), (B, 2, True))])  # A has 1600 pixels: medium
    assert {"map", "ap_medium", "ar_medium", "ap/cat", "ap50/cat"} <= set(result)
    assert not {"ap_small", "ar_small", "ap_large", "ar_large", "ap/dog", "ap/bird", "ap50/bird"} & set(result)
    assert all(type(value) is float and 0 <= value <= 1 for value in result.values())


def test_coco_sizes_follow_the_given_areas():
    result = numbers("coco", [found((A, 1, 0.9))], [truth((A, 1), areas=[900.0])])
    assert "ap_small" in result
    assert "ap_medium" not in result


@pytest.mark.parametrize("preset", PRESETS)
def test_boxes_are_compared_in_the_original_frame(preset):
    target = truth(((10, 10, 50, 50), 1), size=(100, 100), original_size=(50, 200), areas=[1600.0])
    in_original = found(((20, 5, 100, 25), 1, 0.9), size=(50, 200))
    in_model = found(((20, 20, 100, 100), 1, 0.9), size=(200, 200))
    for detections in (in_original, in_model):
        assert numbers(preset, [detections], [target])["ap50"] == pytest.approx(1)


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match=r"coco.*voc07.*voc12.*got 'voc2007'"):
        BoxAP(CLASSES, "voc2007")


@pytest.mark.parametrize(
    ("detections", "objects", "message"),
    [
        ([(A, 1, 0.9)], [(A, 4)], r"labels of truth must be 1\.\.3, got \[4\]"),
        ([(A, 0, 0.9)], [(A, 1)], r"labels of detections must be 1\.\.3, got \[0\]"),
        ([(A, 1, float("nan"))], [(A, 1)], "1 of 1 detections have a box or score that is not finite"),
    ],
)
def test_wrong_rows_are_named(detections, objects, message):
    metric = BoxAP(CLASSES)
    metric.update([found(*detections)], [truth(*objects)])
    with pytest.raises(ValueError, match=message):
        metric.compute()


def test_as_many_detections_as_targets():
    with pytest.raises(ValueError, match="got 1 results for 2 images"):
        BoxAP(CLASSES).update([found()], [truth((A, 1)), truth((A, 1))])


@pytest.mark.parametrize("preset", PRESETS)
def test_reset_and_forward(preset):
    metric = BoxAP(CLASSES, preset)
    metric.update([found()], [truth((A, 1))])
    assert metric.compute()["ap50"] == 0
    metric.reset()
    assert metric([found((A, 1, 0.9))], [truth((A, 1))])["ap50"] == pytest.approx(1)
    assert metric([found((FAR, 1, 0.8))], [truth((A, 1))])["ap50"] == 0
    assert metric.compute()["ap50"] == pytest.approx(
        51 / 101 if preset == "coco" else 6 / 11 if preset[-1] == "7" else 0.5
    )
    assert int(metric.images) == 2


def test_half_precision_detections_on_a_metric_of_full_precision():
    half = found((A, 1, 0.9))
    half = Detections(half.boxes.bfloat16(), half.scores.bfloat16(), half.labels, half.size)
    assert numbers("coco", [half], [truth((A, 1))])["ap50"] == pytest.approx(1)


@pytest.mark.parametrize("preset", PRESETS)
def test_table_and_silence(preset, capsys):
    metric = BoxAP(CLASSES, preset)
    metric.update([found((A, 1, 0.9))], [truth((A, 1), (B, 2), (FAR, 2, True))])
    lines = [line.split() for line in metric.table().splitlines()]
    number = ["1.000"] * (2 if preset == "coco" else 1)
    zero, half, none = ([text] * len(number) for text in ("0.000", "0.500", "-"))
    assert lines[0] == ["class", "truths", *(["AP"] if preset == "coco" else []), "AP50"]
    assert lines[1:] == [["cat", "1", *number], ["dog", "1", *zero], ["bird", "0", *none], ["all", "2", *half]]
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------- random sets


def random_set(seed, images=25, classes=6, ties=False):
    """Images with and without truth; detections near truth and anywhere; crowds; the last class has no truth."""
    random = np.random.default_rng(seed)
    detections, targets = [], []
    for number in range(images):
        objects = int(random.integers(0, 9)) * int(random.random() < 0.8)
        boxes = random_boxes(random, objects, ties)
        labels = random.integers(1, classes, objects)
        targets.append(
            Targets.make(
                *(boxes, labels, (300, 300), number),
                ignore=random.random(objects) < 0.2,
                areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * random.uniform(0.5, 1, objects),
            )
        )
        copies = np.repeat(np.arange(objects), random.integers(0, 4, objects))
        near = boxes[copies] + random.normal(0, 0 if ties else 6, (len(copies), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        stray = random_boxes(random, int(random.integers(0, 12)), ties)
        scores = random.random(len(near) + len(stray))
        detections.append(
            Detections(
                boxes=torch.tensor(np.concatenate([near, stray]), dtype=torch.float32),
                labels=torch.tensor(np.concatenate([labels[copies], random.integers(1, classes + 1, len(stray))])),
                scores=torch.tensor(scores.round(1) if ties else scores, dtype=torch.float32),
                size=(300, 300),
            )
        )
    return detections, targets, [f"class {k}" for k in range(1, classes + 1)]


def random_boxes(random, count, whole):
    corner = random.uniform(0, 150, (count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 150, (count, 2))], axis=1)
    return (boxes.round(-1) + np.array([0, 0, 10, 10]) if whole else boxes).clip(0, 300)


def by_pycocotools(detections, targets, classes):
    """The same entries through the reference: its 12 numbers and AP, AP50 per class, undefined ones left out."""
    annotations, results = [], []
    for target in targets:
        rows = zip(*(getattr(target, f).tolist() for f in ("boxes", "labels", "areas", "ignore")), strict=True)
        annotations += [
            {
                "image_id": target.image_id,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": int(crowd),
            }
            for (x1, y1, x2, y2), label, area, crowd in rows
        ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    for d, target in zip(detections, targets, strict=True):
        results += d.to_coco(target.image_id, range(1, len(classes) + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": target.image_id} for target in targets],
            "annotations": annotations,
            "categories": [{"id": k, "name": name} for k, name in enumerate(classes, 1)],
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    expected = dict(zip(COCO_NAMES, evaluator.stats.tolist(), strict=True))
    for k, name in enumerate(classes):
        precision = evaluator.eval["precision"][:, :, k, 0, 2]
        expected[f"ap/{name}"], expected[f"ap50/{name}"] = precision.mean(), precision[0].mean()
    return {name: value for name, value in expected.items() if value > -1}


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (0, {}),
        (1, {"images": 8, "classes": 30}),
        (2, {"ties": True}),
        (3, {"classes": 2, "images": 60}),
        (4, {"images": 3}),
    ],
)
def test_coco_equals_pycocotools(seed, options):
    detections, targets, classes = random_set(seed, **options)
    expected = by_pycocotools(detections, targets, classes)
    result = numbers("coco", detections, targets, classes)
    assert expected["ap50"] > 0.05
    assert result == pytest.approx(expected, abs=1e-6)


def test_coco_counts_the_hundred_best_of_an_image():
    random = np.random.default_rng(5)
    boxes = random_boxes(random, 150, False)
    detections = [
        Detections(
            boxes=torch.tensor(boxes, dtype=torch.float32),
            labels=torch.ones(150, dtype=torch.int64),
            scores=torch.tensor(random.random(150), dtype=torch.float32),
            size=(300, 300),
        )
    ]
    targets = [Targets.make(boxes, np.ones(150), (300, 300), 1)]
    result = numbers("coco", detections, targets, ["thing"])
    assert result == pytest.approx(by_pycocotools(detections, targets, ["thing"]), abs=1e-6)
    assert result["ar100"] < 0.7


def voc_by_definition(detections, targets, label, eleven_points):
    """The devkit's evaluation of one class, one detection at a time, in its 1-based inclusive pixels."""
    objects = {
        image: [{"box": inclusive(box), "difficult": bool(t.ignore[i]), "taken": False} for i, box in rows(t, label)]
        for image, t in enumerate(targets)
    }
    positives = sum(not o["difficult"] for of_image in objects.values() for o in of_image)
    if positives == 0:
        return None
    answers = [(float(d.scores[i]), n, inclusive(box)) for n, d in enumerate(detections) for i, box in rows(d, label)]
    answers.sort(key=lambda answer: -answer[0])

    true = false = 0
    points = []  # recall, precision
    for _, image, box in answers:
        verdict = judge_one(box, objects[image])
        if verdict != "nothing":
            true, false = true + (verdict == "true"), false + (verdict == "false")
            points.append((true / positives, true / (true + false)))
    return eleven_point_mean(points) if eleven_points else area_under(points)


def rows(boxes_of_image, label):
    boxes = enumerate(boxes_of_image.boxes.tolist())
    return [(i, box) for i, box in boxes if boxes_of_image.labels[i] == label]


def judge_one(box, objects):
    best, best_iou = None, 0.0
    for candidate in objects:
        iou = inclusive_iou(box, candidate["box"])
        if iou > best_iou:
            best, best_iou = candidate, iou
    if best is None or best_iou < 0.5:
        return "false"
    if best["difficult"]:
        return "nothing"
    verdict = "false" if best["taken"] else "true"
    best["taken"] = True
    return verdict


def eleven_point_mean(points):
    return sum(max((p for r, p in points if r >= t), default=0.0) for t in np.arange(0.0, 1.1, 0.1)) / 11


def area_under(points):
    area, last = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[index:])
        last = recall
    return area


def inclusive(box):
    x1, y1, x2, y2 = box
    return x1 + 1, y1 + 1, x2, y2


def inclusive_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


@pytest.mark.parametrize(("seed", "ties"), [(0, False), (1, False), (2, True), (3, True), (4, False)])
@pytest.mark.parametrize("preset", ["voc07", "voc12"])
def test_voc_equals_the_definition(preset, seed, ties):
    detections, targets, classes = random_set(seed, images=30, ties=ties)
    expected = {}
    for label, name in enumerate(classes, 1):
        ap = voc_by_definition(detections, targets, label, eleven_points=preset == "voc07")
        if ap is not None:
            expected[f"ap50/{name}"] = ap
    assert len(expected) == len(classes) - 1
    expected["ap50"] = sum(expected.values()) / len(expected)
    assert expected["ap50"] > 0.1
    assert numbers(preset, detections, targets, classes) == pytest.approx(expected, abs=1e-9)


def test_voc_in_several_chunks(monkeypatch):
    detections, targets, classes = random_set(6)
    whole = numbers("voc12", detections, targets, classes)
    monkeypatch.setattr("quadrat.metrics.voc_boxes.CHUNK", 7)
    assert numbers("voc12", detections, targets, classes) == whole


# ---------------------------------------------------------------- two processes


def shares(case, rank):
    """This rank's part of the images, and of all of them what one process would see."""
    detections, targets, classes = random_set(7, images=9, ties=True)
    if case == "one rank without boxes":
        detections = [d if i % 2 == 0 else d[:0] for i, d in enumerate(detections)]
        targets = [t if i % 2 == 0 else t.rows([]) for i, t in enumerate(targets)]
    mine = slice(rank, None, 2)  # as a distributed sampler deals them: 5 and 4
    if case == "one rank without images":
        mine = slice(None) if rank == 0 else slice(0, 0)
    return detections[mine], targets[mine], (detections, targets, classes)


CASES = ("uneven", "one rank without boxes", "one rank without images")


def reduce_on_two_ranks(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    results = {}
    for case in CASES:
        detections, targets, (_, _, classes) = shares(case, rank)
        for preset in PRESETS:
            metric = BoxAP(classes, preset)
            for i in range(0, len(targets), 2):
                metric.update(detections[i : i + 2], targets[i : i + 2])
            results[f"{case} {preset}"] = metric.compute()
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(results))


def test_two_ranks_equal_one_process(tmp_path):
    torch.multiprocessing.spawn(reduce_on_two_ranks, args=(tmp_path,), nprocs=2)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        for case in CASES:
            _, _, everything = shares(case, rank)
            for preset in PRESETS:
                assert results[f"{case} {preset}"] == numbers(preset, *everything)
