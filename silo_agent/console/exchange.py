"""A request and its answer as values. Nothing here knows a socket."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from silo_agent.console.errors import Declined

MOST_FIELDS = 16
FORM = "application/x-www-form-urlencoded"
HTML, CSS = "text/html; charset=utf-8", "text/css; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """`headers` by lower-case name; those sent twice are joined by a comma, cookies by a semicolon."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def cookie(self, name: str) -> str | None:
        """The first of this name (RFC 6265, section 5.4: the one with the longest path comes first)."""
        for part in (self.header("cookie") or "").split(";"):
            found, equals, value = part.strip().partition("=")
            if equals and found == name:
                return value
        return None

    def asked(self, name: str) -> str | None:
        """A field of the query, None if it is not there; raises `Declined` for a query that cannot be read."""
        return _fields(self.query).get(name)

    def form(self) -> dict[str, str]:
        """The fields of a form; raises `Declined` for anything else."""
        kind = (self.header("content-type") or "").partition(";")[0].strip().lower()
        if kind != FORM:
            raise Declined(415, "That was not a form of this console", "Open the page again and use its own form.")
        try:
            return _fields(self.body.decode("ascii"))
        except UnicodeDecodeError:
            raise _unreadable() from None


@dataclass(frozen=True, slots=True)
class Response:
    """`headers` are what this answer has beside those that all have."""

    status: int
    body: bytes
    kind: str = HTML
    headers: tuple[tuple[str, str], ...] = ()


def see_other(path: str, *headers: tuple[str, str]) -> Response:
    """After a decision: the browser gets the page it is to show (RFC 9110, 303), so that nothing is sent twice."""
    return Response(303, b"", headers=(("Location", path), *headers))


def _fields(text: str) -> dict[str, str]:
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError:
        raise _unreadable() from None
    if len(dict(pairs)) != len(pairs):
        raise _unreadable()
    return dict(pairs)


def _unreadable() -> Declined:
    return Declined(400, "The request cannot be read", "Open the page again and use its own form or links.")
