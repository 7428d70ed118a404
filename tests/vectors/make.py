"""A federation with fixed keys at a fixed moment, and the exact bytes it says: the golden vectors.

Tests compare with the files beside this one and never write them. A changed vector is a changed wire format: it
needs a new protocol version and a decision record, and then `python tests/vectors/make.py` writes the files anew.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boundary import api, tensors
from boundary.approval import Approval, SignedApproval, sign_approval
from boundary.canonical import canonical_bytes, digest
from boundary.contribution import contribution_context
from boundary.envelope import Envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.layout import layout_for
from boundary.messages import (
    AnyMessage,
    BlobRef,
    CohortClosed,
    Collection,
    Contribution,
    PlanApproved,
    PlanDeclined,
    PlanProposed,
    Ready,
    Refused,
    RoundCommitted,
    StudyClosed,
    WorkOrder,
)
from boundary.names import COORDINATOR, Frozen
from boundary.plan import StudyPlan, digest_of, plan_from_toml, study_id, to_json
from boundary.requests import HEADER, sign_request
from boundary.roster import KeyCard, Roster, SignedRoster, make_card, sign_roster
from boundary.sealing import UnsealingKey, seal_stream
from boundary.secagg import context as context_digests
from boundary.secagg import secrets, shamir
from boundary.secagg.encoding import Quantiser, encode_numbers
from boundary.secagg.graph import thresholds
from boundary.secagg.masks import Masking, MaskKey, apply_everywhere
from boundary.secagg.ring import Encoding
from boundary.version import ProtocolRange
from compliance import trail

FOLDER = Path(__file__).parent
NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
SILOS = ("charite", "st-olavs", "ucl")
TOKEN = "t" * 43
NONCE = bytes(range(16))
FILE_KEY = bytes(range(32))
DEFAULTED = {
    "retain_years", "initial_seed", "column", "minimum_per_class", "max_images_per_patient", "min_patients",
    "max_excluded_share", "holdout_share", "strategy", "local_epochs", "max_steps", "batch_size", "optimizer",
    "learning_rate", "weighting", "mechanism", "quorum", "ready_minutes", "lost_after_seconds", "max_model_norm",
}  # fmt: skip


@cache
def key(name: str) -> SigningIdentity:
    """A signing key whose seed is the hash of `name`. For tests only: anybody can make it."""
    seed = hashlib.sha256(b"wardround golden key " + name.encode()).digest()
    return SigningIdentity(Ed25519PrivateKey.from_private_bytes(seed))


@cache
def unsealing(name: str) -> UnsealingKey:
    seed = hashlib.shake_256(b"wardround golden sealing key " + name.encode()).digest(96)
    return UnsealingKey.from_raw(seed)


@cache
def card(party: str, *, owner: str | None = None, sealing: str | None = None) -> KeyCard:
    return make_card(party, key(owner or party), unsealing(sealing or party).public)


def sha(name: str) -> str:
    return digest(name.encode())


def plan_toml() -> str:
    hospitals = "".join(f'[[hospitals]]\nsilo = "{silo}"\nsigning_key = "{key(silo).public.text}"\n' for silo in SILOS)
    return f"""
