"""The hospitals' archives as the demo finds them, and the study plan that suits them."""

import csv
import json
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from flows.demo.processes import DemoFailed

_UID_COLUMNS = {"SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "AccessionNumber"}
_TAGS = ["Modality", "Rows", "Columns", "PatientID"]
DATASET = "demo-images"
EPSILON = 8.0
ENOUGH_PATIENTS = 100  # in every hospital; with fewer, the noise of epsilon 8 leaves nothing to learn


@dataclass(frozen=True, slots=True)
class Site:
    """One hospital's folder."""

    silo: str
    dicom: Path
    labels: Path  # a table, or the folder that has the masks


def find_sites(archive: Path, *, segmentation: bool = False) -> list[Site]:
    """Read `DIR/<hospital>/dicom/**` with `DIR/<hospital>/labels.csv`; raises `DemoFailed` naming what is missing.

    For segmentation the masks are DICOM SEG objects among the images, or lie in `DIR/<hospital>/masks`.
    """
    if not archive.is_dir():
        raise DemoFailed(f"{archive} is not a folder: give DIR with DIR/<hospital>/dicom/** and labels.csv")
    sites = []
    for folder in sorted(path for path in archive.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        dicom, masks = folder / "dicom", folder / "masks"
        labels = (masks if masks.is_dir() else dicom) if segmentation else folder / "labels.csv"
        site = Site(folder.name.lower().replace("_", "-"), dicom, labels)
        if not site.dicom.is_dir() or not any(path.is_file() for path in site.dicom.rglob("*")):
            raise DemoFailed(f"{site.dicom} holds no files: put the DICOM files of {folder.name} there")
        if not segmentation and not site.labels.is_file():
            raise DemoFailed(f"{site.labels} is missing: a CSV with SOPInstanceUID and one label column")
        sites.append(site)
    if len(sites) < 3:
        raise DemoFailed(f"{archive} has {len(sites)} hospitals: at least three are needed for a sum")
    return sites


@dataclass(frozen=True, slots=True)
class Look:
    """What the archives hold: their modalities, the largest side in pixels, and patients by hospital."""

    modalities: frozenset[str]
    side: int
    patients: dict[str, int]

    def declared(self, silo: str) -> int:
        """What the demo declares as a hospital's most patients: the count, rounded up. A hospital must not count."""
        return math.ceil(self.patients[silo] / 20) * 20

    def epsilon(self, wanted: float | None) -> float:
        """The demo's epsilon: as wanted, else `EPSILON` where every hospital has the patients for it; 0 for none."""
        if wanted is not None:
            return wanted
        return EPSILON if min(self.patients.values()) >= ENOUGH_PATIENTS else 0.0


def compose_plan(sites: list[Site], rounds: int, look: Look, epsilon: float) -> str:
    """Write a study.toml for these archives: modality, size and classes as found in them. 0 is no guarantee."""
    modalities, side, classes = look.modalities, look.side, _classes(sites)
    if modalities == {"CT"}:
        intensity = 'intensity = "window"\nlow = -150.0\nhigh = 350.0   # HU: soft tissue and contrast-filled blood'
    else:
        intensity = 'intensity = "percentiles"\nlow = 1.0\nhigh = 99.0'
    size = 32 if side <= 32 else 64
    return f"""\
{_head(sites, f"tell {' from '.join(classes)}")}
[model]
name = "{"cnn-small" if epsilon else "densenet-small"}"
version = 1
initial_seed = 7

[preprocessing]
size = [{size}, {size}]
{intensity}

[labels]
classes = {json.dumps(classes)}

[dataset]
name = "{DATASET}"
modalities = {json.dumps(sorted(modalities))}
max_images_per_patient = 8
holdout_share = 0.25

[training]
rounds = {rounds}
{_private(look, epsilon) if epsilon else _plain(2 if side > 32 else 1, batch=16)}
{_FOOT}"""


def compose_segmentation(sites: list[Site], rounds: int) -> str:
    """Write a study.toml for archives of CT series with masks: segments as found in them; without a guarantee."""
    classes = ["background", *_segments(sites)]
    return f"""\
{_head(sites, f"outline {' and '.join(classes[1:])}", task="segmentation")}
[model]
name = "unet-small-3d"
version = 1
initial_seed = 7

[preprocessing]
size = [16, 64, 64]        # voxels: slices, rows, columns
spacing = [4.0, 5.0, 5.0]  # mm; every series is resampled to it, and cut or padded around its centre
intensity = "window"
low = -100.0
high = 250.0

[labels]
classes = {json.dumps(classes)}

[dataset]
name = "{DATASET}"
modalities = ["CT"]
holdout_share = 0.25

[dataset.series]
modality = "CT"
smallest_slices = 8

[training]
rounds = {rounds}
{_plain(12, batch=2, rate=0.005)}
{_FOOT}"""


_FOOT = """
[aggregation]
quorum = 3
ready_minutes = 30.0
lost_after_seconds = 30.0

[evidence]
disclose = ["budget", "intake", "withdrawals"]    # so that the report can show what each hospital's log says of it
"""


def _head(sites: list[Site], question: str, task: str = "classification") -> str:
    expires = date(date.today().year + 1, 12, 31).isoformat()  # noqa: DTZ011 - a calendar year
    return f"""\
version = 1
name = "demo"
revision = 1
task = "{task}"
hospitals = {json.dumps([site.silo for site in sites])}

[purpose]
title = {json.dumps(f"Wardround demo: {question}")}
statement = "Demonstration on data made or provided for it."
legal_basis = "none needed for synthetic or public data; a real study names its article here"
ethics_reference = "demo"
expires = {expires}
"""


def _plain(epochs: int, batch: int, rate: float = 0.001) -> str:
    return f"""\
local_epochs = {epochs}
batch_size = {batch}
optimizer = "adam"
learning_rate = {rate}

[privacy]
mechanism = "none\""""


def _private(look: Look, epsilon: float) -> str:
    """Many patients in few steps: noise is added once a step, and what it drowns is the mean over the patients."""
    smallest = min(look.declared(silo) for silo in look.patients)
    return f"""\
optimizer = "sgd"
learning_rate = 0.5
weighting = "equal"

[privacy]
mechanism = "patient-dp"
epsilon = {epsilon}             # for the whole study, in every hospital, at delta = 1 / (10 x its most patients)
clip = 1.0
patients_per_step = {min(128, smallest // 2)}
steps = 4                 # in a round
images_per_patient = 2"""


def look_at(sites: list[Site]) -> Look:
    """Read the headers of all files; raises `DemoFailed` if a hospital has no image."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    modalities, side, patients = set(), 0, {}
    for site in sites:
        seen = set()
        for path in sorted(site.dicom.rglob("*")):
            if not path.is_file():
                continue
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            except (InvalidDicomError, OSError):
                continue
            if header.get("Modality") in {"CT", "CR", "DX", "US", "MR"} and header.get("Rows"):
                modalities.add(str(header.Modality))
                side = max(side, int(header.Rows), int(header.Columns))
                seen.add(str(header.get("PatientID", "")))
        patients[site.silo] = len(seen)
        if not seen:
            raise DemoFailed(f"no DICOM image of CT, CR, DX, US or MR was found under {site.dicom}")
    return Look(frozenset(modalities), side, patients)


def _classes(sites: list[Site]) -> list[str]:
    """Every value of the one label column, in order."""
    found: set[str] = set()
    for site in sites:
        with site.labels.open(encoding="utf-8-sig", newline="") as source:
            reader = csv.DictReader(source)
            columns = [name for name in reader.fieldnames or [] if name not in _UID_COLUMNS]
            if len(columns) != 1:
                raise DemoFailed(f"{site.labels} has label columns {columns}: give a plan that names one (--plan)")
            found |= {row[columns[0]].strip() for row in reader if row[columns[0]]}
    if not 2 <= len(found) <= 100:
        raise DemoFailed(f"the label tables hold {len(found)} different labels: two to one hundred are needed")
    return sorted(found, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))


def _segments(sites: list[Site]) -> list[str]:
    """Every segment that a mask names."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    found: set[str] = set()
    for site in sites:
        for path in sorted(path for path in site.labels.rglob("*") if path.is_file()):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "SegmentSequence"])
            except (InvalidDicomError, OSError):
                continue
            if header.get("Modality") == "SEG":
                found |= {str(segment.get("SegmentLabel", "")) for segment in header.get("SegmentSequence", [])}
    if not found or "" in found:
        raise DemoFailed("no mask with named segments was found: DICOM SEG objects belong into dicom/ or masks/")
    return sorted(found)
