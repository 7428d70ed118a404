"""What arrives, turned into journal entries: verified, judged, answered, in one transaction with the cursor.

So an envelope is acted on once: after a crash it is either wholly in the journal or will be read again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from boundary.api import Delivery
from boundary.canonical import canonical_bytes
from boundary.envelope import Envelope, open_envelope
from boundary.errors import BadSignature, PeerFault
from boundary.messages import (
    AgreementShown,
    CohortClosed,
    Collection,
    HeadsShown,
    PlanProposed,
    RoundCommitted,
    SharesRouted,
    StudyClosed,
    SurvivorsNamed,
    TrailAsked,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import digest_of, to_json
from boundary.protocol import IN_MEMORY, Heard, Step
from compliance.events import DataPurged, PlanReceived, RoundReceived, StudyEnded
from silo_agent import late
from silo_agent.errors import WrongCoordinator
from silo_agent.inbound import OwnSide, check_order, check_proposal
from silo_agent.journal import Journal, KeptOrder
from silo_agent.outbound import Outbound
from silo_agent.results import carry_later, carry_over, forget_rounds, forget_study
from silo_agent.state import StateFolder
from silo_agent.sums import Sums
from silo_agent.witness import Witness

_log = logging.getLogger("silo_agent.mailroom")
CURSOR = "inbox cursor"


@dataclass(frozen=True, slots=True)
class Mailroom:
    """Handles deliveries. `own` gives what the hospital holds true now; `unwanted` stops work in progress."""

    journal: Journal
    outbound: Outbound
    sums: Sums
    witness: Witness
    folder: StateFolder
    own: Callable[[], OwnSide]
    unwanted: Callable[[str], None]

    @property
    def cursor(self) -> int:
        return int((self.journal.fact(CURSOR) or b"0").decode())

    def take(self, delivery: Delivery) -> None:
        """Act on one delivery and move the cursor. Raises `WrongCoordinator` for a forged one.

        What lies behind the cursor was acted on before: a relay that repeats itself changes nothing.
        """
        if delivery.sequence <= self.cursor:
            _log.warning("delivery %d came again and was ignored", delivery.sequence)
            return
        envelope = self._open(delivery.envelope)
        with self.journal.transaction():
            if envelope is not None:
                self._handle(envelope)
            self.journal.set_fact(CURSOR, str(delivery.sequence).encode())
        if envelope is not None:
            self._tidy(envelope)

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
            _log.warning("a message was ignored: %s %s", why.code, why)
            return None

    def _handle(self, envelope: Envelope) -> None:
        match envelope.message:
            case PlanProposed() as proposal:
                self._propose(proposal)
            case WorkOrder() as order:
                self._order(order, envelope)
            case CohortClosed() | SharesRouted() | SurvivorsNamed() | AgreementShown() as told:
                if not self.sums.hear(told):
                    self._left_out(told.collection)
            case RoundCommitted() as committed:
                self._committed(committed)
            case TrailAsked() as asked:
                self.witness.answer(asked)
            case HeadsShown() as heads:
                self.witness.hear(heads)
            case StudyClosed() as closed_study:
                self._study_closed(closed_study)
            case other:
                _log.warning("%s is not for a hospital to receive", other.kind)

    def _tidy(self, envelope: Envelope) -> None:
        """Throw away what nobody needs any more; only now, when the journal no longer counts on it."""
        match envelope.message:
            case RoundCommitted() as committed if committed.round == self.journal.committed_round(committed.study):
                carry_over(self.folder, self.journal, committed.study)
                spared = late.spared(self.journal, committed.study, committed.round)
                keep = committed.model.digest
                forget_rounds(self.folder, committed.study, committed.round, keep_model=keep, spared=spared)
            case StudyClosed() as closed:
                files, size = forget_study(self.folder, closed.study)
                if files:
                    # the exact size of a cache is a count of its images
                    roughly = 1 << (size - 1).bit_length() if size else 0
                    purged = DataPurged(study=closed.study, what="caches", files=files, bytes=roughly)
                    with self.journal.transaction():
                        self.journal.record(purged, self.own().now)
                _log.info("study %s is closed (%s); its cached images were removed", closed.study, closed.code)
            case _:
                pass

    def _propose(self, proposal: PlanProposed) -> None:
        if self.journal.plan(proposal.study) is not None:
            _log.warning("a second proposal for %s was ignored: the first one counts", proposal.study)
            return
        try:
            check_proposal(proposal.plan, proposal.study, self.own())
        except PeerFault as why:
            _log.warning("the proposed plan %s was set aside: %s %s", proposal.study, why.code, why)
            self.outbound.decline(proposal.study, digest_of(proposal.plan), "UNSUITABLE_PLAN", str(why))
            return
        now, plan_digest = self.own().now, digest_of(proposal.plan)
        self.journal.keep_plan(proposal.study, plan_digest, to_json(proposal.plan), now)
        self.journal.record(PlanReceived(study=proposal.study, plan_digest=plan_digest), now)
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
            plan, over = self.journal.plan(collection.study), self.journal.committed_round(collection.study)
            final = self.journal.committed_model(collection.study)
            check_order(order, plan, earlier, self.own(), committed=over, final=final)
            self.witness.check(order)
        except PeerFault as why:
            self.outbound.refuse(kept, collection, why.code, str(why), retryable=False)
            return
        for old in earlier:  # nothing of an older try is wanted any more, but this one's work: on the same model
            is_earlier_attempt = (old.round, old.phase) == (kept.round, kept.phase)
            if is_earlier_attempt or old.step is Step.WORKING or old.step in IN_MEMORY:
                self._end(old, goes_on=is_earlier_attempt or late.goes_on(self.journal, old, kept.round))
        _log.info("order for %s accepted", collection)

    def _committed(self, committed: RoundCommitted) -> None:
        if committed.round <= self.journal.committed_round(committed.study):
            return
        for order in self.journal.orders_of(committed.study):
            if order.round <= committed.round and order.step is not Step.OVER:
                self._end(order, goes_on=late.goes_on(self.journal, order, committed.round + 1))
        for order in late.outdated(self.journal, committed.study, committed.round + 1):
            self.unwanted(order.collection)
        self.journal.set_fact(
            f"progress {committed.study}",
            canonical_bytes({"round": committed.round, "absent": [*committed.absent], "model": committed.model.digest}),
        )
        if self.own().silo in committed.contributing and committed.tried is None:
            carry_later(self.journal, committed.study, committed.round)
        self.journal.record(
            RoundReceived(
                study=committed.study,
                round=committed.round,
                model=committed.model.digest,
                tried=committed.tried,
                transcript=committed.transcript,
                contributing=committed.contributing,
                absent=committed.absent,
            ),
            self.own().now,
        )
        self.witness.show(committed)
        if self.own().silo in committed.absent:
            _log.warning("round %s of %s was committed without us", committed.round, committed.study)
        if committed.tried is not None:
            _log.warning("round %s of %s was rolled back: its model does not count", committed.round, committed.study)

    def _left_out(self, collection: Collection) -> None:
        """The sum goes on without us. A training may still be finished for the next round."""
        order = self.journal.order(str(collection))
        if order is None or not late.goes_on(self.journal, order, order.round + 1):
            self.unwanted(str(collection))

    def _study_closed(self, closed: StudyClosed) -> None:
        for order in self.journal.orders_of(closed.study):
            self._end(order)
        self.unwanted(closed.study)
        if self.journal.plan(closed.study) is not None:
            self.journal.set_plan(closed.study, "closed", reason=closed.code)
            self.journal.record(StudyEnded(study=closed.study, reason=closed.code), self.own().now)

    def _end(self, order: KeptOrder, *, goes_on: bool = False) -> None:
        """Nobody waits for this order any more: stop the work, and what has not left by now stays here.

        With `goes_on` the work is let be finished: a new attempt wants the very result (docs/adr/0006), or the next
        round does (docs/adr/0021).
        """
        if order.step is not Step.OVER:
            self.journal.advance(order.collection, Heard.ROUND_OVER)
            self.journal.withdraw(order.collection)
            self.sums.forget(order.collection)
            if not goes_on:
                self.unwanted(order.collection)
