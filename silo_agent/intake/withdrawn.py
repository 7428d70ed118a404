"""Who withdrew consent, as scans and caches know it: by keyed hashes, never by name.

A patient's *reference* hangs on the hospital's master key and stands in the private log, once somebody has withdrawn.
A study knows its patients by *tags*, hashes of references under the study's own key: whoever has journal and keys can
finish a withdrawal, or leave the patient out of a later scan, without knowing who it is; and the tags of two studies
cannot be matched without the keys.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

REFERENCE = b"wardround withdrawn v1\x00"
_TAG = b"withdrawal tag"
TAG_BYTES = 32


def reference_of(master: bytes, patient_id: str) -> str:
    """HMAC-SHA256 of the Patient ID under the hospital's master key, 64 hex digits."""
    return hmac.new(master, REFERENCE + patient_id.encode(), hashlib.sha256).hexdigest()


def tag_of(study_key: bytes, reference: str) -> bytes:
    """What one study knows a patient by; `TAG_BYTES`."""
    return hmac.digest(study_key, _TAG + reference.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Whom a scan does without. `before` withdrew before the study's data were fixed and is refused, `after` since.

    Those of `after` are part of the data that were approved, which are recognised by their digest: they count for it,
    and nothing else of them is kept.
    """

    master: bytes = field(repr=False)
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()

    @classmethod
    def told(cls, master: bytes, said: dict[str, Any]) -> Self:
        """From a command of the daemon."""
        return cls(master, frozenset(said["before"]), frozenset(said["after"]))

    def reference_of(self, patient_id: str) -> str:
        return reference_of(self.master, patient_id)


def known_patients(patients: Iterable[tuple[bytes, bool]]) -> bytes:
    """The file of a study's patients, in the order of their numbers: each one's tag, and whether they are held back."""
    return b"".join(tag + bytes([holdout]) for tag, holdout in patients)


def read_known(data: bytes) -> list[tuple[bytes, bool]]:
    """Parse what `known_patients` wrote; raises `ValueError`."""
    width = TAG_BYTES + 1
    rows = [data[at : at + width] for at in range(0, len(data), width)]
    if any(len(row) != width or row[-1] > 1 for row in rows):
        raise ValueError("not a list of a study's patients")
    return [(row[:-1], bool(row[-1])) for row in rows]


def numbers_of(known: list[tuple[bytes, bool]], tags: Collection[bytes]) -> set[int]:
    return {number for number, (tag, _) in enumerate(known) if tag in tags}
