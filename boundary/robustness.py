"""What keeps one hospital's bad change from spoiling the model, as far as that can be done on sums.

Methods that look at every hospital's own change (Krum, trimmed means, scores of trust) are not among them: here nobody
can. What can be done: every hospital's agent shortens a change that is too long; the coordinator sees in the sum
whether somebody did not; and the hospitals vote, each by one masked bit, whether the new model is worse for the
patients they hold back. A model that is voted down, or that came of too long a sum, is rolled back: the round is
committed with the model it began with.

Where hospitals differ in their labels, an honest round makes a young model worse for many of them (it learns what is
frequent before it learns to tell). So a vote alone brings nothing down: the mean of the hospitals' losses must have
risen as well. And the first rounds count whatever honest votes say, for a network that knows nothing yet is hardly ever
wrong by much. Every hospital counts once in both: with sums over images a round's metrics less that rise would be the
summed loss of the model before, which together with the metrics of that one tells single hospitals' losses.
"""

from enum import StrEnum
from math import isfinite
from typing import Annotated, assert_never

from pydantic import Field

from boundary.names import Frozen

ROUNDING = 1e-3  # of `clip`: what fixed point and float32 may add to the length of a mean


class RolledBack(StrEnum):
    """Why a round's model was rolled back. Stable codes: they are audited, told to the hospitals and shown."""

    VOTED_DOWN = "VOTED_DOWN"
    VOTE_INVALID = "VOTE_INVALID"
    TOO_LONG = "TOO_LONG"
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"


Reason = Annotated[RolledBack, Field(strict=False)]  # in a value that is read back from JSON


class Robustness(Frozen):
    """The plan's section; without it nothing is clipped, nobody votes and nothing is rolled back.

    `clip` is the longest change, as the Euclidean norm of all weights that move, that a hospital sends in a round; a
    longer one is shortened to it. With `vote` a hospital votes against a new model if its mean loss on the patients
    held back there is more than `tolerance` (0.25 is a quarter) above that of the model the round began with, or if it
    is above that at all and so much above the loss of a guess; the first `warm_up` rounds count in spite of that. With
    `leave_out` hospitals are left out in turn after a round was rolled back, until a round counts
    (`boundary.rotation`). Without a guarantee per patient two such rounds, from one model and with one hospital more or
    less in the sum, let the coordinator estimate that hospital's change.
    """

    clip: Annotated[float, Field(gt=0, le=1e6)] | None = None
    vote: bool = False
    leave_out: bool = False
    warm_up: Annotated[int, Field(ge=0, le=1000)] = 3
    tolerance: Annotated[float, Field(ge=0, le=10)] = 0.25

    @property
    def may_roll_back(self) -> bool:
        return self.vote or self.clip is not None

    def knows(self, why: RolledBack) -> bool:
        """Whether a round of such a plan can be rolled back for this reason."""
        match why:
            case RolledBack.VOTED_DOWN | RolledBack.VOTE_INVALID:
                return self.vote
            case RolledBack.TOO_LONG:
                return self.clip is not None
            case RolledBack.MODEL_TOO_LARGE:
                return self.may_roll_back
            case _:
                assert_never(why)

    def is_down(self, vote: "Vote", number: int) -> bool:
        """Whether a vote brings down the model of round `number`, from 1."""
        return vote.is_against and number > self.warm_up

    def is_worse(self, loss: float, before: float, guess: float) -> bool:
        """One hospital's vote, from mean losses in nats: of the new model, the one before, and one without a clue.

        What is no number is worse than anything. A model that is much worse than `guess` may not get any worse: else a
        model that was spoilt once could be spoilt further in every round, each time within the tolerance.
        """
        is_hopeless = loss > before and loss > (1 + self.tolerance) * guess
        return not isfinite(loss) or loss > (1 + self.tolerance) * before or is_hopeless

    def is_too_long(self, norm: float, median: "Median | None" = None) -> bool:
        """Whether a weighted mean of changes is longer than all of them may be: somebody's agent does not clip.

        Of a median of groups the means were looked at, and it is how many of them were: it may be longer than each.
        """
        if median is not None:
            return not median.has_majority
        return self.clip is not None and norm > (1 + ROUNDING) * self.clip


class Vote(Frozen):
    """What the votes add up to: `against` of `voted` hospitals found the model worse for those they hold back.

    `rise` is by how much their mean losses on the patients held back rose, in nats, summed over the hospitals.
    """

    against: Annotated[int, Field(ge=0)]
    voted: Annotated[int, Field(ge=1)]
    rise: float

    @property
    def is_against(self) -> bool:
        """More than half of those who voted, and the mean of the hospitals' losses rose.

        An agent that is not ours can add more than one vote, or take votes off, as long as the sum stays possible.
        """
        return 2 * self.against > self.voted and self.rise > 0


class Median(Frozen):
    """Of how many groups' sums a round's change is the median; it was taken without those that were `spoiled`."""

    groups: Annotated[int, Field(ge=1)]
    spoiled: Annotated[int, Field(ge=0)] = 0

    @property
    def has_majority(self) -> bool:
        """Whether more than half of the sums were sound: else the median may be anything."""
        return 2 * self.spoiled < self.groups


def counted(against: float, voted: float, rise: float, hospitals: int) -> Vote | None:
    """Read the three sums over so many hospitals; None for what no honest votes add up to."""
    if not (isfinite(against) and isfinite(voted) and isfinite(rise)):
        return None
    no, all_ = round(against), round(voted)
    return Vote(against=no, voted=all_, rise=rise) if 0 <= no <= all_ <= hospitals and all_ > 0 else None
