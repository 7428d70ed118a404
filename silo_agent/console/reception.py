"""From a request to its answer: host, origin, session, token, and only then the page or the decision."""

import logging
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus

from boundary.errors import BoundaryError
from silo_agent.console import guard
from silo_agent.console.errors import Declined
from silo_agent.console.exchange import CSS, Request, Response, see_other
from silo_agent.console.login import read_login
from silo_agent.console.rendering import render, stylesheet
from silo_agent.console.routes import LOGOUT, OPEN, check_method, route
from silo_agent.console.sessions import Session, Sessions, WrongGuesses
from silo_agent.console.visit import World, visit
from silo_agent.errors import AgentError

_log = logging.getLogger("silo_agent.console")
_GONE = "Nothing was changed. Log in again: a session ends after 15 minutes without a page, and after 8 hours."
_JOURNAL = "Nothing was changed. Somebody may have changed the journal's file: run `silo-agent trail`."
_DISK = "Nothing was half done. Look at the disk space and at who owns the state folder, and try again."


class Reception:
    """One console at one port. It answers one request after the other; use it from one thread at a time."""

    def __init__(self, world: World, site: str, port: int) -> None:
        self._world, self._site, self._port = world, site, port
        self._sessions, self._wrong = Sessions(world.entropy), WrongGuesses()

    def answer(self, request: Request) -> Response:
        """Always an answer; what we know to go wrong is a page with its fix."""
        try:
            found = self._answer(request)
        except Declined as why:
            return self.refusal(why)
        except AgentError as why:
            return self.refusal(Declined(409, "That cannot be done now", str(why)))
        except BoundaryError as why:
            return self.refusal(Declined(500, f"What the journal says cannot be read ({why.code})", _JOURNAL))
        except (sqlite3.Error, OSError) as why:
            _log.error("the state folder or its disk: %s", type(why).__name__)  # no trace: it may quote paths
            return self.refusal(Declined(503, "The state folder or its disk does not answer", _DISK))
        return replace(found, headers=(*guard.HEADERS, *found.headers))

    def refusal(self, why: Declined) -> Response:
        reason = HTTPStatus(why.status).phrase
        values = {"title": why.title, "fix": why.fix, "status": f"{why.status} {reason}", "site": self._site}
        return Response(why.status, render("refusal.html", values), headers=(*guard.HEADERS, *why.headers))

    def _answer(self, request: Request) -> Response:
        guard.check_host(request, self._port)
        if request.method == "POST":
            guard.check_origin(request, self._port)
        if request.path in OPEN:
            check_method(request.method, *OPEN[request.path])
            return self._open(request)
        if request.path == LOGOUT:
            check_method(request.method, "POST")
            return self._log_out(request)
        found = route(request.method, request.path)
        session = self._session(request)
        if session is None and request.method == "GET":
            return see_other("/login")
        form = self._form(request, session)
        if session is None:
            raise Declined(403, "You are not logged in", _GONE)
        with visit(self._world, request, session, form) as here:
            return found.answer(here, *found.parts)

    def _session(self, request: Request) -> Session | None:
        login = read_login(self._world.folder)
        return self._sessions.find(request.cookie(self._cookie), login.digest, self._world.now())

    def _form(self, request: Request, session: Session | None) -> dict[str, str]:
        if request.method == "GET":
            return {}
        if session is None:
            raise Declined(403, "You are not logged in", _GONE)
        form = request.form()
        guard.check_token(form, session)
        return form

    # --- in and out ----------------------------------------------------------------------------------
    @property
    def _cookie(self) -> str:
        """Cookies of one host are shared by its ports: two consoles on one machine must not mix theirs up."""
        return f"wardround-console-{self._port}"

    def _open(self, request: Request) -> Response:
        if request.path == "/console.css":
            return Response(200, stylesheet(), CSS)
        if request.method == "GET":
            return self._login_page(200, {})
        return self._log_in(request.form())

    def _login_page(self, status: int, values: Mapping[str, str], *headers: tuple[str, str]) -> Response:
        page = render("login.html", {"site": self._site, "title": "Log in", "problem": "", **values})
        return Response(status, page, headers=headers)

    def _log_in(self, form: Mapping[str, str]) -> Response:
        now, login = self._world.now(), read_login(self._world.folder)
        wait = self._wrong.seconds_to_wait(now)
        if wait:
            said = f"Too many wrong passphrases: wait {wait} seconds, then try again."
            return self._login_page(429, {"problem": said}, ("Retry-After", str(wait)))
        if not login.fits(form.get("passphrase", "")):
            self._wrong.add(now)
            _log.warning("a wrong passphrase")
            said = (
                "That is not the passphrase. Lost it? Whoever runs the agent makes a new one: "
                "silo-agent console --new-login"
            )
            return self._login_page(403, {"problem": said})
        return see_other("/", self._set_cookie(self._sessions.open(login.digest, now)))

    def _log_out(self, request: Request) -> Response:
        session = self._session(request)
        if session is not None:
            guard.check_token(request.form(), session)
            self._sessions.close(request.cookie(self._cookie))
        return see_other("/login", self._set_cookie("", "; Max-Age=0"))

    def _set_cookie(self, value: str, more: str = "") -> tuple[str, str]:
        return "Set-Cookie", f"{self._cookie}={value}; Path=/; HttpOnly; SameSite=Strict{more}"
