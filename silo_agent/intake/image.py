"""One file in, one image or one refusal out. Nothing a file contains may end the scan.

The header is judged before the pixels are read, and the transfer syntax before the header, because a deflated
data set would be inflated whole by merely opening it. Warnings and log lines of pydicom quote values, which
may be names: both are silenced here, for the one call.
"""

import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset, read_partial
from pydicom.fileutil import read_undefined_length_value
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag, SequenceDelimiterTag
from pydicom.uid import UID

from silo_agent.intake import encoding
from silo_agent.intake.archive import refusal_for
from silo_agent.intake.bounded import TooManyItems, few_items
from silo_agent.intake.encoding import Limits
from silo_agent.intake.header import (
    HEADER_TAGS,
    SEQUENCE_TAGS,
    SINGLE_FRAME,
    Header,
    Identifiers,
    judge_header,
    parse_header,
)
from silo_agent.intake.pixels import content_digest, in_modality_units, unused_bits_cleared
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.silence import silenced

_Found = TypeVar("_Found")

PIXEL_DATA = 0x7FE00010
ANY_PIXELS = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})  # float and double images are maps, not images
_TRANSFER_SYNTAX_UID = 0x00020010
_PREAMBLE, _MAGIC = 128, b"DICM"  # PS3.10 section 7.1
_PIXEL_VRS = frozenset({"OB", "OW"})
UNDEFINED_LENGTH = 0xFFFFFFFF
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
# A data set without a preamble starts in group 0002 or 0008; anything else is not worth parsing.
_BARE_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_COMMAND = b"\0\0"  # group 0000
_SHORTEST_ELEMENT = 8  # bytes, PS3.5 section 7.1
_MOST_ELEMENTS = 20_000  # outside sequences; images have hundreds, with a vendor's own a few thousand
_LONGEST_VALUE = 4096  # bytes, of what is no sequence: some of Python's codecs take time with the square of it
_TALKATIVE = ("pydicom", "pylibjpeg", "openjpeg")
# One decoder each, the same in every hospital, whatever else is installed. For RLE not pylibjpeg's in Rust, which
# panics on damaged input: a panic is no Exception and would end the scan.
_PLUGIN_FOR = {
    encoding.RLE_LOSSLESS: "pydicom",
    **dict.fromkeys(encoding.JPEG_2000, "pylibjpeg"),
    **dict.fromkeys(encoding.JPEG, "gdcm"),
}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that may be used. `image` is float32 [H,W] in the modality's unit."""

    identifiers: Identifiers = field(repr=False)
    modality: str
    image: NDArray[np.float32] = field(repr=False)
    content: bytes = field(repr=False)  # SHA-256 of the stored values


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that is not used, and why; `lasting` as of `facts.HeaderFacts`."""

    code: Refusal
    lasting: bool = True


class NotUsable(Exception):
    """A signal inside this package, not an error that anyone sees; `lasting` as of `facts.HeaderFacts`."""

    def __init__(self, code: Refusal, *, lasting: bool = True) -> None:
        super().__init__(code)
        self.code, self.lasting = code, lasting


def read_image(path: Path, *, modalities: Collection[str], limits: Limits | None = None) -> StoredImage | Refused:
    """Read one 2-D image (CT, CR, DX, US, MR), or say why not. Raises nothing that depends on the file.

    A file without a preamble is accepted only if it parses as DICOM with a SOP class (PS3.10 section 7.1 asks
    for the preamble; older exports lack it). See `header.judge_header` and `pixels.in_modality_units` for the
    rules, and `encoding` for the limits.
    """

    def read() -> StoredImage:
        with path.open("rb") as file:
            return _read(file, modalities, limits or Limits())

    return guarded(read)


def guarded(read: Callable[[], _Found]) -> _Found | Refused:
    """Call `read`; whatever a file may provoke ends as a code. What pydicom would log or warn about stays unsaid."""
    try:
        with quiet():
            return read()
    except Exception as why:  # noqa: BLE001 - what pydicom raises on damaged bytes has no common root and no list
        return Refused(*refusal_of(why))


def refusal_of(why: Exception) -> tuple[Refusal, bool]:
    """The code of what reading a file raised, and whether it lasts: other storage or memory may do better."""
    match why:
        case NotUsable():
            return why.code, why.lasting
        case OSError() if why.errno or isinstance(why, PermissionError):
            return refusal_for(why), False
        case RecursionError() | MemoryError():
            return Refusal.TOO_LARGE, isinstance(why, RecursionError | TooManyItems)
        case _:  # pydicom raises an OSError of its own, without a number, where a sequence makes no sense
            return Refusal.UNREADABLE, True


def _read(file: BinaryIO, modalities: Collection[str], limits: Limits) -> StoredImage:
    has_preamble = looks_like_dicom(file)
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(min(size, limits.max_header_bytes))
    with few_items(limits.max_items):
        refuse_deflated(start, has_preamble=has_preamble)
        ds, pixels = parse_until_pixels(start, size, HEADER_TAGS)
        header = judged_whole(ds, pixels, has_preamble=has_preamble, cut=size > len(start))
    if refusal := judge_header(header, modalities, limits):
        raise NotUsable(refusal)
    check_extent(header, pixels, size, limits)
    add_pixels(file, ds, header, pixels)
    stored = unused_bits_cleared(decode(ds, header), header.bits_stored or 0, signed=header.signed)
    image = in_modality_units(stored, header, ds)
    return StoredImage(header.identifiers, header.modality, image, content_digest(stored))


def looks_like_dicom(file: BinaryIO) -> bool:
    """Return whether there is a preamble; refuses what is not DICOM either way."""
    start = file.read(_PREAMBLE + len(_MAGIC))
    if start[_PREAMBLE:] == _MAGIC:
        return True
    if not start.startswith(_BARE_STARTS):
        raise NotUsable(Refusal.NOT_DICOM)
    return False


def refuse_deflated(start: bytes, *, has_preamble: bool) -> None:
    """Look at the file meta alone. A command set after it has no place in a file (PS3.10 7.1) and is refused too."""
    buffer = BytesIO(start[_PREAMBLE + len(_MAGIC) if has_preamble else 0 :])
    meta = read_dataset(
        buffer,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
        specific_tags=[_TRANSFER_SYNTAX_UID],
    )
    if buffer.read(2) == _COMMAND:
        raise NotUsable(Refusal.UNREADABLE)
    if str(meta.get("TransferSyntaxUID", "")).strip(" \0") in encoding.DEFLATED:
        raise NotUsable(Refusal.TRANSFER_SYNTAX)


@dataclass(slots=True)
class PixelElement:
    """Where the pixel data begins and how long it says it is, bytes; `tag` 0 if there is none in the bytes read.

    `beyond_end`: an element before it claims more bytes than the file has.
    """

    tag: int = 0
    length: int = 0
    offset: int = 0
    vr: str = ""
    beyond_end: bool = False


def parse_until_pixels(start: bytes, size: int, tags: Collection[int]) -> tuple[FileDataset, PixelElement]:
    """Parse the first bytes of a file of `size` bytes up to its pixel data, keeping `tags`.

    Refuses an element of `tags` that stands there twice (PS3.5 section 7.1), because nobody can tell which is meant,
    and one that is far too long.
    """
    found, buffer, seen, asked = PixelElement(), BytesIO(start), dict[int, int](), frozenset(tags)
    number = count()

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        at = buffer.tell()
        if next(number) > _MOST_ELEMENTS:
            raise NotUsable(Refusal.TOO_LARGE)
        if tag in ANY_PIXELS:
            found.tag, found.length, found.offset, found.vr = int(tag), length, at, vr or "OW"
        elif tag in asked:
            again = at - seen.setdefault(int(tag), at) >= _SHORTEST_ELEMENT  # nearer: the same one, asked about twice
            if again or (length > _LONGEST_VALUE and tag not in SEQUENCE_TAGS):
                raise NotUsable(Refusal.UNREADABLE)
        return found.tag != 0

    try:
        ds = read_partial(buffer, stop_when=at_pixels, force=True, specific_tags=list(tags))
    except OSError as why:  # pydicom's, for a sequence that ends with the bytes
        raise NotUsable(Refusal.TOO_LARGE if size > len(start) else Refusal.TRUNCATED) from why
    found.beyond_end = buffer.tell() > size
    return ds, found


def judged_whole(ds: FileDataset, pixels: PixelElement, *, has_preamble: bool, cut: bool) -> Header:
    """Return the header, unless it is no image's or not all there. `cut`: the file goes on after the bytes read."""
    media_class = str(ds.file_meta.get("MediaStorageSOPClassUID", "")).strip(" \0")
    header = parse_header(ds, transfer_syntax_of(ds), media_class)
    if header.sop_class == _MEDIA_DIRECTORY or not (header.sop_class or has_preamble):
        raise NotUsable(Refusal.NOT_DICOM)
    if pixels.tag == 0 and header.sop_class in SINGLE_FRAME and (cut or header.rows is None):
        # the limit, or the end of the file, came before the pixels or the Image Pixel module
        raise NotUsable(Refusal.TOO_LARGE if cut else Refusal.TRUNCATED)
    return header


