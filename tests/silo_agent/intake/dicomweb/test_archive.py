"""What an archive gives is read whole; what it fails at is refused, waited for, or ends the reading."""

import logging
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.hospitals.writing import Identity
from silo_agent.errors import WorkCancelled
from silo_agent.intake.dicomweb.archive import shown
from silo_agent.intake.dicomweb.errors import ArchiveNotListed, ArchiveUnreachable
from silo_agent.intake.dicomweb.search import Instance
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.intake.image import StoredImage, read_image
from silo_agent.intake.refusals import Refusal

ANY = r"studies.*"
AN_INSTANCE = r"studies/.*/instances/.*"


def where(who: Identity) -> Instance:
    return Instance(who.study_uid, who.series_uid, who.sop_uid)


def taken(archive: Any, instance: Instance) -> bytes | Refusal:
    with archive.fetch(instance) as found:
        return found if isinstance(found, Refusal) else found.read_bytes()


def answering(sending: Any, status: int, body: bytes = b"", kind: str = "text/plain", **headers: str) -> Any:
    return lambda _web, handler: sending.whole(handler, status, body, kind, **headers)


# --- what goes well ----------------------------------------------------------------------------------
def test_an_archive_is_listed_by_uid_and_every_file_comes_as_it_is_stored(
    web: Any, fill: Any, opened: Any, tmp_path: Path
) -> None:
    everyone = fill(web, patients=4, images=3)
    archive = opened(web.url)
    listing = archive.list_instances({"CT"})
    assert listing.instances == tuple(sorted(where(who) for who in everyone))
    assert listing.refused == ()
    for instance in listing.instances:
        with archive.fetch(instance) as path:
            assert path.parent == tmp_path / "scratch"
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.read_bytes() == web.studies[instance.study_uid][instance.series_uid][instance.sop_uid]
            assert isinstance(read_image(path, modalities={"CT"}), StoredImage)
        assert list((tmp_path / "scratch").iterdir()) == []


def test_the_scratch_folder_is_private_and_what_a_killed_process_left_in_it_is_removed(
    web: Any, opened: Any, tmp_path: Path
) -> None:
    opened(web.url)
    left = tmp_path / "scratch" / "instance-abc.dcm"
    left.write_bytes(b"DICM")
    (tmp_path / "scratch" / "kept.txt").write_text("of somebody else")
    opened(web.url)
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["kept.txt"]


def test_the_file_is_gone_also_when_its_reader_fails(web: Any, fill: Any, opened: Any, tmp_path: Path) -> None:
    who = fill(web, patients=1)[0]
    with pytest.raises(ZeroDivisionError), opened(web.url).fetch(where(who)):
        raise ZeroDivisionError
    assert list((tmp_path / "scratch").iterdir()) == []


def test_several_files_may_be_held_at_once(web: Any, fill: Any, opened: Any) -> None:
    one, other = fill(web, patients=2)
    archive = opened(web.url)
    with archive.fetch(where(one)) as first, archive.fetch(where(other)) as second:
        assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("page", [1, 2, 5, 200])
def test_an_archive_that_shuffles_gives_the_same_list_each_time_or_none(
    page: int, web: Any, fill: Any, opened: Any
) -> None:
    everyone = fill(web, patients=1, images=9)
    dice = random.Random(page)  # noqa: S311 - no secret hangs on it
    web.page = lambda uids, limit, offset: dice.sample(uids, len(uids))[offset:][:limit]
    try:
        listing = opened(web.url, page=page).list_instances({"CT"})
    except ArchiveNotListed:
        assert page < 9
    else:
        assert listing.instances == tuple(sorted(where(who) for who in everyone))


def test_what_the_archive_tells_of_modalities_spares_questions(web: Any, opened: Any) -> None:
    for study, series, modality in (("1.1", "1.1.1", "CT"), ("1.1", "1.1.2", "SR"), ("1.2", "1.2.1", "MR")):
        web.add(study, series, series + ".7", b"", modality)
    listing = opened(web.url).list_instances({"CT", "US"})
    assert listing.instances == (Instance("1.1", "1.1.1", "1.1.1.7"),)
    assert not any("1.1.2" in path or "1.2" in path.split("?")[0].split("/") for path in web.asked)


def test_a_modality_that_is_not_told_is_asked_for(web: Any, opened: Any) -> None:
    web.add("1.1", "1.1.1", "1.1.1.7", b"", "")
    assert len(opened(web.url).list_instances({"CT"}).instances) == 1


