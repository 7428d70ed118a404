"""One slot, one envelope; and what names a blob hands over the right to read it."""

from datetime import datetime
from threading import Thread
from typing import Any

import pytest

from boundary.messages import (
    BlobRef,
    Collection,
    MaskedVector,
    RoundCommitted,
    StudyClosed,
    SurvivorsSeen,
    WorkOrder,
)
from boundary.secagg.ring import Encoding
from flows.store import holdings, mail
from flows.store.database import reading, writing
from flows.store.holdings import BlobMissing
from flows.store.mail import Posted, SlotTaken

STUDY = "ct-contrast-7f3a90c1"
COLLECTION = Collection(study=STUDY, round=3, phase="train")
DIGEST = "sha256:" + "ab" * 32
ENCODING = Encoding(exponent=20, most=3)
BLOB = BlobRef(digest="sha256:" + "cd" * 32, size=1000)


def seen(collection: Collection = COLLECTION, order: str = DIGEST) -> SurvivorsSeen:
    return SurvivorsSeen(collection=collection, order=order, survivors=DIGEST)


def contribution(blob: BlobRef = BLOB) -> MaskedVector:
    return MaskedVector(collection=COLLECTION, order=DIGEST, sharers=DIGEST, vector=blob)


def test_the_same_envelope_again_gets_the_same_receipt(federation: Any, now: datetime) -> None:
    ready = federation.party("st-olavs").says(seen())
    with writing(federation.store) as connection:
        assert mail.post(connection, ready, now=now) == Posted(ready.digest, fresh=True)
    with writing(federation.store) as connection:
        assert mail.post(connection, ready, now=now) == Posted(ready.digest, fresh=False)
        assert mail.latest_sequence(connection) == 1


def test_another_envelope_for_the_same_slot_is_refused_and_the_first_stays(federation: Any, now: datetime) -> None:
    olavs = federation.party("st-olavs")
    first = olavs.says(seen())
    second = olavs.says(seen(order="sha256:" + "ef" * 32))
    with writing(federation.store) as connection:
        mail.post(connection, first, now=now)
    with pytest.raises(SlotTaken, match="another survivors-seen"), writing(federation.store) as connection:
        mail.post(connection, second, now=now)
    with reading(federation.store) as connection:
        slot = str(COLLECTION)
        assert mail.said(connection, "coordinator", "survivors-seen", slot) == {"st-olavs": first.data}
        assert mail.latest_sequence(connection) == 1


def test_other_slots_senders_and_kinds_do_not_disturb_each_other(federation: Any, now: datetime) -> None:
    olavs, charite = federation.party("st-olavs"), federation.party("charite")
    again = COLLECTION.model_copy(update={"attempt": 2})
    with writing(federation.store) as connection:
        mail.post(connection, olavs.says(seen()), now=now)
        mail.post(connection, olavs.says(seen(again)), now=now)
        mail.post(connection, charite.says(seen()), now=now)
        assert set(mail.said(connection, "coordinator", "survivors-seen", str(COLLECTION))) == {"st-olavs", "charite"}


def test_an_inbox_is_in_order_and_bounded(federation: Any, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        federation.coordinator.says(StudyClosed(study=f"study-{number:08x}", code="FINISHED"), to="st-olavs")
        for number in range(5)
    ]
    with writing(federation.store) as connection:
        for envelope in said:
            mail.post(connection, envelope, now=now)
        mail.post(
            connection, federation.coordinator.says(StudyClosed(study=STUDY, code="FINISHED"), to="charite"), now=now
        )
    with reading(federation.store) as connection:
        found = mail.inbox(connection, "st-olavs", after=0)
        assert [delivery.envelope for delivery in found] == [envelope.data for envelope in said]
        assert [delivery.sequence for delivery in mail.inbox(connection, "st-olavs", after=2, limit=2)] == [3, 4]
        assert mail.inbox(connection, "st-olavs", after=5) == ()
        assert mail.recipients_after(connection, 5) == {"charite"}
        monkeypatch.setattr(mail, "MAX_INBOX_BYTES", 2 * len(said[0].data))
        assert len(mail.inbox(connection, "st-olavs", after=0)) == 2
        monkeypatch.setattr(mail, "MAX_INBOX_BYTES", 1)
        assert len(mail.inbox(connection, "st-olavs", after=0)) == 1


