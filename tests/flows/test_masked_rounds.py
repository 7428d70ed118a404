"""Masked sums through the coordinator's real store: hospitals that drop out, restart or lie at any step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.messages import MaskedVector, Ready, Shares, SharesRevealed, SurvivorsSeen, WorkOrder
from boundary.secagg.errors import BadShares
from boundary.secagg.opening import Opening
from boundary.secagg.ring import first_encoding
from compliance.events import AttemptFailed, SumOpened, UnmaskingHelped
from compliance.records import RoundRecord
from compliance.trail import read_leaf
from flows.driver import StudyDriver
from infra.cohort import flipped
from infra.driving import EXACT, PARAMETERS, mean_of, one_round, run, trail, train_only, weights, work_of
from infra.federation import SimulatedFederation, SimulatedHospital, make_federation

DIGEST = "sha256:" + "0" * 64
Make = Callable[..., SimulatedFederation]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[SimulatedFederation] = []

    def make(hospitals: int = 4, **options: Any) -> SimulatedFederation:
        works = {f"h{n}": work_of(n) for n in range(1, hospitals + 1)}
        made.append(make_federation(tmp_path / f"home-{len(made)}", works, parameters=PARAMETERS, **options))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def moved(federation: SimulatedFederation, record: RoundRecord, *numbers: int) -> None:
    """The model moved by the weighted mean of exactly these hospitals, and the record says so."""
    assert record.contributing == tuple(f"h{n}" for n in numbers)
    assert weights(federation, record) == pytest.approx(np.full(PARAMETERS, mean_of(*numbers)), rel=EXACT)


DROPS = {
    "before its keys": (Ready, (1, 2, 3)),
    "before its shares": (Shares, (1, 2, 3)),
    "before its vector": (MaskedVector, (1, 2, 3)),
    "before it agrees": (SurvivorsSeen, (1, 2, 3, 4)),
    "before it reveals": (SharesRevealed, (1, 2, 3, 4)),
}


@pytest.mark.parametrize(("kind", "summed"), DROPS.values(), ids=DROPS)
def test_a_hospital_that_falls_silent(kind: Any, summed: tuple[int, ...], make: Make) -> None:
    """Who is silent before its vector arrived is not in the sum; who is silent after it is."""
    federation = make()
    federation.hospitals["h4"].fall_silent_before(kind.kind)
    record = run(federation, train_only)
    moved(federation, record, *summed)
    assert record.train.attempt == 1
    assert record.absent == ({"h4": "SILENT"} if len(summed) == 3 else {})


def test_a_restart_loses_the_attempt_but_not_the_work(make: Make) -> None:
    """Two of four restart with their keys announced: two are too few, so all four try again with what they have."""
    federation = make()
    for silo in ("h3", "h4"):
        federation.hospitals[silo].fall_silent_before("shares")

    async def story(driver: StudyDriver) -> RoundRecord:
        federation.when_silent({"h3", "h4"}, SimulatedHospital.restart)
        return await train_only(driver)

    record = run(federation, story)
    moved(federation, record, 1, 2, 3, 4)
    assert record.train.attempt == 2
    assert [len(hospital.worked) for hospital in federation.hospitals.values()] == [1, 1, 1, 1]
    failures = [event for event in trail(federation) if isinstance(event, AttemptFailed)]
    assert [event.reason for event in failures] == ["TOO_MANY_REFUSED"]


LIES: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "about its order": (Ready, lambda said: said.model_copy(update={"context": DIGEST}), "SPLIT_VIEW"),
    "with a key that is none": (
        Ready,
        lambda said: said.model_copy(update={"mask_key": said.mask_key[:21] + 40 * "/" + said.mask_key[61:]}),
        "MALFORMED",
    ),
    "with shares for another cohort": (Shares, lambda said: said.model_copy(update={"cohort": DIGEST}), "SPLIT_VIEW"),
    "with a share too few": (Shares, lambda said: said.model_copy(update={"parts": said.parts[1:]}), "BAD_SHARES"),
    "with one share twice": (
        Shares, lambda said: said.model_copy(update={"parts": (said.parts[0], *said.parts[:-1])}), "BAD_SHARES",
    ),
    "with a share it did not sign": (
        Shares, lambda said: said.model_copy(update={"parts": (flipped(said.parts[0], 400), *said.parts[1:])}), None,
    ),
    "with a vector for other sharers": (
        MaskedVector, lambda said: said.model_copy(update={"sharers": DIGEST}), "SPLIT_VIEW",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "lie", "code"), LIES.values(), ids=LIES)
def test_a_hospital_that_lies_is_left_out_by_name(kind: Any, lie: Any, code: str | None, make: Make) -> None:
    federation = make()
    federation.hospitals["h4"].lie(kind.kind, lie)
    record = run(federation, train_only)
    moved(federation, record, 1, 2, 3)
    assert set(record.absent) == {"h4"}
    assert code in {None, record.absent["h4"]}


@pytest.mark.parametrize("change", [lambda data: data[:-4], lambda data: data + bytes(4), lambda data: data[::2]],
                         ids=["truncated", "oversized", "of the 16-bit ring"])  # fmt: skip
def test_a_vector_of_another_size_is_left_out(change: Callable[[bytes], bytes], make: Make) -> None:
    federation = make()
    liar = federation.hospitals["h4"]

    def lie(said: MaskedVector) -> MaskedVector:
        with federation.coordinator.blobs.open(said.vector.digest) as source:
            return said.model_copy(update={"vector": liar.put(change(source.read()))})

    liar.lie(MaskedVector.kind, lie)
    record = run(federation, train_only)
    moved(federation, record, 1, 2, 3)
    assert record.absent == {"h4": "BAD_VECTOR"}


def _wrong_share(said: SharesRevealed) -> SharesRevealed:
    first = said.of_survivors[0]
    wrong = first.model_copy(update={"share": flipped(first.share, 5)})
    return said.model_copy(update={"of_survivors": (wrong, *said.of_survivors[1:])})


LATE_LIES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "about who survived": (SurvivorsSeen, lambda said: said.model_copy(update={"survivors": DIGEST})),
    "with a share it was not dealt": (SharesRevealed, _wrong_share),
    "with both kinds of share for one": (
        SharesRevealed, lambda said: said.model_copy(update={"of_lost": said.of_survivors[:1]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "lie"), LATE_LIES.values(), ids=LATE_LIES)
def test_a_lie_after_the_vector_does_not_stop_the_others(kind: Any, lie: Any, make: Make) -> None:
    federation = make()
    federation.hospitals["h4"].lie(kind.kind, lie)
    moved(federation, run(federation, train_only), 1, 2, 3, 4)


def _cannot_open_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first opened sum of this test turns out to have been spoilt by a dealer."""
    masks, calls = Opening.masks, iter([True])

    def spoilt(self: Opening) -> Any:
        if next(calls, False):
            raise BadShares("h1 dealt shares that do not give its key")
        return masks(self)

    monkeypatch.setattr(Opening, "masks", spoilt)


