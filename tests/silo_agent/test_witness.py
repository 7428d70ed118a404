"""The hospital as a witness: what it shows of its own log, what it cosigns of others', and what it makes of a lie."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from silo_agent_tests_benches import Cut, Mortal
from silo_agent_tests_one_hospital import MODEL, NEXT_MODEL, OTHERS, SILO
from silo_agent_tests_peers import OthersLog

from boundary.canonical import digest
from boundary.checkpoint import Checkpoint
from boundary.errors import BadSignature
from boundary.identity import SigningIdentity
from boundary.messages import (
    HeadsCosigned,
    HeadsShown,
    LogDisputed,
    RoundCommitted,
    ShownHead,
    TrailAsked,
    TrailShown,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import digest_of, study_id
from boundary.protocol import Step
from boundary.receipt import Receipt
from boundary.roster import TrustedRoster
from boundary.secagg.context import transcript_of
from compliance.disclosure import hash_of
from compliance.events import (
    BudgetReserved,
    HeadsWitnessed,
    IncidentClosed,
    IncidentOpened,
    IntakeCounted,
    TrainingStarted,
)
from compliance.merkle import HASH_BYTES, Tree, leaf_hash
from compliance.privacy import PoissonGaussian
from compliance.trail import read_leaf
from compliance.witnessing import Contradiction
from silo_agent.errors import ConfigError
from silo_agent.witness import close_incident

ALL = (SILO, *OTHERS)
FOUR = 1 + len(OTHERS)  # logs that are shown before ours is: the coordinator's and the others'


def said(site: Any, kind: type[Any]) -> list[Any]:
    return [message for message in site.outbox() if isinstance(message, kind)]


def recorded(site: Any, kind: type[Any]) -> list[Any]:
    return [event for leaf in site.journal.trail() if isinstance(event := read_leaf(leaf).event, kind)]


def open_incidents(site: Any) -> list[tuple[str, str]]:
    return [(one.log, one.code) for one in site.journal.incidents(only_open=True)]


def dump(site: Any) -> list[str]:
    return list(site.journal._db.iterdump())


# --- our own log -------------------------------------------------------------------------------------
def summed(site: Any, number: int = 1, surviving: tuple[str, ...] = ALL) -> str:
    """Go through a round's sum; the transcript of the model that came out."""
    site.hear(site.naming(site.masked(number), surviving))
    (survivors,) = {message.survivors for message in site.outbox() if message.kind == "survivors-seen"
                    and message.collection.round == number}  # fmt: skip
    return transcript_of(survivors, NEXT_MODEL.digest)


def receipt_of(site: Any, committed: RoundCommitted, **changes: Any) -> Receipt:
    values: dict[str, Any] = {
        "study": site.study, "plan_digest": digest_of(site.plan), "round": committed.round, "model_in": MODEL.digest,
        "model_out": committed.model.digest, "tried": committed.tried, "transcript": committed.transcript,
        "contributing": committed.contributing, "absent": committed.absent,
    }  # fmt: skip
    return Receipt(**(values | changes))


def test_after_a_round_our_log_is_shown_from_its_first_entry_on(site: Any) -> None:
    site.approve()
    transcript = summed(site)
    site.hear(site.committed(contributing=ALL, transcript=transcript))
    (shown,) = said(site, TrailShown)
    leaves = site.journal.trail()
    assert (shown.first, list(shown.entries)) == (1, leaves)
    assert [read_leaf(entry).event.event for entry in shown.entries] == [
        "policy-adopted", "plan-received", "plan-approval-given", "heads-witnessed", "work-done", "secrets-shared",
        "contribution-released", "survivors-agreed", "round-received", "receipt-signed",
    ]  # fmt: skip
    grown = Tree()
    for leaf in leaves:
        grown.append(leaf_hash(leaf))
    assert (shown.checkpoint.log, shown.checkpoint.size) == (SILO, len(leaves))
    assert shown.checkpoint.root_bytes == grown.root() == site.journal.trail_root(len(leaves))
    shown.checkpoint.check(site.folder.identity.public)


