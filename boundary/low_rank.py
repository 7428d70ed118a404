"""Low-rank adapters as a plan asks for them, and by which names they are known (Hu et al. 2021, arXiv:2106.09685).

A linear layer that is adapted answers W x + (alpha / rank) B A x. W stays as the study begins; A and B are parameters
of their own beside it, so `boundary.parts` decides like of any others whether they are trained, move or stay home. B
begins as zero: at the start the network is the plain one.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from boundary.errors import InvalidPlan
from boundary.names import Frozen, list_in

ADAPTERS = "*.lora_*"  # fits every adapter's parameters and nothing else
FIRST, SECOND = ".lora_a.weight", ".lora_b.weight"  # A [rank, in] and B [out, rank], after the layer's name


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names something twice")
    return values


Pattern = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.*?!\[\]-]+$")]
Patterns = Annotated[tuple[Pattern, ...], BeforeValidator(list_in), Field(max_length=100), AfterValidator(_distinct)]


class LowRank(Frozen):
    """Which linear layers are adapted, by patterns of their names, and how: `rank` of B A, `alpha` for its strength."""

    rank: Annotated[int, Field(ge=1, le=256)]
    alpha: Annotated[float, Field(gt=0, le=1000)]
    targets: Annotated[Patterns, Field(min_length=1)]

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def is_adapter(parameter: str) -> bool:
    """Whether a parameter is A or B of some layer."""
    return parameter.endswith((FIRST, SECOND))


def check_adapters(names: Sequence[str], trained: Collection[str]) -> None:
    """Refuse adapters that could learn nothing, and training of what they adapt. Raises `InvalidPlan`.

    A alone may stay as it is drawn (FFA-LoRA, Sun et al. 2024); without B nothing that A learns has an effect.
    """
    layers = [name.removesuffix(SECOND) for name in names if name.endswith(SECOND)]
    for layer in layers:
        if layer + SECOND not in trained:
            raise InvalidPlan(
                f"model.trained: {layer}{SECOND} begins as zero and would stay so: add {ADAPTERS!r}, or '*{SECOND}'"
            )
        for own in (f"{layer}.weight", f"{layer}.bias"):
            if own in trained:
                raise InvalidPlan(
                    f"model.trained: {own} belongs to a layer that model.lora adapts, which stays as it is: name "
                    f"{ADAPTERS!r} and layers that are not adapted"
                )


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether any of the patterns fits; case counts."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
