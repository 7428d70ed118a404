"""An archive over DICOMweb, as a scan uses it: listed as a whole, then fetched instance by instance."""

import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from silo_agent.intake.dicomweb.connection import Connection, NoAnswer, Trouble
from silo_agent.intake.dicomweb.endpoint import Endpoint
from silo_agent.intake.dicomweb.errors import ArchiveNotListed
from silo_agent.intake.dicomweb.limits import WebLimits
from silo_agent.intake.dicomweb.patience import Patience
from silo_agent.intake.dicomweb.received import judge_received
from silo_agent.intake.dicomweb.search import (
    MODALITIES_IN_STUDY,
    MODALITY,
    NAMELESS,
    SERIES_UID,
    SOP_UID,
    STUDY_UID,
    Found,
    Instance,
    NotAnAnswer,
    Page,
    is_wanted,
    parse_page,
    put_together,
)
from silo_agent.intake.refusals import Refusal

_TAGS = {"studies": (STUDY_UID, MODALITIES_IN_STUDY), "series": (SERIES_UID, MODALITY), "instances": (SOP_UID,)}
_TEMPORARY = ("instance-", ".dcm")


@dataclass(frozen=True, slots=True)
class Listing:
    """Instances in the order of their UIDs, and what is refused unfetched: (resource, code).

    Refused are studies and series that cannot be listed (their content is unknown), that are empty, or whose UID
    cannot be asked for. Each counts as one.
    """

    instances: tuple[Instance, ...] = field(repr=False)
    refused: tuple[tuple[str, Refusal], ...] = field(repr=False)


class DicomwebArchive:
    """Use as a context manager. `scratch` is a folder of this archive's own, where a file lies while it is used.

    `pause` is called with seconds to wait, also for an archive that is away; what it raises ends the reading. The
    constructor raises an `IntakeError` if the address, the login's or the CA's file cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        scratch: Path,
        *,
        limits: WebLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url, self._scratch, self._limits = endpoint.url, scratch, limits or WebLimits()
        self._line = Connection(endpoint, self._limits, clock)
        self._patience = Patience(endpoint.url, self._line, self._limits, pause)

    def __enter__(self) -> Self:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._scratch.glob("*".join(_TEMPORARY)):  # by a process that was killed
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def probe(self) -> None:
        """Ask for one study, without long patience. Raises the `IntakeError` that names the fix."""
        self._patience.probe()

    def list_instances(
        self, modalities: Collection[str], heard: Callable[[int], None] = lambda _count: None
    ) -> Listing:
        """List all that may be of these modalities, in one order whatever the archive's. Raises an `IntakeError`.

        No modalities at all are all of them. What the archive tells of modalities only spares questions; the file
        decides. `heard` is told after each study how many instances there are so far; what it raises ends the listing.
        """
        self.probe()
        wanted = frozenset(modalities)
        instances: list[Instance] = []
        refused: list[tuple[str, Refusal]] = []
        try:
            studies = self._whole("studies", "studies")
        except NoAnswer as why:
            raise self._patience.error(why) from None
        for study in _selected("studies", studies, wanted, refused):
            instances += self._instances_of(study, wanted, refused)
            if len(instances) > self._limits.max_results:
                raise ArchiveNotListed(
                    f"{self.url} lists more than {self._limits.max_results} instances: let it offer the study's "
                    "images under an address of their own, or raise the limit"
                )
            heard(len(instances))
        return Listing(tuple(instances), tuple(refused))

    def first_instances(self, modalities: Collection[str]) -> Iterator[Instance | Refusal]:
        """Some of what `list_instances` would list, asked for as it is wanted: a look at the archive. Raises as it."""
        self.probe()
        wanted, refused = frozenset(modalities), list[tuple[str, Refusal]]()
        try:
            studies = self._page("studies", "studies", 0).found
        except NoAnswer as why:
            raise self._patience.error(why) from None
        for study in _selected("studies", studies, wanted, refused):
            yield from self._instances_of(study, wanted, refused)
            yield from (code for _, code in refused)
            refused.clear()

    @contextmanager
    def fetch(self, instance: Instance) -> Iterator[Path | Refusal]:
        """Give a file of mode 0600 that is gone afterwards, or why there is none.

        READ_ERROR: it was not there, failed or took too long. PERMISSION_DENIED: we may not have it. TOO_LARGE.
        UID_CONFLICT: another instance came. Raises `IntakeError` for the archive as a whole, `OSError` of our disk.
        """
        prefix, suffix = _TEMPORARY
        handle, name = tempfile.mkstemp(suffix, prefix, self._scratch)
        path = Path(name)
        try:
            yield self._fetched(instance, handle, path) or path
        finally:
            path.unlink(missing_ok=True)

    def _fetched(self, instance: Instance, handle: int, path: Path) -> Refusal | None:
        def once() -> None:
            file.seek(0)
            file.truncate()
            self._line.retrieve(instance.path, file.write)

        with os.fdopen(handle, "wb") as file:
            try:
                self._patience.ask(once, self._limits.instance_seconds)
            except NoAnswer as why:
                return self._patience.refusal(why, instance.study_uid)
        refusal = judge_received(path, instance.sop_uid)
        if refusal is Refusal.READ_ERROR:
            return self._patience.refusal(NoAnswer(Trouble.STRANGE, "sends what is no DICOM file"), instance.study_uid)
        self._patience.worked()
        return refusal

    def _instances_of(
        self, study: str, wanted: frozenset[str], refused: list[tuple[str, Refusal]]
    ) -> Iterator[Instance]:
        place = f"studies/{study}"
        for series in _selected(f"{place}/series", self._below(study, place, "series", refused), wanted, refused):
            inner = f"{place}/series/{series}"
            found = self._below(study, inner, "instances", refused)
            for sop in _selected(f"{inner}/instances", found, frozenset(), refused):
                yield Instance(study, series, sop)

    def _below(self, study: str, place: str, kind: str, refused: list[tuple[str, Refusal]]) -> Found:
        """What is in a study or series; nothing where that cannot be listed, and then `refused` says so."""
        try:
            found = self._whole(f"{place}/{kind}", kind)
        except NoAnswer as why:
            refused.append((place, self._patience.refusal(why, study)))
            return {}
        self._patience.worked()
        if not found:
            refused.append((place, Refusal.NO_PIXELS))  # a shell: registered, and nothing in it
        return found

    def _whole(self, path: str, kind: str) -> Found:
        return put_together(
            lambda offset: self._page(path, kind, offset), size=self._limits.page, most=self._limits.max_results
        )

    def _page(self, path: str, kind: str, offset: int) -> Page:
        query = {"limit": self._limits.page, "offset": offset}
        data, more = self._patience.ask(lambda: self._line.search(path, query), self._limits.search_seconds)
        try:
            return parse_page(data, *_TAGS[kind], more=more)
        except NotAnAnswer:
            raise NoAnswer(Trouble.STRANGE, "answers with JSON that is no list of results") from None


def shown(instance: Instance) -> str:
    """Return the instance as `refused.csv` shows it: UIDs, no names."""
    return instance.path


def _selected(place: str, found: Found, wanted: frozenset[str], refused: list[tuple[str, Refusal]]) -> Iterator[str]:
    """In the order of their UIDs those that may hold what is wanted; no `wanted` is everything."""
    for uid, told in sorted(found.items(), key=lambda item: item[0]):
        if wanted and not is_wanted(told, wanted):
            continue
        if uid == NAMELESS:
            refused.append((f"{place}/(without a UID that can be asked for)", Refusal.UNREADABLE))
        else:
            yield uid
