"""What the fuzzer found, by name: little that asks for much, and damage that was taken for something else."""

import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from infra.fuzz.child import limited
from infra.fuzz.elements import ITEM, PIXEL_DATA, UNDEFINED, elements_of, head, spliced, written
from infra.fuzz.judging import MiB, Readers, judge_files
from infra.hospitals.volumes import write_series
from infra.hospitals.writing import Identity
from silo_agent.intake.bounded import TooManyItems, few_items
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused, StoredImage, read_image
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.reading import VolumeLimits, read_slices
from silo_agent.intake.volumes.survey import survey

Write = Callable[..., Path]


def before(path: Path, tag: int, made: bytes) -> None:
    """Put bytes before the first element that is not below `tag`."""
    data = path.read_bytes()
    at = next(one.at for one in elements_of(data) if one.tag >= tag)
    path.write_bytes(spliced(data, at, at, made))


def sequence(tag: int, body: bytes, length: int | None = None, *, closed: bool = True) -> bytes:
    end = head(0xFFFEE0DD, b"", 0) if length is None and closed else b""
    return head(tag, b"SQ", UNDEFINED if length is None else length) + body + end


def revalue(path: Path, tag: int, value: bytes, vr: bytes | None = None) -> None:
    data = path.read_bytes()
    one = next(one for one in elements_of(data) if one.tag == tag)
    path.write_bytes(spliced(data, one.at, one.end, written(tag, vr or one.vr, value, one)))


def compressed(path: Path, syntax: str, change: Callable[[bytes], bytes]) -> None:
    """Compress the image, then change its one fragment."""
    ds = pydicom.dcmread(path)
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(path)
    data = path.read_bytes()
    found = elements_of(data)
    number = next(number for number, one in enumerate(found) if one.tag == PIXEL_DATA)
    fragment = found[number + 2]
    value = change(data[fragment.value : fragment.end])
    path.write_bytes(spliced(data, fragment.at, fragment.end, head(ITEM, b"", len(value)) + value))


