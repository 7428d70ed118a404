"""The signatures of which a bundle has many: under heads, cosignatures, receipts. Those that do not verify are named.

They take half of the time that a long study takes, and need nothing but the files. So where there are many, other
processes check them while this one reads the entries. They tell no more than the names of forgeries, and what one of
them did not tell is checked here.

A witness says under each head that it goes on from all earlier ones. So its newest cosignature says all that it says of
a log. 200 hospitals leave 40,000 in each round: where there are very many, the older ones are looked at only if the
newer one is forged, or if somebody asks for it.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.errors import BadSignature
from boundary.identity import PublicIdentity
from compliance.bundle import Bundle, LogCopy, SignedReceipt

Keys = Mapping[str, PublicIdentity]
Claim = tuple[str, str, int, str]
"""(what, whose log or "", its size or the round, the root or who signed)"""
Forged = frozenset[Claim]
Piece = Callable[[], Iterator[Claim]]
"""Checks some signatures and gives those that do not verify."""
MANY = 3000  # below that other processes take longer than they save
PIECE = 50  # heads, sizes or receipts that are begun with at a time
MOST_PROCESSES = 8
MOST_COSIGNATURES = 20_000  # of which every one is verified without being asked to


def head_claim(head: Checkpoint) -> Claim:
    return "head", head.log, head.size, head.root


def cosignature_claim(log: str, size: int, witness: str) -> Claim:
    return "cosignature", log, size, witness


def receipt_claim(number: int, party: str) -> Claim:
    return "receipt", "", number, party


def cosigned_by(log: LogCopy) -> dict[str, list[int]]:
    """Whose cosignatures there are, and under heads of which sizes, upwards."""
    found: dict[str, list[int]] = {}
    for size, said in sorted(log.cosignatures.items()):
        for witness in said:
            found.setdefault(witness, []).append(size)
    return found


def older(bundle: Bundle) -> int:
    """How many cosignatures there are under heads behind which their witness has cosigned another one."""
    return sum(len(sizes) - 1 for log in bundle.logs.values() for sizes in cosigned_by(log).values())


@contextmanager
def forged_aside(bundle: Bundle, keys: Keys, *, every: bool = True) -> Iterator[Callable[[], Forged]]:
    """The signatures that do not verify under the key of the party that they name; not `every` one: see above.

    Where there are many, every other core checks its part meanwhile; what is given waits for them.
    """
    pieces = _pieces(bundle, keys, every=every)
    helpers = 0 if _count(bundle) < MANY else min(cores(), MOST_PROCESSES) - 1
    if not helpers or "fork" not in multiprocessing.get_all_start_methods():
        yield lambda: _found(pieces)
        return
    fork = multiprocessing.get_context("fork")  # the bundle is shared as it is in memory
    with ExitStack() as ends:
        others = [_begun(fork, pieces[number::helpers], ends) for number in range(helpers)]
        yield lambda: frozenset().union(*(_heard(hear, part) for hear, part in others))


def _begun(fork: Any, part: Sequence[Piece], ends: ExitStack) -> tuple[Connection | None, Sequence[Piece]]:
    """A process that checks `part`, and what it answers on; None where there can be no more processes."""
    try:
        hear, say = fork.Pipe(duplex=False)
        other = fork.Process(target=tell, args=(say, part), daemon=True)
        other.start()
    except OSError:
        return None, part
    say.close()
    for end in (hear.close, other.join, other.kill):
        ends.callback(end)
    return hear, part


def _found(pieces: Iterable[Piece]) -> Forged:
    return frozenset(claim for piece in pieces for claim in piece())


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def tell(say: Connection, pieces: Sequence[Piece]) -> None:
    """What another process does."""
    say.send_bytes(json.dumps(sorted(_found(pieces))).encode())
    say.close()


def _heard(hear: Connection | None, pieces: Sequence[Piece]) -> Forged:
    try:
        if hear is None:
            return _found(pieces)
        said = json.loads(hear.recv_bytes())  # not `recv`, which would unpickle it
    except (EOFError, OSError):  # it was killed, for its memory perhaps
        return _found(pieces)
    return frozenset((what, log, number, who) for what, log, number, who in said)


def _count(bundle: Bundle) -> int:
    cosigned = sum(len(by) for log in bundle.logs.values() for by in log.cosignatures.values())
    return cosigned + sum(len(log.heads) for log in bundle.logs.values()) + len(bundle.receipts) * len(bundle.logs)


def _each(check: Callable[[Any], Iterator[Claim]], some: Sequence[Any]) -> Iterator[Claim]:
    for one in some:
        yield from check(one)


def _pieces(bundle: Bundle, keys: Keys, *, every: bool) -> list[Piece]:
    whole: list[tuple[Callable[[Any], Iterator[Claim]], Sequence[Any]]] = []
    for log in bundle.logs.values():
        heads = {size: list(same) for size, same in groupby(log.heads, key=lambda head: head.size)}
        whole.append((partial(_of_head, keys[log.party]), log.heads))
        whole.append((partial(_of_witness, log, heads, keys, every), list(cosigned_by(log).items())))
    whole.append((partial(_of_receipt, keys), list(bundle.receipts.items())))
    return [partial(_each, check, some[at : at + PIECE]) for check, some in whole for at in range(0, len(some), PIECE)]


def _of_head(owner: PublicIdentity, head: Checkpoint) -> Iterator[Claim]:
    try:
        head.check(owner)
    except BadSignature:
        yield head_claim(head)


def _of_witness(
    log: LogCopy, heads: Mapping[int, list[Checkpoint]], keys: Keys, every: bool, said: tuple[str, list[int]]
) -> Iterator[Claim]:
    witness, sizes = said
    is_found = False
    for size in reversed(sizes):
        over, cosignature = heads.get(size, ()), log.cosignatures[size][witness]
        if over and is_found and not every:
            continue
        if any(_is_over(head, cosignature, keys[log.party], keys[witness]) for head in over):
            is_found = True
        else:
            yield cosignature_claim(log.party, size, witness)


def _is_over(head: Checkpoint, cosignature: Cosignature, owner: PublicIdentity, witness: PublicIdentity) -> bool:
    try:
        cosignature.check(head, owner, witness)
    except BadSignature:
        return False
    return True


def _of_receipt(keys: Keys, said: tuple[int, SignedReceipt]) -> Iterator[Claim]:
    number, signed = said
    for party, signature in signed.signatures.items():
        key = keys.get(party)
        try:
            if key is None:
                raise BadSignature("nobody of this study")  # noqa: TRY301 - told as one that does not verify
            signed.receipt.check(signature, key)
        except BadSignature:
            yield receipt_claim(number, party)
