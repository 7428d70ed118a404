"""Templates to bytes. Whatever a template is given is text of strangers, until it is shown and escaped."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from silo_agent.plain import plain

PACKAGE = "silo_agent.console"
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """A page in UTF-8. A value the template asks for and does not get is an error, not an empty place."""
    return _environment().get_template(template).render(values).encode()


@cache
def stylesheet() -> bytes:
    return files(PACKAGE).joinpath("console.css").read_bytes()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"number": number, "short": short, "moment": moment}
    return made


def _shown(value: Any) -> Any:
    """What every expression of every template goes through, before it is escaped.

    Markup is what jinja2 has escaped itself: macros, and what a person typed, which they get back as it was.
    """
    return value if isinstance(value, Markup) else plain(str(value))


def number(value: float) -> str:
    """For people: thousands apart, and no more decimals than mean something."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def short(text: str) -> str:
    """Every digest in it cut to what people compare."""
    return _DIGEST.sub(r"\1…", text)


def moment(timestamp: str) -> str:
    """A timestamp of the journal (RFC 3339, UTC), to the minute."""
    return f"{timestamp[:16].replace('T', ' ')} UTC"
