"""Looks for traces of patients in everything a party holds: identifiers as text, pixels as bytes.

A needle is found wherever its bytes stand, in a database page as well as in a log. Compressed or encrypted copies
would not be found; the coordinator holds the key of none that it could not open, and opens none to disk.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pydicom

WINDOW = 24  # bytes of raw pixels: long enough that two equal ones are no accident
SHORTEST = 5  # bytes of an identifier: shorter ones stand in any database by accident
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "PatientName", "AccessionNumber")


def needles_of(archive: Path) -> set[bytes]:
    """Identifiers, file names and runs of pixels of every DICOM file under `archive`."""
    found: set[bytes] = set()
    for path in sorted(archive.rglob("*")):
        if not path.is_file() or path.suffix == ".csv":
            continue
        found.add(str(path).encode())
        dataset = pydicom.dcmread(path, force=True)
        for keyword in UIDS:
            text = str(dataset.get(keyword, "")).encode()
            if len(text) >= SHORTEST:
                found |= {text, text.decode().encode("utf-16-le")}
        found |= set(_windows(bytes(dataset.get("PixelData", b""))))
    return found


def _windows(pixels: bytes) -> Iterator[bytes]:
    """Runs from the middle of the image that are not background: at least eight different bytes."""
    taken = 0
    for at in range(len(pixels) // 3, len(pixels) - WINDOW, max(WINDOW, len(pixels) // 200)):
        run = pixels[at : at + WINDOW]
        if len(set(run)) >= 8:
            yield run
            taken += 1
            if taken == 8:
                return


def find_leaks(root: Path, needles: Iterable[bytes], *, leave_out: Iterable[Path] = ()) -> list[tuple[Path, bytes]]:
    """Give (file, needle) for every needle in any file under `root`."""
    wanted = sorted(needles)
    heads = np.unique(np.array([int.from_bytes(needle[:4], "little") for needle in wanted], dtype=np.uint32))
    by_head: dict[bytes, list[bytes]] = {}
    for needle in wanted:
        by_head.setdefault(needle[:4], []).append(needle)
    skipped = [path.resolve() for path in leave_out]
    found: list[tuple[Path, bytes]] = []
    for path in sorted(root.rglob("*")):
        if not path.is_file() or any(path.resolve().is_relative_to(skip) for skip in skipped):
            continue
        found += [(path, needle) for needle in sorted(_in(path.read_bytes(), heads, by_head))]
    return found


def _in(
    data: bytes, heads: "np.ndarray[tuple[int], np.dtype[np.uint32]]", by_head: dict[bytes, list[bytes]]
) -> set[bytes]:
    """Needles in `data`: four bytes at every offset are looked up, and only hits are compared in full."""
    hits: set[bytes] = set()
    for shift in range(4):
        words = np.frombuffer(data, dtype="<u4", offset=min(shift, len(data)), count=max(0, (len(data) - shift) // 4))
        for index in np.flatnonzero(np.isin(words, heads)):
            at = shift + 4 * int(index)
            hits |= {needle for needle in by_head[data[at : at + 4]] if data.startswith(needle, at)}
    return hits
