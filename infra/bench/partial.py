"""How many bytes a round moves when only a part of DenseNet121 is trained: real relay, agents and masks, no images.

The child that stands in returns at once, so the seconds are what is left of a round without training.
"""

import tempfile
from pathlib import Path
from statistics import median

from compliance.records import RoundRecord
from flows.demo.archive import DATASET
from flows.publication import pinned, publish
from infra.bench.federation import SILOS, federation, plan_text
from infra.bench.rounds import drive, most_bytes, seconds_between
from infra.bench.rows import Row, ratio_at_most

ROUNDS = 3  # measured, after the first, which also brings what is not trained
NETWORK = "densenet121"
PARTS = {
    "its head": ["class_layers.*"],
    "head and last block": ["class_layers.*", "features.denseblock4.*", "features.norm5.*"],
    "all of it": ["*"],
}


def partial_training() -> list[Row]:
    records = {part: _rounds(patterns) for part, patterns in PARTS.items()}
    bytes_of = {part: most_bytes(rounds[1:]) for part, rounds in records.items()}
    whole, every = bytes_of["all of it"], median(seconds_between(records["all of it"][1:]))
    rows = []
    for part, rounds in records.items():
        target = ratio_at_most(0.03) if part == "its head" else None
        rows.append(Row(f"{NETWORK}, {part}: bytes of one hospital in a round", bytes_of[part] / 1e6, "MB",
                        "all of it, up and down", whole / 1e6, target))  # fmt: skip
        rows.append(Row.of_runs(f"{NETWORK}, {part}: a round without training", seconds_between(rounds[1:]), "s",
                                against="all of it", reference=every))  # fmt: skip
    first = most_bytes(records["its head"][:1])
    rows.append(Row(f"{NETWORK}, its head: bytes of the first round, with the base", first / 1e6, "MB"))
    return rows


def _rounds(patterns: list[str]) -> list[RoundRecord]:
    text = plan_text(SILOS, DATASET, ROUNDS + 1).replace(
        'name = "densenet-small"\nversion = 1', f'name = "{NETWORK}"\nversion = 1\ntrained = {patterns}'
    )
    with (
        tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder,
        federation(Path(folder), prefect=False) as stage,
    ):
        plan = pinned(stage.coordinator, text)
        publish(stage.coordinator, plan)
        stage.approve_all(plan.label)
        drive(stage, "bare", plan.label, ROUNDS + 1)
        return stage.records()
