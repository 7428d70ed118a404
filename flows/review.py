"""What a compliance officer uses in Prefect: `compliance-review`, `audit-watch`, `retention`, `model-release`.

Like training they read the store and may be run again at any time. What they decide is in the coordinator's log;
Prefect and MLflow show it. Blocking work runs in threads, so that a flow's heartbeat goes on.
"""

import asyncio
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.states import Completed, Failed

from boundary.errors import PeerFault
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR, decode_base64
from compliance.decision import Decision
from compliance.events import ReleaseDecided
from flows import coordinator as home
from flows import pages, retention, watch
from flows.coordinator import Coordinator
from flows.evidence import Issued, issue
from flows.evidence_book import mark_released, show
from flows.mlflow_client import BookUnreachable, open_book
from flows.store import audit, rounds, studies
from flows.store.database import reading, writing
from flows.store.findings import latest_decision, latest_evidence
from flows.store.studies import Study, StudyUnknown

State_ = State[Any]
DECISION_SECONDS = 7 * 24 * 3600  # how long an officer may take; after that nothing is released
_LOOK_SECONDS = 5  # between two looks whether somebody has answered


# --- compliance-review ------------------------------------------------------------------------------------
@flow(name="compliance-review", persist_result=False, log_prints=False)
async def compliance_review(plan: str) -> State_:
    """Put the evidence about a study together and show it in MLflow.

    Args:
        plan: Which study, as NAME@REVISION.

    """
    log, coordinator = get_run_logger(), home.load()
    try:
        issued = await asyncio.to_thread(issue, coordinator, plan)
    except StudyUnknown as why:
        return Failed(name="UnknownPlan", message=str(why))
    report = issued.report
    log.info("the bundle is in %s: wardround verify %s --trust keys.toml", issued.folder, issued.folder)
    page, problem = await asyncio.to_thread(_show, coordinator, issued)
    await acreate_markdown_artifact(
        _summary(issued, page), key=f"{issued.study.study}-evidence", description=f"Evidence about {plan}"
    )
    said = ", ".join(f"{count} {verdict}" for verdict, count in report["verdicts"].items() if count)
    if problem:
        return Completed(name="NotShown", message=f"{said}; MLflow does not show it: {problem}")
    if report["verdicts"].get("FAIL"):
        return Completed(name="FailFound", message=said)
    return Completed(message=said)


def _show(coordinator: Coordinator, issued: Issued) -> tuple[str | None, str | None]:
    """(page, problem)."""
    url, study = coordinator.settings.mlflow_url, issued.study
    with reading(coordinator.store) as connection:
        run = rounds.is_published(connection, study.study, "start")
        records = rounds.committed(connection, study.study)
    if url is None or run is None:
        return None, "no MLflow is configured" if url is None else "the study has no run there yet"
    try:
        return show(
            open_book(url), run, study, issued.folder, issued.report, pages.study_page(study, records, None)
        ), None
    except BookUnreachable as why:
        return None, str(why)


def _summary(issued: Issued, page: str | None) -> str:
    rows = [
        f"| {row['id']} | {row['severity']} | **{row['verdict']}** | {row['reason']} |"
        for row in sorted(issued.report["controls"], key=lambda row: _ORDER.index(row["verdict"]))
    ]
    where = f"[The report in MLflow]({page}). " if page else ""
    head = f"# Evidence about {issued.study.label}\n\n{where}Bundle: `{issued.folder}`. Evidence, not certification.\n"
    return "\n".join([head, "| control | severity | verdict | why |", "|---|---|---|---|", *rows])


_ORDER = ("FAIL", "NEEDS-HUMAN", "NOT-MEASURED", "PASS", "N/A")


# --- audit-watch -------------------------------------------------------------------------------------------
@flow(name="audit-watch", persist_result=False, log_prints=False)
async def audit_watch() -> State_:
    """Verify every log the coordinator holds, from the bytes up. What is wrong becomes an incident, and rounds stop."""
    found = await asyncio.to_thread(watch.look, home.load())
    rows = [f"| {one.party} | {one.size} | {one.code or 'sound'} | {one.why} |" for one in found]
    table = "\n".join(["| log | entries | verdict | |", "|---|---|---|---|", *rows])
    await acreate_markdown_artifact(table, key="audit-watch", description="All logs, verified from the bytes up")
    wrong = [one for one in found if one.code]
    if wrong:
        said = "; ".join(f"{one.party}: {one.code}" for one in wrong)
        return Failed(name="Incident", message=f"{said}. No round starts until it is closed: wardround incidents")
    return Completed(message=f"{len(found)} logs with {sum(one.size for one in found)} entries are sound")


# --- retention ---------------------------------------------------------------------------------------------
@flow(name="retention", persist_result=False, log_prints=False)
async def retention_() -> State_:
    """Remove what finished studies no longer need, with a receipt in the log; say whose records are due."""
    coordinator = home.load()
    done = await asyncio.to_thread(retention.purge, coordinator)
    due = retention.due(coordinator)
    for label, end in due:
        get_run_logger().warning("the records of %s were to be kept to %s: a person must decide", label, end)
    files, size = sum(one.files for one in done), sum(one.bytes for one in done)
    message = f"{files} files with {size / 1e6:.1f} MB of {len(done)} studies were removed"
    if due:
        return Completed(name="DecisionDue", message=f"{message}; due: {', '.join(label for label, _ in due)}")
    return Completed(message=message)


