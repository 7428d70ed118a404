"""Hand-made volumes, and the two ways to read them: ours, and ITK's as the oracle."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.hospitals.volumes import write_series
from infra.hospitals.writing import Identity
from silo_agent.intake.volumes.assemble import Volume, assemble
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.survey import Survey, survey

WHO = Identity("st-olavs", "P1")


@pytest.fixture
def pixels() -> NDArray[np.int16]:
    """Six slices of 5 x 4, every voxel different, so that any exchange shows."""
    return np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 40


@pytest.fixture
def write(tmp_path: Path, pixels: NDArray[np.int16]) -> Callable[..., list[Path]]:
    def write_it(stored: NDArray[Any] | None = None, **options: Any) -> list[Path]:
        options.setdefault("identity", WHO)
        return write_series(tmp_path / "dicom", pixels if stored is None else stored, **options)

    return write_it


@pytest.fixture
def read() -> Callable[..., Survey]:
    def read_them(files: Sequence[Path], **options: Any) -> Survey:
        options.setdefault("modalities", ("CT", "MR"))
        return survey(files, **options)

    return read_them


@pytest.fixture
def grid_of(read: Callable[..., Survey]) -> Callable[..., Grid]:
    """The one grid that these files make; fails with the codes if they make none or several."""

    def only(files: Sequence[Path], **options: Any) -> Grid:
        found = read(files, **options)
        assert [stack.refusal for stack in found.stacks] == [None], found
        grid = place(found.stacks[0].slices)
        assert isinstance(grid, Grid), grid
        return grid

    return only


@pytest.fixture
def volume_of(grid_of: Callable[..., Grid]) -> Callable[..., Volume]:
    def only(files: Sequence[Path], **options: Any) -> Volume:
        kept = {name: value for name, value in options.items() if name != "modalities"}
        found = assemble(grid_of(files, **options), files, **kept)
        assert isinstance(found, Volume), found
        return found

    return only


@pytest.fixture
def codes_of(read: Callable[..., Survey]) -> Callable[..., dict[str, int]]:
    """Code (or 'used') to number of slices, as a report would count them; files refused whole count as one."""

    def count(files: Sequence[Path], **options: Any) -> dict[str, int]:
        found = read(files, **options)
        counts: dict[str, int] = {}
        for stack in found.stacks:
            end = stack.refusal or place(stack.slices)
            name = "used" if isinstance(end, Grid) else end.value
            counts[name] = counts.get(name, 0) + len(stack.slices)
        for _, code in [*found.refused, *found.refused_files]:
            counts[code.value] = counts.get(code.value, 0) + 1
        return counts

    return count
