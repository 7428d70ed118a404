"""Tighter or looser, field by field; and tighter means that nothing is allowed that was not."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from silo_agent_tests_policies import (
    GONE,
    IT,
    MOMENTS,
    NOW,
    STEWARD,
    STRANGER,
    TIMES,
    VALUES,
    Changes,
    a_policy,
    a_request,
    policies,
    probes,
    requests,
    standing,
    tighter_and_tighter,
)

from boundary.names import Frozen
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.gates import GATES, check_destination, judge
from silo_agent.policy.hours import Hours
from silo_agent.policy.model import Policy
from silo_agent.policy.sections import Approvers, Destination, DicomwebSource, FolderSource, LabelSource
from silo_agent.policy.tightening import DIRECTIONS, changes, is_tightening

CT, STUDY = "dataset.chest-ct", "study.CT-CONTRAST-01"
# the place, the value that is tighter, the value that is looser; None where there is none
TABLE: dict[str, tuple[Any, Any]] = {
    "site": (None, "st-mary"),
    "valid.from": ("2026-06-01", "2025-12-31"),
    "valid.until": ("2026-12-30", "2027-01-01"),
    "network.allow": ([], VALUES["network.allow"][2]),
    "network.max_egress_mb_per_round": (199, 201),
    "network.max_model_mb": (199, 201),
    "weights": (None, {"folder": "/srv/weights"}),
    "hours.timezone": (None, "Europe/Berlin"),
    "hours.windows": (["Sat 00:00-24:00"], ["Mon-Sun 00:00-24:00"]),
    f"{CT}": (GONE, None),
    "dataset.head-mr": (None, VALUES["dataset.head-mr"][0]),
    f"{CT}.source": (None, {"kind": "folder", "path": "/data/ct2"}),
    f"{CT}.labels": (None, {"kind": "seg", "path": "/data/ct/labels.csv"}),
    f"{CT}.modalities": (None, ["CT", "MR"]),
    f"{CT}.exclusions.path": (None, "/dev/null"),
    f"{CT}.exclusions.max_age_hours": (23.5, 24.5),
    f"{CT}.min_patients": (51, 49),
    f"{CT}.max_images_per_patient": (7, 9),
    f"{CT}.population": (None, "others"),
    f"{CT}.lossy": (None, "allow"),
    f"{CT}.burned_in": (None, "allow"),
    "privacy.max_epsilon_per_study": (5.9, 6.1),
    "privacy.max_epsilon_lifetime": (9.9, 10.1),
    "privacy.max_delta": (9e-5, 2e-4),
    "privacy.min_noise_multiplier": (0.61, 0.59),
    "privacy.required": (None, False),
    "release.min_parties_in_sum": (4, None),
    "release.metrics": (["auroc"], ["loss", "auroc", "dice"]),
    "release.smallest_cell": (11, None),
    f"{STUDY}": (GONE, None),
    "study.QC": (None, VALUES["study.QC"][0]),
    f"{STUDY}.plan_digest": ([], VALUES[f"{STUDY}.plan_digest"][2]),
    f"{STUDY}.purpose": (None, "profit"),
    f"{STUDY}.legal.irb": (None, "none"),
    f"{STUDY}.legal.dpia": (None, VALUES[f"{STUDY}.legal.dpia"][0]),
    f"{STUDY}.legal.expires": ("2026-12-30", "2027-01-01"),
    f"{STUDY}.max_rounds": (59, 61),
    "resources.devices": (0, 2),
    "resources.max_hours_per_round": (1.9, 2.1),
    "audit.cosigners": (3, 1),
    "approvers.required": (None, 2),
    "approvers.keys": (None, [STEWARD.public.text, STRANGER.public.text]),
    "approvers.roles": (None, ["data_steward", "dpo"]),
}
TIGHTER = {place: values[0] for place, values in TABLE.items() if values[0] is not None}
LOOSER = {
    place: values[1] for place, values in TABLE.items() if values[1] is not None and place != "approvers.required"
}
THREE: Changes = {
    "approvers.roles": ["data_steward", "it_security", "dpo"],
    "approvers.keys": [STEWARD.public.text, IT.public.text, STRANGER.public.text],
}


@pytest.mark.parametrize(("place", "value"), TIGHTER.items(), ids=TIGHTER)
def test_a_stricter_value_is_a_tightening_and_its_opposite_is_not(place: str, value: Any) -> None:
    old, new = a_policy(), a_policy({place: value})
    found = changes(old, new)
    assert {change.kind for change in found} == {"tighter"}
    assert any(place.startswith(change.field) for change in found)
    assert is_tightening(old, new)
    assert not is_tightening(new, old)


@pytest.mark.parametrize(("place", "value"), LOOSER.items(), ids=LOOSER)
def test_a_looser_or_incomparable_value_is_a_loosening(place: str, value: Any) -> None:
    old, new = a_policy(), a_policy({place: value})
    assert "looser" in {change.kind for change in changes(old, new)}
    assert not is_tightening(old, new)


INCOMPARABLE: dict[str, tuple[Changes, Changes]] = {
    "a smaller public constant": ({}, {f"{CT}.n_max_patients": 1999}),
    "a larger public constant": ({}, {f"{CT}.n_max_patients": 2001}),
    "a longer retention": ({}, {"audit.retain_years": 7}),
    "a shorter retention": ({}, {"audit.retain_years": 5}),
    "a third approver": ({}, THREE),
    "more signatures asked for": (THREE, {**THREE, "approvers.required": 3}),
    "fewer signatures asked for": ({**THREE, "approvers.required": 3}, THREE),
    "approvers who change roles": ({}, {"approvers.roles": ["it_security", "data_steward"]}),
    "one limit down and another up": ({}, {"resources.devices": 0, f"{STUDY}.max_rounds": 61}),
    "a table gone and another new": ({}, {STUDY: GONE, "study.QC": VALUES["study.QC"][0]}),
    "other modalities": ({}, {f"{CT}.modalities": ["MR"]}),
    "the key of a relay": ({}, {"network.allow": [{**VALUES["network.allow"][1][0], "spki_sha256": "cd" * 32}]}),
}


@pytest.mark.parametrize(("before", "after"), INCOMPARABLE.values(), ids=INCOMPARABLE)
def test_what_cannot_be_compared_is_a_loosening(before: Changes, after: Changes) -> None:
    assert not is_tightening(a_policy(before), a_policy(after))


EQUAL: dict[str, Changes] = {
    "approvers in another order": {
        "approvers.roles": ["it_security", "data_steward"],
        "approvers.keys": [IT.public.text, STEWARD.public.text],
    },
    "windows cut elsewhere": {
        "hours.windows": ["Sat 00:00-12:00", "Sat 12:00-24:00", "Sun 00:00-24:00", "Mon-Fri 19:00-06:00"]
    },
    "metrics in another order": {"release.metrics": ["auroc", "loss"]},
}


def test_who_takes_the_folder_of_weights_away_tightens_and_who_names_another_does_not() -> None:
    without, one, other = (a_policy(how) for how in ({}, {"weights": {"folder": "/a"}}, {"weights": {"folder": "/b"}}))
    assert is_tightening(one, without)
    assert not is_tightening(without, one)
    assert not is_tightening(one, other)
    (found,) = changes(one, without)
    assert (found.field, found.kind) == ("weights", "tighter")


@pytest.mark.parametrize("after", EQUAL.values(), ids=EQUAL)
def test_the_same_in_other_words_is_neither(after: Changes) -> None:
    old, new = a_policy(), a_policy(after)
    assert {change.kind for change in changes(old, new)} == {"equal"}
    assert is_tightening(old, new)
    assert is_tightening(new, old)


def sections(kind: type[Frozen]) -> set[type[Frozen]]:
    """Every model that a policy is made of, the lists and values that are compared whole left out."""
    found = {kind}
    for field in kind.model_fields.values():
        for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(inner, type) and issubclass(inner, Frozen):
                found |= sections(inner)
    return found - {Hours, Approvers, Destination, FolderSource, DicomwebSource, LabelSource}


def test_every_field_has_a_direction() -> None:
    kinds = sections(Policy)
    assert kinds == set(DIRECTIONS)
    for kind in kinds:
        inner = {
            name
            for name, field in kind.model_fields.items()
            if any(one in kinds for one in [field.annotation, *getattr(field.annotation, "__args__", ())])
        }
        assert set(DIRECTIONS[kind]) | inner == set(kind.model_fields), kind
        assert not set(DIRECTIONS[kind]) & inner


def test_a_field_without_a_direction_loosens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DIRECTIONS, type(a_policy().resources), {})
    assert not is_tightening(a_policy(), a_policy({"resources.devices": 0}))


# --- laws --------------------------------------------------------------------------------------------
some = settings(max_examples=100, deadline=None)


@some
@given(policies())
def test_a_policy_is_as_tight_as_itself(policy: Policy) -> None:
    assert changes(policy, policy) == ()
    assert is_tightening(policy, policy)


@some
@given(tighter_and_tighter(3))
def test_tighter_than_tighter_is_tighter(row: list[Policy]) -> None:
    assert is_tightening(row[0], row[2])


@some
@given(tighter_and_tighter(2))
def test_tighter_both_ways_is_the_same_in_other_words(row: list[Policy]) -> None:
    old, new = row
    assert is_tightening(new, old) == all(one.kind == "equal" for one in changes(old, new))


PROBES = probes(a_policy())


@settings(max_examples=150, deadline=None)
@given(tighter_and_tighter(2))
def test_what_passes_under_the_tighter_policy_passes_under_the_looser(row: list[Policy]) -> None:
    """Gate by gate, so that one gate which refuses cannot hide another; each policy with its own signatures."""
    old, new = row
    for name, check in GATES[1:]:
        for request in PROBES:
            if _passes(check, request, new, NOW):
                assert _passes(check, request, old, NOW), (name, request)
    for now in TIMES:
        for name, check in GATES[1:4]:
            if _passes(check, PROBES[0], new, now):
                assert _passes(check, PROBES[0], old, now), (name, now)
    for one in new.network.allow:
        check_destination(one.host, one.port, one.spki_sha256, old)


@some
@given(st.data(), tighter_and_tighter(2), MOMENTS)
def test_what_is_allowed_by_the_tighter_policy_is_allowed_by_the_looser(
    data: st.DataObject, row: list[Policy], now: datetime
) -> None:
    """Through `judge` as a whole, signatures and all."""
    old, new = row
    request = data.draw(requests(new))
    try:
        judge(request, new, now)
    except PolicyRefused:
        request = a_request(new)
    if all(_passes(check, request, new, now) for _, check in GATES):
        assert judge(replace(request, standing=standing(old)), old, now)


def _passes(check: Any, request: Any, policy: Policy, now: datetime) -> bool:
    try:
        check(request, policy, now)
    except PolicyRefused:
        return False
    return True