version = 1
name = "ct-contrast"
revision = 3
{hospitals}
[purpose]
title = "Contrast agent on chest CT — é, 造影"
statement = "Find out whether contrast agent was given.\\nFor research."
legal_basis = "GDPR 9(2)(j)"
ethics_reference = "REK 2025/118"
expires = 2026-12-31
retain_years = 10
[model]
name = "densenet-small"
version = 2
initial_seed = 7
[preprocessing]
size = [64, 96]
intensity = "window"
low = -200
high = 300.5
[labels]
column = "contrast"
classes = ["no", "yes"]
minimum_per_class = 5
[dataset]
name = "chest-ct"
modalities = ["CT"]
max_images_per_patient = 4
min_patients = 20
max_excluded_share = 0.25
holdout_share = 0.125
[training]
strategy = "fedavg"
rounds = 12
local_epochs = 2
max_steps = 500
batch_size = 8
optimizer = "sgd"
learning_rate = 1e-7
weighting = "patients"
[privacy]
mechanism = "none"
[aggregation]
quorum = 3
ready_minutes = 30
lost_after_seconds = 45.5
max_model_norm = 2500
"""


@cache
def plan() -> StudyPlan:
    return plan_from_toml(plan_toml())


def study() -> str:
    return study_id(plan())


def collection() -> Collection:
    return Collection(study=study(), round=2, phase="train", attempt=3)


def approval(steward: str = "steward of st-olavs", **changes: Any) -> SignedApproval:
    said: dict[str, Any] = {
        "silo": "st-olavs",
        "plan_digest": digest_of(plan()),
        "dataset_digest": sha("data set"),
        "role": "data_steward",
        "approved_at": NOW,
    }
    return sign_approval(Approval(**said | changes), key(steward))


@cache
def messages() -> dict[str, AnyMessage]:
    """One message of every kind."""
    model, order = BlobRef(digest=sha("model"), size=28_000_000), sha("order")
    all_of_them: list[AnyMessage] = [
        PlanProposed(study=study(), plan=plan()),
        PlanApproved(study=study(), approval=approval()),
        PlanDeclined(study=study(), plan_digest=digest_of(plan()), code="UNSUITABLE_PLAN"),
        WorkOrder(
            collection=collection(),
            plan_digest=digest_of(plan()),
            roster_digest=roster().digest,
            model=model,
            due=NOW + timedelta(minutes=30),
        ),
        Ready(collection=collection(), order=order),
        CohortClosed(collection=collection(), order=order, members=SILOS, absent=()),
        Contribution(
            collection=collection(), order=order, vector=BlobRef(digest=sha("vector"), size=640), sealed_key=bytes(1168)
        ),
        Refused(collection=collection(), order=order, code="NO_DATA", reference="0123456789ab", retryable=True),
        RoundCommitted(study=study(), round=2, model=model, contributing=("charite", "ucl"), absent=("st-olavs",)),
        StudyClosed(study=study(), code="ALL_ROUNDS_DONE"),
    ]
    return {message.kind: message for message in all_of_them}


def envelope(message: AnyMessage, silo: str = "st-olavs") -> Envelope:
    sender, recipient = (COORDINATOR, silo) if message.sender == "coordinator" else (silo, COORDINATOR)
    return seal_envelope(message, sender=sender, recipient=recipient, sent_at=NOW, key=key(sender))


def roster(*signers: str, coordinator: str = COORDINATOR, **changes: Any) -> SignedRoster:
    """Version 1 unless told otherwise; `coordinator` names its key, `signers` who signs (default: that key)."""
    content: dict[str, Any] = {
        "version": 1,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(days=90),
        "coordinator": card(COORDINATOR, owner=coordinator, sealing=coordinator),
        "members": tuple(card(silo) for silo in SILOS),
    }
    return sign_roster(Roster(**content | changes), *(key(name) for name in signers or (coordinator,)))


@cache
def events() -> dict[str, trail.AnyEvent]:
    """One audit event of every kind."""
    fingerprint = key("st-olavs").public.fingerprint
    at: dict[str, Any] = {"study": study(), "round": 2, "phase": "train"}
    all_of_them: list[trail.AnyEvent] = [
        trail.HospitalInvited(silo="st-olavs"),
        trail.EnrolmentAsked(silo="st-olavs", fingerprint=fingerprint),
        trail.HospitalAdmitted(silo="st-olavs", fingerprint=fingerprint, roster_version=4),
        trail.RosterIssued(roster_version=4, roster_digest=sha("roster")),
        trail.PlanPublished(study=study(), plan_digest=digest_of(plan())),
        trail.PlanApprovalGiven(
            study=study(), plan_digest=digest_of(plan()), silo="st-olavs", dataset_digest=sha("data set")
        ),
        trail.StudyDriven(study=study(), fence=2),
        trail.RoundOpened(study=study(), round=2, model=sha("model")),
        trail.CohortDecided(**at, attempt=1, members=("charite", "ucl"), absent=("st-olavs",), reason="QUORUM_AT_DUE"),
        trail.AttemptFailed(**at, attempt=1, reason="TOO_FEW_READY"),
        trail.RoundClosed(
            study=study(),
            round=2,
            model_in=sha("model"),
            model_out=sha("next model"),
            contributing=("charite", "ucl"),
            absent=("st-olavs",),
        ),
        trail.StudyEnded(study=study(), reason="ALL_ROUNDS_DONE"),
        trail.WorkRefused(**at, code="NO_DATA"),
        trail.WorkDone(**at, order=sha("order")),
        trail.ContributionReleased(**at, attempt=1, vector=sha("vector"), size=640),
    ]
    return {event.event: event for event in all_of_them}


def leaf(event: trail.AnyEvent) -> bytes:
    return trail.leaf_bytes(event, log=COORDINATOR, sequence=7, time=NOW, actor="st-olavs")


def enrolment() -> api.SignedEnrolment:
    request = api.EnrolmentRequest(silo="st-olavs", token=TOKEN, card=card("st-olavs"), csr_pem="PEM")
    signed = canonical_bytes(request.model_dump(mode="json"))
    return api.SignedEnrolment(request=request, signature=key("st-olavs").sign(api.ENROLMENT_CONTEXT, signed))


def api_bodies() -> dict[str, Frozen]:
    """One value of every body the relay's door takes or gives."""
    activity = api.Activity(study=study(), round=2, phase="train", step=3, steps=40)
    heartbeat = api.Heartbeat(
        agent_version="0.1.0+g1", protocol=ProtocolRange(), activity=activity, disk_low=True, roster_version=4
    )
    delivery = api.Delivery(sequence=9, envelope=b"an envelope")
    return {
        "activity": activity,
        "heartbeat": heartbeat,
        "poll": api.PollRequest(after=8, wait_seconds=12.5, heartbeat=heartbeat),
        "delivery": delivery,
        "deliveries": api.PollAnswer(deliveries=(delivery,), roster_version=4, upgrade="agent"),
        "enrolment": enrolment().request,
        "signed enrolment": enrolment(),
        "admission": api.EnrolmentState(state="admitted", certificate_pem="PEM", roster=b"a roster"),
        "blob": api.BlobState(digest=sha("vector"), offset=320, complete=False),
        "error": api.RelayError(code="NOT_ENROLLED", message="Ask the coordinator for an invitation."),
        "invitation": api.Invitation(
            silo="st-olavs",
            relay_url="https://relay.example:8443",
            relay_ca_pem="PEM",
            coordinator_key=key(COORDINATOR).public.text,
            token=TOKEN,
            certificate_pem="PEM",
            private_key_pem="PEM",
            expires_at=NOW + timedelta(days=7),
        ),
    }


