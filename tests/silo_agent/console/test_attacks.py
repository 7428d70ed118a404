"""What others can send to the console's port. Whatever it is, the journal says afterwards what it said before."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from silo_agent.console.login import make_login
from silo_agent.console.server import MOST_BODY
from silo_agent.console.sessions import ABSOLUTE, IDLE, WAIT, WRONG_BEFORE_WAIT

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)
Act = Callable[[Any, Any, dict[str, str]], int]


def _approves(steward: Any, site: Any, form: dict[str, str], **headers: str | None) -> int:
    status: int = steward.post(f"/plans/{site.study}/approve", form, **headers).status
    return status


def _with_headers(**headers: str | None) -> Act:
    return lambda steward, site, form: _approves(steward, site, form, **headers)


def _with_form(**changes: str) -> Act:
    return lambda steward, site, form: _approves(steward, site, form | changes)


def _without_token(steward: Any, site: Any, form: dict[str, str]) -> int:
    del form["token"]
    return _approves(steward, site, form)


def _after_logout(steward: Any, site: Any, form: dict[str, str]) -> int:
    assert steward.post("/logout", form).status == 303
    return _approves(steward, site, form)


def _after_a_pause(steward: Any, site: Any, form: dict[str, str]) -> int:
    site.now += IDLE
    return _approves(steward, site, form)


def _after_a_long_day(steward: Any, site: Any, form: dict[str, str]) -> int:
    for _ in range(ABSOLUTE // timedelta(minutes=10)):
        assert steward.get("/").status == 200
        site.now += timedelta(minutes=10)
    return _approves(steward, site, form)


def _after_a_new_login_was_made(steward: Any, site: Any, form: dict[str, str]) -> int:
    make_login(site.root, bytes)
    return _approves(steward, site, form)


def _by_another_method(method: str) -> Act:
    return lambda steward, site, form: steward.send(method, f"/plans/{site.study}/approve", form).status


def _in_the_query(steward: Any, site: Any, form: dict[str, str]) -> int:
    query = "&".join(f"{name}={value}" for name, value in form.items())
    status: int = steward.get(f"/plans/{site.study}/approve?{query}".replace(" ", "+")).status
    return status


def _twice_the_same_field(steward: Any, site: Any, form: dict[str, str]) -> int:
    body = "&".join(f"{name}={value}" for name, value in [*form.items(), ("label", "other")]).replace(" ", "+")
    return _approves(steward, site, body.encode())  # type: ignore[arg-type]


def _oversized(steward: Any, site: Any, form: dict[str, str]) -> int:
    return _approves(steward, site, form | {"reason": "x" * MOST_BODY})


def _older_data(steward: Any, site: Any, form: dict[str, str]) -> int:
    return _approves(steward, site, form | {"data": "sha256:" + "0" * 64})


ATTACKS: dict[str, tuple[Act, int]] = {
    "another site's name that resolves to this machine": (_with_headers(Host="evil.example"), 421),
    "our address with another port": (_with_headers(Host="127.0.0.1:1"), 421),
    "another site's form": (_with_headers(Origin="https://evil.example", Sec_Fetch_Site="cross-site"), 403),
    "another site's form in a browser that does not say so": (
        _with_headers(Origin="https://evil.example", Sec_Fetch_Site=None), 403,
    ),
    "another program's page on another port of this machine": (
        _with_headers(Origin="http://127.0.0.1:1", Sec_Fetch_Site="same-site"), 403,
    ),
    "a sandboxed frame, whose origin is null": (_with_headers(Origin="null", Sec_Fetch_Site="cross-site"), 403),
    "an origin of null and nothing else": (_with_headers(Origin="null", Sec_Fetch_Site=None), 403),
    "no origin at all": (_with_headers(Origin=None, Sec_Fetch_Site=None), 403),
    "our name over another scheme": (_with_headers(Origin="https://127.0.0.1"), 403),
    "no cookie": (_with_headers(Cookie=""), 403),
    "a cookie that nobody was given": (_with_headers(Cookie="wardround-console-1=x"), 403),
    "no token": (_without_token, 403),
    "an empty token": (_with_form(token=""), 403),
    "a wrong token": (_with_form(token="x" * 43), 403),
    "a token that is no ASCII": (_with_form(token="é"), 403),
    "a replay after logout": (_after_logout, 403),
    "the cookie of an idle session": (_after_a_pause, 403),
    "the cookie of a session that is too old": (_after_a_long_day, 403),
    "the cookie of a login that was renewed": (_after_a_new_login_was_made, 403),
    "a GET on a decision": (_in_the_query, 405),
    "a PUT on a decision": (_by_another_method("PUT"), 405),
    "a DELETE on a decision": (_by_another_method("DELETE"), 405),
    "a field that is there twice": (_twice_the_same_field, 400),
    "JSON instead of a form": (_with_headers(Content_Type="application/json"), 415),
    "plain text instead of a form": (_with_headers(Content_Type="text/plain"), 415),
    "a body beyond the limit": (_oversized, 413),
    "data that are not those that were read": (_older_data, 409),
    "a plan that is not the one that was read": (_with_form(plan="sha256:" + "0" * 64), 409),
    "a label that was not typed": (_with_form(label=""), 422),
    "the label of another plan": (_with_form(label="ct-contrast@2"), 422),
    "a role that is none": (_with_form(role="Data Steward"), 422),
    "no reason": (_with_form(reason="  "), 422),
}  # fmt: skip


@pytest.mark.parametrize(("attack", "status"), ATTACKS.values(), ids=ATTACKS)
def test_nothing_is_changed_by(
    attack: Act, status: int, waiting: Any, steward: Any, approval_of: Any, everything: Any
) -> None:  # fmt: skip
    form = approval_of(steward.get(f"/plans/{waiting.study}"))
    before = everything(waiting)
    assert attack(steward, waiting, form) == status
    assert everything(waiting) == before


def test_the_same_form_sent_as_a_person_sends_it_does_change_it(waiting: Any, steward: Any, approval_of: Any) -> None:
    form = approval_of(steward.get(f"/plans/{waiting.study}"))
    assert _approves(steward, waiting, form) == 303
    assert waiting.journal.plan(waiting.study).state == "approved"


def test_one_session_s_token_is_no_use_in_another(
    waiting: Any, served: Any, client_of: Any, approval_of: Any, everything: Any
) -> None:  # fmt: skip
    mine, other = client_of(served), client_of(served)
    form = approval_of(other.get(f"/plans/{waiting.study}"))
    before = everything(waiting)
    assert _approves(mine, waiting, form) == 403
    assert everything(waiting) == before


def test_no_page_is_shown_to_a_stranger(waiting: Any, stranger: Any) -> None:
    for path in ("/", "/plans", f"/plans/{waiting.study}", "/budget", "/rounds", "/incidents", "/trail"):
        page = stranger.get(path)
        assert (page.status, page.headers["location"], page.html) == (303, "/login", "")


def test_no_get_changes_anything(waiting: Any, steward: Any, everything: Any) -> None:
    before = everything(waiting)
    for path in ("/", "/plans", f"/plans/{waiting.study}", "/budget", "/rounds", "/incidents", "/trail", "/login"):
        assert steward.get(path).status == 200
    assert everything(waiting) == before


def test_after_many_wrong_passphrases_even_the_right_one_waits(served: Any, stranger: Any, site: Any) -> None:
    for _ in range(WRONG_BEFORE_WAIT):
        refused = stranger.log_in("wrong")
        assert refused.status == 403
        assert "makes a new one: silo-agent console --new-login" in refused.text
    page = stranger.log_in(served.passphrase)
    assert (page.status, page.headers["retry-after"]) == (429, "60")
    site.now += WAIT
    assert stranger.log_in(served.passphrase).status == 303


def test_a_login_from_another_origin_is_none(served: Any, stranger: Any) -> None:
    page = stranger.post("/login", {"passphrase": served.passphrase}, Origin="http://evil.example")
    assert (page.status, "set-cookie" in page.headers) == (403, False)


def test_the_cookie_cannot_be_read_by_scripts_nor_sent_from_elsewhere(served: Any, stranger: Any) -> None:
    said = stranger.log_in(served.passphrase).headers["set-cookie"]
    assert said.split("; ")[1:] == ["Path=/", "HttpOnly", "SameSite=Strict"]


def test_every_answer_carries_the_rules_for_the_browser(waiting: Any, steward: Any, stranger: Any) -> None:
    pages = [steward.get("/"), steward.get("/nothing"), stranger.get("/"), stranger.get("/login")]
    pages += [stranger.get("/console.css"), stranger.get("/", Host="evil.example"), steward.post("/logout", b"\xff")]
    for page in pages:
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["cross-origin-opener-policy"] == "same-origin"
        assert page.headers["cross-origin-resource-policy"] == "same-origin"


# --- bytes -------------------------------------------------------------------------------------------
RAW: dict[str, tuple[bytes, bytes]] = {
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
    "a head without end": (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, b"431"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n", b"400"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    "an answer split into the path": (b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    "a length that is no number": (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
    "a body in pieces without end": (
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096
        + b"\r\n1000\r\n" + b"x" * 4096 + (b"\r\n1000\r\n" + b"x" * 4096) * 4, b"413",
    ),
    "a path that climbs": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: HERE\r\n\r\n", b"404"),
    "a whole address as the path": (b"GET http://evil.example/ HTTP/1.1\r\nHost: HERE\r\n\r\n", b"404"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), RAW.values(), ids=RAW)
def test_a_refusal_answers(sent: bytes, status: bytes, served: Any, site: Any, everything: Any) -> None:
    before = everything(site)
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(sent.replace(b"HERE", f"127.0.0.1:{served.port}".encode()))
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"<h1>" in answer
    assert everything(site) == before


def test_who_says_nothing_holds_up_nobody(served: Any, steward: Any) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(10)]
    begun = time.monotonic()
    assert steward.get("/").status == 200
    assert time.monotonic() - begun < 5
    for connection in silent:
        connection.close()


def test_who_hangs_up_in_the_middle_leaves_the_console_running(served: Any, steward: Any) -> None:
    for sent in (b"", b"GET / HT", b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(sent)
    assert steward.get("/").status == 200
