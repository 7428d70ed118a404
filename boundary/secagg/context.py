"""What a sum is about, as digests that everybody in it computes alike. Each one binds all before it.

context    the study, plan, round, phase, attempt, roster, model and encoding
cohort     + who is ready, with their keys
sharers    + whose shares arrived in time
survivors  + whose vectors arrived in time, and which
transcript + the sum
"""

import hashlib
from collections.abc import Iterable, Mapping

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.messages import Collection, WorkOrder


def context_of(order: WorkOrder) -> Digest:
    """Everything of the order that must be the same for all hospitals; the deadline is not."""
    return _digest("context", order.model_dump(mode="json", exclude={"due"}))


def selection_key(collection: Collection, model: str) -> bytes:
    """The key that draws which weights are in a round's sum: 32 bytes, public, the same for every attempt."""
    said = binding("random-k", collection.study, collection.round, model)
    return hashlib.sha256(said).digest()


def cohort_of(context: str, ready: Mapping[str, str]) -> Digest:
    """`ready` gives silo -> digest of its signed announcement."""
    return _digest("cohort", context, sorted(ready.items()))


def sharers_of(cohort: str, silos: Iterable[str]) -> Digest:
    return _digest("sharers", cohort, sorted(silos))


def survivors_of(sharers: str, vectors: Mapping[str, str]) -> Digest:
    """`vectors` gives silo -> digest of its masked vector."""
    return _digest("survivors", sharers, sorted(vectors.items()))


def transcript_of(survivors: str, result: str) -> Digest:
    """`result` is the digest of the unmasked sum's bytes."""
    return _digest("transcript", survivors, result)


def binding(what: str, *parts: object) -> bytes:
    """Bytes that tie a key, a share or a ciphertext to its one purpose."""
    return canonical_bytes([f"wardround masked sum v1: {what}", *parts])


def _digest(what: str, *parts: object) -> Digest:
    return digest(binding(what, *parts))
