"""Archives to read from: Orthanc, the real one, and a server of ours that misbehaves on request."""

import http.server
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from infra.hospitals.writing import Identity, write_image
from infra.servers import orthanc
from silo_agent.intake.dicomweb.archive import DicomwebArchive
from silo_agent.intake.dicomweb.endpoint import Endpoint
from silo_agent.intake.dicomweb.limits import WebLimits

QUICK = {"pauses": (), "patience": (), "connect_seconds": 5.0, "read_seconds": 5.0}


REAL_DATA = Path(__file__).resolve().parents[5] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the shared medical data at {REAL_DATA}")
    return REAL_DATA


# --- Orthanc -----------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def start_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., orthanc.Orthanc]]:
    if not orthanc.is_installed():
        pytest.skip(orthanc.MISSING)
    started: list[orthanc.Orthanc] = []

    def start(**options: Any) -> orthanc.Orthanc:
        one = orthanc.Orthanc(tmp_path_factory.mktemp("orthanc") / "server", **options)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        if one.process is not None:
            one.process.terminate()  # all at once: each takes a second
    for one in started:
        one.stop()


# --- an archive that misbehaves ----------------------------------------------------------------------
Handler = http.server.BaseHTTPRequestHandler
Misdeed = Callable[["WebArchive", Handler], None]
Series = dict[str, bytes]  # SOP instance UID -> file


class WebArchive:
    """DICOMweb over what `add` was given. `instead` maps a pattern of paths to what is done with them instead.

    `asked` are the targets of all requests. `page` decides what of a list is given for a limit and an offset.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.studies: dict[str, dict[str, Series]] = {}
        self.modalities: dict[str, str] = {}  # of a series
        self.instead: dict[str, Misdeed] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.page: Callable[[list[str], int, int], list[str]] = lambda uids, limit, offset: uids[offset:][:limit]
        self.over = threading.Event()
        self._server = _server(self, context)
        self.port: int = self._server.server_address[1]
        self.url = f"http{'s' if context else ''}://localhost:{self.port}/dicom-web"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def add(self, study: str, series: str, sop: str, data: bytes, modality: str = "CT") -> None:
        self.studies.setdefault(study, {}).setdefault(series, {})[sop] = data
        self.modalities[series] = modality

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, handler: Handler) -> None:
        target = urlsplit(handler.path)
        self.asked.append(handler.path)
        self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        path = target.path.removeprefix("/dicom-web/")
        for pattern, misdeed in self.instead.items():
            if re.fullmatch(pattern, path):
                misdeed(self, handler)
                return
        self._honestly(handler, path.split("/"), parse_qs(target.query))

    def _honestly(self, handler: Handler, parts: list[str], query: dict[str, list[str]]) -> None:
        match parts:
            case ["studies"]:
                told = {study: sorted({self.modalities[one] for one in held}) for study, held in self.studies.items()}
                self._results(handler, query, "0020000D", "00080061", told)
            case ["studies", study, "series"]:
                held = self.studies.get(study, {})
                self._results(handler, query, "0020000E", "00080060", {one: [self.modalities[one]] for one in held})
            case ["studies", study, "series", series, "instances"]:
                self._results(handler, query, "00080018", "", {one: [] for one in self.studies[study][series]})
            case ["studies", study, "series", series, "instances", sop]:
                send_part(handler, self.studies[study][series][sop])
            case _:
                send(handler, 404, b"", "text/plain")

    def _results(
        self, handler: Handler, query: dict[str, list[str]], uid: str, modality: str, told: dict[str, Any]
    ) -> None:
        page = self.page(list(told), int(query["limit"][0]), int(query["offset"][0]))
        results = [
            {uid: {"vr": "UI", "Value": [one]}} | ({modality: {"vr": "CS", "Value": told[one]}} if modality else {})
            for one in page
        ]
        send(handler, 200, json.dumps(results).encode(), "application/dicom+json")


def send(handler: Handler, status: int, body: bytes, kind: str, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header("content-length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def send_part(handler: Handler, data: bytes) -> None:
    body = b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--edge--\r\n"
    send(handler, 200, body, 'multipart/related; type="application/dicom"; boundary=edge')


def _server(archive: WebArchive, context: ssl.SSLContext | None) -> http.server.ThreadingHTTPServer:
    class OneHandler(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def do_GET(self) -> None:  # noqa: N802 - the base class' name
            archive.answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            plain, address = self.socket.accept()
            if context is None:
                return plain, address
            return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hangs up is part of the test

    return Server(("127.0.0.1", 0), OneHandler)


@pytest.fixture
def web() -> Iterator[WebArchive]:
    archive = WebArchive()
    yield archive
    archive.close()


@pytest.fixture
def make_web() -> Iterator[Callable[..., WebArchive]]:
    made: list[WebArchive] = []

    def make(**options: Any) -> WebArchive:
        made.append(WebArchive(**options))
        return made[-1]

    yield make
    for archive in made:
        archive.close()


@dataclass(frozen=True)
class Sending:
    """How a misdeed answers, for tests, which cannot import this file."""

    whole: Callable[..., None] = send
    part: Callable[..., None] = send_part


@pytest.fixture(scope="session")
def sending() -> Sending:
    return Sending()


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., list[Identity]]:
    """Put patients with as many images into a web archive; returns whose they are."""

    def filled(web: WebArchive, patients: int, images: int = 1) -> list[Identity]:
        made = []
        for patient in range(patients):
            for image in range(1, images + 1):
                who = Identity("st-olavs", f"P{patient}", image=image)
                path = tmp_path / "written" / f"{patient}-{image}.dcm"
                pixels = np.full((12, 10), 100 * patient + image, dtype=np.int16)
                write_image(path, pixels, identity=who, modality="CT")
                web.add(who.study_uid, who.series_uid, who.sop_uid, path.read_bytes())
                made.append(who)
        return made

    return filled


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., DicomwebArchive]]:
    """Open an archive with impatient limits that the test may override; its files lie in tmp_path/scratch."""
    made: list[DicomwebArchive] = []

    def open_one(url: str, *, credentials: Path | None = None, authority: Path | None = None, **options: Any) -> Any:
        pause = options.pop("pause", lambda _seconds: None)
        archive = DicomwebArchive(
            Endpoint(url, credentials, authority),
            tmp_path / "scratch",
            limits=WebLimits(**(QUICK | options)),
            pause=pause,
        )
        made.append(archive)
        return archive.__enter__()

    yield open_one
    for archive in made:
        archive.__exit__(None, None, None)


@pytest.fixture
def login(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "archive.credentials"
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    return write
