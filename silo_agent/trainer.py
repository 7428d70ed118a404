"""The child process: reads the hospital's images, trains, evaluates. It knows no coordinator and no key but one.

    python -m silo_agent.trainer --threads 2

Commands are JSON lines on standard input, events JSON lines on standard output; what libraries print goes to
standard error, the child's log. The end of the input ends the process, also in the middle of a training.
"""

import argparse
import hmac
import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from boundary.errors import BoundaryError
from silo_agent.errors import WorkCancelled, disk_code

_END_SECONDS = 10.0
_LOOK_SECONDS = 0.2


class Conversation:
    """The two pipes, read by a thread so that a cancel is heard during a training step.

    `on_end` is called by that thread when the input has ended: the daemon is gone, or sent what is no command.
    """

    def __init__(self, commands: TextIO, events: TextIO, on_end: Callable[[], None] = lambda: None) -> None:
        self._events, self._commands, self._on_end = events, commands, on_end
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancel, self._over, self._going = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._hear, daemon=True, name="commands").start()

    def _hear(self) -> None:
        try:
            for line in self._commands:
                self._take(json.loads(line))
        except (ValueError, LookupError, TypeError) as why:
            sys.stderr.write(f"what is no command ends the child: {why}\n")
        self._over.set()
        self._going.set()
        self._waiting.put(None)
        self._on_end()

    def _take(self, command: dict[str, Any]) -> None:
        """In the order they came: a cancel is for the command before it, never for the one after."""
        match command["do"]:
            case "cancel":
                self._cancel.set()
                self._going.set()
            case "pause":
                self._going.clear()
            case "resume":
                self._going.set()
            case _:
                self._cancel.clear()
                self._going.set()
                self._waiting.put(command)

    def next(self) -> dict[str, Any] | None:
        return self._waiting.get()

    def is_cancelled(self) -> bool:
        return self._cancel.is_set() or self._over.is_set()

    def say(self, **event: Any) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()

    def progress(self, step: int, steps: int) -> None:
        """Between two steps: say so, hold still while paused, raise `WorkCancelled` if it is not wanted any more."""
        self._going.wait()
        if self.is_cancelled():
            raise WorkCancelled("between two steps")
        self.say(event="progress", step=step, steps=steps)

    def rest(self, seconds: float) -> None:
        """Wait, in whatever thread; raise `WorkCancelled` if the work is not wanted any more."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.is_cancelled():
                raise WorkCancelled("while the archive was waited for")
            time.sleep(min(left, _LOOK_SECONDS))


Command = Callable[[dict[str, Any], Conversation], dict[str, Any]]


def main(arguments: list[str] | None = None) -> None:
    """Take the pipes, warm up in the background, serve commands until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True, help="processor threads for training")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold images
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's print must not be taken for an event
    serve(Conversation(sys.stdin, events, _end_soon), options.threads)


def _end_soon() -> None:
    """Work that does not look whether it is still wanted (a hung network share) must not outlive the daemon."""
    time.sleep(_END_SECONDS)
    os._exit(1)


def serve(conversation: Conversation, threads: int) -> None:
    commands: dict[str, Command] = {
        "scan": _scan, "survey": _survey, "cost": _cost, "warm": _warm, "initial": _initial, "begin": _begin,
        "check": _check, "statistics": _statistics, "train": _train, "evaluate": _evaluate, "validate": _evaluate,
        "personalise": _personalise,
    }  # fmt: skip
    while (command := conversation.next()) is not None:
        try:
            result = commands[command["do"]](command | {"threads": threads}, conversation)
            conversation.say(event="done", result=result)
        except WorkCancelled:
            conversation.say(event="cancelled")
        except Exception as why:  # noqa: BLE001 - the child's loop: the cause goes to the hospital's own log
            traceback.print_exc()
            code, retryable = classify(why)
            conversation.say(event="failed", code=code, detail=f"{type(why).__name__}: {why}", retryable=retryable)


def classify(why: Exception) -> tuple[str, bool]:
    """The releasable code of a failure, and whether trying again may help."""
    match why:
        case MemoryError():
            return "OUT_OF_MEMORY", True
        case OSError() if disk_code(why) == "DISK_FULL":
            return "DISK_FULL", True
        case RuntimeError() if type(why).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(why):
            return "OUT_OF_MEMORY", True  # torch's, on CUDA and on the processor
        case PermissionError():
            return "DATASET_UNREADABLE", False
        case BoundaryError():
            return why.code, False
        case _:
            return str(getattr(why, "code", "INTERNAL")), False


