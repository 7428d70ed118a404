"""A steward at a real browser: log in, approve a plan, decline another, watch a round, stop. And who attacks from one.

Pictures of all pages lie in the test's temporary folder, for people to look at.
"""

import http.server
import threading
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
from console_tests_browser import axe  # conftest.py has loaded it

from silo_agent.budget import terms_of
from silo_agent.permission import holds_still
from silo_agent.releases import reserve

PAGES = ("/", "/plans", "/budget", "/rounds", "/incidents", "/trail", "/nothing")


@pytest.fixture
def hospital(make_site: Any, private: Any, with_report: Any, another_plan: Any) -> Any:
    """Something on every page: plans in each state, a round under way, a budget, an incident that is closed."""
    site = make_site(most_patients=100, changes=private())
    site.approve()
    terms = terms_of(site.plan, site.permission().dataset(site.plan))
    assert terms is not None
    reserve(site.journal, terms, site.collection(), 1, site.now)
    site.masked()
    site.other = another_plan(site, training__rounds=7)
    with_report(site, site.other)
    site.third = another_plan(site, name="ct-survey")
    site.journal.set_plan(site.third, "unsuitable", reason="class '1' has 0 usable images, the plan asks for 5")
    with_report(site, site.third, problems=["class '1' has 0 usable images, the plan asks for 5"])
    return site


@pytest.fixture
def doubted(hospital: Any) -> Any:
    with hospital.journal.transaction():
        hospital.journal.open_incident("charite", "LOG_SHRUNK", b'{"known":null,"shown":null}', hospital.now)
    return hospital


def _round(site: Any) -> list[Callable[[], Any]]:
    """A round as this hospital goes through it, step by step."""
    return [
        site.ordered,
        lambda: site.sums.begin(site.kept(), site.store_result()),
        lambda: site.hear(site.closing(site.kept())),
        lambda: site.hear(site.routing(site.kept())),
    ]


def log_in(browser: Any, served: Any) -> None:
    browser.go(served.url)
    assert browser.path == "/login"
    browser.write("#passphrase", served.passphrase)
    browser.press("Enter", leads_on=True)
    assert browser.path == "/"


def test_a_steward_approves_declines_watches_a_round_and_stops(
    site: Any, another_plan: Any, with_report: Any, served: Any, browser: Any, tmp_path: Path
) -> None:
    site.propose()
    site.scanned()
    with_report(site)
    other = another_plan(site)
    log_in(browser, served)
    assert "ct-contrast@1" in browser.text
    assert "ct-triage@1" in browser.text
    browser.picture(tmp_path / "1-overview.png")

    browser.click(f"main a[href='/plans/{site.study}']")
    assert "to tell 0 from 1" in browser.text
    browser.write("#label", "ct-contrast@1")
    browser.write("#reason", "ethics vote 2025/118")
    browser.picture(tmp_path / "2-plan.png")
    assert site.journal.plan(site.study).state == "scanned"
    browser.click("form[action$='/approve'] button")
    assert "Approved and signed." in browser.text
    assert site.journal.plan(site.study).state == "approved"

    browser.go(f"{served.url}/plans/{other}")
    browser.write("#no", "no ethics vote")
    browser.click("form[action$='/decline'] button")
    assert "Declined." in browser.text
    assert site.journal.plan(other).state == "declined"

    steps = []
    for go_on in _round(site):
        go_on()
        if steps:
            browser.click("form[method=get] button")
        else:
            browser.go(f"{served.url}/plans/{site.study}")
        steps.append(browser.script("document.querySelector('#work ~ .wide tbody tr td:nth-child(4)').innerText"))
    assert steps == ["working", "ready", "shared", "masked"]
    browser.go(f"{served.url}/rounds")
    assert site.parcel("masked-vector").blob_digest[:19] in browser.text

    browser.go(served.url)
    browser.click("form[action='/pause'] button")
    assert holds_still(site.journal)
    assert "Nothing is computed here until somebody resumes." in browser.text
    browser.click("form[action='/resume'] button")
    assert not holds_still(site.journal)

    browser.go(f"{served.url}/plans/{site.study}")
    browser.write("#no", "a complaint")
    browser.picture(tmp_path / "3-stop.png")
    browser.click("form[action$='/decline'] button")
    assert site.journal.plan(site.study).state == "declined"
    assert "There is nothing to decide any more." in browser.text
    browser.click("form[action='/logout'] button")
    browser.go(f"{served.url}/trail")
    assert browser.path == "/login"
    assert [url for url in browser.went if not url.startswith((served.url, "data:", "about:"))] == []


def test_every_page_passes_axe_in_light_and_dark(doubted: Any, serve_site: Any, browser: Any, tmp_path: Path) -> None:
    source = axe()
    if source is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    served = serve_site(doubted)
    found = {}
    browser.go(served.url)
    found["/login"] = browser.accessibility(source)
    log_in(browser, served)
    plans = [f"/plans/{study}" for study in (doubted.study, doubted.other, doubted.third)]
    for number, path in enumerate([*PAGES, *plans]):
        browser.go(served.url + path)
        browser.dark(is_dark=False)
        found[path] = browser.accessibility(source)
        browser.picture(tmp_path / f"light-{number}.png")
        browser.dark(is_dark=True)
        found[f"{path} in the dark"] = browser.accessibility(source, "color-contrast")
    browser.picture(tmp_path / "dark.png")
    browser.go(served.url + plans[1])
    for field, text in (("label", "wrong"), ("reason", "because")):
        browser.write(f"#{field}", text)
    browser.click("form[action$='/approve'] button")
    assert "type the plan's label exactly" in browser.text
    found["after a mistake"] = browser.accessibility(source)
    assert {where: what for where, what in found.items() if what} == {}


