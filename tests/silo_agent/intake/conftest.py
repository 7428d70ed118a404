"""Hand-made archives: what the tests of the intake share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from infra.hospitals.writing import Identity, LabelRow, write_image, write_labels
from silo_agent.intake.archive import Item
from silo_agent.intake.readers import Readers

KEY = bytes(range(32))
REAL_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs the shared medical data at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def make_plan() -> Callable[..., StudyPlan]:
    hospitals = [{"silo": f"hospital-{i}", "signing_key": SigningIdentity.generate().public.text} for i in range(3)]

    def make(
        *, modalities: tuple[str, ...] = ("CT",), labels: dict[str, Any] | None = None, **dataset: Any
    ) -> StudyPlan:
        purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
        return parse_plan(
            {
                "version": 1,
                "name": "ct-contrast",
                "revision": 1,
                "purpose": {**purpose, "expires": "2030-01-01"},
                "hospitals": hospitals,
                "model": {"name": "densenet-small", "version": 1},
                "preprocessing": {"size": [16, 24], "intensity": "window", "low": -200, "high": 300},
                "labels": {"classes": ["0", "1"], **(labels or {})},
                "dataset": {"name": "chest-ct", "modalities": list(modalities), **dataset},
                "training": {"rounds": 2},
            }
        )

    return make


@pytest.fixture
def write_one(tmp_path: Path) -> Callable[..., Path]:
    """Write one 12 x 10 image whose attributes the test may override; CT in HU unless it says otherwise."""

    def write(name: str = "image.dcm", **options: Any) -> Path:
        pixels = options.pop("pixels", None)
        if pixels is None:
            pixels = np.arange(120, dtype=np.int16).reshape(12, 10)
        path = tmp_path / name
        options.setdefault("identity", Identity("st-olavs", "P1"))
        options.setdefault("modality", "CT")
        write_image(path, pixels, **options)
        return path

    return write


@pytest.fixture
def make_archive(tmp_path: Path) -> Callable[..., Path]:
    """Write a hospital: per patient the labels of its images; every image has pixels of its own."""

    def make(patients: dict[str, str]) -> Path:
        folder = tmp_path / "hospital"
        rows = []
        for index, (patient, labels) in enumerate(patients.items()):
            for image, label in enumerate(labels, start=1):
                who = Identity("st-olavs", patient, image=image)
                pixels = np.full((12, 10), 100 * index + image, dtype=np.int16)
                write_image(folder / "dicom" / patient / f"{image}.dcm", pixels, identity=who, modality="CT")
                rows.append(LabelRow(who, label))
        folder.mkdir(exist_ok=True)
        write_labels(folder / "labels.csv", "contrast", rows)
        return folder

    return make


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were read, in order; to be cleared by the test."""
    names: list[str] = []
    submit = Readers.submit

    def noted(self: Readers, item: Item, errand: Any) -> Any:
        names.append(item.name)
        return submit(self, item, errand)

    monkeypatch.setattr(Readers, "submit", noted)
    return names
