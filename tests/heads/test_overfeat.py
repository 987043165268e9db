"""Windows of a map: where they are, the pooling's offsets, and which of them are trained on."""

import pytest
import torch
from torch.nn import functional

from contracts import batch_of
from quadrat.heads.overfeat import DenseLayers, DenseWindows, WindowSampler, middle_inside, share_inside

CPU = torch.device("cpu")


# --- where windows are ---


def test_windows_by_hand() -> None:
    grid = DenseWindows(bins=2, pool=1)
    expected = [[0, 0, 16, 16], [8, 0, 24, 16], [0, 8, 16, 24], [8, 8, 24, 24]]
    assert grid.windows(3, 3, 8, CPU).tolist() == expected
    assert DenseWindows(bins=1, pool=2, every=2).windows(3, 4, 8, CPU).tolist() == [[0, 0, 16, 16], [16, 0, 32, 16]]
    assert DenseWindows(bins=5, pool=3).windows(15, 16, 12, CPU).tolist() == [[0, 0, 180, 180], [12, 0, 192, 180]]


def test_a_side_of_its_own_has_the_same_middle() -> None:
    assert DenseWindows(bins=2, pool=1, side=24).windows(2, 3, 8, CPU).tolist() == [[-4, -4, 20, 20], [4, -4, 28, 20]]


def test_a_small_map_is_in_the_middle_of_its_window() -> None:
    assert DenseWindows(bins=2, pool=2).windows(2, 3, 8, CPU).tolist() == [[0, -8, 32, 24]]
    assert DenseWindows(bins=2, pool=2).windows(1, 5, 8, CPU).tolist() == [[0, -8, 32, 24], [8, -8, 40, 24]]


@pytest.mark.parametrize("wrong", [{"bins": 0}, {"pool": 0}, {"every": 0}, {"side": 0}])
def test_grid_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"model\.grid"):
        DenseWindows(**wrong)


# --- offsets ---


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_every_offset_of_the_pooling_is_there(pool: int) -> None:
    features = torch.randn(2, 3, 10, 11)
    pooled = DenseWindows(bins=2, pool=pool).pooled(features)
    for y in range(pool):
        for x in range(pool):
            by_hand = functional.max_pool2d(features[:, :, y:, x:], pool, stride=pool)
            assert torch.equal(pooled[:, :, y::pool, x::pool], by_hand)


def test_layers_of_every_offset_are_plain_layers_on_its_pooling() -> None:
    """What the dilated layers see at one offset is what undilated ones see on the pooled map that begins there."""
    torch.manual_seed(0)
    grid, features = DenseWindows(bins=2, pool=2), torch.randn(1, 3, 9, 7)
    layers = DenseLayers(3, 5, grid, hidden=4, last=6, last_std=1.0).eval()
    found = layers(grid.pooled(features))
    assert found.shape == (1, 5, 6, 4)  # 9 - 4 + 1 and 7 - 4 + 1
    for y in range(2):
        for x in range(2):
            view = functional.max_pool2d(features[:, :, y:, x:], 2)
            hidden = functional.conv2d(view, layers.first.weight, layers.first.bias).relu()
            plain = layers.scores(layers.second(hidden).relu())
            torch.testing.assert_close(found[:, :, y::2, x::2], plain)


def test_a_window_at_each_pooling_is_every_third_of_all() -> None:
    torch.manual_seed(0)
    features, all_of_them = torch.randn(1, 3, 13, 11), DenseWindows(bins=2, pool=3)
    few = DenseWindows(bins=2, pool=3, every=3)
    dense, sparse = (DenseLayers(3, 5, grid, hidden=4, last=6).eval() for grid in (all_of_them, few))
    sparse.load_state_dict(dense.state_dict())
    torch.testing.assert_close(sparse(few.pooled(features)), dense(all_of_them.pooled(features))[:, :, ::3, ::3])


def test_a_small_map_has_one_window() -> None:
    grid = DenseWindows(bins=2, pool=2)
    layers = DenseLayers(3, 5, grid, hidden=4, last=4)
    assert layers(grid.pooled(torch.randn(1, 3, 2, 3))).shape == (1, 5, 1, 1)
    pooled = grid.pooled(-torch.ones(1, 1, 1, 2))
    assert pooled[0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0]]  # each cell saw some of the zeros behind the map


# --- what is trained on ---

HALF = [16, 0, 48, 32]  # of an object of 32 x 32 at 0: IoU 1 / 3
SHIFTED = [8, 0, 40, 32]  # 24 of 40: IoU 0.6
EXACT, FAR, OUTSIDE = [0, 0, 32, 32], [32, 32, 64, 64], [48, 48, 80, 82]


