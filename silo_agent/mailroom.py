"""What arrives, turned into journal entries: verified, judged, answered, in one transaction with the cursor.

So an envelope is acted on once: after a crash it is either wholly in the journal or will be read again.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from boundary.api import Delivery
from boundary.canonical import canonical_bytes
from boundary.envelope import Envelope, open_envelope
from boundary.errors import BadSignature, PeerFault
from boundary.layout import layout_for
from boundary.messages import CohortClosed, PlanProposed, RoundCommitted, StudyClosed, WorkOrder
from boundary.names import COORDINATOR
from boundary.plan import digest_of, to_json
from boundary.protocol import FINAL, Heard, Step
from boundary.sealing import SealingKey
from silo_agent.errors import EgressRefused, WrongCoordinator
from silo_agent.inbound import OwnSide, approved_plan, check_closing, check_order, check_proposal
from silo_agent.journal import Journal, KeptOrder
from silo_agent.outbound import Outbound
from silo_agent.results import StoredResult
from silo_agent.state import StateFolder

_log = logging.getLogger("silo_agent.mailroom")
CURSOR = "inbox cursor"


@dataclass(frozen=True, slots=True)
class Mailroom:
    """Handles deliveries. `own` gives what the hospital holds true now; `unwanted` stops work in progress."""

    journal: Journal
    outbound: Outbound
    folder: StateFolder
    own: Callable[[], OwnSide]
    unwanted: Callable[[str], None]

    @property
    def cursor(self) -> int:
        return int((self.journal.fact(CURSOR) or b"0").decode())

    def take(self, delivery: Delivery) -> None:
        """Act on one delivery and move the cursor. Raises `WrongCoordinator` for a forged one."""
        envelope = self._open(delivery.envelope)
        with self.journal.transaction():
            if envelope is not None:
                self._handle(envelope)
            self.journal.set_fact(CURSOR, str(delivery.sequence).encode())

    def _open(self, data: bytes) -> Envelope | None:
        own = self.own()
        signer = own.roster.roster.coordinator.identity
        try:
            return open_envelope(data, recipient=own.silo, signer=signer, sender=COORDINATOR)
        except BadSignature as why:
            raise WrongCoordinator(
                f"the relay delivered a message that the coordinator did not sign ({why}). The agent stops; compare "
                "the coordinator's fingerprint by telephone before starting it again"
            ) from why
        except PeerFault as why:  # signed, but of a kind or version we do not know: unknown means refuse
            _log.warning("a message of the coordinator was ignored: %s %s", why.code, why)
            return None

    def _handle(self, envelope: Envelope) -> None:
        match envelope.message:
            case PlanProposed() as proposal:
                self._propose(proposal)
            case WorkOrder() as order:
                self._order(order, envelope)
            case CohortClosed() as closed:
                self._close(closed)
            case RoundCommitted() as committed:
                self._committed(committed)
            case StudyClosed() as closed_study:
                self._study_closed(closed_study)
            case other:
                _log.warning("%s is not for a hospital to receive", other.kind)

    def _propose(self, proposal: PlanProposed) -> None:
        try:
            check_proposal(proposal.plan, proposal.study, self.own())
        except PeerFault as why:
            _log.warning("the proposed plan %s was set aside: %s %s", proposal.study, why.code, why)
            self.outbound.decline(proposal.study, digest_of(proposal.plan), "UNSUITABLE_PLAN", str(why))
            return
        new = self.journal.keep_plan(proposal.study, digest_of(proposal.plan), to_json(proposal.plan), self.own().now)
        if new:
            _log.info("plan %s arrived: it will be checked against our data, then wait for the steward", proposal.study)

    def _order(self, order: WorkOrder, envelope: Envelope) -> None:
        collection = order.collection
        earlier = self.journal.orders_of(collection.study)
        kept = KeptOrder(
            str(collection), collection.study, collection.round, collection.phase,
            envelope.digest, envelope.data, Step.WORKING, 0, None,
        )  # fmt: skip
        if not self.journal.accept_order(kept):
            _log.warning("a second order for %s was ignored: the first one counts", collection)
            return
        try:
            check_order(order, self.journal.plan(collection.study), earlier, self.own())
        except PeerFault as why:
            self.outbound.refuse(kept, collection, why.code, str(why), retryable=False)
            return
        for old in earlier:  # nothing of an older try is wanted any more
            if old.step in {Step.WORKING, Step.READY}:
                self.journal.advance(old.collection, Heard.ROUND_OVER)
                self.unwanted(old.collection)
        _log.info("order for %s accepted", collection)

    def _close(self, closed: CohortClosed) -> None:
        order = self.journal.order(str(closed.collection))
        if order is None or order.step in FINAL or order.step is Step.RELEASED:
            return
        try:
            plan = approved_plan(self.journal.plan(order.study), self.own())
            with_us = check_closing(closed, order, plan, self.own().silo)
        except PeerFault as why:
            _log.warning("the closing of %s was refused: %s %s", closed.collection, why.code, why)
            if order.step is Step.READY:
                self.outbound.refuse(order, closed.collection, why.code, str(why), retryable=False)
            return
        if not with_us:
            self.journal.advance(order.collection, Heard.CLOSED_WITHOUT_US)
            self.unwanted(order.collection)
            _log.info("%s went on without us; we join the next", closed.collection)
            return
        self._release(order, closed)

    def _release(self, order: KeptOrder, closed: CohortClosed) -> None:
        result = StoredResult.load(Path(order.result or ""))
        layout = layout_for(closed.collection.phase, parameters=result.parameters, metrics=max(1, result.metrics))
        coordinator = SealingKey(self.own().roster.roster.coordinator.sealing_key)
        try:
            self.outbound.release(order, closed, result.vector, layout, coordinator)
        except EgressRefused as why:
            self.outbound.refuse(order, closed.collection, "INTERNAL", str(why), retryable=False)

    def _committed(self, committed: RoundCommitted) -> None:
        for order in self.journal.orders_of(committed.study):
            if order.round <= committed.round and order.step is not Step.OVER:
                self.journal.advance(order.collection, Heard.ROUND_OVER)
                self.journal.withdraw(order.collection)
                self.unwanted(order.collection)
        self.journal.set_fact(
            f"progress {committed.study}", canonical_bytes({"round": committed.round, "absent": [*committed.absent]})
        )
        forget_results(self.folder, committed.study, keep_model=committed.model.digest)
        if self.own().silo in committed.absent:
            _log.warning("round %s of %s was committed without us", committed.round, committed.study)

    def _study_closed(self, closed: StudyClosed) -> None:
        for order in self.journal.open_orders():
            if order.study == closed.study:
                self.journal.advance(order.collection, Heard.ROUND_OVER)
                self.unwanted(order.collection)
        if self.journal.plan(closed.study) is not None:
            self.journal.set_plan(closed.study, "closed", reason=closed.code)
        shutil.rmtree(self.folder.cache / closed.study, ignore_errors=True)
        forget_results(self.folder, closed.study, keep_model=None)
        _log.info("study %s is closed (%s); its cached images were removed", closed.study, closed.code)


def forget_results(folder: StateFolder, study: str, *, keep_model: str | None) -> None:
    """Remove vectors that were sent or left out, and global models that were replaced."""
    shutil.rmtree(folder.work / study, ignore_errors=True)
    for model in folder.models.glob(f"{study}.*"):
        if keep_model is None or keep_model.removeprefix("sha256:") not in model.name:
            model.unlink(missing_ok=True)
