"""Every log by itself: its entries are one row, and its signed heads are over exactly these (RFC 6962, section 2.1)."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from boundary.checkpoint import Checkpoint
from boundary.names import COORDINATOR
from compliance.verification.case import Case, Log
from compliance.verification.findings import Finding, at, broken, incomplete, note, span
from compliance.verification.signatures import head_claim

FORK = "a FORK: this party signed two histories; both heads together prove it to anybody, keep this folder"


def entries(case: Case) -> Iterator[Finding]:
    for party in case.parties:
        log = case.logs.get(party)
        if log is None:
            yield _absent(case, party)
            continue
        yield from log.faults
        if log.withheld and party == COORDINATOR:
            means = "all that the coordinator does concerns the hospitals; without these nothing is sure"
            yield incomplete(party, f"{log.withheld} entries are not shown", means)
        elif log.withheld:
            means = "the plan does not show them: they are in the tree, what they say was not checked"
            yield note(party, f"{log.withheld} of {log.size} entries are shown as hashes", means)


def _absent(case: Case, party: str) -> Finding:
    if party in case.taking_part | case.witnessed:
        return incomplete(party, "the log is not here", "what this party did, saw and spent is not checked")
    return note(party, "has no log here", "it has not approved the plan and is in no round")


def heads(case: Case) -> Iterator[Finding]:
    for party, log in case.logs.items():
        genuine = [head for head in log.copy.heads if head_claim(head) not in case.forged]
        for head in log.copy.heads:
            if head_claim(head) in case.forged:
                means = "the head is not of this party's, or keys.toml has the wrong key"
                yield broken(f"{party}, head over {head.size}", "not signed with the key that is believed", means)
        yield from _forks(party, genuine)
        yield from _length(log, genuine)
        yield from _roots(log, genuine)


def _forks(party: str, heads: Iterable[Checkpoint]) -> Iterator[Finding]:
    for size, same in groupby(heads, key=lambda head: head.size):
        if len(list(same)) > 1:
            yield broken(f"{party}, head over {size}", "two signed heads of one size", FORK)


def _length(log: Log, heads: list[Checkpoint]) -> Iterator[Finding]:
    if not heads:
        yield incomplete(log.party, "no signed head", "nobody stands for this log")
        return
    signed = heads[-1].size
    if log.size > signed:
        means = "nobody stands for the entries behind the newest head"
        yield broken(at(log.party, signed + 1), f"{log.size} entries, {signed} are signed", means)
    if log.size < signed:
        means = "the log was truncated: entries at its end are gone"
        yield broken(log.party, f"{log.size} entries, {signed} are signed", means)


def _roots(log: Log, heads: list[Checkpoint]) -> Iterator[Finding]:
    """Told for the first head that does not fit; none of the later ones can."""
    agreed = 0
    for size, same in groupby((head for head in heads if head.size <= log.size), key=lambda head: head.size):
        if log.root(size) not in {head.root_bytes for head in same}:
            means = "an entry was changed, taken out, put in or moved after this party had signed"
            yield broken(f"{log.party}, {span(agreed + 1, size)}", "their root is not the signed one", means)
            return
        agreed = size
