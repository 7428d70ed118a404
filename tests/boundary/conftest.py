"""The golden federation for examples, and a strategy per field of every message for properties.

A new message, or a new field, without a strategy fails here: what is not generated is not tested.
"""

import importlib.util
import math
import os
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from boundary.aggregation import LARGEST_SUM, Aggregation
from boundary.agreement import Evidence, Hospital, Purpose
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.guarantee import NoPrivacy, PatientPrivacy
from boundary.images import Dataset, Labels, Normalisation, Preprocessing
from boundary.learning import ModelChoice, Server, Training
from boundary.low_rank import LowRank
from boundary.messages import (
    PHASES,
    REGISTRY,
    BlobRef,
    Collection,
    CosignedHead,
    RevealedShare,
    ShownHead,
)
from boundary.names import encode_base64
from boundary.plan import StudyPlan
from boundary.plan_checks import MOST_IN_A_STEP
from boundary.pretrained import Pretrained
from boundary.secagg.ring import Encoding
from boundary.series import SeriesRule

# A scheduled run sets BOUNDARY_EXAMPLES=2000.
settings.register_profile("boundary", max_examples=int(os.environ.get("BOUNDARY_EXAMPLES", "25")), deadline=None)
settings.load_profile("boundary")


def _load(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "vectors" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"golden_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


golden = _load("make")

letters = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=6)
names = (st.lists(letters, min_size=1, max_size=3).map("-".join) | st.just("a" * 40)).filter("coordinator".__ne__)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: "sha256:" + raw.hex())
studies = st.builds(lambda name, raw: f"{name}-{raw.hex()}", names, st.binary(min_size=4, max_size=4))
codes = st.text("ABCXYZ019_", min_size=1, max_size=40).map(lambda text: "N" + text)
moments = st.datetimes(timezones=st.just(UTC))
silos = st.lists(names, max_size=5).map(tuple)
rounds = st.integers(1, 10_000)
characters = st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Zl", "Zp", "Cn"])
words = st.text(characters, min_size=1, max_size=20)
sentences = st.text(characters | st.just("\n"), min_size=1, max_size=40)
blobs = st.builds(BlobRef, digest=digests, size=st.integers(1, 2**33))
collections = st.builds(
    Collection, study=studies, round=rounds, phase=st.sampled_from(PHASES), attempt=st.integers(1, 1000)
)
rings = st.sampled_from((16, 32))
encodings = st.builds(Encoding, ring=rings, exponent=st.integers(-60, 60), most=st.integers(3, 200))
quoted = st.lists(st.binary(max_size=100), max_size=4).map(tuple)
hybrid_keys = st.binary(min_size=32, max_size=32).map(lambda raw: "hpke-mlkem768-x25519:" + encode_base64(raw * 38))
signatures, hashes = st.binary(min_size=64, max_size=64), st.binary(min_size=32, max_size=32)
checkpoints = st.builds(Checkpoint, log=names, size=st.integers(1, 2**53 - 1), root=digests, signature=signatures)
cosignatures = st.builds(Cosignature, witness=names, time=st.integers(0, 2**53 - 1), signature=signatures)
revealed = st.lists(st.builds(RevealedShare, silo=names, share=st.binary(min_size=33, max_size=33)), max_size=4).map(
    tuple
)
sealed = st.builds(lambda raw, size: (raw * 63)[:size], st.binary(min_size=32, max_size=32), st.integers(1000, 2000))
MODALITIES = ("CT", "CR", "DX", "US", "MR")
COUNTS, GAPS = st.integers(2, 4096), st.floats(0, 100, allow_nan=False)


def fractions(low: float, high: float, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, **options)


guarantees = st.builds(
    lambda wish, **rest: PatientPrivacy(mechanism="patient-dp", **wish, **rest),
    wish=fractions(0.01, 100).map(lambda epsilon: {"epsilon": epsilon})
    | fractions(0.1, 60).map(lambda noise: {"noise_multiplier": noise}),
    clip=fractions(0, 1e6, exclude_min=True),
    patients_per_step=st.integers(1, 4096),
    steps=st.integers(1, 100_000),
    images_per_patient=st.integers(1, 256),
)


@st.composite
def of_classes(draw: st.DrawFn) -> dict[str, Any]:
    """What a plan for classification has by its task."""
    return {
        "task": "classification",
        "column": draw(st.none() | words),
        "modalities": draw(st.lists(st.sampled_from(MODALITIES), min_size=1, unique=True).map(tuple)),
        "size": draw(st.tuples(st.integers(16, 1024), st.integers(16, 1024))),
    }


