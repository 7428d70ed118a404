"""What reading may do, whatever the file: the promises, each a sentence when it is broken.

The readers are arguments, so that a test can hand in one that breaks a promise and see it found.
"""

import logging
import math
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

from infra.fuzz import oracle
from infra.fuzz.cases import Case
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused, StoredImage, read_image
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import Volume, assemble, volume_digest
from silo_agent.intake.volumes.geometry import Grid, place
from silo_agent.intake.volumes.opened import OpenVolumeFile
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
from silo_agent.intake.volumes.survey import Survey, survey

ALL = ("CT", "CR", "DX", "US", "MR")
MiB = 1 << 20
# Far below those of a hospital, so that what goes beyond them is seen without filling the machine.
LIMITS = Limits(max_file_bytes=8 * MiB, max_pixel_bytes=MiB, max_side=4096, max_header_bytes=2 * MiB, max_items=5000)
VOLUME_LIMITS = VolumeLimits(
    file=LIMITS,
    max_header_bytes=2 * MiB,
    max_items=5000,
    max_frames=128,
    max_voxels=1 << 20,
    max_source_bytes=16 * MiB,
)
_NOT_OF_A_FILE = frozenset({Refusal.PERMISSION_DENIED, Refusal.READ_ERROR})  # the storage of a fuzzer does not fail
MOST_MEMORY, MEMORY_PER_BYTE = 40 * MiB, 6  # a megabyte of pixels as float64, several times over
MOST_READ, READ_PER_BYTE = 2 * MiB, 6  # a codec of Python may be imported meanwhile


@dataclass
class Verdict:
    """How one case ended, with the most that one of its readings took.

    `ends` are codes, "used", "mask", "plane" or "volume"; `broken` are promises that were not kept.
    """

    ends: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    confirmed: int = 0  # images and slices whose values pydicom gives too
    unconfirmed: int = 0  # those that pydicom gives no values for
    traced: bool = False
    peak: int = 0  # bytes of Python's and NumPy's memory, if it was traced
    grown: int = 0  # bytes by which the process grew
    read: int = 0  # bytes

    def hold(self, otherwise: str, *, kept: bool) -> None:
        if not kept:
            self.broken.append(otherwise)


def read_nifti(path: Path) -> Iterator[Refused | tuple[tuple[int, int], Any]]:
    """The shape that the header says and the values of each plane of a mask, or why it is none."""
    with closing(OpenVolumeFile(path, 0, Acceptance(frozenset()), VOLUME_LIMITS)) as file:
        says = file.facts(is_nifti=True)
        if says.nifti is None:
            yield Refused(says.code or Refusal.UNREADABLE)
            return
        for number in range(says.nifti.shape[0]):
            values = file.frame(number)
            yield values if isinstance(values, Refused) else (says.nifti.shape[1:], values)


def read_mask(path: Path) -> Iterator[Refused | tuple[tuple[int, int], Any]]:
    """The shape that the header says and the values of each frame, if the file is a segmentation; or why it is none."""
    how = Acceptance(frozenset(), take_masks=True)
    with closing(OpenVolumeFile(path, 0, how, VOLUME_LIMITS)) as file:
        says = file.facts(is_nifti=False)
        if says.code is not None:
            yield Refused(says.code)
        elif says.segmentation is not None:
            found = says.segmentation
            for number in range(len(found.frames)):
                values = file.frame(number)
                yield values if isinstance(values, Refused) else ((found.rows, found.columns), values)


@dataclass(frozen=True, slots=True)
class Readers:
    """What is put to the test."""

    image: Callable[[Path], Any] = lambda path: read_image(path, modalities=ALL, limits=LIMITS)
    mask: Callable[[Path], Any] = read_mask
    nifti: Callable[[Path], Any] = read_nifti
    survey: Callable[[Sequence[Path]], Any] = lambda files: survey(
        files, modalities=("CT", "MR"), limits=VOLUME_LIMITS, take_secondary=True
    )
    assemble: Callable[[Grid, Sequence[Path]], Any] = lambda grid, files: assemble(
        grid, files, limits=VOLUME_LIMITS, take_secondary=True
    )


def judge(case: Case, folder: Path, readers: Readers, *, traced: bool) -> Verdict:
    """Write the files of a case into `folder`, read them, and hold what happens to the promises."""
    paths = [folder / f"{number:02}.dcm" for number in range(len(case.files))]
    for path, data in zip(paths, case.files, strict=True):
        path.write_bytes(data)
    try:
        return judge_files(paths, readers, kind=case.kind, traced=traced)
    finally:
        for path in paths:
            path.unlink()


