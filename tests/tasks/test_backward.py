"""Gradients of single terms on their way to the optimiser: by hand, under accumulation and float16's scaler, and in the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from quadrat.losses.balancing import GradNorm, NashMTL, PCGrad
from quadrat.losses.learned import Famo, ImtlL, Uncertainty
from quadrat.losses.weighting import Geometric, WeightedSum, Weighting
from quadrat.models.base import Model
from quadrat.structures import Batch
from quadrat.tasks.backward import Backward, similarity
from quadrat.tasks.detection import DetectionTask
from two_heads import BALANCING, KINDS, TERMS, TwoHeads, make, pictures, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def first_batch(size: int = 4) -> Batch:
    return next(iter(pictures(size).train_dataloader()))


def single_gradients(part: Callable[[Model], Iterator[nn.Parameter]]) -> Tensor:
    """The gradient (terms, P) of each term of the first batch on a part of the model, by an ordinary backward pass for each."""
    rows, batch = [], first_batch()
    for name in TERMS:
        model = TwoHeads()
        model.loss(model.features(batch), batch)[name].backward()
        parameters = [p.grad if p.grad is not None else torch.zeros_like(p) for p in part(model)]
        rows.append(torch.cat([gradient.flatten() for gradient in parameters]))
    return torch.stack(rows)


def trunk(model: Model) -> Iterator[nn.Parameter]:
    assert isinstance(model, TwoHeads)
    yield from (*model.backbone.parameters(), *model.neck.parameters())


def heads(model: Model) -> Iterator[nn.Parameter]:
    assert isinstance(model, TwoHeads)
    yield from (*model.near.parameters(), *model.far.parameters())


# --- balancing ---


@pytest.mark.parametrize("name", BALANCING)
def test_one_step_is_the_combination_of_single_gradients(name: str) -> None:
    """The trunk moves along the combination that the weighting finds, the heads along the plain sum."""
    before, of_trunk, of_heads = TwoHeads(), single_gradients(trunk), single_gradients(heads)
    weighting = BALANCING[name](dict.fromkeys(TERMS, 1.0))
    weighting.see(of_trunk @ of_trunk.T, torch.tensor([1.0, 1.0]))
    combined = torch.stack(list(weighting.weights().values())) @ of_trunk

    task, _ = train(BALANCING[name](dict.fromkeys(TERMS, 1.0)), max_steps=1)
    for part, gradient in ((trunk, combined), (heads, of_heads.sum(dim=0))):
        moved = torch.cat([(new - old).flatten() for old, new in zip(part(before), part(task.model), strict=True)])
        torch.testing.assert_close(moved, -0.01 * gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", [*BALANCING, "gradnorm"])
def test_accumulated_batches_are_one_large_batch(name: str) -> None:
    """Where the coefficients are those of the whole step; those of each batch are others, which the first assertion shows."""
    kinds = BALANCING | {"gradnorm": GradNorm}
    large, _ = train(kinds[name](dict.fromkeys(TERMS, 1.0)), batch=8, max_steps=3)
    small, _ = train(kinds[name](dict.fromkeys(TERMS, 1.0)), batch=2, accumulate_grad_batches=4, max_steps=3)
    single, _ = train(kinds[name](dict.fromkeys(TERMS, 1.0)), batch=2, max_steps=3)
    assert not torch.allclose(weights(single.model), weights(large.model), atol=1e-4)
    torch.testing.assert_close(weights(small.model), weights(large.model), rtol=1e-3, atol=1e-5)


def scaled(weighting: Weighting, scale: float) -> DetectionTask:
    """Trained in float16, with a scaler that begins at this scale."""
    precision = MixedPrecision("bf16-mixed", "cpu", None)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    precision.precision = "16-mixed"
    return train(weighting, plugins=[precision])[0]


@pytest.mark.parametrize("name", [*BALANCING, "gradnorm", "famo"])
def test_float16_s_scaler_changes_nothing_but_rounding(name: str) -> None:
    """The scale is on the gradients while they are collected, and off where they are compared."""
    kinds = BALANCING | {"gradnorm": GradNorm, "famo": Famo}
    one, other = (weights(scaled(kinds[name](dict.fromkeys(TERMS, 1.0)), scale).model) for scale in (64.0, 1.0))
    torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")  # as the first steps are skipped
@pytest.mark.parametrize("kind", [PCGrad, NashMTL, GradNorm], ids=lambda kind: kind.__name__)
def test_a_step_that_overflows_float16_is_skipped(kind: type[Weighting]) -> None:
    task = scaled(kind(dict.fromkeys(TERMS, 1.0)), 2.0**30)
    assert torch.equal(weights(task.model), weights(TwoHeads()))
    assert [value.item() for value in task.weighting.weights().values()] == [1.0, 1.0]


def test_balancing_is_clipped_like_any_other_gradient() -> None:
    after = weights(train(PCGrad(dict.fromkeys(TERMS, 1.0)), max_steps=1, gradient_clip_val=0.1)[0].model)
    assert (after - weights(TwoHeads())).norm().item() == pytest.approx(0.01 * 0.1, rel=1e-3)


def test_every_parameter_is_trained_by_a_balancing_one() -> None:
    before = dict(TwoHeads().named_parameters())
    task, _ = train(NashMTL(dict.fromkeys(TERMS, 1.0)))
    same = [name for name, value in task.model.named_parameters() if torch.equal(value, before[name])]
    assert same == []


def test_a_frozen_trunk_leaves_nothing_to_balance() -> None:
    model = TwoHeads()
    for part in model.shared():
        part.requires_grad_(False)
    backward = Backward(model, PCGrad(dict.fromkeys(TERMS, 1.0)), every=0)
    with pytest.raises(
        ValueError,
        match=r"PCGrad balances the terms on the parameters they share.*all of those are frozen: .*freeze_stages=0",
    ):
        backward.prepare(sharded=False, batches=1)
    Backward(model, WeightedSum(dict.fromkeys(TERMS, 1.0)), every=1).prepare(sharded=False, batches=1)


class NothingShared(TwoHeads):
    def shared(self) -> tuple[nn.Module, ...]:
        return ()


@pytest.mark.parametrize("kind", [PCGrad, GradNorm])
def test_terms_that_share_nothing_leave_nothing_to_balance(kind: type[Weighting]) -> None:
    backward = Backward(NothingShared(), kind(dict.fromkeys(TERMS, 1.0)), every=0)
    said = rf"{kind.__name__} balances the terms .* those of NothingShared share none: loss/weighting=static$"
    with pytest.raises(ValueError, match=said):
        backward.prepare(sharded=False, batches=1)
    Backward(NothingShared(), WeightedSum(dict.fromkeys(TERMS, 1.0)), every=1).prepare(sharded=False, batches=1)


@pytest.mark.parametrize("kind", [PCGrad, GradNorm])
def test_sharded_parameters_are_refused(kind: type[Weighting]) -> None:
    backward = Backward(TwoHeads(), kind(dict.fromkeys(TERMS, 1.0)), every=0)
    with pytest.raises(
        ValueError, match="compares gradients of whole parameters, of which a rank holds a part: trainer=ddp"
    ):
        backward.prepare(sharded=True, batches=1)


def test_famo_refuses_several_batches_a_step() -> None:
    with pytest.raises(ValueError, match=r"looks at the losses of a step once more.*trainer.accumulate_grad_batches=1"):
        train(Famo(dict.fromkeys(TERMS, 1.0)), accumulate_grad_batches=2)


def test_famo_sees_the_same_batch_again() -> None:
    """And the weights move by what the step has done to it."""
    seen: list[dict[str, float]] = []

    class Watched(Famo):
        def see_again(self, losses: Any) -> None:
            seen.append({name: value.item() for name, value in losses.items()})
            super().see_again(losses)

    task, rows = train(Watched(dict.fromkeys(TERMS, 1.0)), batch=8)
    assert len(seen) == 4
    # all pictures are in every batch, so the losses after a step are those that the next one begins with
    for step, losses in enumerate(seen[:-1]):
        assert {name: rows.rows[step + 1][f"train/loss/{name}"] for name in TERMS} == pytest.approx(losses, rel=1e-4)
    assert isinstance(task.weighting, Famo)
    assert task.weighting.xi.abs().min() > 0


def test_looking_again_leaves_the_norms_statistics_alone() -> None:
    class Normed(TwoHeads):
        def __init__(self) -> None:
            super().__init__()
            self.neck = nn.Sequential(self.neck, nn.BatchNorm1d(4))  # pyright: ignore[reportAttributeAccessIssue]

    task, _ = train(WeightedSum(dict.fromkeys(TERMS, 1.0)), max_steps=1)
    task.model = Normed().train()
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    task.gradients.batch = first_batch()
    again = task._losses_again()
    assert all(torch.equal(buffer, before[name]) for name, buffer in task.model.named_buffers())
    assert set(again) == set(TERMS)


def _save_at(trainer: Trainer, step: int, path: Path) -> None:
    if trainer.global_step == step:
        trainer.save_checkpoint(path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("name", KINDS)
def test_gone_on_from_the_middle_of_an_epoch_it_is_as_if_undisturbed(name: str, tmp_path: Path) -> None:
    """The same bits in the weights, in the weighting, and in every row of the log."""
    save = LambdaCallback(on_train_batch_end=lambda trainer, *_: _save_at(trainer, 5, tmp_path / "last.ckpt"))
    whole, rows = train(make(name), max_steps=7, every=2, callbacks=[save])  # two steps are an epoch
    again, later = train(make(name), max_steps=7, every=2, goes_on=tmp_path / "last.ckpt")
    assert torch.equal(weights(again.model), weights(whole.model))
    state, expected = again.weighting.state_dict(), whole.weighting.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert later.rows == {step: row for step, row in rows.rows.items() if step >= 5}


# --- what a weighting learns goes into its own group ---


@pytest.mark.parametrize("kind", [partial(Uncertainty, regression=["near"]), ImtlL])
def test_learned_weights_have_a_group_of_their_own(kind: Any) -> None:
    task, _ = train(kind(dict.fromkeys(TERMS, 1.0), rate=5.0))
    group = next(g for g in task.trainer.optimizers[0].param_groups if g["name"] == "weighting")
    assert [id(own) for own in group["params"]] == [id(task.weighting.s)]  # pyright: ignore[reportAttributeAccessIssue]
    assert group["weight_decay"] == 0
    assert group["lr"] == pytest.approx(0.05)
    assert task.weighting.s.abs().min() > 0  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


# --- the log ---


def test_gradients_are_logged_by_hand() -> None:
    task, rows = train(WeightedSum(dict(zip(TERMS, (1.0, 0.5), strict=True))), every=2, max_steps=4)
    assert [step for step, row in rows.rows.items() if "train/gradient_norm/near" in row] == [1, 3]
    task, rows = train(WeightedSum(dict(zip(TERMS, (1.0, 0.5), strict=True))), every=1, max_steps=1)
    near, far = single_gradients(trunk)
    row = rows.rows[0]
    assert row["train/gradient_norm/near"] == pytest.approx(near.norm().item(), rel=1e-4)
    assert row["train/gradient_norm/far"] == pytest.approx(far.norm().item(), rel=1e-4)
    cosine = (near @ far / near.norm() / far.norm()).item()
    assert row["train/cosine/near/far"] == pytest.approx(cosine, rel=1e-4)
    assert task.model.loss_names == TERMS


@pytest.mark.parametrize(
    "weighting",
    [WeightedSum, Geometric, GradNorm, PCGrad, Famo],
    ids=lambda kind: kind.__name__,
)
def test_looking_changes_nothing(weighting: type[Weighting]) -> None:
    plain, watched = (train(weighting(dict.fromkeys(TERMS, 1.0)), every=every)[0] for every in (0, 1))
    assert torch.equal(weights(plain.model), weights(watched.model))


@pytest.mark.parametrize(
    "weighting", [WeightedSum, Geometric, GradNorm, PCGrad, Famo, NashMTL], ids=lambda k: k.__name__
)
def test_each_row_is_of_one_piece(weighting: type[Weighting]) -> None:
    """Weighted is raw times weight; the weighted terms of those that balance make the total."""
    _, rows = train(weighting(dict.fromkeys(TERMS, 1.0)), batch=2, accumulate_grad_batches=1)
    for row in rows.rows.values():
        if "train/total" not in row:
            continue
        for name in TERMS:
            product = row[f"train/loss/{name}"] * row[f"train/weight/{name}"]
            assert row[f"train/weighted/{name}"] == pytest.approx(product, rel=1e-4)
        if weighting is not Famo:
            total = sum(row[f"train/weighted/{name}"] for name in TERMS)
            assert row["train/total"] == pytest.approx(total, rel=1e-4)


def test_similarity_of_nothing_is_nothing() -> None:
    found = similarity(("a", "b"), torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert {name: value.item() for name, value in found.items()} == {
        "gradient_norm/a": 2.0,
        "gradient_norm/b": 0.0,
        "cosine/a/b": 0.0,
    }
    assert not any(math.isnan(value.item()) for value in found.values())
