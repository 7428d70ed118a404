"""Is a study ready to run? The same answers for a dry run, for `wardround status` and for a refused start."""

from boundary.errors import BoundaryError
from boundary.groups import needed_in, suffice
from boundary.messages import Phase
from boundary.parties import trainers
from flows.desk import RosterMissing
from flows.driver import StudyDriver
from flows.store import members
from flows.store.database import reading


def readiness_problems(driver: StudyDriver) -> list[str]:
    """Sentences with the fix; none means that the next run will start."""
    plan, now = driver.study.plan, driver.coordinator.now()
    problems = []
    with reading(driver.coordinator.store) as connection:
        try:
            driver.desk.roster(connection)
        except (BoundaryError, RosterMissing) as why:
            problems.append(str(why))
        known = {member.silo: member for member in members.members(connection)}
    if now.date() > plan.purpose.expires:
        problems.append(f"the plan expired on {plan.purpose.expires}: publish a new revision")
    consents = driver.consents()
    wanted = trainers(plan) or plan.silos
    approved = [silo for silo in wanted if silo in consents and consents[silo].code is None]
    phase: Phase = "train" if plan.training.rounds else "evaluate"
    if not suffice(plan, phase, approved):
        missing = ", ".join(silo for silo in wanted if silo not in approved)
        problems.append(f"{len(approved)} approvals, {needed_in(plan, phase)}; not yet: {missing}")
    live = [silo for silo in wanted if silo in known and known[silo].is_live(now)]
    if not suffice(plan, phase, live):
        silent = ", ".join(silo for silo in wanted if silo not in live)
        problems.append(f"{len(live)} hospitals give signs of life, {needed_in(plan, phase)}; ask {silent}")
    if driver.coordinator.blobs.size(driver.study.model.initial.digest) is None:
        problems.append("the initial model is missing from the blob store: publish the plan again")
    gone = [digest for digest in plan.evaluation.models if driver.coordinator.blobs.size(digest) is None]
    problems += [f"the model {digest} is not in the blob store any more" for digest in gone]
    return problems


def readiness_page(driver: StudyDriver, problems: list[str]) -> str:
    """What a dry run shows."""
    now, consents = driver.coordinator.now(), driver.consents()
    with reading(driver.coordinator.store) as connection:
        known = {member.silo: member for member in members.members(connection)}
    rows = ["| hospital | approval | last sign of life | agent |", "|---|---|---|---|"]
    for silo in driver.study.plan.silos:
        answer, member = consents.get(silo), known.get(silo)
        said = "no answer yet" if answer is None else "approved" if answer.code is None else f"declined ({answer.code})"
        seen = "never" if member is None or member.last_seen_at is None else f"{member.last_seen_at:%Y-%m-%d %H:%M:%S}"
        live = "" if member is not None and member.is_live(now) else " (silent)"
        version = member.heartbeat.agent_version if member is not None and member.heartbeat is not None else ""
        rows.append(f"| {silo} | {said} | {seen}{live} | {version} |")
    verdict = "Everything is ready." if not problems else "Not ready:\n\n" + "\n".join(f"- {one}" for one in problems)
    return "\n".join([f"# {driver.study.label}: readiness", "", verdict, "", *rows])
