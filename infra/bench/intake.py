"""Reading a hospital's archive: headers, images, and all of it once more, each beside its peer in the same run.

Ours is `scan` as the agent calls it, with two processes, from the first file that is done to the last; the time until
then is a row of its own. The peer is a loop over the same files without any check, in two processes too. All files are
in the page cache for both.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
from pydicom import dcmread

from boundary.identity import SigningIdentity
from boundary.plan import StudyPlan, parse_plan
from infra.bench.rows import Row, Target, ratio_at_least, ratio_at_most
from infra.bench.series import series_again
from infra.hospitals.writing import Identity, write_image
from silo_agent.intake.reading import Means, Memory
from silo_agent.intake.reuse import OtherScan
from silo_agent.intake.scan import scan
from silo_agent.intake.sources import FolderSource

INSTANCES, SMALL_SIDE = 10_000, 64
IMAGES, DISTINCT, SIDE, INPUT_SIDE = 160, 16, 512, 128
PROCESSES, RUNS = 2, 3
_JPEG_2000 = "1.2.840.10008.1.2.4.90"
_KEY = bytes(range(32))
_NUMBER, _PATIENT = b"7" * 12, b"8" * 12  # stand for the numbers of an instance and a patient


@dataclass(frozen=True, slots=True)
class Archive:
    """A generated one, and its label table."""

    dicom: Path
    labels: Path
    files: int


@dataclass(frozen=True, slots=True)
class Timed:
    """Of one scan, in seconds: until the first file was done, from there to the last, and all with what is written."""

    start: float
    reading: float
    whole: float


def intake() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as name:
        folder = Path(name)
        small = write_archive(folder / "small", INSTANCES, distinct=1, side=SMALL_SIDE)
        rows = [*_headers(folder, small), *_again(folder, small), *series_again(folder)]
        # where nothing is compressed there is nothing to decode: that figure is what checks and preprocessing cost
        for kind, syntax, target in (("JPEG 2000", _JPEG_2000, ratio_at_least(0.8)), ("not compressed", None, None)):
            archive = write_archive(folder / kind, IMAGES, distinct=DISTINCT, side=SIDE, syntax=syntax)
            rows.append(_images(folder, archive, kind, target))
    return rows


def _headers(folder: Path, archive: Archive) -> list[Row]:
    """A plan for another modality: every header is read and judged, and no image."""
    peer, ours, start = [], [], []
    for number in range(RUNS):
        peer.append(archive.files / peer_seconds("headers", archive.dicom))
        timed = timed_scan(archive, _plan("MR", SMALL_SIDE), folder / "headers" / str(number))
        ours.append((archive.files - 1) / timed.reading)
        start.append(timed.start)
    return [
        Row.of_runs(f"{archive.files:,} instances, headers", ours, "1/s",
                    against="dcmread(stop_before_pixels=True)", reference=median(peer), target=ratio_at_least(0.7)),
        Row.of_runs("until the first of them is done: listing, processes", start, "s"),
    ]  # fmt: skip


def _images(folder: Path, archive: Archive, kind: str, target: Target | None) -> Row:
    """Decoded and made into model inputs; the peer only decodes."""
    peer, ours = [], []
    for number in range(RUNS):
        peer.append(archive.files / peer_seconds("images", archive.dicom))
        timed = timed_scan(archive, _plan("CT", INPUT_SIDE), folder / f"{kind} cache" / str(number))
        ours.append((archive.files - 1) / timed.reading)
    figure = f"images of {SIDE} x {SIDE} to model inputs, {kind}"
    bare = "dcmread().pixel_array"
    return Row.of_runs(figure, ours, "1/s", against=bare, reference=median(peer), target=target)


def _again(folder: Path, archive: Archive) -> list[Row]:
    """Scans of an archive of which everything is known: none of it used, and all of it."""
    first = OtherScan(folder / "again" / "first", _KEY)
    # files are remembered once they have not changed for a while
    memory = Memory(folder / "index.sqlite", datetime.now(UTC) + timedelta(hours=1), (first,))
    once = timed_scan(archive, _plan("CT", SMALL_SIDE), first.cache, memory).whole
    files = [os.fspath(path) for path in sorted(archive.dicom.rglob("*.dcm"))]
    stats = [_seconds(lambda: [os.stat(file) for file in files]) for _ in range(RUNS)]  # noqa: PTH116 - the bare call
    nothing, everything = _plan("MR", SMALL_SIDE), _plan("CT", SMALL_SIDE)
    unused = [timed_scan(archive, nothing, folder / "again" / "none", memory).whole for _ in range(RUNS)]
    used = [timed_scan(archive, everything, folder / "again" / "all", memory).whole for _ in range(RUNS)]
    peer = _each(archive, stats)
    return [
        Row.of_runs("unchanged, none of use to the plan, each", _each(archive, unused), "us",
                    against="os.stat", reference=median(peer), target=ratio_at_most(20)),
        Row.of_runs("unchanged, all used, each", _each(archive, used), "us",
                    against="os.stat", reference=median(peer)),
        Row.of_runs("all used, scanned for the first time, each", _each(archive, [once]), "us"),
    ]  # fmt: skip


def _each(archive: Archive, seconds: list[float]) -> list[float]:
    return [one / archive.files * 1e6 for one in seconds]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def timed_scan(archive: Archive, plan: StudyPlan, cache: Path, memory: Memory | None = None) -> Timed:
    told: list[float] = []
    begun = time.perf_counter()
    scan(
        FolderSource(archive.dicom, archive.labels), plan, _KEY, cache,
        lambda _done, _files: told.append(time.perf_counter()), means=Means(PROCESSES, memory=memory),
    )  # fmt: skip
    return Timed(told[0] - begun, told[-1] - told[0], time.perf_counter() - begun)


def _plan(modality: str, side: int) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "none: no data of persons")
    hospitals = [{"silo": f"hospital-{n}", "signing_key": SigningIdentity.generate().public.text} for n in range(3)]
    return parse_plan(
        {
            "version": 1,
            "name": "bench",
            "revision": 1,
            "purpose": {**purpose, "expires": "2099-12-31"},
            "hospitals": hospitals,
            "model": {"name": "densenet-small", "version": 1},
            "preprocessing": {"size": [side, side], "intensity": "window", "low": -150.0, "high": 350.0},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "bench", "modalities": [modality], "max_images_per_patient": 1000},
            "training": {"rounds": 1},
        }
    )


# --- the archive ---------------------------------------------------------------------------------------
def write_archive(folder: Path, files: int, *, distinct: int, side: int, syntax: str | None = None) -> Archive:
    """CT slices, ten of each patient, with a label each. Of compressed ones only `distinct` have pixels of their own.

    Only what differs from file to file is written anew, so that ten thousand take seconds.
    """
    slices = [_slice(folder / "template.dcm", number, side, syntax) for number in range(distinct)]
    rows = ["SOPInstanceUID,contrast"]
    for number in range(files):
        data = (
            slices[number % distinct].replace(_NUMBER, b"%012d" % number).replace(_PATIENT, b"%012d" % (number // 10))
        )
        if syntax is None:
            data = data[:-4] + number.to_bytes(4, "little")
        path = folder / "dicom" / f"{number // 1000:03}" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append(f"2.25.1{number:012d},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows), "utf-8")
    return Archive(folder / "dicom", folder / "labels.csv", files)


def _slice(path: Path, number: int, side: int, syntax: str | None) -> bytes:
    """A smooth image with noise, as tissue is: what a codec has to work on."""
    noise = np.random.default_rng(number).normal(0, 20, (side, side))
    y, x = np.mgrid[:side, :side]
    pixels = (1000 * np.sin(x / 37 + number) + 800 * np.cos(y / 23) + noise).astype(np.int16)
    patient, names = _PATIENT.decode(), {"SOPInstanceUID": f"2.25.1{_NUMBER.decode()}"}
    write_image(path, pixels, identity=Identity("bench", patient), modality="CT", extra=names)
    if syntax is not None:
        ds = dcmread(path)
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path)
    data = path.read_bytes()
    path.unlink()
    return data


# --- the peer ------------------------------------------------------------------------------------------
def peer_seconds(what: str, folder: Path) -> float:
    """The bare loop over every file in as many processes, from when all of them are up until all are done."""
    command = [sys.executable, "-m", "infra.bench.intake", what, str(folder)]
    with ExitStack() as stack:
        peers = [
            stack.enter_context(
                subprocess.Popen([*command, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for part in range(PROCESSES)
        ]
        _hear(peers)
        begun = time.perf_counter()
        for peer in peers:
            print(file=peer.stdin, flush=True)
        _hear(peers)
        return time.perf_counter() - begun


def _hear(peers: list[subprocess.Popen[str]]) -> None:
    for peer in peers:
        if peer.stdout is None or not peer.stdout.readline():
            raise RuntimeError("a process of the peer ended early")


def main(what: str, folder: str, part: str) -> None:
    """In a process of the peer."""
    files = [os.fspath(path) for path in sorted(Path(folder).rglob("*.dcm"))[int(part) :: PROCESSES]]
    read = {"headers": _read_header, "images": _read_image}[what]
    print("up", flush=True)
    sys.stdin.readline()
    for file in files:
        read(file)
    print("done", flush=True)


def _read_header(file: str) -> None:
    dcmread(file, stop_before_pixels=True)


def _read_image(file: str) -> None:
    _ = dcmread(file).pixel_array


if __name__ == "__main__":
    main(*sys.argv[1:])
