"""How a policy replaces another: what one signature is enough for, and what not."""

from datetime import UTC, date, datetime

import pytest
from silo_agent_tests_policies import IT, NOW, STEWARD, STRANGER, Changes, a_policy, signed

from boundary.canonical import parse_canonical
from boundary.identity import SigningIdentity
from silo_agent.policy.adoption import Pin, first_pin, next_pin, pin_json
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.signing import PolicySignatures, add_signature

NEW_STEWARD = SigningIdentity.generate()
PIN = Pin(v=1, number=4, how="signed", policy=a_policy())
TIGHTER: Changes = {"resources.devices": 0}
LOOSER: Changes = {"resources.devices": 2}
OTHERS: Changes = {"approvers.keys": [NEW_STEWARD.public.text, IT.public.text]}
USURPED: Changes = {
    "approvers.keys": [STRANGER.public.text, NEW_STEWARD.public.text],
    "approvers.roles": ["data_steward", "it_security"],
}


@pytest.mark.parametrize("by", ["s", "i"])
def test_one_approver_tightens(by: str) -> None:
    new = a_policy(TIGHTER)
    pin = next_pin(PIN, new, signed(new, 5, by=by), NOW)
    assert (pin.number, pin.how, pin.policy, pin.least) == (5, "tightened", new, 1)


def test_a_tightening_that_all_signed_is_a_signed_policy() -> None:
    new = a_policy(TIGHTER)
    assert next_pin(PIN, new, signed(new, 5), NOW).how == "signed"


def test_all_approvers_loosen() -> None:
    new = a_policy(LOOSER)
    pin = next_pin(PIN, new, signed(new, 5), NOW)
    assert (pin.number, pin.how, pin.least) == (5, "signed", 2)


def test_a_tightening_may_end_everything_at_once() -> None:
    new = a_policy({"valid.until": date(2026, 1, 2)})
    assert next_pin(PIN, new, signed(new, 5, by="i"), NOW).how == "tightened"


def test_a_tightening_is_loosened_again_by_both() -> None:
    tight = a_policy(TIGHTER)
    pin = next_pin(PIN, tight, signed(tight, 5, by="i"), NOW)
    with pytest.raises(PolicyRefused, match="one of data_steward has to sign"):
        next_pin(pin, a_policy(), signed(a_policy(), 6, by="i"), NOW)
    assert next_pin(pin, a_policy(), signed(a_policy(), 6), NOW).number == 6


def with_new_steward(changes: Changes, *, by: str) -> tuple[Changes, PolicySignatures]:
    new = a_policy(changes)
    return changes, add_signature(signed(new, 5, by=by), new, NEW_STEWARD, "data_steward")


def test_approvers_change_with_the_old_ones_and_the_new_ones_signatures() -> None:
    new = a_policy(OTHERS)
    _, signatures = with_new_steward(OTHERS, by="si")
    assert next_pin(PIN, new, signatures, NOW).policy.approvers == new.approvers


def _plain(changes: Changes, by: str, number: int = 5) -> tuple[Changes, PolicySignatures]:
    return changes, signed(a_policy(changes), number, by=by)


REFUSED: dict[str, tuple[tuple[Changes, PolicySignatures], str]] = {
    "a loosening by one": (_plain(LOOSER, "s"), "POLICY_UNSIGNED"),
    "a tightening by nobody": (_plain(TIGHTER, ""), "POLICY_UNSIGNED"),
    "a tightening by a stranger": (_plain(TIGHTER, "x"), "POLICY_UNSIGNED"),
    "a tightening with a loosening in it, by one": (
        _plain({**TIGHTER, "study.CT-CONTRAST-01.max_rounds": 61}, "s"),
        "POLICY_UNSIGNED",
    ),
    "a new steward who did not sign": (_plain(OTHERS, "si"), "POLICY_UNSIGNED"),
    "a new steward whom the old one did not let in": (with_new_steward(OTHERS, by="i"), "POLICY_UNSIGNED"),
    "strangers who made themselves approvers": (
        (USURPED, add_signature(signed(a_policy(USURPED), 5, by="x"), a_policy(USURPED), NEW_STEWARD, "it_security")),
        "POLICY_UNSIGNED",
    ),
    "the older policy, copied from a backup with all its signatures": (_plain(LOOSER, "si", 3), "POLICY_ROLLED_BACK"),
    "signatures for this number": (_plain(LOOSER, "si", 4), "POLICY_ROLLED_BACK"),
    "a number left out": (_plain(TIGHTER, "s", 6), "POLICY_ROLLED_BACK"),
    "another hospital's": (_plain({"site": "st-mary"}, "si"), "POLICY_OF_ANOTHER_SITE"),
    "a loosening that has expired": (_plain({**LOOSER, "valid.until": date(2026, 11, 20)}, "si"), "POLICY_EXPIRED"),
    "a loosening for later": (_plain({**LOOSER, "valid.from": date(2026, 11, 22)}, "si"), "POLICY_NOT_YET_VALID"),
}


@pytest.mark.parametrize(("proposed", "code"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_come_into_force(proposed: tuple[Changes, PolicySignatures], code: str) -> None:
    changes, signatures = proposed
    with pytest.raises(PolicyRefused) as refused:
        next_pin(PIN, a_policy(changes), signatures, NOW)
    assert refused.value.code == code


def test_the_first_policy_is_signed_by_all_its_own_approvers() -> None:
    policy = a_policy()
    assert first_pin(policy, signed(policy), "st-olavs", NOW) == Pin(v=1, number=1, how="signed", policy=policy)


FIRST = {
    "one signature": (signed(a_policy(), by="s"), "st-olavs", NOW, "POLICY_UNSIGNED"),
    "another site": (signed(a_policy()), "st-mary", NOW, "POLICY_OF_ANOTHER_SITE"),
    "a later number": (signed(a_policy(), 2), "st-olavs", NOW, "POLICY_ROLLED_BACK"),
    "an expired one": (signed(a_policy()), "st-olavs", datetime(2027, 1, 1, tzinfo=UTC), "POLICY_EXPIRED"),
}


@pytest.mark.parametrize(("signatures", "site", "now", "code"), FIRST.values(), ids=FIRST)
def test_what_does_not_become_the_first(signatures: PolicySignatures, site: str, now: datetime, code: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        first_pin(a_policy(), signatures, site, now)
    assert refused.value.code == code


def test_a_pin_is_read_back_as_it_was_written() -> None:
    value = parse_canonical(pin_json(PIN))
    assert Pin.model_validate(value) == PIN
    assert STEWARD.public.text in str(value)
