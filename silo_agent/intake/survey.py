"""What a folder holds, without a plan: how many images could be used, and why the others could not.

The same reading and the same rules about copies as a scan for a plan; labels, the plan's contract and consent are not
looked at. Nothing is kept but counts and, if asked for, one line a file for the hospital's own staff.

An image is a file, or with `survey_volumes` a series: its slices in order, equally spaced, decoded.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boundary.plan import Dataset
from silo_agent.intake.archive import folder_inventory, list_archive, shown
from silo_agent.intake.cohort import Candidate, build_cohort
from silo_agent.intake.encoding import Limits
from silo_agent.intake.facts import HeaderFacts, Known, Pixels
from silo_agent.intake.image import Refused
from silo_agent.intake.pseudonyms import Pseudonyms
from silo_agent.intake.reading import Means, Reading
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.withdrawn import Withdrawn

if TYPE_CHECKING:
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


def survey_volumes(
    folder: Path, on_progress: Callable[[int, int], None], *, modalities: Collection[str] = ("CT", "MR")
) -> Survey:
    """Put every series below `folder` together and read it. A series counts once, with one code if it is refused.

    A file that belongs to no series, because it is no image of one, counts by itself. Raises as `survey`.
    """
    from silo_agent.intake.volumes.survey import survey as sorted_into_stacks

    listing = list_archive(folder)
    found = sorted_into_stacks(listing.files, modalities=modalities)
    by_series = {(one.identifiers.series_uid, one.file, code) for one, code in found.refused}
    refused = Counter(code for _, code in {(series, code) for series, _, code in by_series})
    named = [(listing.files[file], code) for _, file, code in by_series]
    used: Counter[str] = Counter()
    patients: set[str] = set()
    seen: set[bytes] = set()
    for number, stack in enumerate(found.stacks):
        on_progress(number, len(found.stacks))
        volume = _volume(stack, listing.files)
        code = Refusal.DUPLICATE_PIXELS if isinstance(volume, bytes) and volume in seen else volume
        if isinstance(code, Refusal):
            refused[code] += 1
            named += [(path, code) for path in sorted({listing.files[one.file] for one in stack.slices})]
            continue
        seen.add(code)
        used[stack.slices[0].modality] += 1
        patients.add(stack.slices[0].identifiers.patient_id)
    on_progress(len(found.stacks), len(found.stacks))
    refused.update(code for _, code in (*found.refused_files, *listing.refused))
    named += [(listing.files[file], code) for file, code in found.refused_files] + list(listing.refused)
    return Survey(
        files=len(listing.files) + len(listing.refused),
        used=sum(used.values()),
        patients=len(patients),
        modalities=dict(sorted(used.items())),
        refused=dict(sorted((code.value, count) for code, count in refused.items())),
        named=tuple(sorted({(shown(path, folder), code) for path, code in named})),
    )


def _volume(stack: "Stack", files: Sequence[Path]) -> bytes | Refusal:
    """The digest of the volume that a stack makes, or why it makes none."""
    from silo_agent.intake.volumes.assemble import assemble
    from silo_agent.intake.volumes.geometry import place

    grid = stack.refusal or place(stack.slices)
    if isinstance(grid, Refusal):
        return grid
    made = assemble(grid, files)
    return made.code if isinstance(made, Refused) else made.content
