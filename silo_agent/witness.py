"""The hospital as a witness: it shows how its own log goes on, verifies everybody's, cosigns them, and remembers.

What does not fit is an incident: it is kept with the signed heads, the coordinator is told, and no order is taken until
a person here has closed it. Among the logs that are shown is our own: if it has entries that we do not have, our
journal was restored from an older copy, and with it the ledger of what was spent.

What was shown while something did not fit is kept: when a person has closed the incidents about it, it is cosigned at
the next order, so that the round it was shown for can be gone on with.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from boundary.agreement import Disclosed
from boundary.canonical import canonical_bytes, parse_json
from boundary.checkpoint import Checkpoint, Cosignature, log_name
from boundary.errors import BoundaryError, OutOfTurn, PeerFault, UnknownMember
from boundary.identity import PublicIdentity
from boundary.messages import (
    MAX_SHOWN_ENTRIES,
    CosignedHead,
    HeadsCosigned,
    HeadsShown,
    LogDisputed,
    RoundCommitted,
    ShownHead,
    TrailAsked,
    TrailShown,
    WorkOrder,
    from_body,
    to_body,
)
from boundary.names import COORDINATOR
from boundary.receipt import Receipt
from boundary.secagg.context import transcript_of
from compliance.disclosure import shown as as_shown
from compliance.events import HeadsWitnessed, IncidentClosed, IncidentOpened, ReceiptSigned
from compliance.witnessing import Contradiction, LogForked, LogInDoubt, LogShrunk, judge, seen
from silo_agent.inbound import OwnSide
from silo_agent.journal import Incident, Journal, KeptPlan
from silo_agent.outbound import Outbound

_log = logging.getLogger("silo_agent.witness")
_SHOWN = "trail shown"  # how many entries of our trail the coordinator was shown
_MAX_SHOWN_BYTES = 1024 * 1024  # of entries in one message; the rest goes with the next
ACCEPTED = "ACCEPTED"


@dataclass(frozen=True, slots=True)
class Witness:
    """Every method is called inside the transaction of the message it is about."""

    journal: Journal
    outbound: Outbound
    own: Callable[[], OwnSide]

    # --- our own log ---------------------------------------------------------------------------------
    def show(self, committed: RoundCommitted) -> None:
        """After a round: what our log has got since, its head, and our name under the receipt if our work is in it."""
        kept = self._taking_part(committed.study)
        if kept is None:
            return
        self._show(committed.study, committed.round, self._receipt(committed, kept))

    def answer(self, asked: TrailAsked) -> None:
        """Behind the last round: what our log has got since. As of each round it is shown once."""
        study, done = asked.study, f"end shown {asked.study}"
        kept = self._taking_part(study)
        if kept is None:
            return
        rounds = kept.parsed.training.rounds
        if asked.round <= max(rounds, self.journal.committed_round(study), int(self.journal.fact(done) or b"0")):
            _log.warning("%s/%d: our log was asked for as of a round that is over or to come", study, asked.round)
            return
        self.journal.set_fact(done, str(asked.round).encode())
        self._show(study, asked.round, None)

    def _taking_part(self, study: str) -> KeptPlan | None:
        """The plan, once our steward has approved it."""
        kept = self.journal.plan(study)
        return kept if kept is not None and kept.state in {"approved", "closed"} else None

    def _show(self, study: str, number: int, signature: bytes | None) -> None:
        first = 1 + int((self.journal.fact(_SHOWN) or b"0").decode())
        entries = self._entries(first, study)
        size = first - 1 + len(entries)
        if size == 0:
            return
        checkpoint = Checkpoint.sign(self.own().silo, size, self.journal.trail_root(size), self.outbound.key)
        self.journal.set_fact(_SHOWN, str(size).encode())
        self.outbound.say(
            TrailShown(
                study=study,
                round=number,
                checkpoint=checkpoint,
                first=first,
                entries=tuple(entries),
                receipt=signature,
            )
        )

    def _entries(self, first: int, study: str) -> list[bytes]:
        found: list[bytes] = []
        size, disclosed = 0, cache(self._disclosed)
        for leaf in self.journal.trail(after=first - 1)[:MAX_SHOWN_ENTRIES]:
            entry = as_shown(leaf, lambda about: disclosed(about or study))
            size += len(entry)
            if size > _MAX_SHOWN_BYTES:
                break
            found.append(entry)
        return found

    def _disclosed(self, study: str) -> frozenset[Disclosed]:
        """What the plan asks to be shown, once our steward has approved it: a proposal alone opens nothing."""
        kept = self.journal.plan(study)
        if kept is None or kept.approval is None:
            return frozenset()
        return frozenset(kept.parsed.evidence.disclose)

    def _receipt(self, committed: RoundCommitted, kept: KeptPlan) -> bytes | None:
        """Our signature, None if our work is not in the round or the coordinator's statement is not what we know."""
        silo, study, number = self.own().silo, committed.study, committed.round
        if silo not in committed.contributing:
            return None
        models = {  # of orders that were worked on: one that was refused may have named any model
            parse_json(order.envelope)["body"]["model"]["digest"]
            for order in self.journal.orders_of(study)
            if (order.round, order.phase) == (number, "train") and order.result is not None
        }
        sums: dict[str, frozenset[str]] = {
            transcript_of(survivors, committed.tried or committed.model.digest): silos
            for survivors, silos in self.journal.agreed(study, number).items()
        }
        if sorted(sums.get(committed.transcript, frozenset())) != sorted(committed.contributing) or not models:
            _log.error("round %d of %s: no sum of these that we agreed to gave this model; no receipt", number, study)
            return None
        if committed.tried is not None and committed.model.digest not in models:
            _log.error("round %d of %s: rolled back to a model that it did not begin with; no receipt", number, study)
            return None
        receipt = Receipt(
            study=study,
            plan_digest=kept.digest,
            round=number,
            model_in=next(iter(models)),
            model_out=committed.model.digest,
            tried=committed.tried,
            transcript=committed.transcript,
            contributing=committed.contributing,
            absent=committed.absent,
        )
        try:
            receipt.check(committed.receipt, self.own().roster.roster.coordinator.identity)
        except PeerFault as why:
            _log.error("round %d of %s: the coordinator's receipt is not about what we did: %s", number, study, why)
            return None
        self.journal.record(ReceiptSigned(study=study, round=number, receipt=receipt.digest), self.own().now)
        return receipt.sign(self.outbound.key)

    # --- everybody's ---------------------------------------------------------------------------------
    def hear(self, told: HeadsShown) -> None:
        """Verify all heads, then cosign all of them; or open an incident about each that does not fit.

        Those that do fit are remembered even then: the next proofs begin where these heads end.
        """
        kept = self.journal.plan(told.study)
        if kept is None:
            _log.warning("logs were shown for %s, which was never proposed here", told.study)
            return
        if self._is_in_doubt(told, anew=False):
            self.journal.set_fact(_held(told.study), canonical_bytes(to_body(told)))
            return
        omitted = self._omitted(told, kept)
        if omitted:
            _log.error("%s/%d: the logs of %s were not shown again", told.study, told.round, ", ".join(omitted))
            return
        self._cosign(told)

    def _is_in_doubt(self, told: HeadsShown, *, anew: bool) -> bool:
        """Judge all heads and remember those that fit. With `anew` as if none were known.

        The coordinator's first, then ours: who shows an older copy of everything is to be blamed, not whom it is of.
        """
        first, is_doubted = (COORDINATOR, self.own().silo), False
        for head in sorted(told.heads, key=lambda head: (*(head.checkpoint.log != log for log in first),)):
            known = None
            try:
                name = self._name(head.checkpoint.log)
                known = self.journal.head(name)
                self._judge(head, None if anew else known)
            except BoundaryError as why:
                self._open_incident(told, head.checkpoint, known, why)
                is_doubted = True
            else:
                if known is None or known.size < head.checkpoint.size:
                    self.journal.keep_head(name, head.checkpoint)
        return is_doubted

    def _cosign(self, told: HeadsShown) -> None:
        own = self.own()
        now, key = own.now, self.outbound.key
        cosigned = []
        for head in told.heads:
            checkpoint = head.checkpoint
            said = Cosignature.sign(checkpoint, self._key(checkpoint.log), own.silo, key, now)
            cosigned.append(CosignedHead(log=checkpoint.log, size=checkpoint.size, cosignature=said))
        self.journal.record(
            HeadsWitnessed(
                study=told.study, round=told.round, heads=tuple(seen(head.checkpoint) for head in told.heads)
            ),
            now,
        )
        self.journal.set_fact(
            _heads_of(told.study), canonical_bytes({"round": told.round, "heads": told.digest})
        )  # fmt: skip
        self.journal.set_fact(_held(told.study), b"")
        self.outbound.say(
            HeadsCosigned(study=told.study, round=told.round, heads=told.digest, cosigned=tuple(cosigned))
        )

    def _omitted(self, told: HeadsShown, kept: KeptPlan) -> list[str]:
        """Whose logs are missing: the coordinator's, or one of the plan that we know of. None can be hidden later."""
        shown = {head.checkpoint.log for head in told.heads}
        silos = kept.parsed.silos
        return [party for party in (COORDINATOR, *silos) if party not in shown and self._is_expected(party)]

    def _is_expected(self, party: str) -> bool:
        try:
            return party == COORDINATOR or self.journal.head(self._name(party)) is not None
        except UnknownMember:
            return False

    def _judge(self, head: ShownHead, known: Checkpoint | None) -> None:
        checkpoint = head.checkpoint
        judge(known, checkpoint, head.proof, self._key(checkpoint.log))
        if checkpoint.log == self.own().silo:
            if checkpoint.size > self.journal.trail_size:
                raise LogShrunk(
                    f"our own log had {checkpoint.size} entries and has {self.journal.trail_size}: the journal was "
                    "restored from an older copy, and what was spent since is not in its ledger"
                )
            if self.journal.trail_root(checkpoint.size) != checkpoint.root_bytes:
                raise LogForked("our own log is another one than was shown in our name")

    def _key(self, log: str) -> PublicIdentity:
        roster = self.own().roster.roster
        return roster.coordinator.identity if log == COORDINATOR else roster.member(log).identity

    def _name(self, log: str) -> str:
        """A hospital that enrols with a new key begins a new log. Raises `UnknownMember`."""
        return COORDINATOR if log == COORDINATOR else log_name(log, self._key(log))

    def _open_incident(
        self, told: HeadsShown, shown: Checkpoint, known: Checkpoint | None, why: BoundaryError
    ) -> None:  # fmt: skip
        found, now = Contradiction(known=known, shown=shown), self.own().now
        number = self.journal.open_incident(shown.log, why.code, found.data, now)
        _log.critical(
            "incident %d: the log of %s is not what it was (%s: %s). No order is taken until somebody has looked into "
            "it: silo-agent incidents", number, shown.log, why.code, why,
        )  # fmt: skip
        self.journal.record(IncidentOpened(incident=number, log=shown.log, code=why.code, evidence=found.digest), now)
        if known is not None:
            self.outbound.say(LogDisputed(study=told.study, round=told.round, code=why.code, known=known, shown=shown))

    # --- before work ---------------------------------------------------------------------------------
    def check(self, order: WorkOrder) -> None:
        """Raises `LogInDoubt` while an incident is open, `OutOfTurn` for an order on other logs than we cosigned."""
        self._expect_no_doubt()
        study = order.collection.study
        if not self._stands(order) and (held := self.journal.fact(_held(study))):
            told = from_body(HeadsShown.kind, parse_json(held))
            if isinstance(told, HeadsShown) and not self._is_in_doubt(told, anew=True):
                self._cosign(told)
            self._expect_no_doubt()
        if not self._stands(order):
            raise OutOfTurn("the order stands on other logs than this hospital was shown and cosigned")

    def _expect_no_doubt(self) -> None:
        for doubt in self.journal.incidents(only_open=True):
            raise LogInDoubt(f"incident {doubt.incident} about the log of {doubt.log} is open")

    def _stands(self, order: WorkOrder) -> bool:
        """Whether the order is bound to what we cosigned last, after the round before it."""
        fact = self.journal.fact(_heads_of(order.collection.study))
        said = {} if fact is None else parse_json(fact)
        return (said.get("round"), said.get("heads")) == (order.collection.round - 1, order.heads)


def close_incident(journal: Journal, number: int, now: datetime) -> Incident:
    """A person has looked into it: the log is believed anew, from what it is shown as next. Raises `ConfigError`."""
    with journal.transaction():
        closed = journal.close_incident(number, now)
        journal.record(IncidentClosed(incident=number, decision=ACCEPTED), now)
    return closed


def _heads_of(study: str) -> str:
    return f"heads {study}"


def _held(study: str) -> str:
    """What was shown while something in it did not fit."""
    return f"heads in doubt {study}"
