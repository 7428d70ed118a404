"""Chromium without a window, driven by its DevTools protocol: what a person does with keys and mouse."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import Request, urlopen

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_START_SECONDS, _SECONDS = 60, 30
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--host-resolver-rules=MAP rebound.test 127.0.0.1",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
_CENTRE = """(() => { const at = document.querySelector(%s); at.scrollIntoView({block: "center"});
const box = at.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
_KEYS = {"Tab": 9, "Enter": 13}


def axe() -> str | None:
    """The source of axe-core, from where pip puts it; None where it is not installed."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).with_name("axe.min.js").read_text("utf-8")


class Browser:
    """One page. `went` are the addresses of everything it asked the network for."""

    def __init__(self, profile: Path) -> None:
        self._profile, self._last, self._loads, self.went = profile, 0, 0, list[str]()
        profile.mkdir()

    def __enter__(self) -> Self:
        with (self._profile / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(CHROMIUM), *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            # no pings: their payload is drawn from `random`, in a thread, under Hypothesis' feet
            self._socket = connect(self._address(), max_size=None, proxy=None, ping_interval=None)
            for domain in ("Page", "Network", "Runtime"):
                self.tell(f"{domain}.enable")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._socket.close()
        self._kill()

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def _address(self) -> str:
        file, end = self._profile / "DevToolsActivePort", time.monotonic() + _START_SECONDS
        while not (file.exists() and file.read_text().count("\n")):
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError((self._profile / "log").read_text()[-2000:])
            time.sleep(0.05)
        port = file.read_text().splitlines()[0]
        with urlopen(Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"), timeout=20) as answer:
            address: str = json.load(answer)["webSocketDebuggerUrl"]
            return address

    # --- the protocol --------------------------------------------------------------------------------
    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = self._hear()
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def _hear(self, seconds: float = _SECONDS) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(seconds))
        if message.get("method") == "Network.requestWillBeSent":
            self.went.append(message["params"]["request"]["url"])
        self._loads += message.get("method") == "Page.loadEventFired"
        return message

    def script(self, text: str) -> Any:
        """The value of an expression, in the page."""
        found = self.tell("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    @contextmanager
    def _leading_on(self, *, leads_on: bool = True) -> Iterator[None]:
        """Wait for the page that what is done in here leads to."""
        before, end = self._loads, time.monotonic() + _SECONDS
        yield
        while leads_on and self._loads == before:
            self._hear(end - time.monotonic())

    def forget(self) -> None:
        """As if it had just been installed."""
        self.go("about:blank")
        self.tell("Network.clearBrowserCookies")
        self.dark(is_dark=False)
        self.size(1280, 900)
        self.went.clear()

    # --- a person ------------------------------------------------------------------------------------
    def size(self, width: int, height: int, zoom: float = 1) -> None:
        """A window of so many pixels; zooming makes each CSS pixel larger, so that fewer fit."""
        self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=round(width / zoom), height=round(height / zoom), deviceScaleFactor=zoom, mobile=False,
        )  # fmt: skip

    def dark(self, *, is_dark: bool, on: str = "screen") -> None:
        """As a person likes it, on a screen or in `print`."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.tell("Emulation.setEmulatedMedia", media=on, features=[scheme])

    def go(self, url: str) -> None:
        with self._leading_on():
            self.tell("Page.navigate", url=url)

    def click(self, selector: str, *, leads_on: bool = True) -> None:
        x, y = self.script(_CENTRE % json.dumps(selector))
        with self._leading_on(leads_on=leads_on):
            for kind in ("mousePressed", "mouseReleased"):
                self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        self.click(selector, leads_on=False)
        self.script(f"document.querySelector({json.dumps(selector)}).select()")
        self.tell("Input.insertText", text=text)

    def press(self, key: str, *, leads_on: bool = False) -> None:
        more = {"text": "\r"} if key == "Enter" else {}
        code = _KEYS[key]
        with self._leading_on(leads_on=leads_on):
            for kind in ("keyDown", "keyUp"):
                self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    @property
    def text(self) -> str:
        found: str = self.script("document.body.innerText")
        return found

    @property
    def path(self) -> str:
        found: str = self.script("location.pathname")
        return found

    @property
    def focus(self) -> str:
        """What has the focus: its text, or its id."""
        found: str = self.script("document.activeElement.id || document.activeElement.innerText")
        return found

    def picture(self, path: Path) -> None:
        """The whole page, as a person scrolls through it."""
        found = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def frames(self) -> list[str]:
        """What the page's frames show: an error page of the browser's where framing was refused."""
        found = self.tell("Page.getFrameTree")["frameTree"].get("childFrames", [])
        return [one["frame"]["url"] for one in found]

    def accessibility(self, source: str, *rules: str) -> list[str]:
        """What axe-core finds wrong with the page, by all of its rules or by these, with the places."""
        if self.script("typeof axe") == "undefined":
            self.script(source + "; 0")
        options = json.dumps({"runOnly": rules} if rules else {})
        found = self.script(f"axe.run({options}).then(found => JSON.stringify(found.violations))")
        return [
            f"{one['id']}: {one['help']}: {', '.join(node['target'][0] for node in one['nodes'])}"
            for one in json.loads(found)
        ]
