"""A whole federation of real processes on loopback: Prefect, MLflow, the relay over TLS, one agent per hospital."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from compliance.records import RoundRecord
from flows.coordinator import Coordinator, load
from flows.store import rounds, studies
from flows.store.database import reading

BIN = Path(sys.executable).parent
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass
class Demo:
    """A running `wardround demo`, and the processes in it by role."""

    process: subprocess.Popen[str]
    workdir: Path

    @property
    def coordinator(self) -> Coordinator:
        return load(self.workdir / "coordinator")

    def find(self, *words: str) -> psutil.Process | None:
        """The process whose command line has all these words."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                return child
        return None

    def records(self) -> list[RoundRecord]:
        try:
            coordinator = self.coordinator
            with reading(coordinator.store) as connection:
                every = studies.every(connection)
                return rounds.committed(connection, every[0].study) if every else []
        except (OSError, LookupError):
            return []

    def wait_for(self, what: str, condition: Callable[[], object], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the demo ended while waiting for {what}"
            assert time.monotonic() < end, f"{what} took longer than {seconds} s"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not here ({SHARED})")
    return SHARED


def free_ports() -> tuple[int, int, int]:
    """For Prefect, MLflow and the relay. A demo by itself takes the usual ones, and so would the one beside it."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        prefect, mlflow, relay = (probe.getsockname()[1] for probe in probes)
        return prefect, mlflow, relay


@pytest.fixture(scope="session")
def three_ports() -> Callable[[], tuple[int, int, int]]:
    return free_ports


@contextmanager
def running_demo(folder: Path, *options: str) -> Iterator[Demo]:
    # whoever runs the tests in the background of a shell has them ignore SIGINT, and all that they start
    command = ["env", "--default-signal=INT"]
    command += [str(BIN / "wardround"), "demo", "--workdir", str(folder / "w"), "--summary", str(folder / "out.json")]
    for server, port in zip(("prefect", "mlflow", "relay"), free_ports(), strict=True):
        command += [f"--{server}-port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
    with (folder / "demo.log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, text=True, env=environment)
    try:
        yield Demo(process, folder / "w")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """One demo with phantom hospitals, run to its end: (its folder, its summary)."""
    folder = tmp_path_factory.mktemp("demo")
    with running_demo(folder, "--rounds", "3") as demo:
        code = demo.process.wait(timeout=600)
    assert code == 0, (folder / "demo.log").read_text()
    return folder, json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="session")
def demo_factory() -> Callable[..., object]:
    return running_demo