def weights() -> tuple[tensors.Vector, tensors.TensorManifest]:
    named: dict[str, tensors.Vector] = {
        "head.bias": np.array(-0.5, dtype=np.float32),
        "body.0.weight": (np.arange(6) / 7).astype(np.float32).reshape(2, 3),
        "head.weight": np.array([1e-40, 3.4e38], dtype=np.float32),
    }
    manifest = tensors.manifest_of(named)
    return tensors.flatten(named, manifest), manifest


def _text(data: bytes) -> dict[str, str]:
    return {"text": data.decode(), "digest": digest(data)}


def _envelopes() -> Any:
    return {kind: _text(envelope(message).data) for kind, message in messages().items()}


def _rosters() -> Any:
    return {
        "version 1": _text(roster().data),
        "version 2, the coordinator has a new key": _text(
            roster(COORDINATOR, "new coordinator", coordinator="new coordinator", version=2).data
        ),
    }


def _plan() -> Any:
    """The whole plan, and the shortest one: a default is as much of a digest as what is written."""
    shortest = "".join(line for line in plan_toml().splitlines(keepends=True) if line.split(" = ")[0] not in DEFAULTED)
    return {
        "toml": plan_toml(),
        "study": study(),
        **_text(to_json(plan())),
        "shortest": {"toml": shortest, **_text(to_json(plan_from_toml(shortest)))},
    }


def _request() -> Any:
    asked = {"party": "st-olavs", "method": "POST", "target": "/v1/poll?x=1"}

    def header(body: bytes | None) -> str:
        return sign_request(key("st-olavs"), **asked, body=body, now=NOW, nonce=NONCE)[HEADER]

    return asked | {"body {}": header(b"{}"), "a blob range": header(None)}


def _approval() -> Any:
    return _text(canonical_bytes(approval().model_dump(mode="json")))


def _api() -> Any:
    return {name: canonical_bytes(body.model_dump(mode="json")).decode() for name, body in api_bodies().items()}


def _leaves() -> Any:
    return {name: _text(leaf(event)) for name, event in events().items()}


