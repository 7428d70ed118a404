"""Bundles to verify: the made-up study as files in memory, a stand-in for the report, and what a forger can do."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

from boundary.canonical import canonical_bytes, digest
from boundary.checkpoint import Checkpoint
from boundary.names import COORDINATOR, parse_timestamp
from compliance.bundle import MANIFEST, Bundle, LogCopy, Trust, log_file, note_file
from compliance.bundle_reading import parse_files
from compliance.bundle_writing import Prepared, heads_bytes, log_bytes, note_bytes, prepare
from compliance.disclosure import hash_of
from compliance.events import AnyEvent, EvidenceIssued
from compliance.merkle import Tree
from compliance.trail import SALT_BYTES, leaf_bytes, read_leaf
from compliance.verification import case, logs, rounds, witnesses
from compliance.verification.case import Check, Log, open_case, open_log
from compliance.verification.findings import Severity, Verification
from compliance.verification.verify import verify_found
from infra.golden import key
from tests.compliance.made_study import PARTIES, made_bundle, trust

Files = dict[str, bytes]


def stand_in(bundle: Bundle) -> dict[str, bytes | None]:
    """A report that says something about everything it was made from."""
    said = {
        "study": bundle.study,
        "rounds": [digest(canonical_bytes(one.model_dump(mode="json"))) for one in bundle.rounds],
        "approvals": sorted(bundle.approvals),
        "receipts": {str(number): sorted(one.signatures) for number, one in bundle.receipts.items()},
        "logs": {
            party: [len(log.entries), [head.root for head in log.heads], [len(by) for by in log.cosignatures.values()]]
            for party, log in bundle.logs.items()
        },
    }
    report = canonical_bytes(said)
    return {"report/report.json": report, "report/report.html": b"<html>" + report + b"</html>"}


# --- making them -------------------------------------------------------------------------------------
def entry_for(log: LogCopy, event: AnyEvent, *, time: str = "2026-11-22T09:00:00.000000Z") -> bytes:
    sequence, salt = len(log.entries) + 1, b"s" * SALT_BYTES
    return leaf_bytes(event, log=log.party, sequence=sequence, time=parse_timestamp(time), actor=log.party, salt=salt)


def head_over(party: str, entries: tuple[bytes, ...]) -> Checkpoint:
    tree = Tree()
    for entry in entries:
        tree.append(hash_of(entry))
    return Checkpoint.sign(party, tree.size, tree.root(), key(party))


def appended(log: LogCopy, *events: AnyEvent) -> LogCopy:
    """The log with more entries and a head over all of them."""
    for event in events:
        log = replace(log, entries=(*log.entries, entry_for(log, event)))
    return replace(log, heads=(*log.heads, head_over(log.party, log.entries)))


def resigned(log: LogCopy, entries: tuple[bytes, ...]) -> LogCopy:
    """Another history under the same sizes, by the log's own party: it cannot cosign for the others."""
    heads = tuple(head_over(log.party, entries[: head.size]) for head in log.heads if head.size <= len(entries))
    return replace(log, entries=entries, heads=heads, cosignatures={})


def rewritten(entry: bytes, **data: Any) -> bytes:
    """The entry with another content, in its canonical form."""
    leaf = json.loads(entry)
    leaf["data"] |= data
    return canonical_bytes(leaf)


def finish(prepared: Prepared, log: LogCopy | None = None) -> Files:
    log = log or prepared.bundle.logs[COORDINATOR]
    named = EvidenceIssued(study=prepared.bundle.study, manifest=prepared.manifest_digest)
    return prepared.finished(appended(log, named))


def files_of(bundle: Bundle, extra: Mapping[str, bytes] | None = None) -> Files:
    """As the coordinator issues it."""
    made = {path: data for path, data in stand_in(bundle).items() if data is not None}
    return finish(prepare(bundle, made if extra is None else extra))


@cache
def _clean() -> tuple[Bundle, Files]:
    bundle = made_bundle()
    return bundle, files_of(bundle)


def clean() -> Files:
    return dict(_clean()[1])


def clean_bundle() -> Bundle:
    return _clean()[0]


def made(**changes: Any) -> Files:
    """Files of a study that went otherwise and was signed as it went; see `made_bundle`."""
    return files_of(made_bundle(**changes))


# --- forging them ------------------------------------------------------------------------------------
def without(files: Files, path: str) -> Files:
    return {name: data for name, data in files.items() if name != path}


def relisted(files: Files, path: str, data: bytes) -> Files:
    """Another content of a file, and a manifest that knows it: what the coordinator's log then does not name."""
    manifest = json.loads(files[MANIFEST])
    manifest["files"][path] = digest(data)
    return files | {path: data, MANIFEST: canonical_bytes(manifest)}


def lines(files: Files, party: str) -> list[bytes]:
    return files[log_file(party)].splitlines()


def with_lines(files: Files, party: str, some: list[bytes]) -> Files:
    return files | {log_file(party): b"".join(line + b"\n" for line in some)}


