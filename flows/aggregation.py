"""From sealed contributions to one sum: stream and add. Memory does not grow with the number of hospitals.

The only place that opens a hospital's contribution, and it keeps none: each 1 MiB piece is added to the running
sum and forgotten. With masked sums this file gets shorter.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from boundary.contribution import contribution_context, open_contribution, sealed_size
from boundary.errors import BadTensors, BoundaryError, TooLarge
from boundary.layout import ITEM_BYTES, VectorLayout
from boundary.messages import Contribution
from boundary.sealing import UnsealingKey


@dataclass(frozen=True, slots=True)
class Sealed:
    """A contribution as it was received, and where its bytes are."""

    silo: str
    message: Contribution
    open: Callable[[], AbstractContextManager[BinaryIO]]


class ContributionRefused(BoundaryError):
    """One hospital's contribution does not open, has a wrong size or is not finite. Names the hospital."""

    code = "BAD_CONTRIBUTION"

    def __init__(self, silo: str, why: Exception) -> None:
        super().__init__(f"the contribution of {silo} cannot be used: {why}")
        self.silo = silo


def check_size(sealed: Sealed, layout: VectorLayout) -> None:
    """Raises `ContributionRefused` before a byte is read."""
    if sealed.message.vector.size != sealed_size(layout):
        too_large = TooLarge("the sealed vector", sealed.message.vector.size, sealed_size(layout))
        raise ContributionRefused(sealed.silo, too_large)


def sum_contributions(contributions: Iterable[Sealed], layout: VectorLayout, key: UnsealingKey) -> NDArray[np.float64]:
    """Add up the vectors to float64 [layout.size]; raises `ContributionRefused`.

    In the order of the hospitals' names, so that the same contributions give the same bits.
    """
    total = np.zeros(layout.size)
    for sealed in sorted(contributions, key=lambda one: one.silo):
        check_size(sealed, layout)
        try:
            _add(total, _pieces(sealed, key))
        except BoundaryError as why:
            raise ContributionRefused(sealed.silo, why) from why
    return total


def _pieces(sealed: Sealed, key: UnsealingKey) -> Iterator[bytes]:
    context = contribution_context(sealed.message.collection, sealed.silo, sealed.message.order)
    with sealed.open() as source:
        yield from open_contribution(source.read, sealed_key=sealed.message.sealed_key, key=key, context=context)


def _add(total: NDArray[np.float64], pieces: Iterator[bytes]) -> None:
    at = 0
    for piece in pieces:
        if len(piece) % ITEM_BYTES:
            raise BadTensors("the vector ends inside a number")
        values = np.frombuffer(piece, dtype="<f4")
        if at + len(values) > len(total):
            raise BadTensors("the vector is longer than the plan's layout")
        if not np.isfinite(values).all():
            raise BadTensors("the vector holds NaN or infinity")
        total[at : at + len(values)] += values
        at += len(values)
    if at != len(total):
        raise BadTensors(f"the vector has {at} coordinates, the plan's layout {len(total)}")


@dataclass(frozen=True, slots=True, eq=False)
class TrainSum:
    """The sum of a train collection, taken apart. `mean_delta` is float32 [n]; the loss is per image."""

    mean_delta: NDArray[np.float32]
    mean_loss: float
    weight: float


def read_train_sum(total: NDArray[np.float64], layout: VectorLayout) -> TrainSum:
    """Divide once, in float64, and round once. Raises `BadTensors` if the weights do not add up."""
    weight = float(total[layout.where("weight")][0])
    images = float(total[layout.where("images")][0])
    if not (weight > 0 and images > 0):
        raise BadTensors("the summed weight is not positive")
    summed = total[layout.where("delta")]
    delta = np.empty(len(summed), dtype=np.float32)
    np.divide(summed, weight, out=delta, casting="same_kind")
    return TrainSum(delta, float(total[layout.where("loss_sum")][0]) / images, weight)
