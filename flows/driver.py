"""Drives one study from whatever the store says was reached. Knows nothing of Prefect.

One driver at a time: it holds the reins (a lease with a fence) and renews them; when they are lost to another
run, every write of this one fails and it stops.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection

from boundary.messages import BlobRef, HeadsCosigned, PlanApproved, PlanDeclined, StudyClosed, TrailAsked, TrailShown
from boundary.names import COORDINATOR
from boundary.parties import counts_images
from boundary.rotation import resting
from boundary.secagg.ring import first_encoding
from compliance.events import PlanApprovalGiven
from compliance.records import RoundRecord
from flows.coordinator import DRIVER_LEASE, Coordinator
from flows.desk import Desk
from flows.personalisation import Personalised
from flows.records import Measurement, Statistics
from flows.round_work import RoundWork
from flows.store import audit, holdings, measurements, rounds, studies
from flows.store.database import reading, writing
from flows.store.studies import Reins, Study
from flows.trails import Trails

_LOOK_SECONDS = 0.2
WITNESS_SECONDS = 20.0  # how long the end of a study waits for logs to be shown and cosigned


@dataclass(frozen=True, slots=True)
class Consent:
    """What a hospital said to the plan. `code` is set when it declined."""

    silo: str
    dataset_digest: str | None
    code: str | None


class StudyDriver:
    """The study in this process's hands; make it with `driving`."""

    def __init__(self, coordinator: Coordinator, study: Study, reins: Reins) -> None:
        self.coordinator, self.study, self.reins = coordinator, study, reins
        self.desk = Desk(coordinator.key, coordinator.now, study.plan)
        self.trails = Trails(self.desk, study)

    def consents(self) -> dict[str, Consent]:
        """Answers so far, by hospital; the last one counts: a steward can take an approval back."""
        kinds = PlanApproved.kind, PlanDeclined.kind
        with reading(self.coordinator.store) as connection:
            said = self.desk.heard_since(connection, kinds, self.study.study, 0)
        found, ours = {}, self.study.plan_digest
        for _, envelope in said:
            silo, message = envelope.sender, envelope.message
            if isinstance(message, PlanDeclined) and message.plan_digest == ours:
                found[silo] = Consent(silo, None, message.code)
            if isinstance(message, PlanApproved):
                approval = message.approval.approval
                if (approval.plan_digest, approval.silo) == (ours, silo):
                    found[silo] = Consent(silo, approval.dataset_digest, None)
        return found

    async def consent_of(self, silo: str) -> Consent:
        """Wait for this hospital's answer."""
        while True:
            answer = self.consents().get(silo)
            if answer is not None:
                return answer
            await asyncio.sleep(_LOOK_SECONDS)

    def record_consents(self) -> None:
        """Put each approval into the trail once."""
        with writing(self.coordinator.store) as connection:
            self._record_consents(connection)

    def _record_consents(self, connection: Connection) -> dict[str, Consent]:
        study, now, consents = self.study.study, self.coordinator.now(), self.consents()
        for silo, answer in sorted(consents.items()):
            if answer.dataset_digest is None or rounds.is_published(connection, study, f"consent-{silo}"):
                continue
            event = PlanApprovalGiven(
                study=study, plan_digest=self.study.plan_digest, silo=silo, dataset_digest=answer.dataset_digest
            )
            audit.append(connection, event, actor=COORDINATOR, now=now)
            rounds.mark_published(connection, study, f"consent-{silo}", answer.dataset_digest, now)
        return consents

    def records(self) -> list[RoundRecord]:
        with reading(self.coordinator.store) as connection:
            return rounds.committed(connection, self.study.study)

    def last_record(self) -> RoundRecord | None:
        with reading(self.coordinator.store) as connection:
            return next(rounds.newest_first(connection, self.study.study), None)

    def finished_model(self, number: int) -> BlobRef | None:
        """The finished model that a plan which trains nothing evaluates in this round, if there is one."""
        for digest in self.study.plan.evaluation.models[number - 1 : number]:
            size = self.coordinator.blobs.size(digest)
            return None if size is None else BlobRef(digest=digest, size=size)
        return None

    def open_round(self, number: int) -> RoundWork:
        """Open round `number`, or take it up where an interrupted run left it.

        Raises `LogInDoubt` if somebody's log is not what it was.
        """
        last = self.last_record()
        model = self.finished_model(number) or (last.model_out if last else self.study.model.first)
        with writing(self.coordinator.store) as connection:
            # whoever approved since the run began is in the round from here on, and nobody whose approval is not logged
            consenting = _approving(self._record_consents(connection))
            self.trails.take_in(connection)
        with writing(self.coordinator.store) as connection:
            self.trails.check(connection)
            opened = rounds.open_round(connection, self.reins, number, model.digest, self.coordinator.now())
            holdings.record(connection, model, owner=COORDINATOR, now=self.coordinator.now())
            roster = self.desk.roster(connection).signed.digest
            heads = self.trails.show(connection, number - 1, consenting)
        encoding = last.next_encoding if last else first_encoding(self.study.plan)
        return RoundWork(
            self.coordinator, self.study, self.reins, self.desk, roster, heads, opened, model, consenting, encoding,
            self._resting(number),
        )  # fmt: skip

    def _resting(self, number: int) -> frozenset[str]:
        """Whom the plan leaves out in this round after earlier ones that were rolled back."""
        if not self.study.plan.robustness.leave_out:
            return frozenset()  # without reading all records
        return resting(self.study.plan, [record.rolled_back is not None for record in self.records()[: number - 1]])

    async def witness_end(self) -> tuple[str, ...]:
        """At the end: have everybody's log shown and cosigned once more; returns who did not answer.

        After the last round hospitals show theirs unasked. What they did since, or without any round, is asked for.
        """
        consenting, number = _approving(self.consents()), self._last_sum()
        slot = f"{self.study.study}/{number}"
        if number > self.study.plan.training.rounds:
            with writing(self.coordinator.store) as connection:
                for silo in consenting:
                    self.desk.tell(connection, silo, TrailAsked(study=self.study.study, round=number))
        missing = await self._heard_from(consenting, TrailShown.kind, slot)
        with writing(self.coordinator.store) as connection:
            self.trails.show(connection, number, consenting)
        return missing + await self._heard_from(consenting, HeadsCosigned.kind, slot)

    def _last_sum(self) -> int:
        """The number of the round that the study's last sum was opened as."""
        plan = self.study.plan
        if not plan.training.rounds:
            return max(1, len(plan.evaluation.models))
        return plan.training.rounds if self.study.personalised is None else plan.rounds_in_all

    async def _heard_from(self, silos: tuple[str, ...], kind: str, slot: str) -> tuple[str, ...]:
        """Wait a while for this of each; take it in; returns who has not said it."""
        deadline = asyncio.get_running_loop().time() + WITNESS_SECONDS
        while True:
            with reading(self.coordinator.store) as connection:
                missing = tuple(silo for silo in silos if silo not in self.desk.heard(connection, kind, slot))
            if not missing or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        with writing(self.coordinator.store) as connection:
            self.trails.take_in(connection)
        return missing

    @property
    def lacks_statistics(self) -> bool:
        """Whether the plan wants all hospitals' images counted before round 1, and that is still to be done."""
        return counts_images(self.study.plan) and self.study.statistics is None

    def measurements(self) -> list[Measurement]:
        with reading(self.coordinator.store) as connection:
            return measurements.of_study(connection, self.study.study)

    def learn(self, statistics: Statistics) -> None:
        """From now on every order carries them."""
        self.study = replace(self.study, statistics=statistics)

    @property
    def lacks_personalisation(self) -> bool:
        """Whether hospitals are still to personalise and compare, now that all rounds are committed."""
        return self.study.plan.personalisation is not None and self.study.personalised is None

    def learn_personalised(self, found: Personalised) -> None:
        self.study = replace(self.study, personalised=found)

    def finish(self, reason: str) -> None:
        """Close the study and tell the hospitals, whose caches may go."""
        with writing(self.coordinator.store) as connection:
            studies.end(connection, self.reins, reason, self.coordinator.now())
            for silo in self.study.plan.silos:
                self.desk.tell(connection, silo, StudyClosed(study=self.study.study, code=reason))


