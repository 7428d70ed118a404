"""Patients are taken out of a finished scan: on disk, for good, whatever is killed meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from boundary.plan import StudyPlan
from silo_agent.intake import erasing
from silo_agent.intake.cache import load_cache, replacing
from silo_agent.intake.erasing import MADE_OF, alone, erase
from silo_agent.intake.outcome import NOT_NAMED
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.withdrawn import Withdrawn, known_patients, read_known, reference_of, tag_of

PATIENTS = {"ANNA": "01", "BERT": "00", "CARL": "1", "DORA": "11", "EMIL": "0"}
MASTER = b"the hospital's master key"


@pytest.fixture
def look(
    make_archive: Callable[..., Path], make_plan: Callable[..., StudyPlan], tmp_path: Path, key: bytes
) -> Callable[..., Any]:
    folder = make_archive(PATIENTS)

    def look(before: tuple[str, ...] = (), after: tuple[str, ...] = (), cache: Path = tmp_path / "caches" / "a") -> Any:
        told = Withdrawn(MASTER, *(frozenset(reference_of(MASTER, who) for who in some) for some in (before, after)))
        source = FolderSource(folder, folder / "labels.csv")
        return scan(source, make_plan(), key, cache, lambda _done, _total: None, withdrawn=told)

    return look


def files(cache: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in cache.iterdir()}


def tags(key: bytes, *who: str) -> set[bytes]:
    return {tag_of(key, reference_of(MASTER, one)) for one in who}


def test_the_tags_stand_in_the_order_of_the_patients_numbers(look: Any, tmp_path: Path, key: bytes) -> None:
    look()
    arrays, _ = load_cache(tmp_path / "caches" / "a")
    known = read_known((tmp_path / "caches" / "a" / "known.bin").read_bytes())
    assert {tag for tag, _ in known} == tags(key, *PATIENTS)
    for number, (tag, holdout) in enumerate(known):
        rows = arrays.patients == number
        assert set(arrays.holdout[rows]) == {holdout}
        (who,) = [name for name in PATIENTS if tag in tags(key, name)]
        assert rows.sum() == len(PATIENTS[who])


def test_a_list_of_patients_is_read_as_it_was_written_and_nothing_else_is() -> None:
    rows = [(bytes([number]) * 32, number % 2 == 0) for number in range(3)]
    assert read_known(known_patients(rows)) == rows
    for wrong in (known_patients(rows)[:-1], bytes(32) + b"\x02"):
        with pytest.raises(ValueError, match="not a list"):
            read_known(wrong)


# --- scans -------------------------------------------------------------------------------------------
def test_who_withdrew_before_is_refused_and_not_in_the_digest(look: Any, tmp_path: Path, key: bytes) -> None:
    whole, without = look(), look(before=("DORA",))
    assert without.refused == {"WITHDRAWN": 2}
    assert (without.files, without.used) == (8, 6)
    assert without.dataset_digest != whole.dataset_digest
    assert without.label_rows_without_image == 0
    assert not any("label" in problem or "refused" in problem for problem in without.problems)
    cache = tmp_path / "caches" / "a"
    assert {tag for tag, _ in read_known((cache / "known.bin").read_bytes())}.isdisjoint(tags(key, "DORA"))
    refused = (cache / "refused.csv").read_text()
    assert "DORA" not in refused
    assert refused.count(f'{NOT_NAMED},WITHDRAWN,"The patient withdrew consent') == 2


def test_who_withdrew_since_counts_for_the_digest_and_is_not_kept(look: Any, tmp_path: Path, key: bytes) -> None:
    whole, since = look(), look(after=("DORA",))
    assert since == whole
    arrays, _ = load_cache(tmp_path / "caches" / "a")
    assert arrays.withdrawn.sum() == 2
    assert not arrays.images[arrays.withdrawn].any()
    assert not arrays.labels[arrays.withdrawn].any()
    assert set(arrays.patients[arrays.withdrawn]).isdisjoint(arrays.patients[~arrays.withdrawn])


def test_erasing_gives_the_very_files_of_a_scan_without_the_images(look: Any, tmp_path: Path, key: bytes) -> None:
    cache, anew = tmp_path / "caches" / "a", tmp_path / "caches" / "b"
    look(cache=cache)
    look(after=("DORA", "ANNA"), cache=anew)
    before = files(cache)
    erase(cache, set())
    assert files(cache) == before
    erase(cache, tags(key, "DORA"))
    erase(cache, tags(key, "ANNA", "NOBODY"))
    assert files(cache) == files(anew)


def test_a_scan_of_before_rows_said_what_they_were_made_of_is_erased_from_too(
    look: Any, tmp_path: Path, key: bytes
) -> None:
    cache, anew = tmp_path / "caches" / "a", tmp_path / "caches" / "b"
    look()
    (cache / MADE_OF).unlink()
    erase(cache, tags(key, "DORA"))
    look(after=("DORA",), cache=anew)
    assert files(cache) == {name: data for name, data in files(anew).items() if name != MADE_OF}


def test_files_of_theirs_are_not_named_whatever_else_they_are_refused_for(
    look: Any, tmp_path: Path, make_archive: Callable[..., Path]
) -> None:
    folder = make_archive(PATIENTS) / "dicom" / "DORA"
    (folder / "again.dcm").write_bytes((folder / "1.dcm").read_bytes())
    report = look(after=("DORA",))
    assert report.refused == {"DUPLICATE": 1}
    assert "DORA" not in (tmp_path / "caches" / "a" / "refused.csv").read_text()


# --- kills and company -------------------------------------------------------------------------------
def die_at(line: int, act: Callable[[], None]) -> int:
    """The wait status of a process that is killed at its n-th line in the module."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = line

    def trace(frame: FrameType, what: str, _argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != erasing.__file__:
            return None
        if what == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        sys.settrace(trace)
        act()
    finally:
        os._exit(0)


def test_a_kill_at_any_line_leaves_what_the_next_attempt_completes(look: Any, tmp_path: Path, key: bytes) -> None:
    cache, done = tmp_path / "caches" / "a", tmp_path / "caches" / "b"
    look()
    gone, whole = tags(key, "DORA", "BERT"), files(cache)
    look(after=("DORA", "BERT"), cache=done)
    for line in range(500):
        for name, data in whole.items():
            (cache / name).write_bytes(data)
        status = die_at(line, lambda: erase(cache, gone))
        arrays, _ = load_cache(cache)
        touched = (arrays.images == 0).all(axis=(1, 2, 3))
        assert not (touched & ~arrays.withdrawn).any(), "a row of zeros that a training would take for an image"
        erase(cache, gone)
        assert {name: data for name, data in files(cache).items() if not name.endswith(".new")} == files(done)
        if status == 0:
            break
    assert line > 30


def test_who_reads_meanwhile_never_takes_half_an_image(look: Any, tmp_path: Path, key: bytes) -> None:
    cache = tmp_path / "caches" / "a"
    look()
    whole = files(cache)
    good = {row.tobytes() for row in load_cache(cache)[0].images}
    stop = threading.Event()

    def erase_again_and_again() -> None:
        while not stop.wait(0.001):
            with alone(cache.parent):
                erase(cache, tags(key, "DORA", "BERT"))

    thread = threading.Thread(target=erase_again_and_again)
    thread.start()
    try:
        for _ in range(10):
            with alone(cache.parent):
                for name in ("images.npy", "withdrawn.bin"):
                    (cache / name).write_bytes(whole[name])
            withdrawn = False
            while not withdrawn:
                arrays, _ = load_cache(cache)
                withdrawn = bool(arrays.withdrawn.any())
                assert {row.tobytes() for row in arrays.images[~arrays.withdrawn]} <= good
    finally:
        stop.set()
        thread.join()


HOLDER = """
import sys, time
from pathlib import Path
from silo_agent.intake.erasing import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_scan_waits_to_take_the_place_of_a_cache_that_is_being_erased_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    monkeypatch.setattr(erasing, "_WAIT_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match=r"another process holds .*\.lock"), replacing(tmp_path / "cache") as folder:
        (folder / "new").touch()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(erasing, "_WAIT_SECONDS", 20)
    threading.Timer(0.3, holder.kill).start()
    begun = time.monotonic()
    with replacing(tmp_path / "cache") as folder:  # a lock goes with the process that held it
        (folder / "new").touch()
    assert (tmp_path / "cache" / "new").exists()
    assert 0.1 < time.monotonic() - begun < 15
    holder.wait()
    holder.stdout.close()


def test_what_a_killed_scan_left_beside_a_cache_goes_too(look: Any, tmp_path: Path, key: bytes) -> None:
    cache = tmp_path / "caches" / "a"
    look()
    cache.rename(cache.with_name(".a.old"))
    erase(cache, tags(key, "DORA"))
    assert sorted(file.name for file in cache.parent.iterdir()) == [".lock"]


def test_rows_that_are_of_nobody_make_the_scan_useless(look: Any, tmp_path: Path, key: bytes) -> None:
    cache = tmp_path / "caches" / "a"
    look()
    patients = np.load(cache / "patients.npy")
    np.save(cache / "patients.npy", np.where(patients == 4, 0, patients))
    erase(cache, tags(key, "DORA"))
    assert not cache.exists()
