"""ITK reads the same series: voxels and affine must agree. Real series from ../shared/data, and invented ones."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from infra.hospitals.volumes import CORONAL, SAGITTAL, Lie, write_enhanced
from infra.hospitals.writing import Identity
from silo_agent.intake.volumes.assemble import Volume

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None, reason="needs the oracle: pip install SimpleITK"
)


def itk_series(files: Sequence[Path]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels [D,H,W] and affine to RAS as ITK has them, sorted by GDCM along the normal."""
    import SimpleITK

    folder = files[0].parent
    (series,) = {pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID for file in files}
    reader = SimpleITK.ImageSeriesReader()
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), str(series))
    chosen = {str(file) for file in files}
    reader.SetFileNames([name for name in names if name in chosen])
    reader.SetForceOrthogonalDirection(False)
    return _in_ras(reader.Execute())


def itk_object(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK

    return _in_ras(SimpleITK.ReadImage(str(path)))


def _in_ras(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import SimpleITK

    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3] = direction[:, ::-1]  # ITK's first index is the column, ours the slice
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def agree(ours: Volume, oracle: tuple[NDArray[Any], NDArray[np.float64]]) -> None:
    voxels, affine = oracle
    assert ours.image.shape == voxels.shape
    assert_array_equal(ours.image, voxels.astype(np.float32))
    assert_allclose(ours.affine, affine, atol=1e-4)


DCMQI = "seg-rt-sr/dcmqi/data/segmentations"
REAL = {
    "a chest CT, 3 of its slices": (f"{DCMQI}/ct-3slice", 3),
    "a liver CT, cropped": (f"{DCMQI}/23x38x3/image", 3),
    "another crop of it": (f"{DCMQI}/24x38x3/image", 3),
    "a head MR, sagittal and oblique, defaced": ("mr-t1-series", 64),
    "a CT phantom": ("seg-rt-sr/rt_utils/mock_data", 2),
}


@pytest.mark.parametrize("case", REAL)
def test_a_real_series_is_what_itk_reads(
    case: str, real_data: Path, grid_of: Callable[..., Any], volume_of: Callable[..., Volume]
) -> None:
    folder, slices = REAL[case]
    files = [
        file
        for file in sorted((real_data / folder).iterdir())
        if file.is_file() and pydicom.misc.is_dicom(file) and "Rows" in pydicom.dcmread(file, stop_before_pixels=True)
    ]
    assert len(grid_of(files, take_secondary=True).slices) == slices
    agree(volume_of(files, take_secondary=True), itk_series(files))


def test_one_time_point_of_a_real_functional_mr_is_what_itk_reads(
    real_data: Path, volume_of: Callable[..., Volume], codes_of: Callable[..., dict[str, int]]
) -> None:
    files = sorted((real_data / "mr-two-vendors" / "20180918GE" / "mr_0004").iterdir())
    numbers = {file: int(pydicom.dcmread(file, stop_before_pixels=True).InstanceNumber) for file in files}
    first = [file for file in files if numbers[file] <= 15]
    agree(volume_of(first), itk_series(first))
    assert codes_of(files) == {"DUPLICATE_POSITION": 150}  # ten time points, told apart by Instance Number alone


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_a_real_converted_object_is_its_series(size: str, real_data: Path, volume_of: Callable[..., Volume]) -> None:
    folder = real_data / DCMQI / size
    single = sorted((folder / "image").iterdir())
    (converted,) = (folder / "multiframe").iterdir()
    ours = volume_of([converted])
    agree(ours, itk_series(single))
    assert ours.content == volume_of(single).content


LIES = {
    "axial": Lie(),
    "coronal": Lie(CORONAL),
    "sagittal": Lie(SAGITTAL),
    "rows from back to front": Lie((1, 0, 0, 0, -1, 0)),
    "oblique": Lie((0.8, 0.6, 0, -0.36, 0.48, 0.8)),
    "a gantry tilted by 2 degrees": Lie(shear=(0, 2.5 * np.tan(np.radians(2)), 0)),
}


@pytest.mark.parametrize("case", LIES)
def test_an_invented_series_is_what_itk_reads(
    case: str, write: Callable[..., list[Path]], volume_of: Callable[..., Volume]
) -> None:
    files = write(lie=LIES[case], rescale=lambda _: (2.0, -1024.0))
    agree(volume_of(files), itk_series(files))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_invented_object_is_what_itk_reads(
    modality: Any, tmp_path: Path, pixels: NDArray[np.int16], volume_of: Callable[..., Volume]
) -> None:
    who = Identity("st-olavs", "P1")
    path = write_enhanced(tmp_path / "one.dcm", pixels, identity=who, modality=modality, rescale=lambda _: (2.0, -9.0))
    agree(volume_of([path]), itk_object(path))