# --- model-release -----------------------------------------------------------------------------------------
class ReleaseForm(RunInput):
    """What an officer fills in. Every field is required: an empty form releases nothing."""

    decision: Literal["release", "reject"]
    officer: str
    signature: str


@flow(name="model-release", persist_result=False, log_prints=False)
async def model_release(plan: str) -> State_:
    """Give a finished study's model the alias `released`, after an officer's signed decision.

    Args:
        plan: Which study, as NAME@REVISION. Run `compliance-review` for it first.

    """
    coordinator = home.load()
    try:
        study, wanted = _to_decide(coordinator, plan)
    except (StudyUnknown, NothingToRelease) as why:
        return Failed(name="NothingToRelease", message=str(why))
    if not _is_decided(coordinator, wanted):
        refused = await _ask(coordinator, study, wanted)
        if refused is not None:
            return refused
    url = coordinator.settings.mlflow_url
    if url is None:
        return Completed(name="Decided", message="released; no MLflow is configured to show it")
    try:
        version = await asyncio.to_thread(lambda: mark_released(open_book(url), study, wanted.manifest))
    except (BookUnreachable, LookupError) as why:
        return Failed(name="NotShown", message=f"the decision is in the log; {why}. Run this flow again")
    return Completed(name="Released", message=f"{study.plan.name} version {version} has the alias `released`")


class NothingToRelease(RuntimeError):
    """The study has no model, no evidence, or nobody who may decide."""


def _to_decide(coordinator: Coordinator, plan: str) -> tuple[Study, Decision]:
    with reading(coordinator.store) as connection:
        study = studies.find(connection, plan)
        records = rounds.committed(connection, study.study)
        evidence = latest_evidence(connection, study.study)
    if study.state != "finished" or not records:
        raise NothingToRelease(f"{plan} is not finished: {len(records)} rounds are committed")
    if evidence is None:
        raise NothingToRelease(f"there is no evidence about {plan} yet: run the flow compliance-review for it first")
    if not coordinator.settings.officers:
        raise NothingToRelease("coordinator.toml names no [officers]: nobody may decide (docs/operating.md)")
    last = records[-1]
    return study, Decision(
        study=study.study, round=last.round, model=last.model_out.digest, manifest=evidence.manifest, choice="release"
    )


def _is_decided(coordinator: Coordinator, wanted: Decision) -> bool:
    with reading(coordinator.store) as connection:
        before = latest_decision(connection, wanted.study)
    return before is not None and (before.model, before.manifest, before.decision) == (
        wanted.model,
        wanted.manifest,
        "release",
    )


async def _ask(coordinator: Coordinator, study: Study, wanted: Decision) -> State_ | None:
    """Wait for the form; None when the model may be released."""
    log = get_run_logger()
    log.info("waiting for an officer: open this run's menu and choose Resume")
    request = _request(coordinator, study, wanted)
    await acreate_markdown_artifact(
        request, key=f"{study.study}-release-request", description=f"Release {study.label}?"
    )
    form: Any = ReleaseForm.with_initial_data(description=request)
    try:
        answer: Any = await pause_flow_run(wait_for_input=form, timeout=DECISION_SECONDS, poll_interval=_LOOK_SECONDS)
    except FlowPauseTimeout:
        log.warning("nobody decided in time: nothing is released")
        return Failed(name="NotDecided", message="nobody decided in time; that is a no. Run the flow again to ask anew")
    decision = wanted.model_copy(update={"choice": answer.decision})
    known = coordinator.settings.officers.get(answer.officer)
    try:
        if known is None:
            raise PeerFault(f"{answer.officer!r:.60} is no officer in coordinator.toml")  # noqa: TRY301 - one refusal
        officer = PublicIdentity(known)
        decision.check(decode_base64(answer.signature), officer)
    except (PeerFault, ValueError) as why:
        return Failed(name="BadSignature", message=f"nothing was decided: {why}. Run the flow again")
    event = ReleaseDecided(
        study=study.study, round=decision.round, model=decision.model, manifest=decision.manifest,
        decision=decision.choice, officer=officer.fingerprint,
    )  # fmt: skip
    with writing(coordinator.store) as connection:
        audit.append(connection, event, actor=COORDINATOR, now=coordinator.now())
    log.info("%s decided: %s", answer.officer, decision.choice)
    if decision.choice == "reject":
        return Completed(name="Rejected", message=f"{answer.officer} rejected the release")
    return None


def _request(coordinator: Coordinator, study: Study, wanted: Decision) -> str:
    officers = ", ".join(sorted(coordinator.settings.officers))
    return (
        f"**Release the model of {study.label}?** Study `{study.study}`, after round {wanted.round}.\n\n"
        f"Model `{wanted.model}`\n\nEvidence, by its manifest `{wanted.manifest}`\n\n"
        "1. `wardround verify BUNDLE --trust keys.toml`, with your own keys.toml; read `report/report.html`.\n"
        "2. `wardround officer sign BUNDLE --decision release --key YOUR.KEY` (or `reject`).\n"
        f"3. Choose Resume here, and paste what it prints. Officers: {officers}."
    )
