import csv
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from infra.hospitals.phantoms import SCANNERS, chest, make_phantom_hospitals
from infra.hospitals.writing import Identity, uid, write_image


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_phantom_hospitals(tmp_path_factory.mktemp("phantoms"), hospitals=3, images_per_hospital=(30, 20, 25))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> list[pydicom.FileDataset]:
    return [pydicom.dcmread(path) for path in sorted((folder / "dicom").rglob("*.dcm"))]


def test_each_hospital_has_its_images_and_labels(hospitals: list[Path]) -> None:
    assert [len(table(folder)) for folder in hospitals] == [30, 20, 25]
    for folder in hospitals:
        found = images(folder)
        assert {ds.SOPInstanceUID for ds in found} == {row["SOPInstanceUID"] for row in table(folder)}
        assert {row["contrast"] for row in table(folder)} == {"0", "1"}
        assert len({ds.Manufacturer for ds in found}) == 1


def test_patients_have_one_to_four_images_and_belong_to_one_hospital(hospitals: list[Path]) -> None:
    patients = [[ds.PatientID for ds in images(folder)] for folder in hospitals]
    assert all(1 <= here.count(one) <= 4 for here in patients for one in here)
    assert len(set().union(*patients)) == sum(len(set(here)) for here in patients)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    once, again, other = (
        make_phantom_hospitals(tmp_path / name, 1, 4, seed=seed)[0] for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    read = [[path.read_bytes() for path in sorted(folder.rglob("*.dcm"))] for folder in (once, again, other)]
    assert read[0] == read[1] != read[2]


def test_contrast_agent_is_brighter_but_not_always_plain() -> None:
    rng = np.random.default_rng(3)
    middle = slice(50, 78)
    means = {
        enhanced: [chest(SCANNERS[0], enhanced=enhanced, rng=rng)[middle, middle].mean() for _ in range(40)]
        for enhanced in (False, True)
    }
    assert np.mean(means[True]) > np.mean(means[False]) + 20
    assert min(means[True]) < max(means[False])


@pytest.mark.parametrize("arguments", [(0, 4), (9, 4), (2, (4,))])
def test_sizes_that_make_no_sense_are_refused(arguments: tuple[Any, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hospitals"):
        make_phantom_hospitals(tmp_path, *arguments)


def test_a_uid_is_valid_and_depends_on_every_part() -> None:
    assert pydicom.uid.UID(uid("a", 1)).is_valid
    assert len({uid("a", 1), uid("a", 2), uid("a1"), uid("b", 1)}) == 4


@pytest.mark.parametrize("modality", ["CT", "CR", "US"])
def test_what_is_written_reads_back(modality: Any, tmp_path: Path) -> None:
    pixels = np.arange(15, dtype=np.uint8).reshape(5, 3)
    write_image(tmp_path / "one.dcm", pixels, identity=Identity("st-olavs", "P1"), modality=modality)
    ds = pydicom.dcmread(tmp_path / "one.dcm")
    assert (ds.pixel_array == pixels).all()
    assert ds.Modality == modality
    assert ds.BurnedInAnnotation == "NO"


def test_colour_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uint8, uint16 or int16"):
        write_image(tmp_path / "x.dcm", np.zeros((4, 4, 3), np.uint8), identity=Identity("h", "P"), modality="CR")
