"""Masked sums in the agent: what each step puts on its way, what a restart costs, and what is never answered."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.messages import Refused
from boundary.protocol import Step
from compliance.events import UnmaskingHelped
from compliance.trail import read_leaf
from silo_agent.errors import StoredFileLost
from silo_agent.journal import Journal
from silo_agent.results import StoredResult, sweep
from silo_agent.sums import Sums

SILO, CHARITE, KAROLINSKA, UTRECHT = ALL = ("st-olavs", "charite", "karolinska", "utrecht")
WITHOUT_UTRECHT = (SILO, CHARITE, KAROLINSKA)


def refusal(site: Any) -> tuple[str, bool]:
    """The code of the last message, which is a refusal."""
    last = site.outbox()[-1]
    assert isinstance(last, Refused), last.kind
    return last.code, last.retryable


def dump(site: Any) -> list[str]:
    return list(site.journal._db.iterdump())


def our_vector(site: Any, kept: Any) -> bytes:
    vector: bytes = Path(kept.result).joinpath(f"vector.{kept.collection[-1]}.masked").read_bytes()
    return vector


# --- the happy path ----------------------------------------------------------------------------------
def begin(site: Any) -> None:
    site.sums.begin(site.kept(), site.store_result())


STEPS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str, str, Step]] = {
    "the work is done: our keys": (lambda site: site.ordered(), begin, "ready", "work-done", Step.READY),
    "the cohort is closed: our shares": (
        lambda site: site.ready(),
        lambda site: site.hear(site.closing(site.kept())),
        "shares",
        "secrets-shared",
        Step.SHARED,
    ),
    "the shares are routed: our masked vector": (
        lambda site: site.shared(),
        lambda site: site.hear(site.routing(site.kept())),
        "masked-vector",
        "contribution-released",
        Step.MASKED,
    ),
    "the survivors are named: our word on them": (
        lambda site: site.masked(),
        lambda site: site.hear(site.naming(site.kept())),
        "survivors-seen",
        "survivors-agreed",
        Step.AGREED,
    ),
    "agreement is shown: the shares that unmask": (
        lambda site: site.agreed(),
        lambda site: site.hear(site.agreement(site.kept())),
        "shares-revealed",
        "unmasking-helped",
        Step.REVEALED,
    ),
}


@pytest.mark.parametrize(("reach", "act", "kind", "event", "step"), STEPS.values(), ids=STEPS)
def test_a_step_is_one_parcel_and_one_entry(
    site: Any, reach: Callable[[Any], Any], act: Callable[[Any], Any], kind: str, event: str, step: Step
) -> None:
    site.approve()
    reach(site)
    parcels, events = len(site.outbox()), len(site.events())
    act(site)
    assert [message.kind for message in site.outbox()[parcels:]] == [kind]
    assert site.events()[events:] == [event]
    assert site.kept().step is step


@pytest.mark.parametrize(("reach", "act", "kind", "event", "step"), STEPS.values(), ids=STEPS)
def test_a_power_cut_in_a_step_leaves_nothing_of_it(
    site: Any, monkeypatch: pytest.MonkeyPatch,
    reach: Callable[[Any], Any], act: Callable[[Any], Any], kind: str, event: str, step: Step,
) -> None:  # fmt: skip
    """Parcel, entry, step and what was spent are one transaction: without the parcel there is none of them."""
    site.approve()
    reach(site)
    before, files = dump(site), list(site.folder.work.rglob("*.masked"))

    def power_cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "put_out", power_cut)
    with pytest.raises(KeyboardInterrupt):
        act(site)
    assert dump(site) == before
    assert list(site.folder.work.rglob("*.masked")) == files


@pytest.mark.parametrize("phase", ["train", "evaluate"])
@pytest.mark.parametrize("surviving", [ALL, WITHOUT_UTRECHT], ids=["all four", "one lost after it shared"])
def test_the_sum_over_real_hospitals_is_bit_exact(site: Any, phase: str, surviving: tuple[str, ...]) -> None:
    site.approve()
    kept = site.revealed(phase=phase, surviving=surviving)
    assert kept.step is Step.REVEALED
    attempt, vector = site.attempt(kept), our_vector(site, kept)
    encoding, weights = attempt.order.encoding, attempt.layout.weights
    numbers = np.arange(attempt.layout.numbers) + 0.5
    if weights:
        numbers[attempt.layout.where("clipped")] = 0
    ours = np.concatenate(
        [
            (numbers * 2**24).astype("<u8").view(np.uint8),
            (np.arange(weights) * 2.0 ** (encoding.exponent - 10)).astype("<u4").view(np.uint8),
        ]
    )
    peers = [attempt.plain(silo) for silo in surviving if silo != SILO]
    np.testing.assert_array_equal(attempt.opened(vector), attempt.added([ours, *peers]))
    assert vector != ours.tobytes(), "what left was under masks"


def test_for_a_survivor_one_kind_of_share_leaves_and_for_a_lost_hospital_the_other(site: Any) -> None:
    site.approve()
    site.revealed(surviving=WITHOUT_UTRECHT)
    shares = site.outbox()[-1]
    assert [share.silo for share in shares.of_survivors] == [CHARITE, KAROLINSKA, SILO]
    assert [share.silo for share in shares.of_lost] == [UTRECHT]
    event = read_leaf(site.journal.trail()[-1]).event
    assert isinstance(event, UnmaskingHelped)
    assert (event.surviving, event.lost) == ((CHARITE, KAROLINSKA, SILO), (UTRECHT,))


def test_the_masked_vector_in_the_outbox_is_the_file_on_the_disk(site: Any) -> None:
    site.approve()
    kept = site.masked()
    parcel, data = site.parcel("masked-vector"), our_vector(site, kept)
    said = site.outbox()[-1]
    assert (parcel.blob_digest, parcel.blob_size) == ("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
    assert (said.vector.digest, said.vector.size) == (parcel.blob_digest, site.attempt(kept).layout.masked_bytes(32))


def test_weights_that_had_to_be_clipped_are_counted_among_the_numbers(site: Any) -> None:
    from silo_agent.vector import write_vector

    site.approve()
    folder = site.store_result()
    result = StoredResult.load(folder)
    bound = site.order().encoding.bound
    weights = np.array([0, 2, -2, 1, 0.5, 9, -1], "<f4") * np.float32(bound)
    write_vector(result.vector, np.array([0.5, 1.5, 2.5, 0.0]), weights)
    kept = site.revealed()
    attempt = site.attempt(kept)
    peers = attempt.added([attempt.plain(silo) for silo in ALL[1:]])
    at = attempt.layout.where("clipped").start
    clipped = attempt.opened(our_vector(site, kept))[:32].view("<u8")[at] - peers[:32].view("<u8")[at]
    assert int(clipped) == 3 * 2**24


# --- restarts ----------------------------------------------------------------------------------------
IN_MEMORY: dict[str, Callable[[Any], Any]] = {
    "its keys were announced": lambda site: site.ready(),
    "its secrets were shared": lambda site: site.shared(),
    "its vector was masked": lambda site: site.masked(),
    "it agreed on the survivors": lambda site: site.agreed(),
}


@pytest.mark.parametrize("reach", IN_MEMORY.values(), ids=IN_MEMORY)
def test_a_restart_forgets_the_secrets_says_so_and_joins_the_next_attempt(
    site: Any, reach: Callable[[Any], Any]
) -> None:
    site.approve()
    kept = reach(site)
    result = StoredResult.load(Path(kept.result))
    site.restart()
    assert refusal(site) == ("KEYS_LOST", True)
    assert site.kept().step is Step.REFUSED
    assert site.events()[-1] == "work-refused"
    before = dump(site)
    site.restart()
    assert dump(site) == before, "once is enough"
    again = site.revealed(attempt=2)
    assert (again.step, again.result) == (Step.REVEALED, kept.result)
    assert StoredResult.load(Path(kept.result)) == result, "and nothing was computed anew"


def test_after_the_shares_are_revealed_a_restart_changes_nothing(site: Any) -> None:
    site.approve()
    kept = site.revealed()
    before, vector, waiting = dump(site), our_vector(site, kept), site.journal.waiting()
    site.restart()
    sweep(site.folder, site.journal)
    assert (dump(site), site.journal.waiting(), our_vector(site, kept)) == (before, waiting, vector)
    assert site.parcel("shares-revealed").envelope == site.said("shares-revealed", kept.collection)


def test_work_in_progress_and_work_that_is_over_have_no_secrets_to_lose(site: Any) -> None:
    site.approve()
    site.hear(site.closing(site.ready(1), members=ALL[1:], absent=(SILO,)))
    site.ordered(2)
    before = dump(site)
    site.restart()
    assert dump(site) == before


def test_the_next_step_of_an_attempt_whose_secrets_are_gone_is_refused(site: Any) -> None:
    """As if the start had not noticed."""
    site.approve()
    closing = site.closing(site.ready())
    site.sums = Sums(site.journal, site.outbound, site.own, site.sums.entropy, site.permission())
    site.mailroom = type(site.mailroom)(
        site.journal, site.outbound, site.sums, site.witness, site.folder, site.own, site.unwanted.append
    )
    site.hear(closing)
    assert refusal(site) == ("KEYS_LOST", True)


# --- a result is unmasked among one set of hospitals -------------------------------------------------
def second_attempt(site: Any, surviving: tuple[str, ...]) -> None:
    """The same result in another attempt, up to our word on the survivors."""
    site.hear(site.naming(site.masked(attempt=2), surviving))


def test_the_same_survivors_may_be_unmasked_again(site: Any) -> None:
    site.approve()
    site.revealed(surviving=WITHOUT_UTRECHT)
    assert site.revealed(attempt=2, surviving=WITHOUT_UTRECHT).step is Step.REVEALED
    assert site.kept(attempt=2).result == site.kept().result


def test_other_survivors_are_refused_and_the_work_is_done_anew(site: Any) -> None:
    """Two sums that differ in one hospital tell what that hospital gave."""
    site.approve()
    spent = StoredResult.load(Path(site.revealed(surviving=WITHOUT_UTRECHT).result))
    second_attempt(site, ALL)
    assert refusal(site) == ("RESULT_SPENT", True)
    assert [message.kind for message in site.outbox()].count("survivors-seen") == 1
    with pytest.raises(StoredFileLost):
        StoredResult.load(Path(site.kept(attempt=2).result))
    assert site.revealed(attempt=3, surviving=ALL).step is Step.REVEALED
    fresh = StoredResult.load(Path(site.kept(attempt=3).result))
    assert fresh.identity != spent.identity
    assert site.journal.spent_on(spent.identity) == frozenset(WITHOUT_UTRECHT)
    assert site.journal.spent_on(fresh.identity) == frozenset(ALL)


@pytest.mark.parametrize("number", [1, 2], ids=["in another attempt", "in a later round on the same model"])
def test_an_evaluation_over_others_is_refused_for_good(site: Any, number: int) -> None:
    """Computed anew it would give the very same numbers, and two sums of them one hospital's."""
    site.approve()
    site.revealed(phase="evaluate", surviving=WITHOUT_UTRECHT)
    for attempt in (2, 3):
        site.hear(site.naming(site.masked(number, "evaluate", attempt), ALL))
        assert refusal(site) == ("RESULT_SPENT", False)
    assert site.revealed(number, "evaluate", 4, surviving=WITHOUT_UTRECHT).step is Step.REVEALED


