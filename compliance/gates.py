"""Whether a hospital's log has every work behind the gates of its policy: one law, for the report and the verifier.

A work is a phase of a round. Before each of its starts, and after the start before that, stands a `gates-passed` for
the same order that names all gates in their order, under the policy that was adopted last before the start; no
`gate-refused` of the work stands between. To offer what an earlier round made, and came too late with, is a start too.
Work that was done or that left without any start was not asked about at all.

A log cannot show that a gate which it names was asked in earnest. What the gates are: docs/adr/0013.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from compliance.events import (
    ContributionReleased,
    Event,
    GateRefused,
    GatesPassed,
    LateUpdateOffered,
    PolicyAdopted,
    TrainingStarted,
    WorkDone,
)

# As the agent asks them (silo_agent/policy/gates.py). Whoever adds one there adds it here.
GATES = (
    "signature", "validity", "study", "hours", "dataset", "exclusions", "cohort", "incoming", "budget", "egress",
    "resources",
)  # fmt: skip
OF_WORK = GatesPassed, GateRefused, TrainingStarted, LateUpdateOffered, WorkDone, ContributionReleased

_Answer = tuple[int, GatesPassed | GateRefused]
_Adopted = tuple[int, PolicyAdopted]


@dataclass(frozen=True, slots=True)
class Passage:
    """A start of a work, or its result where no start is told: entry `number`, and the entries that it rests on.

    `fault` is what speaks against it, None if nothing does. It is not `is_sure` where an entry that cannot be read may
    say otherwise.
    """

    number: int
    round: int
    phase: str
    rests_on: tuple[int, ...]
    fault: str | None
    is_sure: bool


def passages(entries: Iterable[tuple[int, Event]], hidden: Sequence[int]) -> Iterator[Passage]:
    """Every start in the order of the log.

    `entries` are `PolicyAdopted` and those `OF_WORK` of one study, with their numbers. `hidden` are the numbers of the
    entries that cannot be read, going up.
    """
    policy: _Adopted | None = None
    answers: dict[tuple[int, str], _Answer] = {}
    starts: dict[tuple[int, str], int] = {}
    for number, event in sorted(entries, key=itemgetter(0)):
        match event:
            case PolicyAdopted():
                policy = number, event
            case GatesPassed() | GateRefused():
                answers[event.round, event.phase] = number, event
            case TrainingStarted() | LateUpdateOffered():
                of_round, phase = event.round, event.phase if isinstance(event, TrainingStarted) else "train"
                answer = answers.pop((of_round, phase), None)
                since = _since(answer, policy, starts.get((of_round, phase), 0))
                is_dark = bisect_right(hidden, since) < bisect_left(hidden, number)
                fault = _fault(event, answer, policy)
                if fault is None and is_dark:
                    fault = "an entry between its gates and its start is not shown"
                rests_on = tuple(one[0] for one in (policy, answer) if one is not None)
                yield Passage(number, of_round, phase, rests_on, fault, not is_dark)
                starts[of_round, phase] = number
            case WorkDone() | ContributionReleased() if (event.round, event.phase) not in starts:
                fault = "it was done, and no start of it is told"
                yield Passage(number, event.round, event.phase, (), fault, bisect_left(hidden, number) == 0)
                starts[event.round, event.phase] = number


def _fault(start: TrainingStarted | LateUpdateOffered, answer: _Answer | None, policy: _Adopted | None) -> str | None:
    if answer is None:
        return "no gates were passed for this start"
    number, said = answer
    if isinstance(said, GateRefused):
        return f"the gate {said.gate} had refused it"
    if said.order != start.order:
        return "its gates were passed for another order"
    if said.gates != GATES:
        return "its gates are not all there are, in their order"
    if policy is None or policy[0] > number or policy[1].policy != said.policy:
        return "its gates were passed under a policy that was not the one adopted last"
    return None


def _since(answer: _Answer | None, policy: _Adopted | None, last_start: int) -> int:
    """Behind which entry something that is not shown would change what is to be said of a start."""
    if answer is None:
        return last_start
    number, said = answer
    if isinstance(said, GatesPassed) and (policy is None or policy[1].policy != said.policy):
        return min(number, policy[0]) if policy else 0  # the policy's own entry may be what is not shown
    return number


def adoption_faults(adopted: Iterable[_Adopted]) -> Iterator[tuple[int, str]]:
    """What cannot be in a log of policies, and at which entry.

    Numbers go up, though not each is there: the agent logs what is in force when it looks. Fewer signatures than all
    are enough only for a tightening of a policy before, and the first has none (`silo_agent.policy.adoption`).
    """
    newest = 0
    for number, said in adopted:
        if said.number <= newest:
            yield number, f"policy number {said.number} was adopted after number {newest}"
        if said.number == 1 and said.how == "tightened":
            yield number, "its first policy is told as a tightening, which not all have to sign"
        newest = max(newest, said.number)
