"""What arrives: forged mail stops the agent, genuine mail is acted on once, and nothing is acted on by halves."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from boundary.api import Delivery
from boundary.canonical import digest
from boundary.envelope import seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import BlobRef, MaskedVector, PlanProposed, Refused, RoundCommitted, StudyClosed
from boundary.names import COORDINATOR
from boundary.protocol import Step
from silo_agent.errors import WrongCoordinator
from silo_agent.results import StoredResult, carried, home_of

NEXT_MODEL = BlobRef(digest=digest(b"the next model"), size=9)


def committed(
    site: Any, number: int = 1, contributing: tuple[str, ...] = ("charite", "karolinska", "utrecht")
) -> RoundCommitted:
    said: RoundCommitted = site.committed(number, contributing)
    return said


# --- whose words -------------------------------------------------------------------------------------
def by_a_stranger(site: Any) -> bytes:
    return seal_envelope(
        site.order(), sender=COORDINATOR, recipient="st-olavs", sent_at=site.now, key=SigningIdentity.generate()
    ).data


def by_another_hospital_in_the_coordinators_name(site: Any) -> bytes:
    data: bytes = site.coordinator.says(site.order()).data
    return data.replace(b'"v":1', b'"v":1').replace(b'"round":1', b'"round":2')


FORGED: dict[str, Callable[[Any], bytes]] = {
    "signed with another key": by_a_stranger,
    "changed after it was signed": by_another_hospital_in_the_coordinators_name,
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_message_stops_the_agent(site: Any, forge: Callable[[Any], bytes]) -> None:
    site.approve()
    with pytest.raises(WrongCoordinator, match="compare the coordinator's fingerprint by telephone") as stopped:
        site.mailroom.take(Delivery(sequence=9, envelope=forge(site)))
    assert stopped.value.exit_code == 4
    assert site.mailroom.cursor < 9
    assert site.journal.orders_of(site.study) == []


IGNORED: dict[str, Callable[[Any], bytes]] = {
    "not an envelope": lambda _: b'{"v":1}',
    "not JSON": lambda _: b"\x00\xff",
    "an envelope for another hospital": lambda site: site.coordinator.says(site.order(), to="charite").data,
}


@pytest.mark.parametrize("data", IGNORED.values(), ids=IGNORED)
def test_what_is_not_for_us_or_no_message_is_passed_over(site: Any, data: Callable[[Any], bytes]) -> None:
    site.approve()
    site.mailroom.take(Delivery(sequence=9, envelope=data(site)))
    assert site.mailroom.cursor == 9
    assert site.journal.orders_of(site.study) == []


# --- once, and in order ------------------------------------------------------------------------------
def test_the_same_delivery_again_changes_nothing(site: Any) -> None:
    site.approve()
    delivery = site.hear(site.order())
    before = list(site.journal._db.iterdump())
    site.mailroom.take(delivery)
    assert list(site.journal._db.iterdump()) == before


def test_the_cursor_never_goes_back(site: Any) -> None:
    site.approve()
    delivery = site.hear(site.order())
    site.mailroom.take(Delivery(sequence=1, envelope=delivery.envelope))
    assert site.mailroom.cursor == delivery.sequence


def test_an_order_again_under_a_new_number_is_known_by_its_collection(site: Any) -> None:
    site.approve()
    kept = site.masked()
    left = len(site.outbox())
    site.mailroom.take(Delivery(sequence=100, envelope=kept.envelope))
    assert (len(site.outbox()), site.kept()) == (left, kept)


def test_effect_and_cursor_are_one_transaction(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    order = site.order()
    cursor, events = site.mailroom.cursor, site.events()

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.journal.__class__, "set_fact", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.hear(order)
    monkeypatch.undo()
    assert (site.mailroom.cursor, site.journal.orders_of(site.study), site.events()) == (cursor, [], events)


def test_a_second_different_order_for_one_collection_is_ignored(site: Any) -> None:
    site.approve()
    first = site.ordered()
    second = site.ordered(due=site.now + timedelta(hours=9))
    assert second == first


# --- plans -------------------------------------------------------------------------------------------
def test_a_proposal_waits_for_our_own_people(site: Any) -> None:
    site.propose()
    assert site.journal.plan(site.study).state == "received"
    assert site.outbox() == []


def test_an_unsuitable_proposal_is_declined_with_a_code_and_no_word_more(site: Any, make_plan_for: Any) -> None:
    site.plan = make_plan_for(site.cards[1:])
    site.propose()
    assert [(message.kind, message.code) for message in site.outbox()] == [("plan-declined", "UNSUITABLE_PLAN")]


def test_a_replayed_proposal_cannot_undo_an_approval(site: Any) -> None:
    """Found by attack: an old proposal that no longer fits the roster declined the approved plan."""
    site.approve()
    site.roster = site.roster.update(site.coordinator.roster(*site.cards[:-1], version=2).data, site.now)
    site.propose()
    misnamed = PlanProposed(study=site.study, plan=site.plan.model_copy(update={"revision": 2}))
    site.hear(misnamed)
    assert site.journal.plan(site.study).state == "approved"
    assert [message.kind for message in site.outbox()] == ["plan-approved"]


# --- orders ------------------------------------------------------------------------------------------
def test_an_order_that_is_refused_is_answered_with_a_code_and_a_reference(site: Any) -> None:
    site.propose()
    kept = site.ordered()
    *before, refused = site.outbox()
    assert [message.kind for message in before] == ["heads-cosigned"]
    assert isinstance(refused, Refused)
    assert (kept.step, refused.code, refused.retryable) == (Step.REFUSED, "NOT_APPROVED", False)
    assert site.events() == ["plan-received", "heads-witnessed", "work-refused"]


def test_a_newer_attempt_ends_the_older_one_wherever_it_stands(site: Any) -> None:
    """Found by attack: a vector for an attempt that was given up still waited to leave."""
    site.approve()
    old = site.masked(1, attempt=1)
    site.ordered(1, attempt=2)
    assert site.kept(1, attempt=1).step is Step.OVER
    assert old.collection not in site.unwanted, "the same work on the same model is let be finished"
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved", "heads-cosigned"]


def test_the_order_for_a_newer_round_stops_the_work_of_an_older_one(site: Any) -> None:
    site.approve()
    old = site.ordered(1)
    site.ordered(2)
    assert site.kept(1).step is Step.OVER
    assert old.collection in site.unwanted


# --- masked sums -------------------------------------------------------------------------------------
def test_a_vector_leaves_after_the_cohort_closed_with_us_and_its_shares_were_dealt(site: Any) -> None:
    site.approve()
    kept = site.masked()
    vector = site.outbox()[-1]
    assert isinstance(vector, MaskedVector)
    assert (kept.step, vector.order) == (Step.MASKED, kept.digest)
    assert site.events() == [
        "plan-received", "plan-approval-given", "heads-witnessed", "work-done", "secrets-shared",
        "contribution-released",
    ]  # fmt: skip


def test_a_whole_round_says_five_things_besides_what_it_says_of_logs(site: Any) -> None:
    site.approve()
    kept = site.revealed()
    assert [message.kind for message in site.outbox()] == [
        "plan-approved", "heads-cosigned", "ready", "shares", "masked-vector", "survivors-seen", "shares-revealed",
    ]  # fmt: skip
    assert kept.step is Step.REVEALED
    assert site.unwanted == []


def test_a_cohort_without_us_stops_the_work(site: Any) -> None:
    site.approve()
    kept = site.ordered()
    site.hear(site.closing(kept, members=("charite", "karolinska", "utrecht"), absent=("st-olavs",)))
    assert site.kept().step is Step.LEFT_OUT
    assert kept.collection in site.unwanted
    assert [message.kind for message in site.outbox()] == ["plan-approved", "heads-cosigned"]


ENDS: dict[str, Callable[[Any], Any]] = {
    "another attempt is ordered": lambda site: site.ordered(1, attempt=2),
    "the next round is ordered": lambda site: site.ordered(2),
    "the round is committed": lambda site: site.hear(committed(site)),
    "the study is closed": lambda site: site.hear(StudyClosed(study=site.study, code="COMPLETED")),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_the_secrets_of_a_sum_go_with_it(site: Any, end: Callable[[Any], Any]) -> None:
    site.approve()
    shown = site.agreement(site.agreed())
    assert list(site.sums._attempts) == [str(shown.collection)]
    end(site)
    assert site.sums._attempts == {}
    assert site.kept().step is Step.OVER
    said = len(site.outbox())
    site.hear(shown)
    assert len(site.outbox()) == said, "what would have unmasked it is not said any more"


def test_a_steward_who_stops_the_study_keeps_finished_work_here(site: Any) -> None:
    site.approve()
    kept = site.ready()
    site.outbound.decline(site.study, site.journal.plan(site.study).digest, "DECLINED_BY_STEWARD", "stop")
    site.hear(site.closing(kept))
    said = [message.kind for message in site.outbox()]
    assert said == ["plan-approved", "heads-cosigned", "ready", "plan-declined", "refused"]


def without_its_vector(result: Path) -> None:
    (result / "vector").unlink()


def with_half_its_vector(result: Path) -> None:
    (result / "vector").write_bytes(bytes(8))


def with_more_than_its_vector(result: Path) -> None:
    with (result / "vector").open("ab") as file:
        file.write(bytes(4))


def with_what_is_no_number(result: Path) -> None:
    (result / "vector").write_bytes(b"\xff" * (result / "vector").stat().st_size)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "is gone": (without_its_vector, "INTERNAL"),
    "was cut by a power failure": (with_half_its_vector, "BAD_TENSORS"),
    "is longer than the plan's layout": (with_more_than_its_vector, "BAD_TENSORS"),
    "holds NaN": (with_what_is_no_number, "BAD_TENSORS"),
}


@pytest.mark.parametrize(("spoil", "code"), SPOILT.values(), ids=SPOILT)
def test_a_stored_vector_that_is_spoilt_is_a_refusal_and_not_the_end_of_the_agent(
    site: Any, spoil: Callable[[Path], None], code: str
) -> None:
    site.approve()
    kept = site.shared()
    spoil(Path(kept.result))
    site.hear(site.routing(kept))
    assert site.kept().step is Step.REFUSED
    assert site.outbox()[-1].code == code
    assert list(site.folder.work.rglob("*.masked")) == []


def test_a_full_disk_while_masking_is_a_refusal_and_leaves_no_file(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    told = site.routing(site.shared())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    site.hear(told)
    monkeypatch.undo()
    refused = site.outbox()[-1]
    assert (refused.code, refused.retryable) == ("DISK_FULL", True)
    assert list(site.folder.work.rglob("*.masked")) == []


# --- the end -----------------------------------------------------------------------------------------
def test_a_committed_round_ends_its_orders_and_removes_its_files(site: Any) -> None:
    site.approve()
    site.masked(1)
    site.ready(1, phase="evaluate")
    (site.folder.models / f"{site.study}.{NEXT_MODEL.digest[7:]}.safetensors").touch()
    (site.folder.models / f"{site.study}.{'0' * 64}.safetensors").touch()
    site.hear(committed(site))
    assert {kept.step for kept in site.journal.orders_of(site.study)} == {Step.OVER}
    assert list(site.folder.work.rglob("*.*")) == []
    assert [path.name[-20:] for path in site.folder.models.iterdir()] == [f"{NEXT_MODEL.digest[-8:]}.safetensors"]
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved", "heads-cosigned", "trail-shown"]


@pytest.mark.parametrize("contributed", [True, False], ids=["in the sum", "left out"])
def test_what_a_round_did_not_send_is_carried_over_if_the_rest_was_summed(site: Any, contributed: bool) -> None:
    site.approve()
    kept = site.ready()
    places = {name: carried(site.folder, site.study, f".{name}") for name in ("residual", "home", "control")}
    for name, before in places.items():
        (Path(kept.result) / f"vector.{name}").write_bytes(b"left over now")
        before.write_bytes(b"left over before")
    assert home_of(site.folder, site.study, 1, "evaluate") == Path(kept.result) / "vector.home"
    site.hear(committed(site, contributing=(site.own().silo,) if contributed else ()))
    for before in places.values():
        assert before.read_bytes() == (b"left over now" if contributed else b"left over before")
    assert home_of(site.folder, site.study, 1, "evaluate") == places["home"]
    assert not Path(kept.result).exists()


def test_a_replayed_commit_of_an_old_round_leaves_newer_work_alone(site: Any) -> None:
    """Found by attack: it removed the finished result of the round in progress."""
    site.approve()
    site.masked(1)
    site.hear(committed(site, 1))
    kept = site.ready(2)
    site.hear(committed(site, 1))
    assert StoredResult.load(Path(kept.result)).layout.weights == 7
    assert site.kept(2).step is Step.READY
    site.hear(site.closing(kept))
    assert site.kept(2).step is Step.SHARED


def test_an_order_for_a_committed_round_is_refused(site: Any) -> None:
    site.approve()
    site.masked(1)
    site.hear(committed(site, 1))
    assert site.ordered(1, attempt=2).step is Step.REFUSED


def test_a_replayed_commit_does_not_open_a_round_again(site: Any) -> None:
    site.approve()
    site.hear(committed(site, 2))
    site.hear(committed(site, 1))
    assert site.ordered(2).step is Step.REFUSED


def test_files_go_only_after_the_journal_no_longer_counts_on_them(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    kept = site.masked(1)
    masked = Path(site.journal.waiting()[-1].blob_path)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.journal.__class__, "set_fact", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.hear(committed(site))
    monkeypatch.undo()
    assert masked.exists()
    assert site.kept(1) == kept


def test_a_closed_study_leaves_nothing_behind_and_nothing_waiting(site: Any) -> None:
    """Found: a vector still waited whose file was removed, and the agent ended when it was its turn."""
    site.approve()
    site.masked(1)
    for place in (site.folder.cache / site.study, site.folder.cache / f".{site.study}.partial"):
        place.mkdir()
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))
    assert site.journal.plan(site.study).state == "closed"
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved", "heads-cosigned"]
    assert site.study in site.unwanted
    assert [one.name for one in (*site.folder.cache.iterdir(), *site.folder.work.iterdir())] == [".lock"]


def test_a_study_we_never_heard_of_may_be_closed(site: Any) -> None:
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))
    assert site.journal.plans() == []


def test_what_only_hospitals_say_is_not_for_us_to_hear(site: Any) -> None:
    site.approve()
    refused = Refused(
        collection=site.collection(), order=site.ordered().digest, code="STALE", reference="0" * 12, retryable=False
    )
    key = site.coordinator.key
    data = seal_envelope(refused, sender="charite", recipient="st-olavs", sent_at=site.now, key=key).data
    with pytest.raises(WrongCoordinator, match="in the name of 'charite'"):
        site.mailroom.take(Delivery(sequence=50, envelope=data))
