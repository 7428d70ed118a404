"""A relay that reorders, duplicates, delays and drops, hospitals that are killed, a coordinator that changes its mind.

Hypothesis drives all of them. Two things must hold in every history: if a sum comes out it is the sum of the survivors'
vectors, bit for bit; and nobody's two kinds of share were ever both revealed, by anybody.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from boundary.errors import PeerFault
from boundary.secagg.context import survivors_of
from boundary.secagg.errors import BadShares
from boundary.secagg.graph import thresholds
from boundary.secagg.hospital import HospitalSession
from infra.cohort import Cohort
from infra.weakened import AcceptsAnySize, ForgetsItsTurn

pytestmark = pytest.mark.usefixtures("sealed_once")
SILOS = ("h000", "h001", "h002", "h003")
STEPS = ("share", "mask", "agree", "reveal")
FATES = st.sampled_from([*["arrives"] * 12, "answer lost", "delayed", "twice"])
QUIET = settings(deadline=None, stateful_step_count=12, suppress_health_check=list(HealthCheck))


class Federation(RuleBasedStateMachine):
    """What the coordinator told for each step, and whose answers it has."""

    make: type[HospitalSession] = HospitalSession

    def __init__(self) -> None:
        super().__init__()
        self.attempt = 0
        self.kinds: set[tuple[int, str, str]] = set()  # (attempt, dealer, kind of share) that was ever revealed

    @initialize()
    def first_attempt(self) -> None:
        self.new_attempt()

    # --- the coordinator -------------------------------------------------------------------------------
    @precondition(lambda self: self.told and (self.dead or self.told == STEPS[-1]))
    @rule()
    def new_attempt(self) -> None:
        """Fresh keys, new context; who was dead is back."""
        self.attempt += 1
        context = f"sha256:{self.attempt:064x}"
        self.cohort = Cohort(SILOS, make=self.make, attempt=self.attempt, context=context, weights=2)
        self.cohort.until_announced()
        self.dead: set[str] = set()
        self.told = ""
        self.answered: dict[str, list[str]] = {step: [] for step in STEPS}
        self.sets: dict[str, frozenset[str]] = {}

    @rule(data=st.data())
    def tell_the_next_step(self, data: st.DataObject) -> None:
        """To those who answered the last one; the relay does with each message as it likes."""
        if self._tell():
            order = data.draw(st.permutations(SILOS))
            for silo, fate in zip(order, data.draw(st.tuples(*[FATES] * len(SILOS))), strict=True):
                for _ in range({"delayed": 0, "twice": 2}.get(fate, 1)):
                    self.deliver(silo, self.told, is_lost=fate == "answer lost")

    def _tell(self) -> bool:
        at = STEPS.index(self.told) + 1 if self.told else 0
        if at == len(STEPS) or (at and not self.answered[self.told]):
            return False
        if at:
            self.sets[self.told] = frozenset(self.answered[self.told])
        self.told = STEPS[at]
        return True

    @precondition(lambda self: self.told)
    @rule(
        kind=st.sampled_from(["late or again", "kill", "change of mind", "none", "none"]),
        silo=st.sampled_from(SILOS),
        at=st.integers(0, 3),
    )
    def mischief(self, kind: str, silo: str, at: int) -> None:
        match kind:
            case "late or again" if at <= STEPS.index(self.told):
                self.deliver(silo, STEPS[at])
            case "kill":  # its secrets are gone; what it sent before may still arrive
                self.dead.add(silo)
            case "change of mind":
                self.change_its_mind(STEPS[at], silo)

    def change_its_mind(self, step: str, silo: str) -> None:
        """From now on the coordinator says that `silo` never answered this step, or that it did."""
        if step in self.sets:
            self.sets[step] ^= {silo}

    @precondition(lambda self: self.cohort.revealed)
    @rule()
    def take_the_sum(self) -> None:
        cohort, surviving, sharing = self.cohort, self.sets["mask"], self.sets["share"]
        if not surviving or not surviving <= set(cohort.masked) & sharing or not sharing <= set(cohort.dealt):
            return
        try:
            opening = cohort.opening(sharing, surviving)
            masks = [] if opening.missing else opening.masks()
        except BadShares:
            return
        if masks:
            np.testing.assert_array_equal(cohort.unmasked(opening, surviving), cohort.reference(surviving))
            assert len(surviving) >= thresholds(len(SILOS)).agreeing
            event("a sum was taken")

    # --- hospitals ---------------------------------------------------------------------------------------
    def deliver(self, silo: str, step: str, *, is_lost: bool = False) -> None:
        if silo in self.dead:
            return
        try:
            self._do(silo, step)
        except (PeerFault, KeyError):  # KeyError: the coordinator names one whose answer it cannot show
            return
        if not is_lost and silo not in self.answered[step]:
            self.answered[step].append(silo)

    def _do(self, silo: str, step: str) -> None:
        cohort = self.cohort
        match step:
            case "share":
                cohort.share(silo)
            case "mask":
                cohort.mask(silo, self.sets["share"])
            case "agree":
                cohort.agree(silo, cohort.named(self.sets["mask"]))
            case "reveal":
                seen = {u: cohort.seen[u] for u in self.sets.get("agree", ())}
                said = cohort.sessions[silo].reveal(seen)
                self._note(said.of_survivors, "self", "seed")
                self._note(said.of_lost, "seed", "self")
                cohort.revealed[silo] = said

    def _note(self, dealers: Iterable[str], kind: str, other: str) -> None:
        for dealer in dealers:
            assert (self.attempt, dealer, other) not in self.kinds, f"both kinds of share of {dealer} were revealed"
            self.kinds.add((self.attempt, dealer, kind))


TestFederation = Federation.TestCase
TestFederation.settings = settings(QUIET, max_examples=int(os.environ.get("WARDROUND_EXAMPLES", "2000")))


# --- the machine itself can see what it looks for ---------------------------------------------------------
def played(weakened: type[HospitalSession], until: str) -> Federation:
    machine = Federation()
    machine.make = weakened
    machine.new_attempt()
    while machine.told != until:
        machine._tell()
        for silo in SILOS:
            machine.deliver(silo, machine.told)
    return machine


def test_it_sees_a_double_reveal_by_hospitals_that_answer_twice() -> None:
    machine = played(ForgetsItsTurn, "reveal")
    machine.change_its_mind("mask", "h000")
    machine.change_its_mind("agree", "h000")
    for silo in SILOS[1:]:
        machine.deliver(silo, "agree")
    with pytest.raises(AssertionError, match="both kinds of share of h000"):
        machine.deliver("h001", "reveal")


def test_it_sees_a_double_reveal_by_two_halves() -> None:
    machine = played(AcceptsAnySize, "mask")
    machine._tell()
    machine.deliver("h001", "agree")
    machine.change_its_mind("mask", "h000")
    machine.deliver("h003", "agree")
    machine.deliver("h001", "reveal")
    with pytest.raises(AssertionError, match="both kinds of share of h000"):
        machine.deliver("h003", "reveal")


def test_it_sees_a_wrong_sum() -> None:
    machine = played(HospitalSession, "reveal")
    machine.cohort.masked["h002"][0] ^= 1
    machine.cohort.sent = lambda _silo: "sha256:" + "0" * 64  # type: ignore[method-assign]
    machine.cohort.revealed = {
        silo: replace(
            said, survivors=survivors_of(machine.cohort.sharers[silo], dict.fromkeys(SILOS, "sha256:" + "0" * 64))
        )
        for silo, said in machine.cohort.revealed.items()
    }
    with pytest.raises(AssertionError, match="Mismatched elements"):
        machine.take_the_sum()