def test_later_only_what_is_new_is_shown_and_the_head_is_over_everything(site: Any) -> None:
    site.approve()
    site.hear(site.committed(1))
    before = site.journal.trail_size
    site.ready(2)
    site.hear(site.committed(2))
    _, shown = said(site, TrailShown)
    assert (shown.first, list(shown.entries)) == (before + 1, site.journal.trail(after=before))
    assert shown.checkpoint.root_bytes == site.journal.trail_root(site.journal.trail_size)


def test_two_studies_show_one_log_and_no_entry_twice(site: Any, make_plan_for: Any) -> None:
    site.approve()
    site.hear(site.committed(1))
    first = site.study
    site.plan = make_plan_for(site.cards, revision=2)
    site.study = study_id(site.plan)
    site.approve()
    site.hear(site.committed(1))
    one, other = said(site, TrailShown)
    assert (one.study, other.study) == (first, site.study)
    assert other.first == one.checkpoint.size + 1 == len(one.entries) + 1
    assert [*one.entries, *other.entries] == site.journal.trail()


@pytest.mark.parametrize("state", ["received", "scanned", "unsuitable", "declined"])
def test_a_study_that_we_are_not_in_is_shown_nothing(site: Any, state: str) -> None:
    site.propose()
    site.journal.set_plan(site.study, state)
    site.hear(site.committed(1))
    assert said(site, TrailShown) == []


def test_a_study_we_never_heard_of_is_shown_nothing(site: Any) -> None:
    site.hear(site.committed(1))
    assert said(site, TrailShown) == []
    site.hear(site.heads(0))
    assert (said(site, HeadsCosigned), site.events()) == ([], ["round-received"])


def test_a_round_that_is_told_twice_is_shown_once(site: Any) -> None:
    site.approve()
    for _ in range(2):
        site.hear(site.committed(1))
    assert len(said(site, TrailShown)) == 1


def test_behind_the_last_round_it_is_shown_when_asked_for_and_once(site: Any) -> None:
    site.approve()
    rounds = site.plan.training.rounds
    for number in (1, rounds, rounds + 1, rounds + 1, rounds + 2):  # of rounds to come nobody may ask
        site.hear(TrailAsked(study=site.study, round=number))
    shown = said(site, TrailShown)
    assert [one.round for one in shown] == [rounds + 1, rounds + 2]
    assert [one.receipt for one in shown] == [None, None]
    assert [entry for one in shown for entry in one.entries] == site.journal.trail()
    site.hear(site.committed(1))
    assert [one.round for one in said(site, TrailShown)] == [rounds + 1, rounds + 2, 1], (
        "rounds have places of their own"
    )


def test_a_round_that_no_plan_has_leaves_no_room_for_being_asked(site: Any) -> None:
    """There is one message as of each round: a second one would be refused for ever, and all that waits behind it."""
    site.approve()
    beyond = site.plan.training.rounds + 1
    site.hear(site.committed(beyond))
    site.hear(TrailAsked(study=site.study, round=beyond))
    assert [one.round for one in said(site, TrailShown)] == [beyond]


@pytest.mark.parametrize("state", ["received", "scanned", "unsuitable", "declined"])
def test_who_is_not_in_a_study_shows_it_nothing_when_asked(site: Any, state: str) -> None:
    site.propose()
    site.journal.set_plan(site.study, state)
    site.hear(TrailAsked(study=site.study, round=9))
    site.hear(TrailAsked(study="another-1234abcd", round=9))
    assert said(site, TrailShown) == []