def _approving(consents: dict[str, Consent]) -> tuple[str, ...]:
    return tuple(sorted(silo for silo, answer in consents.items() if answer.code is None))


@asynccontextmanager
async def driving(coordinator: Coordinator, wanted: str, driver: str) -> AsyncIterator[StudyDriver]:
    """Hold a study's reins for the block; raises `StudyUnknown` or `DrivenElsewhere`."""
    study, reins = await _take_reins(coordinator, wanted, driver)
    holding = asyncio.create_task(_hold(coordinator, reins))
    try:
        yield StudyDriver(coordinator, study, reins)
    finally:
        holding.cancel()
        with suppress(asyncio.CancelledError, studies.NoLongerDriver):
            await holding
        with writing(coordinator.store) as connection:
            studies.let_go(connection, reins)


async def _take_reins(coordinator: Coordinator, wanted: str, driver: str) -> tuple[Study, Reins]:
    """Wait for a dead driver's lease to run out; a lease that is renewed meanwhile means it lives."""
    held_until: datetime | None = None
    while True:
        try:
            with writing(coordinator.store) as connection:
                study = studies.find(connection, wanted)
                reins = studies.take_reins(connection, study.study, driver, coordinator.now(), DRIVER_LEASE)
        except studies.DrivenElsewhere as why:
            if held_until is not None and why.until > held_until:
                raise
            held_until = why.until
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            return study, reins


async def _hold(coordinator: Coordinator, reins: Reins) -> None:
    while True:
        await asyncio.sleep(DRIVER_LEASE.total_seconds() / 3)
        with writing(coordinator.store) as connection:
            studies.hold(connection, reins, coordinator.now(), DRIVER_LEASE)
