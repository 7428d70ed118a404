"""Strategies on means from the real encoding, masks and all: off by the encoding's rounding and no more."""

import io
import os
from typing import Any, BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.layout import VectorLayout, layout_for
from boundary.learning import Server
from boundary.secagg.encoding import Quantiser, encode_numbers
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.ring import Encoding, exponent_for
from boundary.secagg.secrets import MaskKey
from boundary.strategies import StrategyName
from flows.aggregation import STRATEGIES, Mean
from flows.summing import masked_total, read_train_sum, unmasked
from infra import golden
from models.weiszfeld import weight_beside

N, ROUNDS = 70_000, 5  # more than one piece
LARGEST = 0.05  # of a hospital's change
WEIGHTS = np.array([3.0, 10.0, 1.0, 6.0])
STEPS = np.array([4.0, 1.0, 12.0, 7.0])
RATE, SERVER = 0.1, Server(momentum=0.6, second_moment=0.9, adaptivity=0.1)


def through_the_sum(
    changes: NDArray[np.float32], layout: VectorLayout, encoding: Encoding, weights: NDArray[np.float64] = WEIGHTS
) -> Mean:
    keys = [os.urandom(32) for _ in weights]
    vectors = []
    for change, weight, steps, key in zip(changes, weights, STEPS, keys, strict=True):
        numbers = np.array([1.0, 1.0, weight, 0.0, *([steps * weight] if layout.numbers == 5 else [])])
        vector = np.empty(layout.masked_bytes(encoding.ring), np.uint8)
        vector[: layout.numbers_bytes] = encode_numbers(numbers, encoding.most).view(np.uint8)
        words = vector[layout.numbers_bytes :].view(f"<u{encoding.ring // 8}")
        Quantiser(encoding, os.urandom(32)).encode(np.float32(weight) * change, words)
        apply_everywhere(vector, Masking([MaskKey(key, 1)], numbers_bytes=layout.numbers_bytes, ring=encoding.ring))
        vectors.append(opener(vector.tobytes()))
    total = unmasked(masked_total(vectors, layout, encoding.ring), [MaskKey(k, -1) for k in keys], layout, encoding)
    summed = read_train_sum(total, hospitals=len(WEIGHTS))
    return Mean(summed.mean_delta, summed.mean_steps, local_rate=1.0)


def opener(data: bytes) -> Any:
    def opened() -> BinaryIO:
        return io.BytesIO(data)

    return opened


def furthest(name: StrategyName, error: float) -> float:
    """How far weights may be off after all rounds, if each mean is off by `error` at most.

    Adaptive: m is off by no more than a mean is. sqrt(v) is a weighted norm of the means, so it is off by `error` times
    the root of the weights' sum, which is at most the number of rounds; m / (sqrt(v) + tau) by both of these.
    """
    match name:
        case "fedavg" | "rfa":
            return ROUNDS * RATE * error
        case "fedavgm":
            return ROUNDS * RATE * error / (1 - SERVER.momentum)
        case "fednova" | "scaffold":
            return ROUNDS * RATE * error * float(WEIGHTS @ STEPS / WEIGHTS.sum())
        case _:
            tau = SERVER.adaptivity
            return ROUNDS * RATE * (error / tau + LARGEST * ROUNDS**0.5 * error / tau**2)


@pytest.mark.parametrize("ring", [32, 16])
@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_after_sums_are_within_the_encodings_bound(name: StrategyName, ring: Any) -> None:
    rng, strategy = np.random.default_rng(7), STRATEGIES[name](RATE, SERVER)
    encoding = Encoding(ring=ring, exponent=exponent_for(LARGEST * WEIGHTS.max(), ring, len(WEIGHTS)), most=4)
    layout = layout_for("train", parameters=N, metrics=0, steps=name in {"fednova", "scaffold"})
    start = np.zeros(N, np.float32)
    summed, exact = strategy.init(start), strategy.init(start)
    for _ in range(ROUNDS):
        changes = (rng.uniform(-LARGEST, LARGEST, (len(WEIGHTS), N))).astype(np.float32)
        summed = strategy.apply(summed, through_the_sum(changes, layout, encoding))
        plain = (WEIGHTS @ changes.astype(np.float64) / WEIGHTS.sum()).astype(np.float32)
        exact = strategy.apply(exact, Mean(plain, float(WEIGHTS @ STEPS / WEIGHTS.sum()), local_rate=1.0))
    step = 2.0**-encoding.exponent  # a hospital's weight is off by less than one
    bound = furthest(name, len(WEIGHTS) * step / WEIGHTS.sum())
    off, moved = np.abs(summed.weights - exact.weights), np.abs(exact.weights)
    float32 = 2 * ROUNDS * 2.0**-24 * float(moved.max())
    assert off.max() <= bound + float32
    assert off.max() > 0, "the encoding rounded something"
    assert bound < moved.max() / 20, "the bound says something"


@pytest.mark.parametrize("ring", [32, 16])
def test_rfas_mean_is_weiszfelds_first_step_within_the_encodings_bound(ring: Any) -> None:
    """Off by n 2^-exponent / W of the weights' words, and by n 2^-25 / W of itself: that is how W is rounded."""
    study = golden.plan()
    plan = study.model_copy(update={"training": study.training.model_copy(update={"strategy": "rfa"})})
    rng = np.random.default_rng(8)
    changes = (rng.normal(size=(len(WEIGHTS), N)) * np.array([[1e-4], [3e-3], [0.02], [0.5]])).astype(np.float32)
    lengths = np.linalg.norm(changes.astype(np.float64), axis=1)
    assert lengths[0] < plan.server.smoothing < lengths[1]
    weights = np.array([weight_beside(plan, weight, one) for weight, one in zip(WEIGHTS, changes, strict=True)])
    encoding = Encoding(ring=ring, exponent=exponent_for(WEIGHTS.max() * 0.05, ring, len(WEIGHTS)), most=4)
    layout = layout_for("train", parameters=N, metrics=0)
    found = through_the_sum(changes, layout, encoding, weights).delta
    beta = WEIGHTS / np.maximum(plan.server.smoothing, lengths)
    exact = beta @ changes.astype(np.float64) / beta.sum()
    bound = len(WEIGHTS) * (2.0**-encoding.exponent + 2.0**-25 * np.abs(exact).max()) / beta.sum()
    off = np.abs(found - exact).max()
    assert 0 < off <= bound + 2.0**-23 * np.abs(exact).max()
    assert bound < np.abs(exact).max() / (20 if ring == 32 else 5)
