"""MONAI's classifiers, made fit for federated and per-patient private training. Only `catalogue.build` imports this.

What makes them fit is in `models.private.prepare`. Two more things are ours to choose: `ResNet(norm=...)` is no way to
ask for another normalisation, MONAI does not hand the argument to the blocks. And ResNet's shortcut type A reads
`out.data`, which cuts the gradient of the shortcut and harms any training.
"""

from collections.abc import Sequence
from itertools import pairwise

from monai.networks.blocks import Convolution
from monai.networks.nets import DenseNet, ResNet
from torch import Tensor, nn

from models.private.prepare import prepare

_GRID = 4


class Normalised(nn.Module):
    """A released network with the study's normalisation in front: takes images in [0, 1]."""

    def __init__(self, network: nn.Module, mean: float, deviation: float) -> None:
        super().__init__()
        self.network, self.mean, self.deviation = network, mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.network((x - self.mean) / self.deviation)
        return answer


def convolutions(classes: int, *, channels: Sequence[int], groups: int) -> nn.Module:
    """Strided convolutions and one linear layer on a grid of 4 x 4: few parameters, for noise grows with their number.

    float32 [n, 1, h, w] -> [n, classes]; total stride 2^len(channels).
    """
    layers: list[nn.Module] = [
        Convolution(2, before, after, strides=2, kernel_size=3, act="RELU", norm=("GROUP", {"num_groups": groups}))
        for before, after in pairwise((1, *channels))
    ]
    head = nn.Linear(_GRID * _GRID * channels[-1], classes)
    return prepare(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_GRID), nn.Flatten(), head), groups)


def densenet(
    classes: int,
    *,
    init_features: int,
    growth_rate: int,
    block_config: Sequence[int],
    bn_size: int,
    groups: int,
) -> nn.Module:
    """DenseNet (Huang et al. 2017), float32 [n, 1, h, w] -> [n, classes]; total stride 2^(blocks + 1)."""
    network = DenseNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=classes,
        init_features=init_features,
        growth_rate=growth_rate,
        block_config=block_config,
        bn_size=bn_size,
    )
    return prepare(network, groups)


def resnet(classes: int, *, layers: Sequence[int], groups: int) -> nn.Module:
    """ResNet (He et al. 2016) of basic blocks with projection shortcuts; total stride 32.

    The first convolution has stride 2 as in the paper; MONAI's default of 1 is for small volumes.
    """
    network = ResNet(
        block="basic",
        layers=list(layers),
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        num_classes=classes,
    )
    return prepare(network, groups)