def test_empty_and_nameless_things_are_counted_and_not_forgotten(web: Any, opened: Any) -> None:
    web.studies["1.1"] = {}
    web.studies["1.2"] = {"1.2.1": {}}
    web.modalities["1.2.1"] = "CT"
    web.add("1.3", "1.3.1", "../../system", b"")
    web.add("1.3", "1.3.1", "1.3.1.7", b"")
    listing = opened(web.url).list_instances({"CT"})
    assert listing.instances == (Instance("1.3", "1.3.1", "1.3.1.7"),)
    assert listing.refused == (
        ("studies/1.1", Refusal.NO_PIXELS),
        ("studies/1.2/series/1.2.1", Refusal.NO_PIXELS),
        ("studies/1.3/series/1.3.1/instances/(without a UID that can be asked for)", Refusal.UNREADABLE),
    )


def test_an_archive_without_anything_is_an_empty_list(web: Any, opened: Any, sending: Any) -> None:
    assert opened(web.url).list_instances({"CT"}).instances == ()
    web.instead[ANY] = answering(sending, 204)
    assert opened(web.url).list_instances({"CT"}).instances == ()


def test_a_listing_tells_how_far_it_is_and_can_be_ended(web: Any, fill: Any, opened: Any) -> None:
    fill(web, patients=3, images=2)
    told: list[int] = []
    opened(web.url).list_instances({"CT"}, told.append)
    assert told == [2, 4, 6]

    def cancelled(_count: int) -> None:
        raise WorkCancelled

    with pytest.raises(WorkCancelled):
        opened(web.url).list_instances({"CT"}, cancelled)


def test_more_instances_than_the_limit_are_refused_as_a_whole(web: Any, fill: Any, opened: Any) -> None:
    fill(web, patients=3, images=2)
    with pytest.raises(ArchiveNotListed, match="more than 5 instances"):
        opened(web.url, max_results=5).list_instances({"CT"})


def test_an_archive_that_ignores_the_offset_is_refused(web: Any, fill: Any, opened: Any) -> None:
    fill(web, patients=1, images=6)
    web.page = lambda uids, limit, _offset: uids[:limit]
    with pytest.raises(ArchiveNotListed, match="offset"):
        opened(web.url, page=4).list_instances({"CT"})


def test_refused_things_are_shown_by_their_uids() -> None:
    assert shown(Instance("1.2", "1.3", "1.4")) == "studies/1.2/series/1.3/instances/1.4"


# --- one instance fails ------------------------------------------------------------------------------
def part(data: bytes, more: bytes = b"--\r\n", kind: bytes = b"application/dicom") -> bytes:
    return b"--edge\r\nContent-Type: " + kind + b"\r\n\r\n" + data + b"\r\n--edge" + more


def related(body: bytes, **headers: str) -> Any:
    def misdeed(_web: Any, handler: Any) -> None:
        handler.send_response(200)
        for name, value in ({"content_length": str(len(body)), "content_type": RELATED} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return misdeed


def endless(kind: str, head: bytes, filling: bytes = b"\0") -> Any:
    def misdeed(web: Any, handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("content-type", kind)
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(head), head))
        while not web.over.is_set():
            handler.wfile.write(b"10000\r\n" + filling * 0x10000 + b"\r\n")

    return misdeed


def no_http(_web: Any, handler: Any) -> None:
    handler.wfile.write(b"220 mail ready\r\n")
    handler.close_connection = True


def dripping(head: bytes) -> Any:
    """A byte now and then, each in good time for itself."""

    def misdeed(web: Any, handler: Any) -> None:
        handler.wfile.write(head)
        while not web.over.wait(0.03):
            handler.wfile.write(b"x")

    return misdeed


