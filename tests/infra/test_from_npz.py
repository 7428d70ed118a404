import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from infra.hospitals.from_npz import app, invent_patients, load_images, share_out

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL = {
    "pneumonia-cxr-28/pneumoniamnist_dev.npz": ("CR", "pneumonia"),
    "breast-us-28/breastmnist_dev.npz": ("US", "benign"),
}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(60, 8, 6)).astype(np.uint8)
    path = tmp_path / "some.npz"
    np.savez(path, images=images, labels=(np.arange(60) % 3 == 0).astype(np.uint8)[:, None])
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_image_goes_to_one_hospital_with_its_label(npz: Path, tmp_path: Path) -> None:
    result = call(npz, tmp_path / "out", "--hospitals", 4, "--label-name", "ill", "--seed", 1)
    assert result.exit_code == 0, result.output
    folders = sorted((tmp_path / "out").iterdir())
    assert len(folders) == 4
    images, labels = load_images(npz, [])
    label_of = {image.tobytes(): str(label) for image, label in zip(images, labels, strict=True)}
    met = []
    for folder in folders:
        given_labels = {row["SOPInstanceUID"]: row["ill"] for row in rows(folder)}
        for path in folder.rglob("*.dcm"):
            ds = pydicom.dcmread(path)
            met.append(ds.pixel_array.astype(np.uint8).tobytes())
            assert given_labels[ds.SOPInstanceUID] == label_of[met[-1]]
    assert sorted(met) == sorted(label_of)


def test_patients_can_be_held_back_from_every_hospital(npz: Path, tmp_path: Path) -> None:
    result = call(npz, tmp_path / "out", "--names", "a,b", "--hospitals", 2, "--hold-back", 0.3)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "held-back"]
    assert 5 < len(rows(tmp_path / "out" / "held-back")) < 35


MISTAKES = {
    "not the arrays": (["--splits", "train"], {"x": np.zeros(3)}, "has no train_images"),
    "colour": ([], {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.zeros(2, int)}, "N,H,W"),
    "names for another number": (["--names", "a,b"], None, "3 different names"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_explained(case: str, npz: Path, tmp_path: Path) -> None:
    options, arrays, sentence = MISTAKES[case]
    if arrays is not None:
        np.savez(npz, **arrays)
    result = call(npz, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.replace("│", " ").split())


def test_a_folder_that_is_not_empty_is_left_alone(npz: Path, tmp_path: Path) -> None:
    result = call(npz, tmp_path)
    assert result.exit_code == 2
    assert "not empty" in result.output


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 6), st.integers(0, 9))
def test_patients_share_a_label_and_are_dealt_once(labels: list[int], hospitals: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patients = invent_patients(np.array(labels, dtype=np.int64), rng)
    assert sorted(row for patient in patients for row in patient.images) == list(range(len(labels)))
    assert all(labels[row] == patient.label for patient in patients for row in patient.images)
    assert all(1 <= len(patient.images) <= 4 for patient in patients)
    dealt = share_out(patients, hospitals, rng)
    assert len(dealt) == hospitals
    assert sorted(patient.images for here in dealt for patient in here) == sorted(one.images for one in patients)


@pytest.mark.parametrize("name", REAL)
def test_a_real_archive(name: str, tmp_path: Path) -> None:
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the shared medical data at {REAL_DATA}")
    modality, label = REAL[name]
    options = ["--modality", modality, "--label-name", label, "--limit", 40]
    result = call(REAL_DATA / name, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert sum(len(rows(folder)) for folder in (tmp_path / "out").iterdir()) == 40
