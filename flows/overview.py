"""`wardround status`: the federation at a glance, in the terminal."""

from datetime import datetime

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from boundary.messages import PlanApproved
from compliance.records import current
from flows import readings
from flows.coordinator import Coordinator
from flows.desk import Desk
from flows.store import measurements, members, rounds, studies
from flows.store.database import reading


def print_overview(coordinator: Coordinator) -> None:
    console = Console()
    console.print(f"coordinator fingerprint: {coordinator.key.public.fingerprint}")
    console.print(_hospitals(coordinator))
    console.print(_studies(coordinator))


def _hospitals(coordinator: Coordinator) -> Table:
    table = Table(
        "hospital", "state", "last sign of life", "agent", "certificate", title="Hospitals", title_justify="left"
    )
    now = coordinator.now()
    with reading(coordinator.store) as connection:
        known = members.members(connection)
    for member in known:
        seen = "never" if member.last_seen_at is None else f"{member.last_seen_at:%Y-%m-%d %H:%M:%S}"
        version = member.heartbeat.agent_version if member.heartbeat else ""
        low = ", disk low" if member.heartbeat and member.heartbeat.disk_low else ""
        left = (
            "" if member.certificate_expires_at is None else f"{(member.certificate_expires_at - now).days} days left"
        )
        note = f"wardround admit {member.silo} --fingerprint ..." if member.state in {"waiting", "renewing"} else ""
        table.add_row(
            member.silo, f"{member.state} {note}".strip(), seen if member.is_live(now) else f"{seen} (silent)",
            version + low, left,
        )  # fmt: skip
    return table


def _studies(coordinator: Coordinator) -> Table:
    table = Table("plan", "study", "state", "approvals", "rounds", "result", title="Studies", title_justify="left")
    with reading(coordinator.store) as connection:
        for study in studies.every(connection):
            desk = Desk(coordinator.key, coordinator.now, study.plan)
            approved = desk.heard(connection, PlanApproved.kind, study.study)
            records = rounds.committed(connection, study.study)
            metrics = current(records)
            name, value = readings.readings(metrics)[0] if metrics else ("", None)
            result = "" if value is None else f"{name} {value:.3f}"
            table.add_row(
                study.label, study.study, _state(study, coordinator.now()),
                f"{len(approved)} of {len(study.plan.hospitals)}",
                _done(connection, study, len(records)), result,
            )  # fmt: skip
    return table


def _done(connection: Connection, study: studies.Study, records: int) -> str:
    """Rounds, or finished models that are measured."""
    if study.plan.training.rounds:
        return f"{records} of {study.plan.training.rounds}"
    models = study.plan.evaluation.models
    return f"{len(measurements.of_study(connection, study.study))} of {len(models)} models" if models else "-"


def _state(study: studies.Study, now: datetime) -> str:
    """What a person should know: a study that is "running" but has no living driver waits for the next run."""
    is_driven = study.driver_until is not None and study.driver_until > now
    if study.state == "running":
        return "running" if is_driven else "waits for the next run"
    return study.state
