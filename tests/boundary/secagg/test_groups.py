"""Sums by groups: each group's is exact, nobody helps to open another's, and none is too small."""

import pytest

from boundary.errors import CohortTooSmall, OutOfTurn, UnknownMember
from boundary.secagg.errors import ResultSpent, SplitView
from infra.cohort import Cohort

pytestmark = pytest.mark.usefixtures("sealed_once")


def by_groups(*sizes: int, **more: object) -> Cohort:
    names = iter([f"h{number:03d}" for number in range(sum(sizes))])
    groups = tuple(frozenset(next(names) for _ in range(size)) for size in sizes)
    return Cohort.of(sum(sizes), groups=groups, **more)


def opened(cohort: Cohort, lost: frozenset[str] = frozenset()) -> None:
    """Run it to its end, `lost` dropping out before their vectors, and compare every group's sum with the integers."""
    cohort.until_shared()
    sharing, surviving = frozenset(cohort.silos), frozenset(cohort.silos) - lost
    for silo in sorted(surviving):
        cohort.mask(silo, sharing)
    for silo in sorted(surviving):
        cohort.agree(silo, cohort.named(surviving))
    for silo in sorted(surviving):
        cohort.reveal(silo)
    for group in cohort.groups:
        opening = cohort.opening(sharing, surviving, group)
        assert not opening.missing
        assert (cohort.unmasked(opening, surviving & group) == cohort.reference(surviving & group)).all()


@pytest.mark.parametrize(("sizes", "ring"), [((3, 3, 3), 32), ((3, 5, 4), 16), ((3, 66, 3), 32)])
def test_each_groups_sum_is_exact(sizes: tuple[int, ...], ring: int) -> None:
    opened(by_groups(*sizes, ring=ring))


def test_each_group_stands_its_own_dropouts() -> None:
    cohort = by_groups(4, 5, 7)
    opened(cohort, lost=frozenset(name for group, lost in zip(cohort.groups, (1, 1, 2), strict=True)
                                  for name in sorted(group)[:lost]))  # fmt: skip


def test_parts_go_to_the_own_group_only_and_shares_of_no_other_are_revealed() -> None:
    cohort = by_groups(3, 4)
    opened(cohort)
    for group in cohort.groups:
        for silo in group:
            assert set(cohort.dealt[silo].parts) == group - {silo}
            assert set(cohort.revealed[silo].of_survivors) == group
            assert cohort.sessions[silo].surviving == group


def test_a_group_that_is_too_small_in_a_large_cohort_is_no_sum() -> None:
    cohort = by_groups(3, 9).until_announced()
    small = min(cohort.groups, key=len)
    one, other = sorted(small)[:2]
    fewer = {silo: said for silo, said in cohort.announced.items() if silo != other}
    with pytest.raises(CohortTooSmall, match="over 2 hospitals"):
        cohort.share(one, fewer)


def test_dropouts_of_the_own_group_count_and_those_of_others_do_not() -> None:
    cohort = by_groups(4, 4).until_shared()
    mine, others = cohort.groups
    everybody, silo = frozenset(cohort.silos), min(mine)
    with pytest.raises(CohortTooSmall):
        cohort.mask(silo, everybody - set(sorted(mine)[1:3]))
    sharing = everybody - set(sorted(others)[:2])
    cohort.mask(silo, sharing)
    assert cohort.sessions[silo].sharers


def test_a_part_of_another_group_is_out_of_place() -> None:
    cohort = by_groups(3, 3).until_shared()
    mine, others = cohort.groups
    silo, stranger = min(mine), min(others)
    everybody = frozenset(cohort.silos)
    parts = cohort.parts_for(silo, everybody)
    foreign = next(iter(cohort.dealt[stranger].parts.values()))
    with pytest.raises(OutOfTurn):
        cohort.mask(silo, everybody, parts | {stranger: foreign})


def test_agreement_of_the_own_group_counts_and_that_of_others_does_not() -> None:
    cohort = by_groups(3, 6).until_shared()
    everybody, (mine, others) = frozenset(cohort.silos), cohort.groups
    for silo in cohort.silos:
        cohort.mask(silo, everybody)
    for silo in cohort.silos:
        cohort.agree(silo, cohort.named(everybody))
    silo = min(mine)
    seen = {one: cohort.seen[one] for one in (silo, *others)}
    with pytest.raises(SplitView, match="1 hospitals saw"):
        cohort.reveal(silo, seen)
    with pytest.raises(UnknownMember):
        cohort.reveal(silo, seen | {"h999": cohort.seen[silo]})
    assert set(cohort.reveal(silo, {one: cohort.seen[one] for one in mine}).of_survivors) == mine


def test_a_result_that_was_unmasked_is_lent_to_the_same_group_only() -> None:
    first = by_groups(4, 3)
    mine, others = first.groups
    for lost, is_spent in ((min(others), False), (max(mine), True)):
        again = by_groups(4, 4 if lost in others else 3, revealed_for=mine).until_shared()
        everybody = frozenset(again.silos)
        surviving, silo = everybody - {lost}, min(mine)
        for one in again.silos:
            again.mask(one, everybody)
        if is_spent:
            with pytest.raises(ResultSpent):
                again.agree(silo, again.named(surviving))
        else:
            again.agree(silo, again.named(surviving))
            assert again.sessions[silo].surviving == mine
