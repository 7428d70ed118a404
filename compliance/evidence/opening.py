"""Sections 1 to 5: what the study is, what was found, who approved, which data were used, what they do not carry."""

from boundary.canonical import digest
from boundary.identity import PublicIdentity
from compliance.bundle import Bundle
from compliance.events import HospitalAdmitted, IntakeCounted, PlanApprovalGiven, PolicyAdopted
from compliance.evidence.crosswalk import clauses_by_control
from compliance.evidence.facts import Facts, HospitalFacts
from compliance.evidence.reading import Pointer
from compliance.evidence.suppression import up_to
from compliance.evidence.tables import Cell, Section, moment, section, table
from compliance.evidence.verdicts import Judged

NOT_CERTIFICATION = "This is evidence, not certification."
LOUD = "NO GUARANTEE PER PATIENT: "
MOST_POINTERS = 12  # of one control in a table; all are in report.json

# 45 CFR 164.514(b)(2)(i)(A) to (R), and what the agent does with each. About the software; no log has it.
_IDENTIFIERS: tuple[tuple[str, str], ...] = (
    ("A names", "not used; header text is not an input"),
    ("B places smaller than a state", "not used; header text is not an input"),
    ("C dates but the year, ages over 89", "not used; header text is not an input"),
    ("D telephone numbers", "not used; header text is not an input"),
    ("E fax numbers", "not used; header text is not an input"),
    ("F e-mail addresses", "not used; header text is not an input"),
    ("G social security numbers", "not used; header text is not an input"),
    ("H medical record numbers", "used in the hospital to keep a patient's images together; not sent"),
    ("I health plan numbers", "not used; header text is not an input"),
    ("J account numbers", "not used; header text is not an input"),
    ("K certificate and licence numbers", "not used; header text is not an input"),
    ("L vehicle identifiers", "not used; header text is not an input"),
    ("M device identifiers and serial numbers", "not used; header text is not an input"),
    ("N web addresses", "not used; header text is not an input"),
    ("O IP addresses", "of patients: not used; header text is not an input"),
    ("P biometric identifiers", "NEEDS-HUMAN: pixels are the input; what they show is for an expert"),
    ("Q full-face photographs and comparable images", "NEEDS-HUMAN: burned-in text is refused, faces in scans stay"),
    ("R any other unique number or code", "UIDs, accession numbers: find labels there; not sent. Pixels: NEEDS-HUMAN"),
)  # fmt: skip


def cover(bundle: Bundle, facts: Facts, rows: tuple[Judged, ...], counts: dict[str, int]) -> Section:
    plan = facts.plan
    notes = [
        NOT_CERTIFICATION,
        "It shows what was logged and that it was not changed since, not that a party logged the truth.",
    ]
    if not facts.is_private:
        notes.insert(0, LOUD + facts.no_guarantee + ".")
    return section(
        1,
        "Cover",
        f"{plan.label}: {len(facts.hospitals)} hospitals, {_closed(facts)} of {plan.training.rounds} rounds closed. "
        f"{counts['PASS']} of {len(rows)} controls hold.",
        fields=[
            ("Study", facts.study),
            ("Title", plan.purpose.title),
            ("Purpose", plan.purpose.statement),
            ("As of", facts.as_of or "no entry of the coordinator is shown"),
            ("Guarantee per patient", "differential privacy" if facts.is_private else "none"),
            ("Plan", facts.plan_digest),
            ("Roster", digest(bundle.roster)),
            ("Hospitals show on request", ", ".join(plan.evidence.disclose) or "nothing"),
        ],
        tables=[
            table("Parties", ("party", "key fingerprint"), _parties(facts), exact=True),
            table("Signed heads", ("log", "entries", "root"), _heads(facts), exact=True),
        ],
        notes=notes,
    )


def open_row(row: Judged) -> list[Cell]:
    control, finding = row.control, row.finding
    return [
        f"{control.id} {control.title}",
        finding.verdict.value,
        control.severity.value,
        control.owner,
        finding.reason,
    ]


def _closed(facts: Facts) -> int:
    return sum(bool(one.closed) for one in facts.rounds)


def _parties(facts: Facts) -> list[list[Cell]]:
    admitted = {one.event.silo: one.event.fingerprint for one in facts.coordinator.of(HospitalAdmitted)}
    rows: list[list[Cell]] = []
    for hospital in facts.plan.hospitals:
        own = PublicIdentity(hospital.signing_key).fingerprint
        same = "" if admitted.get(hospital.silo, own) == own else " (ANOTHER ONE WAS ADMITTED)"
        rows.append([hospital.silo, own + same])
    return sorted(rows, key=str)


def _heads(facts: Facts) -> list[list[Cell]]:
    return [[one.party, one.signed, one.root or "no valid head"] for one in facts.integrity.values()]


def matrix(rows: tuple[Judged, ...]) -> Section:
    clauses = clauses_by_control()
    return section(
        2,
        "Verdicts",
        "PASS: a machine checked a technical fact. FAIL: it does not hold. NEEDS-HUMAN: people must judge, the "
        "evidence is attached. NOT-MEASURED: there is no evidence. N/A: it does not apply, and why. No article of law "
        "gets a verdict.",
        tables=[
            table(
                "All controls",
                ("control", "verdict", "severity", "who", "why", "evidence (log and entry)", "clauses it bears on"),
                [
                    [*open_row(row), _pointers(row.finding.evidence), ", ".join(clauses.get(row.control.id, ()))]
                    for row in rows
                ],
            )
        ],
    )


