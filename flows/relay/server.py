"""The relay process: settings in, granian with TLS out.

    python -m flows.relay.server --config relay.toml

A client certificate of the coordinator's CA is needed to get in at all. One worker with SQLite, several with
PostgreSQL. Exit codes: 0 stopped by a signal, 1 something must be fixed first (the last line says what).
"""

import argparse
import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from flows.relay.app import create_app
from flows.relay.inbox import Inbox, News
from flows.relay.parts import Parts, news_after
from flows.store.blobs import BlobStore
from flows.store.database import StoreTooNew, StoreUnsupported, migrate, open_store
from flows.store.uploads import UploadLimits, Uploads

THREADS = 40  # for the store and the disk: as many hospitals can write at a time
_STOP_SECONDS = 10  # for requests in flight; then a worker is killed
_ORPHAN_SECONDS = 1.0  # a dying process closes its pipes a moment before its children get a new parent
_DEFAULT = UploadLimits()


class RelaySettings(BaseModel):
    """`relay.toml`. Relative paths are relative to the folder it lies in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str  # sqlite:////path/store.db or postgresql://...
    blobs: str  # a folder, or an fsspec URL
    scratch: Path | None = None  # a local folder for unfinished uploads; needed when `blobs` is a URL
    host: str = "0.0.0.0"  # noqa: S104 - hospitals are elsewhere, and nobody enters without a client certificate
    port: Annotated[int, Field(ge=1, le=65535)] = 8443
    certificate: Path
    private_key: Path
    client_ca: Path
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    lease_seconds: Annotated[float, Field(gt=0)] = 60.0  # a hospital not heard for so long is called away
    max_blob_bytes: Annotated[int, Field(ge=1)] = _DEFAULT.blob_bytes
    max_unfinished_bytes: Annotated[int, Field(ge=1)] = _DEFAULT.outstanding_bytes


class CannotServe(Exception):
    """Something a person must fix before the relay can start."""


def read_settings(path: Path) -> RelaySettings:
    """Raises `CannotServe`."""
    try:
        settings = RelaySettings.model_validate(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError, ValidationError) as why:
        raise CannotServe(f"{path}: {why}") from why
    folder = path.resolve().parent
    files = {name: folder / getattr(settings, name) for name in ("certificate", "private_key", "client_ca")}
    blobs = settings.blobs if "://" in settings.blobs else str(folder / settings.blobs)
    scratch = None if settings.scratch is None else folder / settings.scratch
    return settings.model_copy(update={**files, "blobs": blobs, "scratch": scratch})


def build(settings: RelaySettings) -> Parts:
    """Everything behind the endpoints, with the real clock."""
    engine = open_store(settings.database)
    blobs = BlobStore(settings.blobs, scratch=settings.scratch)
    limits = UploadLimits(blob_bytes=settings.max_blob_bytes, outstanding_bytes=settings.max_unfinished_bytes)

    async def look(after: int) -> News:
        return await asyncio.to_thread(news_after, engine, after)

    return Parts(
        engine=engine,
        blobs=blobs,
        uploads=Uploads(blobs, limits),
        inbox=Inbox(look),
        clock=lambda: datetime.now(UTC),
        lease=timedelta(seconds=settings.lease_seconds),
    )


def serve(settings: RelaySettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `CannotServe`."""
    from granian.constants import HTTPModes, Interfaces
    from granian.server import Server

    check(settings)
    alive, our_end = os.pipe()  # closed when this process stops or dies: the workers then let their polls go
    server = Server(
        "flows.relay.app",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        workers=settings.workers,
        workers_kill_timeout=_STOP_SECONDS,
        log_enabled=False,
        ssl_cert=settings.certificate,
        ssl_key=settings.private_key,
        ssl_ca=settings.client_ca,
        ssl_client_verify=True,
    )
    server.on_startup(partial(_tell_workers_first, our_end))
    server.serve(target_loader=partial(_worker, settings, alive, our_end), wrap_loader=False)


def check(settings: RelaySettings) -> None:
    """What would go wrong only after the start, and less clearly. Raises `CannotServe`."""
    for path in (settings.certificate, settings.private_key, settings.client_ca):
        if not os.access(path, os.R_OK):
            raise CannotServe(f"{path} cannot be read: make it with `wardround init`, or correct the path")
    if settings.workers > 1 and settings.database.startswith("sqlite"):
        raise CannotServe("SQLite has one writer: set workers = 1, or use PostgreSQL")
    try:
        with socket.create_server((settings.host, settings.port)):
            pass
    except OSError as why:
        fix = "stop the other process, or set another port" if why.errno == errno.EADDRINUSE else "correct host or port"
        raise CannotServe(
            f"cannot listen on {settings.host}:{settings.port}: {os.strerror(why.errno or 0)}: {fix}"
        ) from why
    try:
        engine = open_store(settings.database)
        migrate(engine)
        engine.dispose()
        BlobStore(settings.blobs, scratch=settings.scratch)
    except (StoreTooNew, StoreUnsupported, SQLAlchemyError, OSError, ValueError) as why:
        raise CannotServe(f"the store cannot be opened: {why}") from why


def _worker(settings: RelaySettings, alive: int, our_end: int) -> FastAPI:
    """In the worker process: the application, which stops waiting when the main process stops or dies."""
    os.close(our_end)
    parent = os.getppid()

    def on_start(parts: Parts) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="store"))
        gc.collect()
        gc.freeze()  # what was imported stays for ever: collecting garbage need not walk over it again
        loop.add_reader(alive, _let_go, loop, alive, parent, parts)

    return create_app(build(settings), on_start=on_start)


def _let_go(loop: asyncio.AbstractEventLoop, alive: int, parent: int, parts: Parts) -> None:
    loop.remove_reader(alive)
    parts.inbox.close()
    loop.call_later(_ORPHAN_SECONDS, _stop_if_orphaned, parent)


def _stop_if_orphaned(parent: int) -> None:
    """The main process was killed: nobody else is left to stop us."""
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _tell_workers_first(our_end: int) -> None:
    """Put the closing of the pipe before granian's own signal handlers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        then = signal.getsignal(number)

        def handler(received: int, frame: object, then: object = then) -> None:
            with contextlib.suppress(OSError):  # a second signal: it is closed already
                os.close(our_end)
            if callable(then):
                then(received, frame)

        signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.relay.server", description="The relay of a federation.")
    parser.add_argument("--config", type=Path, required=True, help="relay.toml")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stdout)
    try:
        serve(read_settings(chosen.config))
    except CannotServe as why:
        print(f"relay: {why}", file=sys.stderr)  # noqa: T201 - the last line a person reads
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