def test_a_long_log_is_shown_in_parts(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("silo_agent.witness.MAX_SHOWN_ENTRIES", 3)
    site.approve()
    for number in (1, 2):
        site.ready(number)
        site.hear(site.committed(number))
    shown = said(site, TrailShown)
    assert [(one.first, len(one.entries), one.checkpoint.size) for one in shown] == [(1, 3, 3), (4, 3, 6)]
    assert [one.checkpoint.root_bytes for one in shown] == [site.journal.trail_root(size) for size in (3, 6)]


def test_and_in_parts_that_fit_into_a_message(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.approve()
    monkeypatch.setattr("silo_agent.witness._MAX_SHOWN_BYTES", len(site.journal.trail()[0]))
    site.hear(site.committed(1))
    assert [len(one.entries) for one in said(site, TrailShown)] == [1]


# --- what is shown, and what only as a hash ----------------------------------------------------------
RELEASE = PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.1, steps=5)


def spend(site: Any) -> None:
    now = site.now
    with site.journal.transaction():
        site.journal.record(
            BudgetReserved(study=site.study, round=1, release=RELEASE, epsilon_study=0.4, delta_study=1e-3,
                           epsilon_lifetime=0.4, delta_lifetime=1e-3), now,
        )  # fmt: skip
        site.journal.record(
            TrainingStarted(study=site.study, round=1, phase="train", order=digest(b"order"), start=1), now
        )


@pytest.mark.parametrize("disclose", [[], ["budget"], ["intake", "withdrawals"]], ids=lambda one: "+".join(one) or "-")
def test_an_entry_is_shown_as_the_plan_of_its_study_says(make_site: Any, disclose: list[str]) -> None:
    site = make_site(changes={"evidence": {"disclose": disclose}})
    site.approve()
    spend(site)
    site.hear(site.committed(1))
    (shown,) = said(site, TrailShown)
    hidden = {number for number, entry in enumerate(shown.entries) if len(entry) == HASH_BYTES}
    names = kinds(site)
    expected = set() if "budget" in disclose else {names.index("budget-reserved"), names.index("training-started")}
    assert hidden == expected
    assert [hash_of(entry) for entry in shown.entries] == [leaf_hash(leaf) for leaf in site.journal.trail()]


def test_one_study_does_not_show_what_another_keeps_to_itself(make_site: Any, make_plan_for: Any) -> None:
    site = make_site()
    site.approve()
    spend(site)
    site.plan = make_plan_for(site.cards, revision=2, evidence={"disclose": ["budget", "intake", "withdrawals"]})
    site.study = study_id(site.plan)
    site.approve()
    spend(site)
    site.hear(site.committed(1))
    (shown,) = said(site, TrailShown)
    names = kinds(site)
    hidden = [names[number] for number, entry in enumerate(shown.entries) if len(entry) == HASH_BYTES]
    assert hidden == ["budget-reserved", "training-started"]
    assert names.count("budget-reserved") == 2


def test_an_attack_that_proposes_plans_to_be_shown_what_our_data_hold_opens_nothing(
    make_site: Any, make_plan_for: Any
) -> None:
    """Whether our data meet a contract of the coordinator's choice is in the log, and nobody approved that plan."""
    site = make_site()
    site.approve()
    approved = site.plan, site.study
    site.plan = make_plan_for(site.cards, revision=2, evidence={"disclose": ["intake"]})
    site.study = study_id(site.plan)
    site.propose()
    with site.journal.transaction():
        counted = IntakeCounted(
            study=site.study, dataset_digest=digest(b"data"), usable=False, patients=20, used=40, excluded={}
        )
        site.journal.record(counted, site.now)
    site.plan, site.study = approved
    site.hear(site.committed(1))
    (shown,) = said(site, TrailShown)
    names = kinds(site)
    assert "intake-counted" in [names[number] for number, one in enumerate(shown.entries) if len(one) == HASH_BYTES]


def kinds(site: Any) -> list[str]:
    """Of all entries in the log."""
    return [read_leaf(leaf).event.event for leaf in site.journal.trail()]


# --- receipts ----------------------------------------------------------------------------------------
def test_our_name_is_under_the_receipt_of_a_round_with_our_work(site: Any) -> None:
    site.approve()
    committed = site.committed(contributing=ALL, transcript=summed(site))
    site.hear(committed)
    (shown,) = said(site, TrailShown)
    receipt = receipt_of(site, committed)
    receipt.check(shown.receipt, site.folder.identity.public)
    (event,) = [read_leaf(leaf).event for leaf in site.journal.trail()[-1:]]
    assert (event.event, event.receipt) == ("receipt-signed", receipt.digest)


def test_of_two_attempts_the_one_that_was_committed_is_signed(site: Any) -> None:
    """We agreed to both; which of them the model came from is the coordinator's to say."""
    site.approve()
    three = ("charite", "karolinska", SILO)
    site.hear(site.naming(site.masked(1, attempt=1), three))
    site.hear(site.naming(site.masked(1, attempt=2), three))
    found = {one.collection.attempt: one.survivors for one in site.outbox() if one.kind == "survivors-seen"}
    committed = site.committed(contributing=three, transcript=transcript_of(found[1], NEXT_MODEL.digest))
    site.hear(committed)
    receipt_of(site, committed).check(said(site, TrailShown)[0].receipt, site.folder.identity.public)


def test_a_round_that_was_rolled_back_is_signed_for_as_such(site: Any) -> None:
    site.approve()
    committed = site.committed(contributing=ALL, transcript=summed(site), tried=NEXT_MODEL.digest, model=MODEL)
    site.hear(signed_over(site, committed))
    receipt_of(site, committed).check(said(site, TrailShown)[0].receipt, site.folder.identity.public)


def signed_over(site: Any, committed: RoundCommitted, **changes: Any) -> RoundCommitted:
    """The coordinator's signature, over a receipt that says something else than the message."""
    signature = receipt_of(site, committed, **changes).sign(site.coordinator.key)
    return committed.model_copy(update={"receipt": signature})


def by_a_stranger(site: Any, committed: RoundCommitted) -> RoundCommitted:
    signature = receipt_of(site, committed).sign(SigningIdentity.generate())
    return committed.model_copy(update={"receipt": signature})


UNSIGNED: dict[str, Callable[[Any, str], RoundCommitted]] = {
    "we were left out": lambda site, transcript: site.committed(transcript=transcript),
    "the sum is one we know nothing of": lambda site, _: site.committed(contributing=ALL),
    "the model is another": lambda site, transcript: site.committed(
        contributing=ALL, transcript=transcript, model=MODEL
    ),
    "a hospital of the sum is not named": lambda site, transcript: site.committed(
        contributing=ALL[:3], transcript=transcript
    ),
    "a hospital is named that is not in the sum": lambda site, transcript: site.committed(
        contributing=(*ALL, "stranger"), transcript=transcript
    ),
    "a hospital is named twice": lambda site, transcript: site.committed(
        contributing=(*ALL, SILO), transcript=transcript
    ),
    "a stranger signed it": lambda site, transcript: by_a_stranger(
        site, site.committed(contributing=ALL, transcript=transcript)
    ),
    "it begins with another model": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript), model_in=digest(b"another")
    ),
    "it is rolled back to another model than it began with": lambda site, transcript: signed_over(
        site,
        site.committed(
            contributing=ALL,
            transcript=transcript,
            tried=NEXT_MODEL.digest,
            model=MODEL.model_copy(update={"digest": digest(b"x")}),
        ),
    ),
    "it is said to be rolled back from another sum": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript, tried=digest(b"another"), model=MODEL)
    ),
    "it is rolled back, and the receipt says it is not": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript, tried=NEXT_MODEL.digest, model=MODEL), tried=None
    ),
    "it is of another plan": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript), plan_digest=digest(b"another")
    ),
    "it is of another round": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript), round=2
    ),
    "others are said to be absent": lambda site, transcript: signed_over(
        site, site.committed(contributing=ALL, transcript=transcript), absent=("utrecht",)
    ),
}