RELATED = 'multipart/related; type="application/dicom"; boundary=edge'
LOGIN_PAGE = b"<!DOCTYPE html><html><title>Sign in</title></html>"
DRIP_BODY = b"HTTP/1.1 200 OK\r\ncontent-type: application/dicom\r\ncontent-length: 5000\r\n\r\n"
ONE_FAILS: dict[str, tuple[Callable[[Any], Any], Refusal]] = {
    "it is listed and not there": (lambda s: answering(s, 404), Refusal.READ_ERROR),
    "it was deleted": (lambda s: answering(s, 410), Refusal.READ_ERROR),
    "the archive fails at it": (lambda s: answering(s, 500), Refusal.READ_ERROR),
    "the archive has no time for it": (lambda s: answering(s, 503), Refusal.READ_ERROR),
    "we may not have it": (lambda s: answering(s, 403), Refusal.PERMISSION_DENIED),
    "the archive refuses the request": (lambda s: answering(s, 406), Refusal.READ_ERROR),
    "a login page": (lambda s: answering(s, 200, LOGIN_PAGE, "text/html"), Refusal.READ_ERROR),
    "a login page that is called DICOM": (
        lambda s: answering(s, 200, LOGIN_PAGE, "application/dicom"),
        Refusal.READ_ERROR,
    ),
    "nothing that is called DICOM": (lambda s: answering(s, 200, b"", "application/dicom"), Refusal.READ_ERROR),
    "an empty answer": (lambda s: answering(s, 204), Refusal.READ_ERROR),
    "a part of it": (lambda s: answering(s, 206, part(b"DICM"), RELATED), Refusal.READ_ERROR),
    "a redirect to the same host": (lambda s: answering(s, 302, location="/dicom-web/studies"), Refusal.READ_ERROR),
    "compressed": (lambda s: answering(s, 200, b"x", "application/dicom", content_encoding="gzip"), Refusal.READ_ERROR),
    "no boundary": (lambda _: related(part(b"DICM"), content_type="multipart/related"), Refusal.READ_ERROR),
    "a part of another type": (lambda _: related(part(b"{}", kind=b"application/json")), Refusal.READ_ERROR),
    "two parts": (lambda _: related(part(b"DICM", b"\r\n\r\nDICM\r\n--edge--")), Refusal.READ_ERROR),
    "the end is missing": (lambda _: related(part(b"DICM", b"")), Refusal.READ_ERROR),
    "the connection breaks": (lambda _: related(part(b"DICM"), content_length="9999"), Refusal.READ_ERROR),
    "no HTTP": (lambda _: no_http, Refusal.READ_ERROR),
    "more than is announced to be allowed": (
        lambda _: related(part(b"DICM"), content_length="999999999999"),
        Refusal.TOO_LARGE,
    ),
    "no end": (lambda _: endless(RELATED, part(b"", b"").removesuffix(b"\r\n--edge")), Refusal.TOO_LARGE),
    "no end and no multipart": (lambda _: endless("application/dicom", b"DICM"), Refusal.TOO_LARGE),
    "a byte of the file now and then": (lambda _: dripping(DRIP_BODY), Refusal.READ_ERROR),
    "a byte of the headers now and then": (lambda _: dripping(b"HTTP/1.1 200 OK\r\nx: "), Refusal.READ_ERROR),
}


@pytest.mark.parametrize("case", ONE_FAILS)
def test_an_instance_that_fails_is_refused_and_the_next_one_is_read(
    case: str, web: Any, fill: Any, opened: Any, sending: Any, tmp_path: Path
) -> None:
    bad, good = (where(who) for who in fill(web, patients=2))
    make, expected = ONE_FAILS[case]
    web.instead[bad.path] = make(sending)
    archive = opened(web.url, max_instance_bytes=1_000_000, instance_seconds=0.5 if "now and then" in case else 20.0)
    started = time.monotonic()
    assert taken(archive, bad) is expected
    assert time.monotonic() - started < 10
    assert taken(archive, good) == web.studies[good.study_uid][good.series_uid][good.sop_uid]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_redirect_to_another_host_is_not_followed_and_the_login_stays_here(
    web: Any, make_web: Any, fill: Any, opened: Any, login: Any, sending: Any
) -> None:
    other = make_web()
    who = fill(web, patients=1)[0]
    fill(other, patients=1)
    web.instead[AN_INSTANCE] = answering(sending, 307, location=f"{other.url}/{where(who).path}")
    archive = opened(web.url, credentials=login("agent:secret"))
    assert taken(archive, where(who)) is Refusal.READ_ERROR
    assert other.asked == []
    assert web.headers[-1]["authorization"] == "Basic YWdlbnQ6c2VjcmV0"


