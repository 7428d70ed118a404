"""Private training as a whole: it learns, it keeps to its public numbers, it stops when told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from boundary.learning import ModelChoice, Training
from models.catalogue import build
from models.errors import TrainingCancelled
from models.metrics import MetricLayout, read
from models.parameters import initial_tensors, load_tensors, to_tensors
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, evaluate

LAYOUT = MetricLayout(classes=2)
PLAN = Training(rounds=1, learning_rate=0.05, optimizer="sgd", weighting="equal")
STEPS = PrivateSteps(steps=4, rate=0.5, denominator=10.0, clip=1.0, noise_multiplier=0.05, images=2)
KEY = bytes(range(32))


def quiet(done: int, planned: int) -> None:
    pass


def linear() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    nn.init.zeros_(module[1].weight)
    nn.init.zeros_(module[1].bias)
    return module


def trained(
    data: LocalData, *, key: bytes = KEY, plan: Training = PLAN, at_once: int = 16, **steps: float
) -> np.ndarray:
    module = linear()
    private = replace(STEPS, **steps)
    PrivateTraining(private, key, at_once).run(module, data, plan, on_step=quiet)
    return np.concatenate([tensor.ravel() for tensor in to_tensors(module).values()])


def test_a_catalogue_network_learns_with_little_noise(data: LocalData) -> None:
    choice = ModelChoice(name="densenet-small", version=1, initial_seed=2)
    module = build(choice, 2)
    load_tensors(module, initial_tensors(choice, 2))
    before = read(evaluate(module, data, LAYOUT), LAYOUT)
    said: list[tuple[int, int]] = []
    steps = PrivateSteps(steps=30, rate=0.5, denominator=10.0, clip=1.0, noise_multiplier=0.1, images=2)
    plan = Training(rounds=1, learning_rate=3e-3, weighting="equal")
    PrivateTraining(steps, KEY).run(module, data, plan, on_step=lambda *step: said.append(step))
    after = read(evaluate(module, data, LAYOUT), LAYOUT)
    assert after.loss < 0.7 * before.loss
    assert after.accuracy > 0.85
    assert said == [(step, 30) for step in range(1, 31)]
    assert not hasattr(module, "autograd_grad_sample_hooks")  # Opacus' hooks are off again


def test_the_key_decides_and_pieces_do_not(data: LocalData) -> None:
    first = trained(data)
    assert (first == trained(data)).all()
    assert (first != trained(data, key=bytes(32))).any()
    for at_once in (1, 3):
        assert np.abs(first - trained(data, at_once=at_once)).max() < 1e-4 * np.abs(first).max()


def test_the_strides_of_the_images_decide_nothing(data: LocalData) -> None:
    """torch takes an image with an added axis for one in channels-last form, which Opacus reads wrongly."""

    def of(images: np.ndarray) -> np.ndarray:
        module = build(ModelChoice(name="cnn-small", version=1), 2)
        load_tensors(module, initial_tensors(ModelChoice(name="cnn-small", version=1), 2))
        PrivateTraining(STEPS, KEY).run(module, LocalData(images, data.labels, data.patients), PLAN, on_step=quiet)
        return np.concatenate([tensor.ravel() for tensor in to_tensors(module).values()])

    odd = data.images[:, 0][:, None]
    assert odd.strides != data.images.strides
    assert np.abs(of(odd) - of(data.images)).max() < 1e-5


def test_an_archive_of_nobody_trains_on_noise() -> None:
    nobody = LocalData(np.zeros((0, 1, 16, 16), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    moved = trained(nobody, noise_multiplier=2.0, steps=1)
    assert moved.std() == pytest.approx(PLAN.learning_rate * 2.0 * STEPS.clip / STEPS.denominator, rel=0.1)


def test_one_more_patient_changes_no_denominator(data: LocalData) -> None:
    """Everybody in the step, no noise to speak of: patients add up, whoever else is there."""
    sure: dict[str, float] = {"rate": 1.0, "noise_multiplier": 2.0**-7, "steps": 1, "clip": 0.5}

    def of(keep: np.ndarray) -> np.ndarray:
        return trained(LocalData(data.images[keep], data.labels[keep], data.patients[keep]), **sure)

    all_but, one = of(data.patients != 3), of(data.patients == 3)
    both = of(data.patients >= 0)
    noise = PLAN.learning_rate * 0.5 * 2.0**-7 / 10
    assert np.abs(all_but + one - both).max() < 4.5 * 2 * noise
    assert np.abs(one).max() > 5 * noise


def test_the_proximal_term_pulls_back(data: LocalData) -> None:
    plan = PLAN.model_copy(update={"proximal": 5.0})
    assert np.linalg.norm(trained(data, plan=plan, steps=20)) < 0.8 * np.linalg.norm(trained(data, steps=20))


def test_it_stops_between_two_steps(data: LocalData) -> None:
    asked: list[int] = []

    def at_the_third() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(TrainingCancelled, match="2 steps"):
        PrivateTraining(STEPS, KEY).run(linear(), data, PLAN, on_step=quiet, should_stop=at_the_third)


def test_a_diverged_network_is_not_told_from_a_sound_one(data: LocalData) -> None:
    module = linear()
    nn.init.constant_(module[1].weight, torch.inf)
    PrivateTraining(STEPS, KEY).run(module, data, PLAN, on_step=quiet)
    assert torch.isfinite(module[1].bias).all()
