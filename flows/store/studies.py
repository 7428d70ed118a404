"""Studies in the store: published once, driven by one flow run at a time, each change with its audit entry."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection, Row, insert, select, update

from boundary.canonical import digest, parse_json
from boundary.images import Normalisation
from boundary.names import COORDINATOR
from boundary.parts import Parts, parts_of
from boundary.plan import StudyPlan, digest_of, plan_from_json, study_id, to_json
from compliance.events import PersonalisationSummed, PlanPublished, StatisticsTaken, StudyDriven, StudyEnded
from compliance.records import to_bytes
from flows.personalisation import Personalised
from flows.records import ModelStart, Statistics
from flows.store import audit
from flows.store.schema import studies

Found = TypeVar("Found", Statistics, Personalised)


class StudyUnknown(LookupError):
    """No study of that name was published."""

    def __init__(self, wanted: str, known: list[str]) -> None:
        there = ", ".join(known) or "none: publish one with `wardround plan publish study.toml`"
        super().__init__(f"no plan {wanted!r}; published: {there}")


class AlreadyPublished(ValueError):
    """Another plan bears this name and revision."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{label} was published before with other content: raise `revision` in the plan")


class DrivenElsewhere(RuntimeError):
    """Another flow run drives this study, and it is alive."""

    def __init__(self, study: str, driver: str, until: datetime) -> None:
        super().__init__(
            f"{study} is being run by {driver} (its lease runs to {until:%H:%M:%S} UTC): wait for it or cancel it"
        )
        self.until = until


class NoLongerDriver(RuntimeError):
    """Another flow run has taken over; this one must not write any more."""


@dataclass(frozen=True, slots=True)
class Study:
    """A published plan and where it stands."""

    study: str
    label: str
    plan: StudyPlan
    plan_digest: str
    model: ModelStart
    statistics: Statistics | None
    personalised: Personalised | None
    state: str
    driver: str | None
    driver_until: datetime | None
    published_at: datetime

    @property
    def normalisation(self) -> Normalisation | None:
        """What all of the study's images are normalised with, once it is known, if the plan wants that."""
        if self.plan.preprocessing.normalise == "federated":
            return None if self.statistics is None else self.statistics.normalisation
        return self.plan.preprocessing.given

    @property
    def parts(self) -> Parts:
        """Which of the model's parameters move, stay home, or stay as the study begins."""
        return parts_of(self.plan.model, self.model.manifest)


@dataclass(frozen=True, slots=True)
class Reins:
    """The right to write to a study: valid until somebody else's fence is higher."""

    study: str
    driver: str
    fence: int


def publish(connection: Connection, plan: StudyPlan, model: ModelStart, now: datetime) -> bool:
    """Whether it is new. Publishing the same plan again changes nothing; raises `AlreadyPublished`."""
    plan_digest = digest_of(plan)
    known = connection.execute(select(studies.c.plan_digest).where(studies.c.label == plan.label)).scalar()
    if known == plan_digest:
        return False
    if known is not None:
        raise AlreadyPublished(plan.label)
    connection.execute(
        insert(studies).values(
            study=study_id(plan),
            plan_digest=plan_digest,
            label=plan.label,
            plan=to_json(plan),
            model=to_bytes(model),
            state="proposed",
            published_at=now,
            driver_fence=0,
        )
    )
    audit.append(connection, PlanPublished(study=study_id(plan), plan_digest=plan_digest), actor=COORDINATOR, now=now)
    return True


def every(connection: Connection) -> list[Study]:
    return [_study(row) for row in connection.execute(select(studies).order_by(studies.c.published_at))]


def find(connection: Connection, wanted: str) -> Study:
    """By label, study or digest; raises `StudyUnknown`."""
    column = studies.c.label if "@" in wanted else studies.c.plan_digest if ":" in wanted else studies.c.study
    row = connection.execute(select(studies).where(column == wanted)).one_or_none()
    if row is None:
        raise StudyUnknown(wanted, [study.label for study in every(connection)])
    return _study(row)


