"""The checks by themselves, where a browser would not go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from silo_agent.console.errors import Declined
from silo_agent.console.exchange import MOST_FIELDS, Request
from silo_agent.console.guard import check_host, check_origin, hosts
from silo_agent.console.routes import DECIDED, SHOWN, route

PORT = 8787
OURS = {"host": f"127.0.0.1:{PORT}"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


def request(headers: dict[str, str], body: bytes = b"", query: str = "") -> Request:
    return Request("POST", "/", query, headers, body)


@given(st.text(max_size=40))
def test_only_two_hosts_are_ours(host: str) -> None:
    if host in hosts(PORT):
        check_host(request({"host": host}), PORT)
        return
    with pytest.raises(Declined, match="421"):
        check_host(request({"host": host}), PORT)


@pytest.mark.parametrize("host", ["127.0.0.1:8787", "localhost:8787"])
def test_both_names_of_this_machine_are_ours(host: str) -> None:
    check_host(request({"host": host}), PORT)
    check_origin(request({"host": host, "origin": f"http://{host}"}), PORT)
    check_origin(request({"host": host, "origin": "null", "sec-fetch-site": "same-origin"}), PORT)


@given(
    st.none() | st.sampled_from(["null", "http://127.0.0.1:8787", "http://localhost:8787"]) | st.text(max_size=30),
    st.none() | st.sampled_from(["same-origin", "same-site", "cross-site", "none"]) | st.text(max_size=12),
)
def test_a_form_passes_only_if_the_browser_says_that_it_is_ours(origin: str | None, site: str | None) -> None:
    said = {name: value for name, value in (("origin", origin), ("sec-fetch-site", site)) if value is not None}
    is_ours = origin == "http://127.0.0.1:8787"
    said_so = {"same-origin": is_ours or origin in {None, "null"}, None: is_ours}
    if said_so.get(site, False):
        check_origin(request(OURS | said), PORT)
    else:
        with pytest.raises(Declined, match="403"):
            check_origin(request(OURS | said), PORT)


@given(st.binary(max_size=200))
def test_whatever_a_body_holds_it_is_a_form_or_a_refusal(body: bytes) -> None:
    try:
        found = request(FORM, body).form()
    except Declined as why:
        assert why.status == 400  # noqa: PT017 - either is right
    else:
        assert all(isinstance(value, str) for value in found.values())


def test_more_fields_than_a_form_has_are_refused() -> None:
    body = "&".join(f"a{number}=1" for number in range(MOST_FIELDS + 1)).encode()
    with pytest.raises(Declined, match="400"):
        request(FORM, body).form()


@given(st.text(max_size=60))
def test_whatever_a_cookie_header_holds_only_the_whole_name_is_found(text: str) -> None:
    assert request({"cookie": f"other=1; mine=2; {text}"}).cookie("mine") == "2"
    assert request({"cookie": f"notmine=2; {text.replace('mine', '')}"}).cookie("mine") is None


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "HEAD", "PUT", "get"]))
def test_every_other_address_and_method_is_refused(path: str, method: str) -> None:
    try:
        found = route(method, path)
    except Declined as why:
        assert why.status in {404, 405}  # noqa: PT017 - either is right
    else:
        assert found.answer in {answer for _, answer in (SHOWN if method == "GET" else DECIDED)}


def test_no_page_is_also_a_decision() -> None:
    assert not {answer for _, answer in SHOWN} & {answer for _, answer in DECIDED}
