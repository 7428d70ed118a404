"""NIfTI masks: written by ITK and by hand, turned back onto the volume's grid or refused."""

import gzip
import importlib.util
import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from infra.hospitals.volumes import SAGITTAL, Lie
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import NotUsable
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.reading import VolumeLimits
from tests.silo_agent.intake.masks.reading import Masks, grid_of

SHAPE = (3, 5, 7)
OBLIQUE = Lie((0.8, 0.6, 0.0, -0.36, 0.48, 0.8), gap=4.0)
MASK = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
TYPES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}


def nifti(values: NDArray[Any], affine: NDArray[np.float64], order: str = "<", **fields: Any) -> bytes:
    """[k,j,i] as one file; `affine` leads from (k, j, i, 1) to RAS. `fields`: offset in the header to (format, ...)."""
    header = bytearray(352)

    def put(at: int, kind: str, *what: Any) -> None:
        struct.pack_into(order + kind, header, at, *what)

    put(0, "i", 348)
    put(40, "8h", 3, *values.shape[::-1], 1, 1, 1, 1)
    put(70, "2h", TYPES[values.dtype.str[1:]], 8 * values.dtype.itemsize)
    put(76, "8f", 1, *np.linalg.norm(affine[:3, 2::-1], axis=0), 0, 0, 0, 0)
    put(108, "3f", 352, 1, 0)
    put(123, "b", 2)
    put(252, "2h", 0, 1)
    put(280, "12f", *affine[:3, [2, 1, 0, 3]].ravel())
    header[344:348] = b"n+1\0"
    for name, what in fields.items():
        put(int(name.removeprefix("at_")), *what)
    return bytes(header) + np.ascontiguousarray(values).astype(values.dtype.newbyteorder(order)).tobytes()


def read(path: Path, grid: Grid, classes: int = 3, limits: VolumeLimits | None = None) -> NDArray[np.uint8]:
    found = Masks([path], limits, are_nifti=True)
    if found.facts[0].code is not None:
        raise NotUsable(found.facts[0].code)
    return found.of(grid, tuple(map(str, range(classes))))


@pytest.mark.skipif(importlib.util.find_spec("SimpleITK") is None, reason="needs the oracle: pip install SimpleITK")
@pytest.mark.parametrize("end", ["nii", "nii.gz"])
@pytest.mark.parametrize("lie", [Lie(), Lie(SAGITTAL), OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_what_itk_writes_is_read_and_turned_back(lie: Lie, end: str, tmp_path: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(MASK)
    image.SetOrigin(lie.origin)
    image.SetSpacing((lie.spacing[1], lie.spacing[0], lie.gap))
    image.SetDirection(np.array([lie.cosines[:3], lie.cosines[3:], lie.normal]).T.ravel().tolist())
    path = tmp_path / f"mask.{end}"
    for order, turned in product(((0, 1, 2), (2, 0, 1), (1, 0, 2)), ((False,) * 3, (True, False, True))):
        other = SimpleITK.Flip(SimpleITK.PermuteAxes(image, order), turned)
        SimpleITK.WriteImage(other, str(path))
        assert_array_equal(read(path, grid_of(SHAPE, lie)), MASK)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 6)),
    axes=st.tuples(st.permutations(range(3)), st.tuples(st.booleans(), st.booleans(), st.booleans())),
    stored_as=st.tuples(
        st.sampled_from(["u1", "i2", "i4", "i1", "u2", "u4", "i8", "u8"]),
        st.sampled_from(["<", ">"]),
    ),
    lie=st.sampled_from([Lie(), Lie(SAGITTAL), OBLIQUE]),
    seed=st.integers(0, 999),
)
def test_axes_in_any_order_and_direction_lead_back(
    tmp_path: Path,
    shape: tuple[int, int, int],
    axes: tuple[list[int], tuple[bool, bool, bool]],
    stored_as: tuple[str, str],
    lie: Lie,
    seed: int,
) -> None:
    (order, turned), (kind, endian) = axes, stored_as
    grid, mask = grid_of(shape, lie), np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    back = np.zeros((4, 4))
    back[3, 3] = 1
    for ours, (theirs, is_turned) in enumerate(zip(order, turned, strict=True)):
        back[theirs, ours] = -1 if is_turned else 1
        back[theirs, 3] = shape[theirs] - 1 if is_turned else 0
    stored = np.flip(mask, [axis for axis, is_turned in zip(order, turned, strict=True) if is_turned]).transpose(order)
    path = tmp_path / "mask.nii"
    path.write_bytes(nifti(stored.astype(kind), grid.affine @ back, endian))
    assert_array_equal(read(path, grid), mask)


def test_a_quaternion_says_the_same_as_an_affine(tmp_path: Path) -> None:
    grid, path = grid_of(SHAPE, Lie(origin=(0, 0, 0))), tmp_path / "mask.nii"
    half_turn = {"at_252": ("2h", 1, 0), "at_256": ("6f", 0, 0, 1, 0, 0, 0)}  # about z: L and P become R and A
    path.write_bytes(nifti(MASK, grid.affine, **half_turn))
    assert_array_equal(read(path, grid), MASK)
    mirrored = {**half_turn, "at_76": ("4f", -1, 0.7, 0.8, 2.5), "at_268": ("3f", 0, 0, 2.5 * 2)}
    path.write_bytes(nifti(MASK[::-1], grid.affine, **mirrored))
    assert_array_equal(read(path, grid), MASK)


