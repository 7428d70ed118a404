"""A hospital's own model: Ditto against its closed form and against a plain loop, what is tuned and what is not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boundary.learning import Personalisation, Training
from models.losses import mean_loss
from models.personal import alone_training, personal_training, personalise, weights_of
from models.training import LocalData, ProximalTerm, batch, batches

TRAINING = Training(
    rounds=3, local_epochs=2, batch_size=4, optimizer="sgd", learning_rate=0.05, max_steps=50, proximal=9.0
)
RNG = np.random.default_rng(11)
DATA = LocalData(
    RNG.normal(0, 1, (14, 1, 3, 3)).astype(np.float32), RNG.integers(2, size=14), np.arange(14, dtype=np.int64)
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(9, 5), nn.Linear(5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(images.flatten(1))))


def drawn(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return weights_of(Net())


def trained(how: Personalisation, own: Any = None, names: Any = None) -> tuple[Any, Any]:
    module, federated = Net(), drawn(1)
    told: list[tuple[int, int]] = []
    personalise(
        module, DATA, TRAINING, how, federated=federated, own=own, tuned=names or set(federated), seed=3,
        on_step=lambda step, steps: told.append((step, steps)),
    )  # fmt: skip
    return weights_of(module), told


@pytest.mark.parametrize("strength", [0.1, 1.0, 5.0])
def test_the_pull_ends_between_the_own_optimum_and_the_federated_model(strength: float) -> None:
    """With the loss |v - x|^2 / 2 Ditto's v goes to (x + strength * w) / (1 + strength)."""
    x, w = torch.tensor([3.0, -1.0]), np.array([0.5, 2.0], np.float32)
    module = nn.ParameterDict({"v": nn.Parameter(torch.zeros(2))})
    pull = ProximalTerm(module, strength, {"v": w})
    rule = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(300):
        rule.zero_grad()
        ((module["v"] - x) ** 2).sum().div(2).backward()
        pull.add()
        rule.step()
    expected = (x.numpy() + strength * w) / (1 + strength)
    np.testing.assert_allclose(module["v"].detach().numpy(), expected, rtol=1e-5)


def test_ditto_is_the_plain_loop_step_by_step() -> None:
    how = Personalisation(method="ditto", epochs=2, learning_rate=0.2, strength=0.7)
    federated, own = drawn(1), drawn(2)
    found, told = trained(how, own)
    steps = TRAINING.model_copy(update={"local_epochs": 2})
    v = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in own.items()}
    for rows in batches(len(DATA), steps, 3):
        images, labels = batch(DATA, rows, "cpu")
        hidden = torch.tanh(images.double().flatten(1) @ v["body.weight"].T + v["body.bias"])
        loss = mean_loss(hidden @ v["head.weight"].T + v["head.bias"], labels)
        gradients = torch.autograd.grad(loss, list(v.values()))
        with torch.no_grad():
            for name, gradient in zip(v, gradients, strict=True):
                v[name] -= 0.2 * (gradient + 0.7 * (v[name] - torch.tensor(federated[name], dtype=torch.float64)))
    assert told[-1] == (8, 8)
    for name, value in v.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), atol=2e-6)
        assert np.abs(found[name] - own[name]).max() > 1e-3


def test_ditto_begins_with_the_federated_model_where_there_is_no_own_one_yet() -> None:
    how = Personalisation(method="ditto", epochs=1, strength=0.7)
    first, _ = trained(how)
    same, _ = trained(how, drawn(1))
    assert all(np.array_equal(first[name], same[name]) for name in first)


def test_fine_tuning_has_no_pull_and_changes_what_it_is_told_to() -> None:
    how, federated = Personalisation(parameters=("head.*",), epochs=3), drawn(1)
    found, told = trained(how, names={"head.weight", "head.bias"})
    assert told[-1][1] == 3 * 4
    assert np.array_equal(found["body.weight"], federated["body.weight"])
    assert not np.array_equal(found["head.weight"], federated["head.weight"])
    assert personal_training(TRAINING, how).proximal == 0
    assert personal_training(TRAINING, how).learning_rate == TRAINING.learning_rate


def test_alone_has_as_many_epochs_and_steps_as_all_rounds_together_and_no_pull() -> None:
    alone = alone_training(TRAINING)
    assert (alone.local_epochs, alone.max_steps, alone.proximal) == (6, 150, 0)
