"""The relay's HTTPS API: the only address hospitals reach. It stores and forwards, and it decides nothing."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from boundary.api import RelayError
from flows.relay import enrolment, letters, ranges, refusals
from flows.relay.parts import Parts
from flows.store import mail
from flows.store.database import reading

logger = logging.getLogger("wardround.relay")

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(parts: Parts, *, on_start: Callable[[Parts], None] = lambda _: None) -> FastAPI:
    """`on_start` runs in the server's event loop, before the first request."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await parts.inbox.start(await asyncio.to_thread(_latest, parts))
        on_start(parts)
        yield
        parts.inbox.close()
        parts.engine.dispose()

    app = bare_app(lifespan)
    app.state.parts = parts
    return app


def bare_app(lifespan: Lifespan | None = None) -> FastAPI:
    """The routes without anything behind them: enough for the OpenAPI document."""
    app = FastAPI(
        title="Wardround relay",
        version="1",
        description="Every request but enrolment and healthz carries the signed header `wardround-request`.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses={
            "default": {"model": RelayError, "description": "A refusal: a stable code, a sentence with the fix"}
        },
    )
    refusals.install(app)
    for router in (enrolment.router, letters.router, ranges.router):
        app.include_router(router)

    @app.get("/healthz", status_code=204, response_class=Response)
    async def healthz() -> Response:
        """The process answers. Nothing else is told."""
        return Response(status_code=204)

    app.add_middleware(AccessLog)
    return app


class AccessLog:
    """One line per request: method, path, status, milliseconds, party. No header, query or body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            took = (time.monotonic() - started) * 1000
            party = scope.get("state", {}).get("party", "-")
            path = scope["path"].encode("unicode_escape").decode()[:200]  # no line breaks of a stranger in our log
            logger.info("%s %s %d %.1fms %s", scope["method"], path, status, took, party)


def _latest(parts: Parts) -> int:
    with reading(parts.engine) as connection:
        return mail.latest_sequence(connection)
