"""What a release costs patients: privacy events, and the budgets they are held against.

An event says which mechanism ran and how often, never what it cost: epsilon is computed from all events together.
Neighbouring data sets differ by one patient, added or removed with all of that patient's images: unit "patient".
"""

from typing import Annotated, Literal

from pydantic import Field

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import BoundaryError
from boundary.names import Frozen
from compliance.errors import UnknownPrivacyEvent

# Standard deviation of the noise over the clipping norm. Below 0.01 one step costs an epsilon of 5,000 and nothing
# is private; above a million the noise of a step is the square root of 10^12 patients.
SMALLEST_NOISE_MULTIPLIER = 0.01
LARGEST_NOISE_MULTIPLIER = 1e6
MOST_STEPS = 10**9
MOST_EPSILON = 1e6  # a cap that caps nothing; with the limits above every epsilon is a number JSON can carry
MAX_EVENT_BYTES = 1024

NoiseMultiplier = Annotated[float, Field(ge=SMALLEST_NOISE_MULTIPLIER, le=LARGEST_NOISE_MULTIPLIER)]
SamplingRate = Annotated[float, Field(gt=0, le=1)]
Delta = Annotated[float, Field(gt=0, lt=1)]


class PoissonGaussian(Frozen):
    """Steps of the Gaussian mechanism, each on patients that were sampled independently of each other.

    `noise_multiplier` is the noise's standard deviation over the clipping norm, `sampling_rate` the probability of
    each patient to be in a step, `steps` how many there are at most.
    """

    mechanism: Literal["poisson-gaussian"] = "poisson-gaussian"
    unit: Literal["patient"] = "patient"
    noise_multiplier: NoiseMultiplier
    sampling_rate: SamplingRate
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)]


PrivacyEvent = PoissonGaussian  # a union once there is a second mechanism; accountants match on the class


class Budget(Frozen):
    """A cap: everything that it covers together may be (epsilon, delta)-private and no less."""

    epsilon: Annotated[float, Field(gt=0, le=MOST_EPSILON)]
    delta: Delta


class Spent(Frozen):
    """What was found to be spent: an epsilon means nothing without the delta it was computed at."""

    epsilon: Annotated[float, Field(ge=0)]
    delta: Delta


def event_bytes(event: PrivacyEvent) -> bytes:
    """The one form in which an event is stored."""
    return canonical_bytes(event.model_dump(mode="json"))


def parse_event(data: bytes) -> PrivacyEvent:
    """Read what `event_bytes` wrote; raises `UnknownPrivacyEvent` for everything else.

    Every key must be there: a default would let an entry without its mechanism pass for one with it.
    """
    try:
        content = parse_canonical(data, limit=MAX_EVENT_BYTES)
        event = PoissonGaussian.model_validate(content)
        written = event_bytes(event)
    except (BoundaryError, ValueError) as why:
        raise UnknownPrivacyEvent(f"not a privacy event this version knows: {why}") from why
    if written != data:
        raise UnknownPrivacyEvent("a privacy event with something left out")
    return event
