"""Adapters on the vision transformer: plain at the start, only they change, and plain again once they are merged."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from boundary.learning import ModelChoice, Training
from boundary.low_rank import ADAPTERS, LowRank, is_adapter
from boundary.parts import parts_of
from boundary.tensors import manifest_of
from models.catalogue import build
from models.errors import UnfitAdapters
from models.losses import mean_loss
from models.low_rank import AdaptedLinear, adapt, merge
from models.parameters import Tensors, initial_tensors, load_tensors, manifest, to_tensors, train_only
from models.private.proof import prove
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, train

LORA = LowRank(rank=4, alpha=8.0, targets=("blocks.*.attention.*", "blocks.*.mlp.*"))
PLAIN = ModelChoice(name="vit-small", version=1, initial_seed=3)
ADAPTED = ModelChoice(
    name="vit-small", version=1, initial_seed=3, lora=LORA, trained=("*.lora_b.*", "*.lora_a.*", "head.*")
)


def quiet(_step: int, _steps: int) -> None:
    pass


@pytest.fixture(scope="module")
def data() -> LocalData:
    rng = np.random.default_rng(4)
    labels = np.arange(12) % 2
    images = rng.random((12, 1, 32, 32), np.float32) * 0.5
    images[labels == 1, :, :, :12] += 0.4
    return LocalData(images, labels.astype(np.int64), np.arange(12, dtype=np.int64))


@cache
def drawn() -> Tensors:
    return initial_tensors(ADAPTED, 2)


def begun() -> nn.Module:
    module = build(ADAPTED, 2)
    load_tensors(module, drawn())
    train_only(module, parts_of(ADAPTED, manifest_of(drawn())).trained)
    return module


def without_noise(module: nn.Module, data: LocalData) -> None:
    plan = Training(rounds=1, local_epochs=2, batch_size=6, learning_rate=1e-2)
    train(module, data, plan, seed=1, on_step=quiet)


def with_noise(module: nn.Module, data: LocalData) -> None:
    steps = PrivateSteps(steps=3, rate=0.5, denominator=6.0, clip=1.0, noise_multiplier=0.5, images=1)
    PrivateTraining(steps, bytes(32)).run(
        module, data, Training(rounds=1, learning_rate=1e-2, weighting="equal"), on_step=quiet
    )


TRAININGS = {"without noise": without_noise, "with a guarantee per patient": with_noise}


def test_at_the_start_it_is_the_plain_network_to_the_bit(data: LocalData) -> None:
    plain, own = initial_tensors(PLAIN, 2), drawn()
    assert {name: own[name].tobytes() for name in plain} == {name: plain[name].tobytes() for name in plain}
    added = {name: tensor for name, tensor in own.items() if name not in plain}
    assert all(is_adapter(name) for name in added)
    assert all(tensor.any() != name.endswith("lora_b.weight") for name, tensor in added.items())
    network = build(PLAIN, 2)
    load_tensors(network, plain)
    images = torch.from_numpy(data.images)
    with torch.no_grad():
        assert torch.equal(begun()(images), network(images))


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_only_adapters_and_the_head_change_and_merged_it_answers_the_same(
    training: Callable[[nn.Module, LocalData], None], data: LocalData
) -> None:
    module, before = begun(), drawn()
    training(module, data)
    after = to_tensors(module)
    changed = {name for name, tensor in after.items() if not np.array_equal(tensor, before[name])}
    assert changed == {name for name in after if is_adapter(name) or name.startswith("head.")}

    images, module = torch.from_numpy(data.images), module.eval()
    with torch.no_grad():
        answer, start = module(images), begun()(images)
        merge(module)
        merged = module(images)
    assert (merged - answer).abs().max() < 1e-5
    assert (start - answer).abs().max() > 1e-3, "it has learnt something"
    whole = to_tensors(module)
    assert {name: tensor.shape for name, tensor in whole.items()} == {
        spec.name: spec.shape for spec in manifest(PLAIN, 2).tensors
    }, "what is released has the plain network's names"
    assert not any(isinstance(layer, AdaptedLinear) for layer in module.modules())
    assert released(whole)(images).equal(merged)


def released(tensors: Tensors) -> nn.Module:
    network = build(PLAIN, 2).eval()
    load_tensors(network, tensors)
    return network.requires_grad_(requires_grad=False)


def test_the_sizes_of_its_parts() -> None:
    """By hand: rank times (in + out) for each adapted layer of 6 blocks, and the head of 2 classes."""
    parts = parts_of(ADAPTED, manifest_of(drawn()))
    layers = ((192, 576), (192, 192), (192, 768), (768, 192))
    adapters = 6 * sum(4 * (inputs + outputs) for inputs, outputs in layers)
    assert parts.moving.size == adapters + 2 * 192 + 2 == 74_114
    assert parts.whole.size == 2_719_298 + adapters
    everything = parts_of(ADAPTED.model_copy(update={"trained": (ADAPTERS, "head.*")}), manifest_of(drawn()))
    assert everything == parts


def test_its_gradients_are_each_samples_own() -> None:
    proof = prove(begun(), (1, 32, 32), mean_loss, generator=torch.Generator().manual_seed(0))
    assert proof.parameters == 2 * 4 * 6 + 2
    assert proof.largest_error < 1e-9


def test_a_network_that_nobody_parted_does_not_train_what_is_adapted() -> None:
    """`build` freezes it by itself: who forgets `train_only` trains a guarantee's other layers, and not these."""
    frozen = {name for name, parameter in build(ADAPTED, 2).named_parameters() if not parameter.requires_grad}
    assert len(frozen) == 6 * 4 * 2
    assert all("attention" in name or "mlp" in name for name in frozen)


def test_building_twice_draws_the_same_and_leaves_the_generators() -> None:
    state = torch.get_rng_state()
    first, second = initial_tensors(ADAPTED, 2), drawn()
    assert {name: tensor.tobytes() for name, tensor in first.items()} == {
        name: tensor.tobytes() for name, tensor in second.items()
    }
    assert torch.equal(torch.get_rng_state(), state)


UNFIT = {
    "a layer that is not there": (("decoder.*",), 4, r"'decoder.\*' fits no linear layer; there is blocks.0.attention"),
    "a layer that is not linear": (("patches",), 4, "fits no linear layer"),
    "a rank that is not low": (("head",), 2, "rank 2 of head \\(192 to 2\\) is no low rank"),
}


@pytest.mark.parametrize(("targets", "rank", "reason"), UNFIT.values(), ids=UNFIT)
def test_adapters_that_fit_nothing_are_refused(targets: tuple[str, ...], rank: int, reason: str) -> None:
    choice = ADAPTED.model_copy(update={"lora": LowRank(rank=rank, alpha=1.0, targets=targets)})
    with pytest.raises(UnfitAdapters, match=reason):
        build(choice, 2)


def test_the_strength_is_alpha_over_rank() -> None:
    layer = nn.Sequential(nn.Linear(6, 5))
    adapt(layer, LowRank(rank=2, alpha=3.0, targets=("0",)))
    adapted = layer[0]
    nn.init.normal_(adapted.lora_b.weight)
    x = torch.rand(4, 7, 6)
    wanted = x @ (adapted.weight + 1.5 * adapted.lora_b.weight @ adapted.lora_a.weight).T + adapted.bias
    torch.testing.assert_close(layer(x), wanted)
    merge(layer)
    assert type(layer[0]) is nn.Linear
    torch.testing.assert_close(layer(x), wanted)
