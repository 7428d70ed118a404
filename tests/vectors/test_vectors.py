"""The golden vectors are compared, never written. Red here means: the wire format changed."""

import base64
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from boundary.canonical import digest
from boundary.contribution import open_contribution
from boundary.envelope import open_envelope
from boundary.identity import PublicIdentity
from boundary.messages import REGISTRY
from boundary.names import COORDINATOR
from boundary.plan import digest_of, parse_plan, plan_from_toml, study_id
from boundary.requests import HEADER, read_claim
from boundary.roster import TrustedRoster
from boundary.sealing import unseal_stream
from boundary.tensors import TensorManifest, pack, unpack
from compliance.trail import EVENTS, read_leaf

FOLDER = Path(__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("*.json") if path.name != "sealed.json")


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_vectors", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _make()


def stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_today_is_what_was_said_then(name: str) -> None:
    today = json.loads(json.dumps(make.VECTORS[name](), default=list))
    assert today == stored(name)


def test_every_builder_has_its_file_every_kind_its_vector() -> None:
    assert set(FILES) == set(make.VECTORS)
    assert set(stored("envelopes.json")) == set(REGISTRY)
    assert set(stored("leaves.json")) == set(EVENTS)


@pytest.mark.parametrize("kind", REGISTRY)
def test_a_stored_envelope_opens(kind: str) -> None:
    vector = stored("envelopes.json")[kind]
    message = make.messages()[kind]
    sender, recipient = (COORDINATOR, "st-olavs") if message.sender == "coordinator" else ("st-olavs", COORDINATOR)
    opened = open_envelope(vector["text"].encode(), recipient=recipient, sender=sender, signer=make.key(sender).public)
    assert (opened.message, opened.digest, opened.sent_at) == (message, vector["digest"], make.NOW)


def test_the_stored_rosters_are_trusted_one_after_the_other() -> None:
    first, second = (vector["text"].encode() for vector in stored("rosters.json").values())
    trusted = TrustedRoster.first(first, make.key(COORDINATOR).public, make.NOW)
    trusted.check_plan(make.plan())
    newer = trusted.update(second, make.NOW)
    assert newer.roster.coordinator.signing_key == make.key("new coordinator").public.text


def test_the_stored_plan_has_its_digest_from_toml_and_from_json() -> None:
    vector = stored("plan.json")
    plan = plan_from_toml(vector["toml"])
    assert parse_plan(json.loads(vector["text"])) == plan
    assert (digest_of(plan), study_id(plan)) == (vector["digest"], vector["study"])
    assert digest(vector["text"].encode()) == vector["digest"]
    assert digest_of(plan_from_toml(vector["shortest"]["toml"])) == vector["shortest"]["digest"] != vector["digest"]


def test_the_stored_requests_verify() -> None:
    vector = stored("request.json")
    signer: PublicIdentity = make.key("st-olavs").public
    for name, body in (("body {}", b"{}"), ("a blob range", None)):
        read_claim({HEADER: vector[name]}).verify(signer, vector["method"], vector["target"], body)


@pytest.mark.parametrize("event", EVENTS)
def test_a_stored_leaf_is_read(event: str) -> None:
    leaf = read_leaf(stored("leaves.json")[event]["text"].encode())
    assert leaf.event == make.events()[event]


def test_the_stored_weights_unpack() -> None:
    vector = stored("tensors.json")
    manifest = TensorManifest.model_validate(vector["manifest"])
    weights = np.frombuffer(base64.b64decode(vector["vector"]), "<f4")
    data = base64.b64decode(vector["safetensors"])
    np.testing.assert_array_equal(unpack(data, manifest), weights)
    assert pack(weights, manifest) == data


def test_what_was_sealed_once_still_opens() -> None:
    sealed, stream = stored("sealed.json"), stored("stream.json")
    context = sealed["context"].encode()
    key = make.unsealing(COORDINATOR)
    assert key.unseal(base64.b64decode(sealed["sealed"]), context) == make.FILE_KEY
    file = base64.b64decode(stream["sealed"])
    assert b"".join(unseal_stream(io.BytesIO(file).read, make.FILE_KEY, context)) == b"twelve bytes"
    opened = open_contribution(
        io.BytesIO(file).read, sealed_key=base64.b64decode(sealed["sealed"]), key=key, context=context
    )
    assert b"".join(opened) == b"twelve bytes"
