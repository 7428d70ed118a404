"""How a policy comes into force, and how it is replaced. Pure: `silo_agent.policy.files` keeps what is decided here.

Who may sign stands in the policy itself, so its own signatures prove nothing to somebody who could write a policy
with other approvers. What binds it to the hospital is the *pin*: the policy that is in force, kept where the agent
keeps its keys. The first pin is set at `silo-agent init`, in front of the hospital's own people. After that

- a policy that only tightens takes effect with the signature of one approver *of the policy in force*;
- every other policy, one with other approvers above all, needs all the signatures the policy in force asks for, and
  those it asks for itself.

Numbers go up by one with each, and are signed: no policy comes back by being copied from a backup. All of this
rests on the pin: whoever can write the agent's own files can set another one, as they could replace its keys.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import Field

from boundary.canonical import Digest, canonical_bytes
from boundary.names import Frozen, VersionOne, parse_timestamp, timestamp
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.model import Policy, digest_of
from silo_agent.policy.sections import Validity
from silo_agent.policy.signing import Number, PolicySignatures, check_signed, signed_roles
from silo_agent.policy.tightening import is_tightening

How = Literal["signed", "tightened"]


class Pin(Frozen):
    """All of approvers.json: the policy in force with its number, and whether one signature was enough for it."""

    v: VersionOne
    number: Number
    how: How = Field(description="signed by all that were asked, or a tightening by fewer")
    policy: Policy

    @property
    def least(self) -> int:
        """In how many roles its signatures have to be there."""
        return self.policy.approvers.required if self.how == "signed" else 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What a policy's being in force rests on."""

    pin: Pin
    signatures: PolicySignatures


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """The policy to judge by. `standing` goes into every `silo_agent.policy.facts.Request`."""

    policy: Policy
    digest: Digest
    standing: Standing


def pin_json(pin: Pin) -> bytes:
    return canonical_bytes(pin.model_dump(mode="json", by_alias=True))


def check_standing(policy: Policy, standing: Standing) -> None:
    """Raises `PolicyRefused` unless `policy` is the pinned one and its signatures are there."""
    pin, signatures = standing.pin, standing.signatures
    if digest_of(policy) != digest_of(pin.policy):
        raise PolicyRefused(
            PolicyCode.POLICY_NOT_IN_FORCE,
            f"this is not the policy in force, which is number {pin.number}: put a new one beside it, have it signed "
            "and run `silo-agent policy adopt`",
        )
    if signatures.number != pin.number:
        raise PolicyRefused(
            PolicyCode.POLICY_ROLLED_BACK,
            f"the signatures are for number {signatures.number}, in force is number {pin.number}: restore policy.sig",
        )
    check_signed(policy, signatures, pin.policy.approvers, least=pin.least)


def first_pin(policy: Policy, signatures: PolicySignatures, site: str, now: datetime) -> Pin:
    """The pin of a hospital that has none yet. Raises `PolicyRefused` unless all its own approvers stand behind it."""
    _check_site(policy, site)
    _check_number(signatures, 1)
    check_signed(policy, signatures, policy.approvers, least=policy.approvers.required)
    check_valid(policy.valid, now)
    return Pin(v=1, number=1, how="signed", policy=policy)


def next_pin(pin: Pin, proposed: Policy, signatures: PolicySignatures, now: datetime) -> Pin:
    """The pin once `proposed` replaces the policy in force. Raises `PolicyRefused` with who still has to sign.

    A tightening is taken at once, also one that allows nothing from today on.
    """
    old = pin.policy
    _check_site(proposed, old.site)
    _check_number(signatures, pin.number + 1)
    if is_tightening(old, proposed):
        check_signed(proposed, signatures, old.approvers, least=1)
        is_whole = len(signed_roles(signatures, old.approvers)) >= old.approvers.required
        return Pin(v=1, number=pin.number + 1, how="signed" if is_whole else "tightened", policy=proposed)
    check_signed(proposed, signatures, old.approvers, least=old.approvers.required)
    check_signed(proposed, signatures, proposed.approvers, least=proposed.approvers.required)
    check_valid(proposed.valid, now)
    return Pin(v=1, number=pin.number + 1, how="signed", policy=proposed)


def check_valid(valid: Validity, now: datetime) -> None:
    """Raises `PolicyRefused` outside the days of a policy, `CallerFault` for a time without its offset."""
    today = parse_timestamp(timestamp(now)).date()
    if today < valid.first:
        raise PolicyRefused(PolicyCode.POLICY_NOT_YET_VALID, f"the policy is valid from {valid.first} (UTC): wait")
    if today > valid.last:
        raise PolicyRefused(
            PolicyCode.POLICY_EXPIRED, f"the policy was valid until {valid.last} (UTC): sign one for the time after"
        )


def _check_site(policy: Policy, site: str) -> None:
    if policy.site != site:
        raise PolicyRefused(
            PolicyCode.POLICY_OF_ANOTHER_SITE, f"the policy is {policy.site}'s and this is {site}: correct `site`"
        )


def _check_number(signatures: PolicySignatures, number: int) -> None:
    if signatures.number != number:
        raise PolicyRefused(
            PolicyCode.POLICY_ROLLED_BACK,
            f"the signatures are for number {signatures.number}, next comes number {number}: sign the policy anew",
        )
