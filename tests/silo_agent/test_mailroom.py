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
from boundary.messages import BlobRef, Contribution, PlanProposed, Ready, Refused, RoundCommitted, StudyClosed
from boundary.names import COORDINATOR
from boundary.protocol import Step
from compliance.trail import read_leaf
from silo_agent.errors import WrongCoordinator
from silo_agent.results import StoredResult

NEXT_MODEL = BlobRef(digest=digest(b"the next model"), size=9)


def events(site: Any) -> list[str]:
    return [read_leaf(leaf).event.event for leaf in site.journal.trail()]


def committed(site: Any, number: int = 1) -> RoundCommitted:
    return RoundCommitted(
        study=site.study, round=number, model=NEXT_MODEL, contributing=("charite", "karolinska", "utrecht"), absent=()
    )


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


def test_a_replay_under_a_new_number_is_known_by_its_slot(site: Any) -> None:
    site.approve()
    kept = site.released()
    order, closing = kept.envelope, site.coordinator.says(site.closing(kept)).data
    left = len(site.outbox())
    for sequence, data in enumerate([order, closing], start=100):
        site.mailroom.take(Delivery(sequence=sequence, envelope=data))
    assert len(site.outbox()) == left
    assert site.kept().step is Step.RELEASED


def test_effect_and_cursor_are_one_transaction(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    cursor = site.mailroom.cursor

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.journal.__class__, "set_fact", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.hear(site.order())
    monkeypatch.undo()
    assert (site.mailroom.cursor, site.journal.orders_of(site.study)) == (cursor, [])


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
    (refused,) = site.outbox()
    assert isinstance(refused, Refused)
    assert (kept.step, refused.code, refused.retryable) == (Step.REFUSED, "NOT_APPROVED", False)
    assert events(site) == ["work-refused"]


def test_a_newer_attempt_ends_the_older_one_wherever_it_stands(site: Any) -> None:
    """Found by attack: a contribution to an attempt that was given up still waited to leave."""
    site.approve()
    old = site.released(1, attempt=1)
    site.ordered(1, attempt=2)
    assert site.kept(1, attempt=1).step is Step.OVER
    assert old.collection not in site.unwanted, "the same work on the same model is let be finished"
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved"]


def test_the_order_for_a_newer_round_stops_the_work_of_an_older_one(site: Any) -> None:
    site.approve()
    old = site.ordered(1)
    site.ordered(2)
    assert site.kept(1).step is Step.OVER
    assert old.collection in site.unwanted


# --- closings ----------------------------------------------------------------------------------------
def test_a_vector_leaves_when_the_cohort_closed_with_us(site: Any) -> None:
    site.approve()
    kept = site.released()
    contribution = site.outbox()[-1]
    assert isinstance(contribution, Contribution)
    assert (kept.step, contribution.order) == (Step.RELEASED, kept.digest)
    assert events(site) == ["plan-approval-given", "work-done", "contribution-released"]


def test_a_cohort_without_us_costs_nothing(site: Any) -> None:
    site.approve()
    kept = site.ready()
    site.hear(site.closing(kept, members=("charite", "karolinska", "utrecht"), absent=("st-olavs",)))
    assert site.kept().step is Step.LEFT_OUT
    assert kept.collection in site.unwanted
    assert [message.kind for message in site.outbox()] == ["plan-approved", "ready"]


OUT_OF_TURN: dict[str, tuple[Callable[[Any], Any], Step]] = {
    "for an order we never got": (lambda site: site.collection(3), Step.OVER),
    "while we are still working": (lambda site: _at(site, site.ordered), Step.WORKING),
    "again after the release": (lambda site: _at(site, site.released), Step.RELEASED),
    "after we refused": (lambda site: _at(site, lambda: site.ordered(4)), Step.REFUSED),
}


def _at(site: Any, reach: Callable[[], Any]) -> Any:
    kept = reach()
    return site.collection(kept.round)


@pytest.mark.parametrize(("reach", "step"), OUT_OF_TURN.values(), ids=OUT_OF_TURN)
def test_closings_out_of_turn_change_nothing(site: Any, reach: Callable[[Any], Any], step: Step) -> None:
    site.approve()
    collection = reach(site)
    kept = site.journal.order(str(collection))
    before = len(site.outbox())
    closing = site.closing(kept or site.ready(1), collection=collection)
    before = len(site.outbox())
    site.hear(closing)
    assert len(site.outbox()) == before
    assert kept is None or site.journal.order(str(collection)).step is step


def test_a_cohort_below_the_floor_is_refused_and_nothing_leaves(site: Any) -> None:
    site.approve()
    kept = site.ready()
    site.hear(site.closing(kept, members=("st-olavs", "charite"), absent=()))
    assert site.kept().step is Step.REFUSED
    assert [getattr(message, "code", message.kind) for message in site.outbox()][-1] == "COHORT_TOO_SMALL"


def test_a_steward_who_stops_the_study_stops_the_release_of_finished_work(site: Any) -> None:
    site.approve()
    kept = site.ready()
    site.outbound.decline(site.study, site.journal.plan(site.study).digest, "DECLINED_BY_STEWARD", "stop")
    site.hear(site.closing(kept))
    assert [message.kind for message in site.outbox()] == ["plan-approved", "ready", "plan-declined", "refused"]


def lost(result: Path) -> None:
    (result / "result.json").unlink()


def damaged(result: Path) -> None:
    (result / "result.json").write_bytes(b"{")


def of_another_kind(result: Path) -> None:
    (result / "result.json").write_bytes(b"[1, 2]")


def without_its_vector(result: Path) -> None:
    (result / "vector.f32").unlink()


def with_half_its_vector(result: Path) -> None:
    (result / "vector.f32").write_bytes(bytes(8))


SPOILT = {
    "is lost": lost,
    "is damaged": damaged,
    "is something else": of_another_kind,
    "lost its vector": without_its_vector,
    "was cut by a power failure": with_half_its_vector,
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_stored_result_that_is_spoilt_is_a_refusal_and_not_the_end_of_the_agent(
    site: Any, spoil: Callable[[Path], None]
) -> None:
    site.approve()
    kept = site.ready()
    spoil(Path(kept.result))
    site.hear(site.closing(kept))
    assert site.kept().step is Step.REFUSED
    assert [getattr(message, "code", "") for message in site.outbox()][-1] == "INTERNAL"


def test_a_full_disk_while_sealing_is_a_refusal_and_leaves_no_file(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    kept = site.ready()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    site.hear(site.closing(kept))
    monkeypatch.undo()
    refused = site.outbox()[-1]
    assert (refused.code, refused.retryable) == ("DISK_FULL", True)
    assert list(site.folder.work.rglob("*.sealed")) == []


# --- the end -----------------------------------------------------------------------------------------
def test_a_committed_round_ends_its_orders_and_removes_its_files(site: Any) -> None:
    site.approve()
    site.released(1)
    site.ready(1, phase="evaluate")
    (site.folder.models / f"{site.study}.{NEXT_MODEL.digest[7:]}.safetensors").touch()
    (site.folder.models / f"{site.study}.{'0' * 64}.safetensors").touch()
    site.hear(committed(site))
    assert {kept.step for kept in site.journal.orders_of(site.study)} == {Step.OVER}
    assert list(site.folder.work.rglob("*.*")) == []
    assert [path.name[-20:] for path in site.folder.models.iterdir()] == [f"{NEXT_MODEL.digest[-8:]}.safetensors"]
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved"]


def test_a_replayed_commit_of_an_old_round_leaves_newer_work_alone(site: Any) -> None:
    """Found by attack: it removed the finished result of the round in progress."""
    site.approve()
    site.released(1)
    site.hear(committed(site, 1))
    kept = site.ready(2)
    site.hear(committed(site, 1))
    assert StoredResult.load(Path(kept.result)).parameters == 7
    assert site.kept(2).step is Step.READY
    site.hear(site.closing(kept))
    assert site.kept(2).step is Step.RELEASED


def test_an_order_for_a_committed_round_is_refused(site: Any) -> None:
    site.approve()
    site.released(1)
    site.hear(committed(site, 1))
    assert site.ordered(1, attempt=2).step is Step.REFUSED


def test_a_replayed_commit_does_not_open_a_round_again(site: Any) -> None:
    site.approve()
    site.hear(committed(site, 2))
    site.hear(committed(site, 1))
    assert site.ordered(2).step is Step.REFUSED


def test_files_go_only_after_the_journal_no_longer_counts_on_them(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    kept = site.released(1)
    sealed = Path(site.journal.waiting()[-1].blob_path)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.journal.__class__, "set_fact", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.hear(committed(site))
    monkeypatch.undo()
    assert sealed.exists()
    assert site.kept(1) == kept


def test_a_closed_study_leaves_nothing_behind_and_nothing_waiting(site: Any) -> None:
    """Found: a contribution still waited whose file was removed, and the agent ended when it was its turn."""
    site.approve()
    site.released(1)
    for place in (site.folder.cache / site.study, site.folder.cache / f".{site.study}.partial"):
        place.mkdir()
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))
    assert site.journal.plan(site.study).state == "closed"
    assert [parcel.kind for parcel in site.journal.waiting()] == ["plan-approved"]
    assert site.study in site.unwanted
    assert [*site.folder.cache.iterdir(), *site.folder.work.iterdir()] == []


def test_a_study_we_never_heard_of_may_be_closed(site: Any) -> None:
    site.hear(StudyClosed(study=site.study, code="COMPLETED"))
    assert site.journal.plans() == []


def test_what_only_hospitals_say_is_not_for_us_to_hear(site: Any) -> None:
    site.approve()
    kept = site.ordered()
    data = seal_envelope(
        Ready(collection=site.collection(), order=kept.digest), sender="charite", recipient="st-olavs",
        sent_at=site.now, key=site.coordinator.key,
    ).data  # fmt: skip
    with pytest.raises(WrongCoordinator, match="in the name of 'charite'"):
        site.mailroom.take(Delivery(sequence=50, envelope=data))
