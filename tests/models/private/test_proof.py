from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from monai.losses import ContrastiveLoss, DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss, TverskyLoss
from monai.losses.barlow_twins import BarlowTwinsLoss
from monai.networks.layers import DropPath
from monai.networks.nets import DenseNet, SegResNet, UNet, ViT, resnet18
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from boundary.learning import ModelChoice
from models.catalogue import build
from models.errors import (
    GradientsDiffer,
    LossMixesSamples,
    ModelError,
    SamplesMix,
    UnfitNetwork,
    WithoutGradient,
)
from models.private.prepare import prepare
from models.private.proof import Loss, Proof, check_loss, class_labels, prove

Make = Callable[[], nn.Module]
SHAPE = (1, 32, 32)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def masks(answer: Tensor, generator: torch.Generator) -> Tensor:
    """One class of two for each pixel, one-hot, for answers [n, 2, h, w]."""
    ones = torch.rand(answer[:, :1].shape, dtype=answer.dtype, generator=generator) < 0.3
    return torch.cat((~ones, ones), dim=1).to(answer.dtype)


def densenet(norm: object = "batch") -> nn.Module:
    return DenseNet(2, 1, 2, init_features=8, growth_rate=8, block_config=(2, 2), bn_size=2, norm=norm)


def unet() -> nn.Module:
    return UNet(2, 1, 2, channels=(8, 16), strides=(2,))


def test_a_catalogue_network_is_proved_and_left_as_it_was() -> None:
    network = build(ModelChoice(name="densenet-small", version=1), 2).eval()
    before, random = deepcopy(network.state_dict()), torch.get_rng_state()
    proof = prove(network, SHAPE, cross_entropy, generator=generator())
    assert proof == Proof("mean", len(before), proof.largest_error)
    assert proof.largest_error < 1e-9
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not [p for p in network.parameters() if p.grad is not None or hasattr(p, "grad_sample")]
    assert not [m for m in network.modules() if m._forward_hooks or m._backward_hooks]
    assert torch.equal(torch.get_rng_state(), random)
    assert prove(network, SHAPE, cross_entropy, generator=generator()) == proof


def test_a_segmentation_is_proved_with_targets_of_its_own() -> None:
    loss = DiceLoss(softmax=True)
    assert prove(unet(), SHAPE, loss, generator=generator(), targets=masks).reduction == "mean"


def test_a_vision_transformer_is_proved_with_a_side_that_no_patch_divides() -> None:
    network = build(ModelChoice(name="vit-small", version=1), 2)
    assert prove(network, (1, 16, 40), cross_entropy, generator=generator()).largest_error < 1e-9


class TwoHalves(nn.Module):
    """Folds the halves of each image into the batch, as Swin does with its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        halves: Tensor = self.layer(x.view(2 * len(x), 16))
        return halves.view(len(x), 2, 2).sum(dim=1)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(32, 2), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.used(x.flatten(1))
        return answer


class Random(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand_like(x))


class Tied(nn.Module):
    """Uses a weight a second time, past the layer that has the hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.layer(x).tanh() @ self.layer.weight)
        return answer


needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's attention is written with einops")

