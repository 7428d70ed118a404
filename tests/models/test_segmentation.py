"""Segmentation as a whole: balls in noise are found, in slices and in volumes, with and without a guarantee."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from boundary.learning import ModelChoice, Training
from models.catalogue import build, describe
from models.dice import DiceLayout, SegmentationMetrics, measure, read
from models.parameters import initial_tensors, load_tensors, to_tensors
from models.private.audit import with_canaries
from models.private.training import PrivateSteps, PrivateTraining
from models.training import LocalData, evaluate, train

LAYOUT = DiceLayout(2)
SMALL = [entry.name for entry in describe() if entry.task == "segmentation" and "small" in entry.name]
STEPS = PrivateSteps(steps=30, rate=0.5, denominator=6.0, clip=1.0, noise_multiplier=0.05, images=2)
SURE = replace(STEPS, steps=1, rate=1.0, noise_multiplier=2.0**-7, clip=0.25)


def balls(side: int, dimensions: int, count: int = 24, seed: int = 7) -> LocalData:
    """Two images of each patient, [n, 1, *sides]: noise, with a brighter ball somewhere."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0.3 * side, 0.7 * side, (count, dimensions, *[1] * dimensions))
    radius = random.uniform(0.15 * side, 0.3 * side, (count, *[1] * dimensions))
    distance = np.sqrt(((np.indices((side,) * dimensions) - centre) ** 2).sum(axis=1))
    masks = (distance < radius).astype(np.uint8)
    images = np.clip(random.normal(0.3, 0.15, masks.shape) + 0.3 * masks, 0, 1).astype(np.float32)
    return LocalData(images[:, None], masks, np.arange(count) // 2)


def of(name: str) -> LocalData:
    return balls(16, 3) if name.endswith("3d") else balls(32, 2)


def network(name: str) -> nn.Module:
    choice = ModelChoice(name=name, version=1, initial_seed=1)
    module = build(choice, 2)
    load_tensors(module, initial_tensors(choice, 2))
    return module


def quiet(_done: int, _planned: int) -> None:
    pass


def measured(module: nn.Module, data: LocalData) -> SegmentationMetrics:
    return read(evaluate(module, data, LAYOUT), LAYOUT)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_learns_where_a_ball_is(name: str) -> None:
    module, data = network(name), of(name)
    before = measured(module, data)
    plan = Training(rounds=1, local_epochs=16, batch_size=4, learning_rate=5e-3)
    outcome = train(module, data, plan, seed=1, on_step=quiet)
    after = measured(module, data)
    assert after.loss < 0.5 * before.loss
    assert after.dice is not None
    assert after.dice > 0.8
    assert after.loss < outcome.mean_loss < before.loss


@pytest.mark.parametrize("name", ["unet-small-2d", "unet-small-3d"])
def test_it_learns_with_a_guarantee_per_patient_and_little_noise(name: str) -> None:
    module, data = network(name), of(name)
    before = measured(module, data)
    plan = Training(rounds=1, learning_rate=1e-2, weighting="equal")
    PrivateTraining(STEPS, bytes(range(32))).run(module, data, plan, on_step=quiet)
    assert measured(module, data).loss < 0.8 * before.loss


def moved(data: LocalData, *, at_once: int = 16, steps: PrivateSteps = SURE) -> np.ndarray:
    """What one private step of plain gradient descent moves a small network by."""
    module = network("segresnet-small-2d")
    before = np.concatenate([tensor.ravel() for tensor in to_tensors(module).values()])
    plan = Training(rounds=1, learning_rate=1.0, optimizer="sgd", weighting="equal")
    PrivateTraining(steps, bytes(range(32)), at_once).run(module, data, plan, on_step=quiet)
    return np.concatenate([tensor.ravel() for tensor in to_tensors(module).values()]) - before


def test_a_patient_with_masks_moves_the_weights_by_no_more_than_the_clip_and_nobody_else_s_move() -> None:
    data = balls(16, 2, count=6)

    def kept(rows: np.ndarray) -> LocalData:
        return LocalData(data.images[rows], data.labels[rows], data.patients[rows])

    one, others, both = (moved(kept(rows)) for rows in (data.patients == 0, data.patients > 0, data.patients >= 0))
    noise = SURE.clip * SURE.noise_multiplier / SURE.denominator  # of each weight, and the same key draws the same
    rounding = 2.0**-14 * SURE.clip / SURE.denominator
    assert np.linalg.norm(one) * SURE.denominator < SURE.clip + 6 * noise * SURE.denominator * len(one) ** 0.5
    assert np.linalg.norm(one) * SURE.denominator > 0.5 * SURE.clip
    assert np.abs(one + others - both).max() < 6 * noise + rounding


def test_how_many_images_go_through_at_once_decides_nothing() -> None:
    data = balls(16, 2, count=6)
    np.testing.assert_allclose(moved(data), moved(data, at_once=1), atol=2.0**-13 * SURE.clip)


def test_large_images_with_masks_go_through_one_at_a_time() -> None:
    seen: list[int] = []
    module = nn.Sequential(nn.Conv2d(1, 2, 1))
    module.register_forward_hook(lambda _, taken, __: seen.append(len(taken[0])))
    data = LocalData(np.zeros((3, 1, 512, 512), np.float32), np.zeros((3, 512, 512), np.uint8), np.arange(3))
    plan = Training(rounds=1, optimizer="sgd", weighting="equal")
    PrivateTraining(replace(SURE, images=1), bytes(32)).run(module, data, plan, on_step=quiet)
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_evaluation_is_the_measure_of_all_images(batch_size: int) -> None:
    data, module = balls(16, 3, count=9), network("unet-small-3d")
    with torch.no_grad():
        expected = measure(module.eval()(torch.from_numpy(data.images)).numpy(), data.labels, LAYOUT)
    np.testing.assert_allclose(evaluate(module, data, LAYOUT, batch_size), expected, rtol=1e-4)


def test_canaries_are_patients_with_a_class_so_masks_have_none() -> None:
    with pytest.raises(ValueError, match="plans for classification"):
        with_canaries(balls(16, 2), 3, 2)