def coding_style(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """Change the COD segment at an offset from its length (ISO/IEC 15444-1 A.6.1)."""

    def change(data: bytes) -> bytes:
        start = data.index(b"\xff\x52") + 2 + at
        return spliced(data, start, start + len(value), value)

    return change


def smallest_precincts(data: bytes) -> bytes:
    start = data.index(b"\xff\x52") + 2
    length, levels = struct.unpack(">H", data[start : start + 2])[0], data[start + 7]
    data = spliced(data, start + length, start + length, b"\0" + b"\x11" * levels)
    data = spliced(data, start, start + 3, struct.pack(">H", length + levels + 1) + bytes([data[start + 2] | 1]))
    return data + bytes(len(data) % 2)


def size_field(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """Change the SIZ segment, which begins the codestream, at an offset from its length."""
    return lambda data: spliced(data, 4 + at, 4 + at + len(value), value)


def runs(data: bytes) -> bytes:
    """Two segments, the second of which says 128 bytes of image with each two of its own."""
    return struct.pack("<3I", 2, 64, 66) + bytes(52) + b"\xff\0" + b"\x81\0" * 1_500_000


def grow(path: Path, to: int, *, after: int | None = None) -> None:
    """Let the file end in zeros that take no room on the disk, after its first bytes."""
    if after is not None:
        os.truncate(path, after)
    os.truncate(path, to)


LARGE = {"pixels": (np.add.outer(np.arange(1024), np.arange(1024)) % 4000).astype(np.uint16)}
SMALL = {"pixels": LARGE["pixels"][:64, :64]}
ENDLESS = head(ITEM, b"", UNDEFINED) + head(0x00010001, b"OB", UNDEFINED)
BOMBS: dict[str, tuple[dict[str, Any], Callable[[Path], None], str]] = {
    "items that are none, by the hundred thousand": (
        {},
        lambda path: before(path, 0x00081140, sequence(0x00081140, bytes(8) * 100_000)),
        "TOO_LARGE",
    ),
    "as many in a sequence that is read when it is asked for": (
        {},
        lambda path: before(path, 0x00283000, sequence(0x00283000, bytes(800_000), 800_000)),
        "TOO_LARGE",
    ),
    "values without an end, each of which is looked for in all the rest": (
        {},
        lambda path: before(path, 0x00081140, sequence(0x00081140, ENDLESS * 40_000, closed=False)),
        "TOO_LARGE",
    ),
    "a value that claims four gigabytes": (
        {},
        lambda path: before(path, 0x00081140, head(0x00080018, b"UN", 0xFFFFFFF0)),
        "UNREADABLE",
    ),
    "a name in a character set that takes the square of its length": (
        {},
        lambda path: (
            revalue(path, 0x00080005, b"punycode"),
            revalue(path, 0x00100020, b"a" * 400_000 + b"-" + b"b" * 400_001, b"UT"),
        )[0],
        "UNREADABLE",
    ),
    "nothing but zeros after the preamble, for a terabyte": (
        {},
        lambda path: grow(path, 1 << 40, after=132),
        "UNREADABLE",
    ),
    "zeros after the pixels, by the hundred megabytes": ({}, lambda path: grow(path, 200 * MiB), "used"),
    "a header without an end": ({}, lambda path: grow(path, 1 << 40, after=700), "TOO_LARGE"),
    "runs that expand a hundred times over": (LARGE, lambda path: compressed(path, RLELossless, runs), "TOO_LARGE"),
    "precincts of one pixel": (LARGE, lambda path: compressed(path, JPEG2000Lossless, smallest_precincts), "TOO_LARGE"),
    "sixty-five thousand layers": (
        SMALL,
        lambda path: compressed(path, JPEG2000Lossless, coding_style(4, b"\xff\xff")),
        "TOO_LARGE",
    ),
    "tiles of four pixels": (
        {"pixels": LARGE["pixels"][:512, :500]},
        lambda path: compressed(path, JPEG2000Lossless, size_field(20, struct.pack(">2I", 2, 2))),
        "TOO_LARGE",
    ),
    "tiles of nothing": (
        SMALL,
        lambda path: compressed(path, JPEG2000Lossless, size_field(20, bytes(8))),
        "UNREADABLE",
    ),
    "a codestream of sixteen thousand components": (
        SMALL,
        lambda path: compressed(path, JPEG2000Lossless, size_field(36, b"\x40\0")),
        "UNREADABLE",
    ),
    "a hundred thousand empty fragments": (
        SMALL,
        lambda path: compressed(path, JPEG2000Lossless, lambda data: data + head(ITEM, b"", 0) * 100_000),
        "TOO_LARGE",
    ),
}
"""What is written, what is done to it, and how it ends, with pixels and files as large as in a hospital."""
HEADERS = Limits(max_header_bytes=MiB, max_items=5000)
AS_SLICES = VolumeLimits(file=HEADERS, max_header_bytes=MiB, max_items=5000)


@pytest.mark.parametrize("kind", ["image", "series"])
@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_not_expanded(case: str, kind: Literal["image", "series"], write_one: Write) -> None:
    options, damage, expected = BOMBS[case]
    path = write_one(**options)
    damage(path)
    readers = Readers(
        image=lambda path: read_image(path, modalities=("CT",), limits=HEADERS),
        survey=lambda files: survey(files, modalities=("CT",), limits=AS_SLICES),
    )
    again = path.with_name("again.dcm")
    again.hardlink_to(path)  # two slices at one place: their pixels are read to compare them
    verdict = limited(partial(judge_files, [path, again], readers, kind=kind, traced=True), seconds=10.0)
    assert kind == "series" or verdict.ends[0] == expected  # what it is as a mask comes after
    assert verdict.broken == []
    assert max(verdict.peak, verdict.grown) < 48 * MiB
    assert verdict.read < 16 * MiB


def no_second(path: Path, tag: int, value: bytes) -> None:
    data = path.read_bytes()
    one = next(one for one in elements_of(data) if one.tag == tag)
    path.write_bytes(spliced(data, one.end, one.end, written(tag, one.vr, value, one)))


def cut_in_a_sequence(path: Path) -> None:
    before(path, 0x00081140, sequence(0x00081140, head(ITEM, b"", UNDEFINED) + head(0x00080018, b"UI", 4) + b"1.2\0"))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"1.2\0\xfe\xff\xdd\xe0") + 4])


