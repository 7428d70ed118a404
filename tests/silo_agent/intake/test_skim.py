"""A header that is walked in short means what pydicom makes of it, or is left to pydicom."""

from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless

from infra.hospitals.writing import Identity, write_image
from silo_agent.intake import opened
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, PixelRefusal, Pixels
from silo_agent.intake.header import HEADER_TAGS
from silo_agent.intake.image import Refused, quiet, read_image
from silo_agent.intake.opened import OpenFile
from silo_agent.intake.skim import skim

ALL = ("CT", "CR", "DX", "US", "MR")
TAGS = frozenset(HEADER_TAGS)
PIXELS = np.arange(4096, dtype=np.int16).reshape(64, 64)


def with_sequences(ds: Dataset) -> None:
    """Of undefined and of defined length, in one another, as scanners write them."""
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "T-D3000", "Chest"
    outer = Dataset()
    outer.ReferencedSOPInstanceUID = "1.2.3"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    outer["PurposeOfReferenceCodeSequence"].is_undefined_length = True
    ds.ReferencedImageSequence = Sequence([outer])
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.ProcedureCodeSequence = Sequence([inner])
    outer.is_undefined_length_sequence_item = True


def in_greek(ds: Dataset) -> None:
    ds.SpecificCharacterSet, ds.PatientID = ["", "ISO 2022 IR 126"], "ΑΒΓ"


def as_jpeg_2000(ds: Dataset) -> None:
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)


KINDS: dict[str, Callable[[Dataset], object]] = {
    "plain": lambda _ds: None,
    "with sequences": with_sequences,
    "in Greek": in_greek,
    "JPEG 2000": as_jpeg_2000,
    "empty values": lambda ds: ds.update({"BurnedInAnnotation": "", "RescaleType": "", "StudyInstanceUID": ""}),
    "implicit": lambda ds: ds.file_meta.update({"TransferSyntaxUID": "1.2.840.10008.1.2"}),
    "a large private element": lambda ds: ds.add_new(0x00291010, "OB", bytes(40_000)),
}


@cache
def file_of(kind: str) -> bytes:
    with TemporaryDirectory() as name:
        path = Path(name) / "one.dcm"
        write_image(path, PIXELS, identity=Identity("st-olavs", "P1"), modality="CT")
        ds = dcmread(path)
        KINDS[kind](ds)
        implicit = ds.file_meta.TransferSyntaxUID.is_implicit_VR
        ds.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
        return path.read_bytes()


Found = tuple[HeaderFacts, bytes | PixelRefusal | None]


def found_in(path: Path) -> Found:
    """The header, and where it is accepted the digest of the values in its unit."""
    file = OpenFile(path, Limits())
    with quiet():
        header = file.header()
        pixels = file.pixels() if header.refusal(ALL) is None else None
    file.close()
    return header, pixels.content + pixels.image.tobytes() if isinstance(pixels, Pixels) else pixels


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_files_are_walked(kind: str, tmp_path: Path) -> None:
    data = file_of(kind)
    walked = skim(BytesIO(data), TAGS, Limits())
    assert walked is not None
    assert data[walked.pixels.offset :][:4] in {PIXELS.tobytes()[:4], b"\xfe\xff\x00\xe0"}
    (tmp_path / "one.dcm").write_bytes(data)
    header, pixels = found_in(tmp_path / "one.dcm")
    image = read_image(tmp_path / "one.dcm", modalities=("CT",))
    assert not isinstance(image, Refused)
    assert header.who == image.identifiers
    assert pixels == image.content + image.image.tobytes()


LEFT_TO_PYDICOM: dict[str, Callable[[bytes], bytes]] = {
    "no preamble": lambda data: data[132:],
    "tags out of order": lambda data: data.replace(b"\x08\x00\x60\x00CS", b"\x08\x00\x01\x00CS"),
    "one tag twice": lambda data: data.replace(b"\x08\x00\x70\x00LO", b"\x08\x00\x60\x00LO"),
    "a representation that there is not": lambda data: data.replace(b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00ZZ"),
    "a transfer syntax of another type": lambda data: data.replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00US"),
    "an end before the pixels": lambda data: data[:700],
    "a length beyond the end": lambda data: data.replace(b"\x08\x00\x60\x00CS\x02\x00", b"\x08\x00\x60\x00CS\xf0\xff"),
    "deflated": lambda data: data.replace(b"1.2.840.10008.1.2.1\x00", b"1.2.840.10008.1.2.1.99"),
    "items without end": lambda data: data[:800] + b"\xfe\xff\x00\xe0" * 2000 + data[800:],
}


@pytest.mark.parametrize("case", LEFT_TO_PYDICOM)
def test_what_is_out_of_the_ordinary_is_left_to_pydicom(case: str) -> None:
    assert skim(BytesIO(LEFT_TO_PYDICOM[case](file_of("plain"))), TAGS, Limits()) is None


def test_the_limits_for_headers_hold(tmp_path: Path) -> None:
    data = file_of("a large private element")
    assert skim(BytesIO(data), TAGS, Limits(max_header_bytes=1000)) is None
    assert skim(BytesIO(file_of("with sequences")), TAGS, Limits(max_items=1)) is None


# no length, an item, the ends of an item and of a sequence, a character set
MARKS = (b"\xff" * 4, b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"\x08\x00\x05\x00")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file with one to three places changed, mostly in its header."""
    data = bytearray(file_of(draw(st.sampled_from(sorted(KINDS)))))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(128, max(128, min(len(data), 1600) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "copy", "end", "mark"])):
            case "flip":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "copy":
                data[at:at] = data[at - 40 : at]
            case "end":
                del data[at:]
            case "mark":
                data[at : at + 4] = draw(st.sampled_from(MARKS))
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(data=damaged())
def test_a_damaged_file_is_found_to_be_the_same_on_both_ways(data: bytes) -> None:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        path = Path(name) / "one.dcm"
        path.write_bytes(data)
        in_short = found_in(path)
        patch.setattr(opened, "skim", lambda *_: None)
        assert in_short == found_in(path)
        image: Any = read_image(path, modalities=ALL)
        code = in_short[0].refusal(ALL) or (in_short[1].code if isinstance(in_short[1], PixelRefusal) else None)
        assert (image.code if isinstance(image, Refused) else None) == code
