"""The coordinator among the logs: takes in how the hospitals' go on, shows everybody everybody's, keeps what they sign.

It holds the hash of every entry of every log, so it can prove to each hospital that a log goes on from whatever that
hospital was last told of it. Whether it does is for the hospital to find out; what does not fit here is an incident.
"""

import logging
from dataclasses import dataclass

from sqlalchemy import Connection

from boundary.checkpoint import Checkpoint, Cosignature, log_name
from boundary.envelope import Envelope
from boundary.errors import BoundaryError, PeerFault, UnknownMember
from boundary.identity import PublicIdentity
from boundary.messages import HeadsCosigned, HeadsShown, LogDisputed, ShownHead, TrailShown, heads_digest, study_of
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.receipt import Receipt
from compliance.disclosure import hash_of
from compliance.events import HeadsWitnessed
from compliance.merkle import HASH_BYTES, BrokenProof
from compliance.records import RoundRecord
from compliance.trail import read_leaf
from compliance.witnessing import Contradiction, LogForked, LogInDoubt, LogShrunk, seen
from flows.desk import Desk
from flows.store import audit, rounds, witnessed
from flows.store.logs import Log
from flows.store.studies import Study

_log = logging.getLogger("flows.trails")
_KINDS = (TrailShown.kind, HeadsCosigned.kind, LogDisputed.kind)


