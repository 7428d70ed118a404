"""What an index keeps of files that are images each: `facts.Known`, packed.

A line of JSON, then the digest of the image and the UIDs as bytes, as far as the line says that they are there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache

from silo_agent.intake.archive import Item
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import NAMES, Known
from silo_agent.intake.header import Identifiers
from silo_agent.intake.index import Index
from silo_agent.intake.pseudonyms import HASH_BYTES
from silo_agent.intake.refusals import Refusal

_UIDS = tuple(name for name in NAMES if name != "patient_id")
_NO_UID = bytes(HASH_BYTES)


class RememberedImages:
    """Of one archive."""

    def __init__(self, index: Index, root: str, limits: Limits) -> None:
        self._section = index.section(root, "images", json.dumps(asdict(limits)))

    def find(self, items: Sequence[Item]) -> list[Known | None]:
        """What is known of these files as they are now; None of one that has to be read."""
        found = self._section.find([(item.name, item.state) for item in items])
        return [None if one is None else _unpacked(*one) for one in found]

    def keep(self, item: Item, known: Known) -> None:
        """Remember a file that has not changed since it was listed."""
        patient = "" if known.who is None else known.who.patient_id
        self._section.keep(item.name, item.state, patient, _packed(known))


def packed_uids(who: Identifiers) -> bytes:
    """All but the patient, which a row has in clear."""
    return b"".join(bytes.fromhex(getattr(who, name)) or _NO_UID for name in _UIDS)


def unpacked_uids(patient: str, data: bytes) -> Identifiers:
    at = range(0, len(data), HASH_BYTES)
    uids = ["" if (uid := data[one : one + HASH_BYTES]) == _NO_UID else uid.hex() for one in at]
    return Identifiers(patient, *uids)


UIDS_BYTES = HASH_BYTES * len(_UIDS)


def _packed(known: Known) -> bytes:
    who, content = known.who, known.content or b""
    head = json.dumps([known.modality, known.wanted, known.unwanted, len(content), who is not None])
    return b"".join((head.encode(), b"\n", content, b"" if who is None else packed_uids(who)))


def _unpacked(patient: str, facts: bytes) -> Known:
    head, _, rest = facts.partition(b"\n")
    modality, wanted, unwanted, digest_bytes, is_parsed = _head(head)
    who = unpacked_uids(patient, rest[digest_bytes:]) if is_parsed else None
    return Known(modality, wanted, unwanted, who, rest[:digest_bytes] or None)


@lru_cache(maxsize=1024)
def _head(said: bytes) -> tuple[str, Refusal | None, Refusal | None, int, bool]:
    """An archive has few of them."""
    modality, wanted, unwanted, digest_bytes, is_parsed = json.loads(said)
    codes = (None if code is None else Refusal(code) for code in (wanted, unwanted))
    return modality, *codes, digest_bytes, is_parsed
