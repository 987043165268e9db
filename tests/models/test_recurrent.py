"""A window classifier composed with itself: what each instance sees, its terms, and the model's contract."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from contracts import SCHEMA, assert_semantic_model, drawn, losses_of
from quadrat.configs import build, compose
from quadrat.models.recurrent import Recurrent
from quadrat.structures import IGNORE_INDEX, Batch

TERMS = ["instance1", "instance2", "instance3"]
NARROW = {
    "patch_recurrent": ["model.net.widths=[[4],[6]]", "model.net.hidden=[8]", "model.net.size=13"],
    "patch_recurrent_paper": ["model.net.widths=[[4],[6]]"],
}


def built(model: str = "patch_recurrent", *overrides: str) -> Recurrent:
    torch.manual_seed(0)
    overrides = (*NARROW[model], *overrides)
    return build(compose("train", ["~experiment", f"model={model}", *overrides]).model, schema=SCHEMA)


@pytest.mark.parametrize("model", NARROW)
def test_contracts(model: str) -> None:
    assert_semantic_model(built(model), TERMS)


def test_first_instance_sees_zeros_and_the_next_what_it_said() -> None:
    model, batch = built().eval(), Batch.collate(drawn())
    seen = []
    model.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    dense = model.net.dense
    model.net.dense = lambda surrounded: seen.append(surrounded) or dense(surrounded)
    features = model.features(batch)
    seen.append(features["last"])
    assert [tuple(each.shape[2:]) for each in seen] == [(16 + 12, 16 + 12), (32 + 12, 32 + 12), (64 + 12, 64 + 12)]
    assert not seen[0][:, 3:].any()
    for before, after, size in zip(TERMS, seen[1:], (32, 64), strict=False):
        said = functional.interpolate(features[before].softmax(1), size=(size, size), mode="bilinear")
        torch.testing.assert_close(after[:, 3:, 6:-6, 6:-6], said)
        torch.testing.assert_close(after[:, 3:].sum(1), torch.ones_like(after[:, 0]))


def test_gradients_flow_through_what_was_said_before() -> None:
    model, batch = built(), Batch.collate(drawn())
    features = model.features(batch)
    said = features["instance1"]
    said.retain_grad()
    model.loss(features, batch)["instance3"].backward()
    assert said.grad.any()


def test_last_term_is_of_a_strided_grid_of_the_dense_scores() -> None:
    model, batch = built().eval(), Batch.collate(drawn())
    term = losses_of(model, batch, seed=1)["instance3"].item()
    scores = model.net.dense(model.features(batch)["last"])
    grids = {
        (y, x): functional.cross_entropy(scores[:, :, y::4, x::4], batch.semantic[:, y::4, x::4].long()).item()
        for y in range(4)
        for x in range(4)
    }
    assert min(abs(term - value) for value in grids.values()) < 1e-5
    assert len({losses_of(model, batch, seed=seed)["instance3"].item() for seed in range(8)}) > 3


def test_coarse_terms_are_of_the_nearest_pixels() -> None:
    """With a map that only has a class where no coarse pixel looks, coarse terms are 0."""
    model, batch = built().eval(), Batch.collate(drawn())
    semantic = torch.zeros_like(batch.semantic)
    semantic[:, 2::4, 2::4] = IGNORE_INDEX
    terms = losses_of(model, replace(batch, semantic=semantic))
    assert terms["instance1"] == 0
    assert terms["instance2"] > 0


@pytest.mark.parametrize("scales", [[], [0.5], [1.0, 0.5], [0.5, 0.5, 1.0], [0, 1]])
def test_scales_that_do_not_rise_to_one_are_refused(scales: list[float]) -> None:
    with pytest.raises(ValueError, match="scales rise from above 0 to 1"):
        built("patch_recurrent", f"model.scales={scales}")


def test_one_instance_is_a_plain_net() -> None:
    model, batch = built("patch_recurrent", "model.scales=[1.0]"), Batch.collate(drawn())
    assert list(losses_of(model, batch)) == ["instance1"]