@pytest.mark.parametrize("say", UNSIGNED.values(), ids=UNSIGNED)
def test_we_do_not_sign_what_we_do_not_know(site: Any, say: Callable[[Any, str], RoundCommitted]) -> None:
    site.approve()
    site.hear(say(site, summed(site)))
    (shown,) = said(site, TrailShown)
    assert shown.receipt is None
    assert "receipt-signed" not in site.events()
    assert site.events()[-1] == "round-received", "the log goes on all the same"


def test_a_model_of_an_order_that_was_refused_is_not_signed_for(site: Any) -> None:
    """Found by reading: any model of any order for the round could become the one that went in."""
    site.approve()
    transcript = summed(site)
    for attempt in range(2, 12):
        other = site.ordered(1, attempt=attempt, model=NEXT_MODEL.model_copy(update={"size": attempt}))
        assert other.step is Step.REFUSED
    committed = site.committed(contributing=ALL, transcript=transcript)
    site.hear(committed)
    receipt_of(site, committed).check(said(site, TrailShown)[0].receipt, site.folder.identity.public)


def test_a_closed_study_may_still_show_and_sign(site: Any) -> None:
    site.approve()
    site.journal.set_plan(site.study, "closed")
    site.hear(site.committed(1))
    assert len(said(site, TrailShown)) == 1


