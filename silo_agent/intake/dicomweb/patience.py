"""Whose failure it is, and what it ends.

An exchange that fails while the archive answers is the study's own. An archive that falls silent is waited for, and
if it stays away the reading ends: a smaller data set that looks like a whole one would be worse than none. A study
that is damaged as a whole is one failure; several studies in a row end the reading too, since then it is the archive.
"""

from collections.abc import Callable
from typing import TypeVar

from silo_agent.intake.dicomweb.connection import Connection, NoAnswer, Trouble
from silo_agent.intake.dicomweb.errors import ArchiveNotListed, ArchiveUnreachable, NotDicomweb
from silo_agent.intake.dicomweb.limits import WebLimits
from silo_agent.intake.dicomweb.search import STUDY_UID, NotAnAnswer, parse_page
from silo_agent.intake.errors import ArchiveDenied, IntakeError
from silo_agent.intake.refusals import Refusal

Answer = TypeVar("Answer")

_PASSING = frozenset({Trouble.SILENT, Trouble.BUSY})  # may be over in a moment
_OF_ONE = frozenset({Trouble.MISSING, Trouble.TOO_LARGE})  # says nothing of the archive as a whole
_CODES = {Trouble.FORBIDDEN: Refusal.PERMISSION_DENIED, Trouble.TOO_LARGE: Refusal.TOO_LARGE}


class Patience:
    """`pause` is called with the seconds to wait; what it raises ends the reading."""

    def __init__(self, url: str, line: Connection, limits: WebLimits, pause: Callable[[float], None]) -> None:
        self._url, self._line, self._limits, self._pause = url, line, limits, pause
        self._failing: set[str] = set()  # studies, since the last success

    def probe(self) -> None:
        """Ask for one study. Raises the `IntakeError` that names the fix."""
        try:
            with self._line.deadline.within(self._limits.search_seconds):
                self._insist(self._look)
        except NoAnswer as why:
            raise self.error(why) from None

    def ask(self, ask: Callable[[], Answer], seconds: float) -> Answer:
        """Return what `ask` gives within `seconds`, asking anew if meanwhile the archive had been away.

        Anew only once: there are instances on which an archive falls over. Raises `NoAnswer`, and `IntakeError` if the
        archive stays away.
        """
        try:
            with self._line.deadline.within(seconds):
                return self._insist(ask)
        except NoAnswer as why:
            if why.trouble not in _PASSING or not self._came_back():
                raise
        with self._line.deadline.within(seconds):
            return self._insist(ask)

    def worked(self) -> None:
        """The archive has handed out what it was asked for."""
        self._failing.clear()

    def refusal(self, why: NoAnswer, study: str) -> Refusal:
        """Return the code of a failure. Raises an `IntakeError` when too many studies in a row have failed."""
        if why.trouble not in _OF_ONE:
            self._failing.add(study)
        if len(self._failing) < self._limits.failing_studies:
            return _CODES.get(why.trouble, Refusal.READ_ERROR)
        said = f"{self._url} fails for {len(self._failing)} studies in a row (it {why.reason})"
        if why.trouble is Trouble.FORBIDDEN:
            raise ArchiveDenied(f"{said}: let the agent's account retrieve instances")
        raise ArchiveUnreachable(f"{said}: look into the archive's own log, mend it and scan again")

    def error(self, why: NoAnswer) -> IntakeError:
        """What a failure means when it is the archive's, with the fix."""
        said = f"{self._url} {why.reason}"
        match why.trouble:
            case Trouble.FORBIDDEN:
                return ArchiveDenied(f"{said}: let the agent's account search and retrieve")
            case Trouble.MISSING | Trouble.STRANGE:
                return NotDicomweb(
                    f"{said}: correct source.url of the data set, it is what stands before /studies, as in "
                    "http://orthanc.example:8042/dicom-web"
                )
            case Trouble.TOO_LARGE:
                return ArchiveNotListed(f"{said}: it has to support the parameter limit of a search")
            case Trouble.SILENT | Trouble.BUSY | Trouble.FAULTY:
                return ArchiveUnreachable(
                    f"{said}: check that the archive runs and what its own log says, that source.url of the data set "
                    "is its address, and that a firewall lets this machine through"
                )

    def _insist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask again after each pause where that may help and there is time left."""
        for pause in self._limits.pauses:
            try:
                return ask()
            except NoAnswer as why:
                if why.trouble not in _PASSING or self._line.deadline.left() <= pause:
                    raise
            self._pause(pause)
        return ask()

    def _came_back(self) -> bool:
        """Wait for the archive; False if it had not been away. Raises an `IntakeError` if it stays away."""
        away = False
        for wait in (*self._limits.patience, None):
            try:
                with self._line.deadline.within(self._limits.search_seconds):
                    self._look()
            except NoAnswer as why:
                if wait is None:
                    raise self.error(why) from None
                away = True
                self._pause(wait)
            else:
                break
        return away

    def _look(self) -> None:
        data, _ = self._line.search("studies", {"limit": 1, "offset": 0})
        try:
            parse_page(data, STUDY_UID)
        except NotAnAnswer:
            raise NoAnswer(Trouble.STRANGE, "answers with JSON that is no list of studies") from None
