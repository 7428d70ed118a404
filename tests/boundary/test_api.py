"""The relay's own words: no authority, but bounded, typed and free of patients."""

from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from boundary import api
from boundary.canonical import canonical_bytes, parse_canonical
from boundary.errors import BadSignature
from boundary.names import COORDINATOR, Frozen


def test_every_body_travels_as_json(fed: ModuleType) -> None:
    bodies = fed.api_bodies()
    for body in bodies.values():
        wire = canonical_bytes(body.model_dump(mode="json"))
        assert type(body).model_validate(parse_canonical(wire)) == body
        assert type(body).model_validate_json(wire) == body
    spoken = {kind for kind in vars(api).values() if isinstance(kind, type) and kind.__module__ == api.__name__}
    assert {type(body) for body in bodies.values()} == spoken


@pytest.mark.parametrize(
    "body",
    [
        "activity",
        "heartbeat",
        "poll",
        "delivery",
        "deliveries",
        "enrolment",
        "admission",
        "blob",
        "error",
        "invitation",
    ],
)
def test_extra_keys_are_refused(fed: ModuleType, body: str) -> None:
    value: Frozen = fed.api_bodies()[body]
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(value).model_validate(value.model_dump(mode="json") | {"note": "patient 17"})


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "a step below 0": ("activity", {"step": -1}),
    "bool where int is due": ("activity", {"steps": True}),
    "an unknown phase": ("activity", {"phase": "export"}),
    "a version in free text": ("heartbeat", {"agent_version": "0.1 of John"}),
    "a version with a line end": ("heartbeat", {"agent_version": "0.1\n"}),
    "protocols upside down": ("heartbeat", {"protocol": {"oldest": 2, "newest": 1}}),
    "disk_low in words": ("heartbeat", {"disk_low": "no"}),
    "a wait of an hour": ("poll", {"wait_seconds": 3600}),
    "a wait of NaN": ("poll", {"wait_seconds": float("nan")}),
    "a wait of less than nothing": ("poll", {"wait_seconds": -0.1}),
    "sequence 0": ("delivery", {"sequence": 0}),
    "an envelope with stray bits": ("delivery", {"envelope": "QUJDRB=="}),
    "an envelope over 2 MiB": ("delivery", {"envelope": bytes(2 * 1024 * 1024 + 1)}),
    "65 deliveries": ("deliveries", {"deliveries": [{"sequence": 1, "envelope": ""}] * 65}),
    "an unknown upgrade": ("deliveries", {"upgrade": "now"}),
    "a token of 42 characters": ("enrolment", {"token": "t" * 42}),
    "a token with a slash": ("enrolment", {"token": "/" * 43}),
    "the coordinator asks to be enrolled": ("enrolment", {"silo": COORDINATOR}),
    "a certificate request of 5 kB": ("enrolment", {"csr_pem": "x" * 5000}),
    "a signature of 63 bytes": ("signed enrolment", {"signature": bytes(63)}),
    "an unknown state": ("admission", {"state": "maybe"}),
    "an offset below 0": ("blob", {"offset": -1}),
    "a code in small letters": ("error", {"code": "not_enrolled"}),
    "a message of 501 characters": ("error", {"message": "x" * 501}),
    "a relay without TLS": ("invitation", {"relay_url": "http://relay.example"}),
    "a relay with a path": ("invitation", {"relay_url": "https://relay.example/x"}),
    "a relay with a user": ("invitation", {"relay_url": "https://relay.example@mallory.example"}),
    "a relay with a line end": ("invitation", {"relay_url": "https://relay.example\n"}),
    "a coordinator's key with stray bits": ("invitation", {"coordinator_key": "ed25519:" + "A" * 42 + "B="}),
    "an end in another form": ("invitation", {"expires_at": "2026-11-20T12:00:00Z"}),
    "true for version 1": ("invitation", {"version": True}),
}


@pytest.mark.parametrize(("body", "changes"), WRONG.values(), ids=WRONG)
def test_a_body_out_of_bounds_is_refused(fed: ModuleType, body: str, changes: dict[str, Any]) -> None:
    value: Frozen = fed.api_bodies()[body]
    with pytest.raises(ValidationError):
        type(value).model_validate(value.model_dump(mode="json") | changes)


def test_deliveries_are_a_list() -> None:
    wrongs: list[object] = [{}, "x", None, 1]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            api.PollAnswer.model_validate({"deliveries": wrong, "roster_version": 1})


def test_an_enrolment_is_signed_by_the_key_it_brings(fed: ModuleType) -> None:
    signed: api.SignedEnrolment = fed.enrolment()
    data = canonical_bytes(signed.request.model_dump(mode="json"))
    signed.request.card.check()
    signed.request.card.identity.verify(api.ENROLMENT_CONTEXT, data, signed.signature)
    for context, content in ((api.ENROLMENT_CONTEXT, data.replace(b"st-olavs", b"st-olavz")), ("request", data)):
        with pytest.raises(BadSignature):
            signed.request.card.identity.verify(context, content, signed.signature)
