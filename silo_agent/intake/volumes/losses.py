"""Which series lack a slice that is known to have been there, so that what is left of them makes no volume. Pure.

Positions show a gap in the middle of a stack and none at an end: what is left there looks like a shorter scan, and a
model would learn from an organ that is cut off. A file that was refused tells of the series it belongs to, and a part
of a concatenation how many there are (PS3.3 C.7.6.16.2.2.4). A file that is so damaged, or may so little be read, that
its series is not known (READ_ERROR, READ_TIMEOUT, PERMISSION_DENIED, a header cut off before its UIDs) costs no series
but shows in the report; nor does anybody know of a slice that was never sent.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from silo_agent.intake.header import Identifiers
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.headers import Slice

Lost = tuple[Identifiers, Refusal]  # a file that was refused: what it says it is, and why
_Series = tuple[str, str, str]  # patient, study, series

# Codes of files that are in a series and are no slice of its stack. Each says that the file is something else, or
# that nothing of the image is missing. All other codes are of slices that were meant and cannot be used, or leave that
# open: unknown means refuse. So does PHOTOMETRIC, which a damaged header has too; GEOMETRY_MISSING; BURNED_IN;
# MULTI_FRAME, whose frames may be slices; LOSSY_NOT_ALLOWED and TRANSFER_SYNTAX, where only some slices are compressed.
NO_SLICE_OF_IT = frozenset(
    {
        Refusal.NOT_DICOM,  # a DICOMDIR, or not said to be an object at all
        Refusal.NOT_AN_IMAGE,  # a report, plan, mask or dose that was put into the series it is about
        Refusal.MODALITY_MISMATCH,  # a series is of one modality (PS3.3 C.7.3.1): this one is meant for another
        Refusal.LOCALIZER,  # the scout that the scan was planned on
        Refusal.DERIVED_SECONDARY,  # a screen save, a dose sheet, a view computed from the slices that are there
        Refusal.MIXED_ORIENTATION,  # a scout or a reformatted view that does not say so
        Refusal.DUPLICATE,  # the other copy is used
        Refusal.DUPLICATE_PIXELS,  # so is the other instance
        # What is decided about whole series and patients, and never about one file of a stack:
        Refusal.SERIES_NOT_SELECTED,
        Refusal.AMBIGUOUS_SERIES,
        Refusal.OVER_PATIENT_CAP,
        Refusal.WITHDRAWN,
    }
)


class Losses:
    """Of the series of a scan. Empty UIDs and an empty Patient ID of a lost file fit any; a series has to be named.

    A file without a patient is nobody's, also for a guarantee per patient: it is there whoever else is. A damaged file
    is no loss where another one has the same instance whole, as when it was sent again under another name.
    """

    def __init__(self, used: Iterable[Slice], refused: Iterable[tuple[Slice, Refusal]], lost: Iterable[Lost]) -> None:
        refused = list(refused)
        here = [*used, *(one for one, code in refused if code in NO_SLICE_OF_IT)]
        self._codes: dict[_Series, Counter[Refusal]] = defaultdict(Counter)
        there = {(one.identifiers.series_uid, one.identifiers.sop_uid) for one in here}
        for who, code in lost:
            if (who.series_uid, who.sop_uid) not in there:
                self._note(who, code)
        for one, code in refused:
            self._note(one.identifiers, code)
        for who in _incomplete(here):
            self._note(who, Refusal.TRUNCATED)

    def of(self, who: Identifiers) -> Refusal | None:
        """The code that most of what is lost of a series has, None if nothing is."""
        if not self._codes:
            return None
        found: Counter[Refusal] = Counter()
        for patient in {who.patient_id, ""}:
            for study in {who.study_uid, ""}:
                found.update(self._codes.get((patient, study, who.series_uid), ()))
        return max(sorted(found), key=found.__getitem__, default=None)

    def _note(self, who: Identifiers, code: Refusal) -> None:
        if who.series_uid and code not in NO_SLICE_OF_IT:
            self._codes[who.series][code] += 1


def _incomplete(slices: Iterable[Slice]) -> list[Identifiers]:
    """One instance of each concatenation of which a part is missing.

    The total is optional; without it a last part that is missing leaves no trace.
    """
    parts: dict[tuple[str, str, str], dict[int, Identifiers]] = defaultdict(dict)
    most: Counter[tuple[str, str, str]] = Counter()
    for one in slices:
        if one.part is None:
            continue
        key = one.identifiers.patient_id, one.identifiers.series_uid, one.part.concatenation
        parts[key][one.part.number] = one.identifiers
        most[key] = max(most[key], one.part.number, one.part.total)
    return [next(iter(found.values())) for key, found in parts.items() if len(found.keys() - {0}) < most[key]]
