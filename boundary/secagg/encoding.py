"""Fixed-point numbers in a ring, so that masked vectors add up exactly.

Two rings lie side by side in one vector. *Numbers* (losses, counts, weights, histograms, statistics) are 64-bit two's
complement with 24 fraction bits: their sum is exact, and they are refused rather than clipped.
*Weights* (the model's delta) are clipped to a public bound, scaled by a public power of two and rounded
stochastically to 32 or 16 bits.

Bounds, by construction: with n hospitals at most, a hospital's integer q has |q| <= floor((2^(k-1) - 1) / n), so the
sum of n of them lies within +-(2^(k-1) - 1) and never wraps. Rounding draws 8 random bits r per weight and takes
floor(y + r / 256): whole steps stay what they are (from 2^16 on, where float32 has no room for r, one in some hundred
moves by one), everything else moves by less than one step, and the mean is right to 2^-8 of a step or half a unit in
float32's last place, whichever is more.
"""

import math

import numpy as np
from numpy.typing import NDArray

from boundary.errors import BadTensors
from boundary.secagg.masks import AES_BLOCK, keystream_of
from boundary.secagg.ring import FRACTION_BITS, Encoding

NUMBER_BITS = 64
PIECE = 64 * 1024  # weights at a time: all temporaries together stay in the second-level cache
_ZEROS = memoryview(bytes(PIECE))

Words = NDArray[np.uint32] | NDArray[np.uint16]


class Quantiser:
    """Float32 weights to ring words, piece by piece. `seed` is 32 fresh CSPRNG bytes."""

    def __init__(self, encoding: Encoding, seed: bytes) -> None:
        self._encoding = encoding
        self._stream = keystream_of(seed, 0)
        self._scaled, self._dither = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
        self._signed = np.empty(PIECE, np.int32)
        self._random = np.empty(PIECE + AES_BLOCK, np.uint8)  # `update_into` wants a cipher block to spare

    def encode(self, weights: NDArray[np.float32], out: Words) -> None:
        """Write the words of `weights` [n] to `out` [n]; raises `BadTensors` for NaN or infinity."""
        for start in range(0, len(weights), PIECE):
            self._piece(weights[start : start + PIECE], out[start : start + PIECE])

    def _piece(self, weights: NDArray[np.float32], out: Words) -> None:
        n, limit = len(weights), np.float32(self._encoding.largest)
        scaled, dither, random = self._scaled[:n], self._dither[:n], self._random[:n]
        with np.errstate(over="ignore"):  # what becomes infinite is clipped
            np.multiply(weights, np.float32(2.0**self._encoding.exponent), out=scaled)
        low, high = scaled.min(), scaled.max()
        if not (low >= -limit and high <= limit):  # NaN is neither
            self._clip(weights, scaled, limit)
        self._stream.update_into(_ZEROS[:n], self._random.data)
        np.copyto(dither, random)
        np.multiply(dither, np.float32(1 / 256), out=dither)
        np.add(scaled, dither, out=scaled)
        np.floor(scaled, out=scaled)
        if self._encoding.ring == 32:
            np.copyto(out.view(np.int32), scaled, casting="unsafe")
        else:  # by way of 32 bits: two's complement, modulo the ring
            np.copyto(self._signed[:n], scaled, casting="unsafe")
            np.copyto(out, self._signed[:n], casting="unsafe")

    def _clip(self, weights: NDArray[np.float32], scaled: NDArray[np.float32], limit: np.float32) -> None:
        if not np.isfinite(weights).all():
            raise BadTensors("the weights hold NaN or infinity")
        np.clip(scaled, -limit, limit, out=scaled)


def count_clipped(weights: NDArray[np.float32], encoding: Encoding) -> int:
    """Count what `Quantiser` will clip; raises `BadTensors` for NaN or infinity."""
    clipped, scale, limit = 0, np.float32(2.0**encoding.exponent), np.float32(encoding.largest)
    for start in range(0, len(weights), PIECE):
        piece = weights[start : start + PIECE]
        with np.errstate(over="ignore"):
            low, high = piece.min() * scale, piece.max() * scale
        if not (low >= -limit and high <= limit):
            if not np.isfinite(piece).all():
                raise BadTensors("the weights hold NaN or infinity")
            clipped += int(np.count_nonzero(np.abs(piece) > np.float32(encoding.bound)))
    return clipped


def decode_mean(total: Words, encoding: Encoding, weight: float) -> tuple[NDArray[np.float32], float]:
    """Divide the sum of all hospitals' words [n] by their weight, in float64, and round once to float32 [n].

    With it comes the largest absolute value of the sum. Piece by piece: no float64 vector is made.
    """
    signed = total.view("<i4" if encoding.ring == 32 else "<i2")
    mean, largest = np.empty(len(signed), np.float32), 0.0
    for start in range(0, len(signed), PIECE):
        piece = signed[start : start + PIECE].astype(np.float64)
        largest = max(largest, float(np.abs(piece).max()))
        np.ldexp(piece, -encoding.exponent, out=piece)
        np.divide(piece, weight, out=mean[start : start + PIECE], casting="same_kind")
    return mean, math.ldexp(largest, -encoding.exponent)


def encode_numbers(values: NDArray[np.float64], most: int) -> NDArray[np.uint64]:
    """Round `values` [m] to steps of 2^-FRACTION_BITS; raises `BadTensors` for what is not finite or too large."""
    largest = (2 ** (NUMBER_BITS - 1) - 1) // most
    words = []
    for value in values.tolist():
        if not np.isfinite(value):
            raise BadTensors("a number is NaN or infinite")
        scaled = round(value * 2**FRACTION_BITS)
        if abs(scaled) > largest:
            raise BadTensors("a number is too large for the sum")
        words.append(scaled % 2**NUMBER_BITS)
    return np.array(words, dtype="<u8")


def decode_numbers(total: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn the sum of all hospitals' numbers into float64 [m]."""
    return np.array([value / 2**FRACTION_BITS for value in total.view("<i8").tolist()])
