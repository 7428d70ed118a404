"""The controls: what is checked, how bad it is if it does not hold, and whose job it is. One pure function each."""

from compliance.evidence import gate_checks as gates
from compliance.evidence import privacy_checks as privacy
from compliance.evidence import record_checks as records
from compliance.evidence import round_checks as rounds
from compliance.evidence.facts import Facts
from compliance.evidence.verdicts import Control, Judged, Severity, Verdict

BLOCKER, MAJOR = Severity.BLOCKER, Severity.MAJOR
DPO, SECURITY, STEWARD = "data protection officer", "security officer", "data steward"
COORDINATOR, LEGAL, RECORDS = "coordinator", "legal counsel", "records officer"

CONTROLS: tuple[Control, ...] = (
    Control("PRV-01", "Epsilon is within the cap at every hospital", BLOCKER, DPO, privacy.check_epsilon),
    Control("PRV-02", "The unit of the guarantee is the patient", BLOCKER, DPO, privacy.check_unit),
    Control("PRV-03", "Releases are the plan's: Poisson sampling, steps, noise", MAJOR, DPO, privacy.check_mechanism),
    Control("PRV-04", "Every release without a guarantee was approved", MAJOR, STEWARD, privacy.check_other_releases),
    Control("PRV-05", "Noise and sampling are cryptographically random", MAJOR, SECURITY, privacy.check_noise_source),
    Control("SEC-01", "No unmasked update was accepted", BLOCKER, SECURITY, rounds.check_masked),
    Control("SEC-02", "What each party said of a round is signed", BLOCKER, SECURITY, rounds.check_signed),
    Control("SEC-03", "No sum is over fewer hospitals than agreed", BLOCKER, SECURITY, rounds.check_cohorts),
    Control("SEC-04", "Connections use mutual TLS", MAJOR, SECURITY, rounds.check_transport),
    Control("APR-01", "Every contributing hospital had approved the plan", BLOCKER, STEWARD, rounds.check_approvals),
    Control("APR-02", "Every work passed the gates of the hospital's policy", BLOCKER, STEWARD, gates.check_gates),
    Control("DAT-01", "No refused file was trained on", BLOCKER, STEWARD, records.check_refused_files),
    Control("DAT-02", "Every hospital has the plan's least patients", BLOCKER, STEWARD, records.check_enough_patients),
    Control("LOG-01", "The logs are consistent and cosigned", BLOCKER, COORDINATOR, records.check_logs),
    Control("LOG-02", "The logs have no gap", MAJOR, COORDINATOR, records.check_coverage),
    Control("RET-01", "Records are kept for at least six years", MAJOR, RECORDS, records.check_retention),
    Control("RGT-01", "Withdrawals take effect before the next round", BLOCKER, DPO, records.check_withdrawals),
    Control("LEG-01", "There is a legal basis", MAJOR, LEGAL, records.check_legal_basis),
    Control("LEG-02", "There is a data protection impact assessment", MAJOR, DPO, records.check_impact_assessment),
    Control("LEG-03", "There is an ethics approval or a waiver", MAJOR, LEGAL, records.check_ethics),
    Control("LEG-04", "The parties have agreed on their roles", MAJOR, LEGAL, records.check_agreements),
)

_ORDER = (Verdict.FAIL, Verdict.NOT_MEASURED, Verdict.NEEDS_HUMAN)


def judged(facts: Facts) -> tuple[Judged, ...]:
    """All controls in their order."""
    return tuple(Judged(control, control.check(facts)) for control in CONTROLS)


def open_items(rows: tuple[Judged, ...]) -> list[Judged]:
    """What is not settled: failed blockers first, then what was not measured, then what waits for a person."""
    found = [row for row in rows if row.is_open]
    return sorted(found, key=lambda row: (_ORDER.index(row.finding.verdict), row.control.severity != BLOCKER))


def counts(rows: tuple[Judged, ...]) -> dict[str, int]:
    """Verdict -> how many, all five."""
    return {verdict.value: sum(row.finding.verdict is verdict for row in rows) for verdict in Verdict}