def _scan(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """With an `index` the scans of the studies beside this one's are what inputs may be taken over from.

    The one thing here that opens a connection: to the hospital's own archive, where the policy names an address.
    """
    from datetime import UTC, datetime

    from boundary.plan import parse_plan
    from silo_agent.intake.reading import Means, Memory
    from silo_agent.intake.reuse import OtherScan
    from silo_agent.intake.scan import scan
    from silo_agent.intake.sources import FETCHED, opened_source
    from silo_agent.intake.volumes.scan import scan_volumes
    from silo_agent.intake.withdrawn import Withdrawn

    master, cache, memory = Path(command["key_file"]).read_bytes(), Path(command["cache"]), None
    if command.get("index") is not None:
        scans = sorted(folder for folder in cache.parent.glob("[!.]*") if folder.is_dir())
        others = tuple(OtherScan(folder, study_key(master, folder.name)) for folder in scans)
        memory = Memory(Path(command["index"]), datetime.now(UTC), others)
    plan, scratch = parse_plan(command["plan"]), cache.with_name(f".{cache.name}{FETCHED}")
    heard, wanted = partial(conversation.progress, 0), plan.dataset.modalities
    if plan.dataset.series is not None:
        wanted = (*wanted, "SEG")
    with opened_source(command, wanted, scratch, pause=conversation.rest, heard=heard) as source:
        report = (scan if plan.dataset.series is None else scan_volumes)(
            source,
            plan,
            study_key(master, command["study"]),
            cache,
            conversation.progress,
            withdrawn=Withdrawn.told(master, command["withdrawn"]),
            means=Means(command.get("threads", 2), memory=memory),
            held_back=command.get("held_back", False),
        )
    return report.model_dump(mode="json")


def _survey(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """What a folder holds, without a plan; the files that were refused go to a file of the caller's."""
    from dataclasses import asdict

    from silo_agent.intake.cache import write_refused
    from silo_agent.intake.reading import Means
    from silo_agent.intake.survey import survey, survey_mixed, survey_volumes

    surveyed = {"mixed": survey_mixed, "volumes": survey_volumes, "images": survey}[command["as"]]
    means = Means(command.get("threads", 2))
    found = surveyed(Path(command["dicom"]), bytes.fromhex(command["key"]), conversation.progress, means=means)
    if command["named"] is not None:
        write_refused(Path(command["named"]), found.named)
    return {name: value for name, value in asdict(found).items() if name != "named"}


def _cost(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Epsilon of a release by the closer estimate; None where it cannot be computed, which is nobody's fault."""
    from compliance.errors import NotAccountable
    from compliance.privacy import parse_event
    from compliance.prv import epsilon_prv

    conversation.progress(0, 1)
    try:
        found = epsilon_prv([parse_event(command["event"].encode())], float(command["delta"]))
    except NotAccountable as why:
        return {"epsilon": None, "why": str(why)}
    return {"epsilon": found.estimate, "upper": found.upper}


def study_key(master: bytes, study: str) -> bytes:
    """The hospital's key for one study, so that patient references of two studies cannot be matched."""
    return hmac.digest(master, b"wardround study key v1\x00" + study.encode(), "sha256")


def _warm(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Import torch and MONAI and build the plan's network once, so that the first round does not wait for it.

    A plan with a guarantee per patient has its network proven here, while there is time.
    """
    from silo_agent.local_round import LocalRound, prove_once

    conversation.progress(0, 1)
    work = LocalRound.of(command)
    if work.plan.bands:
        prove_once(work.plan)
    return {"parameters": work.parts.moving.size}


def _initial(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Write the model that a study begins with, as the coordinator makes it from the plan alone."""
    from boundary.tensors import pack
    from silo_agent.beginning import beginning
    from silo_agent.local_round import LocalRound

    conversation.progress(0, 1)
    work = LocalRound.of(command)
    parts = work.parts
    first = beginning(work.plan, parts, work.weights)
    work.model.write_bytes(pack(parts.moving_of(first), parts.moving, work.plan.aggregation.downlink))
    if work.base is not None:
        work.base.write_bytes(pack(first, parts.whole))
    return {"parameters": parts.moving.size}


def _begin(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Make what the study begins with, from the plan and our own file, before anybody is asked to approve it."""
    from silo_agent.beginning import beginning
    from silo_agent.local_round import LocalRound

    conversation.progress(0, 1)
    work = LocalRound.of(command)
    return {"parameters": len(beginning(work.plan, work.parts, work.weights))}


def _check(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    """Look at everything a private training needs, before its budget is spent: model, images, proof, memory."""
    from silo_agent.local_round import LocalRound, prove_once, try_once

    conversation.progress(0, 1)
    work = LocalRound.of(command)
    work.network(work.incoming())
    prove_once(work.plan)
    try_once(work)
    return {"images": len(work.data(holdout=False))}


def _statistics(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    from silo_agent.local_round import LocalRound, statistics_round

    conversation.progress(0, 1)
    return statistics_round(LocalRound.of(command))


def _train(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    from silo_agent.local_round import LocalRound, train_round

    work = LocalRound.of(command)
    done = train_round(work, conversation.progress, conversation.is_cancelled)
    if work.plan.trains_beside:
        from silo_agent.personal_round import Watch, train_beside

        train_beside(work, Watch(conversation.progress, conversation.is_cancelled))
    return done


def _personalise(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    from silo_agent.local_round import LocalRound
    from silo_agent.personal_round import Watch, personalise_round

    return personalise_round(LocalRound.of(command), Watch(conversation.progress, conversation.is_cancelled))


def _evaluate(command: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
    from silo_agent.local_round import LocalRound, evaluate_round

    conversation.progress(0, 1)
    return evaluate_round(LocalRound.of(command), conversation.is_cancelled)


if __name__ == "__main__":
    main()
