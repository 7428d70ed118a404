"""What a folder holds, without a plan: how many images could be used, and why the others could not.

The same reading and the same rules about copies as a scan for a plan; labels, the plan's contract and consent are not
looked at. Nothing is kept but counts and, if asked for, one line a file for the hospital's own staff.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from boundary.plan import Dataset
from silo_agent.intake.archive import list_archive, shown
from silo_agent.intake.cohort import Candidate, build_cohort
from silo_agent.intake.encoding import Limits
from silo_agent.intake.image import Refused, read_image
from silo_agent.intake.refusals import Refusal

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
) -> Survey:
    """Read every file below `folder`. `key` is fresh and random: copies and patients are compared under it.

    Raises `ArchiveMissing` or `ArchiveDenied`; a single bad file never raises.
    """
    listing = list_archive(folder)
    refused: dict[int, Refusal] = {}
    candidates: list[Candidate] = []
    found_modalities: dict[int, str] = {}
    for number, path in enumerate(listing.files):
        on_progress(number, len(listing.files))
        found = read_image(path, modalities=modalities, limits=limits or Limits())
        if isinstance(found, Refused):
            refused[number] = found.code
            continue
        found_modalities[number] = found.modality
        who = found.identifiers
        candidates.append(Candidate(number, 0, who.sop_uid, who.patient_id, found.content))
    on_progress(len(listing.files), len(listing.files))
    cohort = build_cohort(candidates, _EVERYTHING, key=key)
    refused |= dict(cohort.refused)
    named = [(shown(listing.files[number], folder), code) for number, code in refused.items()]
    named += [(shown(path, folder), code) for path, code in listing.refused]
    return Survey(
        files=len(listing.files) + len(listing.refused),
        used=len(cohort.members),
        patients=len({member.patient for member in cohort.members}),
        modalities=dict(sorted(Counter(found_modalities[member.file] for member in cohort.members).items())),
        refused=dict(sorted(Counter(code.value for _, code in named).items())),
        named=tuple(sorted(named)),
    )
