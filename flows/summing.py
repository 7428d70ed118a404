"""From masked vectors to one sum: stream and add, then take the masks off. Memory does not grow with the hospitals.

No single vector is ever opened, here or anywhere: until the survivors' masks are taken off the *sum*, every byte of it
looks random.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from boundary.errors import BadTensors
from boundary.layout import VectorLayout
from boundary.secagg.encoding import decode_mean, decode_numbers
from boundary.secagg.masks import PIECE_BYTES, Masking, apply_everywhere
from boundary.secagg.ring import Encoding
from boundary.secagg.secrets import MaskKey

Opener = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True, eq=False)
class Total:
    """An unmasked sum. `numbers` is float64 [m] by `layout`; `words` are the weights' ring words, still scaled."""

    layout: VectorLayout
    encoding: Encoding
    numbers: NDArray[np.float64]
    words: NDArray[np.uint32] | NDArray[np.uint16]

    def number(self, name: str) -> float:
        """The one number of a section; raises `CallerFault` if there is no such section."""
        return float(self.numbers[self.layout.where(name)][0])


def masked_total(vectors: Iterable[Opener], layout: VectorLayout, ring: int) -> NDArray[np.uint8]:
    """Add up masked vectors to uint8 [layout.masked_bytes(ring)], modulo their rings. Raises `BadTensors`."""
    total = np.zeros(layout.masked_bytes(ring), np.uint8)
    for opened in vectors:
        at = 0
        with opened() as source:
            while piece := source.read(PIECE_BYTES):
                if at + len(piece) > len(total):
                    raise BadTensors("a masked vector is longer than the plan's layout")
                _add(total[at : at + len(piece)], piece, max(0, layout.numbers_bytes - at), ring)
                at += len(piece)
        if at != len(total):
            raise BadTensors("a masked vector is shorter than the plan's layout")
    return total


def _add(total: NDArray[np.uint8], piece: bytes, numbers_bytes: int, ring: int) -> None:
    """In place; the first `numbers_bytes` are 64-bit words."""
    split = min(len(piece), numbers_bytes)
    for part, word in ((slice(0, split), "<u8"), (slice(split, None), f"<u{ring // 8}")):
        into = total[part].view(word)
        np.add(into, np.frombuffer(piece, np.uint8)[part].view(word), out=into)


def unmasked(total: NDArray[np.uint8], masks: list[MaskKey], layout: VectorLayout, encoding: Encoding) -> Total:
    """Take the masks off, in place, and read the numbers."""
    apply_everywhere(total, Masking(masks, numbers_bytes=layout.numbers_bytes, ring=encoding.ring))
    split = layout.numbers_bytes
    return Total(
        layout, encoding, decode_numbers(total[:split].view("<u8")), total[split:].view(f"<u{encoding.ring // 8}")
    )


@dataclass(frozen=True, slots=True, eq=False)
class TrainSum:
    """The sum of a train collection, taken apart. `mean_delta` is float32 [n]; the loss is per image, if reported.

    `mean_steps` is how many local steps hospitals took, weighted like the delta, if the plan's strategy needs it.

    `bands` counts hospitals below each of `EPSILON_BANDS`, if the plan has a guarantee per patient; one that adds more
    than itself can at most make a count all hospitals. `largest` is the largest absolute weight of the sum, `clipped`
    how many weights hospitals had to clip, and `shortened` how many changes, if the plan has a longest one. `late`
    counts deltas that were made in a round before, like `bands`; None where the plan has none such.
    """

    mean_delta: NDArray[np.float32]
    mean_loss: float | None
    mean_steps: float | None
    weight: float
    largest: float
    clipped: int
    bands: tuple[int, ...]
    shortened: int | None = None
    late: int | None = None


def read_train_sum(total: Total, *, hospitals: int) -> TrainSum:
    """Divide once, in float64, and round once. `hospitals` are in the sum.

    Raises `BadTensors` if the weights or the steps do not add up.
    """
    weight, loss, steps, bands, late = total.number("weight"), None, None, (), None
    names = {section.name for section in total.layout.sections}
    if not weight > 0:
        raise BadTensors("the summed weight is not positive")
    if "images" in names:
        if not total.number("images") > 0:
            raise BadTensors("the summed number of images is not positive")
        loss = total.number("loss_sum") / total.number("images")
    if "steps" in names:
        steps = total.number("steps") / weight
        if not 0 <= steps < inf:
            raise BadTensors("the summed number of steps is negative or not finite")
    if "bands" in names:
        bands = tuple(min(hospitals, max(0, round(count))) for count in total.numbers[total.layout.where("bands")])
    shortened, late = (
        min(hospitals, max(0, round(total.number(name)))) if name in names else None for name in ("shortened", "late")
    )
    mean, largest = decode_mean(total.words, total.encoding, weight)
    return TrainSum(mean, loss, steps, weight, largest, round(total.number("clipped")), bands, shortened, late)


def openers(vectors: Mapping[str, str], opened: Callable[[str], BinaryIO]) -> list[Opener]:
    """One per hospital, in the order of their names. `vectors` gives silo -> digest."""
    return [lambda digest=digest: opened(digest) for _, digest in sorted(vectors.items())]  # type: ignore[misc]
