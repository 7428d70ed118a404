"""The benchmarks' own arithmetic: a row says met only when it is."""

import subprocess
import sys

import pytest

from infra.bench.__main__ import BENCHMARKS, table_of
from infra.bench.demo import phase_ends
from infra.bench.rows import Row, at_most, ratio_at_least, ratio_at_most

ROWS = {
    "a value under its bound": (Row("f", 1.0, "s", target=at_most(1.5)), True),
    "a value over its bound": (Row("f", 1.6, "s", target=at_most(1.5)), False),
    "a ratio that is high enough": (Row("f", 60, "MB/s", "plain", 100, ratio_at_least(0.5)), True),
    "a ratio that is too low": (Row("f", 40, "MB/s", "plain", 100, ratio_at_least(0.5)), False),
    "a ratio that is too high": (Row("f", 13, "s", "plain", 10, ratio_at_most(1.2)), False),
    "no target": (Row("f", 13, "s"), None),
    "a ratio with nothing beside it": (Row("f", 13, "s", target=ratio_at_most(1.2)), None),
}


@pytest.mark.parametrize("case", ROWS)
def test_met(case: str) -> None:
    row, met = ROWS[case]
    assert row.met is met
    assert row.to_json()["met"] is met


def test_the_median_of_several_runs_is_the_figure() -> None:
    row = Row.of_runs("f", [3.0, 1.0, 2.0], "s")
    assert (row.value, row.runs) == (2.0, (3.0, 1.0, 2.0))


def test_the_table_has_every_row() -> None:
    assert table_of([row for row, _ in ROWS.values()]).row_count == len(ROWS)


def test_the_phases_of_a_demo_are_read_from_its_words() -> None:
    said = "   5.4 s  made phantom studies as DICOM in x\n  60.5 s  plan demo@1 is published (y)\n"
    assert list(phase_ends(said).values()) == [5.4, 60.5]


def test_the_list_names_every_benchmark() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.bench", "--list"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == list(BENCHMARKS)