DAMAGES: dict[str, tuple[Callable[[Path], None], Refusal]] = {
    "the end within a sequence is not the storage's fault": (cut_in_a_sequence, Refusal.TRUNCATED),
    "a sequence that makes no sense is not either": (
        lambda path: before(path, 0x00283000, sequence(0x00283000, b"\1\2\3\4\5", 5)),
        Refusal.UNREADABLE,
    ),
    "two patients": (lambda path: no_second(path, 0x00100020, b"P2"), Refusal.UNREADABLE),
    "two Patient IDs in one": (lambda path: revalue(path, 0x00100020, b"P1\\P2 "), Refusal.UNREADABLE),
    "a Patient ID that is a number": (lambda path: revalue(path, 0x00100020, b"P1P1", b"UL"), Refusal.UNREADABLE),
    "a Patient ID that is half a character": (
        lambda path: (revalue(path, 0x00080005, b"utf-7 "), revalue(path, 0x00100020, b"+2AA-+2AA-"))[0],
        Refusal.UNREADABLE,
    ),
    "two SOP Instance UIDs": (lambda path: revalue(path, 0x00080018, b"1.2.3\\1.2.4\0"), Refusal.UNREADABLE),
    "room for a second frame": (lambda path: revalue(path, 0x00280010, struct.pack("<H", 6)), Refusal.UNREADABLE),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_ends_as_its_code_in_both_readers(case: str, write_one: Write) -> None:
    damage, expected = DAMAGES[case]
    path = write_one()
    assert isinstance(read_image(path, modalities=("CT",)), StoredImage)
    assert isinstance(read_slices(path, 0, modalities=("CT",)), tuple)
    damage(path)
    assert read_image(path, modalities=("CT",)) == Refused(expected)
    assert read_slices(path, 0, modalities=("CT",)) == Refused(expected)


NOWHERE = {
    "positions at the ends of the number line": lambda index: {
        "ImagePositionPatient": ["0", "0", f"{index - 0.5:g}e308"]
    },
    "positions beyond a kilometre": lambda index: {"ImagePositionPatient": ["0", "0", str(10**6 + 1 + index)]},
    "pixels of ten metres": lambda _: {"PixelSpacing": ["10001", "1"]},
    "pixels of nothing": lambda _: {"PixelSpacing": ["1e-320", "1"]},
}


@pytest.mark.parametrize("case", NOWHERE)
def test_a_place_that_no_scanner_has_is_none(case: str, tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 5), np.int16)
    files = write_series(tmp_path, pixels, identity=Identity("st-olavs", "P1"), extra=NOWHERE[case])
    found = survey(files, modalities=("CT",))
    assert (found.stacks, [code for _, code in found.refused]) == ((), [Refusal.GEOMETRY_MISSING] * 2)


def good_image(path: Path) -> StoredImage:
    found = read_image(path, modalities=("CT",))
    assert isinstance(found, StoredImage), found
    return found


def test_what_stands_after_the_pixels_says_nothing(write_one: Write) -> None:
    path = write_one(rescale=(2.0, 10.0))
    plain = good_image(path)
    slope = head(0x00281053, b"DS", 2) + b"0 " + head(0x00100020, b"LO", 2) + b"P2"
    path.write_bytes(path.read_bytes() + slope)
    found = good_image(path)
    assert np.array_equal(found.image, plain.image)
    assert found.identifiers.patient_id == "P1"


def test_many_empty_private_values_are_no_bomb(write_one: Write) -> None:
    path = write_one()
    empty = head(0x20051080, b"OB", UNDEFINED) + head(0xFFFEE0DD, b"", 0)
    before(
        path, 0x00280002, sequence(0x20051083, (head(ITEM, b"", UNDEFINED) + empty + head(0xFFFEE00D, b"", 0)) * 500)
    )
    good_image(path)


def test_the_limits_of_one_thread_are_not_another_one_s(write_one: Write) -> None:
    path = write_one()
    items = (head(ITEM, b"", UNDEFINED) + head(0xFFFEE00D, b"", 0)) * 100
    before(path, 0x00081140, sequence(0x00081140, items))

    def read(number: int) -> int | str:
        try:
            with few_items(50) if number % 2 else nullcontext():
                return len(pydicom.dcmread(path).ReferencedImageSequence)
        except TooManyItems:
            return "too many"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(40)))
    assert found == [100, "too many"] * 20
