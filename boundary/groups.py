"""Groups of hospitals, each with a masked sum of its own, of which a round takes the median.

A plan may give every hospital that trains a group. A round's training is then summed group by group under masks, and
the new model is made of the coordinate-wise median of the groups' means: whoever sends a bad change spoils the mean of
one group, and the median stands as long as fewer than half of the groups are spoiled (the median of means; Chen, Su and
Xu 2017, "Distributed statistical machine learning in adversarial settings"; coordinate by coordinate: Yin, Chen,
Kannan and Bartlett 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", arXiv:1803.01498).

The price is that the coordinator sees sums over fewer hospitals. So the groups are written in the plan, where every
steward reads with whom her hospital is summed before she approves, and stay the same in all rounds: drawn ones could be
drawn by the coordinator until a hospital is alone among its friends, and differ from round to round.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from boundary.strategies import OF_THE_CHANGE_ALONE

if TYPE_CHECKING:
    from boundary.messages import Phase
    from boundary.plan import StudyPlan

FEWEST_GROUPS = 3  # the median of two is their mean
SMALLEST_GROUP = 4  # of three none may be missed once keys are dealt: one that stalls would stop every round
Groups = tuple[tuple[str, ...], ...]


def has_groups(plan: "StudyPlan") -> bool:
    """Whether a round's training is summed group by group."""
    return any(hospital.group is not None for hospital in plan.hospitals)


def groups_of(plan: "StudyPlan", phase: "Phase", silos: Iterable[str]) -> Groups:
    """Part hospitals as a sum of this phase does: names sorted, groups in the order of their numbers, none empty.

    One group of all in a phase, or in a plan, that has no groups.
    """
    wanted = frozenset(silos)
    if phase != "train" or not has_groups(plan):
        return (tuple(sorted(wanted)),)
    found: dict[int, list[str]] = {}
    for hospital in plan.hospitals:
        if hospital.group is not None and hospital.silo in wanted:
            found.setdefault(hospital.group, []).append(hospital.silo)
    return tuple(tuple(sorted(found[number])) for number in sorted(found))


def group_of(plan: "StudyPlan", phase: "Phase", silo: str) -> frozenset[str]:
    """The hospitals of the plan that this one is summed with in this phase, itself among them."""
    return next((frozenset(group) for group in groups_of(plan, phase, plan.silos) if silo in group), frozenset())


def fewest_groups(plan: "StudyPlan", phase: "Phase") -> int:
    """How many groups have to be in a sum of this phase: more than half of the plan's, and three at least."""
    count = len(groups_of(plan, phase, plan.silos))
    return 1 if count == 1 else max(FEWEST_GROUPS, count // 2 + 1)


def are_whole(plan: "StudyPlan", phase: "Phase", silos: Iterable[str]) -> bool:
    """Whether a sum over these hospitals is one that the plan allows: enough groups, a quorum in each."""
    groups = groups_of(plan, phase, silos)
    quorum = plan.aggregation.quorum
    return len(groups) >= fewest_groups(plan, phase) and all(len(group) >= quorum for group in groups)


def summable(plan: "StudyPlan", phase: "Phase", silos: Iterable[str]) -> tuple[str, ...]:
    """Those of these hospitals that a sum of this phase can have: of a plan with groups, whose group has a quorum."""
    groups = groups_of(plan, phase, silos)
    quorum = plan.aggregation.quorum if phase == "train" and has_groups(plan) else 0
    return tuple(sorted(silo for group in groups if len(group) >= quorum for silo in group))


def suffice(plan: "StudyPlan", phase: "Phase", silos: Iterable[str]) -> bool:
    """Whether a sum of this phase can be taken over those of these hospitals whose group is whole."""
    return are_whole(plan, phase, summable(plan, phase, silos))


def needed_in(plan: "StudyPlan", phase: "Phase") -> str:
    """In words, how many hospitals a sum of this phase needs."""
    groups, quorum = fewest_groups(plan, phase), plan.aggregation.quorum
    return f"{quorum} are needed in every sum" + ("" if groups == 1 else f", which is in each of {groups} groups")


def check_groups(plan: "StudyPlan") -> None:
    """Raises `ValueError` for groups that are unsafe, or senseless with the rest of the plan."""
    if not has_groups(plan):
        return
    if plan.training.rounds == 0:
        raise ValueError("hospitals.group: nothing is trained, so there is nothing to take the median of; leave it out")
    for hospital in plan.hospitals:
        if (hospital.group is None) != (hospital.role == "validate"):
            raise ValueError(
                f"hospitals.group: {hospital.silo} {'needs one' if hospital.group is None else 'can have none'}: "
                "every hospital that trains is in a group, or none is, and one that only validates is in none"
            )
    _check_sizes(plan)
    if plan.training.strategy not in OF_THE_CHANGE_ALONE:
        raise ValueError(
            f"training.strategy: {plan.training.strategy} counts on the mean of all, and groups give the median of "
            f"theirs; take one of {', '.join(sorted(OF_THE_CHANGE_ALONE))}"
        )
    if plan.selection.varies:
        raise ValueError("selection: a sample or a late update leaves groups too small for a sum; leave it out")
    if plan.robustness.leave_out:
        raise ValueError("robustness.leave_out: groups stand a bad change without leaving anybody out; take false")


def _check_sizes(plan: "StudyPlan") -> None:
    groups = groups_of(plan, "train", plan.silos)
    if len(groups) < FEWEST_GROUPS:
        raise ValueError(f"hospitals.group: {len(groups)}, and the median of fewer than {FEWEST_GROUPS} is a mean")
    smallest, quorum = min(len(group) for group in groups), plan.aggregation.quorum
    if smallest < quorum:
        raise ValueError(
            f"hospitals.group: one has {smallest} hospitals, {quorum} are needed in every sum (aggregation.quorum)"
        )
    if smallest < SMALLEST_GROUP:
        raise ValueError(
            f"hospitals.group: one has {smallest} hospitals, of which none could be missed; take {SMALLEST_GROUP} or "
            "more, and groups of like size"
        )
