"""The hospital's daemon at rest: how long until the relay hears it, and how much memory it holds, without its child."""

import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from flows.coordinator import Coordinator
from flows.store import members
from flows.store.database import reading
from infra.bench.federation import federation
from infra.bench.rows import Row, at_most

REPEATS = 5
_PATIENCE = 30.0
_AGENT = Path(sys.executable).parent / "silo-agent"


def agent_footprint() -> list[Row]:
    starts, memory = [], []
    with (
        tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder,
        federation(Path(folder), hospitals=1, agents=False, prefect=False) as stage,
    ):
        coordinator, state = stage.coordinator, stage.state_of(stage.sites[0])
        for _ in range(REPEATS):
            seconds, megabytes = _run(coordinator, state)
            starts.append(seconds)
            memory.append(megabytes)
    return [
        Row.of_runs("agent's daemon, from its start to its first poll", starts, "s", target=at_most(1.0)),
        Row.of_runs("agent's daemon, resident memory at rest", memory, "MB", target=at_most(80)),
    ]


def _run(coordinator: Coordinator, state: Path) -> tuple[float, float]:
    """(seconds, megabytes) of one `silo-agent run`."""
    since, begun = datetime.now(UTC), time.monotonic()
    agent = subprocess.Popen([_AGENT, "run", "--state", state], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _heard(coordinator, since):
            if agent.poll() is not None or time.monotonic() > begun + _PATIENCE:
                raise RuntimeError(f"silo-agent did not come up: see {state / 'agent.log'}")
            time.sleep(0.01)
        seconds = time.monotonic() - begun
        time.sleep(1.0)  # connected and waiting
        return seconds, psutil.Process(agent.pid).memory_info().rss / 1e6
    finally:
        agent.terminate()
        agent.wait(20)


def _heard(coordinator: Coordinator, since: datetime) -> bool:
    with reading(coordinator.store) as connection:
        return any(m.last_seen_at is not None and m.last_seen_at > since for m in members.members(connection))
