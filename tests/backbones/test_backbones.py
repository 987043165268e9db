"""What a backbone promises is true of its maps, what is frozen stands still, and weights of another network are refused."""

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from quadrat.backbones.base import Backbone, imagenet_state, load_weights
from quadrat.backbones.mobilenet import MobileNetV2
from quadrat.backbones.resnet import ResNet
from quadrat.backbones.squeezenet import SqueezeNet
from quadrat.backbones.tiny import Tiny
from quadrat.backbones.vgg import VGG16

MAKERS: dict[str, Callable[..., Backbone]] = {
    "tiny": Tiny,
    **{f"resnet{depth}": lambda depth=depth, **options: ResNet(depth, **options) for depth in (18, 34, 50, 101)},
    "mobilenet_v2": MobileNetV2,
    "squeezenet1_1": SqueezeNet,
    "vgg16": VGG16,
}
PUBLISHED = {"resnet18": "fc", "mobilenet_v2": "classifier", "squeezenet1_1": "classifier"}
"""Small architectures of torchvision that stand for all, and what they call their classifier."""


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def theirs(architecture: str) -> nn.Module:
    torch.manual_seed(3)
    return getattr(models, architecture)(weights=None).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """State dict files of seeded random networks, with their classifiers."""
    folder = tmp_path_factory.mktemp("weights")
    for name in PUBLISHED:
        torch.save(theirs(name).state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in PUBLISHED}


# Maps


@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_channels_and_strides_are_true_of_the_maps(name: str, images: Tensor):
    backbone = MAKERS[name]().eval()
    maps = backbone(images)
    assert list(maps) == list(backbone.out_channels) == list(backbone.strides) == list(backbone.region_maps)
    short = 1 if name == "squeezenet1_1" else 0  # its unpadded layers may lose a cell
    for key, features in maps.items():
        side = 64 // backbone.strides[key]
        assert features.shape[:2] == (2, backbone.out_channels[key])
        assert all(side - short <= length <= side for length in features.shape[2:])


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2", "squeezenet1_1"])
@torch.no_grad()
def test_maps_of_a_picture_taller_than_wide(name: str):
    backbone = MAKERS[name]().eval()
    for key, features in backbone(torch.zeros(1, 3, 128, 64)).items():
        rows, columns = features.shape[2:]
        assert rows - 1 <= 128 // backbone.strides[key] <= rows + 1
        assert columns - 1 <= 64 // backbone.strides[key] <= columns + 1
        assert rows > columns or rows == 128 // backbone.strides[key]


def test_tiny_takes_its_width():
    assert Tiny(8).out_channels == {"c1": 8, "c2": 16, "c3": 32, "c4": 48, "c5": 64}
    assert list(Tiny(8).strides.values()) == [2, 4, 8, 16, 32]


def test_resnet_of_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"ResNet depth is one of \(18, 34, 50, 101\), got 42"):
        ResNet(42)