def test_a_restart_does_not_forget_what_was_unmasked(site: Any) -> None:
    site.approve()
    site.revealed(surviving=WITHOUT_UTRECHT)
    site.restart()
    second_attempt(site, ALL)
    assert refusal(site) == ("RESULT_SPENT", True)


def test_a_result_that_was_only_masked_may_be_unmasked_among_others(site: Any) -> None:
    site.approve()
    site.masked()
    assert site.revealed(attempt=2, surviving=WITHOUT_UTRECHT).step is Step.REVEALED


# --- it goes on without us ---------------------------------------------------------------------------
WITHOUT_US: dict[str, Callable[[Any], Any]] = {
    "the cohort is closed without us": lambda site: site.closing(site.ready(), members=ALL[1:], absent=(SILO,)),
    "our shares came too late": lambda site: site.routing(site.shared(), members=ALL[1:], parts=()),
    "our vector came too late": lambda site: site.naming(site.masked(), ALL[1:]),
}


@pytest.mark.parametrize("tell", WITHOUT_US.values(), ids=WITHOUT_US)
def test_a_sum_that_goes_on_without_us_costs_nothing(site: Any, tell: Callable[[Any], Any]) -> None:
    site.approve()
    told = tell(site)
    said = len(site.outbox())
    site.hear(told)
    kept = site.kept()
    assert kept.step is Step.LEFT_OUT
    assert kept.collection in site.unwanted
    assert len(site.outbox()) == said
    waiting = [parcel.kind for parcel in site.journal.waiting()]
    assert waiting == ["plan-approved", "heads-cosigned"], "what had not left stays here"
    assert site.revealed(attempt=2).result == kept.result


def test_whoever_agreed_cannot_be_left_out_any_more(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Found: the message was neither answered nor passed over, and held up everything that came after it."""
    caplog.set_level(logging.WARNING)
    site.approve()
    site.hear(site.naming(site.agreed(), ALL[1:]))
    assert refusal(site) == ("OUT_OF_TURN", False)
    assert "went on without us while agreed" in caplog.text
