"""The files: all there, none exchanged, none added; and a report that is what the rest of the bundle comes to."""

from collections.abc import Callable, Iterator, Mapping

from boundary.canonical import digest
from boundary.errors import BoundaryError
from boundary.names import COORDINATOR
from compliance.bundle import (
    APPROVALS,
    HEADS,
    MANIFEST,
    PLAN,
    RECEIPTS,
    REPORT,
    ROSTER,
    Bundle,
    Manifest,
    as_reported,
    is_in_manifest,
    log_file,
    note_file,
    round_file,
)
from compliance.bundle_reading import Found
from compliance.bundle_writing import note_bytes
from compliance.errors import ComplianceError
from compliance.events import EvidenceIssued
from compliance.verification.case import Case
from compliance.verification.findings import Finding, at, broken, incomplete, note

Rebuild = Callable[[Bundle], Mapping[str, bytes | None]]
"""The report's files by path, from the bundle that they were made from; None for one that cannot be made here."""


def readable(found: Found) -> Iterator[Finding]:
    for problem in found.problems:
        if problem.is_missing:
            yield incomplete(problem.path or "the folder", problem.why, "what it would say is not checked")
        else:
            yield broken(problem.path, problem.why, "the file was damaged, or made by something else")


def manifest(found: Found) -> Iterator[Finding]:
    """Every file has the digest that the manifest gives; no file is there that nobody stands for."""
    listed = found.manifest
    if listed is None:
        return  # told as missing or unreadable
    told = {problem.path for problem in found.problems}
    for path, expected in sorted(listed.files.items()):
        if path in found.files:
            if digest(found.files[path]) != expected:
                yield broken(path, "not the file that the manifest lists", "it was exchanged after the bundle was made")
        elif path not in told:
            yield incomplete(path, "is not there", "the manifest lists it")
    known = set(listed.files) | {MANIFEST, HEADS} | {log_file(party) for party in listed.logs}
    known |= {note_file(party) for party in listed.logs}
    for path in sorted(set(found.files) - known):
        yield broken(path, "the manifest does not list it", "nobody stands for this file: it was put here afterwards")
    for path in sorted(listed.files):
        if not is_in_manifest(path):
            yield broken(MANIFEST, f"lists {path}", "what is signed by itself is not for the manifest")


def is_whole(found: Found) -> bool:
    """Whether all is there that a report is made from."""
    listed = () if found.manifest is None else found.manifest.files
    return not found.problems and all(path in found.files for path in listed if not path.startswith(REPORT))


def notes(case: Case, found: Found) -> Iterator[Finding]:
    """The newest head of each log, in the form that other tools read, says what heads.json says."""
    for party, log in case.logs.items():
        path = note_file(party)
        if path not in found.files:
            yield incomplete(path, "is not there", "the newest head can be read in heads.json only")
        elif log.copy.heads and found.files[path] != note_bytes(log.copy, dict(case.keys)):
            yield broken(path, "not the newest head of heads.json with its cosignatures", "two accounts of one log")


def issued(case: Case) -> Iterator[Finding]:
    """The coordinator's log names this manifest, behind the entries that the report was made from."""
    listed, log = case.manifest, case.logs.get(COORDINATOR)
    if listed is None:
        return  # told as missing or unreadable
    if (listed.study, listed.plan_digest) != (case.study, case.plan_digest):
        yield broken(MANIFEST, f"of study {listed.study}", f"the plan is of another study, {case.study}")
    yield from _sizes(case, listed)
    if log is None:
        return  # told as a missing log
    naming = [one for one in log.of(EvidenceIssued, listed.study) if one.event.manifest == listed.digest]
    if not naming:
        means = "the manifest was changed, or this is not the bundle that was issued"
        yield broken(COORDINATOR, "no entry of the log names this manifest", means)
    elif naming[0].number <= listed.logs.get(COORDINATOR, 0):
        yield broken(at(COORDINATOR, naming[0].number), "names a manifest of later entries", "a log is not true")


def _sizes(case: Case, listed: Manifest) -> Iterator[Finding]:
    for party, size in sorted(listed.logs.items()):
        log = case.logs.get(party)
        if log is not None and (log.size < size or (log.size > size and party != COORDINATOR)):
            means = "the log was cut, or got entries that the report does not know"
            yield broken(log_file(party), f"{log.size} entries, the manifest says {size}", means)
    for party in sorted(set(case.logs) - set(listed.logs)):
        yield broken(log_file(party), "the manifest knows no such log", "it was put here afterwards")


def report(case: Case, found: Found, listed: Manifest, rebuild: Rebuild) -> Iterator[Finding]:
    """Made again from the bundle, the report has the same bytes. Only to be asked when all else holds."""
    try:
        made = rebuild(as_reported(case.bundle, listed.logs))
    except (BoundaryError, ComplianceError, ArithmeticError, LookupError, ValueError) as why:
        yield broken(REPORT, f"no report can be made of this bundle: {why}", "the report is not of this bundle")
        return
    for path, data in sorted(made.items()):
        if data is None:
            yield note(path, "cannot be made here", "a library is missing; its digest is as listed, no more is known")
        elif path not in found.files:
            yield incomplete(path, "is not there", "it would be a part of the report")
        elif found.files[path] != data:
            means = "the report says something else than the logs it is made from"
            yield broken(path, "made again from the logs it has other bytes", means)
    yield from _unexplained(case, listed, set(made))


def _unexplained(case: Case, listed: Manifest, made: set[str]) -> Iterator[Finding]:
    known = made | {PLAN, ROSTER, APPROVALS, RECEIPTS} | {round_file(record.round) for record in case.bundle.rounds}
    for path in sorted(set(listed.files) - known):
        means = "the coordinator stands for it, and nothing in the logs does"
        yield incomplete(path, "cannot be made again from the logs", means)


def copies(found: Found, fetched: Mapping[str, bytes]) -> Iterator[Finding]:
    """The copies that somebody else keeps (MLflow), by the path they have here."""
    for path, data in sorted(fetched.items()):
        if path not in found.files:
            yield broken(path, "there is a copy of it, and it is not in the bundle", "nobody stands for the copy")
        elif found.files[path] != data:
            yield broken(path, "the copy has other bytes", "the copy was exchanged: believe the bundle")
    for path in sorted(path for path in found.files if path == MANIFEST or path.startswith(REPORT)):
        if path not in fetched:
            yield incomplete(path, "there is no copy of it", "the copy was taken away, or never made")
