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
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from boundary import api, tensors
from boundary.canonical import canonical_bytes, digest
from boundary.layout import layout_for
from boundary.messages import PHASES
from boundary.names import COORDINATOR, Frozen
from boundary.plan import digest_of, plan_from_toml, to_json
from boundary.requests import HEADER, sign_request
from boundary.secagg import context as context_digests
from boundary.secagg import ring, secrets, shamir
from boundary.secagg.encoding import Quantiser, encode_numbers
from boundary.secagg.graph import thresholds
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.secrets import MaskKey
from boundary.secagg.selection import selected
from boundary.version import ProtocolRange
from compliance import events as audit
from compliance import trail
from compliance.privacy import PoissonGaussian
from infra.golden import (
    NOW,
    SILOS,
    adapted_toml,
    approval,
    card,
    key,
    plan,
    plan_toml,
    private_plan,
    private_toml,
    roster,
    segmentation_toml,
    sha,
    study,
    unsealing,
)
from infra.golden_messages import SURVIVING, envelope, messages, work_order

FOLDER = Path(__file__).parent
TOKEN = "t" * 43
NONCE = bytes(range(16))
SECRET = bytes(range(32))
DEFAULTED = {
    "task", "retain_years", "initial_seed", "normalise", "column", "minimum_per_class", "max_images_per_patient",
    "min_patients", "max_excluded_share", "holdout_share", "strategy", "local_epochs", "max_steps", "batch_size",
    "optimizer", "learning_rate", "proximal", "weighting", "mechanism", "quorum", "ready_minutes", "step_minutes",
    "attempts", "ring", "delta_bound", "max_weight", "random_share", "error_feedback", "downlink", "lost_after_seconds",
    "max_model_norm", "method", "parameters", "epochs", "strength", "disclose",
}  # fmt: skip
DEFAULTED_IN_A_SERIES = {
    "image_type_includes",
    "image_type_excludes",
    "smallest_slices",
    "largest_slices",
    "smallest_gap_mm",
    "largest_gap_mm",
    "orientation",
    "take_secondary",
}
DEFAULTED_IN_A_GUARANTEE = (DEFAULTED - {"mechanism", "weighting"}) | {
    "clip", "patients_per_step", "steps", "images_per_patient",
}  # fmt: skip
PRIVATE = {
    "with an epsilon": private_toml(),
    "with a noise multiplier": private_toml("noise_multiplier = 1.5"),
}