def _pointers(evidence: tuple[Pointer, ...]) -> str:
    """`ucl #4, #7; charite #3`, the first of each control."""
    by_log: dict[str, list[str]] = {}
    for one in evidence[:MOST_POINTERS]:
        by_log.setdefault(one.log, []).append(f"#{one.sequence}")
    more = len(evidence) - MOST_POINTERS
    text = "; ".join(f"{log} {', '.join(numbers)}" for log, numbers in by_log.items())
    return text + (f"; and {more} more" if more > 0 else "") or "none"


def approvals(facts: Facts) -> Section:
    heard = {one.event.silo: one for one in facts.coordinator.of(PlanApprovalGiven)}
    rows: list[list[Cell]] = []
    for one in facts.hospitals:
        said = heard.get(one.silo)
        rows.append(
            [
                one.silo,
                "missing" if one.approval is None else one.approval_problem or "verifies",
                None if one.approval is None else one.approval.approval.role,
                f"{moment(one.given[-1].time)} ({one.given[-1].at})" if one.given else "not shown",
                f"{moment(said.time)} ({said.at})" if said else "not shown",
                None if one.approval is None else one.approval.approval.dataset_digest,
                _changed(one),
            ]
        )
    return section(
        3,
        "Approvals",
        "A steward approves one exact plan digest, over one data set whose digest is keyed with the hospital's secret. "
        "Each hospital's own policy says what its agent may do, and is asked before every work.",
        tables=[
            table(
                "Approvals by hospital",
                (
                    "hospital",
                    "signature",
                    "role",
                    "logged by the hospital",
                    "heard by the coordinator",
                    "data set",
                    "changed since",
                ),
                rows,
            ),
            table(
                "Policies by hospital",
                ("hospital", "number", "policy", "signed by", "in force from"),
                [row for one in facts.hospitals for row in _policies(one)],
            ),
        ],
        notes=[
            "Stewards' keys are compared with keys.toml by wardround verify; here the key in the approval is taken.",
            "Who signed a policy stays in the hospital. One signature is enough for a policy that only tightens.",
        ],
    )


def _policies(hospital: HospitalFacts) -> list[list[Cell]]:
    signed = {"signed": "all that were asked", "tightened": "one, it only tightens"}
    return [
        [hospital.silo, one.event.number, one.event.policy, signed[one.event.how], f"{moment(one.time)} ({one.at})"]
        for one in hospital.log.of(PolicyAdopted)
    ] or [[hospital.silo, None, "not shown", None, None]]


def _changed(hospital: HospitalFacts) -> str:
    if not hospital.given:
        return "not shown"
    last = hospital.given[-1]
    counted = [one for one in hospital.log.of(IntakeCounted) if one.at > last.at]
    other = [one for one in counted if one.event.dataset_digest != last.event.dataset_digest]
    found = [f"declined at {moment(one.time)}" for one in hospital.declined if one.at > last.at]
    found += [f"other data counted at {moment(one.time)}" for one in other]
    if len(hospital.given) > 1:
        found.append(f"approved {len(hospital.given)} times")
    return "; ".join(found) or "nothing"


def data_used(facts: Facts) -> Section:
    rows: list[list[Cell]] = []
    for one in facts.hospitals:
        counted = one.log.of(IntakeCounted)
        if not counted:
            rows.append([one.silo, "not shown", "not shown", "not shown", "not shown"])
            continue
        said = counted[-1].event
        excluded = [f"{code} {up_to(count)}" for code, count in sorted(said.excluded.items()) if count]
        usable = "yes" if said.usable else "no"
        rows.append([one.silo, up_to(said.patients), up_to(said.used), ", ".join(excluded) or "none", usable])
    plan = facts.plan.dataset
    return section(
        4,
        "Data used",
        "Counts are told as the next ten upwards: “up to 20” is 11 to 20. Each hospital counted for itself.",
        fields=[
            ("Data set", plan.name),
            ("Modalities", ", ".join(plan.modalities)),
            ("Most images of one patient", plan.max_images_per_patient),
            ("Fewest patients a hospital must have", plan.min_patients),
            ("Share of patients held back", plan.holdout_share),
        ],
        tables=[
            table(
                "Files and patients by hospital",
                ("hospital", "patients", "files used", "files refused, by reason", "meets the plan"),
                rows,
            )
        ],
    )


def identifiers() -> Section:
    return section(
        5,
        "De-identification",
        "What the agent does with the 18 identifiers of 45 CFR 164.514(b)(2)(i): about the software, no log shows it.",
        tables=[table("Identifiers and what is done with them", ("identifier", "action"), _IDENTIFIERS)],
        notes=[
            "Models can remember what they were trained on. Whether a model or a sum is personal data or protected "
            "health information is for people to decide (NEEDS-HUMAN); section 6 says what the noise promises.",
        ],
    )
