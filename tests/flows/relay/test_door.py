"""Who gets in, and what a request must carry."""

import os
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from boundary.api import MAX_RANGE_BYTES
from boundary.canonical import MAX_MESSAGE_BYTES
from boundary.identity import SigningIdentity
from flows.authority import Authority
from flows.relay.limits import MAX_SMALL_BYTES

TLS_ERRORS = (httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)


def dial(relay: Any, context: ssl.SSLContext) -> httpx.Response:
    with httpx.Client(base_url=relay.url, verify=context, trust_env=False) as client:
        return client.get("/healthz")


def test_without_a_client_certificate_nobody_gets_in(relay: Any) -> None:
    with pytest.raises(TLS_ERRORS):
        dial(relay, relay.tls())


def test_a_client_certificate_of_another_authority_does_not_open_the_door(relay: Any) -> None:
    other = Authority.create("other CA", clock=lambda: datetime.now(UTC), entropy=os.urandom)
    invitation = other.invite("st-olavs", relay.url, SigningIdentity.generate().public)
    with pytest.raises(TLS_ERRORS):
        dial(relay, relay.tls(invitation.certificate_pem, invitation.private_key_pem))


def test_an_expired_client_certificate_does_not_open_the_door(relay: Any) -> None:
    real = relay.authority
    past = Authority(real.certificate, real._key, lambda: datetime.now(UTC) - timedelta(days=30), os.urandom)
    invitation = past.invite("st-olavs", relay.url, SigningIdentity.generate().public)
    with pytest.raises(TLS_ERRORS):
        dial(relay, relay.tls(invitation.certificate_pem, invitation.private_key_pem))


def test_healthz_says_nothing(olavs: Any) -> None:
    answer = olavs.http.get("/healthz")
    assert (answer.status_code, answer.content) == (204, b"")


def test_an_invitation_opens_enrolment_only(relay: Any) -> None:
    invitation = relay.authority.invite("ucl", relay.url, relay.key.public)
    context = relay.tls(invitation.certificate_pem, invitation.private_key_pem)
    with httpx.Client(base_url=relay.url, verify=context, trust_env=False) as client:
        for method, target in (("GET", "/v1/roster"), ("POST", "/v1/poll"), ("POST", "/v1/envelopes")):
            answer = client.request(method, target)
            assert (answer.status_code, answer.json()["code"]) == (401, "BAD_SIGNATURE")


def signed_with(olavs: Any, target: str = "/v1/roster", **how: Any) -> httpx.Response:
    answer: httpx.Response = olavs.http.get("/v1/roster", headers=olavs.header("GET", target, **how))
    return answer


def test_requests_that_are_not_what_was_signed_are_refused(olavs: Any, charite: Any) -> None:
    now = datetime.now(UTC)
    refused = {
        "no header": olavs.http.get("/v1/roster"),
        "a header in another form": olavs.http.get("/v1/roster", headers={"wardround-request": "v2;x"}),
        "signed by another hospital": signed_with(olavs, key=charite.key),
        "signed for another address": signed_with(olavs, "/v1/roster?x=1"),
        "signed for another body": signed_with(olavs, body=b"x"),
        "a slow clock": signed_with(olavs, at=now - timedelta(minutes=6)),
        "a fast clock": signed_with(olavs, at=now + timedelta(minutes=6)),
    }
    codes = {name: (answer.status_code, answer.json()["code"]) for name, answer in refused.items()}
    wrong, stale = (401, "BAD_SIGNATURE"), (401, "STALE")
    assert codes == dict(zip(refused, [wrong, wrong, wrong, wrong, wrong, stale, stale], strict=True))
    assert "NTP" in refused["a slow clock"].json()["message"]


def test_a_clock_within_five_minutes_is_accepted(olavs: Any) -> None:
    assert signed_with(olavs, at=datetime.now(UTC) - timedelta(minutes=4)).status_code == 200


def test_a_party_that_is_not_admitted_is_refused(olavs: Any, relay: Any) -> None:
    headers = olavs.header("GET", "/v1/roster")
    headers["wardround-request"] = headers["wardround-request"].replace("st-olavs", "nobody")
    answer = olavs.http.get("/v1/roster", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "UNKNOWN_MEMBER")


def test_a_request_counts_once(olavs: Any) -> None:
    headers = olavs.header("GET", "/v1/roster")
    assert olavs.http.get("/v1/roster", headers=headers).status_code == 200
    again = olavs.http.get("/v1/roster", headers=headers)
    assert (again.status_code, again.json()["code"]) == (409, "REPLAYED")


@pytest.mark.parametrize(
    ("method", "target", "limit"),
    [
        ("POST", "/v1/poll", MAX_SMALL_BYTES),
        ("POST", "/v1/enrolment", MAX_SMALL_BYTES),
        ("POST", "/v1/envelopes", MAX_MESSAGE_BYTES),
        ("GET", "/v1/roster", 0),
    ],
)
def test_oversized_bodies_are_refused_before_they_are_read(olavs: Any, method: str, target: str, limit: int) -> None:
    with olavs.socket() as raw:  # announces too much and sends nothing of it
        raw.sendall(f"{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {limit + 1}\r\n\r\n".encode())
        assert b"413" in raw.recv(4096).split(b"\r\n")[0]


def test_an_oversized_body_without_a_length_is_counted(olavs: Any) -> None:
    def endless() -> Any:
        for _ in range(100):
            yield b"x" * 10_000

    answer = olavs.http.post("/v1/enrolment", content=endless())
    assert (answer.status_code, answer.json()["code"]) == (413, "TOO_LARGE")


def test_an_oversized_range_is_refused(olavs: Any) -> None:
    digest, size = "sha256:" + "a" * 64, MAX_RANGE_BYTES + 1
    target = f"/v1/blobs/{digest}?offset=0&size={size}"
    with olavs.socket() as raw:
        header = olavs.header("PUT", target, None)["wardround-request"]
        lines = [f"PUT {target} HTTP/1.1", "host: x", f"wardround-request: {header}", f"content-length: {size}"]
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b"413" in raw.recv(4096).split(b"\r\n")[0]


def test_a_truncated_body_does_nothing_and_the_relay_goes_on(olavs: Any) -> None:
    with olavs.socket() as raw:
        raw.sendall(b'POST /v1/poll HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"after"')
    assert olavs.http.get("/healthz").status_code == 204


def test_unknown_addresses_methods_and_parameters_get_our_own_refusals(olavs: Any) -> None:
    assert olavs.http.get("/v2/x").json()["code"] == "NO_SUCH_ADDRESS"
    assert olavs.http.delete("/v1/roster").json()["code"] == "NO_SUCH_METHOD"
    assert olavs.http.get("/docs").status_code == 404
    answer = olavs.http.get("/v1/blobs/not-a-digest/state")
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")


def test_the_access_log_names_the_party_and_no_secret(olavs: Any, relay: Any) -> None:
    headers = olavs.header("GET", "/v1/roster")
    olavs.http.get("/v1/roster", headers=headers)
    lines = [line for line in relay.log.splitlines() if "GET /v1/roster 200" in line]
    assert lines[-1].endswith("ms st-olavs")
    assert headers["wardround-request"].split(";")[3] not in relay.log
    assert "Traceback" not in relay.log