def with_log(files: Files, log: LogCopy, *others: LogCopy) -> Files:
    """Logs exchanged, with their heads and notes, as somebody could who has those parties' keys."""
    bundle = parse_files(files).bundle
    assert bundle is not None
    keys = {party: key(party).public for party in PARTIES}
    logs = bundle.logs | {one.party: one for one in (log, *others)}
    new = {log_file(one.party): log_bytes(one) for one in (log, *others)}
    notes = {note_file(one.party): note_bytes(one, keys) for one in (log, *others)}
    return files | new | notes | {"heads.json": heads_bytes(logs)}


def log_of(files: Files, party: str) -> LogCopy:
    bundle = parse_files(files).bundle
    assert bundle is not None
    return bundle.logs[party]


def numbers(log: LogCopy, kind: type[AnyEvent], where: Callable[[Any], bool] = lambda _event: True) -> list[int]:
    """The positions, from 0, of the entries of a kind."""
    events = [read_leaf(entry).event for entry in log.entries]
    return [at for at, event in enumerate(events) if isinstance(event, kind) and where(event)]


# --- looking at them ---------------------------------------------------------------------------------
def look(files: Files, believed: Trust | None = None, **options: Any) -> Verification:
    rebuild = options.pop("rebuild", stand_in)
    return verify_found(parse_files(files), believed or trust(), rebuild, **options)


def told(done: Verification, severity: Severity = Severity.BROKEN) -> dict[str, list[str]]:
    """By check: `where: found` of its findings."""
    found = {
        check.name: [f"{one.where}: {one.found}" for one in check.findings if one.severity is severity]
        for check in done.checks
    }
    return {name: some for name, some in found.items() if some}


# --- one check by itself -----------------------------------------------------------------------------
Events = list[AnyEvent]


def retold(party: str, edit: Callable[[Events], Events], bundle: Bundle | None = None) -> Bundle:
    """The bundle with another account in one log, whose heads are no longer over it: for one check by itself."""
    bundle = bundle or clean_bundle()
    log = bundle.logs[party]
    leaves = [read_leaf(entry) for entry in log.entries]
    told = edit([leaf.event for leaf in leaves])
    times = [leaf.time for leaf in leaves] + [leaves[-1].time] * len(told)
    entries = tuple(
        leaf_bytes(
            event, log=party, sequence=number, time=parse_timestamp(times[number - 1]), actor=party,
            salt=bytes([number % 256]) * SALT_BYTES,
        )
        for number, event in enumerate(told, start=1)
    )  # fmt: skip
    return replace(bundle, logs=bundle.logs | {party: replace(log, entries=entries)})


def changed(kind: type[AnyEvent], where: Callable[[Any], bool] = lambda _: True, **data: Any) -> Callable[..., Events]:
    """An edit for `retold`: what these entries say."""
    return lambda events: [
        event.model_copy(update=data) if isinstance(event, kind) and where(event) else event for event in events
    ]


def dropped(kind: type[AnyEvent], where: Callable[[Any], bool] = lambda _: True) -> Callable[[Events], Events]:
    return lambda events: [event for event in events if not (isinstance(event, kind) and where(event))]


def hidden(bundle: Bundle, party: str, kind: type[AnyEvent] | None = None) -> Bundle:
    """The bundle with the entries of a kind, or the first entry, as hashes."""
    log = bundle.logs[party]
    chosen = numbers(log, kind) if kind else [0]
    entries = tuple(hash_of(entry) if at in chosen else entry for at, entry in enumerate(log.entries))
    return replace(bundle, logs=bundle.logs | {party: replace(log, entries=entries)})


def unlogged(bundle: Bundle, *parties: str) -> Bundle:
    """The bundle without the logs of some."""
    return replace(bundle, logs={party: log for party, log in bundle.logs.items() if party not in parties})


_OPENED: dict[tuple[bytes, ...], Log] = {}


def _opened(copy: LogCopy, actors: frozenset[str]) -> Log:
    """Most of a bundle's logs are the same in every test: they are opened once."""
    if copy.entries not in _OPENED:
        _OPENED[copy.entries] = open_log(copy, actors)
    kept = _OPENED[copy.entries]
    return kept if kept.copy is copy else replace(kept, copy=copy)


def finds(check: Check, bundle: Bundle, believed: Trust | None = None) -> dict[Severity, list[str]]:
    """`where: found` of what one check says of a bundle, by severity."""
    asks_signatures = check in {logs.heads, witnesses.cosignatures, rounds.receipts}
    aside = case.forged_aside if asks_signatures else lambda _bundle, _keys, every: nullcontext(frozenset)  # noqa: ARG005
    with patch.object(case, "forged_aside", aside), patch.object(case, "open_log", _opened):
        findings = list(check(open_case(bundle, believed or trust(), None)))
    return {
        severity: [f"{one.where}: {one.found}" for one in findings if one.severity is severity]
        for severity in {one.severity for one in findings}
    }