UNFIT: dict[str, tuple[Make, tuple[int, ...], type[ModelError], str]] = {
    "DenseNet as shipped, with BatchNorm": (densenet, SHAPE, SamplesMix, "changes by"),
    "ResNet18 as shipped, with BatchNorm": (
        lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2), SHAPE, SamplesMix, "by",
    ),
    "activations left in place": (
        lambda: densenet(("group", {"num_groups": 4})), SHAPE, UnfitNetwork, "Opacus' hooks: .* inplace",
    ),
    "residuals added in place": (
        lambda: nn.Sequential(SegResNet(2, blocks_down=(1, 1), blocks_up=(1,), act="relu"), nn.Flatten(1),
                              nn.Linear(512, 2)),
        (1, 16, 16), UnfitNetwork, "Opacus' hooks: .* inplace",
    ),
    "the image itself changed in place": (
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(1), nn.Linear(32, 2)), (32,), UnfitNetwork, "in-place",
    ),
    "halves of an image folded into the batch": (TwoHalves, (32,), GradientsDiffer, r"layer\.weight: .* wrong by inf"),
    "padding that Opacus takes for zeros": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(1), nn.Linear(128, 2)),
        (1, 8, 8), GradientsDiffer, r"0\.weight",
    ),
    "a weight used past its layer": (Tied, (32,), GradientsDiffer, r"layer\.weight: .* wrong by [0-9]"),
    "a layer with a buffer": (
        lambda: nn.Sequential(nn.InstanceNorm2d(1, affine=True, track_running_stats=True), nn.Flatten(1),
                              nn.Linear(64, 2)),
        (1, 8, 8), UnfitNetwork, "trainable layer with buffers",
    ),
    "a parameter that nothing uses": (Unused, (32,), WithoutGradient, r"spare\.weight, spare\.bias"),
    "chance in the answer": (lambda: Random(nn.Flatten(1), nn.Linear(32, 2)), (32,), SamplesMix, "changes by"),
    "an average over the batch": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 2)), (8,),
        SamplesMix, "changes by",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_a_network_without_gradients_of_one_sample_is_refused(case: str) -> None:
    make, shape, error, sentence = UNFIT[case]
    with pytest.raises(error, match=sentence):
        prove(make(), shape, cross_entropy, generator=generator())


@needs_einops
def test_monai_s_vit_as_shipped_answers_no_tensor() -> None:
    shipped = ViT(1, 16, 8, 24, 24, 1, 2, spatial_dims=2, classification=True)
    with pytest.raises(UnfitNetwork, match="does not answer one tensor"):
        prove(shipped, (1, 16, 16), cross_entropy, generator=generator())
    assert prove(prepare(shipped), (1, 16, 16), cross_entropy, generator=generator())


def test_weights_that_begin_as_zero_hide_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(1), nn.Linear(128, 2))
    nn.init.zeros_(network[2].weight)
    with pytest.raises(GradientsDiffer):
        prove(network, (1, 8, 8), cross_entropy, generator=generator())