# --- everybody's logs --------------------------------------------------------------------------------
def test_logs_that_go_on_are_cosigned_and_remembered(site: Any) -> None:
    site.approve()
    for number in range(4):
        site.witnessed(number)
        if number:
            site.hear(site.committed(number))
    told = [site.told[site.study, number] for number in range(4)]
    answers = said(site, HeadsCosigned)
    assert [(one.round, one.heads) for one in answers] == [(number, one.digest) for number, one in enumerate(told)]
    for shown, answer in zip(told, answers, strict=True):
        assert [(one.log, one.size) for one in answer.cosigned] == [
            (head.checkpoint.log, head.checkpoint.size) for head in shown.heads
        ]
        for head, one in zip(shown.heads, answer.cosigned, strict=True):
            owner = key_of(site, head.checkpoint.log)
            one.cosignature.check(head.checkpoint, owner, site.folder.identity.public)
            assert one.cosignature.witness == SILO
    assert [len(one.heads) for one in told] == [FOUR, FOUR, FOUR + 1, FOUR + 1], "ours is among them once it was shown"
    events = recorded(site, HeadsWitnessed)
    assert [[(one.log, one.size, one.root) for one in event.heads] for event in events] == [
        [(head.checkpoint.log, head.checkpoint.size, head.checkpoint.root) for head in one.heads] for one in told
    ]
    assert open_incidents(site) == []


def key_of(site: Any, log: str) -> Any:
    return site.folder.identity.public if log == SILO else site.logs[log].key.public


def test_an_order_stands_on_what_was_shown_after_the_round_before(site: Any) -> None:
    site.approve()
    assert site.ordered(1).step is Step.WORKING
    assert site.ordered(1, phase="evaluate").step is Step.WORKING
    assert site.ordered(2).step is Step.WORKING


OTHER_LOGS: dict[str, Callable[[Any], WorkOrder]] = {
    "on logs that were never shown": lambda site: site.order(1, heads=digest(b"other logs")),
    "on those of an older round": lambda site: (site.ordered(1), site.order(2, heads=site.witnessed(0)))[1],
    "on those of a later round": lambda site: site.order(1, heads=site.witnessed(1)),
}


@pytest.mark.parametrize("make", OTHER_LOGS.values(), ids=OTHER_LOGS)
def test_an_order_on_other_logs_is_refused(site: Any, make: Callable[[Any], WorkOrder]) -> None:
    site.approve()
    order = make(site)
    site.hear(order)
    assert site.outbox()[-1].code == "OUT_OF_TURN"
    assert site.kept(order.collection.round).step is Step.REFUSED


def test_an_order_before_any_log_was_shown_is_refused(site: Any) -> None:
    site.approve()
    site.heard.add((site.study, 0))  # what `order` would have us told
    assert site.ordered(1).step is Step.REFUSED
    assert site.outbox()[-1].code == "OUT_OF_TURN"


# --- lies --------------------------------------------------------------------------------------------
def forged(
    site: Any, name: str, what: str = "forged", like: Callable[[OthersLog], int] = lambda log: log.tree.size
) -> Any:
    """Another log in the name of a party, signed with its key."""
    true = site.logs[name]
    lie = OthersLog(name, true.key)
    lie.grow(like(true), what)
    return lie


def with_head(told: HeadsShown, head: ShownHead) -> HeadsShown:
    others = [one for one in told.heads if one.checkpoint.log != head.checkpoint.log]
    return told.model_copy(update={"heads": (*others, head)})


def fork(site: Any) -> HeadsShown:
    told = site.heads(1, grow=0)
    return with_head(told, forged(site, "charite").shown(site.logs["charite"].tree.size))


def shrink(site: Any) -> HeadsShown:
    told = site.heads(1, grow=0)
    return with_head(told, ShownHead(checkpoint=site.logs["charite"].head(1), proof=()))


def no_proof(site: Any) -> HeadsShown:
    told = site.heads(1)
    return with_head(told, ShownHead(checkpoint=site.logs["charite"].head(), proof=()))


def rewritten(site: Any) -> HeadsShown:
    told, lie = site.heads(1), forged(site, "charite")
    return with_head(told, lie.shown(2))


def of_a_stranger(site: Any) -> HeadsShown:
    stranger = OthersLog("stranger", SigningIdentity.generate())
    stranger.grow()
    return with_head(site.heads(1), stranger.shown())