def transfer_syntax_of(ds: FileDataset) -> str:
    """Return the transfer syntax, or what pydicom found by trying where the file does not say (PS3.10 7.1)."""
    named = str(ds.file_meta.get("TransferSyntaxUID", "")).strip(" \0")
    if named:
        return named
    implicit, little = ds.original_encoding
    if implicit:
        return encoding.IMPLICIT_LITTLE
    return encoding.EXPLICIT_LITTLE if little else encoding.EXPLICIT_BIG


def check_extent(header: Header, pixels: PixelElement, size: int, limits: Limits) -> None:
    """Compare the length of the pixel data with what the header needs and the file has, before reading it."""
    if pixels.tag != PIXEL_DATA:
        raise NotUsable(Refusal.TRUNCATED if pixels.beyond_end else Refusal.NO_PIXELS)
    if pixels.length == 0:
        raise NotUsable(Refusal.NO_PIXELS)
    if size > limits.max_file_bytes:
        raise NotUsable(Refusal.TOO_LARGE)
    native = header.transfer_syntax in encoding.NATIVE
    if native is (pixels.length == UNDEFINED_LENGTH):
        raise NotUsable(Refusal.UNREADABLE)  # PS3.5 A.4: encapsulated is undefined, native is not
    needed = native_bytes(header)
    if native and (pixels.length < needed or pixels.offset + needed > size):
        raise NotUsable(Refusal.TRUNCATED)
    if native and pixels.length >= 2 * needed + needed % 2:
        raise NotUsable(Refusal.UNREADABLE)  # room for a frame more than the header says


