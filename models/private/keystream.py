"""Random bits for sampling and noise: AES-256-CTR under a key that nobody but this training ever has.

torch's generators are predictable from their output (Mersenne Twister), and a plan's seed is known to everybody:
whoever can repeat the noise can take it off again.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

KEY_BYTES = 32
_AES_BLOCK = 16
_ZEROS = memoryview(bytes(128 * 1024))

Words = NDArray[np.uint64]


class KeyStream:
    """One stream of 64-bit words, read once from front to back. Not for several threads at a time.

    `key` is 32 bytes of the operating system's generator (`secrets.token_bytes`), or fixed ones in a test.
    Raises `ValueError` for any other length.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(AES256(key), CTR(bytes(_AES_BLOCK))).encryptor()

    def fill(self, words: Words) -> None:
        """Overwrite `words` [n], C-contiguous, with uniform 64-bit words; n at most 16,384."""
        target = words.data.cast("B")
        size = len(target)
        whole = size - _AES_BLOCK + 1  # `update_into` wants a cipher block to spare, though CTR needs none
        if whole > 0:
            self._cipher.update_into(_ZEROS[:whole], target)
        rest = max(0, whole)
        target[rest:] = self._cipher.update(_ZEROS[: size - rest])

    def words(self, count: int) -> Words:
        """Give uniform 64-bit words, uint64 [count]."""
        return np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8")

    def below(self, limit: int) -> int:
        """Give an integer in [0, limit) without bias, for 0 < limit <= 2^64."""
        free = 2**64 - 2**64 % limit  # words from here on would make some remainders likelier
        while (word := int(self.words(1)[0])) >= free:
            pass
        return word % limit
