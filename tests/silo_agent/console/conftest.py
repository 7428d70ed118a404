"""The console's real server in a thread, on the journal of a hospital in a box, and a client that can misbehave."""

import asyncio
import http.client
import importlib.util
import json
import re
import secrets
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

import pytest

from boundary.canonical import digest
from boundary.messages import PlanProposed
from boundary.plan import StudyPlan, study_id
from silo_agent.console.login import FILE_NAME, make_login, read_login
from silo_agent.console.reception import Reception
from silo_agent.console.server import listen, serve
from silo_agent.console.visit import World
from silo_agent.state import write_private

DATA = digest(b"our data")
REPORT: dict[str, Any] = {
    "dataset_digest": DATA,
    "files": 431,
    "used": 320,
    "refused": {"LABEL_MISSING": 14, "LOCALIZER": 61, "BURNED_IN": 5, "DUPLICATE": 31},
    "images": {"training": {"0": 130, "1": 110}, "holdout": {"0": 44, "1": 36}},
    "patients": {"training": 60, "holdout": 20},
    "problems": [],
}


def _browser() -> ModuleType:
    """The helper in this folder, which is not a package."""
    spec = importlib.util.spec_from_file_location("console_tests_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


browser_module = _browser()


# --- a server ----------------------------------------------------------------------------------------
class Served:
    """The console of one hospital, whose clock the test holds."""

    def __init__(self, site: Any, made: tuple[str, bytes]) -> None:
        self.site, self.passphrase = site, made[0]
        write_private(site.root / FILE_NAME, made[1])
        world = World(site.folder, lambda: site.now, secrets.token_bytes, "0.1.0")
        self._listening = listen(0)
        self.port: int = self._listening.getsockname()[1]
        self.reception = Reception(world, "st-olavs", self.port)
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serve(self.reception, self._listening, self._stop))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open_session(self) -> str:
        """The cookie that a login gives."""
        login = read_login(self.site.folder)
        cookie = self.reception._sessions.open(login.digest, self.site.now)
        return f"{self.reception._cookie}={cookie}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@dataclass
class Page:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    html: str

    @property
    def text(self) -> str:
        """As a person reads it."""
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", self.html)))

    @property
    def token(self) -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.html)
        assert found is not None
        return found[1]


@dataclass
class Client:
    """What a browser sends, or anybody. `headers` replace those of a browser; None leaves one out."""

    port: int
    cookie: str = ""
    last: list[Page] = field(default_factory=list)

    def send(
        self, method: str, path: str, form: dict[str, str] | bytes | None = None, **headers: str | None
    ) -> Page:  # fmt: skip
        origin = f"http://127.0.0.1:{self.port}"
        said: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie}
        if method == "POST":
            said |= {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
            said |= {"Content-Type": "application/x-www-form-urlencoded"}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = form if isinstance(form, bytes) or form is None else urlencode(form).encode()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, body, {name: value for name, value in said.items() if value is not None})
            answer = connection.getresponse()
            page = Page(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())
        self.last.append(page)
        return page

    def get(self, path: str, **headers: str | None) -> Page:
        return self.send("GET", path, **headers)

    def post(self, path: str, form: dict[str, str] | bytes | None = None, **headers: str | None) -> Page:
        return self.send("POST", path, form, **headers)

    def log_in(self, passphrase: str) -> Page:
        page = self.post("/login", {"passphrase": passphrase})
        if page.status == 303:
            self.cookie = page.headers["set-cookie"].partition(";")[0]
        return page


@pytest.fixture(scope="session")
def made_login(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A passphrase and its file, for all tests: its hash costs a quarter of a second."""
    folder = tmp_path_factory.mktemp("login")
    passphrase = make_login(folder, secrets.token_bytes)
    return passphrase, (folder / FILE_NAME).read_bytes()


@pytest.fixture
def serve_site(made_login: tuple[str, bytes]) -> Iterator[Callable[[Any], Served]]:
    made: list[Served] = []

    def start(site: Any) -> Served:
        made.append(Served(site, made_login))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def served(site: Any, serve_site: Callable[[Any], Served]) -> Served:
    return serve_site(site)


@pytest.fixture
def stranger(served: Served) -> Client:
    """Who is not logged in."""
    return Client(served.port)


@pytest.fixture
def client_of() -> Callable[[Served], Client]:
    def make(served: Served) -> Client:
        return Client(served.port, served.open_session())

    return make


@pytest.fixture
def steward(served: Served, client_of: Callable[[Served], Client]) -> Client:
    return client_of(served)


# --- a hospital with something to decide -------------------------------------------------------------
@pytest.fixture
def with_report() -> Callable[..., None]:
    """Put a scan's report where the daemon does."""

    def put(site: Any, study: str | None = None, **changes: Any) -> None:
        folder = site.folder.cache / (study or site.study)
        folder.mkdir(exist_ok=True)
        (folder / "report.json").write_text(json.dumps(REPORT | changes))

    return put


@pytest.fixture
def waiting(site: Any, with_report: Callable[..., None]) -> Any:
    """A site with one plan that waits for a decision."""
    site.propose()
    site.scanned()
    with_report(site)
    return site


@pytest.fixture
def another_plan(make_plan_for: Callable[..., StudyPlan]) -> Callable[..., str]:
    """Propose one more plan, which is scanned; returns its study."""

    def propose(site: Any, **changes: Any) -> str:
        plan = make_plan_for(site.cards, **({"name": "ct-triage"} | changes))
        study = study_id(plan)
        site.allow(plan)
        site.hear(PlanProposed(study=study, plan=plan))
        site.journal.set_plan(study, "scanned", dataset_digest=DATA)
        return study

    return propose


@pytest.fixture
def everything() -> Callable[[Any], str]:
    """All that the journal of a site says, as text: two of these are equal if nothing was changed between them."""

    def dump(site: Any) -> str:
        with closing(sqlite3.connect(site.folder.journal)) as db:
            return "\n".join(db.iterdump())

    return dump


def approval(page: Page, **changes: str) -> dict[str, str]:
    """The approval as its form would be sent from this page."""
    found = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.html))
    return {**found, "label": "ct-contrast@1", "role": "data_steward", "reason": "ethics vote"} | changes


@pytest.fixture
def approval_of() -> Callable[..., dict[str, str]]:
    return approval


@pytest.fixture(scope="package")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if browser_module.CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with browser_module.Browser(tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture
def browser(one_browser: Any) -> Any:
    """A real browser without a window, which remembers nothing of the test before."""
    one_browser.forget()
    return one_browser
