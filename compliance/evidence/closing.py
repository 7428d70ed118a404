"""Sections 9 to 12: the model, people's rights and what went wrong, the logs themselves, the annexes."""

from collections import Counter
from datetime import timedelta

from boundary.names import parse_timestamp
from compliance.bundle import Bundle
from compliance.events import (
    BudgetRefused,
    DataPurged,
    EvidenceIssued,
    PatientWithdrawn,
    PersonalisationSummed,
    ReleaseDecided,
    WithdrawalEffective,
)
from compliance.evidence.crosswalk import rows as crosswalk_rows
from compliance.evidence.facts import Facts, HospitalFacts, RoundFacts, refusals
from compliance.evidence.metrics import metrics
from compliance.evidence.processing_record import processing_record
from compliance.evidence.reading import Entry
from compliance.evidence.suppression import up_to
from compliance.evidence.tables import Cell, Section, moment, names, section, table

_BLANK = "____________________"
_REVIEWERS = ("data protection officer", "security officer", "data steward", "principal investigator")


def model(facts: Facts) -> Section:
    measured = metrics(facts)
    return section(
        9,
        "The model",
        f"Metrics over the held-back patients of all hospitals together, out of masked sums. {measured.note}",
        fields=[("Network", f"{facts.plan.model.name} version {facts.plan.model.version}")],
        tables=[
            *measured.tables,
            table("Models by round", ("round", "from", "to", "rolled back", "entry"), map(_models, facts.trained)),
            table(
                "Decisions on release",
                ("round", "model", "evidence", "decision", "key of the officer", "entry"),
                _decisions(facts),
            ),
        ],
        figures=measured.figures,
        notes=[_personalisation(facts)],
    )


def _personalisation(facts: Facts) -> str:
    summed = facts.coordinator.of(PersonalisationSummed)
    if not summed:
        return "How the model compares with what each hospital has alone, also after fine-tuning: NOT-MEASURED."
    told, at = summed[-1].event, summed[-1].at
    return (
        "How the model compares with what each hospital has alone, and with its own after personalisation, was summed "
        f"over the hospitals: {at}, of the sum over {told.survivors}; what came out has the digest {told.result}."
    )


def _models(one: RoundFacts) -> list[Cell]:
    if not one.closed:
        return [one.number, None, "not closed", None, None]
    closed = one.closed[0]
    return [one.number, closed.event.model_in, closed.event.model_out, _rolled_back(one), str(closed.at)]


def _rolled_back(one: RoundFacts) -> str | None:
    """Why, and by which votes. Not by whose: nobody knows."""
    if one.record is None or one.record.rolled_back is None:
        return None
    vote, why = one.record.vote, one.record.rolled_back
    return str(why) if vote is None else f"{why}, {vote.against} of {vote.voted} votes against"


def _decisions(facts: Facts) -> list[list[Cell]]:
    return [
        [one.event.round, one.event.model, one.event.manifest, one.event.decision, one.event.officer, str(one.at)]
        for one in facts.coordinator.of(ReleaseDecided)
    ]


def rights(facts: Facts) -> Section:
    codes = Counter((one.at.log, one.event.code) for one in refusals(facts))
    first: dict[tuple[str, str], str] = {}
    for one in refusals(facts):
        first.setdefault((one.at.log, one.event.code), str(one.at))
    refused: list[list[Cell]] = [[*at, count, first[at]] for at, count in sorted(codes.items())]
    budget = [_over(entry) for one in facts.hospitals for entry in one.log.of(BudgetRefused)]
    return section(
        10,
        "Rights and incidents",
        "People who withdrew are counted in tens; who they are is in the hospital's private log only.",
        tables=[
            table(
                "Withdrawals",
                ("hospital", "people", "longest time to effect", "decided of the model", "first entry"),
                map(_withdrawals, facts.hospitals),
            ),
            table("Work refused", ("hospital", "code", "times", "first entry"), refused),
            table(
                "Releases refused by a cap",
                ("hospital", "round", "cap", "epsilon asked for", "epsilon left", "entry"),
                budget,
            ),
            table("Incidents", ("opened by", "about", "code", "opened", "closed", "evidence"), _incidents(facts)),
            table("Removed after use", ("hospital", "what", "files", "when"), _purges(facts)),
        ],
        notes=[
            "An incident is a log that was not what it had been. Whether it is a breach to be reported is for people."
        ],
    )


def _over(entry: Entry[BudgetRefused]) -> list[Cell]:
    said = entry.event
    return [entry.at.log, said.round, said.cap, round(said.asked, 4), round(said.left, 4), str(entry.at)]


