"""The benchmarks' own machinery. No figure is asserted here: `make bench` measures, tests do not."""

import asyncio
import json
import subprocess
import sys
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from boundary.layout import layout_for
from infra.bench import memory
from infra.bench.__main__ import main, table
from infra.bench.demo import phase_ends
from infra.bench.federation import SILOS, keyed_plan
from infra.bench.registry import BENCHMARKS, Benchmark
from infra.bench.rows import Row, Target, at_most, ratio_at_least, ratio_at_most
from models.metrics import MetricLayout, read

VERDICTS = {
    "below a limit": (Row("x", 1.4, "s", target=at_most(1.5)), True),
    "exactly at a limit": (Row("x", 1.5, "s", target=at_most(1.5)), True),
    "above a limit": (Row("x", 1.6, "s", target=at_most(1.5)), False),
    "half as fast as the peer": (Row("x", 50, "MB/s", "copy", 100, ratio_at_least(0.5)), True),
    "less than half as fast": (Row("x", 49, "MB/s", "copy", 100, ratio_at_least(0.5)), False),
    "a little slower than the peer": (Row("x", 5, "s", "plain", 4, ratio_at_most(1.3)), True),
    "much slower than the peer": (Row("x", 6, "s", "plain", 4, ratio_at_most(1.3)), False),
    "no target": (Row("x", 6, "s", "plain", 4), None),
    "a ratio without a peer": (Row("x", 6, "s", target=ratio_at_most(1.3)), None),
}


@pytest.mark.parametrize(("row", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_a_row_says_whether_its_target_is_met(row: Row, verdict: bool | None) -> None:
    assert row.met is verdict


def test_a_row_of_several_runs_is_their_median_and_keeps_them() -> None:
    row = Row.of_runs("x", [3.0, 1.0, 2.0], "s")
    assert (row.value, row.runs) == (2.0, (3.0, 1.0, 2.0))


def test_the_json_of_a_row_holds_what_the_table_shows() -> None:
    row = Row.of_runs("upload", [40.0, 60.0, 50.0], "MB/s", against="copy", reference=100.0, target=ratio_at_least(0.5))
    assert row.to_json() == {
        "figure": "upload", "value": 50.0, "unit": "MB/s", "against": "copy", "reference": 100.0, "ratio": 0.5,
        "target": "ratio at least 0.5", "met": True, "runs": [40.0, 60.0, 50.0],
    }  # fmt: skip
    console = Console(width=200, file=StringIO())
    console.print(table([row]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("upload", "50 MB/s", "100 MB/s, copy", "0.50", "ratio at least 0.5", "yes"):
        assert part in shown


@pytest.fixture(autouse=True)
def _listens_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy the machine is, is measured before each benchmark; here nobody quotes the times."""
    monkeypatch.setattr("infra.bench.__main__._LISTEN_SECONDS", 0.05)


def fake(**benchmarks: Any) -> dict[str, Benchmark]:
    return {name: Benchmark(run, f"measures {name}", 1) for name, run in benchmarks.items()}


def broken() -> list[Row]:
    raise ValueError("no such disk")


def test_one_that_cannot_run_does_not_keep_the_others_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = fake(first=broken, second=lambda: [Row("speed", 3.0, "m/s", target=at_most(2))])
    monkeypatch.setattr("infra.bench.__main__.BENCHMARKS", made)
    assert main(["--json", str(tmp_path / "out.json")]) == 1
    assert "ValueError: no such disk" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (first["error"], first["rows"]) == ("ValueError: no such disk", [])
    assert (second["error"], second["rows"][0]["met"]) == (None, False)


def test_a_missed_target_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.bench.__main__.BENCHMARKS", fake(slow=lambda: [Row("x", 3.0, "s", target=at_most(2))]))
    assert main([]) == 0


def test_only_what_was_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def named(name: str) -> list[Row]:
        ran.append(name)
        return []

    made = fake(**{name: partial(named, name) for name in ("a", "b", "c")})
    monkeypatch.setattr("infra.bench.__main__.BENCHMARKS", made)
    assert main(["--only", "c,a"]) == 0
    assert ran == ["c", "a"]


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--only", "speed"])
    assert end.value.code == 2
    assert "no benchmark 'speed'; there are round-25mb" in capsys.readouterr().err


def test_the_list_names_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BENCHMARKS)


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for words in ("make bench ONLY=", "How to read the table", "To add one"):
        assert words in said


def test_a_target_reads_as_a_sentence() -> None:
    assert str(Target("ratio", "at most", 1.3)) == "ratio at most 1.3"


def test_the_stand_in_answers_as_the_real_child_would(tmp_path: Path) -> None:
    """A model of three numbers; the vectors have the layout that the coordinator expects."""
    (tmp_path / "model").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(4 * 3))
    plan = {"labels": {"classes": ["0", "1"]}, "aggregation": {"downlink": "float32"}}
    commands: list[dict[str, Any]] = [
        {"do": "scan", "cache": str(tmp_path / "cache")},
        {"do": "warm"},
        {"do": "cancel"},
        {"do": "train", "plan": plan, "model": str(tmp_path / "model"), "out": str(tmp_path / "r" / "train")},
        {"do": "evaluate", "plan": plan, "model": str(tmp_path / "model"), "out": str(tmp_path / "r" / "evaluated")},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "infra.bench.standin", "--threads", "1"],
        input="".join(json.dumps(command) + "\n" for command in commands), capture_output=True, text=True, check=True,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["done"] * 4
    assert events[0]["result"] == json.loads((tmp_path / "cache" / "report.json").read_text())
    assert events[2]["result"] == {"parameters": 3, "metrics": 0}
    layout, metrics = layout_for("train", parameters=3, metrics=0), MetricLayout(2)
    trained = (tmp_path / "r" / "train").read_bytes()
    assert len(trained) == layout.plain_bytes
    assert np.frombuffer(trained, "<f8", layout.numbers)[layout.where("weight")] > 0
    assert not np.frombuffer(trained, "<f4", offset=layout.numbers_bytes).any()
    assert read(np.fromfile(tmp_path / "r" / "evaluated", dtype="<f8"), metrics).count == 2
    assert events[3]["result"] == {"parameters": 3, "metrics": metrics.size}


def test_the_benchmark_plan_is_a_plan() -> None:
    plan = keyed_plan(SILOS, "images", 7, holdout=0.05)
    assert (plan.label, plan.training.rounds, plan.dataset.holdout_share) == ("bench@1", 7, 0.05)


def test_what_the_memory_benchmark_takes_over_is_a_whole_round(tmp_path: Path) -> None:
    memory.prepare(tmp_path, 3, parameters=50)
    assert asyncio.run(memory.aggregate(tmp_path))["seconds"] > 0


def test_the_demos_phases_are_read_from_what_it_prints() -> None:
    said = """\
   3.1 s  made phantom studies as DICOM in /tmp/w/agents/archives
   6.0 s  the relay listens at https://127.0.0.1:8443
  11.5 s  plan demo@1 is published (/tmp/w/study.toml)
  20.0 s  harbour-clinic has checked its data and approved demo@1
  21.5 s  north-general has checked its data and approved demo@1
          watch it: http://127.0.0.1:4200
"""
    assert list(phase_ends(said).values()) == [3.1, 6.0, 11.5, 21.5]
