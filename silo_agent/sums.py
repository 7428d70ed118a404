"""The hospital's sessions of masked sums: what each message of the coordinator makes of them.

A session's secrets are held in memory only. After a restart they are gone, the attempt is refused with KEYS_LOST, and
the hospital joins the next one with its stored result. What the last step does is written down before it leaves: for
which survivors a result was unmasked (`Journal.spend`), so that it is never lent to a sum over others.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boundary.envelope import open_envelope
from boundary.errors import OutOfTurn, PeerFault, UnknownMember
from boundary.groups import group_of
from boundary.messages import (
    AgreementShown,
    BlobRef,
    CohortClosed,
    Collection,
    SharesRouted,
    SurvivorsNamed,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.protocol import FINAL, IN_MEMORY, Step
from boundary.secagg.context import context_of
from boundary.secagg.errors import ResultSpent
from boundary.secagg.hospital import HospitalSession
from boundary.secagg.quoted import Said
from silo_agent.aside import aside
from silo_agent.draw import tell_draw
from silo_agent.errors import EgressRefused, StoredFileLost, disk_code
from silo_agent.inbound import OwnSide, approved_plan, check_closing
from silo_agent.journal import Journal, KeptOrder
from silo_agent.late import staleness
from silo_agent.once import check_uncounted, check_unmeasured
from silo_agent.outbound import Outbound
from silo_agent.permission import Permission
from silo_agent.policy.errors import PolicyRefused
from silo_agent.results import StoredResult, forget_result

_log = logging.getLogger("silo_agent.sums")
MASKING_SECONDS = 600.0  # a vector of 100 MB takes about one
Told = CohortClosed | SharesRouted | SurvivorsNamed | AgreementShown


@dataclass(slots=True)
class Attempt:
    """One session, the result that is summed in it, and the digest of the masked vector once it was made."""

    session: HospitalSession
    result: StoredResult
    vector: str = ""


class KeysLost(PeerFault):
    """The attempt's secrets went with the process that held them. The next attempt is joined."""

    code = "KEYS_LOST"


