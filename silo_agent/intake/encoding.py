"""How pixel data may be stored, and the limits it is held to before a single byte of it is expanded.

Sources: DICOM PS3.5 section 10 and annex A (transfer syntaxes), PS3.5 annex A.5 (deflate), annex G (RLE), ISO/IEC
15444-1 annex A.4 to A.6 (the markers SOT, SIZ and COD of a JPEG 2000 codestream), ISO/IEC 10918-1 annex B (markers of
JPEG, SOF3 for its lossless processes), ISO/IEC 14495-1 annex C (SOF55, and NEAR in the scan header of JPEG-LS).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from silo_agent.intake.refusals import Refusal

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"  # retired in 2006, archives still hold it
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"  # what most archives compress with
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"

NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG})
JPEG_2000 = frozenset({JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL})
JPEG = frozenset({JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS})
READABLE = NATIVE | JPEG_2000 | JPEG | {RLE_LOSSLESS}

# Whole data set deflated, so nothing about it is known before it is inflated. Rare enough to refuse.
DEFLATED = frozenset(
    {
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    }
)

LOSSY = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # JPEG Baseline
        "1.2.840.10008.1.2.4.51",  # JPEG Extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000: lossy or not, the syntax does not say
        "1.2.840.10008.1.2.4.93",  # JPEG 2000 Part 2 Multi-component
        "1.2.840.10008.1.2.4.112",  # JPEG XL
        "1.2.840.10008.1.2.4.203",  # HTJ2K: lossy or not, the syntax does not say
    }
)
_VIDEO_PREFIX = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4, HEVC: .100 to .108

_CODESTREAM_START = b"\xff\x4f\xff\x51"  # SOC and then always SIZ
_CODESTREAM_END = b"\xff\xd9"
_ITEM = b"\xfe\xff\x00\xe0"
_MOST_FRAGMENTS = 64  # encoders write one, seldom a few, or one per 64 kB; empty ones by the million are a bomb
_FRAGMENT_BYTES = 4096
_SMALLEST_ALLOWANCE = 64 * 1024  # bytes: a tiny image compresses to more than itself
_COD, _COC, _SOT, _SOD = 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SOT_BYTES = 12
_JPEG_START = b"\xff\xd8"
_LS_FRAME = 0xFFF7  # SOF55
_LOSSLESS_FRAMES = frozenset({0xFFC3, _LS_FRAME})
_FRAMES = _LOSSLESS_FRAMES | (frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC})  # not DHT, JPG, DAC
_FIRST_WITH_LENGTH, _SOS, _APP0 = 0xFFC0, 0xFFDA, 0xFFE0
_MOST_TILES, _TILE_PIXELS = 256, 1024  # a decoder keeps about 7 kB for each tile, whatever its size
_MOST_PRECINCTS, _PRECINCT_PIXELS = 4096, 64  # and 400 bytes for each precinct: 1 x 1 turns 6 kB into gigabytes
_MOST_PACKETS = 65_536  # layers times precincts; more of them where there are more pixels
_LONGEST_RUN = 64  # bytes of image from each byte of RLE: two make 128
_EXPANDED_UNASKED = 64 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost. Bytes; pixel bytes are those after decompression."""

    max_file_bytes: int = 256 * 1024 * 1024
    max_pixel_bytes: int = 256 * 1024 * 1024  # a 43 x 35 cm detector at 100 um has 30 MB
    max_side: int = 16_384  # pixels
    max_header_bytes: int = 16 * 1024 * 1024  # before the pixel data
    max_items: int = 50_000  # of sequences, in one header: each becomes an object of one or two kB


def judge_transfer_syntax(uid: str) -> Refusal | None:
    """Whether we decode this transfer syntax: an allow-list, so what is new is refused until it is added."""
    if uid in LOSSY or (uid.startswith(_VIDEO_PREFIX) and len(uid) == len(_VIDEO_PREFIX) + 1):
        return Refusal.LOSSY_NOT_ALLOWED
    return None if uid in READABLE else Refusal.TRANSFER_SYNTAX


