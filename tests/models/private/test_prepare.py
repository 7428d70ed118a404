from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets import UNETR, DenseNet, DenseNet121, ResNet, SegResNet, SwinUNETR, UNet, ViT, resnet18
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.errors import UnfitNetwork
from models.parameters import load_tensors, to_tensors
from models.private.prepare import groups_for, prepare

Make = Callable[[], nn.Module]

needs_einops = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's attention is written with einops")
# MONAI's table of sines; nothing of ours calls torch.meshgrid
monai_s_meshgrid = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")


def unet(dims: int, **settings: Any) -> nn.Module:
    return UNet(dims, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, **settings)


def vit(dims: int, **settings: Any) -> nn.Module:
    """Three layers instead of twelve, 96 wide instead of 768."""
    sizes = {"patch_size": 8, "hidden_size": 96, "mlp_dim": 192, "num_layers": 3, "num_heads": 4}
    return ViT(1, 32 if dims == 2 else 16, spatial_dims=dims, **{"classification": True, **sizes, **settings})


def resnet(dims: int) -> nn.Module:
    if dims == 2:
        return resnet18(spatial_dims=2, n_input_channels=1, num_classes=2)
    return ResNet(ResNetBlock, [2, 2, 2, 2], [8, 16, 32, 64], spatial_dims=3, n_input_channels=1, num_classes=2)


# MONAI's own networks with MONAI's own sizes, but for the UNet (which has none), ViT, and ResNet18 in three dimensions,
# which is an eighth as wide; sides in pixels.
NETWORKS: dict[str, tuple[Callable[[int], nn.Module], dict[int, int]]] = {
    "UNet": (unet, {2: 32, 3: 16}),
    "SegResNet": (SegResNet, {2: 32, 3: 16}),
    "DenseNet121": (lambda dims: DenseNet121(dims, 1, 2), {2: 32, 3: 32}),
    "ResNet18": (resnet, {2: 32, 3: 16}),
    "ViT": (vit, {2: 32, 3: 16}),
}
EVERY = [
    pytest.param(lambda make=make, dims=dims: make(dims), (1, *[side] * dims), id=f"{name} {dims}-D",
                 marks=[needs_einops] if name == "ViT" else [])
    for name, (make, sides) in NETWORKS.items() for dims, side in sides.items()
]  # fmt: skip
VARIANTS = [
    pytest.param(lambda: unet(2, norm="batch", dropout=0.1), (1, 32, 32), id="UNet with BatchNorm"),
    pytest.param(lambda: unet(3, norm=("instance", {"affine": True})), (1, 16, 16, 16), id="UNet, affine InstanceNorm"),
    pytest.param(
        lambda: SegResNet(2, upsample_mode="deconv", norm="batch"), (1, 32, 32), id="SegResNet that learns to upsample"
    ),
    pytest.param(
        lambda: vit(2, proj_type="perceptron", pos_embed_type="sincos", post_activation="none", qkv_bias=True),
        (1, 32, 32), id="ViT with a table of positions", marks=[needs_einops, monai_s_meshgrid],
    ),
    pytest.param(
        lambda: UNETR(1, 2, (32, 32), feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4, spatial_dims=2),
        (1, 32, 32), id="UNETR, which has a ViT in it", marks=[needs_einops],
    ),
    pytest.param(lambda: nn.Sequential(ResNetBottleneck(8, 2, 2), nn.Flatten(1), nn.Linear(512, 2)), (8, 8, 8),
                 id="ResNet's bottleneck"),
    pytest.param(lambda: nn.Sequential(UnetResBlock(2, 4, 8, 3, 2, "batch"), nn.Flatten(1), nn.Linear(128, 2)),
                 (4, 8, 8), id="DynUNet's residual block"),
]  # fmt: skip