@st.composite
def of_masks(draw: st.DrawFn) -> dict[str, Any]:
    """The same for segmentation, of slices or of volumes."""
    modality = draw(st.sampled_from(("CT", "MR")))
    slices, gaps = (sorted(draw(two)) for two in (st.tuples(COUNTS, COUNTS), st.tuples(GAPS, GAPS)))
    dimensions = draw(st.sampled_from((2, 3)))
    spacing = st.lists(fractions(0.05, 50), min_size=dimensions, max_size=dimensions).map(tuple)
    size = draw(st.lists(st.integers(16, 256), min_size=dimensions, max_size=dimensions).map(tuple))
    return {
        "task": "segmentation",
        "column": None,
        "modalities": (modality,),
        "size": size,
        "batch_size": min(4096, MOST_IN_A_STEP // math.prod(size)),
        "spacing": draw(spacing if dimensions == 3 else st.none() | spacing),
        "series": SeriesRule(
            modality=modality,
            image_type_includes=draw(st.lists(st.sampled_from(("AXIAL", "PRIMARY")), unique=True).map(tuple)),
            image_type_excludes=draw(st.lists(st.sampled_from(("LOCALIZER", "MPR")), unique=True).map(tuple)),
            smallest_slices=slices[0],
            largest_slices=slices[1],
            smallest_gap_mm=gaps[0],
            largest_gap_mm=gaps[1] or 1.0,
            orientation=draw(st.sampled_from(("axial", "coronal", "sagittal", "any"))),
            take_secondary=draw(st.booleans()),
        ),
    }


patterns = st.lists(
    st.text("abz019_.*?[]", min_size=1, max_size=12), min_size=1, max_size=3, unique=True
).map(tuple)  # fmt: skip
pretrained = st.builds(
    Pretrained,
    file=st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True).map(lambda name: f"{name}.safetensors"),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    strip=st.text("abz.", max_size=8),
    leave_out=st.just(()) | patterns,
)
adapters = st.builds(
    LowRank, rank=st.integers(1, 256), alpha=fractions(0, 1000, exclude_min=True), targets=patterns
)  # fmt: skip


@st.composite
def any_plan(draw: st.DrawFn) -> StudyPlan:
    members = draw(st.lists(names, min_size=3, max_size=6, unique=True))
    low, high = sorted(draw(st.lists(fractions(-1e6, 1e6), min_size=2, max_size=2, unique=True)))
    privacy = draw(st.just(NoPrivacy()) | guarantees)
    weightings = ("equal", "declared") if privacy.mechanism == "patient-dp" else ("images", "patients", "equal")
    kind, optimizer = draw(of_classes() | of_masks()), draw(st.sampled_from(("adam", "sgd")))
    strategies = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
    proximal = draw(st.just(0.0) | fractions(0, 1000))
    steps, most = draw(st.integers(1, 10_000_000)), draw(st.integers(1, 10_000_000))
    is_fit = (privacy.mechanism, optimizer, proximal) == ("none", "sgd", 0) and steps * most * 6 < LARGEST_SUM
    strategies += ("fednova",) if is_fit else ()
    weighting = draw(st.sampled_from(weightings))
    strategies += ("scaffold",) if is_fit and weighting == "equal" else ()
    smoothing = draw(fractions(1e-6, 1000))
    strategies += ("rfa",) if most / smoothing * 6 < LARGEST_SUM else ()
    strategy = draw(st.sampled_from(strategies))
    purpose = dict(zip(("title", "statement", "legal_basis", "ethics_reference"), draw(four_sentences), strict=True))
    return StudyPlan(
        version=1,
        name=draw(names),
        revision=draw(st.integers(1, 1_000_000)),
        task=kind["task"],
        purpose=Purpose(
            **purpose,
            expires=draw(st.dates(date(1000, 1, 1))),
            retain_years=draw(st.integers(1, 100)),
        ),
        hospitals=tuple(Hospital(silo=s, signing_key=golden.key(s).public.text) for s in members),
        model=ModelChoice(
            name=draw(names),
            version=draw(st.integers(1, 1_000_000)),
            initial_seed=draw(st.integers(0, 2**32 - 1)),
            trained=draw(
                st.lists(words.filter(lambda word: word != "*"), min_size=1, max_size=3, unique=True).map(tuple)
            ),
            home=draw(st.lists(words, max_size=3, unique=True).map(tuple)),
            pretrained=draw(st.none() | pretrained),
            lora=draw(st.none() | adapters),
        ),
        preprocessing=Preprocessing(
            size=kind["size"], spacing=kind.get("spacing"), intensity="window", low=low, high=high
        ),
        labels=Labels(
            column=kind["column"],
            classes=draw(st.lists(words, min_size=2, max_size=5, unique=True).map(tuple)),
            minimum_per_class=draw(st.integers(0, 10_000_000)),
        ),
        dataset=Dataset(
            name=draw(names),
            modalities=kind["modalities"],
            series=kind.get("series"),
            max_images_per_patient=draw(st.integers(1, 1000)),
            min_patients=draw(st.integers(1, 10_000_000)),
            max_excluded_share=draw(fractions(0, 1)),
            holdout_share=draw(fractions(0, 1, exclude_min=True, exclude_max=True)),
        ),
        training=Training(
            strategy=strategy,
            rounds=draw(rounds),
            local_epochs=draw(st.integers(1, 100)),
            max_steps=steps,
            batch_size=draw(st.integers(1, kind.get("batch_size", 4096))),
            optimizer=optimizer,
            proximal=proximal,
            learning_rate=draw(fractions(0, 10, exclude_min=True)),
            weighting=weighting,
        ),
        server=Server(
            learning_rate=draw(st.none() | fractions(0, 100, exclude_min=True)),
            momentum=draw(fractions(0, 1, exclude_max=True)),
            second_moment=draw(fractions(0, 1, exclude_max=True)),
            adaptivity=draw(fractions(0, 1, exclude_min=True)),
            smoothing=smoothing,
        ),
        privacy=privacy,
        aggregation=Aggregation(
            quorum=draw(st.integers(3, len(members))),
            ready_minutes=draw(fractions(0, 20160, exclude_min=True)),
            step_minutes=draw(fractions(0, 1440, exclude_min=True)),
            attempts=draw(st.integers(1, 20)),
            ring=draw(rings),
            delta_bound=draw(fractions(0, 1e6, exclude_min=True)),
            max_weight=most,
            downlink=draw(st.sampled_from(("float32", "bfloat16") if strategy != "scaffold" else ("float32",))),
            lost_after_seconds=draw(fractions(2, 86400)),
            max_model_norm=draw(fractions(0, 1e12, exclude_min=True)),
        ),
        evidence=Evidence(
            disclose=draw(st.lists(st.sampled_from(("budget", "intake", "withdrawals")), unique=True).map(tuple))
        ),
    )


