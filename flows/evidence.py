"""Puts the evidence about a study together: everybody's logs, the rounds, the report on them, as one bundle.

The bundle is first gathered and reported on, then named in the coordinator's log, then written: whoever changes a file
of it afterwards changes what the log has signed.
"""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from boundary.canonical import parse_json
from boundary.checkpoint import Cosignature
from boundary.messages import PlanApproved
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from compliance.bundle import Bundle, LogCopy, SignedReceipt
from compliance.bundle_writing import prepare
from compliance.events import EvidenceIssued
from compliance.evidence.files import REPORT, report_files
from compliance.evidence.report import Report
from flows.coordinator import Coordinator
from flows.desk import Desk, RosterMissing
from flows.store import audit, members, rounds, studies, witnessed
from flows.store.database import writing
from flows.store.logs import Log
from flows.store.studies import Study
from flows.trails import Trails, name_of, receipt_of


@dataclass(frozen=True, slots=True)
class Issued:
    """A bundle that was written: where, what the report in it was built on, and the report."""

    study: Study
    folder: Path
    bundle: Bundle
    report: Report


def issue(coordinator: Coordinator, wanted: str, folder: Path | None = None) -> Issued:
    """Write a bundle about a study; `folder` is new, or chosen below the coordinator's home.

    Raises `StudyUnknown`, `FileExistsError`.
    """
    with writing(coordinator.store) as connection:
        study = studies.find(connection, wanted)
        bundle = gather(connection, coordinator, study)
    files = report_files(bundle)
    prepared = prepare(bundle, files)
    place = folder or _fresh(coordinator.home / "evidence", study)
    if place.exists():
        raise FileExistsError(f"{place} is there already: a bundle is never written over; choose another folder")
    with writing(coordinator.store) as connection:
        event = EvidenceIssued(study=study.study, manifest=prepared.manifest_digest)
        audit.append(connection, event, actor=COORDINATOR, now=coordinator.now())
        log = own_log(connection, coordinator, study.plan)
    place.parent.mkdir(parents=True, exist_ok=True)
    prepared.write(place, log)
    return Issued(study, place, bundle, parse_json(files[REPORT], limit=len(files[REPORT])))


def gather(connection: Connection, coordinator: Coordinator, study: Study) -> Bundle:
    """What the store holds of a study, in a transaction from `database.writing`: a head over our log is signed."""
    desk = Desk(coordinator.key, coordinator.now, study.plan)
    Trails(desk, study).take_in(connection)
    roster = members.current_roster(connection)
    if roster is None:
        raise RosterMissing("no roster was issued yet: there is nothing to give evidence of")
    approvals = {
        silo: envelope.message.approval
        for silo, envelope in desk.heard(connection, PlanApproved.kind, study.study).items()
        if isinstance(envelope.message, PlanApproved)
    }
    records = tuple(rounds.committed(connection, study.study))
    signatures = witnessed.receipts_of(connection, study.study)
    receipts = {
        record.round: SignedReceipt(receipt_of(record, study.plan_digest), signatures.get(record.round, {}))
        for record in records
    }
    logs = {silo: _log_of(connection, study.plan, silo) for silo in study.plan.silos}
    return Bundle(
        study=study.study,
        plan=study.plan,
        roster=roster,
        approvals=approvals,
        logs={silo: log for silo, log in logs.items() if log.entries}
        | {COORDINATOR: own_log(connection, coordinator, study.plan)},
        receipts=receipts,
        rounds=records,
    )


def own_log(connection: Connection, coordinator: Coordinator, plan: StudyPlan) -> LogCopy:
    """Ours, with a fresh head over all of it, and what this plan's hospitals have signed under it."""
    head = audit.head(connection, coordinator.key)
    witnessed.keep(connection, COORDINATOR, head, coordinator.now())
    return LogCopy(
        party=COORDINATOR,
        entries=tuple(audit.leaves(connection)),
        heads=tuple(witnessed.every_head(connection, COORDINATOR)),
        cosignatures=_cosigned(connection, COORDINATOR, plan),
    )


def _log_of(connection: Connection, plan: StudyPlan, silo: str) -> LogCopy:
    """A hospital's, as far as it was shown: entries that were not are hashes."""
    name = name_of(plan, silo)
    whole, log = witnessed.whole_entries(connection, name), Log(connection, name)
    hashes = log.hashes(0, log.size)
    return LogCopy(
        party=silo,
        entries=tuple(whole.get(number, one) for number, one in enumerate(hashes, 1)),
        heads=tuple(witnessed.every_head(connection, name)),
        cosignatures=_cosigned(connection, name, plan),
    )


def _cosigned(connection: Connection, name: str, plan: StudyPlan) -> dict[int, dict[str, Cosignature]]:
    """By this study's parties: those of other studies have witnessed the same logs."""
    parties = {COORDINATOR, *plan.silos}
    return {
        size: kept
        for size, said in witnessed.cosigned(connection, name).items()
        if (kept := {witness: one for witness, one in said.items() if witness in parties})
    }


def _fresh(parent: Path, study: Study) -> Path:
    number = 1
    while (place := parent / f"{study.study}-bundle-{number:03d}").exists():
        number += 1
    return place
