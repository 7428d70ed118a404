"""A child that speaks the line protocol and knows no torch: it answers by the script in $STUB_SCRIPT."""

import array
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def perform(do: str, what: Any, command: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - a list of verbs
    match do:
        case "say":
            if what["event"] == "done" and command["do"] == "scan" and "cache" in command:
                Path(command["cache"]).mkdir(parents=True, exist_ok=True)
                Path(command["cache"], "known.bin").touch()  # of nobody; without it no scan is believed
            say(**what)
        case "raw":
            sys.stdout.write(what)
            sys.stdout.flush()
        case "endless":
            sys.stdout.write("x" * what)
            sys.stdout.flush()
        case "sleep":
            time.sleep(what)
        case "exit":
            os._exit(what)
        case "kill":
            os.kill(os.getpid(), 9)
        case "close":
            os.close(1)
        case "touch":
            Path(what).touch()
        case "record":  # what it was asked, and in which order
            with Path(what).open("a") as file:
                file.write(json.dumps(command) + "\n")
        case "copy":  # as it was at this instant, with what SQLite has beside it
            for end in ("", "-wal"):
                shutil.copy(what[0] + end, what[1] + end)
        case "vector":
            out = Path(command["out"])
            out.parent.mkdir(parents=True, exist_ok=True)
            numbers, weights = what
            out.write_bytes(array.array("d", [1.0] * numbers).tobytes() + array.array("f", [1.0] * weights).tobytes())
        case "hear":
            with Path(what).open("a") as file:
                file.write(json.loads(sys.stdin.readline())["do"] + "\n")
        case "obey":
            while json.loads(sys.stdin.readline() or '{"do": "cancel"}')["do"] != "cancel":
                pass
            say(event="cancelled")
        case _:
            raise ValueError(do)


if __name__ == "__main__":
    script = json.loads(os.environ["STUB_SCRIPT"])
    for line in sys.stdin:
        command = json.loads(line)
        for do, what in script.get(command["do"], [["say", {"event": "done", "result": {}}]]):
            perform(do, what, command)
