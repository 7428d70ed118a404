"""Whom a round does without after others were rolled back, so that a study goes on in which one hospital spoils sums.

Nobody can see whose change it was. So hospitals are left out in turn, in an order that the study's name fixes: first
each alone, then each pair, as many as the quorum allows. Whoever was out when a round counted stays out for a while and
is then asked again; if that goes wrong, the same ones are left out at once. A hospital whose patients are unlike all
others' can be among them without having done anything.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, combinations


def left_out(study: str, silos: Sequence[str], quorum: int, rolled_back: Iterable[bool]) -> frozenset[str]:
    """Whom the next round is to do without; nobody where the quorum leaves no choice.

    `rolled_back` says of each round so far whether it was. As many rounds as there are hospitals have to count before
    those left out are asked again.
    """
    turns = _turns(study, silos, len(silos) - quorum)
    if not turns:
        return frozenset()
    turn, calm, out = -1, 0, False
    for was in rolled_back:
        if not was:
            calm += 1
            out = out and calm < len(silos)
            continue
        calm = 0
        if out or turn < 0:
            turn = (turn + 1) % len(turns)
        out = True
    return turns[turn] if out else frozenset()


def _turns(study: str, silos: Sequence[str], most: int) -> list[frozenset[str]]:
    drawn = sorted(silos, key=lambda silo: hashlib.sha256(f"{study}/{silo}".encode()).digest())
    sets = chain.from_iterable(combinations(drawn, size) for size in range(1, min(2, most) + 1))
    return [frozenset(one) for one in sets]
