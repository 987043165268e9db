"""VGG16 (Simonyan and Zisserman, ICLR 2015): torchvision's layers under our contract."""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from quadrat.backbones.base import Backbone, load_weights


class VGG16(Backbone):
    """The five groups of convolutions, each but the first behind its pooling: c1 64 (stride 1) to c5 512 (stride 16).

    The last pooling and the fully connected layers are left out; a region head that wants fc6 and fc7 reads them itself.
    """

    def __init__(self, *, weights: str | None = None, freeze_stages: int = 0, freeze_norm: bool = False) -> None:
        body = nn.Module()  # the fully connected layers, nine tenths of the network, are not even made
        body.features = make_layers(cfgs["D"])
        load_weights(body, weights, "vgg16", unused=("classifier.",))
        layers = list(body.features.children())
        cuts = [0, 4, 9, 16, 23, 30]
        super().__init__(
            {f"c{i + 1}": nn.Sequential(*layers[cuts[i] : cuts[i + 1]]) for i in range(5)},
            out_channels={"c1": 64, "c2": 128, "c3": 256, "c4": 512, "c5": 512},
            strides={"c1": 1, "c2": 2, "c3": 4, "c4": 8, "c5": 16},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


class VGG16FCN(Backbone):
    """VGG16 as FCN makes it fully convolutional (Long et al., CVPR 2015): maps pool3 256, pool4 512 and fc7 ``hidden`` channels.

    The picture is padded by ``padding`` (100) so that fc6, a 7x7 convolution, fits small ones too; poolings round up as in Caffe;
    dropout behind fc6 and fc7. Strides are 8, 16 and 32. ``weights`` bring fc6 and fc7 along, reshaped.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        hidden: int = 4096,
        dropout: float = 0.5,
        padding: int = 100,
        freeze_stages: int = 0,
        freeze_norm: bool = False,
    ) -> None:
        body = nn.Module()
        body.features = make_layers(cfgs["D"])
        body.classifier = nn.ModuleDict({"0": nn.Linear(512 * 49, hidden), "3": nn.Linear(hidden, hidden)})
        load_weights(body, weights, "vgg16", unused=("classifier.6.",))
        layers = list(body.features.children())
        assert isinstance(layers[0], nn.Conv2d)
        layers[0].padding = (padding, padding)
        for layer in layers:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        fc6 = _as_convolution(body.classifier["0"], 512, 7)
        fc7 = _as_convolution(body.classifier["3"], hidden, 1)
        full = nn.Sequential(fc6, nn.ReLU(), nn.Dropout(dropout), fc7, nn.ReLU(), nn.Dropout(dropout))
        super().__init__(
            {
                "pool3": nn.Sequential(*layers[:17]),
                "pool4": nn.Sequential(*layers[17:24]),
                "pool5": nn.Sequential(*layers[24:]),
                "fc7": full,
            },
            out_channels={"pool3": 256, "pool4": 512, "fc7": hidden},
            strides={"pool3": 8, "pool4": 16, "fc7": 32},
            freeze_stages=freeze_stages,
            freeze_norm=freeze_norm,
        )


def _as_convolution(layer: nn.Module, channels: int, kernel: int) -> nn.Conv2d:
    """A fully connected layer on (channels, kernel, kernel) as the convolution that it is."""
    assert isinstance(layer, nn.Linear)
    convolution = nn.Conv2d(channels, layer.out_features, kernel)
    convolution.weight = nn.Parameter(layer.weight.detach().view_as(convolution.weight))
    convolution.bias = layer.bias
    return convolution