def under_another_key(site: Any) -> HeadsShown:
    told, true = site.heads(1), site.logs["charite"]
    return with_head(told, OthersLog("charite", SigningIdentity.generate(), true.tree).shown(2))


def by_the_coordinator_itself(site: Any) -> HeadsShown:
    site.heads(1, grow=0)
    told = site.heads(1, grow=0)
    return with_head(told, forged(site, COORDINATOR).shown(site.logs[COORDINATOR].tree.size))


def never_ours(site: Any) -> HeadsShown:
    ours = OthersLog(SILO, site.folder.identity)
    ours.grow(2)
    return with_head(site.heads(1), ours.shown())


def ours_but_longer(site: Any) -> HeadsShown:
    ours = OthersLog(SILO, site.folder.identity)
    ours.grow(site.journal.trail_size + 1)
    return with_head(site.heads(1), ours.shown())


LIES: dict[str, tuple[Callable[[Any], HeadsShown], str, str, bool]] = {
    "two logs of one size": (fork, "charite", "LOG_FORKED", True),
    "a log that has become shorter": (shrink, "charite", "LOG_SHRUNK", True),
    "a log without a proof": (no_proof, "charite", "LOG_INCONSISTENT", True),
    "a log whose past is another": (rewritten, "charite", "LOG_INCONSISTENT", True),
    "a log of nobody on the roster": (of_a_stranger, "stranger", "UNKNOWN_MEMBER", False),
    "a log signed with another key": (under_another_key, "charite", "BAD_SIGNATURE", True),
    "the coordinator's own, forked": (by_the_coordinator_itself, COORDINATOR, "LOG_FORKED", True),
    "ours, with entries we never wrote": (never_ours, SILO, "LOG_FORKED", False),
    "ours, with more entries than there are": (ours_but_longer, SILO, "LOG_SHRUNK", False),
}


@pytest.mark.parametrize(("lie", "log", "code", "disputed"), LIES.values(), ids=LIES)
def test_a_log_that_is_not_what_it_was_is_an_incident_and_no_order_is_taken(
    site: Any, lie: Callable[[Any], HeadsShown], log: str, code: str, disputed: bool
) -> None:
    site.approve()
    site.witnessed(0)
    known = site.told[site.study, 0]
    told = lie(site)
    shown = next(head.checkpoint for head in told.heads if head.checkpoint.log == log)
    site.hear(told)
    assert open_incidents(site) == [(log, code)]
    (incident,) = site.journal.incidents()
    evidence = Contradiction.model_validate_json(incident.evidence)
    assert evidence.shown == shown
    if disputed:
        assert evidence.known == next(head.checkpoint for head in known.heads if head.checkpoint.log == log)
    (event,) = recorded(site, IncidentOpened)
    assert (event.incident, event.log, event.code, event.evidence) == (1, log, code, evidence.digest)
    assert [(one.code, one.known, one.shown) for one in said(site, LogDisputed)] == (
        [(code, evidence.known, shown)] if disputed else []
    )
    assert [one.round for one in said(site, HeadsCosigned)] == [0], "none of what was shown with it is cosigned"
    site.heard.add((site.study, 0))
    kept = site.ordered(1)
    assert (kept.step, site.outbox()[-1].code) == (Step.REFUSED, "LOG_IN_DOUBT")
    assert not site.outbox()[-1].retryable


def test_every_log_that_does_not_fit_is_an_incident_of_its_own_and_the_coordinators_comes_first(site: Any) -> None:
    site.approve()
    site.witnessed(0)
    told = fork(site)
    told = with_head(told, forged(site, COORDINATOR).shown(site.logs[COORDINATOR].tree.size))
    ours = OthersLog(SILO, site.folder.identity)
    ours.grow(2)
    site.hear(with_head(told, ours.shown()))
    assert open_incidents(site) == [(COORDINATOR, "LOG_FORKED"), (SILO, "LOG_FORKED"), ("charite", "LOG_FORKED")]
    assert [one.shown.log for one in said(site, LogDisputed)] == [COORDINATOR], "a round has one dispute"


