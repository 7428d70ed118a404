"""Every log by the others: who cosigned its heads, and what they wrote into their own logs about it.

A party that rewrites its own log can sign it again. What others saw of it before, it cannot take back.
"""

from collections.abc import Iterator

from boundary.names import COORDINATOR
from compliance.events import ContributionReleased, HeadsWitnessed, IncidentClosed, IncidentOpened, UnmaskingHelped
from compliance.verification.case import Case, Entry, Log
from compliance.verification.findings import Finding, at, broken, incomplete, note, span
from compliance.verification.signatures import cosignature_claim, cosigned_by
from compliance.witnessing import majority


def cosignatures(case: Case) -> Iterator[Finding]:
    """What a study rests on in a log must be under heads that most other parties have cosigned."""
    for party, log in case.logs.items():
        others = case.taking_part - {party}
        seen = dict.fromkeys(others, 0)
        for witness, sizes in cosigned_by(log.copy).items():
            forged = [size for size in sizes if cosignature_claim(party, size, witness) in case.forged]
            for size in forged:
                where = f"{party}, head over {size}"
                means = "the cosignature is forged or over another head"
                yield broken(where, f"the cosignature of {witness} does not verify", means)
            if witness in others:
                seen[witness] = max(set(sizes) - set(forged), default=0)
        far = sorted(seen.values(), reverse=True)
        covered, needed = far[majority(len(others)) - 1] if others else 0, _needed(case, log)
        if covered < needed:
            most = sum(size >= needed for size in far)
            found = f"{span(covered + 1, needed)}: cosigned by {most} of {len(others)}"
            yield incomplete(party, found, "less than a majority has seen them: they could still be exchanged")
        elif covered < log.size:
            means = "signed by this party only, a majority has not seen it; no round rests on it"
            yield note(party, f"{span(covered + 1, log.size)}: not cosigned yet", means)
    if case.unseen:
        means = "each witness's newest was, and says all that they say; --every-cosignature verifies these too"
        yield note("heads.json", f"{case.unseen} older cosignatures were not verified", means)


def _needed(case: Case, log: Log) -> int:
    """The last entry that a closed round rests on."""
    if log.party == COORDINATOR:
        return case.closed[-1].number if case.closed else 0
    last = max((closed.event.round for closed in case.closed), default=0)
    work: list[Entry[ContributionReleased] | Entry[UnmaskingHelped]] = [
        *log.of(ContributionReleased, case.study),
        *log.of(UnmaskingHelped, case.study),
    ]
    return max((entry.number for entry in work if entry.event.round <= last), default=0)


def seen_by_others(case: Case) -> Iterator[Finding]:
    """Told once for each pair of a witness and a log."""
    for witness, log in case.logs.items():
        told: set[str] = set()
        for entry in log.of(HeadsWitnessed):
            for head in entry.event.heads:
                other = case.logs.get(head.log)
                if other is None or head.log in told or _is_later(case, witness, entry.number):
                    continue
                where = at(witness, entry.number)
                if head.size > other.size:
                    found = f"saw {head.size} entries of {head.log}, {other.size} are here"
                    means = f"the log of {head.log} was truncated, or restored from an older copy"
                    yield broken(where, found, means)
                    told.add(head.log)
                elif other.root(head.size) != bytes.fromhex(head.root.removeprefix("sha256:")):
                    found = f"saw another history in the first {head.size} entries of {head.log}"
                    means = f"{head.log} showed two logs, or its log was rewritten and signed again"
                    yield broken(where, found, means)
                    told.add(head.log)


def _is_later(case: Case, witness: str, number: int) -> bool:
    """What the coordinator saw after the report was made is of logs that may be longer than those of the report."""
    return witness == COORDINATOR and case.manifest is not None and number > case.manifest.logs.get(witness, 0)


def incidents(case: Case) -> Iterator[Finding]:
    """An incident that nobody closed is broken, not incomplete: a party says, signed, that a log was not what it was.

    The two heads that prove it are in that party's hands; their digest is in its log.
    """
    for party, log in case.logs.items():
        closed = {entry.event.incident: entry for entry in log.of(IncidentClosed)}
        for entry in log.of(IncidentOpened):
            said, where = entry.event, at(party, entry.number)
            end = closed.get(said.incident)
            if end is None or end.number < entry.number:
                means = f"{party} holds the evidence {said.evidence[:19]}... and nobody has decided about it"
                yield broken(where, f"incident {said.incident} about the log of {said.log}: {said.code}", means)
                continue
            found = f"incident {said.incident} about the log of {said.log}: {said.code}, {end.event.decision}"
            yield note(where, found, "it was closed by a person, who let rounds go on")
            work = log.of(ContributionReleased, case.study)
            during = [one for one in work if entry.number < one.number < end.number]
            if during:
                means = f"{party} works on while it doubts a log; its software would not"
                yield broken(at(party, during[0].number), f"a contribution during incident {said.incident}", means)
