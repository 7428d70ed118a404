"""What of a hospital's log others read: all that the coordinator was told anyway, the rest only if the plan says so."""

from itertools import chain, combinations
from types import ModuleType
from typing import Any, get_args

import pytest

from boundary.agreement import Disclosed
from compliance.disclosure import hash_of, shown
from compliance.events import EVENTS
from compliance.merkle import HASH_BYTES, leaf_hash

ON_REQUEST: dict[str, str] = {
    "budget-reserved": "budget",
    "budget-committed": "budget",
    "budget-refused": "budget",
    "training-started": "budget",
    "late-update-offered": "budget",
    "gates-passed": "budget",
    "gate-refused": "budget",
    "intake-counted": "intake",
    "data-purged": "intake",  # the bytes of a cache are those of its images
    "patient-withdrawn": "withdrawals",
    "withdrawal-effective": "withdrawals",
}
ALL: tuple[Disclosed, ...] = get_args(Disclosed)
SETS = [frozenset(some) for some in chain.from_iterable(combinations(ALL, size) for size in range(len(ALL) + 1))]


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("disclosed", SETS, ids=lambda some: "+".join(sorted(some)) or "nothing")
def test_an_entry_is_shown_as_the_plan_says(fed: ModuleType, name: str, disclosed: frozenset[Disclosed]) -> None:
    leaf = fed.leaf(fed.events()[name])
    is_open = name not in ON_REQUEST or ON_REQUEST[name] in disclosed
    entry = shown(leaf, lambda _: disclosed)
    assert entry == (leaf if is_open else leaf_hash(leaf))
    assert hash_of(entry) == leaf_hash(leaf), "either way the log is verified as well"
    assert (len(entry) == HASH_BYTES) is not is_open


@pytest.mark.parametrize("name", ON_REQUEST)
def test_the_plan_that_is_asked_is_that_of_the_entrys_own_study(fed: ModuleType, name: str) -> None:
    event = fed.events()[name]
    asked: list[Any] = []

    def disclosed(study: str | None) -> frozenset[Disclosed]:
        asked.append(study)
        return frozenset()

    shown(fed.leaf(event), disclosed)
    assert asked == [getattr(event, "study", None)]
    assert (asked == [None]) is (name == "patient-withdrawn"), "who withdraws does so from all studies at once"
