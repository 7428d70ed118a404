"""Every address of the console. What is not in the table is not there, and a GET is never a decision."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from silo_agent.console import decisions, pages
from silo_agent.console.errors import Declined, not_found
from silo_agent.console.exchange import Response

Answer = Callable[..., Response]  # a visit, and the part of the path in braces if there is one
_STUDY = r"/plans/([a-z0-9-]{1,60})"

SHOWN: tuple[tuple[str, Answer], ...] = (
    (r"/", pages.overview),
    (r"/plans", pages.plans),
    (_STUDY, pages.plan),
    (r"/budget", pages.budget),
    (r"/rounds", pages.rounds),
    (r"/incidents", pages.incidents),
    (r"/trail", pages.trail),
)
DECIDED: tuple[tuple[str, Answer], ...] = (
    (rf"{_STUDY}/approve", decisions.approve_plan),
    (rf"{_STUDY}/decline", decisions.decline_plan),
    (rf"{_STUDY}/check-again", decisions.check_again),
    (r"/incidents/([0-9]{1,10})/close", decisions.close),
    (r"/pause", decisions.hold),
    (r"/resume", decisions.go_on),
    (r"/trail/verify", decisions.verify_trail),
)
OPEN = {"/login": ("GET", "POST"), "/console.css": ("GET",)}
"""What is answered without a session, by which methods."""
LOGOUT = "/logout"


@dataclass(frozen=True, slots=True)
class Found:
    """Whose turn it is, and the parts of the path that are its arguments."""

    answer: Answer
    parts: tuple[str, ...]


def route(method: str, path: str) -> Found:
    """Raises `Declined` for an unknown address, and for a known one that is asked by another method."""
    for table, of in ((SHOWN, "GET"), (DECIDED, "POST")):
        for pattern, answer in table:
            match = re.fullmatch(pattern, path)
            if match is not None:
                check_method(method, of)
                return Found(answer, match.groups())
    raise not_found()


def check_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        fix = "Nothing was changed. Use the console's own links and buttons."
        raise Declined(405, "This address is not asked that way", fix, ("Allow", ", ".join(allowed)))
