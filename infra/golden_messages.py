"""What the golden federation says: one message of every kind, in the envelopes of who says it.

The three hospitals go through one masked sum, whose steps quote each other as they really do. Only the HPKE
ciphertexts and the revealed shares are not real: they would be drawn at random, so they are zeros of the right length.
"""

from datetime import timedelta
from functools import cache

from boundary.checkpoint import Checkpoint, Cosignature
from boundary.envelope import Envelope, seal_envelope
from boundary.images import Normalisation
from boundary.messages import (
    AgreementShown,
    AnyMessage,
    BlobRef,
    CohortClosed,
    CosignedHead,
    HeadsCosigned,
    HeadsShown,
    LogDisputed,
    MaskedVector,
    PlanApproved,
    PlanDeclined,
    PlanProposed,
    Ready,
    Refused,
    RevealedShare,
    RoundCommitted,
    Share,
    Shares,
    SharesRevealed,
    SharesRouted,
    ShownHead,
    StudyClosed,
    SurvivorsNamed,
    SurvivorsSeen,
    TrailAsked,
    TrailShown,
    WorkOrder,
    heads_digest,
)
from boundary.names import COORDINATOR
from boundary.plan import digest_of
from boundary.receipt import Receipt
from boundary.secagg.context import cohort_of, context_of, sharers_of, survivors_of, transcript_of
from boundary.secagg.ring import first_encoding
from infra.golden import NOW, SILOS, approval, collection, key, plan, roster, sha, study, unsealing

SURVIVING = ("charite", "st-olavs")  # ucl was lost after it had shared
ORDER = sha("order")
MODEL = BlobRef(digest=sha("model"), size=28_000_000)
BASE = BlobRef(digest=sha("base"), size=29_000_000)
SEALED_SHARES_BYTES = 1120 + 2 * 33 + 16  # encapsulated key, two shares, tag
SEALED_SECRET_BYTES = 1120 + 32 + 16


def envelope(message: AnyMessage, silo: str = "st-olavs", *, to: str = "ucl") -> Envelope:
    """`silo` is the hospital that speaks or is spoken to; `to` is the one a share is for."""
    sender, recipient = (COORDINATOR, silo) if message.sender == "coordinator" else (silo, COORDINATOR)
    if isinstance(message, Share):
        recipient = to
    return seal_envelope(message, sender=sender, recipient=recipient, sent_at=NOW, key=key(sender))


def work_order() -> WorkOrder:
    return WorkOrder(
        collection=collection(),
        plan_digest=digest_of(plan()),
        roster_digest=roster().digest,
        model=MODEL,
        base=BASE,
        control=BASE,
        before=BASE,
        encoding=first_encoding(plan()),
        normalisation=Normalisation(mean=0.25, deviation=0.125),
        heads=heads_digest([head(COORDINATOR), head("charite")]),
        due=NOW + timedelta(minutes=30),
    )


def ready(silo: str) -> Ready:
    return Ready(
        collection=collection(),
        order=ORDER,
        context=context_of(work_order()),
        transport_key=unsealing(f"transport key of {silo}").public.text,
        mask_key=unsealing(f"mask key of {silo}").public.text,
        self_commitment=sha(f"self secret of {silo}"),
    )


@cache
def cohort() -> str:
    return cohort_of(context_of(work_order()), {silo: envelope(ready(silo), silo).digest for silo in SILOS})


def share(dealer: str, holder: str) -> Share:
    """The digests are those of `dealer`'s shares that `holder` gets; of two hospitals the first chooses the mask."""
    return Share(
        collection=collection(),
        cohort=cohort(),
        sealed=bytes(SEALED_SHARES_BYTES),
        pair=bytes(SEALED_SECRET_BYTES) if dealer < holder else None,
        self_digest=sha(f"self share of {dealer} for {holder}"),
        seed_digest=sha(f"seed share of {dealer} for {holder}"),
    )


def shares(silo: str) -> Shares:
    others = [other for other in SILOS if other != silo]
    return Shares(
        collection=collection(),
        order=ORDER,
        cohort=cohort(),
        self_digest=sha(f"self share of {silo} for {silo}"),
        seed_digest=sha(f"seed share of {silo} for {silo}"),
        parts=tuple(envelope(share(silo, other), silo, to=other).data for other in others),
    )


