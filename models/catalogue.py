"""The closed catalogue of networks that a plan may name. A published version never changes: a change is another one.

All take one channel of images in [0, 1], float32 [n, 1, h, w] or volumes [n, 1, d, h, w], and answer logits: float32
[n, classes] for classification, [n, classes, *sides] for segmentation, of which class 0 is the background. All
normalise each image by itself: batch statistics would mix patients and would have to be shared beside the weights.

Reading the catalogue is cheap. `build` imports torch and MONAI (seconds).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from boundary.learning import ModelChoice
from boundary.plan import StudyPlan, Task
from models.errors import InputIndivisible, InputTooSmall, UnknownModel, WrongNetwork

if TYPE_CHECKING:
    from torch import nn

Make = Callable[[int], "nn.Module"]


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


def _unet(dimensions: int, channels: tuple[int, ...], units: int) -> Make:
    def make(classes: int) -> "nn.Module":
        from models.segmenters import unet

        return unet(classes, dimensions=dimensions, channels=channels, units=units, groups=8)

    return make


def _segresnet(dimensions: int, filters: int, down: tuple[int, ...], up: tuple[int, ...]) -> Make:
    def make(classes: int) -> "nn.Module":
        from models.segmenters import segresnet

        return segresnet(classes, dimensions=dimensions, filters=filters, down=down, up=up, groups=8)

    return make


@dataclass(frozen=True, slots=True)
class Entry:
    """One network in one version. `parameters` counts them for two classes.

    Sides are in pixels or voxels: `smallest_side` is the least, and `stride` divides each of them.
    """

    name: str
    version: int
    summary: str
    smallest_side: int
    parameters: int
    make: Make = field(repr=False, compare=False)
    task: Task = "classification"
    dimensions: int = 2
    stride: int = 1

    @property
    def label(self) -> str:
        """`densenet-small v1`: how people name it."""
        return f"{self.name} v{self.version}"

    @property
    def use(self) -> str:
        """`segmentation of 3-D images`: what it is for."""
        return _use(self.task, self.dimensions)


def _segmenter(name: str, dimensions: int, summary: str, stride: int, parameters: int, make: Make) -> Entry:
    return Entry(name, 1, summary, max(16, 2 * stride), parameters, make, "segmentation", dimensions, stride)


_SMALL = "For trials and studies with a guarantee per patient"
_UNET = "Residual UNet of 5 levels (Kerfoot et al. 2019)"
_SEGRESNET = "SegResNet of 4 levels (Myronenko 2018)"
# smallest_side is the total stride, or the patch: at that size the last feature map is one pixel, below it is padding
# or nothing. Of a segmentation it is twice the stride: the exported model asks for two voxels at the coarsest level.
_ENTRIES = (
    Entry("cnn-small", 1, "Three convolutions, for studies with a guarantee per patient", 16, 15_234, _cnn_small),
    Entry("densenet-small", 1, "DenseNet of 7 layers, for trials and small cohorts", 16, 96_850, _densenet_small),
    Entry("densenet121", 1, "DenseNet-121 (Huang et al. 2017)", 32, 6_949_634, _densenet121),
    Entry("resnet18", 1, "ResNet-18 (He et al. 2016), projection shortcuts", 32, 11_171_266, _resnet18),
    Entry("vit-small", 1, "Vision transformer of 6 layers, patches of 16 x 16", 16, 2_719_298, _vit_small),
    _segmenter("unet-small-2d", 2, _SMALL, 8, 52_108, _unet(2, (8, 16, 32, 64), 1)),
    _segmenter("unet-small-3d", 3, _SMALL, 8, 150_964, _unet(3, (8, 16, 32, 64), 1)),
    _segmenter("unet-2d", 2, _UNET, 16, 1_627_580, _unet(2, (16, 32, 64, 128, 256), 2)),
    _segmenter("unet-3d", 3, _UNET, 16, 4_808_900, _unet(3, (16, 32, 64, 128, 256), 2)),
    _segmenter("segresnet-small-2d", 2, _SMALL, 4, 36_778, _segresnet(2, 8, (1, 1, 1), (1, 1))),
    _segmenter("segresnet-small-3d", 3, _SMALL, 4, 108_346, _segresnet(3, 8, (1, 1, 1), (1, 1))),
    _segmenter("segresnet-2d", 2, _SEGRESNET, 8, 1_576_402, _segresnet(2, 16, (1, 2, 2, 4), (1, 1, 1))),
    _segmenter("segresnet-3d", 3, _SEGRESNET, 8, 4_700_914, _segresnet(3, 16, (1, 2, 2, 4), (1, 1, 1))),
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


def check_model(plan: StudyPlan) -> None:
    """Refuse a plan whose network is not for its task and its images: at publication, and before approval is offered.

    Raises `UnknownModel`, `WrongNetwork`, `InputTooSmall` or `InputIndivisible`, which name what would fit.
    """
    entry, size = entry_of(plan.model), plan.preprocessing.size
    wanted = _use(plan.task, len(size))
    if entry.use != wanted:
        raise WrongNetwork(entry.label, entry.use, wanted, tuple(one.label for one in _ENTRIES if one.use == wanted))
    if min(size) < entry.smallest_side:
        raise InputTooSmall(entry.label, size, entry.smallest_side)
    if any(side % entry.stride for side in size):
        raise InputIndivisible(entry.label, size, entry.stride)


def _use(task: Task, dimensions: int) -> str:
    return f"{task} of {dimensions}-D images"


def build(choice: ModelChoice, classes: int) -> "nn.Module":
    """Make the network on the CPU, with weights drawn from torch's global generator; raises `UnknownModel`.

    With the adapters that the choice asks for, drawn after all else; raises `UnfitAdapters` where they fit nothing.
    For reproducible weights use `models.parameters.initial_tensors`.
    """
    entry = entry_of(choice)
    if classes < 2:
        raise ValueError(f"{classes} classes: there are two or more")
    network = entry.make(classes)
    if choice.lora is not None:
        from models.low_rank import adapt

        adapt(network, choice.lora)
    return network