def shifted(*by: float) -> NDArray[np.float64]:
    move = np.eye(4)
    move[:3, 3] = by
    return np.asarray(grid_of(SHAPE).affine @ move)


def scaled(*by: float) -> NDArray[np.float64]:
    return np.asarray(grid_of(SHAPE).affine @ np.diag([*by, 1.0]))


HERE = grid_of(SHAPE).affine
FAULTS = {
    "half a voxel aside": (nifti(MASK, shifted(0, 0, 0.5)), "MASK_GRID"),
    "a fifth of a slice higher": (nifti(MASK, shifted(0.2, 0, 0)), "MASK_GRID"),
    "a slice less": (nifti(MASK[:2], HERE), "MASK_GRID"),
    "finer voxels": (nifti(MASK, scaled(1, 0.95, 1)), "MASK_GRID"),
    "twice as large voxels": (nifti(MASK, scaled(1, 1, 2)), "MASK_GRID"),
    "no affine": (nifti(MASK, HERE, at_252=("2h", 0, 0)), "MASK_GRID"),
    "metres": (nifti(MASK, HERE, at_123=("b", 1)), "MASK_GRID"),
    "an affine that is no number": (nifti(MASK, HERE, at_280=("f", np.nan)), "MASK_GRID"),
    "an affine that is flat": (nifti(MASK, scaled(1, 1, 0)), "MASK_GRID"),
    "fractions": (nifti(MASK.astype("f4"), HERE), "MASK_TYPE"),
    "a scale": (nifti(MASK, HERE, at_112=("2f", 0.5, 0)), "MASK_TYPE"),
    "four dimensions": (nifti(MASK, HERE, at_40=("5h", 4, 7, 5, 1, 3)), "MASK_TYPE"),
    "a class that the plan does not have": (nifti(MASK + np.uint8(1), HERE), "LABEL_UNKNOWN"),
    "a class below the first": (nifti(MASK.astype("i2") - np.int16(1), HERE), "LABEL_UNKNOWN"),
    "a value that would be a class in eight bits": (nifti(MASK.astype("i4") * np.int32(256), HERE), "LABEL_UNKNOWN"),
    "another format": (b"\x89NRRD" + bytes(400), "UNREADABLE"),
    "a pair of files": (nifti(MASK, HERE, at_344=("4s", b"ni1\0")), "UNREADABLE"),
    "two dimensions": (nifti(MASK, HERE, at_40=("3h", 2, 7, 15)), "UNREADABLE"),
    "a side of no voxels": (nifti(MASK, HERE, at_40=("4h", 3, 7, 5, -3)), "UNREADABLE"),
    "values in the header": (nifti(MASK, HERE, at_108=("f", 100)), "UNREADABLE"),
    "cut short": (nifti(MASK, HERE)[:-1], "TRUNCATED"),
    "a header cut short": (nifti(MASK, HERE)[:300], "TRUNCATED"),
    "more voxels than there may be": (nifti(MASK, HERE, at_40=("4h", 3, 32767, 32767, 32767)), "TOO_LARGE"),
}
USED = {
    "a twentieth of a voxel aside": nifti(MASK, shifted(0.05, -0.05, 0.05)),
    "a unit that is not said": nifti(MASK, HERE, at_123=("b", 0)),
    "no scale at all": nifti(MASK, HERE, at_112=("2f", 0, 0)),
    "a scale that is no number, which means none": nifti(MASK, HERE, at_112=("2f", np.nan, np.nan)),
    "dimensions of one": nifti(MASK, HERE, at_40=("8h", 5, 7, 5, 3, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_file_that_is_no_mask_of_this_volume_is_refused(case: str, tmp_path: Path) -> None:
    data, code = FAULTS[case]
    path = tmp_path / "mask.nii"
    for stored in (data, gzip.compress(data)):
        path.write_bytes(stored)
        with pytest.raises(NotUsable) as why:
            read(path, grid_of(SHAPE))
        assert why.value.code == code


@pytest.mark.parametrize("case", USED)
def test_its_near_miss_is_used(case: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(USED[case])
    assert_array_equal(read(path, grid_of(SHAPE)), MASK)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "mask.nii.gz", gzip.compress(nifti(MASK, HERE))
    damages = {
        data[:-30]: "TRUNCATED",
        data[:2] + bytes(200): "UNREADABLE",
        data[:60] + b"\xff" * 40 + data[100:]: "UNREADABLE",
        data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]: "UNREADABLE",  # the checksum: the values may be others
        data[:-4]: "TRUNCATED",
    }
    for damaged, code in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(NotUsable) as why:
            read(path, grid_of(SHAPE))
        assert why.value.code == code


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(gzip.compress(nifti(MASK, HERE) + bytes(2**26)))
    assert_array_equal(read(path, grid_of(SHAPE)), MASK)  # what comes after the last voxel is never asked for
    with pytest.raises(NotUsable) as why:
        read(path, grid_of(SHAPE), limits=VolumeLimits(file=Limits(max_file_bytes=100)))
    assert why.value.code == "TOO_LARGE"


def test_a_class_for_each_voxel_of_background_alone_is_a_mask(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii"
    path.write_bytes(nifti(np.zeros(SHAPE, np.uint8), HERE))
    assert not read(path, grid_of(SHAPE)).any()
