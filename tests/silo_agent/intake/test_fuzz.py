"""Damaged files by the hundred, and whether the fuzzer would find a broken promise.

All of it is `python -m infra.fuzz`: 10 000 cases there, or here with WARDROUND_EXAMPLES=10000.
"""

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.fuzz import campaign
from infra.fuzz.__main__ import main, told
from infra.fuzz.campaign import run
from infra.fuzz.cases import Case, Source, load, make
from infra.fuzz.child import judged
from infra.fuzz.elements import elements_of
from infra.fuzz.judging import LIMITS, VOLUME_LIMITS, MiB, Readers, read_nifti
from infra.fuzz.mutations import MUTATIONS
from infra.fuzz.niftis import MUTATIONS as NIFTI_MUTATIONS
from silo_agent.intake.image import Refused, StoredImage, read_image
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import Volume, assemble

CASES = max(200, int(os.environ.get("WARDROUND_EXAMPLES", "500")))
SEED = 1


@pytest.fixture(scope="module")
def shared_data() -> Path | None:
    real = Path(__file__).resolve().parents[4] / "shared" / "data"
    return real if real.is_dir() else None


@pytest.fixture(scope="module")
def source() -> Source:
    return load(None)


def test_whatever_is_done_to_a_file_reading_it_keeps_the_promises(shared_data: Path | None) -> None:
    found = run(SEED, range(CASES), shared_data)
    assert found.broken == [], told(found)
    assert found.cases == CASES
    assert len(found.ends) >= 15  # the damage leads everywhere, not to one early refusal
    assert {*MUTATIONS, *NIFTI_MUTATIONS} <= set(found.done)
    assert found.confirmed > CASES / 3
    assert found.unconfirmed <= CASES / 50


# --- would it find one? ----------------------------------------------------------------------------------
def refuse(code: Refusal) -> Callable[[Path], Any]:
    return lambda _path: Refused(code)


def warn(path: Path) -> Any:
    warnings.warn("Invalid value for VR PN: 'Doe^John'", stacklevel=1)
    return good_image(path)


def log(path: Path) -> Any:
    import logging

    logging.getLogger("pydicom").warning("a value")
    return good_image(path)


def raise_it(_path: Path) -> Any:
    raise KeyError("0008,0060")


def never_end(_path: Path) -> Any:
    while True:
        pass


def hold_memory(path: Path) -> Any:
    return good_image(path) if bytes(100 * MiB) else None


def reserve_memory(path: Path) -> Any:
    np.empty(1 << 30, dtype=np.uint8)  # asked for and never touched: the process does not grow
    return good_image(path)


def read_again_and_again(path: Path) -> Any:
    for _ in range(1000):
        path.read_bytes()
    return good_image(path)


def inflate(path: Path) -> Any:
    import zlib

    zlib.decompress(b"")
    return good_image(path)


def good_image(path: Path) -> StoredImage:
    found = read_image(path, modalities=("CT",), limits=LIMITS)
    assert isinstance(found, StoredImage)
    return found


def altered(**changes: Callable[[StoredImage], Any]) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        found = good_image(path)
        return replace(found, **{name: change(found) for name, change in changes.items()})

    return read


WEAK_READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an exception": (raise_it, "it raises KeyError"),
    "no end": (never_end, "processor time"),
    "a gigabyte that is asked for": (reserve_memory, "of Python's memory"),
    "a hundred megabytes that are used": (hold_memory, "memory"),
    "the file a thousand times": (read_again_and_again, "it reads"),
    "an inflated data set": (inflate, "it inflates a data set"),
    "a warning that quotes a name": (warn, "it says"),
    "a log line": (log, "it says"),
    "nothing at all": (lambda _: None, "it gives a NoneType"),
    "the storage blamed": (refuse(Refusal.READ_ERROR), "it blames the storage"),
    "pixels that are no number": (altered(image=lambda one: one.image * np.float32(np.nan)), "not finite"),
    "another type": (altered(image=lambda one: one.image.astype(np.float64)), "the image is float64"),
    "another shape": (altered(image=lambda one: one.image[:-1]), "not what the stored ones mean"),
    "other values": (altered(image=lambda one: one.image + np.float32(1)), "not what the stored ones mean"),
    "another digest": (altered(content=lambda _: bytes(32)), "other stored values"),
    "an identifier that no text can be": (
        altered(identifiers=lambda one: replace(one.identifiers, patient_id="\ud800")),
        "PatientID is not one text",
    ),
}