def native_bytes(header: Header) -> int:
    """Return the bytes of one frame when it is not compressed."""
    return (header.rows or 0) * (header.columns or 0) * (header.bits_allocated or 0) // 8


def add_pixels(file: BinaryIO, ds: FileDataset, header: Header, pixels: PixelElement) -> None:
    """Read the pixel data and nothing after it: tags ascend (PS3.5 section 7.1), so nothing there is asked for."""
    file.seek(pixels.offset)
    needed = native_bytes(header)
    if header.transfer_syntax in encoding.NATIVE:
        vr, data = pixels.vr if pixels.vr in _PIXEL_VRS else "OW", file.read(needed + needed % 2)
    else:
        vr, data = "OB", _encapsulated(file, needed)
    ds.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    ds.add_new(PIXEL_DATA, vr, data)


def _encapsulated(file: BinaryIO, native: int) -> bytes:
    try:
        data = read_undefined_length_value(file, is_little_endian=True, delimiter_tag=BaseTag(SequenceDelimiterTag))
    except EOFError as why:
        raise NotUsable(Refusal.TRUNCATED) from why  # no delimiter before the end of the file
    if refusal := encoding.judge_fragments(data or b"", native):
        raise NotUsable(refusal)
    return data or b""


def decode(ds: Dataset, header: Header) -> NDArray[np.integer]:
    """Return the stored values [H,W] as the decoder gives them."""
    if header.transfer_syntax not in encoding.NATIVE:
        encoded = get_frame(ds.PixelData, 0, number_of_frames=1)
        if refusal := _judge_frame(encoded, header):
            raise NotUsable(refusal)
    if header.transfer_syntax in encoding.JPEG:  # or GDCM ends the process where eight bits are not all stored
        ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    stored = pixel_array(ds, raw=True, decoding_plugin=_PLUGIN_FOR.get(header.transfer_syntax, ""))
    if stored.shape != (header.rows, header.columns):
        raise NotUsable(Refusal.UNREADABLE)
    return stored


def _judge_frame(encoded: bytes, header: Header) -> Refusal | None:
    rows, columns = header.rows or 0, header.columns or 0
    if header.transfer_syntax in encoding.JPEG:
        return encoding.judge_jpeg(encoded, rows, columns, header.bits_allocated or 0)
    if header.transfer_syntax == encoding.RLE_LOSSLESS:
        return encoding.judge_runs(encoded, rows, columns)
    return encoding.judge_codestream(encoded, rows, columns)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom and its decoders from saying anything. One at a time in a process: warnings are its own."""
    with silenced(*_TALKATIVE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
