"""The golden vectors are compared, never written. Red here means: the wire format changed."""

import base64
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from boundary.canonical import digest
from boundary.envelope import open_envelope
from boundary.identity import PublicIdentity
from boundary.messages import REGISTRY, Share
from boundary.names import COORDINATOR
from boundary.plan import digest_of, parse_plan, plan_from_toml, study_id
from boundary.requests import HEADER, read_claim
from boundary.roster import TrustedRoster
from boundary.secagg.context import cohort_of
from boundary.secagg.quoted import Said, revealed
from boundary.tensors import TensorManifest, pack, unpack
from compliance.events import EVENTS
from compliance.trail import read_leaf

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
    if isinstance(message, Share):
        recipient = "ucl"
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


def test_the_stored_plans_with_a_guarantee_have_their_digests_from_toml_and_from_json() -> None:
    vectors = stored("plan.json")["private"]
    for vector in vectors.values():
        plan = plan_from_toml(vector["toml"])
        assert parse_plan(json.loads(vector["text"])) == plan
        assert digest_of(plan) == vector["digest"] == digest(vector["text"].encode())
        assert plan.privacy.mechanism == "patient-dp"
    assert plan_from_toml(vectors["with an epsilon"]["toml"]) == make.private_plan()
    assert len({vector["digest"] for vector in vectors.values()}) == len(vectors) == 3


def test_the_stored_plans_with_masks_have_their_digests_from_toml_and_from_json() -> None:
    vectors = stored("plan.json")["segmentation"]
    for vector in vectors.values():
        plan = plan_from_toml(vector["toml"])
        assert parse_plan(json.loads(vector["text"])) == plan
        assert digest_of(plan) == vector["digest"] == digest(vector["text"].encode())
        assert (plan.task, plan.labels.classes[0]) == ("segmentation", "background")
    assert len({vector["digest"] for vector in vectors.values()}) == len(vectors) == 3


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


def test_the_stored_messages_of_a_sum_quote_envelopes_that_open() -> None:
    said, messages = Said(make.plan(), make.messages()["ready"].collection), make.messages()
    announced = said.announcements(messages["cohort-closed"].ready)
    assert tuple(announced) == messages["cohort-closed"].members
    assert announced["st-olavs"].digest == stored("envelopes.json")["ready"]["digest"]
    cohort = messages["share"].cohort
    assert cohort_of(messages["ready"].context, {silo: one.digest for silo, one in announced.items()}) == cohort
    assert set(said.parts_for("st-olavs", cohort, messages["shares-routed"].parts)) == {"charite", "ucl"}
    assert set(said.dealt("st-olavs", messages["shares"]).parts) == {"charite", "ucl"}
    vectors = said.vectors(messages["survivors-named"].vectors)
    assert vectors["st-olavs"] == (messages["masked-vector"].sharers, messages["masked-vector"].vector.digest)
    assert said.agreements(messages["agreement-shown"].seen) == dict.fromkeys(
        vectors, messages["survivors-seen"].survivors
    )
    assert set(revealed(messages["shares-revealed"]).of_survivors) == set(vectors)


def test_what_was_sealed_once_still_opens() -> None:
    vector = stored("sealed.json")
    sealed, context = base64.b64decode(vector["sealed"]), vector["context"].encode()
    assert make.unsealing("ucl").unseal(sealed, context) == make.SECRET
