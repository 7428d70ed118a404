"""The one module here that opens a connection: GET and nothing else, to one address and nowhere else.

No redirect is followed, no proxy or .netrc of the environment is used, nothing is asked a second time. Answers are
read as they come, against limits. What httpx and its exceptions would tell has UIDs in it and goes nowhere: there are
our own words for every failure.
"""

import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum

import httpx

from silo_agent.intake.dicomweb.deadline import Backend, Deadline
from silo_agent.intake.dicomweb.endpoint import Endpoint
from silo_agent.intake.dicomweb.errors import ArchiveNotTrusted
from silo_agent.intake.dicomweb.limits import WebLimits
from silo_agent.intake.dicomweb.multipart import (
    MOST_AROUND,
    MultipartError,
    PartReader,
    PartTooLarge,
    parse_content_type,
)
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.intake.silence import silenced

_DICOM = "application/dicom"
_JSON = frozenset({"application/dicom+json", "application/json"})
_ACCEPT_RESULTS = "application/dicom+json"
# As stored: unasked, an archive converts to Explicit VR Little Endian (PS3.18 section 8.7.3.5.2).
# The bare type is for archives that send no multipart (PS3.18 section 10.4.4).
_ACCEPT_INSTANCE = f'multipart/related; type="{_DICOM}"; transfer-syntax=*, {_DICOM}; transfer-syntax=*'
_TALKATIVE = ("httpx", "httpcore")  # they log addresses, and ours end in UIDs
_LEFT_OFF = "299"  # the Warning of PS3.18 section 8.3.4.4


class Trouble(StrEnum):
    """What kind of failure an exchange ended with."""

    SILENT = "SILENT"  # no connection, no answer in time, or one that broke off
    BUSY = "BUSY"  # it asks for patience: 408, 425, 429, 502, 503, 504
    FAULTY = "FAULTY"  # it fails: other 5xx
    MISSING = "MISSING"  # 404, 410
    FORBIDDEN = "FORBIDDEN"  # 403
    STRANGE = "STRANGE"  # not what DICOMweb answers: redirects, other types, other statuses
    TOO_LARGE = "TOO_LARGE"


