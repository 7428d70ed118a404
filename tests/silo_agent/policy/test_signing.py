"""Who stands behind a policy. Each forgery is a row with a sentence for a name."""

from collections.abc import Callable

import pytest
from silo_agent_tests_policies import IT, STEWARD, STRANGER, a_policy, signed

from boundary.approval import _CONTEXT as APPROVAL_CONTEXT
from boundary.canonical import canonical_bytes, parse_json
from boundary.identity import SigningIdentity
from silo_agent.errors import ConfigError
from silo_agent.policy.errors import PolicyRefused
from silo_agent.policy.model import Policy
from silo_agent.policy.signing import (
    PolicySignatures,
    RoleSignature,
    add_signature,
    check_signed,
    merged,
    parse_signatures,
    signed_roles,
    to_json,
    unsigned,
)

DEPUTY = SigningIdentity.generate()


def check(policy: Policy, file: PolicySignatures) -> None:
    check_signed(policy, file, policy.approvers, least=policy.approvers.required)


def test_two_roles_are_enough_in_any_order() -> None:
    policy = a_policy()
    for by in ("si", "is"):
        check(policy, signed(policy, by=by))
        assert signed_roles(signed(policy, by=by), policy.approvers) == {"data_steward", "it_security"}


def _borrowed(policy: Policy, file: PolicySignatures) -> PolicySignatures:
    """IT's signature taken from the file of another policy."""
    theirs = signed(a_policy({"resources.devices": 8}), by="i").signatures[0]
    return file.model_copy(update={"signatures": (file.signatures[0], theirs)})


def _renumbered(_policy: Policy, file: PolicySignatures) -> PolicySignatures:
    return file.model_copy(update={"number": 2})


def _swapped(_policy: Policy, file: PolicySignatures) -> PolicySignatures:
    """Each one's signature under the other's name."""
    a, b = file.signatures
    return file.model_copy(
        update={
            "signatures": (
                a.model_copy(update={"signature": b.signature}),
                b.model_copy(update={"signature": a.signature}),
            )
        }
    )


def _of_another_kind(policy: Policy, file: PolicySignatures) -> PolicySignatures:
    """What the steward signed as the approval of a plan."""
    body = canonical_bytes({"v": 1, "digest": file.digest, "number": file.number, "role": "data_steward"})
    forged = RoleSignature(role="data_steward", key=STEWARD.public.text, signature=STEWARD.sign(APPROVAL_CONTEXT, body))
    return file.model_copy(update={"signatures": (forged, file.signatures[1])})


FORGED: dict[str, Callable[[Policy, PolicySignatures], PolicySignatures]] = {
    "a signature of another policy": _borrowed,
    "signatures of another number": _renumbered,
    "signatures under each other's names": _swapped,
    "the approval of a plan": _of_another_kind,
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_signature_refuses_the_whole_file(
    forge: Callable[[Policy, PolicySignatures], PolicySignatures],
) -> None:
    policy = a_policy()
    with pytest.raises(PolicyRefused) as refused:
        check(policy, forge(policy, signed(policy)))
    assert refused.value.code == "POLICY_SIGNATURE_INVALID"


def _twice_in_two_roles(policy: Policy) -> PolicySignatures:
    return add_signature(
        add_signature(unsigned(policy, 1), policy, STEWARD, "data_steward"), policy, STEWARD, "it_security"
    )


TOO_FEW: dict[str, Callable[[Policy], PolicySignatures]] = {
    "nobody": lambda policy: unsigned(policy, 1),
    "one person": lambda policy: signed(policy, by="s"),
    "one person twice": lambda policy: signed(policy, by="ss"),
    "one person in two roles": _twice_in_two_roles,
    "a stranger in a role": lambda policy: signed(policy, by="ix"),
    "an approver in a role of nobody": lambda policy: add_signature(signed(policy, by="s"), policy, IT, "dpo"),
    "another text": lambda _: signed(a_policy({"resources.devices": 8})),
}


@pytest.mark.parametrize("make", TOO_FEW.values(), ids=TOO_FEW)
def test_it_needs_different_people_in_different_roles(make: Callable[[Policy], PolicySignatures]) -> None:
    policy = a_policy()
    with pytest.raises(PolicyRefused) as refused:
        check(policy, make(policy))
    assert refused.value.code == "POLICY_UNSIGNED"
    assert "sign" in str(refused.value)


def test_a_deputy_signs_for_the_role_and_not_beside_it() -> None:
    policy = a_policy(
        {
            "approvers.roles": ["data_steward", "data_steward", "it_security"],
            "approvers.keys": [STEWARD.public.text, DEPUTY.public.text, IT.public.text],
        }
    )
    check(policy, add_signature(signed(policy, by="i"), policy, DEPUTY, "data_steward"))
    with pytest.raises(PolicyRefused, match="it_security has to sign"):
        check(policy, add_signature(signed(policy, by="s"), policy, DEPUTY, "data_steward"))


def test_a_file_is_read_back_as_it_was_written() -> None:
    file = signed(a_policy())
    assert parse_signatures(to_json(file), "policy.sig") == file
    assert set(parse_json(to_json(file))) == {"v", "digest", "number", "signatures"}


def test_signatures_from_two_machines_come_together() -> None:
    policy = a_policy()
    both = merged(signed(policy, by="s"), signed(policy, by="i"))
    check(policy, both)
    assert merged(both, signed(policy, by="i")) == both
    with pytest.raises(ConfigError, match="needed is number 1"):
        merged(both, signed(policy, 2, by="i"))


def test_a_changed_policy_is_signed_anew_by_everybody() -> None:
    with pytest.raises(ConfigError, match="all of its approvers sign again"):
        add_signature(signed(a_policy(), by="s"), a_policy({"resources.devices": 8}), IT, "it_security")


def test_a_signature_in_one_role_is_none_in_another() -> None:
    """Somebody who changed roles does not find their old signatures in the new one."""
    moved = a_policy({"approvers.roles": ["it_security", "data_steward"]}).approvers
    file = signed(a_policy(), by="s")
    assert signed_roles(file, moved) == frozenset()
    relabelled = file.signatures[0].model_copy(update={"role": "it_security"})
    with pytest.raises(PolicyRefused) as refused:
        signed_roles(file.model_copy(update={"signatures": (relabelled,)}), moved)
    assert refused.value.code == "POLICY_SIGNATURE_INVALID"


def _edited(**changes: object) -> bytes:
    return canonical_bytes({**parse_json(to_json(signed(a_policy()))), **changes})


DAMAGED = {
    "nothing": b"",
    "not JSON": b"ed25519",
    "JSON with spaces": to_json(signed(a_policy())).replace(b":", b": ", 1),
    "an unknown key": _edited(comment="trust me"),
    "a number of nothing": _edited(number=0),
    "a short signature": _edited(signatures=[{"role": "dpo", "key": STRANGER.public.text, "signature": "AAAA"}]),
    "a key that signs twice": _edited(signatures=parse_json(to_json(signed(a_policy())))["signatures"][:1] * 2),
    "too large": b" " * (64 * 1024 + 1),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_with_the_fix(data: bytes) -> None:
    with pytest.raises(ConfigError, match="sign the policy again"):
        parse_signatures(data, "policy.sig")
