"""The coordinator's memory while it opens a round's sum: it should not grow with the number of hospitals.

Measured in a process of its own that takes a round over when all shares are revealed: `RoundWork.aggregate` over masked
vectors on disk, from the first byte to the stored new model. The figure is the growth of the peak of resident memory,
in models of 25 MB.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.messages import Collection
from flows.coordinator import load
from flows.driver import StudyDriver, driving
from infra.bench.rows import Row, at_most
from infra.driving import gathered, run
from infra.federation import make_federation

PARAMETERS = 25 * 2**20 // 4
HOSPITALS = (3, 10, 30)
MODEL_BYTES = 4 * PARAMETERS
_MINUTES = 10.0


def memory() -> list[Row]:
    rows = []
    for hospitals in HOSPITALS:
        with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
            prepare(Path(folder), hospitals)
            done = subprocess.run([sys.executable, "-m", "infra.bench.memory", folder],
                                  check=True, capture_output=True, text=True)  # fmt: skip
        found = json.loads(done.stdout)
        rows.append(Row(f"peak memory of a sum over {hospitals} hospitals", found["grown"] / MODEL_BYTES, "models",
                        "memory of one 25 MB model", 1.0, at_most(4)))  # fmt: skip
        rows.append(Row(f"a sum over {hospitals} hospitals, to the stored model", found["seconds"], "s"))
    return rows


def prepare(folder: Path, hospitals: int, parameters: int = PARAMETERS) -> None:
    """A round of which everything has arrived and nothing is opened."""
    weights = np.full(parameters, 1e-3, dtype=np.float32)

    def work(_collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        return np.array([1.0, 100.0, 100.0, 0.0]), weights

    made = make_federation(
        folder / "home", {f"hospital-{number:02d}": work for number in range(hospitals)}, parameters=parameters,
        ready_minutes=_MINUTES, step_minutes=_MINUTES, lost_after_seconds=600.0,
    )  # fmt: skip
    run(made, _until_revealed, seconds=600)
    made.close()


async def _until_revealed(driver: StudyDriver) -> None:
    work = driver.open_round(1)
    async with work.collecting("train", work.model_in) as masked:
        await masked.close_cohort()
        for act in masked.steps.values():
            await act()


async def aggregate(folder: Path) -> dict[str, float]:
    """In the measured process."""
    async with driving(load(folder / "home"), "simulated@1", "benchmark") as driver:
        work = driver.open_round(1)
        async with work.collecting("train", work.model_in) as masked:
            await masked.close_cohort()
            for act in masked.steps.values():
                await act()
        begun = time.monotonic()
        grown = grown_by(lambda: work.aggregate(gathered(masked)))
        return {"seconds": time.monotonic() - begun, "grown": grown}


def grown_by(work: Callable[[], object]) -> int:
    """By how many bytes the peak of this process's resident memory rises while `work` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak is counted from here
    before = _resident_bytes("VmRSS")
    work()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(name: str) -> int:
    """Bytes. Not `ru_maxrss`, which a process inherits from the one that started it."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(aggregate(Path(sys.argv[1])))))
