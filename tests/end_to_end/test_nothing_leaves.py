"""After a whole study, the coordinator's side holds no trace of a patient."""

import shutil
from pathlib import Path

import pytest

from infra.leaks import find_leaks, needles_of

pytestmark = pytest.mark.slow


def test_the_coordinator_holds_no_trace_of_a_patient_and_a_planted_one_is_found(
    finished_demo: tuple[Path, dict[str, object]], tmp_path: Path
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


def test_the_hospitals_side_is_searched_by_the_same_means_and_does_hold_them(
    finished_demo: tuple[Path, dict[str, object]],
) -> None:
    folder, _ = finished_demo
    agents = folder / "w" / "agents"
    needles = needles_of(agents / "archives")
    assert len(find_leaks(agents / "archives", needles)) > len(needles) // 2