four_sentences = st.lists(sentences, min_size=4, max_size=4)
approvals = st.builds(golden.approval, silo=names, plan_digest=digests, dataset_digest=digests, approved_at=moments)

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "study": studies,
    "plan": any_plan(),
    "approval": approvals,
    "plan_digest": digests,
    "roster_digest": digests,
    "order": digests,
    "code": codes,
    "collection": collections,
    "model": blobs,
    "base": st.none() | blobs,
    "control": st.none() | blobs,
    "before": st.none() | blobs,
    "tried": st.none() | digests,
    "vector": blobs,
    "due": moments,
    "members": silos,
    "absent": silos,
    "contributing": silos,
    "encoding": encodings,
    "normalisation": st.none() | st.builds(Normalisation, mean=st.floats(0, 1), deviation=st.floats(1e-6, 1)),
    "context": digests,
    "transport_key": hybrid_keys,
    "mask_key": hybrid_keys,
    "self_commitment": digests,
    "ready": quoted,
    "cohort": digests,
    "sealed": sealed,
    "pair": st.none() | sealed,
    "self_digest": digests,
    "seed_digest": digests,
    "parts": quoted,
    "sharers": digests,
    "vectors": quoted,
    "survivors": digests,
    "seen": quoted,
    "of_survivors": revealed,
    "of_lost": revealed,
    "transcript": digests,
    "reference": st.binary(min_size=6, max_size=6).map(bytes.hex),
    "retryable": st.booleans(),
    "round": rounds,
    "heads": digests,
    "receipt": signatures,
    "checkpoint": checkpoints,
    "known": checkpoints,
    "shown": checkpoints,
    "first": st.integers(1, 2**53 - 1),
    "entries": st.lists(st.binary(min_size=32, max_size=100), max_size=4).map(tuple),
    "cosigned": st.lists(
        st.builds(CosignedHead, log=names, size=st.integers(1, 2**53 - 1), cosignature=cosignatures), max_size=3
    ).map(tuple),
    "trail-shown.receipt": st.none() | signatures,
    "heads-shown.heads": st.lists(
        st.builds(ShownHead, checkpoint=checkpoints, proof=st.lists(hashes, max_size=3).map(tuple)),
        max_size=3,
        unique_by=lambda head: head.checkpoint.log,
    ).map(tuple),
}
MESSAGES = {
    kind: st.builds(message, **{name: FIELDS.get(f"{kind}.{name}", FIELDS.get(name)) for name in message.model_fields})
    for kind, message in REGISTRY.items()
}
NUMBERS = (
    st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**52), 2.0**52, allow_nan=False)
    | st.floats(1e21, allow_infinity=False)
    | st.floats(max_value=-1e21, allow_infinity=False)
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="session")
def fed() -> ModuleType:
    """The golden federation: `tests/vectors/make.py`."""
    return golden


@pytest.fixture
def now() -> datetime:
    moment: datetime = golden.NOW
    return moment


@pytest.fixture(scope="session")
def strategies() -> SimpleNamespace:
    return SimpleNamespace(messages=MESSAGES, plans=any_plan(), json=JSON, collections=collections, moments=moments)