def routed(holder: str) -> SharesRouted:
    parts = tuple(envelope(share(silo, holder), silo, to=holder).data for silo in SILOS if silo != holder)
    return SharesRouted(collection=collection(), order=ORDER, members=SILOS, parts=parts)


def masked(silo: str) -> MaskedVector:
    vector = BlobRef(digest=sha(f"masked vector of {silo}"), size=640)
    return MaskedVector(collection=collection(), order=ORDER, sharers=sharers_of(cohort(), SILOS), vector=vector)


def survivors() -> str:
    return survivors_of(sharers_of(cohort(), SILOS), {silo: masked(silo).vector.digest for silo in SURVIVING})


def seen() -> SurvivorsSeen:
    return SurvivorsSeen(collection=collection(), order=ORDER, survivors=survivors())


def revealed() -> SharesRevealed:
    return SharesRevealed(
        collection=collection(),
        order=ORDER,
        survivors=survivors(),
        of_survivors=tuple(RevealedShare(silo=silo, share=bytes(33)) for silo in SURVIVING),
        of_lost=(RevealedShare(silo="ucl", share=bytes([0, *range(32)])),),
    )


def head(party: str, size: int = 5, root: str = "root") -> Checkpoint:
    return Checkpoint.sign(party, size, bytes.fromhex(sha(f"{root} of {party}").removeprefix("sha256:")), key(party))


def cosignature(log: str, witness: str) -> Cosignature:
    return Cosignature.sign(head(log), key(log).public, witness, key(witness), NOW)


def receipt() -> Receipt:
    return Receipt(
        study=study(),
        plan_digest=digest_of(plan()),
        round=2,
        model_in=MODEL.digest,
        model_out=sha("next model"),
        tried=None,
        transcript=transcript_of(survivors(), sha("next model")),
        contributing=SURVIVING,
        absent=("ucl",),
    )


@cache
def messages() -> dict[str, AnyMessage]:
    """One message of every kind."""
    about = {"collection": collection(), "order": ORDER}
    all_of_them: list[AnyMessage] = [
        PlanProposed(study=study(), plan=plan()),
        PlanApproved(study=study(), approval=approval()),
        PlanDeclined(study=study(), plan_digest=digest_of(plan()), code="UNSUITABLE_PLAN"),
        work_order(),
        ready("st-olavs"),
        CohortClosed(
            **about, members=SILOS, absent=(), ready=tuple(envelope(ready(silo), silo).data for silo in SILOS)
        ),
        share("st-olavs", "ucl"),
        shares("st-olavs"),
        routed("st-olavs"),
        masked("st-olavs"),
        SurvivorsNamed(**about, vectors=tuple(envelope(masked(silo), silo).data for silo in SURVIVING)),
        seen(),
        AgreementShown(**about, seen=tuple(envelope(seen(), silo).data for silo in SURVIVING)),
        revealed(),
        Refused(**about, code="NO_DATA", reference="0123456789ab", retryable=True),
        RoundCommitted(
            study=study(),
            round=2,
            model=MODEL,
            tried=sha("a model that was rolled back"),
            transcript=transcript_of(survivors(), sha("sum")),
            contributing=SURVIVING,
            absent=("ucl",),
            receipt=receipt().sign(key(COORDINATOR)),
        ),
        TrailAsked(study=study(), round=3),
        TrailShown(
            study=study(),
            round=2,
            checkpoint=head("st-olavs"),
            first=4,
            entries=(b"an entry that is shown, longer than a hash", bytes(range(32))),
            receipt=receipt().sign(key("st-olavs")),
        ),
        HeadsShown(
            study=study(),
            round=2,
            heads=(
                ShownHead(checkpoint=head(COORDINATOR), proof=()),
                ShownHead(checkpoint=head("charite"), proof=(bytes(range(32)),)),
            ),
        ),
        HeadsCosigned(
            study=study(),
            round=2,
            heads=heads_digest([head("charite")]),
            cosigned=(CosignedHead(log="charite", size=5, cosignature=cosignature("charite", "st-olavs")),),
        ),
        LogDisputed(study=study(), round=2, code="LOG_FORKED", known=head("ucl"), shown=head("ucl", root="another")),
        StudyClosed(study=study(), code="ALL_ROUNDS_DONE"),
    ]
    return {message.kind: message for message in all_of_them}
