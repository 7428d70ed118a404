"""`wardround demo` as a newcomer runs it, on its clock and by its phases."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from infra.bench.rows import Row, at_most

ROUNDS = 5
TARGET_SECONDS = 180
_WARDROUND = Path(sys.executable).parent / "wardround"
_LINE = re.compile(r"^ *(?P<at>\d+\.\d) s +(?P<what>.+)$")
# what a line of the demo says, and what had been going on until then
_PHASES = (
    ("made phantom studies", "making the hospitals' archives"),
    ("the relay listens", "keys, store and relay"),
    ("is published", "enrolment and publication"),
    ("approved", "the hospitals' own check of their data, and approval"),
)


def demo() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        command = [str(_WARDROUND), "demo", "--rounds", str(ROUNDS), "--workdir", f"{folder}/w"]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begun
        if done.returncode:
            raise RuntimeError(f"the demo failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    ends = phase_ends(done.stdout)
    rows, before = [], 0.0
    for name, at in ends.items():
        rows.append(Row(f"demo: {name}", at - before, "s"))
        before = at
    rows.append(Row(f"demo: servers ready, {ROUNDS} rounds, model registered", seconds - before, "s"))
    total = Row(f"demo of {ROUNDS} rounds, from nothing to the results", seconds, "s", target=at_most(TARGET_SECONDS))
    return [total, *rows]


def phase_ends(output: str) -> dict[str, float]:
    """When each phase was last spoken of, in seconds after the start."""
    found: dict[str, float] = {}
    for line in output.splitlines():
        said = _LINE.match(line)
        for words, name in _PHASES if said else ():
            if said and words in said["what"]:
                found[name] = float(said["at"])
    return found
