"""A folder looked at without a plan: what could be used, and why the rest could not, for people and for programs."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from infra.hospitals.volumes import write_series
from infra.hospitals.writing import Identity, write_image
from silo_agent.cli import app
from silo_agent.errors import ConfigError
from silo_agent.intake.errors import ArchiveMissing
from silo_agent.intake.reading import Means
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.survey import Survey, survey, survey_mixed, survey_volumes
from silo_agent.intake.volumes import process
from tests.silo_agent.intake.volumes.test_scan_volumes import STAND_IN

KEY = bytes(range(32))


def image(folder: Path, name: str, patient: str = "MRN-1", *, number: int = 1, value: int = 40, **more: object) -> Path:
    pixels = np.full((16, 16), value, dtype=np.int16)
    pixels[4:8, 4:8] += number
    path = folder / name
    write_image(path, pixels, identity=Identity("st-olavs", patient, image=number), modality="CT", **more)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    image(folder, "a/1.dcm", number=1)
    image(folder, "a/2.dcm", number=2)
    image(folder, "b/1.dcm", "MRN-2", number=3)
    shutil.copy(folder / "a" / "1.dcm", folder / "b" / "copy.dcm")
    (folder / "notes.txt").write_text("no image")
    whole = (folder / "a" / "2.dcm").read_bytes()
    (folder / "half.dcm").write_bytes(whole[: len(whole) - 100])
    return folder


def look(folder: Path) -> Survey:
    return survey(folder, KEY, lambda _step, _steps: None)


def test_every_file_is_used_or_refused_with_one_code(folder: Path) -> None:
    found = look(folder)
    assert (found.files, found.used, found.patients, found.modalities) == (6, 3, 2, {"CT": 3})
    assert found.refused == {"DUPLICATE": 1, "NOT_DICOM": 1, "TRUNCATED": 1}
    assert found.used + sum(found.refused.values()) == found.files == 6
    assert {name for name, _ in found.named} >= {"notes.txt", "half.dcm"}


def test_no_name_of_a_file_is_in_its_repr(folder: Path) -> None:
    assert "half.dcm" not in repr(look(folder))


def test_progress_ends_with_all_files(folder: Path) -> None:
    said: list[tuple[int, int]] = []
    survey(folder, KEY, lambda step, steps: said.append((step, steps)))
    assert said[0] == (0, 6)
    assert said[-1] == (6, 6)


def test_an_empty_folder_has_nothing_and_a_missing_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert look(tmp_path / "empty") == Survey(0, 0, 0, {}, {}, ())
    with pytest.raises(ArchiveMissing):
        look(tmp_path / "missing")


# --- the command ---------------------------------------------------------------------------------------
def test_a_program_is_told_two_members(folder: Path) -> None:
    done = CliRunner().invoke(app, ["scan", str(folder), "--images", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"used": 3, "refused": {"DUPLICATE": 1, "NOT_DICOM": 1, "TRUNCATED": 1}}


def test_people_are_told_what_each_code_means_and_where_the_files_are_listed(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "refused.csv"
    done = CliRunner().invoke(app, ["scan", str(folder), "--images", "--files", str(listed)])
    assert done.exit_code == 0, done.output
    assert "3 of 6 files could be used (3 CT), of 2 patients" in done.stdout
    assert "TRUNCATED" in done.stdout
    assert "send it from the archive again" in done.stdout
    assert "half.dcm" not in done.stdout
    assert listed.stat().st_mode & 0o777 == 0o600
    with listed.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"]: row["code"] for row in rows}["half.dcm"] == "TRUNCATED"


def test_nothing_is_ever_written_over(folder: Path, tmp_path: Path) -> None:
    """Found by review: `--files labels.csv` replaced the label table, and `--files a/1.dcm` an image."""
    labels = tmp_path / "labels.csv"
    labels.write_text("precious")
    before = (folder / "a" / "1.dcm").read_bytes()
    for where in (labels, folder / "a" / "1.dcm", folder / "new.csv", tmp_path / "missing" / "x.csv"):
        done = CliRunner().invoke(app, ["scan", str(folder), "--files", str(where)])
        assert isinstance(done.exception, ConfigError), where
    assert labels.read_text() == "precious"
    assert (folder / "a" / "1.dcm").read_bytes() == before
    assert not (folder / "new.csv").exists()


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["scan", str(tmp_path / "missing")])
    assert "is no folder" in str(done.exception)


# --- series as volumes ---------------------------------------------------------------------------------
@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A whole series, the same one again, one with a slice missing, a single slice, and a text."""
    folder = tmp_path / "series"
    stored = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 40
    for name, patient, pixels in (("whole", "P1", stored), ("again", "P2", stored), ("hole", "P3", stored + 7)):
        write_series(folder / name, pixels, identity=Identity("st-olavs", patient))
    sorted((folder / "hole").iterdir())[3].unlink()
    image(folder, "one.dcm", "P4")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_series_counts_once_and_every_refused_one_has_a_code(series: Path) -> None:
    found = survey_volumes(series, KEY, lambda _step, _steps: None)
    assert (found.used, found.modalities, found.patients) == (1, {"CT": 1}, 1)
    assert found.refused == {"DUPLICATE_PIXELS": 1, "NOT_DICOM": 1, "SINGLE_SLICE": 1, "SPACING_NONUNIFORM": 1}
    assert {code for name, code in found.named if name.startswith("hole/")} == {Refusal.SPACING_NONUNIFORM}
    assert len([name for name, _ in found.named if name.startswith("hole/")]) == 5


