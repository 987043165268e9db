"""Networks that score every pixel keep the models' contracts, and the papers' presets are the papers'."""

import pytest
import torch
from torch import nn

from contracts import SCHEMA, assert_semantic_model, drawn, maps_of
from quadrat.configs import build, compose
from quadrat.data.shapes import Shapes
from quadrat.models.dense import Dense, Unpadded
from quadrat.models.tiles import Tiles
from quadrat.structures import Batch, Schema

NARROW = "[[4,4],[8,8],[8,8],[8,8],[8,8]]"
MODELS = {
    "segnet_basic": [],
    "segnet_basic_paper": ["model.backbone.widths=[[8],[8],[8],[8]]", "model.neck.convs=[[8],[8],[8],[8]]"],
    "segnet": [f"model.backbone.widths={NARROW}", "model.neck.convs=[[8,8],[8,8],[8,8],[8,4],[4]]"],
    "deconvnet": [
        f"model.backbone.widths={NARROW}",
        "model.neck.convs=[[8,8],[8,8],[8,8],[8,4],[4,4]]",
        "model.neck.centre.hidden=16",
        "model.neck.centre.kernel=2",
    ],
    "unet": [f"model.backbone.widths={NARROW}", "model.neck.convs=[[8,8],[8,8],[8,8],[4,4]]"],
    "unet_paper": [
        f"model.backbone.widths={NARROW}",
        "model.backbone.dropout=[]",
        "model.neck.convs=[[8,8],[8,8],[8,8],[4,4]]",
    ],
    "fcn_full": [],
    "fcn_full_paper": ["model.backbone.widths=[8,8,8]"],
    "fcn32s": ["model/backbone=tiny"],
    "fcn16s": ["model/backbone=tiny"],
    "fcn8s": ["model/backbone=tiny"],
    "fcn8s_paper": ["model.backbone.hidden=8", "model.backbone.dropout=0"],
}


def built(model: str, *overrides: str, schema: Schema = SCHEMA) -> Dense:
    """A model of conf/model with the initial weights of seed 0; scorers that begin at 0 are given something to say."""
    torch.manual_seed(0)
    made = build(compose("train", ["~experiment", f"model={model}", *overrides]).model, schema=schema)
    for layer in getattr(made.head, "score", {}).values():
        nn.init.normal_(layer.weight, std=0.05)
    return made


SLOW = ("fcn8s_paper",)  # half a minute for the borders of 100 pixels


@pytest.mark.parametrize("model", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in MODELS])
def test_contracts(model: str) -> None:
    assert_semantic_model(built(model, *MODELS[model]), ["pixel_class"], drawn(size=(96, 96)))


def test_contracts_with_auxiliary_head_and_dice() -> None:
    model = built(
        "fcn_resnet",
        "model/backbone=tiny",
        "model/criteria=cross_entropy_dice",
        "model.head.dropout=0",
        "model.auxiliary.c4.dropout=0",
    )
    assert_semantic_model(model, ["pixel_class", "pixel_dice", "aux_c4"], drawn(size=(96, 96)))


@pytest.mark.parametrize("upsample", ["nearest", "nails", "bilinear", "transposed_k3", "resize_conv", "pixel_shuffle"])
def test_contracts_with_each_upsampler(upsample: str) -> None:
    assert_semantic_model(built("segnet_basic", f"model/neck/upsample={upsample}"), ["pixel_class"])


@pytest.mark.parametrize("join", ["add", "concat"])
def test_contracts_with_each_join(join: str) -> None:
    assert_semantic_model(built("segnet_basic", f"model.neck.join={join}"), ["pixel_class"])


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "squeezenet1_1"])
def test_unet_on_other_backbones(backbone: str) -> None:
    levels = ["model.neck.start=c4", "model.neck.levels=[c3,c2]", "model.neck.convs=[[16],[16]]"]
    model = built("unet", f"model/backbone={backbone}", *levels, "model.head.map=d2")
    found = maps_of(model.eval(), Batch.collate(drawn()))
    assert [result.size for result in found] == [(64, 64), (64, 64)]