def test_after_shares_were_revealed_the_same_hospitals_may_try_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cannot_open_once(monkeypatch)
    federation = make()
    record = run(federation, train_only)
    moved(federation, record, 1, 2, 3, 4)
    assert record.train.attempt == 2
    assert [len(hospital.worked) for hospital in federation.hospitals.values()] == [1, 1, 1, 1]


def test_after_shares_were_revealed_others_get_only_what_is_computed_anew(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sums over the same results, one with and one without h4, would show what h4 computed."""
    _cannot_open_once(monkeypatch)
    federation = make()

    async def story(driver: StudyDriver) -> RoundRecord:
        federation.hospitals["h4"].silent_before_attempt = 2
        return await train_only(driver)

    record = run(federation, story)
    moved(federation, record, 1, 2, 3)
    assert record.train.attempt == 3
    assert [len(hospital.worked) for hospital in federation.hospitals.values()] == [2, 2, 2, 1]
    failures = [event.reason for event in trail(federation) if isinstance(event, AttemptFailed)]
    assert failures == ["CANNOT_UNMASK", "TOO_MANY_REFUSED"]


def test_both_trails_say_which_sum_was_opened(make: Make) -> None:
    federation = make(3)
    record = run(federation, one_round)
    opened = [event for event in trail(federation) if isinstance(event, SumOpened)]
    assert [(event.phase, event.surviving) for event in opened] == [
        ("train", record.contributing), ("evaluate", record.contributing),
    ]  # fmt: skip
    for hospital in federation.hospitals.values():
        leaves = [read_leaf(leaf).event for leaf in hospital.journal.trail()]
        helped = [event for event in leaves if isinstance(event, UnmaskingHelped)]
        assert [(event.survivors, event.surviving, event.lost) for event in helped] == [
            (event.survivors, event.surviving, ()) for event in opened
        ]


def test_the_scale_is_fitted_to_the_last_sum(make: Make) -> None:
    federation = make(3)

    async def story(driver: StudyDriver) -> list[RoundRecord]:
        return [await one_round(driver, number) for number in (1, 2)]

    first, second = run(federation, story)
    orders = [order for order in federation.hospitals["h1"].heard(WorkOrder) if order.collection.phase == "train"]
    assert orders[1].encoding == first.next_encoding
    assert orders[1].encoding.exponent > orders[0].encoding.exponent
    assert second.clipped == 0
    step = weights(federation, second) - weights(federation, first)
    assert step == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3)), rel=1e-6)


def test_sixteen_bits_are_enough_for_a_sum_of_few(make: Make) -> None:
    federation = make(3, ring=16, delta_bound=1.0, max_weight=20)
    record = run(federation, one_round)
    assert weights(federation, record) == pytest.approx(np.full(PARAMETERS, mean_of(1, 2, 3)), rel=1e-2)
    sizes = [said.vector.size for said in federation.hospitals["h1"].said(MaskedVector)]
    assert sizes[0] == 4 * 8 + PARAMETERS * 2


def test_what_does_not_fit_is_clipped_and_counted(make: Make) -> None:
    federation = make(3, delta_bound=0.01, max_weight=200)
    record = run(federation, train_only)
    bound = first_encoding(federation.plan).bound
    assert 2 <= bound < 4
    assert record.clipped == 2 * PARAMETERS
    expected = (1 + bound + bound) / 6
    assert weights(federation, record) == pytest.approx(np.full(PARAMETERS, expected), rel=EXACT)


@pytest.mark.parametrize(("feedback", "factor"), [(False, 2), (True, 1)], ids=["unbiased", "with error feedback"])
def test_half_of_the_weights_travel_and_the_same_half_for_everybody(feedback: bool, factor: int, make: Make) -> None:
    federation = make(3, random_share=0.5, error_feedback=feedback)
    record = run(federation, one_round)
    moved_by = weights(federation, record)
    assert np.count_nonzero(moved_by) == PARAMETERS // 2
    mean = pytest.approx(factor * mean_of(1, 2, 3), rel=EXACT)
    assert [float(value) for value in moved_by if value] == [mean] * (PARAMETERS // 2)
    assert federation.hospitals["h1"].said(MaskedVector)[0].vector.size == 4 * 8 + PARAMETERS // 2 * 4
