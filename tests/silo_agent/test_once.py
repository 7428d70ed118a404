"""What a hospital gives its numbers for once: not for a model that it has trained, in whatever study that was."""

from typing import Any

import pytest
from silo_agent_tests_one_hospital import MODEL, NEXT_MODEL, OTHERS, SILO

from boundary.canonical import digest
from compliance.events import RoundReceived
from silo_agent.once import EvaluatedBefore, check_unmeasured

THEIRS, OURS = OTHERS, (SILO, *OTHERS[:2])
ELSE = digest(b"else").replace("sha256:", "")[:8]
Told = tuple[int, str, str | None, tuple[str, ...]]  # round, model, tried, contributing

TRAINED: dict[str, list[Told]] = {
    "it came of a round with us": [(1, MODEL.digest, None, OURS)],
    "it came of a round without us, after one with us": [
        (1, NEXT_MODEL.digest, None, OURS), (2, MODEL.digest, None, THEIRS),
    ],
    "it was tried with us, and rolled back": [(1, NEXT_MODEL.digest, MODEL.digest, OURS)],
}  # fmt: skip
NOT_TRAINED: dict[str, list[Told]] = {
    "all of it was without us": [(1, MODEL.digest, None, THEIRS)],
    "we came after it": [(1, MODEL.digest, None, THEIRS), (2, NEXT_MODEL.digest, None, OURS)],
    "what was made with us was rolled back to it": [
        (1, MODEL.digest, None, THEIRS), (2, MODEL.digest, NEXT_MODEL.digest, OURS),
    ],
}  # fmt: skip


def ask(site: Any, told: list[Told], study: str = f"another-{ELSE}", phase: str = "evaluate") -> None:
    site.approve()
    for number, model, tried, contributing in told:
        said = RoundReceived(
            study=study, round=number, model=model, tried=tried, transcript=digest(b"sum"), contributing=contributing,
            absent=(),
        )  # fmt: skip
        with site.journal.transaction():
            site.journal.record(said, site.now)
    check_unmeasured(site.journal, site.order(1, phase))


@pytest.mark.parametrize("told", TRAINED.values(), ids=TRAINED)
def test_who_has_trained_a_model_is_no_external_validation_of_it(site: Any, told: list[Told]) -> None:
    with pytest.raises(EvaluatedBefore, match=f"comes of another-{ELSE}, in which this hospital has trained"):
        ask(site, told)


@pytest.mark.parametrize("told", NOT_TRAINED.values(), ids=NOT_TRAINED)
def test_who_has_not_may_measure_it(site: Any, told: list[Told]) -> None:
    ask(site, told)


def test_a_study_measures_what_it_trains_and_another_may_go_on_from_it(site: Any) -> None:
    told = TRAINED["it came of a round with us"]
    ask(site, told, study=site.study)
    ask(site, told, phase="train")
