"""What the gates are told about a request: facts that the agent found out, none that the coordinator merely claims.

Numbers of patients are in here because two gates need them. They are kept out of every repr.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from boundary.groups import group_of
from boundary.plan import StudyPlan, digest_of
from silo_agent.policy.adoption import Standing


@dataclass(frozen=True, slots=True)
class DataFacts:
    """The data set that the plan names and what a scan found. `patients` counts those that take part.

    `exclusions_at` is when the list of exclusions was written, None if it is not there. `admits_lossy` and
    `admits_burned_in` are how the intake was really set.
    """

    name: str
    modalities: frozenset[str]
    images_per_patient: int
    patients: int = field(repr=False)
    exclusions_at: datetime | None
    admits_lossy: bool = False
    admits_burned_in: bool = False

    @classmethod
    def of(cls, plan: StudyPlan, *, patients: int, exclusions_at: datetime | None) -> Self:
        """What `plan` takes of its data set, for an intake that refuses loss and burned-in text, as ours does."""
        dataset = plan.dataset
        modalities = frozenset(dataset.modalities)
        return cls(dataset.name, modalities, dataset.max_images_per_patient, patients, exclusions_at)


@dataclass(frozen=True, slots=True)
class Unguarded:
    """The plan gives no guarantee per patient."""


@dataclass(frozen=True, slots=True)
class NothingSpent:
    """A phase that trains nothing, of a plan with a guarantee or in a hospital where nobody is trained on."""


@dataclass(frozen=True, slots=True)
class Spending:
    """What patients will have been exposed to once this round is over: epsilons of the ledger, at `delta`."""

    epsilon_study: float
    epsilon_lifetime: float
    delta: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class Leaving:
    """What would leave in this round, all messages together. `cell` is the step in which counts are told."""

    size: int  # bytes
    metrics: frozenset[str]
    cell: int


@dataclass(frozen=True, slots=True)
class Using:
    """GPUs, and the hours that the round has taken so far, over all its starts."""

    devices: int
    hours: float


@dataclass(frozen=True, slots=True)
class Request:
    """One request to work on one round. `parties` is how many hospitals the plan names for our smallest sum.

    In a sum over fewer of them than the policy asks for, the session takes no part (`silo_agent.sums`).
    """

    standing: Standing
    plan_name: str
    plan_digest: str
    round: int
    data: DataFacts
    parties: int
    model_size: int  # bytes
    spending: Spending | Unguarded | NothingSpent
    leaving: Leaving
    using: Using
    pretrained: str | None = None  # the file that the plan begins with, if there is one

    @classmethod
    def of(  # noqa: PLR0913 - one fact each
        cls,
        plan: StudyPlan,
        round: int,  # noqa: A002 - the field's name
        *,
        site: str,
        standing: Standing,
        data: DataFacts,
        model_size: int,
        spending: Spending | Unguarded | NothingSpent,
        leaving: Leaving,
        using: Using,
    ) -> Self:
        """A request for a round of `plan`: its name, digest and hospitals are the plan's own.

        `site` is this hospital, by its name in the plan: in a training it is summed with its group only.
        """
        return cls(
            standing=standing,
            plan_name=plan.name,
            plan_digest=digest_of(plan),
            round=round,
            data=data,
            parties=len(group_of(plan, "train", site) or plan.silos),
            model_size=model_size,
            spending=spending,
            leaving=leaving,
            using=using,
            pretrained=None if plan.model.pretrained is None else plan.model.pretrained.file,
        )
