from pathlib import Path

import numpy as np
import pydicom
import pytest

from infra.hospitals.phantom_volumes import CLASSES, MATRIX, make_volume_hospitals
from silo_agent.intake.cache import load_cache
from silo_agent.intake.sources import FolderSource
from silo_agent.intake.volumes.scan import scan_volumes
from tests.silo_agent.intake.volumes.test_scan_volumes import plan_of

INPUTS = {"size": [16, 64, 64], "spacing": [5, 6, 6]}


def test_an_intake_takes_every_volume_with_its_mask(tmp_path: Path) -> None:
    (hospital,) = make_volume_hospitals(tmp_path, hospitals=1, patients=4)
    plan = plan_of(INPUTS, labels={"classes": list(CLASSES)})
    source = FolderSource(hospital / "dicom", hospital / "dicom", "seg")
    report = scan_volumes(source, plan, bytes(range(32)), tmp_path / "cache", lambda _done, _total: None)
    assert (report.used, report.refused, report.problems) == (4, {}, ())
    arrays, _ = load_cache(tmp_path / "cache")
    assert arrays.masks is not None
    shares = arrays.masks.mean(axis=(1, 2, 3))
    assert (shares > 0.0005).all()
    assert (shares < 0.1).all()
    lesion, other = arrays.images[:, 0][arrays.masks == 1], arrays.images[:, 0][arrays.masks == 0]
    assert lesion.mean() > np.quantile(other, 0.8)
    assert lesion.mean() < other.max()  # nor is it the brightest there is


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    made = (make_volume_hospitals(tmp_path / name, 2, 1, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    once, again, other = (
        {path.relative_to(folder.parent): path.read_bytes() for folder in folders for path in folder.rglob("*.dcm")}
        for folders in made
    )
    assert once == again
    assert once.keys() != other.keys() or once != other


def test_hospitals_differ_and_patients_are_their_own(tmp_path: Path) -> None:
    folders = make_volume_hospitals(tmp_path, hospitals=2, patients=2)
    patients, vendors = [], set()
    for folder in folders:
        for patient in sorted((folder / "dicom").iterdir()):
            slices = [pydicom.dcmread(path) for path in patient.glob("01-*.dcm")]
            patients += [{ds.PatientID for ds in slices}]
            vendors.add(slices[0].Manufacturer)
            assert 10 <= len(slices) <= 14
            assert {(ds.Rows, ds.Columns) for ds in slices} == {(MATRIX, MATRIX)}
    assert len(set.union(*patients)) == len(patients) == 4
    assert len(vendors) == 2
    with pytest.raises(ValueError, match="hospitals"):
        make_volume_hospitals(tmp_path, hospitals=9)
