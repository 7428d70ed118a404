"""Who may not in, or stands before the wrong door, is told which it is and what to do; nothing secret is said."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.authority import Authority
from silo_agent.intake.dicomweb.endpoint import Endpoint
from silo_agent.intake.dicomweb.errors import (
    ArchiveNotListed,
    ArchiveNotTrusted,
    ArchiveUnreachable,
    NotDicomweb,
)
from silo_agent.intake.errors import ArchiveDenied, ArchiveMissing, IntakeError

Answering = Callable[[Any, Any], None]


def whole(status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Callable[[Any], Answering]:
    return lambda sending: lambda _web, handler: sending.whole(handler, status, body, kind, **headers)


JSON = "application/dicom+json"
WHOLE_ARCHIVE: dict[str, tuple[Callable[[Any], Answering], type[IntakeError], str]] = {
    "it asks for a login": (whole(401), ArchiveDenied, "asks for a login: configure a credentials file"),
    "we may not search": (whole(403), ArchiveDenied, "let the agent's account search"),
    "nothing is there": (whole(404), NotDicomweb, "correct source.url"),
    "it fails": (whole(500), ArchiveUnreachable, "status 500: check that the archive runs"),
    "it is busy": (whole(503), ArchiveUnreachable, "status 503"),
    "it redirects": (whole(302, location="https://login.example/"), NotDicomweb, "redirects to another address"),
    "it moved for good": (whole(301, location="/other"), NotDicomweb, "redirects"),
    "it shows a login page": (whole(200, b"<html>", "text/html; charset=utf-8"), NotDicomweb, "a web page"),
    "it shows something": (whole(200, b"x", "image/png"), NotDicomweb, "another type of content"),
    "it says nothing of the type": (whole(200, b"[]", ""), NotDicomweb, "another type of content"),
    "it speaks another JSON": (whole(200, b'{"studies": []}', JSON), NotDicomweb, "no list of"),
    "it speaks no JSON": (whole(200, b"[", JSON), NotDicomweb, "no list of"),
    "it speaks XML": (whole(200, b"<x/>", "application/dicom+xml"), NotDicomweb, "another type"),
    "it lists something without UIDs": (whole(200, b"[{}]", JSON), NotDicomweb, "no list of"),
    "it compresses": (whole(200, b"[]", JSON, content_encoding="gzip"), NotDicomweb, "compresses"),
    "it answers with everything": (whole(200, b"[" + b" " * 200_000, JSON), ArchiveNotListed, "the parameter limit"),
}


@pytest.mark.parametrize("case", WHOLE_ARCHIVE)
def test_what_is_wrong_with_the_archive_is_told_with_the_fix(case: str, web: Any, opened: Any, sending: Any) -> None:
    make, error, words = WHOLE_ARCHIVE[case]
    web.instead[".*"] = make(sending)
    archive = opened(web.url, max_search_bytes=100_000)
    for ask in (archive.probe, lambda: archive.list_instances({"CT"})):
        with pytest.raises(error, match=words) as why:
            ask()
        assert web.url in str(why.value)
        assert why.value.code in {"ARCHIVE_MISSING", "ARCHIVE_DENIED"}


def test_an_archive_that_is_not_there_is_told_with_the_fix(web: Any, opened: Any) -> None:
    archive = opened(web.url)
    web.close()
    with pytest.raises(ArchiveUnreachable, match=r"cannot be reached \(Connection refused\): check"):
        archive.probe()


NO_ADDRESSES = (
    *("", "pacs", "ftp://pacs/x", "http://user:secret@pacs/x", "https://pacs/x?secret=1", "https://pacs/x#secret"),
    *("http://p q/", "http:///x", "http://:80/x", "http://a..b/x", "http://.../", "http://[::1/x", "http://[zz]/x"),
    *("http://pacs:99999/x", "http://pacs:0/x", "http://pacs:a/x", "http://a:1:2/x", "http://" + "a" * 64 + "/x"),
)


@pytest.mark.parametrize("url", NO_ADDRESSES)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(NotDicomweb, match=r"source\.url") as why:
        Endpoint(url).root()
    assert "secret" not in str(why.value)


@pytest.mark.parametrize("url", ["http://pacs", "https://pacs.st-olavs.no:8443/dicom-web/", "http://[::1]:80/a/~b/c_d"])
def test_an_address_ends_with_one_slash(url: str) -> None:
    assert Endpoint(url).root() == url.rstrip("/") + "/"


# --- logins ------------------------------------------------------------------------------------------
def asking(sending: Any) -> Answering:
    def misdeed(web: Any, handler: Any) -> None:
        if handler.headers.get("authorization") == "Basic YWdlbnQ6csOkdHNlbDp4":  # agent:rätsel:x
            web._honestly(handler, ["studies"], {"limit": ["9"], "offset": ["0"]})
        else:
            sending.whole(handler, 401, b"", "text/plain", www_authenticate='Basic realm="PACS"')

    return misdeed


@pytest.mark.parametrize("text", ["agent:rätsel:x", "agent:rätsel:x\n", "agent:rätsel:x\r\n"])
def test_the_login_is_one_line_of_its_file(text: str, web: Any, opened: Any, login: Any, sending: Any) -> None:
    web.instead[".*"] = asking(sending)
    opened(web.url, credentials=login(text)).probe()


def test_a_wrong_login_is_told_and_tried_once(web: Any, opened: Any, login: Any, sending: Any) -> None:
    """Directories lock an account after a handful of wrong passwords."""
    web.instead[".*"] = asking(sending)
    archive = opened(web.url, credentials=login("agent:wrong-secret"), pauses=(1.0, 1.0), patience=(1.0,))
    with pytest.raises(ArchiveDenied, match=r"refuses our login: correct .*archive\.credentials") as why:
        archive.list_instances({"CT"})
    assert len(web.asked) == 1
    assert "secret" not in str(why.value)


def test_a_missing_login_is_told_with_the_place_for_it(web: Any, opened: Any, tmp_path: Path, sending: Any) -> None:
    web.instead[".*"] = asking(sending)
    with pytest.raises(ArchiveDenied, match=r"write user:password into .*nowhere \(chmod 600\)"):
        opened(web.url, credentials=tmp_path / "nowhere").probe()


@pytest.mark.parametrize(
    "text", ["", "secret", ":secret", "agent:sec\nret", "agent:sec\tret", "agent:" + "secret" * 200]
)
def test_a_login_that_is_none_is_refused_and_not_repeated(text: str, login: Any) -> None:
    with pytest.raises(ArchiveDenied, match="one line `user:password`") as why:
        Endpoint("http://pacs/x", login(text)).login()
    assert "sec" not in str(why.value)


def test_a_login_that_is_no_text_is_refused(login: Any) -> None:
    path = login("agent:secret")
    path.write_bytes(b"agent:\xff")
    with pytest.raises(ArchiveDenied, match="one line"):
        Endpoint("http://pacs/x", path).login()


def test_a_login_that_others_can_read_is_refused(login: Any) -> None:
    path = login("agent:secret")
    path.chmod(0o640)
    with pytest.raises(ArchiveDenied, match="chmod 600"):
        Endpoint("http://pacs/x", path).login()


def test_a_login_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(0o700)
    with pytest.raises(ArchiveDenied, match="cannot be read"):
        Endpoint("http://pacs/x", tmp_path / "folder").login()


def test_nothing_of_the_environment_is_used(
    web: Any, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine localhost login agent password secret")
    monkeypatch.setenv("NETRC", os.fspath(tmp_path / ".netrc"))
    opened(web.url).probe()
    assert "authorization" not in web.headers[0]


# --- TLS ---------------------------------------------------------------------------------------------
@pytest.fixture
def secured(authority: Authority, tmp_path: Path) -> Callable[..., ssl.SSLContext]:
    def context(name: str = "localhost") -> ssl.SSLContext:
        authority.issue_server([name]).save(tmp_path / "server.pem", tmp_path / "server.key")
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
        return made

    return context


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_text(authority.pem)
    return path


def test_an_archive_of_the_hospital_s_own_ca_is_read(
    make_web: Any, fill: Any, opened: Any, secured: Any, ca: Path
) -> None:
    web = make_web(context=secured())
    fill(web, patients=2)
    archive = opened(web.url, authority=ca)
    for instance in archive.list_instances({"CT"}).instances:
        with archive.fetch(instance) as path:
            assert path.read_bytes() == web.studies[instance.study_uid][instance.series_uid][instance.sop_uid]


def test_a_certificate_of_an_unknown_ca_is_not_trusted(make_web: Any, opened: Any, secured: Any) -> None:
    web = make_web(context=secured())
    with pytest.raises(ArchiveNotTrusted, match=r"not trusted \(.*\): give the CA of the archive") as why:
        opened(web.url).list_instances({"CT"})
    assert why.value.code == "ARCHIVE_DENIED"
    assert web.asked == []


def test_a_certificate_of_another_name_is_not_trusted(make_web: Any, opened: Any, secured: Any, ca: Path) -> None:
    web = make_web(context=secured("other.example"))
    with pytest.raises(ArchiveNotTrusted, match="correct the address"):
        opened(web.url, authority=ca).probe()


def test_a_certificate_that_changes_half_way_ends_the_reading(
    make_web: Any, fill: Any, opened: Any, secured: Any, ca: Path
) -> None:
    context = secured()
    web = make_web(context=context)
    fill(web, patients=1)
    archive = opened(web.url, authority=ca, pauses=(0.0,))
    (instance,) = archive.list_instances({"CT"}).instances
    secured("other.example")
    context.load_cert_chain(ca.with_name("server.pem"), ca.with_name("server.key"))
    web.instead[".*"] = lambda _web, handler: setattr(handler, "close_connection", True)
    with pytest.raises(ArchiveNotTrusted), archive.fetch(instance):
        pass


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_told(content: str | None, tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "archive.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArchiveNotTrusted, match=r"archive\.pem cannot be used"):
        opened("https://pacs/dicom-web", authority=path)


def test_plain_http_where_tls_is_spoken_and_the_other_way_round_is_unreachable(
    web: Any, make_web: Any, opened: Any, secured: Any, ca: Path
) -> None:
    with pytest.raises(ArchiveUnreachable, match=r"source\.url"):
        opened(make_web(context=secured()).url.replace("https", "http")).probe()
    with pytest.raises(ArchiveUnreachable, match=r"source\.url"):
        opened(web.url.replace("http", "https"), authority=ca).probe()


def test_these_errors_are_the_intake_s_own() -> None:
    for error in (ArchiveUnreachable, NotDicomweb, ArchiveNotListed):
        assert issubclass(error, ArchiveMissing)
    assert issubclass(ArchiveNotTrusted, ArchiveDenied)


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("http://pacs.example/dicom-web", True),
        ("http://10.0.0.7:8042/dicom-web", True),
        ("https://pacs.example/dicom-web", False),
        ("http://127.0.0.1:8042/dicom-web", False),
        ("http://localhost/dicom-web", False),
        ("http://[::1]:8042/dicom-web", False),
    ],
)
def test_an_address_over_which_a_login_could_be_read(url: str, is_open: bool) -> None:
    assert Endpoint(url).is_open is is_open