@pytest.mark.parametrize("case", WEAK_READERS)
def test_a_reader_that_breaks_a_promise_is_found(case: str, source: Source, tmp_path: Path) -> None:
    read, sentence = WEAK_READERS[case]
    whole = Case(0, "CT", (), source.written[0].files, "image")
    assert judged(whole, tmp_path).broken == []
    verdict = judged(whole, tmp_path, Readers(image=read), seconds=1.0)
    assert any(sentence in one for one in verdict.broken), verdict.broken


def change_volume(**changes: Callable[[Volume], Any]) -> Callable[..., Any]:
    def make_it(grid: Any, files: Sequence[Path]) -> Any:
        found = assemble(grid, files, limits=VOLUME_LIMITS)
        assert isinstance(found, Volume)
        return replace(found, **{name: change(found) for name, change in changes.items()})

    return make_it


WEAK_VOLUMES: dict[str, tuple[Callable[..., Any], str]] = {
    "slices in another order": (change_volume(image=lambda one: one.image[::-1]), "other values than pydicom"),
    "the volume upside down": (change_volume(affine=lambda one: one.affine * [[-1], [1], [1], [1]]), "lies elsewhere"),
    "an affine of zeros": (change_volume(affine=lambda one: one.affine * 0), "LinAlgError"),
    "a spacing of nothing": (change_volume(spacing_mm=lambda _: (0.0, 1.0, 1.0)), "the spacing is"),
    "a slice less": (change_volume(image=lambda one: one.image[1:]), "the volume is"),
    "another digest": (change_volume(content=lambda _: bytes(32)), "its digest is another one's"),
    "nothing": (lambda _grid, _files: None, "it gives a NoneType"),
}


@pytest.mark.parametrize("case", WEAK_VOLUMES)
def test_a_volume_that_breaks_a_promise_is_found(case: str, source: Source, tmp_path: Path) -> None:
    make_it, sentence = WEAK_VOLUMES[case]
    whole = Case(0, "CT series", (), source.series[0].files, "series")
    assert judged(whole, tmp_path).ends == ["volume"]
    verdict = judged(whole, tmp_path, Readers(assemble=make_it))
    assert any(sentence in one for one in verdict.broken), verdict.broken


def test_a_file_that_a_survey_loses_is_found(source: Source, tmp_path: Path) -> None:
    whole = Case(0, "CT series", (), source.series[0].files, "series")
    forgetful = Readers(survey=lambda files: Readers().survey(files[1:]))
    assert "a file ends nowhere" in judged(whole, tmp_path, forgetful).broken


WEAK_NIFTIS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a plane less wide": (lambda path: ((shape, values[:, 1:]) for shape, values in read_nifti(path)), "a plane is"),
    "halves": (lambda path: ((shape, values / 2) for shape, values in read_nifti(path)), "no whole numbers"),
    "all of it in memory": (
        lambda _path: [((1, 1), np.zeros(60 * MiB, np.uint8)[:1].reshape(1, 1))],
        "it takes 60 MiB",
    ),
    "the storage": (lambda _path: [Refused(Refusal.READ_ERROR)], "it blames the storage"),
}


