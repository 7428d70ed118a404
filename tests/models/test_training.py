from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from boundary.learning import ModelChoice, Training
from models.catalogue import build
from models.errors import NoImages, NonFiniteLogits, NonFiniteLoss, TrainingCancelled
from models.metrics import MetricLayout, measure, read
from models.parameters import initial_tensors, load_tensors, to_tensors
from models.training import LocalData, TrainingOutcome, batches, evaluate, planned_steps, train

LAYOUT = MetricLayout(classes=2)
PLAN = Training(rounds=1, local_epochs=3, batch_size=16, learning_rate=1e-2)


def linear() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    return module


def quiet(done: int, planned: int) -> None:
    pass


def empty() -> LocalData:
    return LocalData(np.zeros((0, 1, 16, 16), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def weights(module: nn.Module) -> NDArray[np.float32]:
    return np.concatenate([tensor.ravel() for tensor in to_tensors(module).values()])


def trained(data: LocalData, plan: Training = PLAN, seed: int = 1) -> NDArray[np.float32]:
    module = linear()
    train(module, data, plan, seed=seed, on_step=quiet)
    return weights(module)


def test_a_catalogue_network_learns(data: LocalData) -> None:
    choice = ModelChoice(name="densenet-small", version=1, initial_seed=2)
    module = build(choice, 2)
    load_tensors(module, initial_tensors(choice, 2))
    before = read(evaluate(module, data, LAYOUT), LAYOUT)
    plan = Training(rounds=1, local_epochs=5, batch_size=8)
    train(module, data, plan, seed=1, on_step=quiet)
    after = read(evaluate(module, data, LAYOUT), LAYOUT)
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_is_a_bare_pytorch_loop(data: LocalData, optimizer: str) -> None:
    plan = PLAN.model_copy(update={"optimizer": optimizer})
    module, images, labels = linear(), torch.tensor(data.images), torch.tensor(data.labels)
    bare = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)(module.parameters(), lr=1e-2)
    losses, generator = [], torch.Generator().manual_seed(1)
    for _ in range(3):
        for rows in torch.randperm(40, generator=generator).split(16):
            bare.zero_grad()
            loss = nn.functional.cross_entropy(module(images[rows]), labels[rows])
            loss.backward()
            bare.step()
            losses += [loss.item()] * len(rows)
    ours = linear()
    outcome = train(ours, data, plan, seed=1, on_step=quiet)
    np.testing.assert_allclose(weights(ours), weights(module), rtol=1e-5, atol=1e-7)
    assert outcome == TrainingOutcome(steps=9, images_seen=120, mean_loss=pytest.approx(np.mean(losses), rel=1e-5))


def test_the_seed_decides_the_outcome_to_the_bit(data: LocalData) -> None:
    torch.manual_seed(1)
    one = trained(data)
    torch.manual_seed(2)
    assert (trained(data) == one).all()
    assert (trained(data, seed=3) != one).any()


def test_the_global_generator_is_left_alone(data: LocalData) -> None:
    module, before = linear(), torch.get_rng_state()
    train(module, data, PLAN, seed=1, on_step=quiet)
    evaluate(module, data, LAYOUT)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_memory_mapped_data_set_trains_to_the_same_bits(data: LocalData, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", data.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = data.labels.copy()
    labels.flags.writeable = False
    same = LocalData(mapped, labels, data.patients)
    assert (trained(same) == trained(data)).all()
    assert (evaluate(linear(), same, LAYOUT) == evaluate(linear(), data, LAYOUT)).all()


def test_every_epoch_sees_every_image_once_in_a_new_order() -> None:
    steps = list(batches(40, PLAN, seed=4))
    assert [len(rows) for rows in steps] == [16, 16, 8] * 3
    epochs = [np.concatenate(steps[i : i + 3]) for i in (0, 3, 6)]
    assert all((np.sort(epoch) == np.arange(40)).all() for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize(("max_steps", "steps", "seen"), [(9, 9, 120), (4, 4, 56), (1, 1, 16)])
def test_steps_are_limited_and_announced(data: LocalData, max_steps: int, steps: int, seen: int) -> None:
    plan, heard = PLAN.model_copy(update={"max_steps": max_steps}), []
    outcome = train(linear(), data, plan, seed=1, on_step=lambda done, planned: heard.append((done, planned)))
    assert (outcome.steps, outcome.images_seen) == (steps, seen)
    assert heard == [(step, steps) for step in range(1, steps + 1)]
    assert planned_steps(len(data), plan) == steps


def test_training_stops_when_asked(data: LocalData) -> None:
    heard: list[int] = []
    with pytest.raises(TrainingCancelled) as stopped:
        train(
            linear(), data, PLAN, seed=1,
            on_step=lambda done, _: heard.append(done), should_stop=lambda: len(heard) == 2,
        )  # fmt: skip
    assert stopped.value.steps == 2
    assert heard == [1, 2]


def test_a_loss_that_is_not_finite_never_reaches_the_weights(data: LocalData) -> None:
    images = data.images.copy()
    images[:] = np.nan
    module = linear()
    with pytest.raises(NonFiniteLoss) as diverged:
        train(module, LocalData(images, data.labels, data.patients), PLAN, seed=1, on_step=quiet)
    assert diverged.value.step == 1
    assert (weights(module) == 0).all()


def test_a_last_step_that_ruins_the_weights_is_noticed(data: LocalData) -> None:
    class Cliff(nn.Module):
        """Finite logits, gradient 0 * infinity."""

        def __init__(self) -> None:
            super().__init__()
            self.height = nn.Parameter(torch.zeros(2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(1, 2, 3))[:, None] * self.height.sqrt() * 0

    with pytest.raises(NonFiniteLoss):
        train(Cliff(), data, PLAN.model_copy(update={"max_steps": 1}), seed=1, on_step=quiet)


def test_without_images_there_is_no_training() -> None:
    with pytest.raises(NoImages):
        train(linear(), empty(), PLAN, seed=1, on_step=quiet)


@pytest.mark.parametrize("batch_size", [1, 7, 40, 256])
def test_evaluation_is_the_measure_of_all_images(data: LocalData, batch_size: int) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    before = weights(module)
    found = evaluate(module, data, LAYOUT, batch_size)
    with torch.no_grad():
        expected = measure(module(torch.tensor(data.images)).numpy(), data.labels, LAYOUT)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (weights(module) == before).all()


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_puts_the_mode_back_even_when_it_fails(data: LocalData, mode: bool) -> None:
    module = linear().train(mode)
    seen = []
    module.register_forward_hook(lambda *_: seen.append(module.training))
    evaluate(module, data, LAYOUT)
    assert seen == [False]
    nn.init.constant_(module[1].bias, float("nan"))
    with pytest.raises(NonFiniteLogits):
        evaluate(module, data, LAYOUT)
    assert module.training is mode


def test_evaluation_of_nothing_is_zero_and_stops_when_asked(data: LocalData) -> None:
    assert (evaluate(linear(), empty(), LAYOUT) == 0).all()
    with pytest.raises(TrainingCancelled):
        evaluate(linear(), data, LAYOUT, should_stop=lambda: True)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": np.zeros((4, 16, 16), np.float32)}, "images: float32"),
        ({"images": np.zeros((4, 3, 16, 16), np.float32)}, "images: float32"),
        ({"images": np.zeros((4, 1, 16, 16))}, "images: float64"),
        ({"labels": np.zeros(3, np.int64)}, "labels: int64"),
        ({"labels": np.zeros(4, np.int32)}, "labels: int32"),
        ({"labels": np.zeros((4, 16, 16), np.int64)}, "labels: int64"),
        ({"labels": np.zeros((4, 16, 15), np.uint8)}, "labels: uint8"),
        ({"labels": np.zeros(4, np.uint8)}, "labels: uint8"),
        ({"images": np.zeros((4, 1, 2, 2, 2, 2), np.float32)}, "images: float32"),
        ({"patients": np.zeros(4, np.int32)}, "patients: int32"),
        ({"patients": np.zeros((4, 1), np.int64)}, "patients: int64"),
    ],
)
def test_arrays_that_do_not_match_are_refused(change: dict[str, Any], sentence: str) -> None:
    arrays = {
        "images": np.zeros((4, 1, 16, 16), np.float32),
        "labels": np.zeros(4, np.int64),
        "patients": np.zeros(4, np.int64),
    }
    with pytest.raises(ValueError, match=sentence):
        LocalData(**{**arrays, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_and_measures_as_the_cpu_does(data: LocalData) -> None:
    module, plan = linear(), PLAN.model_copy(update={"max_steps": 3})
    train(module, data, plan, seed=1, on_step=quiet, device="cuda")
    np.testing.assert_allclose(weights(module), trained(data, plan), rtol=1e-3, atol=1e-4)
    found = read(evaluate(module, data, LAYOUT, device="cuda"), LAYOUT)
    assert found.count == 40