def made(make: Make, seed: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def samples(network: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Two images, float64, and class labels for each of them or each of their pixels."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, *shape, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        answer = network(images)
    return images, torch.randint(2, (2, *answer.shape[2:]), generator=generator)


@pytest.mark.parametrize(("make", "shape"), EVERY + VARIANTS)
def test_gradients_by_hooks_are_those_of_one_sample_at_a_time(make: Make, shape: tuple[int, ...]) -> None:
    oracle = prepare(made(make)).double()
    for module in oracle.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # the same chance for both
    private = GradSampleModule(deepcopy(oracle))
    assert ModuleValidator.validate(oracle, strict=False) == []
    images, labels = samples(oracle, shape)
    # torch warns of hooks on a first layer whose input asks for no gradient; so it asks
    nn.functional.cross_entropy(private(images.requires_grad_()), labels).backward()
    found = {name: p.grad_sample for name, p in private._module.named_parameters() if p.requires_grad}
    wanted = {name: p for name, p in oracle.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    for i in range(2):
        loss = nn.functional.cross_entropy(oracle(images[i : i + 1].detach()), labels[i : i + 1])
        alone = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
        whole = torch.stack([gradient.norm() for gradient in alone.values()]).norm()
        for name, gradient in alone.items():
            # a bias before a normalisation has no effect: its gradient is rounding, 1e-17 and less
            error = (found[name][i] - gradient).norm() / max(gradient.norm(), 1e-9 * whole)
            assert error <= 1e-6, name


WITHOUT_BATCH_NORM = [
    *(p for p in EVERY if str(p.id).split()[0] in {"UNet", "SegResNet", "ViT"}),
    *(p for p in VARIANTS if "affine" in str(p.id) or "table" in str(p.id) or "UNETR" in str(p.id)),
    pytest.param(lambda: DenseNet(2, 1, 2, 16, 8, (2, 2), norm=("group", {"num_groups": 4})), (1, 32, 32),
                 id="DenseNet with GroupNorm"),
    pytest.param(lambda: ResNetBlock(8, 8, 2, norm=("group", {"num_groups": 4})), (8, 8, 8), id="ResNetBlock"),
    pytest.param(lambda: ResNetBottleneck(8, 2, 3, norm=("group", {"num_groups": 2})), (8, 8, 8, 8),
                 id="ResNetBottleneck"),
    pytest.param(lambda: UnetResBlock(2, 4, 8, 3, 2, "instance"), (4, 8, 8), id="UnetResBlock"),
    pytest.param(lambda: UnetResBlock(2, 4, 4, 3, 1, "instance"), (4, 8, 8), id="UnetResBlock that keeps its size"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "shape"), WITHOUT_BATCH_NORM)
def test_without_batch_norm_the_function_stays_as_it_was(make: Make, shape: tuple[int, ...]) -> None:
    shipped, prepared = made(make), prepare(made(make))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        before, after = shipped(images), prepared(images)
        assert torch.equal(before[0] if isinstance(before, tuple) else before, after)
    assert not [m for m in prepared.modules() if getattr(m, "inplace", False)]


def test_group_norm_takes_over_the_scale_the_shift_and_the_place_of_batch_norm() -> None:
    shared = nn.BatchNorm2d(6, eps=1e-3)
    network = nn.Sequential(nn.Conv2d(1, 6, 1), shared, nn.Sequential(shared), nn.BatchNorm3d(8, affine=False)).eval()
    shared.bias.requires_grad = False
    before = dict(network.named_parameters())
    prepared = prepare(network)
    assert prepared is network
    assert isinstance(network[1], nn.GroupNorm)
    assert network[1] is network[2][0]
    assert (network[1].num_groups, network[1].eps, network[1].training) == (2, 1e-3, False)
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert (network[3].num_groups, network[3].weight) == (4, None)
    assert list(network.buffers()) == []


@pytest.mark.parametrize(
    ("channels", "groups", "expected"),
    [
        (64, 32, 32),
        (96, 32, 32),
        (48, 32, 16),
        (40, 8, 8),
        (16, 32, 8),
        (32, 32, 16),
        (33, 32, 1),
        (3, 32, 1),
        (1, 8, 1),
    ],
)
def test_groups_divide_the_channels_and_never_hold_one_alone(channels: int, groups: int, expected: int) -> None:
    assert groups_for(channels, groups) == expected
    nn.GroupNorm(expected, channels)


class SpecialNorm(nn.BatchNorm2d):
    """As some libraries ship it: who knows what it does."""


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))


REFUSED: dict[str, tuple[Make, str]] = {
    "windows folded into the batch": (
        lambda: SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2),
        r"swinViT\.layers1\.0\.blocks\.0\.attn \(WindowAttention\): windows are folded into the batch",
    ),
    "a BatchNorm of another kind": (lambda: nn.Sequential(SpecialNorm(4)), r"0 \(SpecialNorm\): .* mix samples"),
    "a BatchNorm that does not know its channels yet": (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "mix samples"),
    "nothing but a BatchNorm": (lambda: nn.BatchNorm2d(4), r"the network \(BatchNorm2d\)"),
    "InstanceNorm with running statistics": (
        lambda: nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True)), "running statistics are kept",
    ),
    "a layer that nobody knows": (lambda: nn.Sequential(Scale()), r"0 \(Scale\): no rule .* parameters factor"),
    "torch's attention": (lambda: nn.TransformerEncoderLayer(8, 2), r"self_attn .* no rule .* in_proj_bias, in_proj_w"),
    "a recurrent layer": (lambda: nn.Sequential(nn.LSTM(4, 4)), "no rule is known"),
    "weights made of others": (lambda: nn.Sequential(weight_norm(nn.Conv2d(1, 2, 3))), "no rule is known"),
    "padding that Opacus would take for zeros": (lambda: nn.Conv2d(1, 2, 3, padding_mode="reflect"), "'reflect'"),
    "LayerNorm without bias": (lambda: nn.Sequential(nn.LayerNorm(4, bias=False)), "LayerNorm without bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_fit_is_refused_with_its_reason(case: str) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(UnfitNetwork, match=sentence) as caught:
        prepare(made(make))
    assert caught.value.code == "UNFIT_NETWORK"


def test_frozen_layers_need_no_rule() -> None:
    prepare(nn.Sequential(Scale().requires_grad_(requires_grad=False), nn.Linear(2, 2)))


@needs_einops
def test_a_norm_that_is_never_called_is_neither_trained_nor_exchanged() -> None:
    prepared = prepare(made(lambda: vit(2)))
    assert not [name for name in to_tensors(prepared) if "norm_cross_attn" in name]
    crossing = TransformerBlock(8, 8, 2, with_cross_attention=True)
    assert isinstance(prepare(crossing).norm_cross_attn, nn.LayerNorm)


@needs_einops
@monai_s_meshgrid
def test_frozen_parameters_are_exchanged_so_that_a_hospital_has_the_study_s() -> None:
    study = prepare(made(lambda: vit(2, pos_embed_type="fourier"), seed=1))  # a random table, fixed for ever
    hospital = prepare(made(lambda: vit(2, pos_embed_type="fourier"), seed=2))
    load_tensors(hospital, to_tensors(study))
    assert not hospital.patch_embedding.position_embeddings.requires_grad
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(hospital(images), study(images))
