"""`wardround demo` as a newcomer runs it, and what it leaves behind."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from boundary.canonical import parse_json
from compliance.events import RoundClosed
from compliance.trail import read_leaf
from flows.coordinator import load
from flows.store import audit
from flows.store.database import reading
from infra.leaks import find_leaks, needles_of

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
Finished = tuple[Path, dict[str, Any]]


def test_the_study_finishes_with_all_hospitals_and_the_model_has_learned(finished_demo: Finished) -> None:
    _, summary = finished_demo
    assert [one["round"] for one in summary["rounds"]] == [1, 2, 3]
    for one in summary["rounds"]:
        assert (one["registered"], one["ready"], one["contributing"]) == (3, 3, 3)
        assert set(one["seconds"]) == {"training", "transport", "aggregation", "evaluation", "total"}
    assert summary["rounds"][-1]["auroc"] > 0.65  # of some twenty patients, with noise for each; 0.78 was seen
    assert summary["model"] == {"name": "cnn-small", "version": 1}


def test_bytes_on_the_wire_are_close_to_the_ideal(finished_demo: Finished) -> None:
    """Ideal: each hospital fetches each model once and sends one vector of the model's size (and its metrics)."""
    _, summary = finished_demo
    model = 15_234 * 4
    for one in summary["rounds"][1:]:
        for silo in one["bytes_up"]:
            assert one["bytes_up"][silo] + one["bytes_down"][silo] <= 1.1 * 2 * model, silo


def test_every_round_is_closed_once_in_the_trail(finished_demo: Finished) -> None:
    folder, _ = finished_demo
    with reading(load(folder / "w" / "coordinator").store) as connection:
        leaves = [read_leaf(leaf) for leaf in audit.leaves(connection)]
    assert [leaf.sequence for leaf in leaves] == list(range(1, len(leaves) + 1))
    assert [leaf.event.round for leaf in leaves if isinstance(leaf.event, RoundClosed)] == [1, 2, 3]


def test_the_agents_daemon_stays_small(finished_demo: Finished) -> None:
    """The figure is the issue's limit for the daemon without its child; memory, unlike time, is not noisy."""
    _, summary = finished_demo
    daemons = [value for name, value in summary["peak_memory_mb"].items() if re.fullmatch(r"agent [a-z-]+", name)]
    assert len(daemons) == 3
    assert max(daemons) < 80


def test_nothing_of_the_demo_runs_on(finished_demo: Finished) -> None:
    folder, _ = finished_demo
    assert [p.pid for p in psutil.process_iter() if str(folder) in " ".join(_cmdline(p))] == []