class Weighted(nn.Module):
    """Adds places up by a softmax: the bias of their scores has no effect, its gradient is rounding errors."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.head = nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head((self.score(x).softmax(dim=1) * x).sum(dim=1))
        return answer


def test_a_gradient_of_rounding_errors_is_no_objection() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        assert prove(Weighted(), (50, 8), cross_entropy, generator=generator()).largest_error < 1e-8


def test_dropout_is_each_sample_s_own_chance_and_no_objection() -> None:
    network = nn.Sequential(nn.Flatten(1), nn.Linear(32, 8), nn.Dropout(0.5), DropPath(0.5), nn.Linear(8, 2))
    assert prove(network, (32,), cross_entropy, generator=generator())


def test_neighbours_have_different_labels() -> None:
    for classes in (2, 3, 7):
        labels = class_labels(torch.zeros(5, classes), generator())
        assert (labels[1:] != labels[:-1]).all()
        assert ((labels >= 0) & (labels < classes)).all()


SOUND: dict[str, tuple[Loss, str]] = {
    "the mean over samples": (cross_entropy, "mean"),
    "the sum over samples": (nn.CrossEntropyLoss(reduction="sum"), "sum"),
    "weights by class, added up": (nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]).double(), reduction="sum"), "sum"),
}
SOUND_FOR_MASKS: dict[str, tuple[Loss, str]] = {
    "Dice": (DiceLoss(softmax=True), "mean"),
    "Dice, added up": (DiceLoss(softmax=True, reduction="sum"), "sum"),
    "Dice and cross-entropy": (DiceCELoss(softmax=True), "mean"),
    "generalised Dice": (GeneralizedDiceLoss(softmax=True), "mean"),
    "Tversky": (TverskyLoss(softmax=True), "mean"),
    "focal, which MONAI computes in float32": (FocalLoss(), "mean"),
}


@pytest.mark.parametrize("case", SOUND | SOUND_FOR_MASKS)
def test_a_loss_of_every_sample_by_itself_is_told_by_how_it_adds_up(case: str) -> None:
    loss, reduction = (SOUND | SOUND_FOR_MASKS)[case]
    if case in SOUND:
        proof = prove(nn.Sequential(nn.Flatten(1), nn.Linear(32, 2)), (32,), loss, generator=generator())
    else:
        proof = prove(nn.Conv2d(1, 2, 3, padding=1), (1, 8, 8), loss, generator=generator(), targets=masks)
    assert proof.reduction == reduction


def like(answer: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(answer.shape, dtype=answer.dtype, generator=generator)


def spread(answer: Tensor, wanted: Tensor) -> Tensor:
    """No type tells what this does: samples are pulled to their mean."""
    return cross_entropy(answer, wanted) + (answer - answer.mean(dim=0)).square().mean()


def hidden(answer: Tensor, wanted: Tensor) -> Tensor:
    loss: Tensor = DiceLoss(batch=True, softmax=True)(answer, wanted)
    return loss


WEIGHTS = torch.tensor([1.0, 3.0]).double()
MIXING: dict[str, tuple[Loss, str]] = {
    "Dice of the whole batch": (DiceLoss(batch=True, softmax=True), "DiceLoss: batch=True adds samples up"),
    "generalised Dice of the whole batch": (GeneralizedDiceLoss(batch=True, softmax=True), "batch=True"),
    "Dice of the whole batch within another loss": (DiceCELoss(batch=True, softmax=True), "DiceLoss: batch=True"),
    "a contrastive loss": (ContrastiveLoss(), "compares samples"),
    "Barlow twins": (BarlowTwinsLoss(), "compares samples"),
    "a mean weighted by class": (nn.CrossEntropyLoss(WEIGHTS), "divides by the weights of all labels"),
    "a mean that ignores a class": (nn.CrossEntropyLoss(ignore_index=1), "divides by how many labels"),
}
MIXING_UNSEEN: dict[str, tuple[Loss, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "Dice of the whole batch in a function": (hidden, masks),
    "a mean weighted by class in a function": (lambda a, w: cross_entropy(a, w, WEIGHTS), class_labels),
    "a contrastive loss in a function": (ContrastiveLoss().forward, like),
    "Barlow twins in a function": (BarlowTwinsLoss().forward, like),
    "a pull to the mean of the batch": (spread, class_labels),
    "the worst sample": (lambda a, w: cross_entropy(a, w, reduction="none").max(), class_labels),
    "the sample in the middle": (lambda a, w: cross_entropy(a, w, reduction="none").median(), class_labels),
    "the root of a mean": (lambda a, w: cross_entropy(a, w).sqrt(), class_labels),
}


@pytest.mark.parametrize("case", MIXING)
def test_a_loss_known_to_mix_samples_is_refused_for_what_it_is(case: str) -> None:
    loss, sentence = MIXING[case]
    with pytest.raises(LossMixesSamples, match=sentence):
        check_loss(loss)
    with pytest.raises(LossMixesSamples, match=sentence):
        prove(unet(), SHAPE, loss, generator=generator(), targets=masks)


@pytest.mark.parametrize("case", MIXING_UNSEEN)
def test_a_loss_that_mixes_samples_is_found_out(case: str) -> None:
    loss, targets = MIXING_UNSEEN[case]
    check_loss(loss)
    network = unet() if targets is masks else nn.Sequential(nn.Flatten(1), nn.Linear(1024, 2))
    with pytest.raises(LossMixesSamples):
        prove(network, SHAPE, loss, generator=generator(), targets=targets)


def test_a_loss_of_several_numbers_is_a_mistake() -> None:
    network = nn.Sequential(nn.Flatten(1), nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"CrossEntropyLoss gives shape \[3\]"):
        prove(network, (32,), nn.CrossEntropyLoss(reduction="none"), generator=generator())
