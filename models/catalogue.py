"""The closed catalogue of networks that a plan may name. A published version never changes: a change is another one.

All take one channel of 2-D images, float32 [n, 1, h, w] in [0, 1], and answer logits, float32 [n, classes].
All normalise each image by itself: batch statistics would mix patients and would have to be shared beside the weights.

Reading the catalogue is cheap. `build` imports torch and MONAI (seconds).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from boundary.plan import ModelChoice
from models.errors import InputTooSmall, UnknownModel

if TYPE_CHECKING:
    from torch import nn


def _cnn_small(classes: int) -> "nn.Module":
    from models.networks import convolutions

    return convolutions(classes, channels=(16, 32, 32), groups=4)


def _densenet_small(classes: int) -> "nn.Module":
    from models.networks import densenet

    return densenet(classes, init_features=16, growth_rate=24, block_config=(2, 2, 3), bn_size=2, groups=8)


def _densenet121(classes: int) -> "nn.Module":
    from models.networks import densenet

    return densenet(classes, init_features=64, growth_rate=32, block_config=(6, 12, 24, 16), bn_size=4, groups=32)


def _resnet18(classes: int) -> "nn.Module":
    from models.networks import resnet

    return resnet(classes, layers=(2, 2, 2, 2), groups=32)


def _vit_small(classes: int) -> "nn.Module":
    from models.vision_transformer import VisionTransformer

    return VisionTransformer(classes, patch=16, width=192, depth=6, heads=3)


@dataclass(frozen=True, slots=True)
class Entry:
    """One network in one version. `smallest_side` is in pixels; `parameters` counts them for two classes."""

    name: str
    version: int
    summary: str
    smallest_side: int
    parameters: int
    make: Callable[[int], "nn.Module"] = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        """`densenet-small v1`: how people name it."""
        return f"{self.name} v{self.version}"


# smallest_side is the total stride, or the patch: at that size the last feature map is one pixel, below it is padding
# or nothing.
_ENTRIES = (
    Entry("cnn-small", 1, "Three convolutions, for studies with a guarantee per patient", 16, 15_234, _cnn_small),
    Entry("densenet-small", 1, "DenseNet of 7 layers, for trials and small cohorts", 16, 96_850, _densenet_small),
    Entry("densenet121", 1, "DenseNet-121 (Huang et al. 2017)", 32, 6_949_634, _densenet121),
    Entry("resnet18", 1, "ResNet-18 (He et al. 2016), projection shortcuts", 32, 11_171_266, _resnet18),
    Entry("vit-small", 1, "Vision transformer of 6 layers, patches of 16 x 16", 16, 2_719_298, _vit_small),
)


def describe() -> tuple[Entry, ...]:
    """Every network there is, in the order in which they are listed to people."""
    return _ENTRIES


def names() -> tuple[str, ...]:
    """The labels of `describe()`: `densenet-small v1`, ..."""
    return tuple(entry.label for entry in _ENTRIES)


def entry_of(choice: ModelChoice) -> Entry:
    """Look a plan's choice up; raises `UnknownModel`, which names what exists."""
    for entry in _ENTRIES:
        if (entry.name, entry.version) == (choice.name, choice.version):
            return entry
    raise UnknownModel(choice.name, choice.version, names())


def check_input_size(choice: ModelChoice, size: tuple[int, int]) -> None:
    """Refuse a plan whose images, (height, width) px, are too small; raises `InputTooSmall` or `UnknownModel`."""
    entry = entry_of(choice)
    if min(size) < entry.smallest_side:
        raise InputTooSmall(entry.label, size, entry.smallest_side)


def build(choice: ModelChoice, classes: int) -> "nn.Module":
    """Make the network on the CPU, with weights drawn from torch's global generator; raises `UnknownModel`.

    For reproducible weights use `models.parameters.initial_tensors`.
    """
    entry = entry_of(choice)
    if classes < 2:
        raise ValueError(f"{classes} classes: a classifier has two or more")
    return entry.make(classes)
