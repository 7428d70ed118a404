"""Rounds of a sample of the hospitals, and with one that is always too late, as the plan's `[selection]` has it.

The sample is the product's own draw. Who is in `late` is ready only after its round: with "next-round" it offers that
training in the round after, if it is drawn then, and trains anew in the one after that, as an agent does; with "refuse"
its work is in no sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from boundary.drawing import drawn
from boundary.plan import digest_of
from boundary.secagg.ring import Encoding, first_encoding, next_encoding
from boundary.tensors import Vector
from flows.aggregation import strategy_of
from flows.aggregation.state import Mean
from infra.simulation.rounds import Learned, LocalChange, Simulation


@dataclass(frozen=True, slots=True)
class _Kept:
    """A change that came too late, and in which round it was made."""

    change: LocalChange
    made_in: int


def learned_with(simulation: Simulation, late: frozenset[str] = frozenset()) -> tuple[Learned, int]:
    """All rounds of the plan; also how many late updates went into a sum. `late` are hospitals that always are."""
    plan, strategy, encoding = simulation.plan, strategy_of(simulation.plan), first_encoding(simulation.plan)
    home = simulation.parts.home_of(simulation.base)
    state = strategy.init(simulation.parts.moving_of(simulation.base))
    names, kept, used = [hospital.silo for hospital in plan.hospitals], dict[str, _Kept](), 0
    for number in range(1, plan.training.rounds + 1):
        asked = set(drawn(digest_of(plan), number, names, plan.selection.most_asked))
        changes = dict[int, LocalChange]()
        for at, silo in enumerate(names):
            if silo not in asked:
                continue
            found = kept.pop(silo, None)
            if found is not None and number - found.made_in <= plan.selection.most_stale:
                factor = plan.selection.factor(number - found.made_in)
                changes[at] = replace(found.change, weight=found.change.weight * factor)
                used += 1
            elif silo not in late:
                changes[at] = _change(simulation, number, at, state.weights, home)
            elif plan.selection.keeps_late:
                kept[silo] = _Kept(_change(simulation, number, at, state.weights, home), number)
        mean, encoding = _mean(simulation, changes, encoding, number)
        state = strategy.apply(state, mean)
    homes = tuple(home for _ in names)
    return Learned(simulation.parts, simulation.base, state.weights, homes), used


def _change(simulation: Simulation, number: int, at: int, moving: Vector, home: Vector) -> LocalChange:
    return simulation.local(number - 1, at, moving, home)


def _mean(
    simulation: Simulation, changes: Mapping[int, LocalChange], encoding: Encoding, number: int
) -> tuple[Mean, Encoding]:
    """What the sum gives, and the encoding of the next round."""
    summed = simulation.sum(changes, encoding, number - 1)
    following = next_encoding(simulation.plan, encoding, largest=summed.largest, clipped=summed.clipped)
    return Mean(summed.mean_delta, summed.mean_steps), following