def test_unpooling_needs_an_encoder_that_remembers() -> None:
    levels = ["model.neck.start=c5", "model.neck.levels=[c4]", "model.neck.convs=[[16]]", "model.head.map=d4"]
    model = built("segnet_basic", "model/backbone=tiny", *levels)
    with pytest.raises(ValueError, match="model/backbone=pooled"):
        model.features(Batch.collate(drawn()))


@pytest.mark.parametrize("model", [*MODELS, "segnet_paper", "deconvnet_paper", "fcn_resnet", "patch_segmentation"])
def test_every_model_takes_another_criterion(model: str) -> None:
    """Nothing of the criterion that a model's file chooses is left behind."""
    assert "pixel_class" in on_meta(model, "model/criteria=focal").criteria


@pytest.mark.parametrize("backbone", ["resnet50", "tiny"])
def test_decoder_with_levels_that_are_not_halvings_is_refused(backbone: str) -> None:
    with pytest.raises(ValueError, match=r"model\.neck\.levels"):
        on_meta("unet" if backbone == "resnet50" else "segnet_basic", f"model/backbone={backbone}")


@pytest.mark.parametrize("model", MODELS)
def test_nothing_from_scratch_is_frozen(model: str) -> None:
    assert all(parameter.requires_grad for parameter in on_meta(model).parameters())


@pytest.mark.parametrize("rounding", [False, True])
def test_odd_sizes_go_down_and_come_up(rounding: bool) -> None:
    """90 x 75 is halved to 45 x 37 and 22 x 18, or, rounding up, to 45 x 38 and 23 x 19."""
    model = built("segnet_basic", f"+model.backbone.ceil_mode={rounding}").eval()
    sample = Shapes("odd", count=1, size=(90, 75))[0]
    batch = Batch.collate([sample], divisor=1)
    maps = model.backbone(model.normalise(batch.images, batch.sizes))
    assert tuple(maps["c3"].shape[2:]) == ((23, 19) if rounding else (22, 18))
    assert maps_of(model, batch)[0].size == (90, 75)


# --- the papers' shapes ---


def on_meta(model: str, *overrides: str, schema: Schema = SCHEMA) -> Dense:
    with torch.device("meta"):
        return build(compose("train", ["~experiment", f"model={model}", *overrides]).model, schema=schema)


VOC = Schema(classes=tuple(f"class {i}" for i in range(20)))


def test_deconvnet_paper_has_the_published_number_of_parameters() -> None:
    """About 252 million (Noh et al.); fc6 alone is 7 x 7 x 512 x 4096, and so is its mirror."""
    parameters = sum(p.numel() for p in on_meta("deconvnet_paper", schema=VOC).parameters())
    assert parameters == pytest.approx(252e6, rel=0.005)


def test_deconvnet_paper_goes_to_one_cell_and_back() -> None:
    model = on_meta("deconvnet_paper", schema=VOC).eval()
    maps = model.backbone(torch.empty(1, 3, 224, 224, device="meta"))
    assert maps["p5"].shape == (1, 512, 7, 7)
    assert model.neck.centre.body[:6](maps["p5"]).shape == (1, 4096, 1, 1)
    grown = model.neck(maps)
    assert [tuple(grown[f"d{level}"].shape[1:]) for level in (5, 4, 3, 2, 1)] == [
        *((512, 14, 14), (256, 28, 28), (128, 56, 56), (64, 112, 112), (64, 224, 224))
    ]


def test_deconvnet_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="224 pixels or more"):
        on_meta("deconvnet_paper").scores(torch.empty(1, 3, 96, 96, device="meta"), None)


def test_segnet_paper_has_vgg16_and_its_mirror() -> None:
    """13 convolutions down, 12 and the scores up: 29.4 million parameters (Badrinarayanan et al., table 3: 29.45M)."""
    model = on_meta("segnet_paper", schema=Schema(tuple(f"class {i}" for i in range(11)), background=None))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 26
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(29.45e6, rel=0.005)