@pytest.mark.parametrize("case", WEAK_NIFTIS)
def test_a_mask_that_breaks_a_promise_is_found(case: str, source: Source, tmp_path: Path) -> None:
    read, sentence = WEAK_NIFTIS[case]
    for seed in source.niftis:
        assert judged(Case(0, seed.name, (), seed.files, "nifti"), tmp_path).ends == ["plane"] * 6
    verdict = judged(Case(0, "NIfTI", (), source.niftis[0].files, "nifti"), tmp_path, Readers(nifti=read))
    assert any(sentence in one for one in verdict.broken), verdict.broken


# --- the machinery -----------------------------------------------------------------------------------------
def test_a_case_is_the_same_every_time(source: Source) -> None:
    assert [make(7, number, source) for number in range(60)] == [make(7, number, source) for number in range(60)]
    assert make(7, 0, source) != make(8, 0, source)


def test_the_elements_of_a_whole_file_cover_it(source: Source) -> None:
    for seed in (*source.written, *source.series):
        for data in seed.files:
            found = elements_of(data)
            assert found[0].at == (132 if data[128:132] == b"DICM" else 0)
            assert all(one.end == other.at for one, other in pairwise(found)), seed.name
            assert found[-1].end == len(data) or "deflated" in seed.name


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_kind_of_damage_changes_some_seed_and_takes_any_bytes(name: str, source: Source) -> None:
    seeds = [seed.files[0] for seed in source.written]
    changed = [MUTATIONS[name](random.Random(number), data) != data for number in range(4) for data in seeds]  # noqa: S311
    assert any(changed)
    for data in (b"", b"\0", bytes(200), b"\xff" * 300, seeds[0][:200], seeds[0][:-3]):
        for number in range(8):
            MUTATIONS[name](random.Random(number), data)  # noqa: S311 - reproducible damage, no secret


CHILD = """
import json, os, sys, time
first, last, step = (int(one) for one in sys.argv[2:5])
for number in range(first, last, step):
    print(json.dumps({"begun": number, "seed": "CT", "done": []}), flush=True)
    if number == 3:
        %s
    print(json.dumps({"ended": number, "ends": ["used"], "broken": [], "confirmed": 1, "unconfirmed": 0, "peak": 0,
                      "grown": 0}), flush=True)
"""
DEATHS = {
    "it dies of a signal": ("os.kill(os.getpid(), 11)", "status -11"),
    "it is stopped by an exception": ("raise ValueError('what happened')", "what happened"),
    "it hangs": ("time.sleep(600)", "it hangs"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_a_child_that_does_not_come_back_is_told_and_the_others_go_on(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, sentence = DEATHS[case]
    monkeypatch.setattr(campaign, "SILENCE_SECONDS", 3.0)
    found = run(1, range(8), None, jobs=2, command=(sys.executable, "-c", CHILD % what))
    assert (found.cases, found.ends["used"]) == (8, 7)
    assert [one.number for one in found.broken] == [3]
    assert sentence in str(found.broken[0])
    assert "case 3, CT" in told(found)


def test_a_child_that_cannot_start_is_no_success() -> None:
    with pytest.raises(RuntimeError, match="could not be run: no"):
        run(1, range(3), None, command=(sys.executable, "-c", "raise SystemExit('no')"))


def test_the_command_says_what_it_found_and_reads_one_case_again(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "infra.fuzz", "--data", str(tmp_path / "none"), "--jobs", "1"]
    done = subprocess.run([*arguments, "--cases", "4"], capture_output=True, text=True, check=True)
    assert "4 cases in" in done.stdout
    again = [*arguments, "--only", "2", "--keep", str(tmp_path)]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert "ends as" in done.stdout
    assert (tmp_path / "2-00.dcm").read_bytes() == make(1, 2, load(None)).files[0]


def test_a_broken_promise_is_its_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = (sys.executable, "-c", CHILD % "raise ValueError")
    monkeypatch.setattr("infra.fuzz.__main__.run", lambda *one, **two: run(*one, **two, command=command))
    assert main(["--cases", "5", "--jobs", "1", "--data", str(tmp_path / "none"), "--keep", str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["3-00.dcm"]
