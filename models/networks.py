"""MONAI's classifiers, made fit for federated and per-patient private training. Only `catalogue.build` imports this.

MONAI 1.6.1 as shipped does three things that per-sample gradients (Opacus hooks) cannot bear:

- BatchNorm mixes the samples of a batch. We put GroupNorm (Wu & He 2018) in its place. `ResNet(norm=...)` is no
  way to ask for it, MONAI does not hand the argument to the blocks.
- Activations run in place and overwrite what a hook still needs.
- `ResNetBlock.forward` adds with `out += residual`, in place. `ResidualBlock` below adds out of place.

And one that harms any training: ResNet's shortcut type A reads `out.data`, which cuts the gradient of the shortcut.
"""

from collections.abc import Sequence

from monai.networks.nets import DenseNet, ResNet
from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn


class ResidualBlock(ResNetBlock):  # type: ignore[misc]  # MONAI has no types
    """MONAI's basic block, same parameters and values, without its in-place addition."""

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        answer: Tensor = self.act(out + residual)
        return answer


class Normalised(nn.Module):
    """A released network with the study's normalisation in front: takes images in [0, 1]."""

    def __init__(self, network: nn.Module, mean: float, deviation: float) -> None:
        super().__init__()
        self.network, self.mean, self.deviation = network, mean, deviation

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.network((x - self.mean) / self.deviation)
        return answer


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
    return _sample_by_sample(network, groups)


def resnet(classes: int, *, layers: Sequence[int], groups: int) -> nn.Module:
    """ResNet (He et al. 2016) of basic blocks with projection shortcuts; total stride 32.

    The first convolution has stride 2 as in the paper; MONAI's default of 1 is for small volumes.
    """
    network = ResNet(
        block=ResidualBlock,
        layers=list(layers),
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        num_classes=classes,
    )
    return _sample_by_sample(network, groups)


def _sample_by_sample(network: nn.Module, groups: int) -> nn.Module:
    """Make every layer treat each sample alone and leave its input as it is."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(groups, child.num_features))
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return network
