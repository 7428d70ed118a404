"""A federation of three hospitals with fixed keys at a fixed moment: who there is, and the plan they approved.

For tests only: anybody can make these keys. What they say is in `infra.golden_messages`, the exact bytes of it in
`tests/vectors/`.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boundary.approval import Approval, SignedApproval, sign_approval
from boundary.canonical import digest
from boundary.identity import SigningIdentity
from boundary.messages import Collection
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, plan_from_toml, study_id
from boundary.roster import KeyCard, Roster, SignedRoster, make_card, sign_roster
from boundary.sealing import UnsealingKey

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
SILOS = ("charite", "st-olavs", "ucl")


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
task = "classification"
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
trained = ["features.*", "class_layers.*"]
home = ["*norm*"]
[preprocessing]
size = [64, 96]
intensity = "window"
low = -200
high = 300.5
normalise = "federated"
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
proximal = 0.25
weighting = "patients"
[server]
learning_rate = 0.5
momentum = 0.375
second_moment = 0.46875
adaptivity = 0.002
smoothing = 0.05
[privacy]
mechanism = "none"
[aggregation]
quorum = 3
ready_minutes = 30
step_minutes = 2.5
attempts = 4
ring = 16
delta_bound = 0.5
max_weight = 2000
random_share = 0.25
error_feedback = true
downlink = "float32"
lost_after_seconds = 45.5
max_model_norm = 2500
[selection]
grace_minutes = 7.5
[personalisation]
method = "fine-tune"
parameters = ["*.weight", "*.bias"]
epochs = 3
learning_rate = 0.0005
strength = 0.25
[evidence]
disclose = ["budget", "withdrawals"]
"""


def private_toml(wish: str = "epsilon = 3.5") -> str:
    """The same plan with a guarantee per patient: `wish` is an epsilon or a noise multiplier."""
    guarantee = f"""mechanism = "patient-dp"
{wish}
clip = 0.75
patients_per_step = 24
steps = 20
images_per_patient = 3"""
    return (
        plan_toml()
        .replace('mechanism = "none"', guarantee)
        .replace('weighting = "patients"', 'weighting = "declared"')
        .replace("error_feedback = true", "error_feedback = false")
        .replace('normalise = "federated"', 'normalise = "none"')
    )


def segmentation_toml() -> str:
    """The same plan for masks in volumes, with a rule that says which series is meant."""
    series = """[dataset.series]
modality = "CT"
image_type_includes = ["AXIAL"]
image_type_excludes = ["LOCALIZER", "DERIVED"]
smallest_slices = 20
largest_slices = 800
smallest_gap_mm = 0.5
largest_gap_mm = 5.5
orientation = "axial"
take_secondary = true
"""
    return (
        plan_toml()
        .replace('task = "classification"', 'task = "segmentation"')
        .replace('name = "densenet-small"\nversion = 2', 'name = "unet-small-3d"\nversion = 1')
        .replace("size = [64, 96]", "size = [32, 64, 96]\nspacing = [5, 1.5, 1.25]")
        .replace('column = "contrast"\nclasses = ["no", "yes"]', 'classes = ["background", "liver", "tumour"]')
        .replace("[training]", f"{series}[training]")
    )


def adapted_toml() -> str:
    """The same plan, begun with a file of weights and with adapters."""
    tables = f"""[model.pretrained]
file = "chest-vit.safetensors"
sha256 = "{"5e" * 32}"
strip = "encoder."
leave_out = ["head.*", "norm.*"]
[model.lora]
rank = 4
alpha = 8
targets = ["blocks.*.attention.*", "blocks.*.mlp.0"]
"""
    return (
        plan_toml()
        .replace('name = "densenet-small"\nversion = 2', 'name = "vit-small"\nversion = 1')
        .replace('trained = ["features.*", "class_layers.*"]', 'trained = ["*.lora_*", "head.*"]')
        .replace('home = ["*norm*"]', 'home = ["head.*"]')
        .replace("[preprocessing]", f"{tables}[preprocessing]")
        .replace('downlink = "float32"', 'downlink = "bfloat16"')
    )


@cache
def adapted_plan() -> StudyPlan:
    return plan_from_toml(adapted_toml())


@cache
def plan() -> StudyPlan:
    return plan_from_toml(plan_toml())


@cache
def segmentation_plan() -> StudyPlan:
    return plan_from_toml(segmentation_toml())


@cache
def private_plan() -> StudyPlan:
    return plan_from_toml(private_toml())


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
