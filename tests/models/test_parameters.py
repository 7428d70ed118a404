from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boundary.canonical import canonical_bytes, digest
from boundary.learning import ModelChoice
from boundary.tensors import flatten, unflatten
from models.catalogue import build
from models.errors import UnsharedState, WrongTensors
from models.parameters import initial_tensors, load_tensors, manifest, to_tensors

SMALL = ModelChoice(name="densenet-small", version=1, initial_seed=5)
# A published version never changes. To change a network, add a version.
MANIFESTS = {
    "densenet-small": "sha256:243f93a9b60142c0def647e64cf7c9aae9f1fa1445aefa31dd004ccee75c617a",
    "densenet121": "sha256:24eedde1e94e77c682dde9108c65627fd0070974aff8feafa8c4d4a103051ce4",
    "resnet18": "sha256:56c89a0ea8859c7f7bdefa02abd927a21febc3e7f26e7ce51c71de1b988d8ed0",
    "vit-small": "sha256:684d71307417fbc0eee6bf8357b42550411f99db680b0a6894dbda207eae18f8",
}


def test_tensors_are_all_parameters_as_contiguous_float32_copies() -> None:
    network = build(SMALL, 2)
    tensors = to_tensors(network)
    assert tensors.keys() == dict(network.named_parameters()).keys()
    assert all(t.dtype == np.float32 and t.flags.c_contiguous and t.flags.owndata for t in tensors.values())
    tensors["class_layers.out.bias"][:] = 9
    assert 9 not in network.class_layers.out.bias.tolist()


def test_a_network_survives_the_flat_vector_and_back() -> None:
    sender, receiver = build(SMALL, 2), build(SMALL, 2)
    vector = flatten(to_tensors(sender), manifest(SMALL, 2))
    vector.flags.writeable = False
    load_tensors(receiver, unflatten(vector, manifest(SMALL, 2)))
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(sender(images), receiver(images))


def test_frozen_parameters_are_part_of_the_model_and_stay_frozen() -> None:
    sender, receiver = nn.Linear(2, 2), nn.Linear(2, 2)
    receiver.weight.requires_grad = False
    assert to_tensors(receiver).keys() == {"weight", "bias"}
    load_tensors(receiver, to_tensors(sender))
    assert torch.equal(receiver.weight, sender.weight)
    assert not receiver.weight.requires_grad


def test_loading_keeps_no_hold_on_the_arrays() -> None:
    module, tensors = nn.Linear(2, 2), {"weight": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    load_tensors(module, tensors)
    tensors["bias"][:] = 5
    assert module.bias.tolist() == [1, 1]
    assert module.bias.requires_grad


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bias": None}, r"missing \['bias'\], not of this model nothing"),
        ({"scale": np.ones(2, np.float32)}, r"not of this model \['scale'\]"),
        ({"bias": np.ones(3, np.float32)}, r"bias: float32\(3,\), not float32\(2,\)"),
        ({"bias": np.ones(2)}, r"bias: float64\(2,\), not float32"),
    ],
    ids=["a tensor is missing", "a tensor too many", "another shape", "another dtype"],
)
def test_tensors_of_another_network_are_refused_before_anything_changes(change: dict[str, Any], sentence: str) -> None:
    module = nn.Linear(2, 2)
    before = to_tensors(module)
    tensors = {"weight": np.full((2, 2), 7, np.float32), "bias": np.full(2, 7, np.float32), **change}
    with pytest.raises(WrongTensors, match=sentence):
        load_tensors(module, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    assert all((before[name] == tensor).all() for name, tensor in to_tensors(module).items())


def test_state_that_would_be_lost_or_rounded_is_refused() -> None:
    with pytest.raises(UnsharedState, match=r"0\.running_mean, 0\.running_var"):
        to_tensors(nn.Sequential(nn.BatchNorm2d(4)))
    with pytest.raises(UnsharedState, match="weight, bias"):
        to_tensors(nn.Linear(2, 2).double())


def test_the_beginning_of_a_study_is_a_function_of_its_seed() -> None:
    one, same = initial_tensors(SMALL, 2), initial_tensors(SMALL, 2)
    other = initial_tensors(SMALL.model_copy(update={"initial_seed": 6}), 2)
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)
    assert all(np.isfinite(tensor).all() for tensor in one.values())


def test_initialising_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    initial_tensors(SMALL, 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_and_shapes_of_a_published_network_are_pinned(name: str) -> None:
    found = manifest(ModelChoice(name=name, version=1), 2)
    assert [spec.name for spec in found.tensors] == sorted(spec.name for spec in found.tensors)
    assert digest(canonical_bytes(found.model_dump(mode="json"))) == MANIFESTS[name]
