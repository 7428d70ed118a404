"""What a study's hospitals agree on beside the work itself: why it is done, who takes part, what is shown of it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from boundary.aggregation import MAX_GROUPS
from boundary.fields import Day, PublicKeyStr, Sentence, distinct
from boundary.names import Frozen, SiloId, list_in

Disclosed = Literal["budget", "intake", "withdrawals"]


class Purpose(Frozen):
    """Why the study may be done, in the words a steward and a reviewer read."""

    title: Sentence
    statement: Sentence
    legal_basis: Sentence
    ethics_reference: Sentence
    expires: Day
    retain_years: Annotated[int, Field(ge=1, le=100)] = 6


class Hospital(Frozen):
    """A hospital by name *and* key, so that a coordinator cannot invent or swap a party.

    One that only validates trains nothing: it holds all of its patients back and measures models on them
    (`boundary.parties`). With `group` a round's training is summed among the hospitals of the same group, and the
    median of the groups is taken (`boundary.groups`).
    """

    silo: SiloId
    signing_key: PublicKeyStr
    role: Literal["train", "validate"] = "train"
    group: Annotated[int, Field(ge=1, le=MAX_GROUPS)] | None = None


class Evidence(Frozen):
    """Which entries of its log a hospital shows to the others and to reviewers; of all others they see hashes.

    What the coordinator was told anyway is always shown. `budget` is what was spent on patients, from which the most
    patients a hospital declares can be worked out; `intake` how many files were used and refused, in tens;
    `withdrawals` that somebody withdrew consent, and when. None of it is covered by a guarantee per patient.
    """

    disclose: Annotated[tuple[Disclosed, ...], BeforeValidator(list_in), AfterValidator(distinct)] = ()
