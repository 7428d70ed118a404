"""A child process that returns at once: the protocol of `silo_agent.trainer`, no images, no training.

So that what is left of a round is the orchestration. A train order is answered with a zero change of the right
length, an evaluate order with the metrics of two made-up images. Vectors are synced to disk as the real child does.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boundary.stored import stored_bits
from models.metrics import MetricLayout, measure
from silo_agent.vector import write_vector

Command = dict[str, Any]


def main() -> None:
    os.umask(0o077)
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] != "cancel":
            events.write(json.dumps({"event": "done", "result": _ANSWERS[command["do"]](command)}) + "\n")
            events.flush()


def _scan(command: Command) -> dict[str, Any]:
    report = {
        "dataset_digest": "sha256:" + "0" * 64, "problems": [], "files": 10, "used": 10, "refused": {},
        "patients": {"training": 8, "holdout": 2}, "images": {"training": {"0": 8}, "holdout": {"0": 2}},
    }  # fmt: skip
    folder = Path(command["cache"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "known.bin").touch()  # of nobody; without it no scan is believed
    (folder / "report.json").write_text(json.dumps(report))
    return report


def _warm(_command: Command) -> dict[str, Any]:
    return {"parameters": 0}


def _train(command: Command) -> dict[str, Any]:
    parameters = _parameters(command)
    write_vector(Path(command["out"]), np.array([0.0, 1.0, 1.0, 0.0]), np.zeros(parameters, dtype="<f4"))
    return {"parameters": parameters, "metrics": 0}


def _evaluate(command: Command) -> dict[str, Any]:
    layout = MetricLayout(len(command["plan"]["labels"]["classes"]))
    metrics = measure(np.eye(2, layout.classes, dtype=np.float32), np.arange(2), layout)
    write_vector(Path(command["out"]), metrics)
    return {"parameters": _parameters(command), "metrics": layout.size}


def _parameters(command: Command) -> int:
    """From the length of the safetensors file and of its header."""
    model, bits = Path(command["model"]), stored_bits(command["plan"]["aggregation"]["downlink"])
    with model.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return (model.stat().st_size - 8 - header) * 8 // bits


_ANSWERS: dict[str, Callable[[Command], dict[str, Any]]] = {
    "scan": _scan,
    "warm": _warm,
    "begin": _warm,
    "train": _train,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    main()
