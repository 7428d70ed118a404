"""What a round costs when the hospitals' work costs nothing: three real agents whose child returns at once."""

import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from compliance.records import RoundRecord
from flows.demo.archive import DATASET
from flows.demo.processes import DemoFailed
from infra.bench.federation import SILOS, BenchStage, federation, plan_text, publish_synthetic
from infra.bench.rows import Row, at_most, ratio_at_most

ROUNDS = 5  # measured, after one to warm up
# The same task (three clients that return at once) on a quiet machine of this kind, two cores, both unmasked; measured
# for the issue that set the targets, and not again here: constants, to be read as such
FLOWER, FLARE = "Flower 1.41", "FLARE"
PEER_SECONDS = {25: {FLOWER: 6.9, FLARE: 3.0}, 100: {FLOWER: 12.9, FLARE: 5.1}}
TARGET_SECONDS = {25: 1.5, 100: 4.0}
_RUN_SECONDS = 400


def round_25mb() -> list[Row]:
    return _round(25)


def round_100mb() -> list[Row]:
    return _round(100)


def _round(megabytes: int) -> list[Row]:
    """`megabytes` are MiB of float32: 25 is 6.55 million parameters, 100 is 26.2 million."""
    parameters = megabytes * 2**20 // 4
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder, federation(Path(folder)) as stage:
        plan = publish_synthetic(stage.coordinator, plan_text(SILOS, DATASET, 2 * (ROUNDS + 1)), parameters)
        stage.approve_all(plan.label)
        drive(stage, "prefect", plan.label, ROUNDS + 1)
        drive(stage, "bare", plan.label, ROUNDS + 1)
        records = stage.records()
    shown, bare = seconds_between(records[: ROUNDS + 1]), seconds_between(records[ROUNDS + 1 :])
    peers = PEER_SECONDS[megabytes]
    fastest = min(peers, key=lambda name: peers[name])
    name = f"round of {megabytes} MB"
    ideal = 2.0 * parameters * 4
    moved = most_bytes(records[1:])
    return [
        Row.of_runs(f"{name}, as the flow runs it", shown, "s", against=f"{fastest} (constant)",
                    reference=peers[fastest], target=at_most(TARGET_SECONDS[megabytes])),
        Row.of_runs(f"{name}, without Prefect", bare, "s", against="the same with Prefect", reference=median(shown)),
        Row(f"{name}, bytes of one hospital", moved / 1e6, "MB", "model down and up", ideal / 1e6, ratio_at_most(1.1)),
        *(Row.of_runs(f"{name}, {part}", [getattr(record.timing, part) for record in records[1 : ROUNDS + 1]], "s")
          for part in ("training", "transport", "aggregation", "evaluation")),
    ]  # fmt: skip


def seconds_between(records: list[RoundRecord]) -> list[float]:
    """From commit to commit: with everything that happens between two rounds."""
    moments = [record.committed_at for record in records]
    return [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]


def most_bytes(records: list[RoundRecord]) -> int:
    """Up and down, of the hospital and round that moved most."""
    return max(traffic.up + traffic.down for record in records for traffic in record.traffic.values())


def drive(stage: BenchStage, how: str, label: str, count: int) -> None:
    """Run rounds in a process of their own; raises `DemoFailed` with its last words."""
    command = [sys.executable, "-m", "infra.bench.drive", how, label, str(count)]
    log = stage.processes.log_of(f"drive {how}")
    with log.open("wb") as sink:
        code = subprocess.run(command, env=dict(os.environ) | stage.prefect_environment, stdout=sink, stderr=sink,
                              timeout=_RUN_SECONDS, check=False).returncode  # fmt: skip
    stage.processes.check()
    if code:
        raise DemoFailed(f"the rounds ended with status {code}: {log.read_text()[-2000:]}")
