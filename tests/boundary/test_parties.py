"""Who does what in a plan, and which plans of roles make no sense."""

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from boundary.errors import InvalidPlan
from boundary.identity import SigningIdentity
from boundary.learning import Personalisation
from boundary.messages import PHASES
from boundary.parties import last_round, taking_part, trainers, validates_apart, validators
from boundary.plan import StudyPlan, parse_plan, to_json

TRAINING, OTHERS = ("t1", "t2", "t3"), ("v1", "v2", "v3")
FINISHED = ["sha256:" + "a" * 64, "sha256:" + "b" * 64]
NOTHING: Mapping[str, Mapping[str, Any]] = {}


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {silo: SigningIdentity.generate().public.text for silo in (*TRAINING, *OTHERS)}


def made(
    fed: ModuleType,
    keys: dict[str, str],
    validating: tuple[str, ...],
    changes: Mapping[str, Mapping[str, Any]] = NOTHING,
) -> StudyPlan:
    value = json.loads(to_json(fed.plan()))
    value["hospitals"] = [
        {"silo": silo, "signing_key": keys[silo], "role": role}
        for silos, role in ((TRAINING, "train"), (validating, "validate"))
        for silo in silos
    ]
    value["preprocessing"]["normalise"] = "none"
    value["aggregation"] |= {"quorum": 3, "error_feedback": False}
    value["model"] |= {"home": [], "trained": ["*"]}
    value["personalisation"] = None
    for section, changed in changes.items():
        value[section] = value[section] | changed
    return parse_plan(value)


def test_those_who_validate_have_a_sum_of_their_own_where_they_are_enough(
    fed: ModuleType, keys: dict[str, str]
) -> None:
    plan = made(fed, keys, OTHERS)
    assert (trainers(plan), validators(plan), validates_apart(plan)) == (TRAINING, OTHERS, True)
    assert [taking_part(plan, phase) for phase in PHASES] == [(), TRAINING, TRAINING, OTHERS, ()]


def test_only_those_who_train_personalise(fed: ModuleType, keys: dict[str, str]) -> None:
    plan = made(fed, keys, OTHERS)
    own = plan.model_copy(update={"personalisation": Personalisation()})
    assert (taking_part(plan, "personalise"), taking_part(own, "personalise")) == ((), TRAINING)


def test_too_few_of_them_are_in_the_sum_of_all(fed: ModuleType, keys: dict[str, str]) -> None:
    plan = made(fed, keys, OTHERS[:2], {"dataset": {"described": True}})
    assert not validates_apart(plan)
    everybody = (*TRAINING, *OTHERS[:2])
    assert [taking_part(plan, phase) for phase in PHASES] == [TRAINING, TRAINING, everybody, (), ()]


def test_a_hospital_measures_a_model_in_one_kind_of_sum(fed: ModuleType, keys: dict[str, str]) -> None:
    """Else its numbers were in two sums over other hospitals, whose difference is about fewer than three."""
    for validating in ((), OTHERS[:1], OTHERS[:2], OTHERS):
        plan = made(fed, keys, validating)
        parts = [*taking_part(plan, "evaluate"), *taking_part(plan, "validate")]
        assert sorted(parts) == sorted(plan.silos)


def test_a_plan_without_rounds_trains_nobody(fed: ModuleType, keys: dict[str, str]) -> None:
    plan = made(fed, keys, (), {"training": {"rounds": 0}, "evaluation": {"models": FINISHED}})
    assert [taking_part(plan, phase) for phase in PHASES] == [(), (), TRAINING, (), ()]
    assert last_round(plan) == 2


REFUSED: dict[str, tuple[int, Mapping[str, Mapping[str, Any]], str]] = {
    "fewer who train than a sum needs": (3, {"aggregation": {"quorum": 4}}, "3 train, 4 are needed"),
    "no rounds and nothing else either": (0, {"training": {"rounds": 0}}, "neither evaluation.models nor"),
    "finished models beside training": (0, {"evaluation": {"models": FINISHED}}, "belong in another plan"),
    "one model twice": (
        0, {"training": {"rounds": 0}, "evaluation": {"models": FINISHED[:1] * 2}}, "names something twice",
    ),
    "own parameters where some never train": (1, {"model": {"home": ["*norm*"]}}, "trained no parameters of its own"),
    "a part of a finished model": (
        0, {"training": {"rounds": 0}, "evaluation": {"models": FINISHED}, "model": {"trained": ["a"]}}, "is whole",
    ),
    "a normalisation by nobody's images": (
        0, {"training": {"rounds": 0}, "dataset": {"described": True}, "preprocessing": {"normalise": "federated"}},
        "no training images",
    ),
    "counts under a guarantee": (
        0, {"dataset": {"described": True}, "training": {"weighting": "equal"},
            "privacy": {"mechanism": "patient-dp", "epsilon": 8.0}},
        "not covered by privacy noise",
    ),
    "a vote on nothing": (
        0, {"training": {"rounds": 0}, "evaluation": {"models": FINISHED}, "robustness": {"vote": True}},
        "nothing to clip, to vote on or to draw for",
    ),
    "a draw for nothing": (
        0, {"training": {"rounds": 0}, "evaluation": {"models": FINISHED}, "selection": {"hospitals": 3}},
        "nothing to clip, to vote on or to draw for",
    ),
    "a beginning of nothing": (
        0, {"training": {"rounds": 0}, "evaluation": {"models": FINISHED},
            "model": {"pretrained": {"file": "weights.safetensors", "sha256": "ab" * 32}}},
        "nothing begins with it",
    ),
    "a guarantee for nothing": (
        0, {"training": {"rounds": 0, "weighting": "equal"}, "evaluation": {"models": FINISHED},
            "privacy": {"mechanism": "patient-dp", "epsilon": 8.0}},
        "nothing to guarantee",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(fed: ModuleType, keys: dict[str, str], what: str) -> None:
    count, changes, reason = REFUSED[what]
    with pytest.raises(InvalidPlan, match=reason):
        made(fed, keys, OTHERS[:count], changes)
