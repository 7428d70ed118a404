"""A bundle: everything a reviewer needs to verify a study from scratch, offline, as one folder of plain files.

    manifest.json             the digest of every file that is not signed itself; how long the logs were (`Manifest`)
    plan.json                 the plan in its canonical form: its digest is the study's
    roster.json               the signed roster
    approvals.json            {silo: signed approval}
    logs/PARTY.jsonl          an entry in each line, or {"hash":"sha256:..."} for one that is not shown
    heads.json                all signed heads of all logs, and who cosigned them
    heads/PARTY.checkpoint    the newest head of a log as a C2SP signed note with its cosignatures
    receipts.json             the receipts of the rounds and the signatures under them
    rounds/0001.json          the record of a round, as its digest in the coordinator's log says
    report/...                what was made from all of the above, and can be made from it again

The coordinator's log names the manifest (`EvidenceIssued`); so no file can be exchanged afterwards, not by the
coordinator either. `compliance.bundle_writing` writes the folder, `compliance.bundle_reading` reads one of a stranger.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field

from boundary.approval import SignedApproval
from boundary.canonical import Digest, canonical_bytes, digest, parse_canonical
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR, DigestStr, Frozen, PartyId, StudyId, VersionOne
from boundary.plan import StudyPlan
from boundary.receipt import Receipt
from compliance.records import RoundRecord

MANIFEST, PLAN, ROSTER, APPROVALS = "manifest.json", "plan.json", "roster.json", "approvals.json"
HEADS, RECEIPTS = "heads.json", "receipts.json"
LOGS, NOTES, ROUNDS, REPORT = "logs/", "heads/", "rounds/", "report/"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024  # 10,000 rounds are 1 MB


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys a reviewer believes, from `keys.toml`: got from the parties, not from the bundle."""

    coordinator: PublicIdentity
    hospitals: dict[str, PublicIdentity]
    stewards: dict[str, PublicIdentity]


@dataclass(frozen=True, slots=True)
class LogCopy:
    """One party's log: `entries` in order from number 1, each a leaf or (32 bytes) the hash of one that is not shown.

    `heads` are all its signed heads that anybody was shown, by size; `cosignatures` by size and witness.
    """

    party: str
    entries: tuple[bytes, ...]
    heads: tuple[Checkpoint, ...]
    cosignatures: dict[int, dict[str, Cosignature]]


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A round's receipt and the signatures under it, by party."""

    receipt: Receipt
    signatures: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was found in the folder. `roster` is the signed one in force; logs by party, rounds in order."""

    study: str
    plan: StudyPlan
    roster: bytes
    approvals: dict[str, SignedApproval]
    logs: dict[str, LogCopy]
    receipts: dict[int, SignedReceipt]
    rounds: tuple[RoundRecord, ...]


class Manifest(Frozen):
    """What the coordinator's log vouches for: all files, and on how many entries of each log the report was built."""

    v: VersionOne
    study: StudyId
    plan_digest: DigestStr
    logs: dict[PartyId, Annotated[int, Field(ge=1)]]
    files: dict[str, DigestStr]

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Raises `MalformedMessage` or `ValueError`. It has no defaults and takes no type for another: one form."""
        return cls.model_validate(parse_canonical(data, limit=MAX_MANIFEST_BYTES))

    @property
    def data(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        return digest(self.data)


def log_file(party: str) -> str:
    return f"{LOGS}{party}.jsonl"


def note_file(party: str) -> str:
    return f"{NOTES}{party}.checkpoint"


def round_file(number: int) -> str:
    return f"{ROUNDS}{number:04d}.json"


def is_in_manifest(path: str) -> bool:
    """Whether the manifest has to list a file. What is signed by itself grows after the manifest was made."""
    return path not in {MANIFEST, HEADS} and not path.startswith((LOGS, NOTES))


def parties_of(plan: StudyPlan) -> tuple[str, ...]:
    return (COORDINATOR, *plan.silos)


def as_reported(bundle: Bundle, sizes: dict[str, int]) -> Bundle:
    """The bundle that the report was made from: the logs with as many entries as the manifest says."""
    return replace(bundle, logs={party: _cut(log, sizes.get(party, 0)) for party, log in bundle.logs.items()})


def _cut(log: LogCopy, size: int) -> LogCopy:
    return LogCopy(
        party=log.party,
        entries=log.entries[:size],
        heads=tuple(head for head in log.heads if head.size <= size),
        cosignatures={at: said for at, said in log.cosignatures.items() if at <= size},
    )
