"""Class and box of one object: the contract, whose box is trained, and what is seen at the end."""

from functools import partial

import pytest
import torch

from contracts import SCHEMA, assert_asks_nothing, assert_one_object_model, batch_of, losses_of
from quadrat.backbones.tiny import Tiny
from quadrat.configs import build, compose
from quadrat.heads.box_code import BoxCode
from quadrat.heads.linear import TwoLayer
from quadrat.heads.vector import Vector
from quadrat.losses.boxes import CodeLoss, OverlapLoss, giou
from quadrat.losses.regression import l1, l2
from quadrat.models.localizer import Localizer, assemble
from quadrat.structures import Schema

NAMES = ("object_class", "object_box")


def localizer(schema: Schema = SCHEMA, **options) -> Localizer:
    torch.manual_seed(0)
    parts = {
        "vector": partial(Vector, bins=2),
        "code": BoxCode(),
        "box_loss": CodeLoss(l2),
        "size": (64, 64),
        **options,
    }
    return assemble(schema, Tiny(8), **parts)


OWN = partial(Vector, bins=2, layers=partial(TwoLayer, hidden=16, last=8))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_box": False},
        {"box_loss": OverlapLoss(giou), "code": BoxCode("edges", [[0.25, 0.25, 0.75, 0.75], [0.2, 0.2, 0.2, 0.2]])},
        {"box_vector": OWN, "guesses": 3},
    ],
)
def test_contract(options) -> None:
    assert_one_object_model(localizer(**options), NAMES)


def test_one_box_for_all_or_one_for_each_class() -> None:
    assert localizer().boxes.out_features == 4
    assert localizer(shared_box=False).boxes.out_features == 24


def test_only_the_true_classs_box_is_trained() -> None:
    model = localizer(shared_box=False)
    batch = batch_of({"boxes": [[8, 8, 40, 40]], "labels": [3]}, {"boxes": [[0, 0, 30, 60]], "labels": [5]})
    losses_of(model, batch)["object_box"].backward()
    rows = model.boxes.weight.grad.view(6, 4, -1).abs().sum((1, 2))
    assert [label + 1 for label in range(6) if rows[label] > 0] == [3, 5]


def test_losses_by_hand() -> None:
    """Zero heads: uniform scores, and numbers 0 for a box that is 0.5, 0.5, 0.5, 0.25 of its picture."""
    model = localizer(box_loss=CodeLoss(l1))
    for head in (model.classes, model.boxes):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    losses = losses_of(model, batch_of({"boxes": [[16, 24, 48, 40]], "labels": [2]}, {}))
    assert losses["object_class"].item() == pytest.approx(torch.tensor(6.0).log().item())
    assert losses["object_box"].item() == pytest.approx(1.75)


def test_the_largest_object_that_is_not_ignored_is_meant() -> None:
    model = localizer()
    boxes, labels = [[0, 0, 60, 60], [10, 10, 40, 40], [50, 50, 60, 60]], [1, 2, 3]
    several = batch_of({"boxes": boxes, "labels": labels, "ignore": [True, False, False]})
    single = batch_of({"boxes": boxes[1:2], "labels": labels[1:2]})
    first, second = losses_of(model.eval(), several), losses_of(model, single)
    assert {name: value.item() for name, value in first.items()} == pytest.approx(
        {name: value.item() for name, value in second.items()}
    )


def test_a_picture_without_objects_is_left_out_of_the_means() -> None:
    model = localizer().eval()
    some = {"boxes": [[8, 8, 40, 40]], "labels": [3]}
    alone, beside = losses_of(model, batch_of(some)), losses_of(model, batch_of(some, {}, {}))
    assert beside["object_box"].item() == pytest.approx(alone["object_box"].item(), rel=1e-5)


@torch.no_grad()
def test_every_class_is_a_guess_best_first() -> None:
    model = localizer().eval()
    batch = batch_of({"boxes": [[8, 8, 40, 40]]})
    (found,) = model.predict(model.features(batch), batch)
    assert sorted(found.labels.tolist()) == [1, 2, 3, 4, 5, 6]
    assert found.scores.sum().item() == pytest.approx(1)
    assert (found.boxes == found.boxes[0]).all()


def test_presets_differ_as_their_papers_do() -> None:
    def made(name: str) -> Localizer:
        with torch.device("meta"):
            return build(compose("train", ["~experiment", f"model={name}"]).model, schema=SCHEMA)

    paper, vgg, overfeat = made("localizer_paper"), made("localizer_vgg"), made("localizer_overfeat")
    assert (paper.classes.in_features, paper.boxes.in_features, paper.boxes.out_features) == (4096, 4096, 4)
    assert (vgg.boxes.in_features, vgg.boxes.out_features) == (4096, 24)
    assert (overfeat.classes.in_features, overfeat.boxes.in_features, overfeat.boxes.out_features) == (4096, 1024, 4)
    assert overfeat.code.encoding == "edges"


@pytest.mark.parametrize("options", [{}, {"shared_box": False, "box_loss": OverlapLoss(giou)}])
def test_a_step_asks_the_device_nothing(options) -> None:
    assert_asks_nothing(localizer(**options).train(), batch_of({"boxes": [[8, 8, 40, 40]]}, {}))


@pytest.mark.parametrize("encoding", ["centre", "edges"])
@pytest.mark.parametrize("standardise", [None, [[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]], "measured"])
def test_overlap_losses_can_tell_the_first_box_to_grow(encoding, standardise) -> None:
    model = localizer(box_loss=OverlapLoss(giou), code=BoxCode(encoding, standardise))
    losses_of(model, batch_of({"boxes": [[2, 2, 62, 62]]}))["object_box"].backward()
    assert (model.boxes.bias.grad.abs() > 1e-6).sum() >= 2


def test_the_first_box_is_the_middle_half() -> None:
    model = localizer().eval()
    torch.nn.init.zeros_(model.boxes.weight)
    batch = batch_of({"boxes": [[8, 8, 40, 40]]})
    (found,) = model.predict(model.features(batch), batch)
    assert found.boxes[0].tolist() == pytest.approx([16, 16, 48, 48], abs=1e-3)


def test_no_guesses_are_refused() -> None:
    with pytest.raises(ValueError, match="keep 1 class or more"):
        localizer(guesses=0)
