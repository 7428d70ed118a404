"""Laws of sorting: nothing is lost, nothing is used twice, and the order of the files changes nothing."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from silo_agent.intake.header import Identifiers
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import Grid, affine, normal, place
from silo_agent.intake.volumes.headers import Plane, Slice, Variant, Vector
from silo_agent.intake.volumes.stacks import Contents, Sorted, sort_into_stacks

ANGLES: list[tuple[Vector, Vector]] = [
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0005)),
    ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
]


def slice_at(file: int, plane: Plane | None, *, frame: int = 0, uid: str = "", **variant: Any) -> Slice:
    said = {"acquisition": None, "temporal": None, "echo_time": None, "image_type": ("ORIGINAL", "PRIMARY"), **variant}
    who = Identifiers("P1", "study", "series", uid or f"file {file}")
    return Slice(file, frame, who, "CT", 8, 8, plane, Variant(**said), (1.0, 0.0))


def axial(z: float) -> Plane:
    return Plane((0.0, 0.0, z), *ANGLES[0], (1.0, 1.0), "frame")


def own_pixels(file: int) -> tuple[bytes, ...]:
    return (bytes([file % 256]),) * 8


@st.composite
def archives(draw: st.DrawFn) -> tuple[list[Slice], Contents]:
    """Slices of a few files at a few places, angles and times, some of them copies, scouts or without geometry."""
    slices: list[Slice] = []
    pixels = draw(st.lists(st.integers(0, 3), min_size=12, max_size=12))
    for file in range(draw(st.integers(1, 12))):
        uid = f"uid {draw(st.integers(0, 8))}"
        for frame in range(draw(st.sampled_from([1, 1, 1, 3]))):
            angle = draw(st.sampled_from(ANGLES))
            z = draw(st.sampled_from([0.0, 1.0, 1.005, 2.0, 2.04, 3.0, 5.0]))
            plane = draw(st.sampled_from([None, *[Plane((0.0, 0.0, z), *angle, (1.0, 1.0), "frame")] * 8]))
            slices.append(
                slice_at(
                    file,
                    plane,
                    frame=frame,
                    uid=uid,
                    acquisition=draw(st.sampled_from([None, 1.0, 2.0])),
                    echo_time=draw(st.sampled_from([2.0, 4.0])),
                    image_type=draw(
                        st.sampled_from([("ORIGINAL", "PRIMARY")] * 9 + [("ORIGINAL", "PRIMARY", "SCOUT")])
                    ),
                )
            )

    def contents(file: int) -> Sequence[bytes] | Refusal:
        return Refusal.TRUNCATED if pixels[file] == 3 and file == 7 else (bytes([pixels[file]]),) * 3

    return slices, contents


def everything(found: Sorted) -> Counter[tuple[int, int]]:
    slices = [one for stack in found.stacks for one in stack.slices] + [one for one, _ in found.refused]
    return Counter((one.file, one.frame) for one in slices)


@given(archives())
def test_every_slice_ends_in_one_stack_or_with_one_code(archive: tuple[list[Slice], Contents]) -> None:
    slices, contents = archive
    found = sort_into_stacks(slices, contents)
    assert everything(found) == Counter((one.file, one.frame) for one in slices)


@given(archives(), st.randoms())
def test_the_order_of_the_files_changes_nothing(archive: tuple[list[Slice], Contents], chance: Any) -> None:
    slices, contents = archive
    shuffled = list(slices)
    chance.shuffle(shuffled)
    assert sort_into_stacks(shuffled, contents) == sort_into_stacks(slices, contents)


@given(archives())
def test_what_becomes_a_grid_ascends_along_one_normal(archive: tuple[list[Slice], Contents]) -> None:
    slices, contents = archive
    for stack in sort_into_stacks(slices, contents).stacks:
        grid = place(stack.slices) if stack.refusal is None else stack.refusal
        if isinstance(grid, Grid):
            planes = [one.plane for one in grid.slices if one.plane]
            heights = [np.dot(normal(planes[0]), plane.position) for plane in planes]
            assert len(planes) == len(stack.slices)
            assert (np.diff(heights) > 0.01).all()


def test_pixels_are_asked_for_only_where_headers_cannot_decide() -> None:
    asked: list[int] = []

    def contents(file: int) -> Sequence[bytes]:
        asked.append(file)
        return own_pixels(file)

    slices = [slice_at(file, axial(file)) for file in range(5)]
    sort_into_stacks(slices, contents)
    assert asked == []
    sort_into_stacks([*slices, slice_at(5, axial(3))], contents)
    assert sorted(asked) == [3, 5]


def test_copies_that_cannot_be_read_refuse_what_hangs_on_them() -> None:
    slices = [slice_at(file, axial(min(file, 3))) for file in range(5)]
    (stack,) = sort_into_stacks(slices, lambda _: Refusal.TRUNCATED).stacks
    assert stack.refusal == Refusal.TRUNCATED
    copies = [slice_at(0, axial(0), uid="one"), slice_at(1, axial(0), uid="one"), slice_at(2, axial(1))]
    codes = [code for _, code in sort_into_stacks(copies, lambda _: Refusal.TRUNCATED).refused]
    assert codes == [Refusal.UID_CONFLICT] * 2


def test_a_slow_drift_of_orientation_is_not_chained_into_one_stack() -> None:
    def tilted(number: int) -> Plane:
        angle = number * 9e-4
        return Plane((0.0, 0.0, number), (1.0, 0.0, 0.0), (0.0, np.cos(angle), np.sin(angle)), (1.0, 1.0), "frame")

    found = sort_into_stacks([slice_at(number, tilted(number)) for number in range(10)], own_pixels)
    assert len(found.stacks) == 5


def test_an_acquisition_that_only_numbers_the_slices_does_not_break_up_two_echoes() -> None:
    slices = [
        slice_at(file, axial(file // 2), acquisition=float(file // 2), echo_time=float(file % 2)) for file in range(8)
    ]
    assert [len(stack.slices) for stack in sort_into_stacks(slices, own_pixels).stacks] == [4, 4]


@given(
    st.integers(2, 9),
    st.floats(0.3, 12),
    st.lists(st.floats(-500, 500), min_size=3, max_size=3),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.2),
    st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
)
def test_the_affine_leads_every_pixel_to_where_dicom_puts_it(
    count: int, gap: float, origin: list[float], quaternion: list[float], spacing: tuple[float, float]
) -> None:
    across, down, along = rotation(quaternion)
    planes = [
        Plane(tuple(np.array(origin) + number * gap * along), tuple(across), tuple(down), spacing, "frame")
        for number in range(count)
    ]
    slices = [slice_at(number, plane) for number, plane in enumerate(planes)]
    grid = place(slices[::-1])
    assert isinstance(grid, Grid)
    assert [one.file for one in grid.slices] == list(range(count))
    assert_allclose(grid.spacing_mm, (gap, *spacing))
    lps = np.array(planes[-1].position) + 3 * spacing[0] * down + 5 * spacing[1] * across
    assert_allclose(grid.affine @ [count - 1, 3, 5, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-8)


def rotation(quaternion: list[float]) -> Any:
    """Rows of a rotation matrix: right-handed, so the third is the first x the second."""
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_the_affine_turns_orientation_as_well_as_place() -> None:
    found = affine(axial(-7), np.array([0.0, 0.0, 2.0]))
    assert_allclose(found, [[0, 0, -1, 0], [0, -1, 0, 0], [2, 0, 0, -7], [0, 0, 0, 1]])


def test_slices_without_geometry_or_company_have_no_place() -> None:
    placing: Callable[[Sequence[Slice]], Grid | Refusal] = place
    assert placing([]) == Refusal.GEOMETRY_MISSING
    assert placing([slice_at(0, axial(0)), slice_at(1, None)]) == Refusal.GEOMETRY_MISSING
    assert placing([slice_at(0, axial(0))]) == Refusal.SINGLE_SLICE
    assert placing([slice_at(0, axial(0)), slice_at(1, axial(0))]) == Refusal.DUPLICATE_POSITION
