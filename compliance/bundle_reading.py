"""Reading the folder of a stranger: plain files of bounded size, parsed strictly, nothing followed and nothing run.

What is not there and what is wrong become `Problem`s: the rest is read all the same, so that one look tells all.
"""

import gc
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from boundary.approval import SignedApproval
from boundary.canonical import parse_canonical
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.errors import BoundaryError, MalformedMessage, TooLarge
from boundary.messages import MAX_ENTRY_BYTES
from boundary.names import Frozen, PartyId, SiloId
from boundary.plan import MAX_PLAN_BYTES, StudyPlan, plan_from_json, study_id, to_json
from boundary.receipt import Receipt, ReceiptSignature
from compliance import quick_json
from compliance.bundle import (
    APPROVALS,
    HEADS,
    LOGS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PLAN,
    RECEIPTS,
    ROSTER,
    ROUNDS,
    Bundle,
    LogCopy,
    Manifest,
    SignedReceipt,
    log_file,
    parties_of,
    round_file,
)
from compliance.merkle import HASH_BYTES
from compliance.records import RoundRecord

MEGABYTE = 1024 * 1024
LIMITS = {
    MANIFEST: MAX_MANIFEST_BYTES, PLAN: MAX_PLAN_BYTES, ROSTER: 2 * MEGABYTE, APPROVALS: 2 * MEGABYTE,
    HEADS: 256 * MEGABYTE, RECEIPTS: 256 * MEGABYTE, LOGS: 512 * MEGABYTE, ROUNDS: 2 * MEGABYTE,
}  # fmt: skip
OTHER_LIMIT = 64 * MEGABYTE
MOST_BYTES = 2048 * MEGABYTE  # all files together: they are held in memory
MOST_FILES = 12_000  # 10,000 rounds, 201 logs with a note each
MOST_FOLDERS_DEEP = 4
_ROUND = re.compile(rf"{ROUNDS}[0-9]{{4,5}}\.json")
_WITHHELD = re.compile(rb'\{"hash":"sha256:([0-9a-f]{64})"\}')
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """A file, by its path in the folder, that is missing or that is not what it should be."""

    path: str
    why: str
    is_missing: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds. Without a readable plan there is no bundle; what else is missing is empty in it."""

    files: dict[str, bytes]
    problems: tuple[Problem, ...]
    manifest: Manifest | None
    bundle: Bundle | None


class _Heads(Frozen):
    class By(Frozen):
        size: Annotated[int, Field(ge=1)]
        by: list[Cosignature]

    heads: list[Checkpoint]
    cosignatures: list[By]


class _Signed(Frozen):
    receipt: Receipt
    signatures: dict[PartyId, ReceiptSignature]


_APPROVALS = TypeAdapter(dict[SiloId, SignedApproval])
_HEADS = TypeAdapter(dict[PartyId, _Heads])
_RECEIPTS = TypeAdapter(list[_Signed])
_RECORD = TypeAdapter(RoundRecord)


@contextmanager
def without_collector() -> Iterator[None]:
    """Entries are many, stay, and refer to nothing in a circle: looking for garbage among them takes a sixth of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- the folder --------------------------------------------------------------------------------------
def read_folder(folder: Path) -> Found:
    """Never raises for what is in the folder. A folder that is not there has every file missing."""
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    left = MOST_BYTES
    for path in _paths(folder, problems):
        if len(files) == MOST_FILES:
            problems.append(Problem(path, f"more than {MOST_FILES} files; the rest was not read"))
            break
        try:
            files[path] = _content(folder / path, min(_limit(path), left))
        except (OSError, BoundaryError) as why:
            problems.append(Problem(path, str(why) if isinstance(why, BoundaryError) else why.strerror or "unreadable"))
        else:
            left -= len(files[path])
    return parse_files(files, problems)