def judge_files(
    paths: list[Path], readers: Readers, *, kind: Literal["image", "series", "nifti"], traced: bool
) -> Verdict:
    """Read the slices of a series, one image or one NIfTI mask.

    `traced`: follow every allocation of Python and NumPy, which sees memory that is asked for and never touched. It
    takes three times as long.
    """
    verdict = Verdict(traced=traced)
    try:
        match kind:
            case "series":
                _judge_series(paths, readers, verdict)
            case "image":
                _judge_image(paths[0], readers, verdict)
            case "nifti":
                _judge_nifti(paths[0], readers, verdict)
    except Exception as why:  # noqa: BLE001 - nothing at all may leave the readers
        verdict.broken.append(f"it raises {type(why).__name__}: {why}"[:300])
    return verdict


# --- single images ---------------------------------------------------------------------------------------
def _judge_image(path: Path, readers: Readers, verdict: Verdict) -> None:
    with _watched(verdict, path.stat().st_size):
        found = readers.image(path)
    if isinstance(found, Refused):
        _judge_code(found.code, verdict)
    elif isinstance(found, StoredImage):
        verdict.ends.append("used")
        _judge_stored(path, found, verdict)
    else:
        verdict.broken.append(f"it gives a {type(found).__name__}")
    with _watched(verdict, path.stat().st_size):
        for one in readers.mask(path):
            _judge_mask(one, verdict)


def _judge_nifti(path: Path, readers: Readers, verdict: Verdict) -> None:
    with _watched(verdict, path.stat().st_size, may_inflate=True):
        for one in readers.nifti(path):
            if isinstance(one, Refused):
                _judge_code(one.code, verdict)
                continue
            shape, values = one
            verdict.ends.append("plane")
            verdict.hold(f"a plane is {values.shape} {values.dtype}", kept=values.shape == shape)
            verdict.hold("a plane has no whole numbers", kept=bool((values == np.rint(values)).all()))


def _judge_mask(one: Any, verdict: Verdict) -> None:
    if isinstance(one, Refused):
        _judge_code(one.code, verdict)
        return
    shape, values = one
    verdict.ends.append("mask")
    verdict.hold(f"a frame of a mask is {values.shape}", kept=values.shape == shape)
    verdict.hold("a mask is not of zeros and ones", kept=bool(np.isin(values, (0, 1)).all()))


def _judge_code(code: object, verdict: Verdict) -> None:
    verdict.hold(f"it gives the code {code!r}, which is none", kept=isinstance(code, Refusal))
    verdict.hold(f"it blames the storage: {code}", kept=code not in _NOT_OF_A_FILE)
    verdict.ends.append(str(code))


def _judge_stored(path: Path, found: StoredImage, verdict: Verdict) -> None:
    image, who = found.image, found.identifiers
    verdict.hold(f"the image is {image.dtype} {image.shape}", kept=image.dtype == np.float32 and image.ndim == 2)
    verdict.hold("the image is not finite", kept=bool(np.isfinite(image).all()))
    for name, text in (("PatientID", who.patient_id), ("SOPInstanceUID", who.sop_uid)):
        verdict.hold(f"{name} is not one text of Unicode", kept=_is_one_text(text))
    verdict.hold(f"the modality is {found.modality}", kept=found.modality in ALL)
    (expected,) = oracle.frames_of(path) or (None,)
    if expected is None:
        verdict.unconfirmed += 1
        return
    verdict.confirmed += 1
    verdict.hold("pydicom gives other stored values", kept=found.content == expected.content)
    same = image.shape == expected.stored.shape and np.allclose(image, expected.values, rtol=1e-6, equal_nan=True)
    verdict.hold("the values are not what the stored ones mean", kept=bool(same))


def _is_one_text(text: str) -> bool:
    try:
        return bool(text.encode()) and "\\" not in text and not text.startswith("[")
    except UnicodeEncodeError:
        return False


