"""One part in, its bytes out, and everything else is an error, however the body is cut into pieces."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from silo_agent.intake.dicomweb.multipart import (
    MOST_AROUND,
    MultipartError,
    PartReader,
    PartTooLarge,
    Truncated,
    parse_content_type,
)

DICOM = "application/dicom"
FILE = b"\0" * 128 + b"DICM" + bytes(range(256)) + b"\r\n--\r\n--x\r\n\r\n"
HEADERS = b"Content-Type: application/dicom\r\nContent-Length: 7\r\n"


def body(payload: bytes = FILE, headers: bytes = HEADERS, before: bytes = b"", after: bytes = b"\r\n") -> bytes:
    return before + b"--edge\r\n" + headers + b"\r\n" + payload + b"\r\n--edge--" + after


def read(
    data: bytes, cuts: tuple[int, ...] = (), boundary: str = "edge", most: int = 10_000
) -> bytes | type[Exception]:
    """The payload, or the class of the error."""
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    try:
        part = PartReader(boundary, media_type=DICOM, most_bytes=most)
        found = b"".join(part.feed(data[start:end]) for start, end in pairwise(edges))
        part.close()
    except MultipartError as why:
        return type(why)
    return found


GOOD = {
    "as Orthanc sends it": body(headers=HEADERS + b"MIME-Version: 1.0\r\n", before=b"\r\n"),
    "without an epilogue": body(after=b""),
    "with preamble and epilogue": body(before=b"This is a message in MIME format.\r\n", after=b"\r\nand that was it"),
    "with blanks behind the boundary": body().replace(b"--edge\r\n", b"--edge \t \r\n", 1),
    "without any header of the part": body(headers=b""),
    "the type in capitals and with a parameter": body(headers=b"CONTENT-TYPE: Application/DICOM; x=1\r\n"),
    "encoded as binary, that is, not": body(headers=HEADERS + b"Content-Transfer-Encoding: binary\r\n"),
}


@pytest.mark.parametrize("case", GOOD)
def test_the_part_is_what_lies_between_the_boundaries(case: str) -> None:
    assert read(GOOD[case]) == FILE


BAD = {
    "no byte at all": (b"", Truncated),
    "no boundary": (FILE, Truncated),
    "another boundary": (body().replace(b"edge", b"hedge"), Truncated),
    "cut within the payload": (body()[:300], Truncated),
    "cut within the closing boundary": (body(after=b"")[:-1], Truncated),
    "cut within the headers": (body()[:20], Truncated),
    "lines that end with LF only": (body(payload=b"DICM").replace(b"\r\n", b"\n"), Truncated),
    "a closing boundary that ends with LF only": (body().replace(b"\r\n--edge--", b"\n--edge--"), Truncated),
    "no part, only the end": (b"--edge--\r\n", MultipartError),
    "two parts": (body(after=b"")[:-2] + b"\r\n" + HEADERS + b"\r\n" + FILE + b"\r\n--edge--", MultipartError),
    "a boundary with something behind it": (body().replace(b"--edge\r\n", b"--edged\r\n", 1), MultipartError),
    "the boundary within the payload": (body(payload=b"DICM\r\n--edgework"), MultipartError),
    "a part that is a web page": (body(headers=b"Content-Type: text/html\r\n"), MultipartError),
    "a multipart within the part": (
        body(body(), headers=b'Content-Type: multipart/related; boundary="edge"\r\n'),
        MultipartError,
    ),
    "a part in base64": (body(headers=HEADERS + b"Content-Transfer-Encoding: base64\r\n"), MultipartError),
    "headers that are none": (body(headers=b"no colon here\r\n"), MultipartError),
    "a preamble without end": (body(before=b"x" * (MOST_AROUND + 1)), MultipartError),
    "headers without end": (body(headers=b"x: " + b"y" * MOST_AROUND + b"\r\n"), MultipartError),
    "an epilogue without end": (body(after=b"x" * (MOST_AROUND + 1)), MultipartError),
    "a part that is too long": (body(payload=b"\0" * 10_001), PartTooLarge),
    "a part that is too long and never ends": (body(payload=b"\0" * 20_000)[:-20], PartTooLarge),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_one_whole_part_is_an_error(case: str) -> None:
    data, expected = BAD[case]
    assert read(data) is expected


@pytest.mark.parametrize("case", [*GOOD, *BAD])
def test_pieces_of_one_byte_give_the_same(case: str) -> None:
    data = GOOD[case] if case in GOOD else BAD[case][0]
    assert read(data, tuple(range(len(data)))) == read(data)


@pytest.mark.parametrize("boundary", ["", "x" * 71, "ends in a blank ", "a\r\nb", "ümlaut", 'quo"te'])
def test_a_boundary_that_is_none_is_an_error(boundary: str) -> None:
    assert read(body(), boundary=boundary) is MultipartError


def test_a_part_may_be_as_long_as_allowed() -> None:
    assert read(body(payload=b"\0" * 10_000)) == b"\0" * 10_000


payloads = st.lists(
    st.sampled_from([b"\r", b"\n", b"-", b"\r\n", b"--", b"\r\n--", b"edge", b"\r\n--edg", b"DICM", b"\0" * 40])
).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=12).map(tuple)


@given(payloads, cuts, st.binary(max_size=80))
@example(b"\r\n--edg", (1, 2, 3), b"")
def test_any_payload_without_the_boundary_comes_out_as_it_went_in(
    payload: bytes, where: tuple[int, ...], epilogue: bytes
) -> None:
    if b"\r\n--edge" not in payload + b"\r\n":
        assert read(body(payload, after=epilogue), where) == payload


@given(
    st.lists(st.sampled_from([b"--edge", b"--", b"\r\n", b"\n", HEADERS, b"x", b"\0" * 30]), max_size=14), cuts, cuts
)
def test_whatever_comes_is_told_the_same_way_however_it_is_cut(
    pieces: list[bytes], here: tuple[int, ...], there: tuple[int, ...]
) -> None:
    data = b"".join(pieces)
    assert read(data, here, most=40) == read(data, there, most=40)


@given(st.integers(0, len(body(after=b"")) - 1))
def test_a_body_that_is_cut_short_is_never_taken_for_whole(length: int) -> None:
    assert read(body(after=b"")[:length]) is Truncated


CONTENT_TYPES = {
    'multipart/related; type="application/dicom"; boundary=abc-1': ("multipart/related", "abc-1"),
    'Multipart/Related;boundary="a b:c" ; type=x': ("multipart/related", "a b:c"),
    "multipart/related": ("multipart/related", ""),
    "application/dicom; transfer-syntax=1.2.840.10008.1.2.1": ("application/dicom", ""),
    "text/html; charset=utf-8": ("text/html", ""),
    "": ("text/plain", ""),  # RFC 2045 section 5.2
    "nonsense": ("text/plain", ""),
}


@pytest.mark.parametrize("value", CONTENT_TYPES)
def test_a_content_type_is_a_type_and_a_boundary(value: str) -> None:
    assert parse_content_type(value) == CONTENT_TYPES[value]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80))
@example("multipart/related; boundary*=nonsense'en'%ff")
@example("multipart/related; boundary*0*=rot13''a; boundary*1=b")
def test_no_content_type_breaks_anything_else(value: str) -> None:
    try:
        kind, boundary = parse_content_type("multipart/related;" + value)
    except MultipartError:
        return
    assert "/" in kind
    assert isinstance(boundary, str)
