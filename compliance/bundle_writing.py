"""Writing a bundle, in two steps: the coordinator's log must name the manifest, so the manifest comes first.

`prepare` takes the bundle and the report that was made from exactly this bundle. Then the coordinator appends
`EvidenceIssued` with `Prepared.manifest_digest` to its log and signs a head over it. `Prepared.write` takes that log.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.checkpoint import to_note
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR, encode_base64
from boundary.plan import digest_of, study_id, to_json
from boundary.roster import TrustedRoster
from compliance.bundle import (
    APPROVALS,
    HEADS,
    MANIFEST,
    PLAN,
    RECEIPTS,
    REPORT,
    ROSTER,
    Bundle,
    LogCopy,
    Manifest,
    SignedReceipt,
    as_reported,
    log_file,
    note_file,
    parties_of,
    round_file,
)
from compliance.events import EvidenceIssued
from compliance.merkle import HASH_BYTES
from compliance.records import to_bytes
from compliance.trail import read_leaf

_EXTRA = re.compile(rf"{REPORT}[a-z0-9][a-z0-9._-]{{0,79}}(/[a-z0-9][a-z0-9._-]{{0,79}}){{0,2}}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle that lacks only the entry that names it. `files` are all that the manifest lists."""

    bundle: Bundle
    files: dict[str, bytes]
    manifest: Manifest

    @property
    def manifest_digest(self) -> Digest:
        """What `EvidenceIssued` has to say."""
        return self.manifest.digest

    def write(self, folder: Path, coordinator: LogCopy) -> None:
        """Make `folder`, whole or not at all. `coordinator` is its log with the entry, and a head over that.

        Raises `ValueError` if the log is not the one that was prepared with the entry behind it, `FileExistsError`.
        """
        files = self.finished(coordinator)
        if folder.exists():
            raise FileExistsError(f"{folder} is there already: a bundle is never written over")
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of an attempt that was interrupted
        for path, data in sorted(files.items()):
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).write_bytes(data)
        part.rename(folder)

    def finished(self, coordinator: LogCopy) -> dict[str, bytes]:
        """All files of the folder by their path. Raises `ValueError`."""
        logs = self._final_logs(coordinator)
        return self.files | {MANIFEST: self.manifest.data, HEADS: heads_bytes(logs)} | self._signed(logs)

    def _final_logs(self, now: LogCopy) -> dict[str, LogCopy]:
        """The logs as they were, the coordinator's with what came since: the report is of the former."""
        was, size = self.bundle.logs[COORDINATOR], self.manifest.logs[COORDINATOR]
        known = was.cosignatures
        final = LogCopy(
            party=COORDINATOR,
            entries=now.entries,
            heads=(*was.heads, *(head for head in now.heads if head.size > size)),
            cosignatures=known | {at: said for at, said in now.cosignatures.items() if at > size},
        )
        if now.entries[:size] != was.entries or not any(self._names_us(entry) for entry in now.entries[size:]):
            raise ValueError("the coordinator's log is not the one of the report with EvidenceIssued behind it")
        if final.heads[-1].size != len(now.entries):
            raise ValueError("the coordinator has not signed a head over all of its log")
        return self.bundle.logs | {COORDINATOR: final}

    def _names_us(self, entry: bytes) -> bool:
        return len(entry) > HASH_BYTES and read_leaf(entry).event == EvidenceIssued(
            study=self.bundle.study, manifest=self.manifest_digest
        )

    def _signed(self, logs: Mapping[str, LogCopy]) -> dict[str, bytes]:
        keys = _keys(self.bundle)
        entries = {log_file(party): log_bytes(log) for party, log in logs.items()}
        return entries | {note_file(party): note_bytes(log, keys) for party, log in logs.items() if log.heads}


def prepare(bundle: Bundle, extra: Mapping[str, bytes]) -> Prepared:
    """Put a bundle into files; `extra` gives those of the report by their path, `report/...`.

    Raises `ValueError` for what no reader would take: names that are no plain file names, parties that are not in the
    plan, heads out of order.
    """
    _expect_sane(bundle)
    wrong = [path for path in extra if not _EXTRA.fullmatch(path)]
    if wrong:
        raise ValueError(f"not a plain name below {REPORT}: {wrong[0]!r:.80}")
    files = {
        PLAN: to_json(bundle.plan),
        ROSTER: bundle.roster,
        APPROVALS: canonical_bytes({silo: said.model_dump(mode="json") for silo, said in bundle.approvals.items()}),
        RECEIPTS: receipts_bytes(bundle.receipts),
        **{round_file(record.round): to_bytes(record) for record in bundle.rounds},
        **extra,
    }
    manifest = Manifest(
        v=1,
        study=bundle.study,
        plan_digest=digest_of(bundle.plan),
        logs={party: len(log.entries) for party, log in bundle.logs.items()},
        files={path: digest(data) for path, data in files.items()},
    )
    return Prepared(bundle, files, manifest)


def receipts_bytes(receipts: Mapping[int, SignedReceipt]) -> bytes:
    return canonical_bytes(
        [
            {
                "receipt": signed.receipt.model_dump(mode="json"),
                "signatures": {party: encode_base64(said) for party, said in signed.signatures.items()},
            }
            for _, signed in sorted(receipts.items())
        ]
    )


def heads_bytes(logs: Mapping[str, LogCopy]) -> bytes:
    return canonical_bytes({party: _heads(log) for party, log in logs.items()})


def log_bytes(log: LogCopy) -> bytes:
    return b"".join(b"%b\n" % (_withheld(one) if len(one) == HASH_BYTES else one) for one in log.entries)


def note_bytes(log: LogCopy, keys: dict[str, PublicIdentity]) -> bytes:
    newest = log.heads[-1]
    return to_note(newest, log.cosignatures.get(newest.size, {}), keys).encode()


def _heads(log: LogCopy) -> dict[str, list[object]]:
    return {
        "heads": [head.model_dump(mode="json") for head in log.heads],
        "cosignatures": [
            {"size": size, "by": [one.model_dump(mode="json") for _, one in sorted(said.items())]}
            for size, said in sorted(log.cosignatures.items())
        ],
    }


def _withheld(entry: bytes) -> bytes:
    return b'{"hash":"sha256:%b"}' % entry.hex().encode()


def _keys(bundle: Bundle) -> dict[str, PublicIdentity]:
    """The keys that the coordinator signs and stands for; a reader takes the ones of `keys.toml`."""
    coordinator = TrustedRoster.kept(bundle.roster).roster.coordinator.identity
    return {COORDINATOR: coordinator} | bundle.plan.keys


def _expect_sane(bundle: Bundle) -> None:
    """What files can carry. Whether it is true is for the verifier: a study that went wrong needs its bundle too."""
    parties = set(parties_of(bundle.plan))
    if bundle.study != study_id(bundle.plan) or COORDINATOR not in bundle.logs:
        raise ValueError("a bundle has its plan's study, and the coordinator's log")
    for party, log in bundle.logs.items():
        if party not in parties or log.party != party or not log.entries:
            raise ValueError(f"a log of {party}, who has none in this study")
        heads = [(head.size, head.root) for head in log.heads]
        if heads != sorted(set(heads)) or any(head.log != party for head in log.heads):
            raise ValueError(f"the heads of {party} are out of order, or of another log")
        if not parties.issuperset(chain.from_iterable(log.cosignatures.values())):
            raise ValueError(f"the log of {party} is cosigned by somebody who is not in the study")
    if as_reported(bundle, {party: len(log.entries) for party, log in bundle.logs.items()}) != bundle:
        raise ValueError("a head is over entries that are not in the bundle")
