"""Masks: AES-256-CTR keystreams, added to a vector modulo its rings and taken off again by the same keys.

A mask key is used for one vector and never again (`MaskKey.spend`). The counter gives every 16 bytes of the vector
their own place, so pieces can be masked in any order and in parallel. Within a piece all keystreams are added block
by block, while the block is in the cache (docs/design: 0.84 ns per word and mask on one core).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from boundary.errors import CallerFault
from boundary.secagg.secrets import MaskKey, Sign

AES_BLOCK = 16
BLOCK = 128 * 1024  # bytes: the block of the vector and the keystream stay in the second-level cache
PIECE_BYTES = 4 * 1024 * 1024  # what one thread does at a time: amortises making the ciphers
_ZEROS = bytes(BLOCK)


class Masking:
    """Masks for one vector whose first `numbers_bytes` bytes are 64-bit words and the rest words of `ring` bits.

    Not re-entrant for the same bytes, but `apply` may be called for different pieces from different threads.
    """

    def __init__(self, keys: Sequence[MaskKey], *, numbers_bytes: int, ring: Literal[16, 32]) -> None:
        if numbers_bytes % 8:
            raise CallerFault("numbers are words of eight bytes")
        self._keys = [key.spend() for key in keys]
        self._numbers_bytes = numbers_bytes
        self._word = np.dtype("<u4") if ring == 32 else np.dtype("<u2")

    def apply(self, piece: NDArray[np.uint8], offset: int) -> None:
        """Add the keystreams to `piece`, which lies at byte `offset` of the vector, in place.

        `offset` is a multiple of 16. Raises `CallerFault`.
        """
        if offset % AES_BLOCK:
            raise CallerFault("a piece begins at a multiple of 16 bytes")
        streams = [(keystream_of(key, offset), sign) for key, sign in self._keys]
        keystream = np.empty(BLOCK + AES_BLOCK, np.uint8)
        for start in range(0, len(piece), BLOCK):
            block = piece[start : start + BLOCK]
            numbers = min(len(block), max(0, self._numbers_bytes - offset - start))
            self._block(block[:numbers].view("<u8"), block[numbers:].view(self._word), streams, keystream, len(block))

    def _block(
        self,
        numbers: NDArray[np.uint64],
        weights: NDArray[np.uint32] | NDArray[np.uint16],
        streams: list[tuple[CipherContext, Sign]],
        keystream: NDArray[np.uint8],
        size: int,
    ) -> None:
        zeros, split = memoryview(_ZEROS)[:size], numbers.nbytes
        for_numbers, for_weights = keystream[:split].view("<u8"), keystream[split:size].view(self._word)
        for stream, sign in streams:
            stream.update_into(zeros, keystream.data)
            combine = np.add if sign == 1 else np.subtract
            if split:
                combine(numbers, for_numbers, out=numbers)
            combine(weights, for_weights, out=weights)


def apply_everywhere(vector: NDArray[np.uint8], masking: Masking, *, threads: int = 2) -> None:
    """Mask or unmask a whole vector in place, in `threads` threads (`update_into` and NumPy release the GIL)."""
    starts = range(0, len(vector), PIECE_BYTES)

    def one(start: int) -> None:
        masking.apply(vector[start : start + PIECE_BYTES], start)

    if threads == 1 or len(starts) == 1:
        for start in starts:
            one(start)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, starts))


def keystream_of(key: bytes, offset: int) -> CipherContext:
    """AES-256-CTR from byte `offset` (a multiple of 16) on. A key is for one vector, or one rounding, only."""
    counter = (offset // AES_BLOCK).to_bytes(AES_BLOCK, "big")
    return Cipher(AES256(key), CTR(counter)).encryptor()