def _tensors() -> Any:
    vector, manifest = weights()
    return {
        "manifest": manifest.model_dump(mode="json"),
        "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        "safetensors": base64.b64encode(tensors.pack(vector, manifest)).decode(),
        "layout": {phase: layout_for(phase, parameters=9, metrics=5).model_dump() for phase in ("train", "evaluate")},
    }


def _stream() -> Any:
    context = contribution_context(collection(), "st-olavs", sha("order"))
    sealed = b"".join(seal_stream(io.BytesIO(b"twelve bytes").read, FILE_KEY, context))
    longer = b"".join(seal_stream(io.BytesIO(bytes(3 * 1024 * 1024)).read, FILE_KEY, context))
    return {
        "context": context.decode(),
        "sealed": base64.b64encode(sealed).decode(),
        "digest of 3 MiB of zeros, sealed": digest(longer),
    }


def _masked_sum() -> Any:
    """Everything of a masked sum that is not drawn at random, from fixed secrets."""
    fixed = hashlib.shake_256(b"golden").digest(10_000)
    source = io.BytesIO(fixed)
    context, cohort = sha("context"), sha("cohort")
    order = messages()[WorkOrder.kind]
    assert isinstance(order, WorkOrder)
    masked = np.arange(16 + 24, dtype=np.uint8)
    keys = [MaskKey(secrets.self_key(FILE_KEY, sha("sharers"), "ucl"), 1), MaskKey(FILE_KEY, -1)]
    apply_everywhere(masked, Masking(keys, numbers_bytes=16, ring=32), threads=1)
    weights = np.array([0.0, 0.3, -0.3, 1e9, -1e9, 1e-12], np.float32)
    encoding = Encoding(exponent=20, most=5)
    words = np.empty(len(weights), np.uint32)
    Quantiser(encoding, FILE_KEY).encode(weights, words)
    numbers = encode_numbers(np.array([3.0, -2.5]), np.array([0, 20]), 5)
    return {
        "context": context_digests.context_of(order),
        "cohort": context_digests.cohort_of(context, {silo: sha(silo) for silo in SILOS}),
        "sharers": context_digests.sharers_of(cohort, SILOS),
        "survivors": context_digests.survivors_of(sha("sharers"), {silo: sha(silo) for silo in SILOS}),
        "transcript": context_digests.transcript_of(sha("survivors"), sha("sum")),
        "self commitment": secrets.self_commitment(FILE_KEY, context, "ucl"),
        "share digest": secrets.share_digest(bytes(33), cohort, "charite", "ucl", "seed"),
        "mask key pair": secrets.mask_key_pair(FILE_KEY, context, "ucl").public.text,
        "pair secret": secrets.pair_secret(FILE_KEY, cohort, "charite", "ucl").hex(),
        "pair key": secrets.pair_key(FILE_KEY, sha("sharers"), "charite", "ucl").hex(),
        "shares": {p: s.hex() for p, s in shamir.split(FILE_KEY, (1, 2, 5), 3, source.read).items()},
        "masked": masked.tobytes().hex(),
        "words": words.tobytes().hex(),
        "numbers": numbers.tobytes().hex(),
        "thresholds": {str(n): asdict(thresholds(n)) for n in (3, 5, 64, 65, 100, 200)},
    }


def sealed_once() -> Any:
    """HPKE draws fresh randomness: made once, and from then on only opened."""
    context = contribution_context(collection(), "st-olavs", sha("order"))
    sealed = unsealing(COORDINATOR).public.seal(FILE_KEY, context)
    return {"context": context.decode(), "sealed": base64.b64encode(sealed).decode()}


VECTORS: dict[str, Callable[[], Any]] = {
    "envelopes.json": _envelopes,
    "rosters.json": _rosters,
    "plan.json": _plan,
    "request.json": _request,
    "approval.json": _approval,
    "api.json": _api,
    "leaves.json": _leaves,
    "tensors.json": _tensors,
    "stream.json": _stream,
    "masked_sum.json": _masked_sum,
}
SEALED = FOLDER / "sealed.json"


def main() -> None:
    files = {FOLDER / name: build for name, build in VECTORS.items()}
    if not SEALED.exists():
        files[SEALED] = sealed_once
    for path, build in files.items():
        path.write_text(json.dumps(build(), indent=1, ensure_ascii=False, default=list) + "\n")


if __name__ == "__main__":
    main()
