"""A steward's signed approval of one exact plan digest. The hospital's agent checks it before every round."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field

from boundary.canonical import canonical_bytes
from boundary.errors import NotApproved
from boundary.fields import PublicKeyStr
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import Base64Bytes, DigestStr, Frozen, Moment, SiloId
from boundary.plan import StudyPlan, digest_of
from boundary.requests import CLOCK_SKEW

_CONTEXT = "plan approval"


class Approval(Frozen):
    """What is signed. `dataset_digest` is keyed with the hospital's secret: it fixes the data, it names none."""

    silo: SiloId
    plan_digest: DigestStr
    dataset_digest: DigestStr
    role: Annotated[str, Field(pattern=r"^[a-z][a-z_]{1,30}$")]
    approved_at: Moment


class SignedApproval(Frozen):
    """An approval, the steward's key and the signature of the one over the other."""

    approval: Approval
    steward: PublicKeyStr
    signature: Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


def sign_approval(approval: Approval, steward: SigningIdentity) -> SignedApproval:
    signature = steward.sign(_CONTEXT, canonical_bytes(approval.model_dump(mode="json")))
    return SignedApproval(approval=approval, steward=steward.public.text, signature=signature)


def check_approval(
    signed: SignedApproval,
    *,
    plan: StudyPlan,
    silo: str,
    steward: PublicIdentity | None,
    dataset_digest: str | None,
    now: datetime,
) -> None:
    """Raises `NotApproved` or `BadSignature` unless this approves exactly `plan` at `silo`.

    The hospital passes its own steward's key and the digest of the data it is about to use. The coordinator,
    who is told neither in advance, passes None and only learns that the envelope's sender stands behind it.
    A plan's last day is a day in UTC, whatever the zone of `now`, so that all parties stop at one instant.
    """
    said = signed.approval
    if said.plan_digest != digest_of(plan):
        raise NotApproved("the approval is for another plan digest")
    if said.silo != silo:
        raise NotApproved(f"the approval is {said.silo}'s, not {silo}'s")
    if steward is not None and signed.steward != steward.text:
        raise NotApproved("the approval is not by this hospital's steward")
    if dataset_digest is not None and said.dataset_digest != dataset_digest:
        raise NotApproved("the data set has changed since the approval: look at it again and approve anew")
    if said.approved_at > now + CLOCK_SKEW:
        raise NotApproved("the approval is dated in the future: compare the clocks")
    if now.astimezone(UTC).date() > plan.purpose.expires:
        raise NotApproved(f"the plan expired on {plan.purpose.expires}")
    PublicIdentity(signed.steward).verify(_CONTEXT, canonical_bytes(said.model_dump(mode="json")), signed.signature)
