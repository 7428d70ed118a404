"""Synthetic CT archives for demos and tests: a chest per image, with or without contrast agent.

The question a model learns is whether the blood in heart and vessels is brighter than muscle. It is learnable
by a small network within a few rounds and is no giveaway: enhancement starts weak, haematocrit varies, and
bone, calcium and a catheter are bright in both classes. Hospitals differ as real ones do: vendor, matrix,
field of view, noise, calibration and the share of enhanced scans.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infra.hospitals.writing import Identity, LabelRow, write_image, write_labels

LABEL_COLUMN = "contrast"
AIR, LUNG, FAT, MUSCLE, BONE = -1000.0, -850.0, -100.0, 50.0, 500.0  # HU, textbook values
MAX_HOSPITALS = 8
MAX_IMAGES_PER_PATIENT = 4
_INTERCEPT = -1024.0  # what most scanners store HU with

Image = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scanner:
    """How one hospital's images differ from another's."""

    hospital: str
    manufacturer: str
    matrix: int  # pixels per side
    field_of_view_mm: float
    noise_hu: float  # standard deviation
    offset_hu: float  # calibration error
    enhanced_share: float


SCANNERS = (
    Scanner("north-general", "SIEMENS", 128, 380, 14, 0, 0.50),
    Scanner("harbour-clinic", "GE MEDICAL SYSTEMS", 160, 420, 22, 4, 0.30),
    Scanner("hill-university", "Philips", 128, 350, 18, -5, 0.65),
    Scanner("lake-infirmary", "Canon", 128, 400, 26, 3, 0.45),
    Scanner("west-childrens", "SIEMENS", 160, 330, 16, -2, 0.40),
    Scanner("old-town", "GE MEDICAL SYSTEMS", 128, 440, 20, 6, 0.60),
    Scanner("river-valley", "Philips", 160, 390, 24, -4, 0.35),
    Scanner("south-memorial", "Canon", 128, 370, 15, 2, 0.55),
)


def make_phantom_hospitals(
    folder: Path, hospitals: int = 3, images_per_hospital: int | tuple[int, ...] = 120, seed: int = 7
) -> list[Path]:
    """Write `<folder>/<hospital>/dicom/**` and `labels.csv` for each hospital; return the hospitals' folders.

    The first hospitals of `SCANNERS` are made, the same bytes for the same arguments. `images_per_hospital`
    may give one number each. Raises `ValueError` for more hospitals than there are scanners.
    """
    if not 1 <= hospitals <= MAX_HOSPITALS:
        raise ValueError(f"hospitals: 1 to {MAX_HOSPITALS}")
    sizes = (images_per_hospital,) * hospitals if isinstance(images_per_hospital, int) else images_per_hospital
    if len(sizes) != hospitals:
        raise ValueError(f"{len(sizes)} sizes for {hospitals} hospitals")
    made = []
    for index, (scanner, size) in enumerate(zip(SCANNERS, sizes, strict=False)):
        made.append(folder / scanner.hospital)
        _write_hospital(made[-1], scanner, size, np.random.default_rng([seed, index]))
    return made


def _write_hospital(folder: Path, scanner: Scanner, size: int, rng: np.random.Generator) -> None:
    rows = []
    for identity, enhanced in _examinations(scanner, size, rng):
        image = chest(scanner, enhanced=enhanced, rng=rng)
        stored = np.clip(np.rint(image - _INTERCEPT), 0, 4095).astype(np.uint16)
        write_image(
            folder / "dicom" / identity.patient / f"{identity.sop_uid[-12:]}.dcm",
            stored,
            identity=identity,
            modality="CT",
            rescale=(1.0, _INTERCEPT),
            spacing_mm=scanner.field_of_view_mm / scanner.matrix,
            bits_stored=12,
        )
        rows.append(LabelRow(identity, str(int(enhanced))))
    folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder / "labels.csv", LABEL_COLUMN, rows)


def _examinations(scanner: Scanner, size: int, rng: np.random.Generator) -> Iterator[tuple[Identity, bool]]:
    """Patients with 1 to 4 images; about one patient in four has scans of both kinds, in two studies."""
    left = size
    for number in count(1):
        if left == 0:
            return
        images = min(int(rng.integers(1, MAX_IMAGES_PER_PATIENT + 1)), left)
        left -= images
        enhanced, mixed = bool(rng.random() < scanner.enhanced_share), images > 1 and rng.random() < 1 / 3
        sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
        patient = f"{scanner.hospital[:2].upper()}{number:05d}"
        for image in range(1, images + 1):
            other = mixed and image == images
            study = 2 if other else 1
            identity = Identity(scanner.hospital, patient, study, image, scanner.manufacturer, sex)
            yield identity, enhanced != other


def chest(scanner: Scanner, *, enhanced: bool, rng: np.random.Generator) -> Image:
    """Draw one axial slice at the level of the heart: float32 [matrix, matrix] in HU, background -1000."""
    axis = (np.arange(scanner.matrix, dtype=np.float32) + 0.5) / scanner.matrix - 0.5
    x, y = np.meshgrid(axis * scanner.field_of_view_mm, axis * scanner.field_of_view_mm)  # mm
    wide, deep = rng.uniform(145, 175), rng.uniform(100, 120)
    turn, shift = rng.normal(0, 0.06), rng.normal(0, 5, size=2)
    x, y = x - shift[0], y - shift[1]
    x, y = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    blood = _blood(rng, enhanced=enhanced)
    image = np.full(x.shape, AIR, dtype=np.float32)
    image[_ellipse(x, y, 0, 0, wide, deep)] = FAT + rng.normal(0, 8)
    image[_ellipse(x, y, 0, 2, wide - rng.uniform(10, 30), deep - rng.uniform(8, 18))] = MUSCLE + rng.normal(0, 6)
    for side in (-1, 1):
        lung = _ellipse(x, y, side * wide * 0.44, -2, wide * rng.uniform(0.30, 0.36), deep * rng.uniform(0.62, 0.72))
        image[lung] = LUNG + rng.normal(0, 30)
        _vessels(image, x, y, side * wide * 0.44, blood, rng)
    image[_ellipse(x, y, rng.uniform(-8, 8), 0, 34, deep * 0.68)] = MUSCLE + rng.normal(0, 6)  # mediastinum
    heart = rng.uniform(8, 22), -rng.uniform(14, 26), rng.uniform(38, 50), rng.uniform(30, 40)
    image[_ellipse(x, y, *heart)] = blood - rng.uniform(0, 15)
    image[_ellipse(x, y, -rng.uniform(8, 14), deep * 0.34, *([rng.uniform(9, 14)] * 2))] = blood  # aorta
    _bones(image, x, y, wide, deep, rng)
    if rng.random() < 0.3:  # calcium or a catheter, in either class
        image[_ellipse(x, y, rng.uniform(-20, 40), rng.uniform(-35, 5), 3, 3)] = rng.uniform(200, 900)
    noise = rng.normal(0, scanner.noise_hu * rng.uniform(0.8, 1.3), size=x.shape)
    values: Image = (_smoothed(image) + scanner.offset_hu + noise).astype(np.float32)
    return values


def _blood(rng: np.random.Generator, *, enhanced: bool) -> float:
    """HU of blood: 30 to 60 without contrast, by haematocrit; more with it, from hardly to plainly."""
    plain = float(rng.normal(44, 6))
    return plain + float(rng.gamma(3.0, 32.0) + 12) if enhanced else plain


def _vessels(image: Image, x: Image, y: Image, centre: float, blood: float, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(3, 8))):
        radius = rng.uniform(2, 5)
        image[_ellipse(x, y, centre + rng.normal(0, 18), rng.normal(0, 25), radius, radius)] = blood


def _bones(image: Image, x: Image, y: Image, wide: float, deep: float, rng: np.random.Generator) -> None:
    image[_ellipse(x, y, 0, deep * 0.62, rng.uniform(15, 20), rng.uniform(13, 17))] = BONE * rng.uniform(0.35, 0.7)
    image[_ellipse(x, y, 0, -deep * 0.84, 14, 5)] = BONE * rng.uniform(0.4, 0.8)  # sternum
    for angle in rng.uniform(0, 2 * np.pi, size=10):
        at = wide * 0.86 * np.cos(angle), deep * 0.84 * np.sin(angle)
        image[_ellipse(x, y, *at, 6, 4)] = BONE * rng.uniform(0.5, 1.1)


def _ellipse(x: Image, y: Image, cx: float, cy: float, rx: float, ry: float) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return inside


def _smoothed(image: Image) -> Image:
    """Average each pixel with its four neighbours: edges as soft as a reconstruction kernel leaves them."""
    padded = np.pad(image, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return ((image * 2 + around) / 6).astype(np.float32)
