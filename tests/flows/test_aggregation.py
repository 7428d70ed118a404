"""Sealed contributions to one sum: exact, order-free, and every bad vector refused by its hospital's name."""

import io
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.contribution import contribution_context, seal_contribution
from boundary.errors import BadTensors
from boundary.layout import layout_for
from boundary.messages import BlobRef, Collection, Contribution
from boundary.sealing import UnsealingKey
from flows.aggregation import ContributionRefused, Sealed, read_train_sum, sum_contributions

LAYOUT = layout_for("train", parameters=300_000, metrics=0)  # more than one chunk of 1 MiB
COLLECTION = Collection(study="ct-00000001", round=1, phase="train")
ORDER = "sha256:" + "1" * 64


@pytest.fixture(scope="module")
def key() -> UnsealingKey:
    return UnsealingKey.generate()


@pytest.fixture
def sealed(key: UnsealingKey) -> Callable[..., Sealed]:
    def make(
        silo: str, vector: NDArray[np.float32], *, said_by: str | None = None, change: Callable[[bytes], bytes] = bytes
    ) -> Sealed:
        context = contribution_context(COLLECTION, said_by or silo, ORDER)
        source = io.BytesIO(vector.astype("<f4").tobytes())
        sealed_key, chunks = seal_contribution(source.read, coordinator=key.public, context=context, file_key=b"k" * 32)
        data = change(b"".join(chunks))
        blob = BlobRef(digest="sha256:" + "2" * 64, size=len(data))
        message = Contribution(collection=COLLECTION, order=ORDER, vector=blob, sealed_key=sealed_key)

        def read() -> BinaryIO:
            return io.BytesIO(data)

        return Sealed(silo, message, read)

    return make


def random_vector(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=LAYOUT.size).astype(np.float32)


def test_the_sum_is_the_sum_to_the_last_bit_in_any_order(key: UnsealingKey, sealed: Callable[..., Sealed]) -> None:
    vectors = {silo: random_vector(seed) for seed, silo in enumerate(["c", "a", "b"])}
    expected = np.zeros(LAYOUT.size)
    for silo in sorted(vectors):
        expected += vectors[silo]
    contributions = [sealed(silo, vector) for silo, vector in vectors.items()]
    for order in (contributions, contributions[::-1]):
        assert np.array_equal(sum_contributions(order, LAYOUT, key), expected)


def spoilt(value: float) -> NDArray[np.float32]:
    vector = random_vector(0)
    vector[12_345] = value
    return vector


BAD = {
    "NaN in the vector": lambda make: make("b", spoilt(np.nan)),
    "infinity in the vector": lambda make: make("b", spoilt(np.inf)),
    "a vector that is too short": lambda make: make("b", random_vector(0)[:-1]),
    "a vector that is too long": lambda make: make("b", np.append(random_vector(0), np.float32(1))),
    "one bit changed on the way": lambda make: make(
        "b", random_vector(0), change=lambda data: data[:99] + bytes([data[99] ^ 1]) + data[100:]
    ),
    "the last chunk cut off": lambda make: make("b", random_vector(0), change=lambda data: data[: 1024 * 1024 + 16]),
    "another hospital's contribution": lambda make: make("b", random_vector(0), said_by="a"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_contribution_is_refused_by_name(case: str, key: UnsealingKey, sealed: Callable[..., Sealed]) -> None:
    with pytest.raises(ContributionRefused) as caught:
        sum_contributions([sealed("a", random_vector(1)), BAD[case](sealed)], LAYOUT, key)
    assert caught.value.silo == "b"


def test_the_wrong_coordinator_cannot_open_it(sealed: Callable[..., Sealed]) -> None:
    with pytest.raises(ContributionRefused):
        sum_contributions([sealed("a", random_vector(1))], LAYOUT, UnsealingKey.generate())


def test_the_mean_is_weighted() -> None:
    layout = layout_for("train", parameters=2, metrics=0)
    total = np.array([1 * 3.0 + 2 * 1.0, 1 * 6.0 + 2 * 0.0, 10.0, 20.0, 3.0])
    summed = read_train_sum(total, layout)
    assert summed.mean_delta.tolist() == pytest.approx([5 / 3, 2.0])
    assert summed.mean_loss == pytest.approx(0.5)
    assert summed.weight == 3.0


@pytest.mark.parametrize(("images", "weight"), [(0.0, 1.0), (1.0, 0.0), (1.0, -2.0)])
def test_weights_that_do_not_add_up_are_refused(images: float, weight: float) -> None:
    layout = layout_for("train", parameters=1, metrics=0)
    with pytest.raises(BadTensors):
        read_train_sum(np.array([1.0, 1.0, images, weight]), layout)