def judge_size(rows: int, columns: int, bits_allocated: int, limits: Limits) -> Refusal | None:
    """Hold the declared size (pixels, bits) to the limits before anything is allocated for it."""
    if rows < 1 or columns < 1 or bits_allocated not in {8, 16}:
        return Refusal.UNREADABLE
    if max(rows, columns) > limits.max_side or rows * columns * bits_allocated // 8 > limits.max_pixel_bytes:
        return Refusal.TOO_LARGE
    return None


def judge_codestream(data: bytes, rows: int, columns: int) -> Refusal | None:
    """Compare a JPEG 2000 codestream's own size with the header's, look for its end, and count what it is cut into.

    A codestream carries its own dimensions, and a decoder allocates by those: a 16 x 16 header must not open a
    60000 x 60000 image, nor as many tiles, precincts or packets. What does not start as a bare codestream (PS3.5
    A.4.4), or says its coding style more than once, is refused too.
    """
    if len(data) < 42 or data[:4] != _CODESTREAM_START:
        return Refusal.UNREADABLE
    width, height, left, top, *tiles, components = struct.unpack_from(">8IH", data, 8)  # Xsiz to YTOsiz, Csiz
    if (height - top, width - left) != (rows, columns) or components != 1:
        return Refusal.UNREADABLE
    if not data.rstrip(b"\x00").endswith(_CODESTREAM_END):
        return Refusal.TRUNCATED
    try:
        return _judge_tiles(width, height, *tiles) or _judge_markers(data, rows, columns)
    except (struct.error, IndexError):
        return Refusal.UNREADABLE


