"""How pixel data may be stored, and the limits it is held to before a single byte of it is expanded.

Sources: DICOM PS3.5 section 10 and annex A (transfer syntaxes), PS3.5 annex A.5 (deflate), ISO/IEC 15444-1
annex A.5.1 (the SIZ marker of a JPEG 2000 codestream).
"""

import struct
from dataclasses import dataclass

from silo_agent.intake.refusals import Refusal

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"  # retired in 2006, archives still hold it
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"

NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG})
JPEG_2000 = frozenset({JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL})
READABLE = NATIVE | JPEG_2000 | {RLE_LOSSLESS}

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


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost. Bytes; pixel bytes are those after decompression."""

    max_file_bytes: int = 256 * 1024 * 1024
    max_pixel_bytes: int = 256 * 1024 * 1024  # a 43 x 35 cm detector at 100 um has 30 MB
    max_side: int = 16_384  # pixels


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
    """Compare a JPEG 2000 codestream's own size with the header's, and look for its end.

    A codestream carries its own dimensions, and a decoder allocates by those: a 16 x 16 header must not
    open a 60000 x 60000 image. What does not start as a bare codestream (PS3.5 A.4.4) is refused too.
    """
    if len(data) < 24 or data[:4] != _CODESTREAM_START:
        return Refusal.UNREADABLE
    width, height, left, top = struct.unpack_from(">4I", data, 8)  # Xsiz, Ysiz, XOsiz, YOsiz
    if (height - top, width - left) != (rows, columns):
        return Refusal.UNREADABLE
    if not data.rstrip(b"\x00").endswith(_CODESTREAM_END):
        return Refusal.TRUNCATED
    return None