class NoAnswer(Exception):
    """A signal inside this package. `reason` goes on after the archive's address and names no UID."""

    def __init__(self, trouble: Trouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble, self.reason = trouble, reason


class Connection:
    """An archive's DICOMweb root. What is done within `deadline.within(seconds)` is bounded by it.

    Everything raises `NoAnswer`, or `ArchiveDenied` and `ArchiveNotTrusted`, which no second try can mend.
    """

    def __init__(self, endpoint: Endpoint, limits: WebLimits, clock: Callable[[], float]) -> None:
        self._endpoint, self._limits = endpoint, limits
        self.deadline = Deadline(clock)
        login = endpoint.login()
        one = httpx.Limits(max_connections=1)
        transport = httpx.HTTPTransport(verify=endpoint.context(), trust_env=False, limits=one)
        transport._pool._network_backend = Backend(self.deadline)  # noqa: SLF001 - httpx does not pass it on to httpcore
        self._http = httpx.Client(
            base_url=endpoint.root(),
            transport=transport,
            headers={"accept-encoding": "identity"} | ({} if login is None else {"authorization": login.header}),
            timeout=httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds),
            trust_env=False,
            follow_redirects=False,
        )
        self._has_login = login is not None

    def close(self) -> None:
        self._http.close()

    def search(self, path: str, query: Mapping[str, int]) -> tuple[bytes, bool]:
        """Return the JSON of a QIDO-RS search, and whether the archive says that it left results off."""
        with self._get(path, _ACCEPT_RESULTS, query) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return b"[]", False
            kind, _ = _content_type(answer)
            if kind not in _JSON:
                raise NoAnswer(Trouble.STRANGE, f"answers with {_known(kind)} where DICOMweb answers with JSON")
            data = bytearray()
            for piece in _body(answer, self._limits.max_search_bytes):
                data += piece
            return bytes(data), any(_LEFT_OFF in one for one in answer.headers.get_list("warning"))

    def retrieve(self, path: str, write: Callable[[bytes], object]) -> None:
        """Hand the file of one instance (WADO-RS) to `write` as it comes, as stored; on failure a part of it."""
        most = self._limits.max_instance_bytes
        with self._get(path, _ACCEPT_INSTANCE, {}) as answer:
            kind, boundary = _content_type(answer)
            if kind == _DICOM:
                for piece in _body(answer, most):
                    write(piece)
            elif kind == "multipart/related":
                _write_part(_body(answer, most + 3 * MOST_AROUND), boundary, most, write)
            else:
                raise NoAnswer(Trouble.STRANGE, f"answers with {_known(kind)} where DICOMweb answers with a DICOM file")

    @contextmanager
    def _get(self, path: str, accept: str, query: Mapping[str, int]) -> Iterator[httpx.Response]:
        try:
            with (
                silenced(*_TALKATIVE),
                self._http.stream("GET", path, params=dict(query), headers={"accept": accept}) as answer,
            ):
                self._judge(answer)
                yield answer
        except httpx.TimeoutException:
            raise NoAnswer(Trouble.SILENT, "does not answer in time") from None
        except (httpx.TransportError, ssl.SSLError) as why:
            raise self._broken(why) from None

    def _judge(self, answer: httpx.Response) -> None:
        status = answer.status_code
        if status == httpx.codes.UNAUTHORIZED:
            raise self._denied()
        if trouble := _trouble_of(status):
            wording = "redirects to another address" if answer.is_redirect else f"answers with status {status}"
            raise NoAnswer(trouble, wording)
        if answer.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise NoAnswer(Trouble.STRANGE, "compresses its answers unasked")

    def _denied(self) -> ArchiveDenied:
        where = self._endpoint.credentials
        if self._has_login:
            return ArchiveDenied(f"{self._endpoint.url} refuses our login: correct {where}")
        hint = "configure a credentials file" if where is None else f"write user:password into {where} (chmod 600)"
        return ArchiveDenied(f"{self._endpoint.url} asks for a login: {hint}")

    def _broken(self, why: BaseException) -> NoAnswer | ArchiveNotTrusted:
        """In our own words: httpx quotes what it was sent."""
        for cause in _causes(why):
            if isinstance(cause, ssl.SSLCertVerificationError):
                return ArchiveNotTrusted(
                    f"the certificate of {self._endpoint.url} is not trusted ({cause.verify_message}): give the CA of "
                    "the archive as PEM, or correct the address if it is of another name"
                )
        if isinstance(why, httpx.ConnectError):
            reasons = [cause.strerror for cause in _causes(why) if isinstance(cause, OSError) and cause.strerror]
            return NoAnswer(Trouble.SILENT, f"cannot be reached ({reasons[-1] if reasons else 'no connection'})")
        return NoAnswer(Trouble.SILENT, "breaks its answers off")


def _trouble_of(status: int) -> Trouble | None:
    match status:
        case 200 | 204:
            return None
        case 403:
            return Trouble.FORBIDDEN
        case 404 | 410:
            return Trouble.MISSING
        case 408 | 425 | 429 | 502 | 503 | 504:
            return Trouble.BUSY
        case _:
            return Trouble.FAULTY if status >= 500 else Trouble.STRANGE


def _content_type(answer: httpx.Response) -> tuple[str, str]:
    try:
        return parse_content_type(answer.headers.get("content-type", ""))
    except MultipartError as why:
        raise NoAnswer(Trouble.STRANGE, f"sends what cannot be read: {why}") from None


def _body(answer: httpx.Response, most: int) -> Iterator[bytes]:
    size = 0
    said = answer.headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > most:
        raise NoAnswer(Trouble.TOO_LARGE, f"sends more than {most} bytes at once")
    for piece in answer.iter_raw():
        size += len(piece)
        if size > most:
            raise NoAnswer(Trouble.TOO_LARGE, f"sends more than {most} bytes at once")
        yield piece


def _write_part(body: Iterator[bytes], boundary: str, most: int, write: Callable[[bytes], object]) -> None:
    try:
        part = PartReader(boundary, media_type=_DICOM, most_bytes=most)
        for piece in body:
            write(part.feed(piece))
        part.close()
    except PartTooLarge:
        raise NoAnswer(Trouble.TOO_LARGE, f"sends more than {most} bytes at once") from None
    except MultipartError as why:
        raise NoAnswer(Trouble.STRANGE, f"sends what cannot be read: {why}") from None


def _known(kind: str) -> str:
    """The type as a word of ours: a stranger's header does not get into our log."""
    return "a web page" if kind == "text/html" else "another type of content"


def _causes(why: BaseException | None) -> Iterator[BaseException]:
    while why is not None:
        yield why
        why = why.__cause__ or why.__context__
