"""A multipart/related body with one part, read as its bytes arrive. Sans-I/O.

Sources: RFC 2046 section 5.1 (multipart), RFC 2387 (related), DICOM PS3.18 section 8.6.1.2 (multipart payloads),
section 10.4 (one instance is one part). It is strict, since the file's bytes hang on it: lines end with CRLF, there
is exactly one part, it is not encoded, and the closing boundary must have come.
"""

import re
from email.message import Message
from email.parser import BytesHeaderParser
from enum import Enum, auto

MOST_AROUND = 16 * 1024  # bytes of preamble, of a part's headers, of epilogue
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]", re.ASCII)  # RFC 2046 5.1.1
_NO_ENCODING = frozenset({"", "binary", "8bit", "7bit"})  # RFC 2045 section 6.2


class MultipartError(Exception):
    """The body is not one part of the right type. Says nothing of what it holds."""


class Truncated(MultipartError):
    """The body ended before its closing boundary."""


class PartTooLarge(MultipartError):
    """The part is longer than allowed."""


class _At(Enum):
    PREAMBLE = auto()
    HEADERS = auto()
    PAYLOAD = auto()
    CLOSING = auto()
    EPILOGUE = auto()


class PartReader:
    """`feed` takes the body in pieces of any size and gives what is payload; `close` says whether it was all."""

    def __init__(self, boundary: str, *, media_type: str, most_bytes: int) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise MultipartError("there is no usable boundary")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._media_type, self._left = media_type, most_bytes
        self._buffer = bytearray(b"\r\n")  # the first delimiter may stand at the very start
        self._at = _At.PREAMBLE

    def feed(self, data: bytes) -> bytes:
        """Return the payload that has become certain. Raises `MultipartError`; it is not to be used after that."""
        self._buffer += data
        payload = b""
        if self._at is _At.PREAMBLE:
            self._skip_preamble()
        if self._at is _At.HEADERS:
            self._read_headers()
        if self._at is _At.PAYLOAD:
            payload = self._take_payload()
        if self._at is _At.CLOSING:
            self._read_closing()
        if self._at is _At.EPILOGUE and len(self._buffer) > MOST_AROUND:
            raise MultipartError("too much follows the closing boundary")
        return payload

    def close(self) -> None:
        """The body has ended. Raises `Truncated`."""
        if self._at is not _At.EPILOGUE:
            raise Truncated("the body ends before its closing boundary")

    def _skip_preamble(self) -> None:
        if self._cut_at(self._delimiter, MOST_AROUND) is not None:
            self._at = _At.HEADERS

    def _read_headers(self) -> None:
        if self._buffer.startswith(b"--"):
            raise MultipartError("there is no part")
        head = self._cut_at(b"\r\n\r\n", MOST_AROUND)
        if head is None:
            return
        padding, _, lines = head.partition(b"\r\n")
        if padding.strip(b" \t"):
            raise MultipartError("something follows the boundary on its line")
        self._judge(lines)
        self._at = _At.PAYLOAD

    def _judge(self, lines: bytes) -> None:
        headers = BytesHeaderParser().parsebytes(lines and lines + b"\r\n\r\n")
        if headers.defects or headers.get_payload():
            raise MultipartError("the part's headers are malformed")
        if "content-type" in headers and headers.get_content_type() != self._media_type:
            raise MultipartError("the part is of another type")
        if str(headers.get("content-transfer-encoding", "")).strip().lower() not in _NO_ENCODING:
            raise MultipartError("the part is encoded")

    def _take_payload(self) -> bytes:
        """Up to the delimiter, or up to where one may have begun."""
        end = self._buffer.find(self._delimiter)
        done = end if end >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        self._left -= done
        if self._left < 0:
            raise PartTooLarge("the part is longer than allowed")
        payload = bytes(self._buffer[:done])
        del self._buffer[:done]
        if end >= 0:
            del self._buffer[: len(self._delimiter)]
            self._at = _At.CLOSING
        return payload

    def _read_closing(self) -> None:
        if len(self._buffer) < 2:
            return
        if not self._buffer.startswith(b"--"):
            raise MultipartError("there is more than one part")
        self._at = _At.EPILOGUE

    def _cut_at(self, mark: bytes, most: int) -> bytes | None:
        """Take what stands before the mark, and the mark. Raises if it begins later than `most`."""
        found = self._buffer.find(mark, 0, most + len(mark))
        if found < 0:
            if len(self._buffer) >= most + len(mark):
                raise MultipartError("too much stands around the part")
            return None
        before = bytes(self._buffer[:found])
        del self._buffer[: found + len(mark)]
        return before


def parse_content_type(value: str) -> tuple[str, str]:
    """Return the media type in lower case and the boundary, "" where there is none. Raises `MultipartError`."""
    header = Message()
    header["content-type"] = value
    try:
        return header.get_content_type(), str(header.get_boundary() or "")
    except (ValueError, LookupError, TypeError) as why:  # RFC 2231 lets a parameter name any character set
        raise MultipartError("the content type is malformed") from why