def test_axe_does_find_what_is_wrong(browser: Any) -> None:
    source = axe()
    if source is None:
        pytest.skip("axe-core is not installed: pip install --no-deps axe-playwright-python")
    browser.go("data:text/html,<html><body><input><p style='color:rgb(200,200,200)'>pale</p>")
    rules = {one.partition(":")[0] for one in browser.accessibility(source)}
    assert {"label", "color-contrast", "html-has-lang", "document-title"} <= rules


@pytest.mark.parametrize(("width", "zoom"), [(1280, 2), (1280, 4)])
def test_zoomed_in_no_page_has_to_be_scrolled_sideways(
    width: int, zoom: float, doubted: Any, serve_site: Any, browser: Any, tmp_path: Path
) -> None:
    served = serve_site(doubted)
    log_in(browser, served)
    browser.size(width, 900, zoom)
    for path in (*PAGES, f"/plans/{doubted.other}"):
        browser.go(served.url + path)
        assert browser.script("document.documentElement.scrollWidth - window.innerWidth") <= 0, path
    browser.picture(tmp_path / f"zoom-{zoom}.png")


def test_all_of_it_can_be_done_with_the_keyboard(hospital: Any, serve_site: Any, browser: Any) -> None:
    hospital.allow(required=False)  # the other plan gives no guarantee
    served = serve_site(hospital)
    log_in(browser, served)
    browser.go(f"{served.url}/plans/{hospital.other}")
    browser.press("Tab")
    assert browser.focus == "Skip to the content"
    wanted = ["label", "ct-triage@1", "role", "data_steward", "reason", "vote"]
    seen = []
    while "Approve and sign" not in seen:
        browser.press("Tab")
        seen.append(browser.focus)
        assert len(seen) < 60
        if seen[-1] in wanted[::2]:
            browser.script("document.activeElement.select()")
            browser.tell("Input.insertText", text=wanted[wanted.index(seen[-1]) + 1])
    assert seen[:6] == ["Overview", "Plans", "Budget", "Rounds", "Incidents", "Trail"]
    browser.press("Enter", leads_on=True)
    assert hospital.journal.plan(hospital.other).state == "approved"


def test_what_has_the_focus_can_be_seen(hospital: Any, serve_site: Any, browser: Any) -> None:
    served = serve_site(hospital)
    log_in(browser, served)
    for _ in range(9):
        browser.press("Tab")
        width = browser.script("parseFloat(getComputedStyle(document.activeElement).outlineWidth)")
        assert width >= 2, browser.focus


def test_printed_a_plan_is_its_content_and_nothing_to_press(
    hospital: Any, serve_site: Any, browser: Any, tmp_path: Path
) -> None:
    served = serve_site(hospital)
    log_in(browser, served)
    browser.go(f"{served.url}/plans/{hospital.other}")
    assert "Approve and sign" in browser.text
    browser.dark(is_dark=False, on="print")
    browser.picture(tmp_path / "print.png")
    assert "In plain words" in browser.text
    assert "BURNED_IN" in browser.text
    for gone in ("Approve and sign", "Log out", "Budget\n", "Skip to the content"):
        assert gone not in browser.text


# --- attacks from the same browser -------------------------------------------------------------------
@pytest.fixture
def elsewhere() -> Iterator[Callable[[str], str]]:
    """Serve one page from another port of this machine: another origin, but the same site, so cookies go along."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(html: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class' name
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_another_program_s_page_cannot_decide_even_with_a_stolen_token(
    waiting: Any, served: Any, browser: Any, elsewhere: Any, everything: Any
) -> None:
    log_in(browser, served)
    browser.go(f"{served.url}/plans/{waiting.study}")
    fields = browser.script("Object.fromEntries(new FormData(document.querySelector('form[action$=approve]')))")
    fields |= {"label": "ct-contrast@1", "reason": "forged"}
    inputs = "".join(f'<input name="{name}" value="{escape(value)}">' for name, value in fields.items())
    url = elsewhere(
        f'<form method="post" action="{served.url}/plans/{waiting.study}/approve">{inputs}<button>x</button>'
    )
    before = everything(waiting)
    browser.go(url)
    browser.click("button")
    assert "This form was not sent from the console's own pages" in browser.text
    assert everything(waiting) == before
    browser.go(f"{served.url}/plans/{waiting.study}")
    assert "Approve and sign" in browser.text  # the steward is still logged in: it was not the cookie that lacked


def test_another_page_cannot_frame_or_read_the_console(waiting: Any, served: Any, browser: Any, elsewhere: Any) -> None:
    log_in(browser, served)
    browser.go(elsewhere(f'<iframe src="{served.url}/plans"></iframe>'))
    assert browser.frames() == ["chrome-error://chromewebdata/"]
    read = f"fetch('{served.url}/plans', {{credentials: 'include'}}).then(() => 'read', () => 'refused')"
    assert browser.script(read) == "refused"
    blind = (
        f"fetch('{served.url}/plans', {{credentials: 'include', mode: 'no-cors'}}).then(a => a.type, () => 'refused')"
    )
    assert browser.script(blind) == "refused"


def test_a_name_that_is_made_to_resolve_to_this_machine_gets_nothing(
    waiting: Any, served: Any, browser: Any, everything: Any
) -> None:
    before = everything(waiting)
    browser.go(f"http://rebound.test:{served.port}/login")
    assert "This console has another address" in browser.text
    assert everything(waiting) == before
