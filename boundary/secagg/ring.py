"""The public half of the fixed-point encoding: which ring, which scale, how many may be in the sum.

Apart from `encoding.py` so that reading a message does not load NumPy.
"""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from boundary.aggregation import MAX_HOSPITALS, SMALLEST_COHORT
from boundary.errors import CallerFault, NotApproved
from boundary.names import Frozen, whole
from boundary.plan import StudyPlan

FRACTION_BITS = 24  # of a number: whole numbers and losses up to 2^39 / hospitals, in steps of 6e-8
_FLOAT32_BITS = 24
_HEADROOM = 16  # how much more than the largest sum of the last round one hospital may want to say in this one
_MOST_EXPONENT = 60


class Encoding(Frozen):
    """The public part: the ring of the weights, the power of two they are multiplied by, how many may be in the sum.

    `exponent` comes from the plan or from the previous sum, never from one hospital.
    """

    ring: Annotated[Literal[16, 32], BeforeValidator(whole)] = 32
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
    largest = Encoding(ring=ring, exponent=0, most=most).largest
    best = math.floor(math.log2(largest) - math.log2(bound))  # their quotient may be infinite
    for exponent in range(min(best + 1, _MOST_EXPONENT), -_MOST_EXPONENT - 1, -1):
        if Encoding(ring=ring, exponent=exponent, most=most).bound >= bound:
            return exponent
    raise CallerFault(f"weights up to {bound} do not fit the ring")


def first_encoding(plan: StudyPlan) -> Encoding:
    """The encoding of the first round, and the coarsest that a hospital agrees to in any: all of it is in the plan."""
    aggregation = plan.aggregation
    bound, most = aggregation.delta_bound * aggregation.largest_weight(plan.training), len(plan.hospitals)
    return Encoding(ring=aggregation.ring, exponent=exponent_for(bound, aggregation.ring, most), most=most)


def next_encoding(plan: StudyPlan, before: Encoding, *, largest: float, clipped: int) -> Encoding:
    """Fit the scale to the last sum, which everybody knows: `largest` is its largest absolute weight.

    If hospitals had to clip, the bound becomes `_HEADROOM` times what it was. Never coarser than the plan's.
    """
    first = first_encoding(plan)
    if clipped:
        exponent = before.exponent - int(math.log2(_HEADROOM))
    elif largest > 0:
        exponent = exponent_for(_HEADROOM * largest, before.ring, before.most)
    else:
        exponent = before.exponent
    return first.model_copy(update={"exponent": max(first.exponent, exponent)})


def check_encoding(encoding: Encoding, plan: StudyPlan) -> None:
    """Raises `NotApproved` for what the plan does not allow: another ring, a smaller sum, a coarser scale."""
    first = first_encoding(plan)
    if (encoding.ring, encoding.most) != (first.ring, first.most) or encoding.exponent < first.exponent:
        raise NotApproved("the order wants another encoding than the plan allows")
