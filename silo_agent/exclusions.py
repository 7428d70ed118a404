"""The hospital's list of those whose images no study may use: who opted out elsewhere, brought by the hospital daily.

A line is a *reference* (`silo_agent.intake.withdrawn`), 64 hex digits, so that no name lies about; `#` begins a
comment. How old the list is, is the file's time: whoever brings it touches it though nothing changed.

Whoever is on it is left out of every scan. Somebody who is in the data of a study already has withdrawn as if
`silo-agent withdraw` had been asked, which cannot be undone: they stay out when the list forgets them.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from silo_agent.errors import ConfigError
from silo_agent.intake.withdrawn import reference_of
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.state import write_private

MAX_LIST_BYTES = 64 * 1024 * 1024  # a million people
_REFERENCE = re.compile(r"[0-9a-f]{64}")


def written_at(path: Path) -> datetime | None:
    """When the list was brought, None if it is not there for us."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return None


def read_exclusions(path: Path) -> frozenset[str]:
    """The references. Raises `PolicyRefused` for a list that is not there, or of which a line is no reference."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except OSError as why:
        raise _missing(
            f"{path} cannot be read ({why.strerror}): bring the list, an empty one if there is none"
        ) from why
    if len(data) > MAX_LIST_BYTES:
        raise _missing(f"{path} is larger than {MAX_LIST_BYTES} bytes: look what it holds")
    found = set()
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), start=1):
        said = line.partition("#")[0].strip()
        if said and not _REFERENCE.fullmatch(said):
            raise _missing(f"line {number} of {path} is no reference: write the list with `silo-agent exclusions`")
        if said:
            found.add(said)
    return frozenset(found)


def write_exclusions(path: Path, master: bytes, patients: Iterable[str]) -> int:
    """Replace the list by these Patient IDs, hashed under the hospital's key; returns how many there are.

    Blank lines are left out; blanks around an ID do not count, as in the intake. Raises `ConfigError`.
    """
    try:
        references = sorted({reference_of(master, one) for line in patients if (one := line.strip(" \0\r\n\t"))})
        write_private(path, "".join(f"{one}\n" for one in references).encode())
    except UnicodeEncodeError as why:
        raise ConfigError("a Patient ID is not text: write the list as UTF-8") from why
    except OSError as why:
        raise ConfigError(f"{path} cannot be written ({why.strerror}): let the agent's user write it") from why
    return len(references)


def _missing(sentence: str) -> PolicyRefused:
    return PolicyRefused(PolicyCode.EXCLUSIONS_MISSING, sentence)
