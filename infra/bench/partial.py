"""How many bytes a round moves when only a part of a network is trained, or comes down rounded; no images.

Real relay, agents and masks. The child that stands in returns at once, so the seconds are what is left of a round
without training.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from compliance.records import RoundRecord
from flows.demo.archive import DATASET
from flows.publication import pinned, publish
from infra.bench.federation import SILOS, federation, plan_text
from infra.bench.rounds import drive, most_bytes, seconds_between
from infra.bench.rows import Row, Target, ratio_at_most

ROUNDS = 3  # measured, after the first, which also brings what is not trained
DENSENET, VIT = "densenet121", "vit-small"
LORA = """lora = { rank = 4, alpha = 8.0, targets = ["blocks.*.attention.*", "blocks.*.mlp.*"] }"""
WHOLE = "all of it"


@dataclass(frozen=True, slots=True)
class Case:
    """What of a network is trained, as its plan says it, and how models come down."""

    network: str
    part: str
    trained: tuple[str, ...] = ("*",)
    lora: bool = False
    downlink: str = "float32"
    target: Target | None = None


CASES = (
    Case(DENSENET, WHOLE),
    Case(DENSENET, "all of it, bfloat16 down", downlink="bfloat16"),
    Case(DENSENET, "head and last block", ("class_layers.*", "features.denseblock4.*", "features.norm5.*")),
    Case(DENSENET, "its head", ("class_layers.*",), target=ratio_at_most(0.03)),
    Case(VIT, WHOLE),
    Case(VIT, "adapters of rank 4 and head", ("*.lora_*", "head.*"), lora=True),
    Case(VIT, "adapters of rank 4 and head, bfloat16 down", ("*.lora_*", "head.*"), lora=True, downlink="bfloat16"),
)


def partial_training() -> list[Row]:
    rows: list[Row] = []
    whole, every = 0, 0.0
    for case in CASES:
        records = _rounds(case)
        moved, seconds = most_bytes(records[1:]), seconds_between(records[1:])
        if case.part == WHOLE:
            whole, every = moved, median(seconds)
        name = f"{case.network}, {case.part}"
        rows.append(Row(f"{name}: bytes of one hospital in a round", moved / 1e6, "MB",
                        "all of it, up and down", whole / 1e6, case.target))  # fmt: skip
        rows.append(Row.of_runs(f"{name}: a round without training", seconds, "s", against=WHOLE, reference=every))
        if case.trained != ("*",):
            first = most_bytes(records[:1])
            rows.append(Row(f"{name}: bytes of the first round, with the base", first / 1e6, "MB"))
    return rows


def _rounds(case: Case) -> list[RoundRecord]:
    model = f'name = "{case.network}"\nversion = 1\ntrained = {list(case.trained)}\n{LORA if case.lora else ""}'
    text = plan_text(SILOS, DATASET, ROUNDS + 1).replace('name = "densenet-small"\nversion = 1', model)
    text = text.replace("[aggregation]\n", f'[aggregation]\ndownlink = "{case.downlink}"\n')
    with (
        tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder,
        federation(Path(folder), prefect=False) as stage,
    ):
        plan = pinned(stage.coordinator, text)
        publish(stage.coordinator, plan)
        stage.approve_all(plan.label)
        drive(stage, "bare", plan.label, ROUNDS + 1)
        return stage.records()
