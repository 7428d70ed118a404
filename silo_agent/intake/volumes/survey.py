"""From files to stacks: the headers of a whole archive, and where every slice of it went.

Pixels are read only where headers leave two slices at one place or two files with one SOP Instance UID.
"""

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.assemble import FileContents
from silo_agent.intake.volumes.headers import Slice
from silo_agent.intake.volumes.losses import Lost
from silo_agent.intake.volumes.opened import OpenVolumeFile
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits
from silo_agent.intake.volumes.stacks import Stack, sort_into_stacks


@dataclass(frozen=True, slots=True)
class Survey:
    """Every file is refused as a whole or all its slices are in `stacks` or in `refused`, each once."""

    stacks: tuple[Stack, ...]
    refused: tuple[tuple[Slice, Refusal], ...]
    refused_files: tuple[tuple[int, Refusal], ...]  # number of the file


def survey(
    files: Sequence[Path],
    *,
    modalities: Collection[str],
    limits: VolumeLimits | None = None,
    take_secondary: bool = False,
) -> Survey:
    """Read the headers of `files` and sort their slices into stacks. Raises nothing that depends on the files."""
    slices: list[Slice] = []
    refused_files: list[tuple[int, Refusal]] = []
    lost: list[Lost] = []
    how = Acceptance(frozenset(modalities), take_secondary=take_secondary)
    for number, path in enumerate(files):
        with closing(OpenVolumeFile(path, number, how, limits or VolumeLimits())) as file:
            says = file.facts(is_nifti=False)
        slices += says.slices
        if says.code is not None:
            refused_files.append((number, says.code))
            if says.who is not None:
                lost.append((says.who, says.code))
    done = sort_into_stacks(slices, FileContents(files, how, limits), lost)
    return Survey(done.stacks, done.refused, tuple(refused_files))