def test_closing_lets_it_go_on_even_in_the_round_that_was_stopped(site: Any) -> None:
    """Found by test: a round whose heads were in doubt could never be worked on, whatever people decided."""
    site.approve()
    site.witnessed(0)
    site.hear(site.committed(1))
    told = fork(site)
    site.told[site.study, 1] = told
    site.heard.add((site.study, 1))
    site.hear(told)
    assert site.ordered(2, attempt=1).step is Step.REFUSED
    closed = close_incident(site.journal, 1, site.now)
    assert closed.log == "charite"
    (event,) = recorded(site, IncidentClosed)
    assert (event.incident, event.decision) == (1, "ACCEPTED")
    assert site.ordered(2, attempt=2).step is Step.WORKING
    assert [one.heads for one in said(site, HeadsCosigned)][-1] == told.digest
    assert [one.round for one in recorded(site, HeadsWitnessed)] == [0, 1]
    assert open_incidents(site) == []


def test_and_what_was_believed_anew_is_what_is_held_against_it_from_then_on(site: Any) -> None:
    site.approve()
    site.witnessed(0)
    told, lie = fork(site), forged(site, "charite")
    site.told[site.study, 1] = told
    site.heard |= {(site.study, 1)}
    site.hear(told)
    close_incident(site.journal, 1, site.now)
    site.ordered(2)
    true, site.logs["charite"] = site.logs["charite"], lie
    site.hear(site.heads(2))
    assert open_incidents(site) == [], "the log that was accepted goes on"
    site.logs["charite"] = true
    true.grow(10)
    site.hear(site.heads(3))
    assert [log for log, _ in open_incidents(site)] == ["charite"]


def test_an_incident_about_one_log_does_not_make_the_others_look_wrong_later(site: Any) -> None:
    """Found by reading: proofs begin where the last ones ended, and the others' heads had not been kept."""
    site.approve()
    site.witnessed(0)
    told = site.heads(1)
    site.hear(with_head(told, forged(site, "charite").shown(2)))
    close_incident(site.journal, 1, site.now)
    site.hear(site.heads(2))
    assert open_incidents(site) == []
    assert [one.round for one in said(site, HeadsCosigned)] == [0, 2]


def test_our_own_log_cannot_be_closed_away(site: Any) -> None:
    """Who restored an older journal has an older ledger: it has to enrol anew, with a new key."""
    site.approve()
    site.witnessed(0)
    told = ours_but_longer(site)
    site.told[site.study, 1] = told
    site.heard.add((site.study, 1))
    site.hear(told)
    close_incident(site.journal, 1, site.now)
    assert site.ordered(2).step is Step.REFUSED
    assert site.outbox()[-1].code == "LOG_IN_DOUBT"
    assert open_incidents(site) == [(SILO, "LOG_FORKED")], "there are as many entries by now, and they are others"


def test_only_an_open_incident_can_be_closed(site: Any) -> None:
    with pytest.raises(ConfigError, match="no incident 1 is open"):
        close_incident(site.journal, 1, site.now)
    assert site.events() == []


def test_a_journal_that_was_restored_from_an_older_copy_finds_out(site: Any, tmp_path: Any) -> None:
    site.approve()
    site.witnessed(0)
    site.journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(site.folder.journal, tmp_path / "yesterday")
    site.ready(1)
    site.hear(site.committed(1))
    told = site.heads(1)
    site.journal.close()
    for path in site.folder.journal.parent.glob(f"{site.folder.journal.name}*"):
        path.unlink()
    shutil.copy(tmp_path / "yesterday", site.folder.journal)
    site.open()
    site.hear(told)
    assert open_incidents(site) == [(SILO, "LOG_SHRUNK")]
    assert said(site, LogDisputed) == [], "we had not been told of our own log by then"
    assert site.ordered(2, heads=told.digest).step is Step.REFUSED
    assert site.outbox()[-1].code == "LOG_IN_DOUBT"


# --- what is left out --------------------------------------------------------------------------------
def without(told: HeadsShown, log: str) -> HeadsShown:
    return told.model_copy(update={"heads": tuple(one for one in told.heads if one.checkpoint.log != log)})


