"""The signatures of which a bundle has many: under heads, cosignatures, receipts. Those that do not verify are named.

They take half of the time that a long study takes, and need nothing but the files. So where there are many a second
process checks them while this one reads the entries. It shares no more than the answer, a few names of forgeries.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from multiprocessing.connection import Connection

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.errors import BadSignature
from boundary.identity import PublicIdentity
from compliance.bundle import Bundle, LogCopy, SignedReceipt

Keys = Mapping[str, PublicIdentity]
Forged = frozenset[tuple[str, str, int, str]]
"""(what, whose log or "", its size or the round, the root or who signed)"""
MANY = 3000  # below that a second process takes longer than it saves


def head_claim(head: Checkpoint) -> tuple[str, str, int, str]:
    return "head", head.log, head.size, head.root


def cosignature_claim(log: str, size: int, witness: str) -> tuple[str, str, int, str]:
    return "cosignature", log, size, witness


def receipt_claim(number: int, party: str) -> tuple[str, str, int, str]:
    return "receipt", "", number, party


def forged(bundle: Bundle, keys: Keys) -> Forged:
    """The signatures that do not verify under the key of the party that they name."""
    found: set[tuple[str, str, int, str]] = set()
    for log in bundle.logs.values():
        found.update(_of_log(log, keys))
    for number, signed in bundle.receipts.items():
        found.update(receipt_claim(number, party) for party in _of_receipt(signed, keys))
    return frozenset(found)


@contextmanager
def forged_aside(bundle: Bundle, keys: Keys) -> Iterator[Callable[[], Forged]]:
    """As `forged`, in a process of its own if there are many; what is given waits for the answer."""
    if _count(bundle) < MANY or "fork" not in multiprocessing.get_all_start_methods():
        yield lambda: forged(bundle, keys)
        return
    fork = multiprocessing.get_context("fork")  # the bundle is shared as it is in memory
    hear, say = fork.Pipe(duplex=False)
    other = fork.Process(target=tell, args=(say, bundle, keys), daemon=True)
    other.start()
    say.close()
    try:
        yield lambda: _heard(hear, bundle, keys)
    finally:
        other.kill()
        other.join()
        hear.close()


def tell(say: Connection, bundle: Bundle, keys: Keys) -> None:
    """What the other process does."""
    say.send_bytes(json.dumps(sorted(forged(bundle, keys))).encode())
    say.close()


def _heard(hear: Connection, bundle: Bundle, keys: Keys) -> Forged:
    try:
        answer = hear.recv_bytes()  # not `recv`, which would unpickle it
    except EOFError:  # it was killed, for its memory perhaps
        return forged(bundle, keys)
    return frozenset((what, log, number, who) for what, log, number, who in json.loads(answer))


def _count(bundle: Bundle) -> int:
    cosigned = sum(len(by) for log in bundle.logs.values() for by in log.cosignatures.values())
    return cosigned + sum(len(log.heads) for log in bundle.logs.values()) + len(bundle.receipts) * len(bundle.logs)


def _of_log(log: LogCopy, keys: Keys) -> Iterator[tuple[str, str, int, str]]:
    owner = keys[log.party]
    heads = {size: list(same) for size, same in groupby(log.heads, key=lambda head: head.size)}
    for head in log.heads:
        try:
            head.check(owner)
        except BadSignature:
            yield head_claim(head)
    for size, said in log.cosignatures.items():
        for witness, cosignature in said.items():
            if not any(_is_over(head, cosignature, owner, keys[witness]) for head in heads.get(size, ())):
                yield cosignature_claim(log.party, size, witness)


def _is_over(head: Checkpoint, cosignature: Cosignature, owner: PublicIdentity, witness: PublicIdentity) -> bool:
    try:
        cosignature.check(head, owner, witness)
    except BadSignature:
        return False
    return True


def _of_receipt(signed: SignedReceipt, keys: Keys) -> Iterator[str]:
    for party, signature in signed.signatures.items():
        key = keys.get(party)
        try:
            if key is None:
                raise BadSignature("nobody of this study")  # noqa: TRY301 - told as one that does not verify
            signed.receipt.check(signature, key)
        except BadSignature:
            yield party