def test_plan_roster_and_keyed_digests_are_in_mlflow_and_the_model_is_no_pickle(finished_demo: Finished) -> None:
    folder, _ = finished_demo
    artifacts = folder / "w" / "mlflow" / "artifacts"
    names = {path.name for path in artifacts.rglob("*")}
    assert {"1-plan.json", "2-roster.json", "3-dataset-digests.json", "loss.png", "auroc.png", "model.pt2"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt"))]
    digests = parse_json(next(artifacts.rglob("3-dataset-digests.json")).read_bytes())
    assert len(digests) == 3


def test_the_demo_ends_with_evidence_that_a_reviewer_can_verify(finished_demo: Finished, tmp_path: Path) -> None:
    folder, _ = finished_demo
    work = folder / "w"
    (bundle,) = (work / "coordinator" / "evidence").glob("*bundle*")
    assert {path.stem for path in bundle.rglob("*.jsonl")} == {
        "coordinator", "harbour-clinic", "hill-university", "north-general",
    }  # fmt: skip

    def verified(place: Path) -> int:
        command = [str(BIN / "wardround"), "verify", str(place), "--trust", str(work / "keys.toml")]
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode

    assert verified(bundle) == 0
    shown = next((work / "mlflow" / "artifacts").rglob("report.html"))
    assert shown.read_bytes() == (bundle / "report/report.html").read_bytes()
    changed = tmp_path / "changed-bundle"
    shutil.copytree(bundle, changed)
    log = changed / "logs/hill-university.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"round":2', b'"round":3', 1))
    assert verified(changed) == 1
    log.unlink()
    assert verified(changed) == 2


BAD_STARTS = {
    "an archive that is no folder": (["--archive", "nowhere"], "is not a folder"),
    "an archive with too few hospitals": (["--archive", "two"], "at least three"),
    "a hospital without labels": (["--archive", "unlabelled"], "labels.csv is missing"),
    "a hospital without files": (["--archive", "hollow"], "holds no files"),
    "a port that is taken": (["--relay-port", "TAKEN"], "is taken"),
    "a workdir that is not empty": (["--workdir", "full"], "is not empty"),
}


@pytest.mark.parametrize("case", BAD_STARTS, ids=str)
def test_a_bad_start_says_what_to_do_and_starts_nothing(case: str, tmp_path: Path) -> None:
    import socket

    options, sentence = BAD_STARTS[case]
    for hospital in ("a", "b"):
        _hospital(tmp_path / "two" / hospital)
        _hospital(tmp_path / "unlabelled" / hospital)
        _hospital(tmp_path / "hollow" / hospital)
    _hospital(tmp_path / "unlabelled" / "c", labels=False)
    _hospital(tmp_path / "hollow" / "c", files=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = [str(taken.getsockname()[1]) if option == "TAKEN" else option for option in options]
        done = subprocess.run(
            [str(BIN / "wardround"), "demo", *options], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"COLUMNS": "300"}, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert sentence in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_ctrl_c_ends_everything_that_was_started(
    tmp_path: Path, demo_factory: Callable[..., AbstractContextManager[Any]]
) -> None:
    with demo_factory(tmp_path) as demo:
        demo.wait_for("the relay", lambda: demo.find("wardround", "relay") is not None)
        time.sleep(1)
        import signal

        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(timeout=60) == 130
    assert [p.pid for p in psutil.process_iter() if str(tmp_path) in " ".join(_cmdline(p))] == []


def _hospital(folder: Path, *, labels: bool = True, files: bool = True) -> None:
    (folder / "dicom").mkdir(parents=True)
    if files:
        (folder / "dicom" / "1.dcm").write_bytes(b"not an image")
    if labels:
        (folder / "labels.csv").write_text("SOPInstanceUID,finding\n1.2,0\n")


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_the_default_plan_is_private_and_says_what_it_cost_each_hospital(finished_demo: Finished) -> None:
    folder, summary = finished_demo
    assert len(summary["privacy"]) == 3
    for silo, cost in summary["privacy"].items():
        assert 7.5 < cost["epsilon"] <= cost["cap"] == 8.0, silo
        assert (cost["committed"], cost["reserved"], cost["fits"]) == (3, 0, 0)
        assert cost["delta"] <= 1e-3
        assert cost["lifetime_epsilon"] == cost["epsilon"]
    assert [one["train_loss"] for one in summary["rounds"]] == [None] * 3
    said = (folder / "demo.log").read_text()
    assert "a guarantee per patient: epsilon 8" in said
    assert "What it cost each hospital's patients" in said


# --- nothing leaves ------------------------------------------------------------------------------------
def test_the_coordinator_holds_no_trace_of_a_patient_and_a_planted_one_is_found(
    finished_demo: Finished, tmp_path: Path
) -> None:
    folder, _ = finished_demo
    workdir = folder / "w"
    agents = workdir / "agents"
    needles = needles_of(agents / "archives")
    assert len(needles) > 1000
    assert find_leaks(workdir, needles, leave_out=[agents]) == []

    planted = tmp_path / "coordinator"
    shutil.copytree(workdir / "coordinator", planted)
    some = sorted(needles)[:: len(needles) // 20]
    with (planted / "store.sqlite").open("ab") as database:
        database.write(b"\x00".join(some))
    assert set(some) <= {needle for _, needle in find_leaks(planted, needles)}


def test_the_hospitals_side_is_searched_by_the_same_means_and_does_hold_them(finished_demo: Finished) -> None:
    folder, _ = finished_demo
    one = min(path for path in (folder / "w" / "agents" / "archives").iterdir() if path.is_dir())
    needles = needles_of(one)
    assert len(find_leaks(one, needles)) > len(needles) // 2
