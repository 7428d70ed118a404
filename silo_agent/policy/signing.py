"""policy.sig: who has signed a policy, in which role. Signatures are detached, the policy stays a file for people.

Signed is the digest *and* the policy's number, which counts the policies of this hospital as they took effect. An older
policy with all its signatures is therefore no way round a newer one. A signature under a key that is no approver's
counts for nothing; one under an approver's key that does not verify is a forgery, and the whole file is refused.
"""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import BadSignature, PeerFault
from boundary.fields import PublicKeyStr
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import Base64Bytes, DigestStr, Frozen, VersionOne, list_in
from silo_agent.errors import ConfigError
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.model import Policy, digest_of
from silo_agent.policy.sections import Approvers, Role

_CONTEXT = "hospital policy"
MAX_SIGNATURES_BYTES = 64 * 1024

Number = Annotated[int, Field(ge=1, le=1_000_000)]


class RoleSignature(Frozen):
    """One person's signature in a role."""

    role: Role
    key: PublicKeyStr
    signature: Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


class PolicySignatures(Frozen):
    """All of policy.sig: RFC 8785 JSON. `number` is the place of this policy among the hospital's policies."""

    v: VersionOne
    digest: DigestStr
    number: Number
    signatures: Annotated[tuple[RoleSignature, ...], BeforeValidator(list_in), Field(max_length=100)]

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if len({signature.key for signature in self.signatures}) != len(self.signatures):
            raise ValueError("signatures: one key signs once")
        return self


def unsigned(policy: Policy, number: int) -> PolicySignatures:
    """What signatures are added to."""
    return PolicySignatures(v=1, digest=digest_of(policy), number=number, signatures=())


def add_signature(file: PolicySignatures, policy: Policy, key: SigningIdentity, role: str) -> PolicySignatures:
    """`file` with this person's signature in place of an earlier one of theirs.

    Raises `ConfigError` if the file is for another policy, which would have to be signed anew by everybody.
    """
    if file.digest != digest_of(policy):
        raise ConfigError("the policy was changed after the first signature: all of its approvers sign again")
    mine = RoleSignature(role=role, key=key.public.text, signature=key.sign(_CONTEXT, _signed(file, role)))
    others = tuple(other for other in file.signatures if other.key != mine.key)
    return file.model_copy(update={"signatures": (*others, mine)})


def merged(file: PolicySignatures, other: PolicySignatures) -> PolicySignatures:
    """Both files' signatures; of a key in both, the other's. Raises `ConfigError` if they are for different things."""
    if (file.digest, file.number) != (other.digest, other.number):
        raise ConfigError(
            f"the signature is for number {other.number} of {other.digest}, needed is number {file.number} of "
            f"{file.digest}: sign the text that waits in the agent's state folder, with `--number {file.number}`"
        )
    new = {signature.key for signature in other.signatures}
    kept = tuple(signature for signature in file.signatures if signature.key not in new)
    return file.model_copy(update={"signatures": (*kept, *other.signatures)})


def to_json(file: PolicySignatures) -> bytes:
    return canonical_bytes(file.model_dump(mode="json"))


def parse_signatures(data: bytes, where: str) -> PolicySignatures:
    """Raises `ConfigError`: it is the hospital's own file."""
    try:
        return PolicySignatures.model_validate(parse_canonical(data, limit=MAX_SIGNATURES_BYTES))
    except PeerFault as why:  # the form and limits of what peers send hold here too
        raise ConfigError(f"{where} is damaged ({why}): sign the policy again") from why
    except ValidationError as why:
        places = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}"
            for error in why.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"{where} is no signature file ({places}): sign the policy again") from why


def signed_roles(file: PolicySignatures, approvers: Approvers) -> frozenset[str]:
    """The roles in which approvers have signed this digest and number. Raises `PolicyRefused` for a forgery."""
    roles = set()
    for one in file.signatures:
        if (one.role, one.key) not in approvers.members:
            continue
        try:
            PublicIdentity(one.key).verify(_CONTEXT, _signed(file, one.role), one.signature)
        except BadSignature as why:
            raise PolicyRefused(
                PolicyCode.POLICY_SIGNATURE_INVALID,
                f"the signature of the {one.role} is not over this policy and number: sign it again",
            ) from why
        roles.add(one.role)
    return frozenset(roles)


def check_signed(policy: Policy, file: PolicySignatures, approvers: Approvers, *, least: int) -> None:
    """Raises `PolicyRefused` unless at least `least` roles of `approvers` signed exactly this policy.

    An approver's key belongs to one role, so different roles are different keys.
    """
    if file.digest != digest_of(policy):
        raise PolicyRefused(PolicyCode.POLICY_UNSIGNED, "the signatures are for another text of the policy: sign this")
    roles = signed_roles(file, approvers)
    if len(roles) < least:
        missing = ", ".join(sorted(set(approvers.roles) - roles))
        raise PolicyRefused(
            PolicyCode.POLICY_UNSIGNED,
            f"the policy needs signatures in {least} role(s) and has {len(roles)}: one of {missing} has to sign",
        )


def _signed(file: PolicySignatures, role: str) -> bytes:
    return canonical_bytes({"v": 1, "digest": file.digest, "number": file.number, "role": role})