def _paths(folder: Path, problems: list[Problem]) -> list[str]:
    """The plain files below `folder`, in order; what else is there becomes a problem and is not opened."""
    found, waiting = [], [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        except OSError as why:
            problems.append(Problem(inside, why.strerror or "unreadable", is_missing=True))
            continue
        for entry in entries:
            path = f"{inside}{entry.name}"
            if entry.is_file(follow_symlinks=False):
                found.append(path)
            elif entry.is_dir(follow_symlinks=False) and path.count("/") < MOST_FOLDERS_DEEP:
                waiting.append(f"{path}/")
            else:
                problems.append(Problem(path, "a link, or something else that is no plain file; it was not followed"))
    return sorted(found)


def _content(path: Path, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise MalformedMessage("no plain file any more")
        data = source.read(limit + 1)
        if len(data) > limit:
            raise TooLarge("the file", max(about.st_size, len(data)), limit)
        return data


def _limit(path: str) -> int:
    top, _, rest = path.partition("/")
    return LIMITS.get(f"{top}/" if rest else top, OTHER_LIMIT)


# --- the files ---------------------------------------------------------------------------------------
def parse_files(files: dict[str, bytes], problems: list[Problem] | None = None) -> Found:
    """As `read_folder`, of files that are in memory already."""
    reading = _Reading(files, list(problems or []))
    with without_collector():
        manifest = reading.take(MANIFEST, Manifest.read)
        plan = reading.take(PLAN, _plan)
        bundle = None if plan is None else _bundle(reading, plan, manifest)
    return Found(files, tuple(reading.problems), manifest, bundle)


@dataclass(slots=True)
class _Reading:
    files: dict[str, bytes]
    problems: list[Problem] = field(default_factory=list)

    def take(self, path: str, parse: Callable[[bytes], T]) -> T | None:
        if path not in self.files:
            if all(problem.path != path for problem in self.problems):
                self.problems.append(Problem(path, "is not there", is_missing=True))
            return None
        try:
            return parse(self.files[path])
        except ValidationError as why:
            first = why.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            self.problems.append(Problem(path, f"{place}: {first['msg']}"))
        except (BoundaryError, ValueError, TypeError, RecursionError) as why:
            self.problems.append(Problem(path, str(why)))
        return None


def _bundle(reading: _Reading, plan: StudyPlan, manifest: Manifest | None) -> Bundle:
    parties = parties_of(plan)
    heads = reading.take(HEADS, lambda data: _heads(data, parties)) or {}
    logs = {}
    for party in parties:
        if log_file(party) in reading.files or (manifest is not None and party in manifest.logs):
            entries = reading.take(log_file(party), _entries)
            if entries is not None:
                shown, cosigned = heads.get(party, ((), {}))
                logs[party] = LogCopy(party, entries, shown, cosigned)
    records = [reading.take(path, partial(_record, path)) for path in sorted(reading.files) if _ROUND.fullmatch(path)]
    reading.take(ROSTER, parse_canonical)
    return Bundle(
        study=study_id(plan),
        plan=plan,
        roster=reading.files.get(ROSTER, b""),
        approvals=reading.take(APPROVALS, lambda data: _one_form(_APPROVALS, data, LIMITS[APPROVALS])) or {},
        logs=logs,
        receipts=reading.take(RECEIPTS, _receipts) or {},
        rounds=tuple(sorted((one for one in records if one is not None), key=lambda record: record.round)),
    )


def _plan(data: bytes) -> StudyPlan:
    plan = plan_from_json(parse_canonical(data, limit=MAX_PLAN_BYTES))
    if to_json(plan) != data:
        raise MalformedMessage("a plan in another form than its one")
    return plan


def _entries(data: bytes) -> tuple[bytes, ...]:
    *lines, last = data.split(b"\n")
    if last or not lines:
        raise MalformedMessage("a log is lines, each with its end")
    return tuple(_entry(number, line) for number, line in enumerate(lines, start=1))


def _entry(number: int, line: bytes) -> bytes:
    withheld = _WITHHELD.fullmatch(line)
    if withheld is not None:
        return bytes.fromhex(withheld[1].decode())
    if not HASH_BYTES < len(line) <= MAX_ENTRY_BYTES:  # one of 32 bytes would be taken for a hash
        raise MalformedMessage(f"line {number} has {len(line)} bytes and is no entry")
    return line


def _heads(
    data: bytes, parties: tuple[str, ...]
) -> dict[str, tuple[tuple[Checkpoint, ...], dict[int, dict[str, Cosignature]]]]:
    read = _one_form(_HEADS, data, LIMITS[HEADS])
    found = {}
    for party, said in read.items():
        cosigned = {one.size: {by.witness: by for by in one.by} for one in said.cosignatures}
        order = [(head.size, head.root) for head in said.heads]
        written = [(one.size, [by.witness for by in one.by]) for one in said.cosignatures]
        names = {name for by in cosigned.values() for name in by}
        if party not in parties or any(head.log != party for head in said.heads) or not names <= set(parties):
            raise MalformedMessage(f"heads of {party}: not of a log of this study, or cosigned by others")
        if order != sorted(set(order)) or written != [(size, sorted(by)) for size, by in sorted(cosigned.items())]:
            raise MalformedMessage(f"heads of {party}: out of order, or the same twice")
        found[party] = (tuple(said.heads), cosigned)
    return found


def _receipts(data: bytes) -> dict[int, SignedReceipt]:
    read = _one_form(_RECEIPTS, data, LIMITS[RECEIPTS])
    rounds = [one.receipt.round for one in read]
    if rounds != sorted(set(rounds)):
        raise MalformedMessage("receipts out of order, or two of one round")
    return {one.receipt.round: SignedReceipt(one.receipt, dict(one.signatures)) for one in read}


def _record(path: str, data: bytes) -> RoundRecord:
    record = _one_form(_RECORD, data, LIMITS[ROUNDS])
    if round_file(record.round) != path:
        raise MalformedMessage(f"the record of round {record.round}")
    return record


def _one_form(kind: TypeAdapter[T], data: bytes, limit: int) -> T:
    """Parse what must be written in exactly this way; `dump` of what was read is what was there."""
    try:
        value = quick_json.loads(data)
    except quick_json.Unsure:
        value = parse_canonical(data, limit=limit)
    read = kind.validate_python(value)
    if kind.dump_python(read, mode="json") != value:
        raise MalformedMessage("not in its one form")
    return read
