"""The console as `silo-agent console` runs it: a process beside the daemon."""

import http.client
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from silo_agent.console.login import make_login
from silo_agent.console.process import main
from silo_agent.console.server import listen
from silo_agent.errors import ConfigError

START = (
    "import sys; from pathlib import Path; from silo_agent.console.process import main; sys.exit(main(Path({!r}), 0))"
)


@pytest.fixture
def started(site: Any) -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    made: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", START.format(str(site.root))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        made.append(process)
        assert process.stdout is not None
        found = re.fullmatch(
            r"the console of st-olavs: http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)\n", process.stdout.readline()
        )
        assert found is not None, process.stderr.read() if process.stderr else ""
        return process, int(found[1])

    yield start
    for process in made:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def _status(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_is_and_ends_cleanly_when_told(told: signal.Signals, site: Any, started: Any) -> None:
    make_login(site.root, secrets.token_bytes)
    process, port = started()
    assert _status(port, "/login") == 200
    process.send_signal(told)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_it_runs_beside_a_journal_that_is_in_use(site: Any, started: Any) -> None:
    passphrase = make_login(site.root, secrets.token_bytes)
    _, port = started()
    site.propose()  # by the daemon, in its own process
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{port}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("POST", "/login", f"passphrase={passphrase}", headers)
        cookie = connection.getresponse().headers["set-cookie"].partition(";")[0]
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/plans", headers={"Cookie": cookie})
        assert site.study in connection.getresponse().read().decode()


def test_nobody_else_on_the_network_reaches_it(site: Any, started: Any) -> None:
    make_login(site.root, secrets.token_bytes)
    process, port = started()
    tables = [Path(f"/proc/{process.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    ours = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert ours == [f"0100007F:{port:04X}"]  # 127.0.0.1, and no other


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost", "192.0.2.1", ""])  # noqa: S104 - refused
def test_every_other_address_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1 only"):
        listen(0, host)


def test_a_taken_port_is_said(site: Any) -> None:
    make_login(site.root, secrets.token_bytes)
    with listen(0) as taken, pytest.raises(ConfigError, match="Choose another with --port"):
        main(site.root, taken.getsockname()[1])
    with pytest.raises(ConfigError, match="Choose another with --port"):
        listen(70_000)


def test_without_a_login_it_does_not_start(site: Any) -> None:
    with pytest.raises(ConfigError, match="no login yet"):
        main(site.root, 0)


def test_an_open_state_folder_is_refused(site: Any) -> None:
    make_login(site.root, secrets.token_bytes)
    site.root.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        main(site.root, 0)
    site.root.chmod(0o700)


def test_no_heavy_library_is_loaded_by_it(site: Any) -> None:
    heavy = "torch monai pydicom opacus numpy starlette fastapi uvicorn"
    check = f"import sys, silo_agent.console.process; print([m for m in {heavy.split()!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == "[]"
