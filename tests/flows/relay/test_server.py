"""The process: it starts only when it can serve, and stops when it is told to."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from flows.relay.server import main
from flows.store.database import writing


def start(relay: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.relay.server", "--config", relay.folder / "relay.toml"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_taken_port_is_said_with_the_fix(relay: Any) -> None:
    second = start(relay)
    assert second.returncode == 1
    assert f"127.0.0.1:{relay.port}: Address already in use: stop the other process, or set" in second.stderr
    assert "Traceback" not in second.stderr


def test_sigterm_ends_it_at_once_even_with_polls_waiting(make_relay: Callable[..., Any]) -> None:
    relay = make_relay()
    hospital = relay.hospital("st-olavs")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(hospital.poll(wait=20)))
    thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    assert relay.stop() == 0
    thread.join()
    assert time.monotonic() - started < 20  # the poll did not wait for its own end
    assert len(answers) == 1
    assert "Traceback" not in relay.log
    hospital.http.close()


def test_a_worker_does_not_outlive_a_killed_relay(make_relay: Callable[..., Any]) -> None:
    relay = make_relay()
    relay.process.send_signal(signal.SIGKILL)
    relay.process.wait(10)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", relay.port), 0.2).close()
        except OSError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("somebody still listens")


CONFIGURATIONS = {
    "no such file": (None, "No such file"),
    "not TOML": ("database = ", "Invalid value"),
    "an unknown setting": ('databse = "x"', "databse"),
    "no certificate": (
        'database = "sqlite:////tmp/x.db"\nblobs = "b"\ncertificate = "a"\nprivate_key = "b"\nclient_ca = "c"',
        "cannot be read: make it with `wardround init`",
    ),
}


@pytest.mark.parametrize(("content", "says"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_wrong_configuration_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "relay.toml").write_text(content)
    assert main(["--config", str(tmp_path / "relay.toml")]) == 1
    assert says in capsys.readouterr().err


def test_several_workers_need_postgresql(make_relay: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    relay = make_relay(options="workers = 2", started=False)
    assert main(["--config", str(relay.folder / "relay.toml")]) == 1
    assert "use PostgreSQL" in capsys.readouterr().err


def test_a_newer_database_is_left_alone(make_relay: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    relay = make_relay(started=False)
    with writing(relay.engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert main(["--config", str(relay.folder / "relay.toml")]) == 1
    assert "start the newer version again" in capsys.readouterr().err


def test_two_workers_over_postgresql_are_one_relay(make_relay: Callable[..., Any], postgresql_url: str) -> None:
    relay = make_relay(postgresql_url, "workers = 2")
    hospital = relay.hospital("st-olavs")
    headers = hospital.header("GET", "/v1/roster")
    assert hospital.http.get("/v1/roster", headers=headers).status_code == 200
    codes = set()
    for _ in range(8):
        hospital.http.close()
        hospital.__post_init__()  # a new connection may reach the other worker
        codes.add(hospital.http.get("/v1/roster", headers=headers).json()["code"])
    assert codes == {"REPLAYED"}
    hospital.http.close()
    assert relay.stop() == 0
    relay.engine.dispose()