@dataclass(slots=True)
class Sums:
    """All attempts under way. The policy is asked at each step whether the plan may still be worked on."""

    journal: Journal
    outbound: Outbound
    own: Callable[[], OwnSide]
    entropy: Callable[[int], bytes]
    permission: Permission
    _attempts: dict[str, Attempt] = field(default_factory=dict)

    def begin(self, order: KeptOrder, result_folder: Path) -> None:
        """A1: the result is there; announce this attempt's keys."""
        own = self.own()
        message, result = order_of(order, own), StoredResult.load(result_folder)
        plan = approved_plan(self.journal.plan(order.study), own)
        session = HospitalSession(
            context_of(message),
            own.silo,
            least=max(self.permission.least(plan), plan.aggregation.quorum),
            entropy=self.entropy,
            group=group_of(plan, message.collection.phase, own.silo),
            revealed_for=self.journal.spent_on(result.identity),
        )
        self.outbound.ready(order, message.collection, result_folder, session.announce())
        self._attempts[order.collection] = Attempt(session, result)

    def hear(self, told: Told) -> bool:
        """Take the next step; whether the attempt goes on with us. To be called in the transaction that has the cursor.

        What is wrong with a message becomes a refusal with its code; nothing of the message was acted on then.
        """
        order = self.journal.order(str(told.collection))
        if order is None or order.step in FINAL or order.step is Step.REVEALED:
            return True
        try:
            with self.journal.transaction():
                stays = self._next(told, order)
                if not stays:
                    self.outbound.left_out(order)
        except PeerFault as why:
            _log.warning("%s of %s was refused: %s %s", told.kind, told.collection, why.code, why)
            anew = isinstance(why, ResultSpent) and told.collection.phase == "train"
            self._no(order, told.collection, why.code, str(why), retryable=isinstance(why, KeysLost) or anew)
            if isinstance(why, ResultSpent) and told.collection.phase != "personalise":  # done anew it is spent too
                forget_result(Path(order.result or ""))
            return True
        except PolicyRefused as why:
            self.permission.refused(order, why)
            self._no(order, told.collection, why.code, str(why), retryable=why.retryable)
            return True
        except (EgressRefused, StoredFileLost) as why:
            self._no(order, told.collection, why.code, str(why), retryable=False)
            return True
        except OSError as why:
            self._no(order, told.collection, disk_code(why), str(why), retryable=True)
            return True
        if not stays:
            self.forget(order.collection)
            _log.info("%s goes on without us; we join the next", told.collection)
        return stays

    def forget(self, collection: str) -> None:
        """The attempt is over: its secrets go."""
        self._attempts.pop(collection, None)

    def admit_loss(self) -> None:
        """At the start of the agent: say of which attempts the secrets are gone."""
        for order in self.journal.open_orders():
            if order.step in IN_MEMORY and order.collection not in self._attempts:
                self._no(order, Collection.parse(order.collection), KeysLost.code, "a restart", retryable=True)

    def _no(self, order: KeptOrder, collection: Collection, code: str, detail: str, *, retryable: bool) -> None:
        self.forget(order.collection)
        if order.step in IN_MEMORY:
            self.outbound.refuse(order, collection, code, detail, retryable=retryable)

    # --- the steps -----------------------------------------------------------------------------------
    def _next(self, told: Told, order: KeptOrder) -> bool:
        """Whether we are in it. Raises a `PeerFault` for what must not be answered."""
        own = self.own()
        plan = approved_plan(self.journal.plan(order.study), own)
        self.permission.least(plan)
        if told.order != order.digest:
            raise OutOfTurn(f"{told.kind} for another order")
        match told:
            case CohortClosed():
                stays = check_closing(told, order, plan, own)
                tell_draw(self.journal, told, plan)
                if not stays:
                    return False
                self._share(told, order, plan)
            case SharesRouted():
                if own.silo not in told.members:
                    return False
                self._mask(told, order, plan)
            case SurvivorsNamed():
                vectors = Said(plan, told.collection).vectors(told.vectors)
                if own.silo not in vectors:
                    return False
                attempt = self._attempt(order)
                survivors = attempt.session.agree(attempt.vector, vectors)
                self.outbound.agreed(order, told.collection, survivors, vectors)
            case AgreementShown():
                self._reveal(told, order, plan)
        return True

    def _attempt(self, order: KeptOrder) -> Attempt:
        try:
            return self._attempts[order.collection]
        except KeyError:
            raise KeysLost("the secrets of this attempt are gone") from None

    def _share(self, closed: CohortClosed, order: KeptOrder, plan: StudyPlan) -> None:
        session = self._attempt(order).session
        members = Said(plan, closed.collection).announcements(closed.ready)
        if set(members) != set(closed.members):
            raise UnknownMember("the cohort names others than those whose keys it quotes")
        self.outbound.shared(order, closed.collection, session.share(members))

    def _mask(self, routed: SharesRouted, order: KeptOrder, plan: StudyPlan) -> None:
        attempt, own = self._attempt(order), self.own()
        session, result = attempt.session, attempt.result
        parts = Said(plan, routed.collection).parts_for(own.silo, session.cohort, routed.parts)
        if len(set(routed.members)) != len(routed.members):
            raise UnknownMember("a hospital is named twice")
        keys = session.mask(frozenset(routed.members), parts)
        if not result.vector.exists():
            raise StoredFileLost(f"{result.vector} is gone")
        layout, encoding = result.layout, order_of(order, own).encoding
        stale = staleness(plan, routed.collection, result)
        late_by = plan.selection.factor(stale) if stale else None
        masked = result.vector.with_suffix(f".{routed.collection.attempt}.masked")
        seed = self.entropy(32)

        def write() -> dict[str, Any]:
            from silo_agent.vector import write_masked  # NumPy stays out of the daemon

            return write_masked(result.vector, masked, layout, encoding, keys, seed, late_by).model_dump()

        blob = BlobRef.model_validate(aside(write, MASKING_SECONDS))
        attempt.vector = blob.digest
        try:
            self.outbound.released(order, routed.collection, session.sharers, masked, blob)
        except BaseException:
            masked.unlink(missing_ok=True)
            raise

    def _reveal(self, shown: AgreementShown, order: KeptOrder, plan: StudyPlan) -> None:
        attempt = self._attempt(order)
        check_unmeasured(self.journal, order_of(order, self.own()))
        check_uncounted(self.journal, plan, shown.collection, attempt.session.surviving)
        revealed = attempt.session.reveal(Said(plan, shown.collection).agreements(shown.seen))
        self.journal.spend(attempt.result.identity, order.collection, attempt.session.surviving)
        self.outbound.revealed(order, shown.collection, revealed)
        self.forget(order.collection)


def order_of(order: KeptOrder, own: OwnSide) -> WorkOrder:
    """The order as the coordinator signed it. Raises a `PeerFault` if it is none."""
    signer = own.roster.roster.coordinator.identity
    message = open_envelope(order.envelope, recipient=own.silo, signer=signer, sender=COORDINATOR).message
    if not isinstance(message, WorkOrder):
        raise OutOfTurn("a kept order is not an order")
    return message