def test_a_file_that_hangs_costs_that_file(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(process.VolumeProcess, "module", "stand_in")
    sorted((series / "again").iterdir())[2].rename(series / "again" / "hangs.dcm")
    told: list[tuple[int, int]] = []
    found = survey_volumes(series, KEY, lambda *progress: told.append(progress), means=Means(patience=3.0))
    assert found.used == 1
    assert {"READ_TIMEOUT": 1, "SPACING_NONUNIFORM": 2}.items() <= found.refused.items()
    assert ("again/hangs.dcm", Refusal.READ_TIMEOUT) in found.named
    assert told == sorted(told)
    assert told[-1] == (38, 38)


def test_the_command_counts_series(series: Path) -> None:
    done = CliRunner().invoke(app, ["scan", str(series), "--volumes", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["used"] == 1
    said = CliRunner().invoke(app, ["scan", str(series), "--volumes"])
    assert "1 volumes in 19 files could be used (1 CT), of 1 patients" in said.stdout


# --- images and series in one folder ----------------------------------------------------------------------
@pytest.fixture
def mixed(series: Path) -> Path:
    """The series, and images that stand alone: a slice, its copy, its pixels again, a radiograph, a slice cut off."""
    image(series, "alone/1.dcm", "P5", number=5)
    shutil.copy(series / "alone" / "1.dcm", series / "alone" / "copy.dcm")
    image(series, "alone/2.dcm", "P6", number=5)
    identity, pixels = Identity("st-olavs", "P7"), np.arange(256, dtype=np.uint16).reshape(16, 16)
    write_image(series / "chest.dcm", pixels, identity=identity, modality="CR")
    image(series, "cut.dcm", "P8", number=8)
    os.truncate(series / "cut.dcm", (series / "cut.dcm").stat().st_size - 2)
    return series


def test_by_itself_a_scan_counts_series_and_what_stands_alone(mixed: Path) -> None:
    """Found by acceptance: counted by file, a series with a slice missing was five images that could be used."""
    done = CliRunner().invoke(app, ["scan", str(mixed), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {
        "used": 4,  # the whole series, one.dcm, the slice alone, the radiograph
        "refused": {
            "DUPLICATE": 1, "DUPLICATE_PIXELS": 2, "NOT_DICOM": 1, "SPACING_NONUNIFORM": 1, "TRUNCATED": 1
        },
    }  # fmt: skip


def test_a_slice_left_over_from_a_series_does_not_stand_alone(series: Path) -> None:
    odd = max((series / "whole").iterdir())
    ds = pydicom.dcmread(odd)
    ds.PixelSpacing = ["2", "2"]
    ds.save_as(odd)
    shutil.rmtree(series / "again")
    found = survey_mixed(series, KEY, lambda _step, _steps: None)
    assert found.refused == {"NOT_DICOM": 1, "SINGLE_SLICE": 1, "SPACING_NONUNIFORM": 1}
    assert (found.used, found.patients) == (2, 2)  # the other five slices, and one.dcm


def test_two_images_of_one_uid_that_differ_are_both_refused(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    image(folder, "1.dcm")
    image(folder, "2.dcm", value=70)
    found = survey_mixed(folder, KEY, lambda _step, _steps: None)
    assert (found.used, found.refused) == (0, {"UID_CONFLICT": 2})
