"""The public half of the fixed-point encoding: which ring, which scale, how many may be in the sum.

Apart from `encoding.py` so that reading a message does not load NumPy.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from boundary.errors import CallerFault
from boundary.names import Frozen
from boundary.plan import MAX_HOSPITALS, SMALLEST_COHORT

_FLOAT32_BITS = 24
_MOST_EXPONENT = 60


class Encoding(Frozen):
    """The public part: the ring of the weights, the power of two they are multiplied by, how many may be in the sum.

    `exponent` comes from the plan or from the previous sum, never from one hospital.
    """

    ring: Literal[16, 32] = 32
    exponent: Annotated[int, Field(ge=-_MOST_EXPONENT, le=_MOST_EXPONENT)]
    most: Annotated[int, Field(ge=SMALLEST_COHORT, le=MAX_HOSPITALS)]

    @property
    def largest(self) -> int:
        """The largest |q| of one hospital: within the proven bound, and exact in float32."""
        proven: int = (2 ** (self.ring - 1) - 1) // self.most
        proven -= 1  # y + 255/256 may round up to y + 1 in float32
        surplus = max(0, proven.bit_length() - _FLOAT32_BITS)
        return proven >> surplus << surplus

    @property
    def bound(self) -> float:
        """Weights are clipped to +- this."""
        return float(self.largest) * 2.0**-self.exponent


def exponent_for(bound: float, ring: Literal[16, 32], most: int) -> int:
    """Give the largest exponent whose `Encoding.bound` is still at least `bound`; raises `CallerFault` if none is."""
    if not (math.isfinite(bound) and bound > 0):
        raise CallerFault(f"a bound of {bound} for weights")
    best = math.floor(math.log2(Encoding(ring=ring, exponent=0, most=most).largest / bound))
    for exponent in range(min(best + 1, _MOST_EXPONENT), -_MOST_EXPONENT - 1, -1):
        if Encoding(ring=ring, exponent=exponent, most=most).bound >= bound:
            return exponent
    raise CallerFault(f"weights up to {bound} do not fit the ring")
