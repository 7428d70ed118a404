"""The guarantee a plan asks for: every number in its range, one way to say how much noise, and no second spelling."""

import json
from copy import deepcopy
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.canonical import parse_canonical
from boundary.errors import InvalidPlan
from boundary.guarantee import EPSILON_BANDS, MECHANISMS, NoPrivacy, PatientPrivacy
from boundary.plan import StudyPlan, digest_of, parse_plan, plan_from_json, plan_from_toml, to_json

SOUND: dict[str, Any] = {"mechanism": "patient-dp", "epsilon": 4.0}


def with_privacy(fed: ModuleType, privacy: dict[str, Any]) -> dict[str, Any]:
    """The golden private plan with this in the place of its guarantee."""
    value: dict[str, Any] = json.loads(to_json(fed.private_plan()))
    return value | {"privacy": privacy}


def reason(value: dict[str, Any]) -> str:
    with pytest.raises(InvalidPlan) as why:
        parse_plan(value)
    return str(why.value)


# --- which mechanism ---------------------------------------------------------------------------------
def test_without_a_word_there_is_no_guarantee(fed: ModuleType) -> None:
    value = json.loads(to_json(fed.plan()))
    del value["privacy"]
    assert parse_plan(value).privacy == NoPrivacy() == NoPrivacy(mechanism="none")


def test_an_unknown_mechanism_is_answered_with_those_there_are(fed: ModuleType) -> None:
    said = reason(with_privacy(fed, SOUND | {"mechanism": "trust-me"}))
    assert said == "privacy: the mechanism is none of none, patient-dp"


@pytest.mark.parametrize("privacy", [{}, {"epsilon": 4.0}], ids=["nothing", "an epsilon"])
def test_a_guarantee_says_by_which_mechanism(fed: ModuleType, privacy: dict[str, Any]) -> None:
    assert reason(with_privacy(fed, privacy)) == "privacy: say mechanism, one of none, patient-dp"


def test_the_mechanisms_named_in_reasons_are_those_there_are() -> None:
    known = {kind.model_fields["mechanism"].annotation for kind in (NoPrivacy, PatientPrivacy)}
    assert {name for literal in known for name in literal.__args__} == set(MECHANISMS)  # type: ignore[union-attr]


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "of a guarantee": (SOUND | {"delta": 1e-5}, "privacy.patient-dp.delta: unknown key"),
    "of no guarantee": ({"mechanism": "none", "epsilon": 4.0}, "privacy.none.epsilon: unknown key"),
}


@pytest.mark.parametrize(("privacy", "says"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_key_is_refused(fed: ModuleType, privacy: dict[str, Any], says: str) -> None:
    """The delta above all: it is the hospital's, and no plan may choose it."""
    assert reason(with_privacy(fed, privacy)) == says


# --- how much ----------------------------------------------------------------------------------------
BOTH_OR_NEITHER = {"both": {"epsilon": 4.0, "noise_multiplier": 1.5}, "neither": {"epsilon": None}}


@pytest.mark.parametrize("changes", BOTH_OR_NEITHER.values(), ids=BOTH_OR_NEITHER)
def test_exactly_one_of_epsilon_and_noise_is_given(fed: ModuleType, changes: dict[str, Any]) -> None:
    said = reason(with_privacy(fed, SOUND | changes))
    assert said == ("privacy.patient-dp: give epsilon or noise_multiplier, and not both: each follows from the other")


RANGES: dict[str, tuple[float, float, float, float]] = {
    "noise_multiplier": (0.1, 60.0, 0.0999, 60.1),
    "clip": (1e-300, 1e6, 0.0, 1e6 + 1),
    "patients_per_step": (1, 4096, 0, 4097),
    "steps": (1, 100_000, 0, 100_001),
    "images_per_patient": (1, 256, 0, 257),
    "epsilon": (0.01, 100.0, 0.0099, 100.1),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_in_its_range(name: str) -> None:
    base = {"mechanism": "patient-dp"} if name in {"epsilon", "noise_multiplier"} else SOUND
    smallest, largest, below, above = RANGES[name]
    for value in (smallest, largest):
        assert getattr(PatientPrivacy.model_validate(base | {name: value}), name) == value
    for value in (below, above):
        with pytest.raises(ValidationError, match=name):
            PatientPrivacy.model_validate(base | {name: value})


NO_NUMBERS: dict[str, tuple[str, Any]] = {
    "an epsilon that is none": ("epsilon", float("nan")),
    "an epsilon without end": ("epsilon", float("inf")),
    "an epsilon in words": ("epsilon", "4"),
    "true for epsilon 1": ("epsilon", True),
    "half a step": ("steps", 10.5),
    "a step as a float": ("steps", 10.0),
    "true for one patient": ("patients_per_step", True),
    "images in words": ("images_per_patient", "4"),
    "a clip of nothing": ("clip", None),
}


@pytest.mark.parametrize(("name", "value"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_no_number_of_its_kind_is_refused(fed: ModuleType, name: str, value: object) -> None:
    assert reason(with_privacy(fed, SOUND | {name: value})).startswith(f"privacy.patient-dp.{name}: ")


def test_bands_rise_and_lie_where_a_plan_may_promise() -> None:
    assert list(EPSILON_BANDS) == sorted(set(EPSILON_BANDS))
    assert all(0.01 <= band <= 100 for band in EPSILON_BANDS)


# --- the digest --------------------------------------------------------------------------------------
OTHERWISE: dict[str, dict[str, Any]] = {
    "another epsilon": {"epsilon": 3.6},
    "noise where an epsilon was": {"epsilon": None, "noise_multiplier": 1.5},
    "another clip": {"clip": 0.76},
    "other patients per step": {"patients_per_step": 25},
    "other steps": {"steps": 21},
    "other images": {"images_per_patient": 4},
}


def test_every_number_of_the_guarantee_makes_another_study(fed: ModuleType) -> None:
    plan: StudyPlan = fed.private_plan()
    value = json.loads(to_json(plan))
    assert set().union(*OTHERWISE.values()) | {"mechanism"} == set(value["privacy"])
    digests = {digest_of(plan), digest_of(fed.plan())}
    for changes in OTHERWISE.values():
        other = deepcopy(value)
        other["privacy"] |= changes
        digests.add(digest_of(parse_plan(other)))
    assert len(digests) == 2 + len(OTHERWISE)


@given(st.data())
def test_a_plan_with_a_guarantee_is_read_as_it_was_written(strategies: SimpleNamespace, data: st.DataObject) -> None:
    plan = data.draw(strategies.plans.filter(lambda plan: plan.bands > 0))
    again = plan_from_json(parse_canonical(to_json(plan)))
    assert (again, digest_of(again)) == (plan, digest_of(plan))
    assert isinstance(again.privacy, PatientPrivacy)


def test_a_default_written_out_is_the_same_guarantee(fed: ModuleType) -> None:
    """A steward compares digests: two spellings of one plan must not have two."""
    short = fed.private_toml().replace("clip = 0.75\n", "").replace("images_per_patient = 3", "")
    long = (
        fed.private_toml()
        .replace("clip = 0.75", "clip = 1.0")
        .replace("images_per_patient = 3", "images_per_patient = 4")
    )
    assert digest_of(plan_from_toml(short)) == digest_of(plan_from_toml(long)) != digest_of(fed.private_plan())