def _withdrawals(hospital: HospitalFacts) -> list[Cell]:
    withdrawn = hospital.log.of(PatientWithdrawn)
    if not withdrawn:
        shown = "not all shown" if hospital.hides else "none"
        return [hospital.silo, shown, None, None, None]
    effective = {one.event.private: one for one in reversed(hospital.log.of(WithdrawalEffective))}
    times, decided, waiting = [], set(), False
    for one in withdrawn:
        effect = effective.get(one.event.private)
        if effect is None:
            waiting = True
            continue
        times.append(parse_timestamp(effect.time) - parse_timestamp(one.time))
        decided.add(effect.event.decision)
    longest = _duration(max(times)) if times else "none took effect"
    more = "; not all took effect" if waiting and times else ""
    return [hospital.silo, up_to(len(withdrawn)), longest + more, names(sorted(decided)), str(withdrawn[0].at)]


def _duration(time: timedelta) -> str:
    seconds = round(time.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"


def _incidents(facts: Facts) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for one in facts.incidents:
        said = one.opened.event
        closed = f"{moment(one.closed.time)}: {one.closed.event.decision}" if one.closed else "OPEN"
        opened = f"{moment(one.opened.time)} ({one.opened.at})"
        rows.append([one.opened.at.log, said.log, said.code, opened, closed, said.evidence])
    return rows


def _purges(facts: Facts) -> list[list[Cell]]:
    """Without bytes, from which the number of images could be worked out."""
    return [
        [log.party, one.event.what, up_to(one.event.files), moment(one.time)]
        for log in facts.logs
        for one in log.of(DataPurged)
    ]


def trail(facts: Facts) -> Section:
    rows: list[list[Cell]] = []
    sentences: list[list[Cell]] = []
    for log in facts.logs:
        found = facts.integrity[log.party]
        state = "missing" if not log.is_there else "does not fit" if found.problems or found.gaps else "fits"
        witnesses = f"{len(found.cosigners)} of {found.others}, {found.needed} needed"
        rows.append(
            [log.party, state, found.size, len(log.withheld), log.others, found.signed, found.covered, witnesses]
        )
        sentences += [[log.party, one.sentence, names(map(str, one.at))] for one in (*found.problems, *found.gaps)]
    sentences += [["roster", one.sentence, None] for one in facts.roster_problems]
    issued = [[moment(one.time), one.event.manifest, str(one.at)] for one in facts.coordinator.of(EvidenceIssued)]
    return section(
        11,
        "The logs",
        "Each party keeps an append-only log and signs its head; the others verify that it only ever grew, and cosign. "
        "Entries that are not shown are hashes: they are counted and verified, and say nothing.",
        tables=[
            table(
                "Logs",
                (
                    "log",
                    "state",
                    "entries",
                    "not shown",
                    "of other studies",
                    "signed up to",
                    "cosigned up to",
                    "cosigned by",
                ),
                rows,
            ),
            table("What does not fit", ("log", "what", "where"), sentences),
            table("Evidence issued before", ("when", "manifest", "entry"), issued),
        ],
        notes=[
            "This cannot prove that a party logged truthfully, only that nothing was changed or taken out afterwards.",
            "Signatures are checked with the keys of the plan and the roster; wardround verify checks them with yours.",
        ],
    )


def annexes(bundle: Bundle) -> Section:
    walk = [
        [
            row.name,
            row.asks,
            ", ".join(row.controls) or "none",
            ", ".join(map(str, row.fields)),
            row.source,
            row.as_of.isoformat(),
        ]
        for row in crosswalk_rows()
    ]
    disclosures = (
        "45 CFR 164.528 asks for an accounting of disclosures of protected health information. Section 8 lists all "
        "that left. Whether any of it is such information is for people to decide (NEEDS-HUMAN); if it is, add name "
        "and address of the recipient and the purpose."
    )
    return section(
        12,
        "Annexes",
        "For the people who must judge.",
        tables=[
            table(
                "Where to look for a clause (an article of law never gets a verdict)",
                ("clause", "what it asks", "controls", "sections", "source", "as of"),
                walk,
            ),
            table(
                "Sign-off by the reviewer",
                ("role", "name", "date", "signature", "decision"),
                [
                    [role, _BLANK, _BLANK, _BLANK, _BLANK]
                    for role in (
                        "data protection officer",
                        "security officer",
                        "data steward",
                        "principal investigator",
                    )
                ],
            ),
        ],
        notes=[
            disclosures,
            "Software bill of materials: NOT-MEASURED, no entry says which software ran. It comes with each release.",
        ],
        texts=[("Draft of the records of processing activities (GDPR Article 30)", processing_record(bundle.plan))],
    )