@dataclass
class Trails:
    """The logs of one study's parties. Call every method in a transaction from `database.writing`."""

    desk: Desk
    study: Study
    _taken: int = 0  # the last envelope that was looked at; what was looked at before changes nothing

    # --- what hospitals say --------------------------------------------------------------------------
    def take_in(self, connection: Connection) -> None:
        """Everything of logs that hospitals have said since the last time.

        A hospital has one log and shows it in all its studies: what it showed in another one comes first if it did so.
        """
        heard = self.desk.heard_since(connection, _KINDS, None, self._taken)
        for _, envelope in heard:
            is_ours = study_of(envelope.message) == self.study.study
            match envelope.message:
                case TrailShown() as said:
                    self._take_trail(connection, envelope, said)
                    if is_ours:
                        self._take_receipt(connection, envelope.sender, said)
                case HeadsCosigned() as said if is_ours:
                    self._take_cosignatures(connection, envelope.sender, said)
                case LogDisputed() as said if is_ours:
                    self._take_dispute(connection, envelope.sender, said)
                case _:  # the driver of that study hears it
                    pass
        self._taken = heard[-1][0] if heard else self._taken  # not before all of it: it may be undone and heard again

    def check(self, connection: Connection) -> None:
        """Raises `LogInDoubt` while an incident is open."""
        for incident in witnessed.open_ones(connection):
            raise LogInDoubt(
                f"incident {incident.incident} about the log of {incident.log} is open ({incident.code}): look into it "
                "with `wardround incidents`"
            )

    def _take_trail(self, connection: Connection, envelope: Envelope, said: TrailShown) -> None:
        name = self._name(envelope.sender)
        if witnessed.head_of(connection, name, said.checkpoint.size) == said.checkpoint:
            return  # taken in before
        known = witnessed.newest(connection, name)
        try:
            with connection.begin_nested():
                self._extend(connection, name, envelope.sender, said)
        except BoundaryError as why:
            _log.warning("the log of %s: %s %s", envelope.sender, why.code, why)
            found = Contradiction(known=known, shown=said.checkpoint)
            now = self.desk.now()
            witnessed.open_incident(connection, envelope.sender, why.code, found, actor=COORDINATOR, now=now)

    def _extend(self, connection: Connection, name: str, silo: str, said: TrailShown) -> None:
        """Let our copy of the log go on. Raises for whatever does not fit; then the caller undoes it."""
        log, checkpoint, now = Log(connection, name), said.checkpoint, self.desk.now()
        if checkpoint.log != silo or checkpoint.size != said.first - 1 + len(said.entries):
            raise BrokenProof("the head is of another log, or of other entries than come with it")
        checkpoint.check(self._key(silo))
        if said.first > log.size + 1:
            raise BrokenProof(f"entries {log.size + 1} to {said.first - 1} were never shown")
        known = log.size + 1 - said.first
        hashes = [hash_of(entry) for entry in said.entries]
        if hashes[:known] != log.hashes(said.first - 1, min(log.size, checkpoint.size)):
            raise LogForked("entries that were shown before are others now")
        if checkpoint.size < log.size:
            raise LogShrunk(f"{log.size} entries were shown before, now there are {checkpoint.size}")
        leaves = {
            number: entry
            for number, entry in enumerate(said.entries, said.first)
            if len(entry) > HASH_BYTES and number > log.size
        }
        for number, entry in leaves.items():
            leaf = read_leaf(entry)
            if (leaf.log, leaf.sequence) != (silo, number):
                raise BrokenProof(f"entry {number} says it is number {leaf.sequence} of {leaf.log}")
        log.extend(hashes[known:])
        if log.root() != checkpoint.root_bytes:
            raise BrokenProof("the signed root is not that of the entries")
        witnessed.keep_entries(connection, name, leaves)
        witnessed.keep(connection, name, checkpoint, now)
        cosignature = Cosignature.sign(checkpoint, self._key(silo), COORDINATOR, self.desk.key, now)
        witnessed.keep_cosignature(connection, name, checkpoint.size, cosignature)

    def _take_receipt(self, connection: Connection, silo: str, said: TrailShown) -> None:
        record = None if said.receipt is None else rounds.committed_one(connection, self.study.study, said.round)
        if said.receipt is None or record is None:
            return
        try:
            receipt_of(record, self.study.plan_digest).check(said.receipt, self._key(silo))
        except PeerFault as why:
            _log.warning("round %d: the receipt of %s: %s", said.round, silo, why)
            return
        witnessed.keep_receipt(connection, self.study.study, said.round, silo, said.receipt)

    def _take_cosignatures(self, connection: Connection, silo: str, said: HeadsCosigned) -> None:
        for one in said.cosigned:
            try:
                name = self._name(one.log)
                head = witnessed.head_of(connection, name, one.size)
                if head is None or one.cosignature.witness != silo:
                    raise UnknownMember("a head that was not shown, or in another's name")
                one.cosignature.check(head, self._key(one.log), self._key(silo))
            except (PeerFault, KeyError) as why:
                _log.warning("a cosignature of %s for the log of %s was set aside: %s", silo, one.log, why)
            else:
                witnessed.keep_cosignature(connection, name, one.size, one.cosignature)

    def _take_dispute(self, connection: Connection, silo: str, said: LogDisputed) -> None:
        """Both heads are signed by the log's owner and one of them is not of the log we hold: that is an incident.

        If both are, there is nothing in it, and the hospital has looked wrong or is lying.
        """
        try:
            name, key = self._name(said.shown.log), self._key(said.shown.log)
            log = Log(connection, name)
            for head in (said.known, said.shown):
                head.check(key)
            is_true = all(
                head.size <= log.size and log.root(head.size) == head.root_bytes for head in (said.known, said.shown)
            )
        except (PeerFault, KeyError) as why:
            _log.warning("a dispute of %s was set aside: %s", silo, why)
            return
        if is_true:
            _log.error("%s disputes a log of %s that is sound: %s", silo, said.shown.log, said.code)
            return
        found = Contradiction(known=said.known, shown=said.shown)
        witnessed.open_incident(connection, said.shown.log, said.code, found, actor=silo, now=self.desk.now())

    # --- what hospitals are told ---------------------------------------------------------------------
    def show(self, connection: Connection, number: int, silos: tuple[str, ...]) -> str:
        """Tell these hospitals of all logs as they are after round `number`; returns what orders are bound to.

        What was told before for this round counts, for whom was not told of it then too.
        """
        slot = f"{self.study.study}/{number}"
        told = {silo: self.desk.told(connection, silo, HeadsShown.kind, slot) for silo in silos}
        before = next((said for said in told.values() if isinstance(said, HeadsShown)), None)
        if before is None:
            heads = self._heads(connection, number)
        else:
            heads = {self._name(head.checkpoint.log): head.checkpoint for head in before.heads}
        for silo in silos:
            if told[silo] is None:
                self._tell(connection, silo, number, heads)
        return heads_digest(heads.values())

    def _tell(self, connection: Connection, silo: str, number: int, heads: dict[str, Checkpoint]) -> None:
        known, shown = witnessed.last_shown(connection, silo), []
        if any(known.get(name, 0) > checkpoint.size for name, checkpoint in heads.items()):
            return  # of more than that, in another study: to it these logs would have shrunk
        for name, checkpoint in heads.items():
            proof = Log(connection, name).proof(known.get(name, 0), checkpoint.size)
            shown.append(ShownHead(checkpoint=checkpoint, proof=tuple(proof)))
            witnessed.mark_shown(connection, silo, name, checkpoint.size)
        self.desk.tell(connection, silo, HeadsShown(study=self.study.study, round=number, heads=tuple(shown)))

    def _heads(self, connection: Connection, number: int) -> dict[str, Checkpoint]:
        """Each log's newest head by the log's name, ours last: it covers that we witnessed the others."""
        found = {}
        for silo in self.study.plan.silos:
            newest = witnessed.newest(connection, self._name(silo))
            if newest is not None:
                found[self._name(silo)] = newest
        now = self.desk.now()
        heads = tuple(seen(head) for head in found.values())
        event = HeadsWitnessed(study=self.study.study, round=number, heads=heads)
        audit.append(connection, event, actor=COORDINATOR, now=now)
        own, name = audit.head(connection, self.desk.key), self._name(COORDINATOR)
        witnessed.keep(connection, name, own, now)
        return found | {name: own}

    # --- names and keys ------------------------------------------------------------------------------
    def _key(self, party: str) -> PublicIdentity:
        return self.desk.key.public if party == COORDINATOR else self.study.plan.keys[party]

    def _name(self, party: str) -> str:
        return name_of(self.study.plan, party)


def name_of(plan: StudyPlan, party: str) -> str:
    """Under which name a party's log is kept; raises `KeyError`."""
    return COORDINATOR if party == COORDINATOR else log_name(party, plan.keys[party])


def receipt_of(record: RoundRecord, plan_digest: str) -> Receipt:
    return Receipt(
        study=record.study,
        plan_digest=plan_digest,
        round=record.round,
        model_in=record.model_in,
        model_out=record.model_out.digest,
        tried=None if record.tried is None else record.tried.digest,
        transcript=record.transcript,
        contributing=record.contributing,
        absent=tuple(sorted(record.absent)),
    )
