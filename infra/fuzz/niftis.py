"""NIfTI masks for the fuzzer, with gzip and without, and ways to damage them. Source: nifti1.h."""

import gzip
import struct
import zlib
from collections.abc import Callable
from random import Random

import numpy as np

from infra.fuzz.mutations import append_zeros, blank, flip_bytes, repeat_bytes, take_out
from infra.fuzz.seeds import Seed

_HEADER_BYTES = 348
_SHAPE = (6, 16, 12)  # k, j, i
_TYPES = {"u1": 2, "i2": 4, "u2": 512, "i8": 1024}
# Where numbers of the header lie, and of which format: dim, datatype, pixdim, vox_offset and slopes, the two codes,
# quaternion and offset, sform.
_FIELDS = (
    *((at, "h") for at in (*range(40, 56, 2), 70, 72, 252, 254)),
    *((at, "f") for at in (*range(76, 120, 4), *range(256, 280, 4), *range(280, 328, 4))),
    (0, "i"), (123, "b"), (344, "i"),
)  # fmt: skip
_WHOLE = (0, 1, -1, 2, 3, 7, 8, 127, -128, 255, 256, 348, 352, 768, 1280, 32767, -32768, 2**31 - 1, -(2**31))
_REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 348.0, 351.5, 1e-40, 1e9, 1e30, float("nan"), float("inf"), float("-inf"))


def niftis() -> tuple[Seed, ...]:
    """One of each type of values and byte order, each with gzip too."""
    plain = {
        f"{kind}{order}": _written(kind, order) for kind, order in (("u1", "<"), ("i2", "<"), ("u2", ">"), ("i8", "<"))
    }
    return tuple(
        Seed(f"NIfTI {name}{end}", (pack(data),))
        for name, data in plain.items()
        for end, pack in (("", bytes), (" gzip", lambda data: gzip.compress(data, mtime=0)))
    )


def damaged(chance: Random, data: bytes) -> tuple[tuple[str, ...], bytes]:
    """What was done, and the result. Damage to what is packed is done below the gzip, or to it."""
    names, is_packed = list[str](), data.startswith(b"\x1f\x8b")
    unpacks = is_packed and chance.random() < 0.7
    data = gzip.decompress(data) if unpacks else data
    for name in chance.choices(tuple(MUTATIONS), k=chance.choice((1, 1, 2, 3))):
        data = MUTATIONS[name](chance, data)
        names.append(name)
    if unpacks:
        data = gzip.compress(data, 1, mtime=0)
        if chance.random() < 0.2:
            names.append("its end is cut off")
            data = data[: chance.randrange(len(data))]
    return tuple(names), data


def _written(kind: str, order: str) -> bytes:
    header = bytearray(_HEADER_BYTES + 4)

    def put(at: int, form: str, *what: float) -> None:
        struct.pack_into(order + form, header, at, *what)

    put(0, "i", _HEADER_BYTES)
    put(40, "8h", 3, *_SHAPE[::-1], 1, 1, 1, 1)
    put(70, "2h", _TYPES[kind], 8 * np.dtype(kind).itemsize)
    put(76, "8f", 1, 0.8, 0.8, 3, 0, 0, 0, 0)
    put(108, "3f", _HEADER_BYTES + 4, 1, 0)
    put(123, "b", 2)
    put(252, "2h", 1, 1)
    put(256, "6f", 0, 0, 1, 10, 20, 30)
    put(280, "12f", 0.8, 0, 0, 10, 0, 0.8, 0, 20, 0, 0, 3, 30)
    header[344:348] = b"n+1\0"
    values = (np.arange(np.prod(_SHAPE)).reshape(_SHAPE) % 5 == 0).astype(order + kind)
    return bytes(header) + values.tobytes()


def _set_field(chance: Random, data: bytes) -> bytes:
    at, form = chance.choice(_FIELDS)
    value: float = chance.choice(_REAL) if form == "f" else chance.choice(_WHOLE)
    changed = bytearray(data)
    if at + struct.calcsize(form) <= len(changed):
        most = 1 << (8 * struct.calcsize(form) - 1)
        fitting = value if form == "f" else (int(value) + most) % (2 * most) - most
        struct.pack_into(chance.choice("<>") + form, changed, at, fitting)
    return bytes(changed)


def _swell(_chance: Random, data: bytes) -> bytes:
    """As many voxels as a header may name, and zeros that pack a thousandfold."""
    changed = bytearray(data[: _HEADER_BYTES + 4].ljust(_HEADER_BYTES + 4, b"\0"))
    struct.pack_into("<8h", changed, 40, 3, 1024, 1024, 1, 1, 1, 1, 1)
    struct.pack_into("<h", changed, 70, _TYPES["u1"])
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(bytes(changed) + bytes(64 << 20)) + packer.flush()


MUTATIONS: dict[str, Callable[[Random, bytes], bytes]] = {
    "a number of the header is odd": _set_field,
    "bytes of the header are flipped": lambda chance, data: (
        flip_bytes(chance, data[:_HEADER_BYTES]) + data[_HEADER_BYTES:]
    ),
    "bytes are flipped": flip_bytes,
    "bytes are taken out": take_out,
    "bytes are repeated": repeat_bytes,
    "bytes are blanked": blank,
    "zeros follow": append_zeros,
    "it is cut off": lambda chance, data: data[: chance.randrange(len(data) + 1)],
    "gzip twice": lambda _chance, data: gzip.compress(data, 1, mtime=0),
    "it swells when it is unpacked": _swell,
}