@cache
def events() -> dict[str, audit.AnyEvent]:
    """One audit event of every kind."""
    fingerprint = key("st-olavs").public.fingerprint
    at: dict[str, Any] = {"study": study(), "round": 2, "phase": "train"}
    release = PoissonGaussian(noise_multiplier=1.5, sampling_rate=0.05, steps=20)
    all_of_them: list[audit.AnyEvent] = [
        audit.HospitalInvited(silo="st-olavs"),
        audit.EnrolmentAsked(silo="st-olavs", fingerprint=fingerprint),
        audit.HospitalAdmitted(silo="st-olavs", fingerprint=fingerprint, roster_version=4),
        audit.RosterIssued(roster_version=4, roster_digest=sha("roster")),
        audit.PlanPublished(study=study(), plan_digest=digest_of(plan())),
        audit.PlanApprovalGiven(
            study=study(), plan_digest=digest_of(plan()), silo="st-olavs", dataset_digest=sha("data set")
        ),
        audit.PlanDeclineGiven(study=study(), plan_digest=digest_of(plan()), silo="ucl", code="DECLINED_BY_STEWARD"),
        audit.StudyDriven(study=study(), fence=2),
        audit.RoundOpened(study=study(), round=2, model=sha("model")),
        audit.HospitalsDrawn(
            study=study(), round=2, attempt=1, consenting=SILOS, resting=("ucl",), drawn=("charite", "st-olavs")
        ),
        audit.CohortDecided(**at, attempt=1, members=("charite", "ucl"), absent=("st-olavs",), reason="QUORUM_AT_DUE"),
        audit.AttemptFailed(**at, attempt=1, reason="TOO_FEW_READY"),
        audit.RoundClosed(
            study=study(),
            round=2,
            model_in=sha("model"),
            model_out=sha("next model"),
            tried=None,
            contributing=("charite", "ucl"),
            absent=("st-olavs",),
            record=sha("record"),
        ),
        audit.StatisticsTaken(study=study(), survivors=sha("survivors"), result=sha("statistics")),
        audit.ModelMeasured(
            study=study(), round=2, phase="validate", model=sha("model"), survivors=sha("survivors"), result=sha("said")
        ),
        audit.PersonalisationSummed(study=study(), survivors=sha("survivors"), result=sha("comparisons")),
        audit.StudyEnded(study=study(), reason="ALL_ROUNDS_DONE"),
        audit.WorkRefused(**at, code="NO_DATA"),
        audit.WorkDone(**at, order=sha("order")),
        audit.SecretsShared(**at, attempt=1, cohort=sha("cohort")),
        audit.ContributionReleased(**at, attempt=1, sharers=sha("sharers"), vector=sha("vector"), size=640),
        audit.SurvivorsAgreed(**at, attempt=1, survivors=sha("survivors")),
        audit.UnmaskingHelped(**at, attempt=1, survivors=sha("survivors"), surviving=SURVIVING, lost=("ucl",)),
        audit.SumOpened(**at, attempt=1, survivors=sha("survivors"), surviving=SURVIVING),
        audit.BudgetReserved(
            study=study(),
            round=2,
            release=release,
            epsilon_study=1.25,
            delta_study=1e-5,
            epsilon_lifetime=2.5,
            delta_lifetime=1e-6,
        ),
        audit.BudgetCommitted(study=study(), round=2, release=release),
        audit.BudgetRefused(study=study(), round=2, cap="lifetime", asked=8.125, left=0.5),
        audit.HospitalEnrolled(fingerprint=fingerprint, coordinator=key(COORDINATOR).public.fingerprint),
        audit.RosterTrusted(roster_version=4, roster_digest=sha("roster")),
        audit.PlanReceived(study=study(), plan_digest=digest_of(plan())),
        audit.IntakeCounted(
            study=study(),
            dataset_digest=sha("data set"),
            usable=True,
            patients=120,
            used=340,
            excluded={"NO_LABEL": 10},
        ),
        audit.TrainingStarted(**at, order=sha("order"), start=1),
        audit.LateUpdateOffered(study=study(), round=2, made_in=1, order=sha("order")),
        audit.PolicyAdopted(number=3, policy=sha("policy"), how="signed"),
        audit.GatesPassed(**at, order=sha("order"), policy=sha("policy"), gates=("signature", "hours", "budget")),
        audit.GateRefused(**at, order=sha("order"), policy=sha("policy"), gate="hours", code="OUT_OF_HOURS"),
        audit.WorkPaused(code="PAUSED_BY_STEWARD"),
        audit.WorkResumed(),
        audit.RoundReceived(
            study=study(),
            round=2,
            model=sha("next model"),
            tried=sha("a model that was rolled back"),
            transcript=sha("transcript"),
            contributing=SURVIVING,
            absent=("ucl",),
        ),
        audit.ReceiptSigned(study=study(), round=2, receipt=sha("receipt")),
        audit.HeadsWitnessed(
            study=study(), round=0, heads=(audit.SeenHead(log=COORDINATOR, size=12, root=sha("root")),)
        ),
        audit.IncidentOpened(incident=1, log="ucl", code="LOG_FORKED", evidence=sha("two heads")),
        audit.IncidentClosed(incident=1, decision="ACCEPTED"),
        audit.PatientWithdrawn(private=sha("private entry")),
        audit.WithdrawalEffective(study=study(), round=3, private=sha("private entry"), decision="retrain"),
        audit.EvidenceIssued(study=study(), manifest=sha("manifest")),
        audit.ReleaseDecided(
            study=study(),
            round=2,
            model=sha("next model"),
            manifest=sha("manifest"),
            decision="release",
            officer=key("officer").public.fingerprint,
        ),
        audit.DataPurged(study=study(), what="blobs", files=12, bytes=345_678),
    ]
    return {event.event: event for event in all_of_them}