@pytest.mark.parametrize("log", [COORDINATOR, "charite", SILO])
def test_a_log_that_is_no_longer_shown_is_asked_for(site: Any, log: str) -> None:
    """Found by reading: a coordinator that showed no log at all got its orders taken."""
    site.approve()
    site.witnessed(0)
    site.hear(site.committed(1))
    site.witnessed(1)
    site.hear(site.committed(2))
    told = site.told[site.study, 2] = without(site.heads(2), log)
    site.heard.add((site.study, 2))
    site.hear(told)
    assert [one.round for one in said(site, HeadsCosigned)] == [0, 1]
    assert open_incidents(site) == []
    assert site.ordered(3).step is Step.REFUSED
    assert site.outbox()[-1].code == "OUT_OF_TURN"


def test_a_log_that_was_never_shown_may_be_missing(site: Any) -> None:
    site.approve()
    site.hear(without(site.heads(0), "charite"))
    assert len(said(site, HeadsCosigned)) == 1


def test_a_hospital_that_left_the_roster_is_not_asked_for(site: Any) -> None:
    site.approve()
    site.witnessed(0)
    site.roster = TrustedRoster(site.coordinator.roster(*site.cards[:-1], version=2))
    gone = site.cards[-1].party
    site.hear(without(site.heads(1), gone))
    assert [one.round for one in said(site, HeadsCosigned)] == [0, 1]


def test_a_hospital_that_enrols_with_a_new_key_begins_a_new_log(site: Any) -> None:
    """Found by reading: to all others its log had shrunk. And the log under the old key is not forgotten."""
    site.approve()
    site.witnessed(0)
    old = site.logs["charite"]
    peer = type(site.peers["charite"])("charite")
    site.roster = TrustedRoster(
        site.coordinator.roster(*(peer.card if card.party == "charite" else card for card in site.cards), version=2)
    )
    site.logs["charite"] = OthersLog("charite", peer.key)
    site._last_told["charite"] = 0
    site.hear(site.heads(1, grow=1))
    assert open_incidents(site) == []
    assert [one.round for one in said(site, HeadsCosigned)] == [0, 1]
    site.roster = TrustedRoster(site.coordinator.roster(*site.cards, version=3))
    site.logs["charite"], site._last_told["charite"] = old, 0
    lie = forged(site, "charite")
    site.hear(with_head(site.heads(2, grow=0), lie.shown(2)))
    assert open_incidents(site) == [("charite", "LOG_FORKED")]


# --- all or nothing ----------------------------------------------------------------------------------
def prepared_to_close(site: Any) -> Callable[[], object]:
    site.hear(fork(site))
    return lambda: close_incident(site.journal, 1, site.now)


def prepared_to_sign(site: Any) -> Callable[[], object]:
    committed = site.committed(contributing=ALL, transcript=summed(site))

    def act() -> None:  # what the mailroom does, up to its COMMIT
        with site.journal.transaction():
            site.mailroom._committed(committed)

    return act


ACTS: dict[str, Callable[[Any], Callable[[], object]]] = {
    "showing our log and signing the receipt": prepared_to_sign,
    "cosigning": lambda site: (told := site.heads(1)) and (lambda: site.hear(told)),
    "an incident": lambda site: (told := fork(site)) and (lambda: site.hear(told)),
    "closing one": prepared_to_close,
}


@pytest.mark.parametrize("prepare", ACTS.values(), ids=ACTS)
def test_a_failure_at_any_statement_leaves_neither_state_nor_entry(
    site: Any, prepare: Callable[[Any], Callable[[], object]]
) -> None:
    site.approve()
    site.witnessed(0)
    act = prepare(site)
    before, real = dump(site), site.journal._db
    for statement in range(300):
        site.journal._db = Mortal(real, statement)
        try:
            act()
        except Cut:
            assert not real.in_transaction
            site.journal._db = real
            assert dump(site) == before, f"something was left by a failure at statement {statement}"
        else:
            break
    site.journal._db = real
    assert statement > 5
    assert dump(site) != before


def test_a_head_in_our_journal_that_was_edited_is_not_held_against_anybody(site: Any) -> None:
    """The file is the hospital's own; but what it says is checked against a signature where it is shown to others."""
    site.approve()
    site.witnessed(0)
    told = fork(site)
    site.hear(told)
    dispute = said(site, LogDisputed)[0]
    for head in (dispute.known, dispute.shown):
        head.check(site.logs["charite"].key.public)
        with pytest.raises(BadSignature):
            head.check(site.folder.identity.public)
    assert isinstance(dispute.known, Checkpoint)
