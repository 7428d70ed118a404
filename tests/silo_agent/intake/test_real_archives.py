"""Real files, read from ../shared/data; skipped where it is not there."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from boundary.plan import StudyPlan
from silo_agent.intake.cache import load_cache
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource

ALL = ("CT", "CR", "DX", "US", "MR")
SITES = {
    "site-17": (33, {"DUPLICATE": 3, "DUPLICATE_PIXELS": 1}),
    "site-34": (4, {}),
    "site-50": (12, {}),
    "site-60": (5, {"LOSSY_NOT_ALLOWED": 1}),
    "site-92": (6, {}),
}


@pytest.mark.parametrize("site", SITES)
def test_a_ct_site_is_read_whole(
    site: str, real_data: Path, make_plan: Callable[..., StudyPlan], tmp_path: Path, key: bytes
) -> None:
    folder = real_data / "ct-contrast" / site
    source = FolderSource(folder, folder / "labels.csv")
    report = scan(source, make_plan(), key, tmp_path / "cache", lambda _done, _total: None)
    arrays, _ = load_cache(tmp_path / "cache")
    assert (report.used, report.refused) == SITES[site]
    assert report.problems == ()
    assert set(arrays.patients[arrays.holdout]).isdisjoint(arrays.patients[~arrays.holdout])
    assert 0.05 < arrays.images.mean() < 0.7


FOLDERS = {
    "dirty-headers": {
        "NOT_AN_IMAGE": 11,
        "DERIVED_SECONDARY": 4,
        "TRUNCATED": 2,
        "BURNED_IN": 2,
        "NOT_DICOM": 2,
        "LOSSY_NOT_ALLOWED": 1,
        "TRANSFER_SYNTAX": 1,
        "used": 1,
    },
    "phi-burned-in": {"DERIVED_SECONDARY": 3, "BURNED_IN": 1, "NOT_DICOM": 1},
    "mr-t1-series": {"DERIVED_SECONDARY": 64, "NOT_DICOM": 1},
    "seg-rt-sr": {
        "NOT_AN_IMAGE": 29,
        "NOT_DICOM": 24,
        "used": 14,
        "MODALITY_MISMATCH": 8,
        "MULTI_FRAME": 2,
        "DERIVED_SECONDARY": 1,
    },
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_difficult_folder_ends_somewhere(folder: Path, real_data: Path) -> None:
    files = [path for path in sorted((real_data / folder).rglob("*")) if path.is_file()]
    found = [read_image(path, modalities=ALL) for path in files]
    assert Counter(one.code.value if isinstance(one, Refused) else "used" for one in found) == FOLDERS[folder]