def test_unet_paper_sizes_of_figure_1() -> None:
    model = on_meta("unet_paper", "model.unpadded=null")
    maps = model.backbone(torch.empty(1, 3, 572, 572, device="meta"))
    assert [tuple(maps[f"c{level}"].shape[1:]) for level in range(1, 6)] == [
        *((64, 568, 568), (128, 280, 280), (256, 136, 136), (512, 64, 64), (1024, 28, 28))
    ]
    assert tuple(model.neck(maps)["d1"].shape[1:]) == (64, 388, 388)
    assert sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules()) == 23


@pytest.mark.parametrize(("wanted", "sizes"), [(388, (572, 388)), (4, (188, 4)), (389, (588, 404)), (96, (284, 100))])
def test_unpadded_sizes(wanted: int, sizes: tuple[int, int]) -> None:
    assert Unpadded().sizes(wanted) == sizes


def test_unpadded_output_lies_over_its_picture() -> None:
    """Shift the picture by 16 (the coarsest stride): the scores away from the edges shift with it."""
    model = built("unet_paper", *MODELS["unet_paper"]).eval()
    image, sizes = torch.randn(1, 3, 228, 228), torch.tensor([[228, 228]])
    with torch.no_grad():
        whole = model.scores(image, sizes)["scores"][:, :, 100:116, 100:116]
        moved = model.scores(image.roll((16, 16), (2, 3)), sizes)["scores"][:, :, 116:132, 116:132]
    torch.testing.assert_close(moved, whole, atol=1e-4, rtol=1e-4)


def test_fcn_paper_sizes_and_crops() -> None:
    """A picture of 500 pixels padded by 100: pool3, pool4, fc7 of 88, 44, 16 (the arithmetic of the released nets)."""
    model = on_meta("fcn8s_paper", schema=VOC)
    maps = model.backbone(torch.empty(1, 3, 500, 500, device="meta"))
    assert [maps[name].shape[-1] for name in ("pool3", "pool4", "fc7")] == [88, 44, 16]
    for name in ("fcn32s_paper", "fcn16s_paper", "fcn8s_paper"):
        scores = on_meta(name, schema=VOC).scores(torch.empty(1, 3, 500, 500, device="meta"), None)["scores"]
        assert scores.shape == (1, 21, 500, 500)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(134.5e6, rel=0.005)


@pytest.mark.parametrize("model", ["fcn32s_paper", "fcn16s_paper", "fcn8s_paper"])
def test_fcn_paper_scores_lie_over_their_pixels(model: str) -> None:
    """What the coarse scorer says of the middle of the picture is nowhere shifted by the crops: the centre of mass stays."""
    net = built(model, "model.backbone.hidden=4", schema=Schema(("thing",))).eval()
    head = net.head
    sizes = {name: net.backbone.strides[name] for name in head.maps}
    maps = net.backbone(torch.zeros(1, 3, 225, 225))
    for layer in head.score.values():
        nn.init.zeros_(layer.weight)
    coarse = maps["fc7"]
    blank = {name: torch.zeros_like(maps[name]) for name in sizes}
    nn.init.ones_(head.score["fc7"].weight[:1])
    # fc7's cell (i, j) is centred on pixel 32 i + 16 of the picture: 100 of padding, and 7x7 over pool5
    middle = coarse.shape[-1] // 2
    blank["fc7"][:, :, middle, middle] = 1
    scores = head(blank, (225, 225))[0, 0].detach()
    weights = scores / scores.sum()
    centre = (weights.sum(0) * torch.arange(225)).sum().item()
    assert centre == pytest.approx(_centre_of_fc7(middle), abs=0.01)


