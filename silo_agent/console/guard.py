"""Who may ask for what: pure checks, each of which raises `Declined` or says nothing.

A page of another origin in the same browser can send requests here. It cannot read our pages, so it has no session's
token; it cannot send our origin; and if it makes its own name resolve to 127.0.0.1, it sends that name as the host.
"""

import hmac
from collections.abc import Mapping

from silo_agent.console.errors import Declined
from silo_agent.console.exchange import Request
from silo_agent.console.sessions import Session

TOKEN = "token"  # noqa: S105 - the name of a form field
HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
     "frame-ancestors 'none'; base-uri 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)  # fmt: skip
"""With every answer, also with refusals."""


def hosts(port: int) -> tuple[str, str]:
    """The names this console answers to."""
    return f"127.0.0.1:{port}", f"localhost:{port}"


def check_host(request: Request, port: int) -> None:
    """Against DNS rebinding: a stranger's name that resolves to this machine is not ours."""
    if request.header("host") not in hosts(port):
        raise Declined(421, "This console has another address", f"Open http://127.0.0.1:{port}/ on this machine.")


def check_origin(request: Request, port: int) -> None:
    """A form must come from our own pages, as the browser sees it. Called after `check_host`.

    Under `Referrer-Policy: no-referrer` browsers send `Origin: null` with our own forms (Fetch, "append a request
    Origin header"), so null is no proof of anything: then `Sec-Fetch-Site` has to say it.
    """
    site, origin = request.header("sec-fetch-site"), request.header("origin")
    if site not in {None, "same-origin"} or origin not in {None, "null", f"http://{request.header('host')}"}:
        raise _elsewhere(port)
    if site is None and origin in {None, "null"}:
        raise _elsewhere(port)


def check_token(form: Mapping[str, str], session: Session) -> None:
    """The form was made for this session."""
    if not hmac.compare_digest(form.get(TOKEN, "").encode(), session.token.encode()):
        raise Declined(403, "This form is of another login", "Nothing was changed. Open the page again and repeat it.")


def _elsewhere(port: int) -> Declined:
    return Declined(
        403,
        "This form was not sent from the console's own pages",
        f"Nothing was changed. Open http://127.0.0.1:{port}/ yourself, in a browser not older than 2023.",
    )