def test_a_contribution_needs_its_blob_complete_in_that_size_and_by_its_sender(federation: Any, now: datetime) -> None:
    olavs = federation.party("st-olavs")
    with pytest.raises(BlobMissing, match="upload it first"), writing(federation.store) as connection:
        mail.post(connection, olavs.says(contribution()), now=now)
    with writing(federation.store) as connection:
        holdings.record(connection, BLOB, owner="charite", now=now)
    with pytest.raises(BlobMissing), writing(federation.store) as connection:
        mail.post(connection, olavs.says(contribution()), now=now)
    with writing(federation.store) as connection:
        holdings.record(connection, BLOB, owner="st-olavs", now=now)
    larger = BLOB.model_copy(update={"size": 1001})
    with pytest.raises(BlobMissing), writing(federation.store) as connection:
        mail.post(connection, olavs.says(contribution(larger)), now=now)
    with writing(federation.store) as connection:
        assert mail.post(connection, olavs.says(contribution()), now=now).fresh
        assert holdings.may_read(connection, BLOB.digest, "coordinator")


def test_an_order_and_a_commitment_let_their_recipient_read_the_model(federation: Any, now: datetime) -> None:
    order = WorkOrder(
        collection=COLLECTION,
        plan_digest=DIGEST,
        roster_digest=DIGEST,
        model=BLOB,
        base=None,
        control=None,
        before=None,
        encoding=ENCODING,
        normalisation=None,
        heads=DIGEST,
        due=now,
    )
    done = RoundCommitted(
        study=STUDY,
        round=3,
        model=BLOB,
        tried=None,
        transcript=DIGEST,
        contributing=("st-olavs",),
        absent=(),
        receipt=bytes(64),
    )
    with writing(federation.store) as connection:
        holdings.record(connection, BLOB, owner="coordinator", now=now)
        mail.post(connection, federation.coordinator.says(order, to="st-olavs"), now=now)
        mail.post(connection, federation.coordinator.says(done, to="charite"), now=now)
        readers = {silo for silo in ("st-olavs", "charite", "ucl") if holdings.may_read(connection, BLOB.digest, silo)}
    assert readers == {"st-olavs", "charite"}


def test_an_order_lets_its_recipient_read_all_that_it_names(federation: Any, now: datetime) -> None:
    """Also the model before, which a hospital that votes and was in no round until now has not been given."""
    model, base, control, before = (
        BlobRef(digest="sha256:" + f"{number:02}" * 32, size=10 + number) for number in range(4)
    )
    order = WorkOrder(
        collection=COLLECTION.model_copy(update={"phase": "evaluate"}), plan_digest=DIGEST, roster_digest=DIGEST,
        model=model, base=base, control=control, before=before, encoding=ENCODING, normalisation=None,
        heads=DIGEST, due=now,
    )  # fmt: skip
    with writing(federation.store) as connection:
        for blob in (model, base, control, before):
            holdings.record(connection, blob, owner="coordinator", now=now)
        mail.post(connection, federation.coordinator.says(order, to="st-olavs"), now=now)
        assert all(holdings.may_read(connection, blob.digest, "st-olavs") for blob in (model, base, control, before))


def test_bytes_that_moved_are_summed(federation: Any) -> None:
    with writing(federation.store) as connection:
        assert holdings.bytes_moved(connection, "st-olavs", BLOB.digest) == (0, 0)
        holdings.moved(connection, "st-olavs", BLOB.digest, up=600)
        holdings.moved(connection, "st-olavs", BLOB.digest, up=400, down=10)
        assert holdings.bytes_moved(connection, "st-olavs", BLOB.digest) == (1000, 10)


def test_sequences_become_visible_in_their_order(federation: Any, now: datetime) -> None:
    """A reader who asks for what is behind n must never miss an n that committed late."""
    missed: list[tuple[int, int]] = []
    done = False

    def write(silo: str) -> None:
        party = federation.party(silo)
        for number in range(1, 16):
            ready = seen(Collection(study=STUDY, round=number, phase="train"))
            with writing(federation.store) as connection:
                mail.post(connection, party.says(ready), now=now)

    def watch() -> None:
        seen = 0
        while not done:
            with reading(federation.store) as connection:
                sequences = [delivery.sequence for delivery in mail.inbox(connection, "coordinator", after=seen)]
            missed.extend((seen, found) for found in sequences[:1] if found != seen + 1)
            seen = sequences[-1] if sequences else seen

    watcher = Thread(target=watch)
    writers = [Thread(target=write, args=(silo,)) for silo in ("st-olavs", "charite", "ucl")]
    for thread in (watcher, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done = True
    watcher.join()
    assert missed == []