def test_a_file_that_is_another_instance_is_refused(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    one, other = (where(who) for who in fill(web, patients=2))
    data = web.studies[other.study_uid][other.series_uid][other.sop_uid]
    web.instead[one.path] = lambda _web, handler: sending.part(handler, data)
    assert taken(opened(web.url), one) is Refusal.UID_CONFLICT


def test_a_bare_dicom_file_without_multipart_is_taken(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    one = where(fill(web, patients=1)[0])
    data = web.studies[one.study_uid][one.series_uid][one.sop_uid]
    web.instead[one.path] = answering(sending, 200, data, "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")
    assert taken(opened(web.url), one) == data


@pytest.mark.parametrize("missing", ["SOPInstanceUID", "PatientID"])
def test_what_only_the_file_can_say_is_left_to_whoever_reads_it(
    missing: str, web: Any, write_one: Any, opened: Any
) -> None:
    web.add("1.1", "1.2", "1.3", write_one(extra={missing: ""}, identity=Identity("st-olavs", "P1")).read_bytes())
    with opened(web.url).fetch(Instance("1.1", "1.2", "1.3")) as found:
        assert (found is Refusal.UID_CONFLICT) is (missing == "PatientID")


def test_a_study_that_cannot_be_listed_counts_as_one_and_the_others_are_read(
    web: Any, fill: Any, opened: Any, sending: Any
) -> None:
    bad, good = sorted(where(who) for who in fill(web, patients=2, images=2)[::2])
    web.instead[f"studies/{bad.study_uid}/series"] = answering(sending, 500)
    listing = opened(web.url).list_instances({"CT"})
    assert {one.study_uid for one in listing.instances} == {good.study_uid}
    assert listing.refused == ((f"studies/{bad.study_uid}", Refusal.READ_ERROR),)


def test_a_list_without_end_is_refused(web: Any, opened: Any) -> None:
    web.instead[ANY] = endless("application/dicom+json", b"[", b" ")
    with pytest.raises(ArchiveNotListed, match="sends more than 100000 bytes"):
        opened(web.url, max_search_bytes=100_000).list_instances({"CT"})


def test_what_a_broken_try_has_written_is_no_part_of_the_file(web: Any, fill: Any, opened: Any) -> None:
    one = where(fill(web, patients=1)[0])

    def longer_and_broken(web: Any, handler: Any) -> None:
        web.instead.clear()
        related(part(b"x" * 50_000, b""), content_length="99999")(web, handler)

    web.instead[AN_INSTANCE] = longer_and_broken
    data = web.studies[one.study_uid][one.series_uid][one.sop_uid]
    assert taken(opened(web.url, pauses=(0.0,)), one) == data


def test_a_full_disk_is_no_failure_of_the_archive(web: Any, fill: Any, opened: Any, tmp_path: Path) -> None:
    one = where(fill(web, patients=1)[0])
    archive = opened(web.url)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"), archive.fetch(one):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert isinstance(taken(archive, one), bytes)


# --- whose failure it is -----------------------------------------------------------------------------
def failing(sending: Any, times: int, status: int = 503) -> Any:
    """So often, and then as it should."""
    left = [times]

    def misdeed(web: Any, handler: Any) -> None:
        if left[0] == 0:
            web.instead.clear()
            web.answer(handler)
            return
        left[0] -= 1
        sending.whole(handler, status, b"", "text/plain")

    return misdeed


def test_what_passes_by_itself_is_asked_for_again_after_a_pause(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    one = where(fill(web, patients=1)[0])
    web.instead[AN_INSTANCE] = failing(sending, times=2)
    waited: list[float] = []
    assert isinstance(taken(opened(web.url, pauses=(1.0, 5.0), pause=waited.append), one), bytes)
    assert waited == [1.0, 5.0]


def test_what_does_not_pass_by_itself_is_asked_for_once(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    one = where(fill(web, patients=1)[0])
    web.instead[AN_INSTANCE] = failing(sending, times=1, status=500)
    assert taken(opened(web.url, pauses=(1.0, 5.0)), one) is Refusal.READ_ERROR
    assert len(web.asked) == 1


def test_an_archive_that_is_away_is_waited_for(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    one = where(fill(web, patients=1)[0])
    web.instead[ANY] = failing(sending, times=4, status=502)
    waited: list[float] = []
    archive = opened(web.url, pauses=(1.0,), patience=(10.0, 20.0, 30.0), pause=waited.append)
    assert isinstance(taken(archive, one), bytes)
    assert waited == [1.0, 10.0, 20.0]


def test_an_archive_that_stays_away_ends_the_reading(web: Any, fill: Any, opened: Any) -> None:
    one = where(fill(web, patients=1)[0])
    waited: list[float] = []
    archive = opened(web.url, pauses=(1.0,), patience=(10.0, 20.0), pause=waited.append)
    web.close()
    with pytest.raises(ArchiveUnreachable, match="cannot be reached"):
        taken(archive, one)
    assert waited == [1.0, 10.0, 20.0]


def test_waiting_can_be_ended(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    def cancelled(_seconds: float) -> None:
        raise WorkCancelled

    web.instead[ANY] = answering(sending, 503)
    with pytest.raises(WorkCancelled):
        taken(opened(web.url, pauses=(1.0,), pause=cancelled), where(fill(web, patients=1)[0]))


def test_an_instance_at_which_the_archive_falls_over_each_time_is_refused_in_the_end(
    web: Any, fill: Any, opened: Any
) -> None:
    one = where(fill(web, patients=1)[0])

    def hang_up(web: Any, handler: Any) -> None:
        handler.close_connection = True
        away.append(handler.path)

    def fall_over(web: Any, handler: Any) -> None:
        if handler.path.endswith(one.path) or (away and len(away) % 2):
            hang_up(web, handler)
        else:
            web._honestly(handler, ["studies"], {"limit": ["1"], "offset": ["0"]})

    away: list[str] = []
    web.instead[ANY] = fall_over
    assert taken(opened(web.url, patience=(1.0, 1.0)), one) is Refusal.READ_ERROR
    assert len([path for path in away if path.endswith(one.path)]) == 2


@pytest.mark.parametrize(
    ("status", "error"), [(500, ArchiveUnreachable), (403, ArchiveDenied), (302, ArchiveUnreachable)]
)
def test_several_studies_in_a_row_that_fail_end_the_reading(
    status: int, error: type[Exception], web: Any, fill: Any, opened: Any, sending: Any
) -> None:
    """As when the archive's storage is away and its index is not."""
    everyone = fill(web, patients=6)
    web.instead[AN_INSTANCE] = answering(sending, status)
    archive = opened(web.url, failing_studies=4)
    for who in everyone[:3]:
        assert isinstance(taken(archive, where(who)), Refusal)
    with pytest.raises(error, match="4 studies in a row"):
        taken(archive, where(everyone[3]))


def test_a_study_that_is_damaged_as_a_whole_is_one_failure(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    everyone = fill(web, patients=2, images=8)
    web.instead[everyone[0].study_uid.join(("studies/", "/series/.*"))] = answering(sending, 500)
    archive = opened(web.url, failing_studies=2)
    found = [taken(archive, where(who)) for who in everyone]
    assert found[:8] == [Refusal.READ_ERROR] * 8
    assert all(isinstance(one, bytes) for one in found[8:])


def test_shells_never_end_the_reading(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    everyone = fill(web, patients=9)
    web.instead[AN_INSTANCE] = answering(sending, 404)
    archive = opened(web.url, failing_studies=2)
    assert {taken(archive, where(who)) for who in everyone} == {Refusal.READ_ERROR}


def test_success_in_between_starts_the_count_anew(web: Any, fill: Any, opened: Any, sending: Any) -> None:
    everyone = fill(web, patients=6)
    for who in everyone[::2]:
        web.instead[where(who).path] = answering(sending, 500)
    archive = opened(web.url, failing_studies=2)
    assert [isinstance(taken(archive, where(who)), Refusal) for who in everyone] == [True, False] * 3


# --- what is not said --------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["it is listed and not there", "the connection breaks", "no HTTP", "no end"])
def test_neither_uids_nor_the_login_get_into_the_log_or_the_error(
    case: str, web: Any, fill: Any, opened: Any, login: Any, sending: Any, caplog: pytest.LogCaptureFixture
) -> None:
    everyone = fill(web, patients=2)
    web.instead[AN_INSTANCE] = ONE_FAILS[case][0](sending)
    caplog.set_level(logging.DEBUG)
    said = ""
    archive = opened(web.url, credentials=login("agent:secret"), failing_studies=1, max_instance_bytes=100_000)
    archive.list_instances({"CT"})
    try:
        taken(archive, where(everyone[0]))
    except ArchiveUnreachable as why:
        said = str(why)
    for word in ("2.25.", "secret", "c2VjcmV0"):
        assert word not in caplog.text + said + repr(archive) + repr(archive.__dict__)