def _judge_tiles(width: int, height: int, tile_width: int, tile_height: int, left: int, top: int) -> Refusal | None:
    if 0 in {tile_width, tile_height} or left > width or top > height:
        return Refusal.UNREADABLE
    count = -(-(width - left) // tile_width) * -(-(height - top) // tile_height)
    return Refusal.TOO_LARGE if count > max(_MOST_TILES, width * height // _TILE_PIXELS) else None


def _judge_markers(data: bytes, rows: int, columns: int) -> Refusal | None:
    """Judge the coding style, which is said once, in the main header: of one component, and of all tiles alike."""
    styles = []
    for marker, at, is_main in _markers(data):
        if marker == _COC or (marker == _COD and not is_main):
            return Refusal.UNREADABLE
        if marker == _COD:
            styles.append(at)
    if len(styles) != 1:
        return Refusal.UNREADABLE
    layers, levels = struct.unpack_from(">HxB", data, styles[0] + 4)
    precincts, pixels = _precincts(data, styles[0], levels, rows, columns), rows * columns
    too_many = precincts > max(_MOST_PRECINCTS, pixels // _PRECINCT_PIXELS)
    return Refusal.TOO_LARGE if too_many or layers * precincts > max(_MOST_PACKETS, pixels) else None


def _precincts(data: bytes, at: int, levels: int, rows: int, columns: int) -> int:
    """How many precincts there are in all resolutions; `at` is the length of COD (ISO/IEC 15444-1 A.6.1)."""
    own_sizes = data[at + 2] & 1
    total = 0
    for level in range(min(levels, 32) + 1):
        size = data[at + 12 + level] if own_sizes else 0xFF
        down = min(levels, 32) - level
        wide, high = -(-columns >> down), -(-rows >> down)
        total += -(-wide >> (size & 15)) * -(-high >> (size >> 4))
    return total


def _markers(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """(marker, offset of its length, whether it is in the main header) up to the data of the last tile-part."""
    at, part = 2, None
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == _SOT:
            part = at
            at += _SOT_BYTES
        elif marker == _SOD and part is not None:
            stated = struct.unpack_from(">I", data, part + 6)[0]  # Psot; zero: to the end
            if stated < at + 2 - part:
                return
            at = part + stated
        elif marker < 0xFF00 or length < 2:
            return
        else:
            yield marker, at + 2, part is None
            at += 2 + length


def judge_jpeg(data: bytes, rows: int, columns: int, bits_allocated: int) -> Refusal | None:
    """Compare the frame header of JPEG or JPEG-LS with the image, look for its end, and for loss that is not declared.

    One frame header of a lossless process and one scan of one component, as a decoder would otherwise allocate by what
    the stream says or mix what it finds. A sample takes as many bytes as the header of the image allocates.
    """
    if not data.startswith(_JPEG_START):
        return Refusal.UNREADABLE
    if not data.rstrip(b"\x00").endswith(_CODESTREAM_END):
        return Refusal.TRUNCATED
    try:
        frames, scan = _jpeg_headers(data)
        precision, height, width, components = struct.unpack_from(">BHHB", data, frames[0] + 2)
        selection = data[scan + 5]  # after length, count, one selector and its table: Ss of JPEG, NEAR of JPEG-LS
    except (struct.error, IndexError):
        return Refusal.UNREADABLE
    is_ls = data[frames[0] - 1] == _LS_FRAME & 0xFF
    is_known = is_ls or 1 <= selection <= 7  # predictors, table H.1
    is_whole = len(frames) == 1 and (height, width, components, data[scan + 2]) == (rows, columns, 1, 1)
    fits = 2 <= precision <= 16 and (precision <= 8 or bits_allocated > 8)
    if not (is_whole and is_known and fits):
        return Refusal.UNREADABLE
    return Refusal.LOSSY_NOT_ALLOWED if is_ls and selection != 0 else None


def _jpeg_headers(data: bytes) -> tuple[list[int], int]:
    """Where the lengths of the frame headers and of the first scan header are. Raises `IndexError` without a scan."""
    at, frames = 2, list[int]()
    while True:
        if data[at] != 0xFF:
            raise IndexError
        marker, length = 0xFF00 | data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFFFF:  # fill
            at += 1
            continue
        if marker == _SOS:
            return frames, at + 2
        if marker in _FRAMES and marker not in _LOSSLESS_FRAMES:
            raise IndexError
        is_foreign = marker == _APP0 and data[at + 4 : at + 8] == b"JFIF" and data[at + 9] != 1
        if length < 2 or marker < _FIRST_WITH_LENGTH or is_foreign:  # GDCM ends the process for what it warns of
            raise IndexError
        if marker in _FRAMES:
            frames.append(at + 2)
        at += 2 + length


def judge_encoded(length: int, native: int) -> Refusal | None:
    """Compare the bytes of one compressed frame with those it has when it is not: no lossless encoder doubles it."""
    return Refusal.TOO_LARGE if length > max(2 * native, _SMALLEST_ALLOWANCE) else None


def judge_fragments(data: bytes, native: int) -> Refusal | None:
    """Judge the encapsulated pixel data of one frame (PS3.5 A.4) before its fragments are put together."""
    if data.count(_ITEM) > most_fragments(native):
        return Refusal.TOO_LARGE
    return judge_encoded(len(data), native)


def most_fragments(native: int) -> int:
    """Into how many fragments a frame of so many bytes may be cut."""
    return max(_MOST_FRAGMENTS, native // _FRAGMENT_BYTES)


def judge_runs(data: bytes, rows: int, columns: int) -> Refusal | None:
    """Add up what the segments of RLE (PS3.5 annex G) would expand to, where that may be much.

    The decoder expands a segment whole before it looks how long it has become, and each of its two.
    """
    if len(data) * _LONGEST_RUN <= _EXPANDED_UNASKED or len(data) < 64:
        return None
    count = min(struct.unpack_from("<I", data)[0], 15)
    starts = struct.unpack_from(f"<{count}I", data, 4)
    too_long = any(
        _expands_beyond(data, start, end, most=2 * rows * columns)
        for start, end in zip(starts, (*starts[1:], len(data)), strict=True)
    )
    return Refusal.TOO_LARGE if too_long else None


def _expands_beyond(data: bytes, at: int, end: int, most: int) -> bool:
    expanded = 0
    while at < min(end, len(data)) and expanded <= most:
        run = data[at]
        expanded += run + 1 if run < 128 else 257 - run if run > 128 else 0
        at += run + 2 if run < 128 else 2 if run > 128 else 1
    return expanded > most
