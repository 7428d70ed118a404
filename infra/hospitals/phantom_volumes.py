"""Synthetic CT volumes with masks for demos and tests: an abdomen per patient, and the lesions in its liver outlined.

The question a model learns is which voxels of the liver are brighter than it. It is learnable by a small network and is
no giveaway: bone and vessels are brighter still, noise is as strong as the difference, and every other patient has more
than one lesion. Hospitals differ as real ones do: vendor, field of view, distance of slices, noise, calibration.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.hospitals.phantoms import AIR, BONE, FAT, MAX_HOSPITALS, MUSCLE, SCANNERS, Scanner
from infra.hospitals.segmentations import write_segmentation
from infra.hospitals.volumes import Lie, write_series
from infra.hospitals.writing import Identity, uid

CLASSES = ("background", "lesion")  # the second is the Segment Label
MATRIX, SLICES, GAP_MM = 64, (10, 14), (3.0, 6.0)
LIVER, VESSEL = 60.0, 160.0  # HU, portal venous phase
_INTERCEPT = -1024.0
_MASK = 900  # number of the object among those of its study

Volume = NDArray[np.float32]


def make_volume_hospitals(folder: Path, hospitals: int = 3, patients: int = 12, seed: int = 7) -> list[Path]:
    """Write `<folder>/<hospital>/dicom/<patient>/**`, a CT series and its segmentation; return the hospitals' folders.

    The first hospitals of `SCANNERS` are made, each with so many patients, the same bytes for the same arguments.
    Raises `ValueError` for more hospitals than there are scanners.
    """
    if not 1 <= hospitals <= MAX_HOSPITALS:
        raise ValueError(f"hospitals: 1 to {MAX_HOSPITALS}")
    for index, scanner in enumerate(SCANNERS[:hospitals]):
        rng = np.random.default_rng([seed, index])
        for number in range(1, patients + 1):
            who = Identity(scanner.hospital, f"{scanner.hospital[:2].upper()}{number:05d}", 1, 1, scanner.manufacturer)
            _write_patient(folder / scanner.hospital / "dicom" / who.patient, who, scanner, rng)
    return [folder / scanner.hospital for scanner in SCANNERS[:hospitals]]


def _write_patient(folder: Path, who: Identity, scanner: Scanner, rng: np.random.Generator) -> None:
    side = scanner.field_of_view_mm / MATRIX
    origin = (-scanner.field_of_view_mm / 2, -scanner.field_of_view_mm / 2, float(np.round(rng.uniform(-300, 300), 1)))
    lie = Lie(origin=origin, spacing=(side, side), gap=float(np.round(rng.uniform(*GAP_MM), 2)))
    volume, mask = abdomen(int(rng.integers(SLICES[0], SLICES[1] + 1)), lie, scanner, rng)
    stored = np.clip(np.rint(volume - _INTERCEPT), 0, 4095).astype(np.uint16)
    write_series(folder, stored, identity=who, lie=lie, rescale=lambda _: (1.0, _INTERCEPT))
    of = uid(who.series_uid, 1)
    write_segmentation(
        folder / "mask.dcm", mask, {1: CLASSES[1]}, identity=replace(who, image=_MASK), series=of, lie=lie
    )


def abdomen(slices: int, lie: Lie, scanner: Scanner, rng: np.random.Generator) -> tuple[Volume, NDArray[np.uint8]]:
    """Draw one patient: float32 [slices, 64, 64] in HU, and uint8 of the same shape, 1 where there is a lesion."""
    places = _places(slices, lie)
    wide, deep = rng.uniform(0.36, 0.43) * scanner.field_of_view_mm, rng.uniform(0.27, 0.33) * scanner.field_of_view_mm
    volume = np.full(places[0].shape, AIR, dtype=np.float32)
    volume[_ellipsoid(places, (0, 0, 0), (1e6, deep, wide))] = FAT + rng.normal(0, 8)
    volume[_ellipsoid(places, (0, 2, 0), (1e6, deep * 0.88, wide * 0.9))] = MUSCLE + rng.normal(0, 6)
    volume[_ellipsoid(places, (0, deep * 0.55, 0), (1e6, 18, 20))] = BONE + rng.normal(0, 40)
    volume[_ellipsoid(places, (0, deep * 0.2, rng.uniform(8, 18)), (1e6, 9, 9))] = VESSEL + rng.normal(0, 10)
    centre = np.array((0.0, -deep * 0.1, -wide * 0.4))
    radii = np.array((slices * lie.gap * rng.uniform(0.55, 0.8), deep * 0.55, wide * 0.42))
    liver = _ellipsoid(places, centre, radii)
    volume[liver] = LIVER + rng.normal(0, 5)
    mask = np.zeros(volume.shape, dtype=np.uint8)
    for middle, size in _lesions(centre, radii, lie, rng):
        lesion = _ellipsoid(places, middle, size) & liver
        volume[lesion] = LIVER + rng.uniform(35, 70)
        mask[lesion] = 1
    volume += scanner.offset_hu + rng.normal(0, scanner.noise_hu, volume.shape).astype(np.float32)
    return volume, mask


def _lesions(
    centre: NDArray[np.float64], radii: NDArray[np.float64], lie: Lie, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Centres and radii of one to three, mm: inside the liver, and at least two slices and four pixels across."""
    smallest = np.array((1.2 * lie.gap, 2 * lie.spacing[0], 2 * lie.spacing[1]))
    for _ in range(1 + int(rng.integers(0, 2)) * int(rng.integers(1, 3))):
        yield centre + radii * rng.uniform(-0.45, 0.45, 3), smallest * rng.uniform((1, 1.5, 1.5), (2, 4, 4))


def _places(slices: int, lie: Lie) -> list[NDArray[np.float64]]:
    """Of every voxel, mm from the centre along depth, rows and columns."""
    shape, steps = (slices, MATRIX, MATRIX), (lie.gap, *lie.spacing)
    axes = [(np.arange(side) - (side - 1) / 2) * step for side, step in zip(shape, steps, strict=True)]
    return list(np.meshgrid(*axes, indexing="ij"))


def _ellipsoid(places: list[NDArray[np.float64]], centre: object, radii: object) -> NDArray[np.bool_]:
    middle, size = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    inside: NDArray[np.bool_] = sum(((place - middle[i]) / size[i]) ** 2 for i, place in enumerate(places)) <= 1
    return inside
