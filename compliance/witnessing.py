"""A witness's judgement: whether a log's signed head goes on from the one that was known of it.

The first head of a log that a party sees it has to believe. Every later one must be proven to begin with that one.
"""

from collections.abc import Sequence

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.checkpoint import Checkpoint
from boundary.errors import BadSignature, PeerFault
from boundary.identity import PublicIdentity
from boundary.names import Frozen
from compliance.events import SeenHead
from compliance.merkle import BrokenProof, check_consistency


class LogForked(PeerFault):
    """Two signed heads of one size with different roots: whoever has both can show them to anybody."""

    code = "LOG_FORKED"


class LogShrunk(PeerFault):
    """A log that has fewer entries than it had: an older copy of it was restored."""

    code = "LOG_SHRUNK"


class LogInDoubt(PeerFault):
    """An incident about somebody's log is open here. Until a person has closed it no work is done."""

    code = "LOG_IN_DOUBT"


MEANS = {
    LogForked.code: "two signed logs of one size differ: somebody rewrote an entry, or ran two copies",
    LogShrunk.code: "a log has fewer entries than it had: an older copy of its database was restored",
    BrokenProof.code: "a log does not go on from what was shown of it before",
    BadSignature.code: "a log's head is not signed with its owner's key",
}
"""What an incident's code says, for people; of other codes: `NO_MEANING`."""
NO_MEANING = "a log could not be verified"


class Contradiction(Frozen):
    """The evidence of an incident: what was known of a log and what was shown instead, as far as there is any."""

    known: Checkpoint | None
    shown: Checkpoint | None

    @property
    def lines(self) -> tuple[str, str]:
        """For people to compare."""
        known, shown = (
            "nothing" if head is None else f"{head.size} entries, root {head.root}" for head in (self.known, self.shown)
        )
        return f"known: {known}", f"shown: {shown}"

    @property
    def data(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        return digest(self.data)


def judge(known: Checkpoint | None, shown: Checkpoint, proof: Sequence[bytes], key: PublicIdentity) -> None:
    """Raises `BadSignature`, `LogForked`, `LogShrunk` or `BrokenProof` unless `shown` may be cosigned.

    `key` is the log's; `proof` is of consistency from `known` to `shown`, and is not looked at if nothing is known.
    """
    shown.check(key)
    if known is None:
        return
    if shown.size == known.size and shown.root != known.root:
        raise LogForked(f"{shown.log} signed two logs of {shown.size} entries")
    if shown.size < known.size:
        raise LogShrunk(f"{shown.log} shows {shown.size} entries after {known.size}")
    check_consistency(known.size, shown.size, known.root_bytes, shown.root_bytes, proof)


def majority(witnesses: int) -> int:
    """How many of so many others make what a log says final: more than half."""
    return witnesses // 2 + 1


def seen(checkpoint: Checkpoint) -> SeenHead:
    return SeenHead(log=checkpoint.log, size=checkpoint.size, root=checkpoint.root)