def _centre_of_fc7(cell: int) -> float:
    """The pixel in the middle of what fc7's cell reads: five poolings of 2 (each adds half of its stride), a 7x7 kernel."""
    position = 32 * (cell + 3)
    for stride in (1, 2, 4, 8, 16):
        position += stride / 2
    return position - 99  # conv1_1 of 3x3 loses one of the hundred


def test_fcn16s_begins_as_fcn32s() -> None:
    """The new scorer is 0, so one more skip changes only how the upsampling is done."""
    torch.manual_seed(0)
    coarse, fine = built("fcn32s", "model/backbone=tiny"), built("fcn16s", "model/backbone=tiny")
    fine.load_state_dict(coarse.state_dict(), strict=False)
    nn.init.zeros_(fine.head.score["c4"].weight)
    batch = Batch.collate(drawn(size=(128, 128)))
    with torch.no_grad():
        expected, got = (model.eval().features(batch)["scores"] for model in (coarse, fine))
    inside = (..., slice(32, -32), slice(32, -32))
    assert (expected[inside] - got[inside]).abs().max() < 0.15 * expected.abs().max()


def test_fcn8s_at_once_scales_its_skips() -> None:
    """The released at-once net multiplies pool4 by 0.01 and pool3 by 0.0001 before their scorers."""
    plain, scaled = (
        built("fcn8s", "model/backbone=tiny"),
        built("fcn8s", "model/backbone=tiny", "model.head.scales=[1,0.01,0.0001]"),
    )
    scaled.load_state_dict(plain.state_dict())
    for name, scale in (("c4", 0.01), ("c3", 0.0001)):
        plain.head.score[name].weight.data *= scale
    batch = Batch.collate(drawn())
    with torch.no_grad():
        expected, got = (model.eval().features(batch)["scores"] for model in (plain, scaled))
    torch.testing.assert_close(got, expected)


def test_unpadded_picture_does_not_depend_on_the_padding_of_its_batch() -> None:
    model = built("unet_paper", *MODELS["unet_paper"]).eval()
    sample = Shapes("padding", count=1, size=(64, 100))[0]
    seen = [model.features(Batch.collate([sample], divisor=d))["scores"][..., :64, :100].detach() for d in (1, 128)]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=1e-4)


def test_full_resolution_never_downsamples() -> None:
    model = on_meta("fcn_full_paper")
    assert model.backbone.strides == {"c1": 1}
    assert not any(isinstance(m, nn.MaxPool2d) or getattr(m, "stride", 1) in (2, (2, 2)) for m in model.modules())


# --- tiles ---


@pytest.mark.parametrize(
    ("length", "starts"), [(50, [0]), (100, [0]), (101, [0, 1]), (180, [0, 80]), (200, [0, 80, 100])]
)
def test_tiles_cover_the_picture(length: int, starts: list[int]) -> None:
    assert [x for _, x in Tiles((100, 100), 20).places(100, length)] == starts


def test_tiles_of_a_pixelwise_score_are_the_whole() -> None:
    images = torch.randn(2, 3, 70, 90)
    out = Tiles((32, 40), 8)(lambda window: {"scores": window[:, :2] * 3}, images)
    torch.testing.assert_close(out["scores"], images[:, :2] * 3)


def test_tiles_of_a_network_agree_away_from_the_edges() -> None:
    whole = built("fcn_full", schema=SCHEMA).eval()
    tiled = built(
        "fcn_full",
        "+model.tiles._target_=quadrat.models.tiles.Tiles",
        "+model.tiles.size=[48,48]",
        "+model.tiles.overlap=24",
    ).eval()
    tiled.load_state_dict(whole.state_dict())
    batch = Batch.collate(drawn(size=(96, 96)))
    with torch.no_grad():
        expected, got = whole.features(batch)["scores"], tiled.features(batch)["scores"]
    assert (expected.argmax(1) == got.argmax(1)).float().mean() > 0.97
    assert tiled.train().features(batch)["scores"].shape == expected.shape


def test_tiles_refuse_an_overlap_as_large_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"0\.\.31"):
        Tiles((32, 64), 32)