# --- volumes -----------------------------------------------------------------------------------------------
def _judge_series(paths: list[Path], readers: Readers, verdict: Verdict) -> None:
    size = sum(path.stat().st_size for path in paths)
    made: list[tuple[Grid, Any]] = []
    with _watched(verdict, size):
        found: Survey = readers.survey(paths)
        for stack in found.stacks:
            grid = place(stack.slices) if stack.refusal is None else stack.refusal
            if isinstance(grid, Grid):
                made.append((grid, readers.assemble(grid, paths)))
            else:
                _judge_code(grid, verdict)
    for code in (*(code for _, code in found.refused), *(code for _, code in found.refused_files)):
        _judge_code(code, verdict)
    everywhere = [one.file for stack in found.stacks for one in stack.slices] + [one.file for one, _ in found.refused]
    ended = {*everywhere, *(file for file, _ in found.refused_files)}
    verdict.hold("a file ends nowhere", kept=ended == set(range(len(paths))))
    for grid, volume in made:
        if isinstance(volume, Refused):
            _judge_code(volume.code, verdict)
        elif isinstance(volume, Volume):
            verdict.ends.append("volume")
            _judge_volume(paths, grid, volume, verdict)
        else:
            verdict.broken.append(f"it gives a {type(volume).__name__}")


def _judge_volume(paths: list[Path], grid: Grid, volume: Volume, verdict: Verdict) -> None:
    image, affine = volume.image, volume.affine
    kept = image.dtype == np.float32 and image.shape == grid.shape
    verdict.hold(f"the volume is {image.dtype} {image.shape}", kept=kept)
    verdict.hold("the volume is not finite", kept=bool(np.isfinite(image).all()))
    verdict.hold("its digest is another one's", kept=volume.content == volume_digest(image))
    invertible = bool(np.isfinite(affine).all()) and bool(np.isfinite(np.linalg.inv(affine)).all())
    verdict.hold("the affine leads nowhere", kept=affine.shape == (4, 4) and invertible)
    verdict.hold(f"the spacing is {volume.spacing_mm}", kept=all(0 < one < 1e4 for one in volume.spacing_mm))
    frames = {number: oracle.frames_of(paths[number]) for number in {one.file for one in grid.slices}}
    for depth, one in enumerate(grid.slices):
        expected = frames[one.file]
        if expected is None or one.frame >= len(expected):
            verdict.unconfirmed += 1
            continue
        verdict.confirmed += 1
        frame = expected[one.frame]
        same = frame.values.shape == image[depth].shape and np.allclose(image[depth], frame.values, rtol=1e-6)
        verdict.hold("a slice has other values than pydicom gives", kept=bool(same))
        apart = math.inf if frame.position is None else math.dist((affine @ [depth, 0, 0, 1])[:3], frame.position)
        verdict.hold("a slice lies elsewhere than it says", kept=apart <= 0.1 + volume.spacing_mm[0] / 50)


# --- what it costs, and what it says -----------------------------------------------------------------------
@contextmanager
def _watched(verdict: Verdict, size: int, *, may_inflate: bool = False) -> Iterator[None]:
    """Measure memory and bytes read, and listen: what pydicom logs or warns about may quote a name."""
    said: list[str] = []
    listener = _Listener(said)
    inflating = nullcontext() if may_inflate else _nothing_inflated(verdict)
    with warnings.catch_warnings(record=True) as warned, inflating:
        warnings.simplefilter("always")
        logging.getLogger().addHandler(listener)
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # proc(5): the peak is counted from here
        resident, read = _resident("VmRSS"), _bytes_read()
        if verdict.traced:
            tracemalloc.start()
        try:
            yield
        finally:
            verdict.peak = max(verdict.peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            verdict.read = max(verdict.read, _bytes_read() - read)
            verdict.grown = max(verdict.grown, _resident("VmHWM") - resident)
            logging.getLogger().removeHandler(listener)
    said += [str(one.message) for one in warned]
    verdict.hold(f"it says: {said[:1]}"[:300], kept=not said)
    most = MOST_MEMORY + MEMORY_PER_BYTE * size
    verdict.hold(f"it takes {verdict.peak / MiB:.0f} MiB of Python's memory", kept=verdict.peak <= most)
    verdict.hold(f"the process grows by {verdict.grown / MiB:.0f} MiB", kept=verdict.grown <= most)
    verdict.hold(f"it reads {verdict.read / MiB:.1f} MiB", kept=verdict.read <= MOST_READ + READ_PER_BYTE * size)


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextmanager
def _nothing_inflated(verdict: Verdict) -> Iterator[None]:
    def inflate(*_args: object, **_named: object) -> bytes:
        verdict.broken.append("it inflates a data set")
        raise zlib.error("not here")

    with patch.object(zlib, "decompress", inflate), patch.object(zlib, "decompressobj", inflate):
        yield


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text("ascii").split()[1])  # rchar