def trained(windows: list, logits: torch.Tensor | None = None, *, random: int = 0, hard: int = 0, **truth) -> list:
    """(label, judged, boxed) of each window of one picture."""
    boxes = torch.tensor(windows, dtype=torch.float32).reshape(-1, 4)
    scores = torch.zeros(1, len(boxes), 7) if logits is None else logits
    found = WindowSampler(random=random, hard=hard)(boxes, scores, batch_of(truth))
    return [
        (int(a), bool(b), bool(c)) for a, b, c in zip(found.labels[0], found.judged[0], found.boxed[0], strict=True)
    ]


def test_windows_of_an_object_of_background_and_of_neither() -> None:
    found = trained([EXACT, SHIFTED, HALF, FAR, OUTSIDE], hard=9, boxes=[[0, 0, 32, 32]], labels=[3])
    background, neither = (0, True, False), (0, False, False)
    assert found == [(3, True, True), (3, True, True), neither, background, neither]


def test_pictures_without_objects_have_background_alone() -> None:
    assert trained([EXACT, FAR], hard=9) == [(0, True, False)] * 2
    assert trained([EXACT, FAR], hard=0) == [(0, False, False)] * 2


def test_an_objects_best_window_shows_it_unless_it_is_poor() -> None:
    assert trained([HALF, FAR], hard=9, boxes=[[0, 0, 32, 32]], labels=[2])[0] == (2, True, False)  # half is not more
    assert trained([[12, 0, 44, 32], FAR], boxes=[[0, 0, 32, 32]])[0] == (1, True, True)  # IoU 20 / 44
    assert trained([[0, 0, 64, 64]], hard=9, boxes=[[0, 0, 32, 32]]) == [(0, False, False)]  # IoU 1 / 4
    assert trained([OUTSIDE], hard=9, boxes=[[48, 48, 64, 64]]) == [(0, False, False)]


def test_the_box_waits_for_more_than_half_of_the_object() -> None:
    assert trained([[0, 0, 20, 20]], boxes=[[0, 0, 42, 20]], labels=[4]) == [(4, True, False)]  # IoU and share 20 / 42
    assert trained([[0, 0, 22, 20]], boxes=[[0, 0, 42, 20]], labels=[4]) == [(4, True, True)]


def test_ignored_objects_are_neither_object_nor_background() -> None:
    assert trained([EXACT, FAR], hard=9, boxes=[[0, 0, 32, 32]], ignore=[True]) == [(0, False, False), (0, True, False)]


def test_the_hardest_background_is_that_of_the_largest_loss() -> None:
    windows = [[x, y, x + 8, y + 8] for x in (0, 16, 32, 48) for y in (0, 48)]
    logits = torch.zeros(1, 8, 7)
    logits[0, :, 0] = torch.tensor([5.0, 1, 4, 2, 6, 0, 7, 3])  # sure of background
    chosen = [judged for _, judged, _ in trained(windows, logits, hard=3)]
    assert [i for i, judged in enumerate(chosen) if judged] == [1, 3, 5]


def test_random_background_is_drawn_beside_the_hardest() -> None:
    windows = [[x, y, x + 8, y + 8] for x in (0, 16, 32, 48) for y in (0, 48)]
    logits = torch.zeros(1, 8, 7)
    logits[0, 5, 0] = -9.0
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = [i for i, (_, judged, _) in enumerate(trained(windows, logits, random=2, hard=1)) if judged]
        assert len(chosen) == 3  # never one twice
        assert 5 in chosen
        seen |= set(chosen)
    assert seen == set(range(8))


def test_sampler_refuses_a_band_upside_down() -> None:
    with pytest.raises(ValueError, match=r"model\.sampler"):
        WindowSampler(positive_iou=0.3, background_iou=0.5)


def test_middle_inside_each_picture() -> None:
    windows = torch.tensor([[0.0, 0, 10, 10], [0, 50, 10, 70], [24, 0, 40, 8]])
    sizes = torch.tensor([[64.0, 64], [60, 32], [61, 33]])
    assert middle_inside(windows, sizes).tolist() == [[True] * 3, [True, False, False], [True] * 3]


def test_share_inside_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]])
    windows = torch.tensor([[0.0, 0, 20, 20], [5, 0, 25, 5], [20, 20, 30, 30], [0, 0, 10, 10]])
    assert share_inside(boxes, windows).tolist() == [1, 0.25, 0, 0]
