"""Verification of a study by groups, played by real agents: it holds, and what a forger says of its groups does not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from boundary.names import COORDINATOR
from boundary.robustness import Median
from compliance.bundle import Bundle, Trust
from compliance.events import CohortDecided, RoundClosed, SumOpened, UnmaskingHelped
from compliance.evidence.facts import facts_of
from compliance.evidence.round_checks import check_cohorts
from compliance.evidence.verdicts import Verdict
from compliance.trail import read_leaf
from compliance.verification import rounds, sums
from compliance.verification.case import open_case
from compliance.verification.findings import Severity
from flows.driver import StudyDriver
from flows.evidence import gather
from flows.store.database import writing
from infra.driving import PARAMETERS, one_round, run, work_of
from infra.federation import make_federation
from tests.compliance.verification_cases import rewritten

GROUPS = {f"h{number:02}": (number - 1) // 4 + 1 for number in range(1, 13)}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Trust]]:
    works = {silo: work_of(int(silo[1:])) for silo in GROUPS}
    made = make_federation(
        tmp_path_factory.mktemp("groups"), works, parameters=PARAMETERS, groups=GROUPS, rounds=1, quorum=4
    )

    async def story(driver: StudyDriver) -> None:
        driver.record_consents()
        await one_round(driver)
        await driver.witness_end()

    run(made, story)
    with writing(made.coordinator.store) as connection:
        bundle = gather(connection, made.coordinator, made.study)
    keys = {silo: hospital.key.public for silo, hospital in made.hospitals.items()}
    yield bundle, Trust(made.coordinator.key.public, keys, {})
    made.close()


def said(bundle: Bundle, trust: Trust) -> list[str]:
    """What is broken about the sums."""
    case = open_case(bundle, trust, None)
    found = [one for check in (sums.cohorts, sums.models, sums.hospitals, rounds.records) for one in check(case)]
    return [one.found for one in found if one.severity is Severity.BROKEN]


def altered(bundle: Bundle, kind: Any, phase: str | None = None, party: str = COORDINATOR, **data: Any) -> Bundle:
    """With other words in one party's entries of a kind; `sums` asks nothing of signatures."""
    log = bundle.logs[party]

    def of(entry: bytes) -> bytes:
        event = read_leaf(entry).event
        is_it = isinstance(event, kind) and (phase is None or getattr(event, "phase", None) == phase)
        return rewritten(entry, **data) if is_it else entry

    entries = tuple(of(entry) if len(entry) > 40 else entry for entry in log.entries)
    return replace(bundle, logs=bundle.logs | {party: replace(log, entries=entries)})


def with_median(bundle: Bundle, median: Median | None) -> Bundle:
    return replace(bundle, rounds=tuple(one.model_copy(update={"median": median}) for one in bundle.rounds))


def test_what_real_agents_did_holds(played: tuple[Bundle, Trust]) -> None:
    assert said(*played) == []


@pytest.mark.parametrize(
    ("median", "words"),
    [
        (None, "no median, the plan's is of 3"),
        (Median(groups=2), "the median of 2 groups, the plan's is of 3"),
        (Median(groups=3, spoiled=2), "does not do what the length of its sum says"),
    ],
)
def test_another_median_is_found(played: tuple[Bundle, Trust], median: Median | None, words: str) -> None:
    bundle, trust = played
    assert any(words in one for one in said(with_median(bundle, median), trust))


def test_a_group_of_three_in_a_sum_of_eleven_is_found(played: tuple[Bundle, Trust]) -> None:
    bundle, trust = played
    eleven = [silo for silo in GROUPS if silo != "h12"]
    found = said(altered(bundle, SumOpened, "train", surviving=eleven), trust)
    assert any("is for a group of them over 3 hospitals, 4 are needed" in one for one in found)


def test_the_evidence_report_counts_in_each_group(played: tuple[Bundle, Trust]) -> None:
    bundle, _ = played
    eleven = [silo for silo in GROUPS if silo != "h12"]
    assert check_cohorts(facts_of(bundle)).verdict is Verdict.PASS
    found = check_cohorts(facts_of(altered(bundle, SumOpened, "train", surviving=eleven)))
    assert found.verdict is Verdict.FAIL
    assert check_cohorts(facts_of(altered(bundle, SumOpened, "evaluate", surviving=eleven))).verdict is Verdict.PASS


def test_two_groups_of_four_are_found(played: tuple[Bundle, Trust]) -> None:
    bundle, trust = played
    found = said(altered(bundle, RoundClosed, contributing=list(GROUPS)[:8]), trust)
    assert any("is over 2 groups, 3 are needed" in one for one in found)


def test_a_hospital_that_helped_to_open_another_groups_sum_is_found(played: tuple[Bundle, Trust]) -> None:
    bundle, trust = played
    everybody = list(GROUPS)
    found = said(altered(bundle, UnmaskingHelped, "train", party="h05", surviving=everybody), trust)
    assert any("helped to unmask the train sum of round 1" in one for one in found)


def test_a_group_whose_sum_nobody_of_it_opened_is_found(played: tuple[Bundle, Trust]) -> None:
    """Its two others are not enough, however many of the other groups helped."""
    bundle, trust = played
    for silo in ("h01", "h02"):
        bundle = altered(bundle, UnmaskingHelped, "train", party=silo, round=99)
    found = said(bundle, trust)
    assert any("2 hospitals helped to unmask its sum, 3 are needed" in one for one in found)


def test_a_cohort_with_a_group_too_small_is_told_once(played: tuple[Bundle, Trust]) -> None:
    bundle, trust = played
    ten = [silo for silo in GROUPS if silo not in {"h11", "h12"}]
    found = said(altered(bundle, CohortDecided, "train", members=ten), trust)
    assert any("over others than were ready" in one for one in found)