def take_reins(connection: Connection, study: str, driver: str, now: datetime, lease: timedelta) -> Reins:
    """Become the study's driver; raises `DrivenElsewhere` while another one's lease lasts."""
    row = connection.execute(select(studies).where(studies.c.study == study)).one()
    if row.driver is not None and row.driver != driver and row.driver_until is not None and row.driver_until > now:
        raise DrivenElsewhere(study, row.driver, row.driver_until)
    fence = row.driver_fence + 1
    state = "running" if row.state == "proposed" else row.state
    connection.execute(
        update(studies)
        .where(studies.c.study == study)
        .values(driver=driver, driver_until=now + lease, driver_fence=fence, state=state)
    )
    audit.append(connection, StudyDriven(study=study, fence=fence), actor=COORDINATOR, now=now)
    return Reins(study, driver, fence)


def hold(connection: Connection, reins: Reins, now: datetime, lease: timedelta) -> None:
    """Renew the lease; raises `NoLongerDriver`."""
    check(connection, reins)
    connection.execute(update(studies).where(studies.c.study == reins.study).values(driver_until=now + lease))


def check(connection: Connection, reins: Reins) -> None:
    """First thing in every write of a driver: raises `NoLongerDriver` if another one has taken over."""
    fence = connection.execute(select(studies.c.driver_fence).where(studies.c.study == reins.study)).scalar_one()
    if fence != reins.fence:
        raise NoLongerDriver(f"{reins.study} is driven by another flow run now; this one stops")


def keep_statistics(connection: Connection, reins: Reins, found: Statistics, now: datetime) -> Statistics:
    """Keep what was counted before round 1. The first counts, for the whole study."""
    return _keep_first(connection, reins, "statistics", found, StatisticsTaken, now)


def keep_personalised(connection: Connection, reins: Reins, found: Personalised, now: datetime) -> Personalised:
    """Keep how the hospitals' comparisons came out. The first sum counts, and there is no second one."""
    return _keep_first(connection, reins, "personalised", found, PersonalisationSummed, now)


def _keep_first(
    connection: Connection, reins: Reins, name: str, found: Found,
    taken: type[StatisticsTaken | PersonalisationSummed], now: datetime,
) -> Found:  # fmt: skip
    """`name` is the column, and the attribute of `Study`."""
    check(connection, reins)
    kept: Found | None = getattr(find(connection, reins.study), name)
    if kept is not None:
        return kept
    data = to_bytes(found)
    connection.execute(update(studies).where(studies.c.study == reins.study).values({name: data}))
    event = taken(study=reins.study, survivors=found.survivors, result=digest(data))
    audit.append(connection, event, actor=COORDINATOR, now=now)
    return found


def let_go(connection: Connection, reins: Reins) -> None:
    """Give the study back, so that the next run need not wait for the lease."""
    connection.execute(
        update(studies)
        .where(studies.c.study == reins.study, studies.c.driver_fence == reins.fence)
        .values(driver=None, driver_until=None)
    )


def end(connection: Connection, reins: Reins, reason: str, now: datetime) -> None:
    """No more rounds. Ending twice changes nothing."""
    check(connection, reins)
    state = connection.execute(select(studies.c.state).where(studies.c.study == reins.study)).scalar_one()
    if state == "finished":
        return
    connection.execute(update(studies).where(studies.c.study == reins.study).values(state="finished"))
    audit.append(connection, StudyEnded(study=reins.study, reason=reason), actor=COORDINATOR, now=now)


def _study(row: Row[tuple[object, ...]]) -> Study:
    plan = plan_from_json(parse_json(bytes(row.plan)))
    model = ModelStart.model_validate(parse_json(bytes(row.model)))
    counted = None if row.statistics is None else Statistics.model_validate(parse_json(bytes(row.statistics)))
    held = None if row.personalised is None else Personalised.model_validate(parse_json(bytes(row.personalised)))
    return Study(
        row.study, row.label, plan, row.plan_digest, model, counted, held,
        row.state, row.driver, row.driver_until, row.published_at,
    )  # fmt: skip
