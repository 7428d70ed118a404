"""MONAI's networks for segmentation, made fit for federated and per-patient private training. Only `catalogue` asks.

Images float32 [n, 1, *sides] of two or three dimensions to logits of every voxel, [n, classes, *sides]. Nothing in them
depends on the sides but that the total stride divides each, for the way up must meet the way down.

What makes them fit is in `models.private.prepare`. Norms are asked for as BatchNorm, in whose place it puts GroupNorm
with groups that fit the channels: the last ones of a UNet are as many as there are classes.
"""

from collections.abc import Sequence

from monai.networks.nets import SegResNet, UNet
from torch import nn

from models.private.prepare import prepare


def unet(classes: int, *, dimensions: int, channels: Sequence[int], units: int, groups: int) -> nn.Module:
    """UNet with residual units (Kerfoot et al. 2019); total stride 2^(levels - 1).

    `channels` are those of each level, the finest first; `units` is how many convolutions a unit has.
    """
    network = UNet(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        channels=channels,
        strides=[2] * (len(channels) - 1),
        num_res_units=units,
        act="RELU",
        norm="BATCH",
    )
    return prepare(network, groups)


def segresnet(
    classes: int, *, dimensions: int, filters: int, down: Sequence[int], up: Sequence[int], groups: int
) -> nn.Module:
    """SegResNet (Myronenko 2018, without its variational branch); total stride 2^(levels - 1).

    `filters` channels at the finest level, twice as many at each coarser one; `down` and `up` are the blocks of each
    level on the way down and up.
    """
    network = SegResNet(
        spatial_dims=dimensions,
        in_channels=1,
        out_channels=classes,
        init_filters=filters,
        blocks_down=down,
        blocks_up=up,
        norm="BATCH",
    )
    return prepare(network, groups)