def leaf(event: audit.AnyEvent) -> bytes:
    return trail.leaf_bytes(event, log=COORDINATOR, sequence=7, time=NOW, actor="st-olavs", salt=NONCE)


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
    shortest = _without(plan_toml(), DEFAULTED).replace("[privacy]\n", "").replace("[evidence]\n", "")
    shortest = shortest.replace("[personalisation]\n", "")
    private = {name: _read(toml) for name, toml in PRIVATE.items()}
    private["shortest"] = _read(_without(private_toml(), DEFAULTED_IN_A_GUARANTEE))
    masks = segmentation_toml()
    segmentation = {
        "volumes": _read(masks),
        "shortest": _read(_without(masks, DEFAULTED_IN_A_SERIES)),
        "slices": _read(
            masks.replace("size = [32, 64, 96]", "size = [64, 96]").replace("spacing = [5, 1.5, 1.25]\n", "")
        ),
    }
    return {
        **_read(plan_toml()), "study": study(), "shortest": _read(shortest), "private": private,
        "segmentation": segmentation, "adapted": _read(adapted_toml()),
    }  # fmt: skip


def _without(toml: str, keys: set[str]) -> str:
    return "".join(line for line in toml.splitlines(keepends=True) if line.split(" = ")[0] not in keys)


def _read(toml: str) -> dict[str, str]:
    return {"toml": toml, **_text(to_json(plan_from_toml(toml)))}


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
        "bfloat16": base64.b64encode(tensors.pack(vector, manifest, "bfloat16")).decode(),
        "layout": {phase: layout_for(phase, parameters=9, metrics=5).model_dump() for phase in PHASES},
        "layout with a vote": layout_for("evaluate", parameters=9, metrics=5, vote=True).model_dump(),
        "layout with clipping": layout_for("train", parameters=9, metrics=5, clipping=True).model_dump(),
        "private layout": layout_for("train", parameters=9, metrics=5, bands=private_plan().bands).model_dump(),
    }


def _masked_sum() -> Any:
    """Everything of a masked sum that is not drawn at random, from fixed secrets."""
    fixed = hashlib.shake_256(b"golden").digest(10_000)
    source = io.BytesIO(fixed)
    context, cohort = sha("context"), sha("cohort")
    masked = np.arange(16 + 24, dtype=np.uint8)
    keys = [MaskKey(secrets.self_key(SECRET, sha("sharers"), "ucl"), 1), MaskKey(SECRET, -1)]
    apply_everywhere(masked, Masking(keys, numbers_bytes=16, ring=32), threads=1)
    weights = np.array([0.0, 0.3, -0.3, 1e9, -1e9, 1e-12], np.float32)
    encoding = ring.Encoding(exponent=20, most=5)
    words = np.empty(len(weights), np.uint32)
    Quantiser(encoding, SECRET).encode(weights, words)
    numbers = encode_numbers(np.array([3.0, -2.5]), 5)
    return {
        "context": context_digests.context_of(work_order()),
        "cohort": context_digests.cohort_of(context, {silo: sha(silo) for silo in SILOS}),
        "sharers": context_digests.sharers_of(cohort, SILOS),
        "survivors": context_digests.survivors_of(sha("sharers"), {silo: sha(silo) for silo in SILOS}),
        "transcript": context_digests.transcript_of(sha("survivors"), sha("sum")),
        "self commitment": secrets.self_commitment(SECRET, context, "ucl"),
        "share digest": secrets.share_digest(bytes(33), cohort, "charite", "ucl", "seed"),
        "mask key pair": secrets.mask_key_pair(SECRET, context, "ucl").public.text,
        "pair secret": secrets.pair_secret(SECRET, cohort, "charite", "ucl").hex(),
        "pair key": secrets.pair_key(SECRET, sha("sharers"), "charite", "ucl").hex(),
        "shares": {p: s.hex() for p, s in shamir.split(SECRET, (1, 2, 5), 3, source.read).items()},
        "masked": masked.tobytes().hex(),
        "words": words.tobytes().hex(),
        "selection key": context_digests.selection_key(work_order().collection, sha("model")).hex(),
        "selected": selected(SECRET, 100, 7).tolist(),
        "numbers": numbers.tobytes().hex(),
        "first encoding": ring.first_encoding(plan()).model_dump(),
        "thresholds": {str(n): asdict(thresholds(n)) for n in (3, 5, 64, 65, 100, 200)},
    }


def sealed_once() -> Any:
    """HPKE draws fresh randomness: made once, and from then on only opened."""
    context = context_digests.binding("shares", sha("cohort"), "charite", "ucl")
    sealed = unsealing("ucl").public.seal(SECRET, context)
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
