"""bfloat16: a float32 without its lower 16 bits, rounded to the nearest, ties to even (as IEEE 754 4.3.1 rounds).

It has float32's exponents and 8 bits of significand, so a finite weight w becomes one within 2^-8 |w| of it: half a
step of at most 2^-7 |w|. If mantissas are spread evenly the mean error is 0.
"""

import numpy as np
from numpy.typing import NDArray

BYTES = 2
RELATIVE_ERROR = 2.0**-8  # of a normal number, at most
_PIECE = 2**20  # elements


def to_words(vector: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 [n] to bfloat16, as its 16-bit words. NaN stays NaN; what is too large becomes infinite."""
    words = np.empty(vector.shape, np.uint16)
    for start in range(0, len(vector), _PIECE):  # without two more copies of a model
        part = np.ascontiguousarray(vector[start : start + _PIECE])
        bits = part.view(np.uint32)
        rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        words[start : start + _PIECE] = np.where(np.isnan(part), np.uint32(0x7FC0), rounded >> np.uint32(16))
    return words


def from_words(words: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same numbers as float32 [n], exactly."""
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 [n] as bfloat16 can say it."""
    return from_words(to_words(vector))
