"""Which series of a study is used: the plan's rule, applied to what the headers say in codes. Pure.

Series Description, Protocol Name and Body Part are not asked: free text differs between hospitals and holds names.
Where several series match, all are listed and none is used; the first one is nobody's choice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from boundary.series import Orientation, SeriesRule
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import Grid, normal, place
from silo_agent.intake.volumes.headers import Plane
from silo_agent.intake.volumes.stacks import Stack

# The axis of the patient that the normal is nearest to: left-right, front-back, foot-head.
_BY_AXIS: tuple[Orientation, Orientation, Orientation] = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, slots=True)
class Selection:
    """The terminal state of one study: a grid that is used, or a code; and a code for every stack that is not used."""

    patient_id: str = field(repr=False)
    study_uid: str = field(repr=False)
    used: Grid | None
    code: Refusal | None
    refused: tuple[tuple[Stack, Refusal], ...]


def select(stacks: Iterable[Stack], rule: SeriesRule) -> tuple[Selection, ...]:
    """Decide for each study, in the order in which studies first appear.

    A stack of another modality, image type or orientation is SERIES_NOT_SELECTED whatever else is wrong with it.
    One that is meant and makes no volume keeps its own code; only a volume has a length and a gap to judge.
    Several that match are all AMBIGUOUS_SERIES.
    """
    studies: dict[tuple[str, str], list[Stack]] = defaultdict(list)
    for stack in stacks:
        who = stack.slices[0].identifiers
        studies[who.patient_id, who.study_uid].append(stack)
    return tuple(_select_one(who, found, rule) for who, found in studies.items())


def _select_one(who: tuple[str, str], stacks: Sequence[Stack], rule: SeriesRule) -> Selection:
    judged = [(stack, _judge(stack, rule)) for stack in stacks]
    refused = [(stack, found) for stack, found in judged if isinstance(found, Refusal)]
    matching = [(stack, found) for stack, found in judged if isinstance(found, Grid)]
    if len(matching) == 1:
        return Selection(*who, used=matching[0][1], code=None, refused=tuple(refused))
    refused += [(stack, Refusal.AMBIGUOUS_SERIES) for stack, _ in matching]
    return Selection(*who, used=None, code=_code_of_study(refused), refused=tuple(refused))


def _judge(stack: Stack, rule: SeriesRule) -> Grid | Refusal:
    if not _is_meant(stack, rule):
        return Refusal.SERIES_NOT_SELECTED
    found = stack.refusal or place(stack.slices)
    if isinstance(found, Refusal):
        return found
    long_enough = rule.smallest_slices <= len(found.slices) <= rule.largest_slices
    fits = long_enough and rule.smallest_gap_mm <= found.spacing_mm[0] <= rule.largest_gap_mm
    return found if fits else Refusal.SERIES_NOT_SELECTED


def _is_meant(stack: Stack, rule: SeriesRule) -> bool:
    types = [set(one.variant.image_type) for one in stack.slices]
    return (
        stack.slices[0].modality == rule.modality
        and all(one >= set(rule.image_type_includes) for one in types)
        and all(one.isdisjoint(rule.image_type_excludes) for one in types)
        and (rule.orientation == "any" or rule.orientation == _orientation(stack))
    )


def _orientation(stack: Stack) -> Orientation | None:
    plane = stack.slices[0].plane
    return None if plane is None else nearest_orientation(plane)


def nearest_orientation(plane: Plane) -> Orientation:
    """Name the plane by the axis of the patient that its normal is nearest to; oblique planes have one too."""
    across = [abs(part) for part in normal(plane)]
    return _BY_AXIS[across.index(max(across))]


def _code_of_study(refused: Sequence[tuple[Stack, Refusal]]) -> Refusal:
    """Return the code that says most: ambiguity first, then what befell most slices of the series that was meant."""
    slices: Counter[Refusal] = Counter()
    for stack, code in refused:
        slices[code] += len(stack.slices)
    if Refusal.AMBIGUOUS_SERIES in slices:
        return Refusal.AMBIGUOUS_SERIES
    meant = {code: count for code, count in slices.items() if code != Refusal.SERIES_NOT_SELECTED}
    return max(sorted(meant), key=meant.__getitem__, default=Refusal.SERIES_NOT_SELECTED)
