"""Gaussian noise on the integers: the normal distribution rounded to the lattice, from AES bits, free of float traps.

Rounding a normal variable is post-processing, so everything an accountant proves of the Gaussian mechanism (also
subsampled, also in many dimensions) holds for integers with this noise, word for word. From the discrete Gaussian of
Canonne, Kamath and Steinke (2020) it differs by a factor 1 + (x^2/sigma^2 - 1) / (24 sigma^2), here below 2^-20.
What they warn of (Mironov 2012, "On significance of the least significant bits"; Casacuberta et al. 2022) does not
arise: values and noise are integers, the sum is exact.

How it is drawn: the line is cut into cells of k = 2^b integers. With a probability of 99.7 % or more a cell is drawn by
Walker's alias method from its *lowest* point's probability times k, and the place in the cell is uniform. That part has
exactly dyadic probabilities. What is left (the wedges above the lowest points, and what rounding down left of each
cell) is drawn by rejection. All cells together end at 12 sigma, 2^-107 of the mass. Probabilities are right to a
relative 2^-50 each, as far as 9 sigma; there and beyond the error is below 2^-70 of the whole.
"""

import math

import numpy as np
from numpy.typing import NDArray

from models.private.keystream import KeyStream, Words

SMALLEST, LARGEST = 2.0**9, 2.0**22  # sigma, in steps of the lattice
_COLUMN_BITS, _SHARE_BITS, _PLACE_BITS = 13, 35, 16  # of one word: column, share of the column, place in the cell
_COLUMNS, _SHARE = 2**_COLUMN_BITS, 2**_SHARE_BITS
_ENDS = 12.0  # sigma
_BLOCK = 8192  # samples at a time: words and temporaries stay in the second-level cache
_CHUNK = 32 * _BLOCK
_REST = np.int32(-(2**31))  # no cell begins there

Integers = NDArray[np.int32]
Floats = NDArray[np.float64]


class LatticeGaussian:
    """Noise of one `sigma` (steps of the lattice, 2^9 to 2^22). Raises `ValueError` for another.

    Making one takes about 25 ms; keep it for all steps of a training. Not for several threads at a time.
    """

    def __init__(self, sigma: float, stream: KeyStream) -> None:
        if not SMALLEST <= sigma <= LARGEST:  # not for NaN either
            raise ValueError(f"sigma = {sigma} steps of the lattice; {SMALLEST:.0f} to {LARGEST:.0f} can be drawn")
        self.sigma, self._stream = sigma, stream
        bits = math.floor(math.log2(sigma)) - 7
        self._width, self._place = 2**bits, np.uint64(64 - bits)
        count = math.ceil(_ENDS * sigma / self._width)
        self._cells = np.arange(-count, count, dtype=np.int64) * self._width
        lowest, highest = self._edges()
        slots = np.floor(lowest * float(_COLUMNS * _SHARE)).astype(np.int64)
        self._floor = slots / float(_COLUMNS * _SHARE)  # what the fast part gives each cell; exact
        self._rest = highest - self._floor  # an upper limit of what is left of it
        self._order = np.argsort(self._rest)  # small ones first, where sums are finest
        self._until = np.cumsum(self._rest[self._order])
        self._threshold, self._answers = self._alias(slots)
        self._words, self._column = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64)
        self._share, self._index = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64)

    def _density(self, x: NDArray[np.int64]) -> Floats:
        """The probability of each integer: the normal density times a step, with the first term of the rounding."""
        square = (x / self.sigma) ** 2
        step = 1 + (square - 1) / (24 * self.sigma**2)
        density: Floats = np.exp(-square / 2) * step / (self.sigma * math.sqrt(2 * math.pi))
        return density

    def _edges(self) -> tuple[Floats, Floats]:
        """Each cell's width times its lowest and its highest probability."""
        first, last = (self._density(x) * self._width for x in (self._cells, self._cells + self._width - 1))
        return np.minimum(first, last), np.maximum(first, last)

    def _alias(self, slots: NDArray[np.int64]) -> tuple[Words, Integers]:
        """Walker's table in Vose's order, in integers: thresholds [columns], answers [2 * columns].

        Column i answers with its own cell for a share below its threshold and else with its alias. All that the cells
        do not take is `_REST`.
        """
        own = np.full(_COLUMNS, _REST, np.int32)
        own[: len(slots)] = self._cells
        left = [*slots.tolist(), *[0] * (_COLUMNS - len(slots))]
        left[-1] = _COLUMNS * _SHARE - sum(left)  # the last column has no cell
        threshold, alias = [_SHARE] * _COLUMNS, list(range(_COLUMNS))
        small = [i for i, mass in enumerate(left) if mass < _SHARE]
        large = [i for i, mass in enumerate(left) if mass > _SHARE]
        while small:
            poor, rich = small.pop(), large[-1]
            threshold[poor], alias[poor] = left[poor], rich
            left[rich] -= _SHARE - left[poor]
            if left[rich] <= _SHARE:
                large.pop()
            if left[rich] < _SHARE:
                small.append(rich)
        answers = np.stack([own, own[alias]], axis=1).reshape(-1)
        return np.array(threshold, np.uint64), answers

    def fill(self, out: Integers) -> None:
        """Overwrite `out` [n], int32 and C-contiguous, with independent draws."""
        for start in range(0, len(out), _CHUNK):
            chunk = out[start : start + _CHUNK]
            for first in range(0, len(chunk), _BLOCK):
                self._block(chunk[first : first + _BLOCK])
            rest = np.flatnonzero(chunk < _REST + 2**_PLACE_BITS)
            chunk[rest] = self._left_over(len(rest))

    def _block(self, out: Integers) -> None:
        """The fast part: a cell and a place in it for every word, `_REST` and a place for the others."""
        n = len(out)
        words, column, share, index = self._words[:n], self._column[:n], self._share[:n], self._index[:n]
        self._stream.fill(words)
        np.bitwise_and(words, np.uint64(_COLUMNS - 1), out=column)
        np.right_shift(words, np.uint64(_COLUMN_BITS), out=share)
        np.bitwise_and(share, np.uint64(_SHARE - 1), out=share)
        np.right_shift(words, self._place, out=words)  # the place: the top bits, which the share does not reach
        at = column.view(np.int64)
        np.add(at, at, out=index)
        np.add(index, share >= self._threshold.take(at, mode="clip"), out=index)
        self._answers.take(index, mode="clip", out=out)
        np.add(out, words.astype(np.int32), out=out)

    def _left_over(self, count: int) -> Integers:
        """Draw from what the fast part leaves: a cell by its upper limit, a place, and a chance to be refused."""
        found = [np.empty(0, np.int64)]
        missing = count
        while missing > 0:
            words = self._stream.words(3 * (2 * missing + 8)).reshape(3, -1)
            uniform = words.astype(np.float64) / 2.0**64
            place = np.minimum(np.searchsorted(self._until, uniform[0] * self._until[-1]), len(self._order) - 1)
            cell = self._order[place]
            x = self._cells[cell] + (words[1] >> self._place).astype(np.int64)
            height = self._density(x) * self._width - self._floor[cell]
            x = x[uniform[2] * self._rest[cell] < height][:missing]
            found.append(x)
            missing -= len(x)
        return np.concatenate(found).astype(np.int32)
