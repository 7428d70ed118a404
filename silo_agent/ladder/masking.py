"""A whole masked sum on this machine: we are all hospitals of it, with the sessions and files of a real one.

What is rehearsed: that the vector the child wrote fits the plan's layout, that it can be encoded and masked here in the
time there is, and that what a coordinator would be left with is the sum and nothing else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.canonical import digest
from boundary.errors import BadTensors
from boundary.layout import VectorLayout
from boundary.secagg.context import survivors_of
from boundary.secagg.encoding import decode_numbers
from boundary.secagg.hospital import HospitalSession
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.opening import Opening, Sum
from boundary.secagg.ring import Encoding
from silo_agent.vector import write_masked

_SEED_BYTES = 32
Words = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class MaskedTrip:
    """`masked_bytes` is what one hospital would send, `seconds` what encoding and masking took one of them."""

    hospitals: int
    masked_bytes: int
    seconds: float


def masked_trip(
    vector: Path,
    layout: VectorLayout,
    encoding: Encoding,
    silos: tuple[str, ...],
    entropy: Callable[[int], bytes],
) -> MaskedTrip:
    """Mask `vector` for each of `silos`, add up, take the masks off, and compare with as many times the vector.

    A masked file at a time is made beside `vector`. Raises `BadTensors` if the sum is not what it has to be.
    """
    everybody, context = frozenset(silos), digest(b"a rehearsal" + entropy(_SEED_BYTES))
    sessions = {silo: HospitalSession(context, silo, least=3, entropy=entropy) for silo in silos}
    announced = {}
    for silo, session in sessions.items():
        said = session.announce()
        announced[silo] = replace(said, digest=digest(repr(said).encode()))
    dealt = {silo: session.share(announced) for silo, session in sessions.items()}
    sent, seconds, total = {}, 0.0, np.zeros(layout.masked_bytes(encoding.ring), np.uint8)
    for silo, session in sessions.items():
        keys = session.mask(everybody, {other: dealt[other].parts[silo] for other in silos if other != silo})
        begun = time.monotonic()
        masked = vector.with_name("masked")
        sent[silo] = write_masked(vector, masked, layout, encoding, keys, entropy(_SEED_BYTES))
        seconds = max(seconds, time.monotonic() - begun)
        _add(total, masked, layout, encoding.ring)
        masked.unlink()  # one at a time on the disk, which carries the journal too
    named = {silo: (session.sharers, sent[silo].digest) for silo, session in sessions.items()}
    seen = {silo: session.agree(sent[silo].digest, named) for silo, session in sessions.items()}
    sharers = sessions[silos[0]].sharers
    opening = Opening(
        Sum(
            context=context,
            cohort=dealt[silos[0]].cohort,
            sharers=sharers,
            survivors=survivors_of(sharers, {silo: blob.digest for silo, blob in sent.items()}),
            members=announced,
            dealt=dealt,
            surviving=everybody,
        )
    )
    for silo, session in sessions.items():
        opening.take(silo, session.reveal(seen))
    apply_everywhere(total, Masking(opening.masks(), numbers_bytes=layout.numbers_bytes, ring=encoding.ring))
    _compare(total, vector, layout, encoding, len(silos))
    return MaskedTrip(len(silos), len(total), seconds)


def _add(total: Words, masked: Path, layout: VectorLayout, ring: int) -> None:
    split, word, one = layout.numbers_bytes, f"<u{ring // 8}", np.fromfile(masked, np.uint8)
    np.add(total[:split].view("<u8"), one[:split].view("<u8"), out=total[:split].view("<u8"))
    np.add(total[split:].view(word), one[split:].view(word), out=total[split:].view(word))


def _compare(total: Words, vector: Path, layout: VectorLayout, encoding: Encoding, n: int) -> None:
    """Numbers to their last bit; weights to one rounding step a hospital, clipped as the plan clips."""
    data, split = vector.read_bytes(), layout.numbers_bytes
    numbers = np.frombuffer(data[:split], "<f8").copy()
    weights = np.frombuffer(data[split:], "<f4").astype(np.float64)
    found = decode_numbers(total[:split].view("<u8"))
    if layout.weights:
        numbers[layout.where("clipped")] = found[layout.where("clipped")] / n  # counted while it is encoded
    if not np.allclose(found, n * numbers, rtol=0, atol=n * 2.0**-23):
        raise BadTensors("the sum's numbers are not those that were put in")
    summed = total[split:].view(f"<i{encoding.ring // 8}").astype(np.float64)
    wanted = n * np.clip(weights * 2.0**encoding.exponent, -encoding.largest, encoding.largest)
    if summed.size and np.abs(summed - wanted).max() > n * (1 + 2.0**-23 * np.abs(wanted).max()):
        raise BadTensors("the sum's weights are not those that were put in")