def test_resnet_norm_eps_reaches_every_norm():
    norms = [m for m in ResNet(18, norm_eps=0.5).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert {norm.eps for norm in norms} == {0.5}


@torch.no_grad()
def test_only_named_maps_are_returned(images: Tensor):
    stages = {"stem": nn.Conv2d(3, 4, 3, 2, 1), "c2": nn.Conv2d(4, 8, 3, 2, 1)}
    assert list(Backbone(stages, {"c2": 8}, {"c2": 4})(images)) == ["c2"]


# Frozen parts


def trained_step(backbone: Backbone, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state before and after one step of training with a large rate and weight decay."""
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    learning = [p for p in backbone.parameters() if p.requires_grad]
    backbone.train()
    maps = backbone(images)
    if learning:
        sum((m**2).mean() for m in maps.values()).backward()
        torch.optim.SGD(learning, lr=0.1, weight_decay=0.1).step()
    return before, backbone.state_dict()


def norms_of(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2", "squeezenet1_1"])
@pytest.mark.parametrize("frozen", [0, 2, "all"])
def test_frozen_stages_stand_still_and_the_others_learn(name: str, frozen: int | str, images: Tensor):
    stages = len(MAKERS[name]().stages)
    backbone = MAKERS[name](freeze_stages=stages if frozen == "all" else frozen)
    before, after = trained_step(backbone, images)
    still = list(backbone.stages)[: backbone.frozen_stages]
    for key, value in after.items():
        if key.split(".")[1] in still:
            assert torch.equal(value, before[key]), key
    for stage in list(backbone.stages)[len(still) :]:
        assert any(not torch.equal(v, before[k]) for k, v in after.items() if k.startswith(f"stages.{stage}."))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "mobilenet_v2"])
def test_frozen_norms_stand_still_and_convolutions_learn(name: str, images: Tensor):
    backbone = MAKERS[name](freeze_norm=True)
    norms = {key for key, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before, after = trained_step(backbone, images)
    assert norms
    for key, value in after.items():
        assert torch.equal(value, before[key]) == (key.rpartition(".")[0] in norms), key


def test_norms_that_are_not_frozen_gather_statistics(images: Tensor):
    before, after = trained_step(Tiny(), images)
    moved = [key for key in after if key.endswith("running_mean") and not torch.equal(after[key], before[key])]
    assert len(moved) == sum(key.endswith("running_mean") for key in after)


@pytest.mark.parametrize("mode", [True, False])
def test_train_leaves_frozen_parts_in_evaluation_mode(mode: bool):
    backbone = ResNet(18, freeze_stages=2).train(mode)
    stages = list(backbone.stages.values())
    assert not any(m.training for stage in stages[:2] for m in stage.modules())
    assert all(m.training is mode for stage in stages[2:] for m in stage.modules())


def test_train_reaches_a_frozen_backbone_inside_a_model():
    model = nn.Sequential(Tiny(freeze_stages=1, freeze_norm=True), nn.Dropout()).eval().train()
    assert model[0].training
    assert not any(norm.training for norm in norms_of(model))
    assert not model[0].stages["c1"].training
    assert model[1].training


def test_freeze_again_lets_go_of_what_was_frozen():
    backbone = Tiny(freeze_stages=3, freeze_norm=True)
    backbone.freeze(1, False)
    frozen = [key for key, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert {key.split(".")[1] for key in frozen} == {"c1"}
    assert all(norm.training for stage in list(backbone.stages.values())[1:] for norm in norms_of(stage))


@pytest.mark.parametrize("count", [-1, 6])
def test_freezing_stages_that_are_not_there_is_refused(count: int):
    with pytest.raises(ValueError, match=rf"freeze_stages is 0\.\.5 for this backbone, got {count}"):
        Tiny(freeze_stages=count)


# Weights


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_weights_of_a_file_make_the_same_network(name: str, files: dict[str, Path], images: Tensor):
    peer, ours = theirs(name), MAKERS[name](weights=str(files[name])).eval()(images)
    if name == "resnet18":
        x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(images))))
        expected = {"c1": x}
        for i in (1, 2, 3, 4):
            x = expected[f"c{i + 1}"] = peer.get_submodule(f"layer{i}")(x)
        assert all(torch.equal(ours[key], expected[key]) for key in expected)
    else:
        layers = peer.features[:18] if name == "mobilenet_v2" else peer.features
        assert torch.equal(list(ours.values())[-1], layers(images))


@torch.no_grad()
def test_vgg16_is_torchvisions_trunk(images: Tensor):
    backbone = VGG16().eval()
    layers = models.vgg.make_layers(models.vgg.cfgs["D"])
    flat = [p for stage in backbone.stages.values() for p in stage.parameters()]
    for mine, other in zip(flat, layers.parameters(), strict=True):
        other.copy_(mine)
    assert torch.equal(layers[:-1](images), backbone(images)["c5"])


@pytest.mark.parametrize("weights", [None, "none"])
def test_no_weights_are_random_weights(weights: str | None):
    torch.manual_seed(0)
    first = SqueezeNet(weights=weights).state_dict()
    torch.manual_seed(0)
    again = SqueezeNet().state_dict()
    other = SqueezeNet().state_dict()
    key = "stages.c1.0.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_a_home_folder_is_understood(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(files["squeezenet1_1"].parent))
    loaded = SqueezeNet(weights="~/squeezenet1_1.pth").state_dict()["stages.c1.0.weight"]
    assert torch.equal(loaded, theirs("squeezenet1_1").features[0].weight)


def test_weights_that_do_not_exist_are_named(tmp_path: Path):
    missing = tmp_path / "nowhere.pth"
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.pth do not exist; give a state dict file, imagenet, or none"
    ):
        SqueezeNet(weights=str(missing))


def test_weights_of_another_network_are_refused(files: dict[str, Path]):
    with pytest.raises(ValueError, match=r"resnet18\.pth holds no weights of a squeezenet1_1") as refused:
        SqueezeNet(weights=str(files["resnet18"]))
    message = str(refused.value)
    assert f"{len(SqueezeNet().state_dict())} keys missing (first: ['features.0.weight'" in message
    assert "unknown (first: ['conv1.weight'" in message


def test_weights_that_lack_a_layer_are_refused(files: dict[str, Path], tmp_path: Path):
    state = torch.load(files["resnet18"], weights_only=True)
    del state["layer4.1.conv2.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1 keys missing \(first: \['layer4\.1\.conv2\.weight'\]\), 0 unknown"):
        ResNet(18, weights=str(tmp_path / "part.pth"))


def test_a_checkpoint_that_wraps_a_state_dict_is_refused(files: dict[str, Path], tmp_path: Path):
    torch.save({"state_dict": torch.load(files["squeezenet1_1"], weights_only=True)}, tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"run\.ckpt holds no state dict of tensors"):
        SqueezeNet(weights=str(tmp_path / "run.ckpt"))


def test_weights_of_another_width_are_refused(files: dict[str, Path], tmp_path: Path):
    """The names are those of a ResNet-18, the shapes are not."""
    state = torch.load(files["resnet18"], weights_only=True)
    state["conv1.weight"] = torch.zeros(32, 3, 7, 7)
    torch.save(state, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"narrow\.pth.*conv1\.weight"):
        ResNet(18, weights=str(tmp_path / "narrow.pth"))


def test_a_file_that_is_no_state_dict_is_named(tmp_path: Path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth"):
        SqueezeNet(weights=str(tmp_path / "page.pth"))


def test_old_weights_without_counters_are_accepted(files: dict[str, Path]):
    state = torch.load(files["mobilenet_v2"], weights_only=True)
    body = models.mobilenet_v2(weights=None)
    del body.classifier
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    path = files["mobilenet_v2"].with_name("old.pth")
    torch.save(old, path)
    load_weights(body, str(path), "mobilenet_v2", unused=("classifier.",))
    assert torch.equal(body.features[0][0].weight, old["features.0.0.weight"])


def test_imagenet_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def offline(*args: object, **options: object) -> dict:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(FileNotFoundError, match="ImageNet weights of squeezenet1_1 could not be downloaded") as refused:
        SqueezeNet(weights="imagenet")
    assert "no route to host" in str(refused.value)
    assert "model.backbone.weights=<path of a state dict> or model.backbone.weights=none" in str(refused.value)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "tiny"])
def test_imagenet_asks_for_the_weights_of_its_own_architecture(name: str, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **options: asked.append((url, options)) or {}
    )
    assert imagenet_state(name) == {}
    ((url, options),) = asked
    assert url.rpartition("/")[2].startswith(f"{name}-")
    assert options["check_hash"] is True


REAL = {
    "mobilenet_v2_imagenet_trunk.pth": MobileNetV2,
    "mobilenet_v2_imagenet1k_q8.pth": MobileNetV2,
    "squeezenet1_1_imagenet1k.pth": SqueezeNet,
}


@pytest.mark.parametrize("file", REAL)
@torch.no_grad()
def test_real_imagenet_weights_load(file: str, shared: Path, images: Tensor):
    path = shared / "data" / "weights" / file
    if not path.is_file():
        pytest.skip(f"no {path}: the real weights are not there")
    torch.manual_seed(0)
    backbone = REAL[file](weights=str(path)).eval()
    stored = torch.load(path, weights_only=True)["features.0.0.weight" if "mobile" in file else "features.0.weight"]
    assert torch.equal(next(backbone.parameters()), stored)
    maps = backbone(images)
    assert all(m.isfinite().all() and m.std() > 0 for m in maps.values())


def test_real_weights_of_another_network_are_refused(shared: Path):
    path = shared / "data" / "weights" / "squeezenet1_1_imagenet1k.pth"
    if not path.is_file():
        pytest.skip(f"no {path}: the real weights are not there")
    with pytest.raises(ValueError, match=r"squeezenet1_1_imagenet1k\.pth holds no weights of a mobilenet_v2"):
        MobileNetV2(weights=str(path))
