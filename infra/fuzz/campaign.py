"""The parent: starts children that read, notes how each case ended, and outlives a child that dies or hangs."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SILENCE_SECONDS = 60.0  # after this long without a line a child hangs where no signal reaches it
_PIECE = 65_536  # bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """A case whose reading broke a promise. `python -m infra.fuzz --only NUMBER` makes and reads it again."""

    number: int
    seed: str
    done: tuple[str, ...]
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return f"case {self.number}, {self.seed}, {', then '.join(self.done)}: {'; '.join(self.sentences)}"


@dataclass
class Findings:
    """What a campaign found. `ends` counts codes, "used" images and "volume"s."""

    cases: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    broken: list[Broken] = field(default_factory=list)
    confirmed: int = 0
    unconfirmed: int = 0
    peak: int = 0  # bytes, the most of any case
    grown: int = 0
    seconds: float = 0.0

    def take(self, begun: dict[str, Any], ended: dict[str, Any]) -> None:
        self.cases += 1
        self.ends.update(ended["ends"])
        self.done.update(begun["done"])
        self.confirmed += ended["confirmed"]
        self.unconfirmed += ended["unconfirmed"]
        self.peak, self.grown = max(self.peak, ended["peak"]), max(self.grown, ended["grown"])
        if ended["broken"]:
            self.blame(begun, *ended["broken"])

    def blame(self, begun: dict[str, Any], *sentences: str) -> None:
        self.broken.append(Broken(begun["begun"], begun["seed"], tuple(begun["done"]), sentences))


def run(
    campaign: int,
    cases: range,
    real: Path | None,
    *,
    jobs: int = 1,
    trace: int = 4,
    on_progress: Callable[[int], None] = lambda _done: None,
    command: tuple[str, ...] = (sys.executable, "-m", "infra.fuzz.child"),
) -> Findings:
    """Read all `cases` of `campaign` in `jobs` processes side by side, one of `trace` with its memory traced."""
    found, begun = Findings(), time.monotonic()
    shares = [
        _Share((*command, str(campaign)), cases[job::jobs], (str(trace), str(real or "")))
        for job in range(jobs)
        if cases[job::jobs]
    ]
    try:
        while busy := [share for share in shares if not share.finished]:
            for share in _ready(busy):
                share.listen(found)
            on_progress(found.cases)
    finally:
        for share in shares:
            share.end()
    found.seconds = time.monotonic() - begun
    return found


def _ready(shares: list["_Share"]) -> Iterator["_Share"]:
    """Those with something to say, or silent for too long."""
    with selectors.DefaultSelector() as selector:
        for share in shares:
            selector.register(share.output, selectors.EVENT_READ, share)
        spoke = {key.data for key, _ in selector.select(1.0)}
    for share in shares:
        if share in spoke or time.monotonic() - share.heard > SILENCE_SECONDS:
            yield share


class _Share:
    """The cases of one process, and of those that come after it if it dies."""

    def __init__(self, command: tuple[str, ...], cases: range, more: tuple[str, ...]) -> None:
        self._command, self._more = command, more
        self._begun: dict[str, Any] | None = None
        self.finished = False
        self._start(cases)

    def _start(self, cases: range) -> None:
        which = [str(one) for one in (cases.start, cases.stop, cases.step)]
        self._process = subprocess.Popen(
            [*self._command, *which, *self._more], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._rest, self.heard, self._unfinished = cases, time.monotonic(), b""

    @property
    def output(self) -> Any:
        return self._process.stdout

    def listen(self, found: Findings) -> None:
        """Take what was said, or find out why nothing is."""
        silent = time.monotonic() - self.heard > SILENCE_SECONDS
        if silent:
            self._process.kill()
        said = b"" if silent else os.read(self.output.fileno(), _PIECE)
        *lines, self._unfinished = (self._unfinished + said).split(b"\n")
        for line in lines:
            self._take(json.loads(line), found)
        if said:
            self.heard = time.monotonic()
        else:
            self._died("it hangs where no signal reaches it" if silent else None, found)

    def _take(self, told: dict[str, Any], found: Findings) -> None:
        if "begun" in told:
            self._begun = told
        elif self._begun is not None:
            found.take(self._begun, told)
            self._begun = None

    def _died(self, why: str | None, found: Findings) -> None:
        status, said = self._process.wait(), self._process.stderr
        last = (said.read().decode(errors="replace").strip().splitlines() or [""])[-1] if said else ""
        self.end()
        if self._begun is None and status == 0:
            self.finished = True
            return
        if self._begun is None:
            raise RuntimeError(f"the child that reads could not be run: {last}")
        found.cases += 1
        found.blame(self._begun, why or f"the process ends with status {status}: {last}")
        after = self._rest[self._rest.index(self._begun["begun"]) + 1 :]
        self._begun = None
        if after:
            self._start(after)
        else:
            self.finished = True

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
