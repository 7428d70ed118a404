"""What can be said of each log without believing anybody: signed heads, roots, cosignatures, what others saw of it.

Keys are those that the plan pins and, for the coordinator, the roster's. Whether these are the right people's keys is
what `wardround verify` asks `keys.toml`; the report takes the plan that stewards signed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from boundary.checkpoint import Checkpoint
from boundary.errors import BadSignature, BoundaryError
from boundary.identity import PublicIdentity
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.roster import TrustedRoster
from compliance.bundle import LogCopy
from compliance.events import HeadsWitnessed
from compliance.evidence.reading import Entry, Pointer, ReadLog
from compliance.merkle import Tree
from compliance.witnessing import majority


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not fit, and where."""

    sentence: str
    at: tuple[Pointer, ...] = ()


@dataclass(frozen=True, slots=True)
class LogIntegrity:
    """`signed` is the size of the newest valid head, `covered` of the newest that enough others cosigned.

    `cosigners` are who validly cosigned the one at `covered`, or else the newest; `needed` of `others` is enough.
    """

    party: str
    size: int
    signed: int
    root: str | None
    covered: int
    cosigners: tuple[str, ...]
    needed: int
    others: int
    problems: tuple[Problem, ...]
    gaps: tuple[Problem, ...]


def keys_of(plan: StudyPlan, roster: bytes) -> tuple[dict[str, PublicIdentity], tuple[Problem, ...]]:
    """The key of every party, and what is wrong with the roster; without it the coordinator's is not known."""
    keys = plan.keys
    try:
        trusted = TrustedRoster.kept(roster)
        keys[COORDINATOR] = trusted.roster.coordinator.identity
        trusted.check_plan(plan)
    except BoundaryError as why:
        return keys, (Problem(f"the roster cannot be relied on ({why.code})"),)
    return keys, ()


def integrity_of(
    copy: LogCopy | None,
    log: ReadLog,
    keys: Mapping[str, PublicIdentity],
    watching: frozenset[str],
    seen: Iterable[Entry[HeadsWitnessed]],
) -> LogIntegrity:
    """Judge one log against its own heads and what all others wrote down of it. `watching` are who has to cosign."""
    witnesses = watching - {log.party}
    tree = Tree.of(log.hashes)
    heads = sorted(copy.heads, key=lambda head: head.size) if copy else []
    good, problems = _heads(heads, tree, log, keys.get(log.party))
    gaps = _gaps(heads, log)
    for contradiction, is_gap in _as_others_saw(log, tree, seen):
        (gaps if is_gap else problems).append(contradiction)
    covered, cosigners, bad = _coverage(copy, good, keys, witnesses)
    return LogIntegrity(
        party=log.party,
        size=log.size,
        signed=good[-1].size if good else 0,
        root=good[-1].root if good else None,
        covered=covered,
        cosigners=cosigners,
        needed=majority(len(witnesses)),
        others=len(witnesses),
        problems=(*problems, *bad),
        gaps=tuple(gaps),
    )


def _heads(
    heads: list[Checkpoint], tree: Tree, log: ReadLog, key: PublicIdentity | None
) -> tuple[list[Checkpoint], list[Problem]]:
    good: list[Checkpoint] = []
    problems = [
        Problem(f"entry {number} of {log.party} is no entry of that log", (Pointer(log.party, number),))
        for number in log.broken
    ]
    for head in heads:
        at = (Pointer(log.party, head.size),)
        if head.log != log.party or key is None or not _is_signed(head, key):
            problems.append(Problem(f"a head of {log.party} over {head.size} entries is not signed by its key", at))
        elif head.size <= tree.size and tree.root(head.size) != head.root_bytes:
            problems.append(Problem(f"the first {head.size} entries of {log.party} are not those it signed", at))
        elif head.size <= tree.size:
            good.append(head)
    return good, problems


def _is_signed(head: Checkpoint, key: PublicIdentity) -> bool:
    try:
        head.check(key)
    except BadSignature:
        return False
    return True


def _gaps(heads: list[Checkpoint], log: ReadLog) -> list[Problem]:
    longest = max((head.size for head in heads), default=0)
    if longest > log.size:
        return [
            Problem(
                f"the log of {log.party} was signed over {longest} entries, {log.size} are here",
                (Pointer(log.party, longest),),
            )
        ]
    return []


def _as_others_saw(log: ReadLog, tree: Tree, seen: Iterable[Entry[HeadsWitnessed]]) -> Iterable[tuple[Problem, bool]]:
    """Contradictions between this log and what was written down of it; True for entries that are not here."""
    told: set[tuple[int, str]] = set()
    for entry in seen:
        for head in entry.event.heads:
            if head.log != log.party or not log.is_there or (head.size, head.root) in told:
                continue
            told.add((head.size, head.root))
            if head.size > tree.size:
                yield (
                    Problem(f"the log of {log.party} was seen with {head.size} entries by {entry.at.log}", (entry.at,)),
                    True,
                )
            elif "sha256:" + tree.root(head.size).hex() != head.root:
                sentence = f"another log of {log.party} with {head.size} entries was seen by {entry.at.log}"
                yield Problem(sentence, (entry.at, Pointer(log.party, head.size))), False


def _coverage(
    copy: LogCopy | None, good: list[Checkpoint], keys: Mapping[str, PublicIdentity], witnesses: frozenset[str]
) -> tuple[int, tuple[str, ...], list[Problem]]:
    """From the newest head down to the first that enough others cosigned."""
    problems: list[Problem] = []
    newest: tuple[str, ...] | None = None
    for head in reversed(good):
        said = copy.cosignatures.get(head.size, {}) if copy else {}
        valid = []
        for witness in sorted(set(said) & witnesses & set(keys)):
            try:
                said[witness].check(head, keys[head.log], keys[witness])
            except BadSignature:
                at = (Pointer(head.log, head.size),)
                problems.append(Problem(f"the cosignature of {witness} under {head.log} is not theirs", at))
            else:
                valid.append(witness)
        newest = newest if newest is not None else tuple(valid)
        if len(valid) >= majority(len(witnesses)):
            return head.size, tuple(valid), problems
    return 0, newest or (), problems
