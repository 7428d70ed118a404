"""What the policy refuses. Each row changes the page's policy or an allowed request in one way."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silo_agent_tests_policies import (
    GONE,
    IT,
    MOMENTS,
    NOW,
    OTHER_PLAN,
    PATIENTS,
    PLAN,
    STEWARD,
    STRANGER,
    Changes,
    a_policy,
    a_request,
    policies,
    requests,
    signed,
    standing,
)

from boundary.errors import CallerFault
from boundary.plan import digest_of as plan_digest
from boundary.plan import parse_plan
from silo_agent.errors import WorkFailed
from silo_agent.policy.adoption import Pin, Standing
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.facts import DataFacts, NothingSpent, Request, Unguarded
from silo_agent.policy.gates import GATES, check_destination, judge
from silo_agent.policy.model import Policy, digest_of

ORDER = (
    "signature", "validity", "study", "hours", "dataset", "exclusions", "cohort", "incoming", "budget", "egress",
    "resources",
)  # fmt: skip


def test_an_allowed_request_passes_every_gate_in_the_designs_order() -> None:
    policy = a_policy()
    passed = judge(a_request(policy), policy, NOW)
    assert tuple(one.gate for one in passed) == ORDER
    assert {(one.policy, one.at) for one in passed} == {(digest_of(policy), NOW)}


def test_a_gate_of_no_name_or_twice_would_be_noticed() -> None:
    assert tuple(name for name, _ in GATES) == ORDER
    assert len({check for _, check in GATES}) == len(ORDER)


CT, STUDY = "dataset.chest-ct", "study.CT-CONTRAST-01"
NAN = float("nan")
Row = tuple[str, str, Changes, dict[str, Any]]
REFUSED: dict[str, Row] = {
    "the policy is not valid yet": ("validity", "POLICY_NOT_YET_VALID", {"valid.from": date(2026, 11, 22)}, {}),
    "the policy has expired": ("validity", "POLICY_EXPIRED", {"valid.until": date(2026, 11, 20)}, {}),
    "a study that is not named": ("study", "STUDY_NOT_ALLOWED", {}, {"plan_name": "ct-contrast-02"}),
    "a policy without studies": ("study", "STUDY_NOT_ALLOWED", {STUDY: GONE}, {}),
    "a study's name in capitals": ("study", "STUDY_NOT_ALLOWED", {}, {"plan_name": "CT-CONTRAST-01"}),
    "another plan of the study": ("study", "PLAN_NOT_ALLOWED", {}, {"plan_digest": OTHER_PLAN}),
    "a plan that is taken back": ("study", "PLAN_NOT_ALLOWED", {f"{STUDY}.plan_digest": []}, {}),
    "papers that have expired": ("study", "STUDY_EXPIRED", {f"{STUDY}.legal.expires": date(2026, 11, 20)}, {}),
    "another window": ("hours", "OUT_OF_HOURS", {"hours.windows": ["Mon-Fri 19:00-06:00"]}, {}),
    "no window": ("hours", "OUT_OF_HOURS", {"hours.windows": []}, {}),
    "a data set that is not named": ("dataset", "DATASET_NOT_ALLOWED", {}, {"name": "head-mr"}),
    "a modality that is not named": ("dataset", "MODALITY_NOT_ALLOWED", {}, {"modalities": frozenset({"CT", "MR"})}),
    "no modality at all": ("dataset", "MODALITY_NOT_ALLOWED", {}, {"modalities": frozenset()}),
    "more images of a patient": ("dataset", "IMAGES_PER_PATIENT", {}, {"images_per_patient": 9}),
    "an intake that takes lossy images": ("dataset", "LOSSY_ADMITTED", {}, {"admits_lossy": True}),
    "an intake that takes burned-in text": ("dataset", "BURNED_IN_ADMITTED", {}, {"admits_burned_in": True}),
    "no list of exclusions": ("exclusions", "EXCLUSIONS_MISSING", {}, {"exclusions_at": None}),
    "a list a second too old": (
        "exclusions", "EXCLUSIONS_STALE", {}, {"exclusions_at": NOW - timedelta(hours=24, seconds=1)},
    ),
    "a list of tomorrow": ("exclusions", "EXCLUSIONS_STALE", {}, {"exclusions_at": NOW + timedelta(hours=1)}),
    "a sum over too few": ("cohort", "COHORT_TOO_SMALL", {"release.min_parties_in_sum": 4}, {}),
    "a sum over two": ("cohort", "COHORT_TOO_SMALL", {}, {"parties": 2}),
    "too few patients": ("cohort", "DATASET_TOO_SMALL", {}, {"patients": 49}),
    "more patients than the mechanism was told": ("cohort", "DATASET_TOO_LARGE", {}, {"patients": 2001}),
    "a model that is too large": ("incoming", "MODEL_TOO_LARGE", {}, {"model_size": 200_000_001}),
    "a smaller limit for models": ("incoming", "MODEL_TOO_LARGE", {"network.max_model_mb": 149}, {}),
    "weights where no folder of such is named": (
        "incoming", "WEIGHTS_NOT_ALLOWED", {}, {"pretrained": "chest.safetensors"},
    ),
    "no guarantee": ("budget", "GUARANTEE_REQUIRED", {}, {"spending": Unguarded()}),
    "an epsilon over the study's": ("budget", "STUDY_EPSILON", {}, {"epsilon_study": 6.01}),
    "a study's epsilon that is no number": ("budget", "STUDY_EPSILON", {}, {"epsilon_study": NAN}),
    "an epsilon over the lifetime's": ("budget", "LIFETIME_EPSILON", {}, {"epsilon_lifetime": 10.01}),
    "a lifetime's epsilon that is no number": ("budget", "LIFETIME_EPSILON", {}, {"epsilon_lifetime": NAN}),
    "a delta over the ceiling": ("budget", "DELTA_TOO_LARGE", {"privacy.max_delta": 1e-5}, {}),
    "a delta of another archive": ("budget", "DELTA_TOO_LARGE", {}, {"delta": 9e-5}),
    "a delta that is no number": ("budget", "DELTA_TOO_LARGE", {}, {"delta": NAN}),
    "too little noise": ("budget", "NOISE_TOO_LOW", {}, {"noise_multiplier": 0.59}),
    "noise that is no number": ("budget", "NOISE_TOO_LOW", {}, {"noise_multiplier": NAN}),
    "a metric that is not named": ("egress", "METRIC_NOT_ALLOWED", {}, {"metrics": frozenset({"loss", "per_case"})}),
    "finer counts": ("egress", "CELL_TOO_SMALL", {"release.smallest_cell": 20}, {}),
    "more than may leave": ("egress", "EGRESS_TOO_LARGE", {}, {"size": 200_000_001}),
    "a round too many": ("resources", "TOO_MANY_ROUNDS", {}, {"round": 61}),
    "a GPU too many": ("resources", "TOO_MANY_DEVICES", {}, {"devices": 2}),
    "a round that has taken too long": ("resources", "ROUND_TOO_LONG", {}, {"hours": 2.01}),
    "hours that are no number": ("resources", "ROUND_TOO_LONG", {}, {"hours": NAN}),
}  # fmt: skip


@pytest.mark.parametrize(("gate", "code", "changes", "asked"), REFUSED.values(), ids=REFUSED)
def test_each_gate_refuses(gate: str, code: str, changes: Changes, asked: dict[str, Any]) -> None:
    policy = a_policy(changes)
    with pytest.raises(PolicyRefused) as refused:
        judge(a_request(policy, **asked), policy, NOW)
    assert (refused.value.gate, refused.value.reason) == (gate, code)
    assert tuple(one.gate for one in refused.value.passed) == ORDER[: ORDER.index(gate)], "what passed before it"
    assert str(refused.value)


@pytest.mark.parametrize(("gate", "code", "changes", "asked"), REFUSED.values(), ids=REFUSED)
def test_no_refusal_tells_a_number_of_patients(gate: str, code: str, changes: Changes, asked: dict[str, Any]) -> None:
    policy = a_policy(changes)
    asked = {"patients": PATIENTS, **asked}
    request = a_request(policy, **asked)
    with pytest.raises(PolicyRefused) as refused:
        judge(request, policy, NOW)
    assert not {str(PATIENTS), "49", "2001"} & set(str(refused.value).replace(":", " ").split())
    assert f"{asked['patients']}" not in repr(request.data)


def test_weights_may_begin_a_study_where_the_policy_names_their_folder() -> None:
    policy = a_policy({"weights": {"folder": "/srv/weights"}})
    assert len(judge(a_request(policy, pretrained="chest.safetensors"), policy, NOW)) == len(ORDER)


def test_every_code_is_reached_by_some_test() -> None:
    in_rows = {row[1] for row in REFUSED.values()}
    elsewhere = {
        "POLICY_UNSIGNED",
        "POLICY_SIGNATURE_INVALID",
        "POLICY_NOT_IN_FORCE",
        "POLICY_ROLLED_BACK",
        "DESTINATION_NOT_ALLOWED",
        "POLICY_OF_ANOTHER_SITE",
    }  # fmt: skip - test_signing, test_adoption and below
    assert in_rows | elsewhere == {code.value for code in PolicyCode}


ALLOWED: dict[str, tuple[Changes, dict[str, Any], datetime]] = {
    "a whole allowance": (
        {},
        {"size": 200_000_000, "model_size": 200_000_000, "hours": 2.0, "round": 60, "epsilon_study": 6.0,
         "epsilon_lifetime": 10.0, "noise_multiplier": 0.6},
        NOW,
    ),
    "as few patients as may be": ({}, {"patients": 50}, NOW),
    "as many patients as were declared": ({}, {"patients": 2000}, NOW),
    "a list that is just young enough": ({}, {"exclusions_at": NOW - timedelta(hours=24)}, NOW),
    "a list from a clock slightly ahead": ({}, {"exclusions_at": NOW + timedelta(minutes=4)}, NOW),
    "no guarantee, where none is asked for": ({"privacy.required": False}, {"spending": Unguarded()}, NOW),
    "a phase that spends nothing": ({}, {"spending": NothingSpent()}, NOW),
    "less than everything": ({}, {"metrics": frozenset(), "devices": 0}, NOW),
    "the last minute of the last day": (
        {"valid.until": date(2026, 11, 21), f"{STUDY}.legal.expires": date(2026, 11, 21)}, {},
        datetime(2026, 11, 21, 22, 59, tzinfo=UTC),
    ),
    "lossy images, where they are allowed": ({f"{CT}.lossy": "allow"}, {"admits_lossy": True}, NOW),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "asked", "now"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_just_allowed_passes(changes: Changes, asked: dict[str, Any], now: datetime) -> None:
    policy = a_policy(changes)
    asked = {"exclusions_at": now, **asked}
    assert len(judge(a_request(policy, **asked), policy, now)) == len(GATES)


STANDINGS: dict[str, tuple[Any, str]] = {
    "no signature": (lambda p: Standing(standing(p).pin, signed(p, by="")), "POLICY_UNSIGNED"),
    "one signature": (lambda p: Standing(standing(p).pin, signed(p, by="s")), "POLICY_UNSIGNED"),
    "a stranger's as the second": (lambda p: Standing(standing(p).pin, signed(p, by="ix")), "POLICY_UNSIGNED"),
    "signatures of another policy": (
        lambda p: Standing(standing(p).pin, signed(a_policy({"audit.cosigners": 0}))),
        "POLICY_UNSIGNED",
    ),
    "a policy that was never adopted": (lambda _: standing(a_policy({"audit.cosigners": 0})), "POLICY_NOT_IN_FORCE"),
    "signatures for an earlier number": (
        lambda p: Standing(Pin(v=1, number=2, how="signed", policy=p), signed(p, 1)),
        "POLICY_ROLLED_BACK",
    ),
}


@pytest.mark.parametrize(("stand", "code"), STANDINGS.values(), ids=STANDINGS)
def test_a_policy_nobody_stands_behind_lets_nothing_through(stand: Any, code: str) -> None:
    policy = a_policy()
    request = a_request(policy, standing=stand(policy))
    with pytest.raises(PolicyRefused) as refused:
        judge(request, policy, NOW)
    assert (refused.value.gate, refused.value.reason, refused.value.passed) == ("signature", code, ())


def test_a_tightening_stands_with_one_signature() -> None:
    policy = a_policy()
    stand = Standing(Pin(v=1, number=3, how="tightened", policy=policy), signed(policy, 3, by="i"))
    assert judge(a_request(policy, standing=stand), policy, NOW)


def test_what_time_heals_can_be_asked_again() -> None:
    policy = a_policy({"hours.windows": []})
    with pytest.raises(WorkFailed) as later:
        judge(a_request(policy), policy, NOW)
    assert later.value.retryable
    policy = a_policy()
    with pytest.raises(WorkFailed) as never:
        judge(a_request(policy, round=61), policy, NOW)
    assert not never.value.retryable


def test_a_clock_without_its_offset_is_refused() -> None:
    policy = a_policy()
    with pytest.raises(CallerFault, match="aware datetime"):
        judge(a_request(policy), policy, NOW.replace(tzinfo=None))


DIALLED = {
    "another host": ("relay.other.example", 443, "ab" * 32),
    "another port": ("relay.study.example", 8443, "ab" * 32),
    "another key, as of a proxy that looks inside": ("relay.study.example", 443, "cd" * 32),
    "a host of the same ending": ("evil-relay.study.example", 443, "ab" * 32),
}


@pytest.mark.parametrize(("host", "port", "key"), DIALLED.values(), ids=DIALLED)
def test_the_agent_dials_nobody_else(host: str, port: int, key: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        check_destination(host, port, key, a_policy())
    assert refused.value.reason == "DESTINATION_NOT_ALLOWED"
    check_destination("relay.study.example", 443, "ab" * 32, a_policy())


# --- laws --------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(st.data(), policies(), MOMENTS)
def test_what_is_allowed_passed_every_gate(data: st.DataObject, policy: Policy, now: datetime) -> None:
    """No path through `judge` leaves a gate out, and what is refused names the first gate that refuses alone."""
    request = data.draw(requests(policy))
    alone = [name for name, check in GATES if _refuses(check, request, policy, now)]
    if not alone:
        assert tuple(one.gate for one in judge(request, policy, now)) == ORDER
        return
    with pytest.raises(PolicyRefused) as refused:
        judge(request, policy, now)
    assert refused.value.gate == alone[0]
    assert len(refused.value.passed) == ORDER.index(alone[0])


def _refuses(check: Any, request: Any, policy: Any, now: datetime) -> bool:
    try:
        check(request, policy, now)
    except PolicyRefused:
        return True
    return False


def test_facts_about_data_show_no_number_of_patients() -> None:
    facts = DataFacts("chest-ct", frozenset({"CT"}), 8, PATIENTS, NOW)
    assert str(PATIENTS) not in repr(replace(facts, name="other"))
    assert PLAN not in repr(facts)


def test_a_request_is_made_of_the_plan_itself() -> None:
    """A real plan through all gates, with nothing of it copied by hand."""
    plan = parse_plan(
        {
            "version": 1,
            "name": "ct-contrast-01",
            "revision": 1,
            "purpose": {**dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test"),
                        "expires": "2030-01-01"},
            "hospitals": [{"silo": f"hospital-{i}", "signing_key": key.public.text}
                          for i, key in enumerate((STEWARD, IT, STRANGER))],
            "model": {"name": "densenet-small", "version": 1},
            "preprocessing": {"size": [16, 24], "intensity": "window", "low": -200, "high": 300},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "chest-ct", "modalities": ["CT"]},
            "training": {"rounds": 2},
        }
    )  # fmt: skip
    policy = a_policy({f"{STUDY}.plan_digest": [plan_digest(plan)]})
    usual = a_request(policy)
    request = Request.of(
        plan,
        2,
        site="nowhere",
        standing=usual.standing,
        data=DataFacts.of(plan, patients=PATIENTS, exclusions_at=NOW),
        model_size=1,
        spending=usual.spending,
        leaving=usual.leaving,
        using=usual.using,
    )
    assert (request.plan_digest, request.parties, request.round) == (plan_digest(plan), 3, 2)
    assert len(judge(request, policy, NOW)) == len(GATES)
    with pytest.raises(PolicyRefused, match="not the plan"):
        judge(replace(request, standing=standing(a_policy())), a_policy(), NOW)
