"""The gates of each hospital's policy, as its own log tells them: `compliance.gates` is the law."""

from collections.abc import Iterator

from compliance.events import Event, PolicyAdopted
from compliance.gates import OF_WORK, adoption_faults, passages
from compliance.merkle import HASH_BYTES
from compliance.verification.case import Case, Log
from compliance.verification.findings import Finding, at, broken, incomplete, note


def gates(case: Case) -> Iterator[Finding]:
    """Gates are shown with the budget; without it only the hospital can look."""
    for silo, log in case.logs.items():
        for number, fault in adoption_faults((one.number, one.event) for one in log.of(PolicyAdopted)):
            yield broken(at(silo, number), fault, "which policy was in force is not sure")
        if "budget" in case.bundle.plan.evidence.disclose:
            yield from _work_of(case, silo, log)
        elif silo in case.contributing:
            means = "whether its policy was asked can be checked in the hospital only"
            yield note(silo, "its gates are not shown by the plan", means)


def _work_of(case: Case, silo: str, log: Log) -> Iterator[Finding]:
    entries: list[tuple[int, Event]] = [(one.number, one.event) for one in log.of(PolicyAdopted)]
    entries += [(one.number, one.event) for kind in OF_WORK for one in log.of(kind, case.study)]
    hidden = [number for number, data in enumerate(log.copy.entries, start=1) if len(data) == HASH_BYTES]
    for one in passages(entries, hidden):
        where, found = at(silo, one.number), f"round {one.round}, {one.phase}: {one.fault}"
        if one.fault is not None and one.is_sure:
            yield broken(where, found, "the hospital's policy was not asked before its patients' data was used")
        elif one.fault is not None:
            yield incomplete(where, found, "what is missing may be among the entries that are not shown")
