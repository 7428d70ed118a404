"""What a folder holds, without a plan: how many images could be used, and why the others could not.

The same reading and the same rules about copies as a scan for a plan; labels, the plan's contract and consent are not
looked at. Nothing is kept but counts and, if asked for, one line a file for the hospital's own staff.

An image is a file, or with `survey_volumes` a series: its slices in order, equally spaced, decoded. `survey_mixed`
tells them apart itself.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boundary.images import Dataset
from silo_agent.intake.archive import folder_inventory
from silo_agent.intake.cohort import Candidate, build_cohort
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, Known, Pixels
from silo_agent.intake.image import NotUsable
from silo_agent.intake.index import Index
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means, Reading
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.withdrawn import Withdrawn

if TYPE_CHECKING:
    from silo_agent.intake.volumes.files import Files
    from silo_agent.intake.volumes.headers import Slice
    from silo_agent.intake.volumes.losses import Lost
    from silo_agent.intake.volumes.reading import VolumeLimits
    from silo_agent.intake.volumes.stacks import Stack

MODALITIES = ("CT", "CR", "DX", "US", "MR")
_EVERYTHING = Dataset(name="survey", modalities=MODALITIES, max_images_per_patient=1000)


@dataclass(frozen=True, slots=True)
class Survey:
    """`named` is (path below the folder, code) of every file that was refused; it stays in the hospital."""

    files: int
    used: int
    patients: int
    modalities: dict[str, int]
    refused: dict[str, int]
    named: tuple[tuple[str, Refusal], ...] = field(repr=False)


def survey(
    folder: Path,
    key: bytes,
    on_progress: Callable[[int, int], None],
    *,
    modalities: Collection[str] = MODALITIES,
    limits: Limits | None = None,
    means: Means | None = None,
) -> Survey:
    """Read every file below `folder`. `key` is fresh and random: copies and patients are compared under it.

    Nothing is remembered. Raises `ArchiveMissing` or `ArchiveDenied`; a single bad file never raises.
    """
    archive = folder_inventory(folder, settled=0.0)
    names, means = Pseudonyms(Withdrawn(key)), means or Means()
    refused: dict[int, Refusal] = {}
    candidates: list[Candidate] = []
    found_modalities: dict[int, str] = {}
    done = 0
    with means.readers(limits or Limits(), len(archive.items)) as readers:
        errand = _Errand(names, frozenset(modalities))
        reading = Reading(readers, errand, names, lambda: on_progress(done, len(archive.items)))
        for looked in reading.look(archive.items):
            on_progress(done, len(archive.items))
            done += 1
            number, known = looked.number, looked.known
            code = known.refusal(modalities)
            if code or known.who is None or known.content is None:
                refused[number] = code or Refusal.UNREADABLE
                continue
            found_modalities[number] = known.modality
            candidates.append(Candidate(number, 0, known.who.sop_uid, known.who.patient_id, known.content))
    on_progress(len(archive.items), len(archive.items))
    cohort = build_cohort(candidates, _EVERYTHING, key=key)
    refused |= dict(cohort.refused)
    named = [(archive.items[number].name, code) for number, code in refused.items()] + list(archive.refused)
    return Survey(
        files=len(archive.items) + len(archive.refused),
        used=len(cohort.members),
        patients=len({member.patient for member in cohort.members}),
        modalities=dict(sorted(Counter(found_modalities[member.file] for member in cohort.members).items())),
        refused=dict(sorted(Counter(code.value for _, code in named).items())),
        named=tuple(sorted(named)),
    )


@dataclass(frozen=True, slots=True)
class _Digest:
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Errand:
    """Every image is decoded, and nothing of it kept but its digest."""

    names: Pseudonyms
    modalities: Collection[str]

    def note(self, header: HeaderFacts) -> Known:
        return self.names.known(header)

    def wants(self, known: Known) -> bool:
        return known.refusal(self.modalities) is None

    def make(self, pixels: Pixels) -> _Digest:
        return _Digest(pixels.content)


def survey_mixed(
    folder: Path, key: bytes, on_progress: Callable[[int, int], None], *, means: Means | None = None
) -> Survey:
    """As `survey_volumes`, where an image that stands alone (see `alone.parted`) counts as one, as in `survey`."""
    return survey_volumes(folder, key, on_progress, modalities=MODALITIES, means=means, with_alone=True)


def survey_volumes(
    folder: Path,
    key: bytes,
    on_progress: Callable[[int, int], None],
    *,
    modalities: Collection[str] = ("CT", "MR"),
    limits: "VolumeLimits | None" = None,
    means: Means | None = None,
    with_alone: bool = False,
) -> Survey:
    """Put every series below `folder` together and read it. A series counts once, with one code if it is refused.

    A file that belongs to no series, because it is no image of one, counts by itself. Progress counts every file twice,
    for its header and for its pixels. `with_alone` as of `survey_mixed`, `key` and what is raised as of `survey`.
    """
    from silo_agent.intake.alone import parted
    from silo_agent.intake.volumes.files import Files
    from silo_agent.intake.volumes.process import VolumeReader
    from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
    from silo_agent.intake.volumes.remembered import RememberedFiles
    from silo_agent.intake.volumes.stacks import sort_into_stacks

    archive = folder_inventory(folder, settled=0.0)
    items, names, means, limits = archive.items, Pseudonyms(Withdrawn(key)), means or Means(), limits or VolumeLimits()
    named, counted, used = list(archive.refused), Counter(code for _, code in archive.refused), Counter[str]()
    patients, seen, done, every = set[str](), set[bytes](), 0, 2 * len(items)
    how = Acceptance(frozenset(modalities))
    with closing(VolumeReader(limits, how, means.patience)) as reader:
        nothing = RememberedFiles(Index(None, names), [archive], how, limits)
        files = Files(items, nothing, reader, names, lambda: on_progress(done, every))
        slices: list[Slice] = []
        lost: list[Lost] = []
        for item, says in zip(items, files.look(), strict=True):
            slices += says.slices
            if says.code is not None:
                counted[says.code] += 1
                named.append((item.name, says.code))
                if says.who is not None:
                    lost.append((says.who, says.code))
            done += 1
        alone, slices = parted(slices, lost) if with_alone else ([], slices)
        for one, end in _judged_alone(alone, files, key):
            done += 1
            if end is None:
                used[one.modality] += 1
                patients.add(one.identifiers.patient_id)
            else:
                counted[end] += 1
                named.append((items[one.file].name, end))
        found = sort_into_stacks(slices, files.digests, lost)
        by_stack = {(stack.slices[0].identifiers.series_uid, stack.refusal) for stack in found.stacks}
        by_slice = {(one.identifiers.series_uid, code) for one, code in found.refused}
        counted.update(code for series, code in by_slice if (series, code) not in by_stack)
        named += [(items[one.file].name, code) for one, code in found.refused]
        for stack in found.stacks:
            code = _volume(stack, files, limits)
            if isinstance(code, bytes) and code in seen:
                code = Refusal.DUPLICATE_PIXELS
            if isinstance(code, Refusal):
                counted[code] += 1
                named += [(items[number].name, code) for number in {one.file for one in stack.slices}]
            else:
                seen.add(code)
                used[stack.slices[0].modality] += 1
                patients.add(stack.slices[0].identifiers.patient_id)
            done += len({one.file for one in stack.slices})
    on_progress(every, every)
    return Survey(
        files=len(items) + len(archive.refused),
        used=sum(used.values()),
        patients=len(patients),
        modalities=dict(sorted(used.items())),
        refused=dict(sorted((code.value, count) for code, count in counted.items())),
        named=tuple(sorted(set(named))),
    )


def _judged_alone(alone: "list[Slice]", files: "Files", key: bytes) -> "Iterator[tuple[Slice, Refusal | None]]":
    """Each image with the code it is refused with, None where it could be used."""
    candidates, refused = list[Candidate](), dict[int, Refusal]()
    for one in alone:
        digests, who = files.digests(one.file), one.identifiers
        if isinstance(digests, Refusal):
            refused[one.file] = digests
        else:
            candidates.append(Candidate(one.file, 0, who.sop_uid, who.patient_id, digests[one.frame]))
    refused |= build_cohort(candidates, _EVERYTHING, key=key).refused
    yield from ((one, refused.get(one.file)) for one in alone)


def _volume(stack: "Stack", files: "Files", limits: "VolumeLimits") -> bytes | Refusal:
    """The digest of the volume that a stack makes, or why it makes none."""
    from silo_agent.intake.volumes.assemble import stacked
    from silo_agent.intake.volumes.geometry import place

    grid = stack.refusal or place(stack.slices)
    if isinstance(grid, Refusal):
        return grid
    try:
        return stacked(grid, files.slice_values, limits).content
    except NotUsable as why:
        return why.code
    except MemoryError:
        return Refusal.TOO_LARGE
