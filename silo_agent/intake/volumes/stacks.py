"""Which slices belong together: pure, and the same result for the same slices in whatever order they come.

Every slice that goes in comes out once, in a stack or with a code. Pixels are asked for only where headers
cannot decide: for two files with one SOP Instance UID, and for two slices at one place.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from silo_agent.intake.header import SCOUTS
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.volumes.geometry import SAME_POSITION_MM, along, normal
from silo_agent.intake.volumes.headers import Plane, Slice
from silo_agent.intake.volumes.losses import Losses, Lost

SAME_ORIENTATION = 1e-3  # of each direction cosine
SAME_SPACING_MM = 1e-4

Contents = Callable[[int], Sequence[bytes] | Refusal]  # file number -> digests of its frames, in the modality's unit
Located = tuple[Slice, Plane]

# In this order, and only where slices at one place differ in it.
_TELLING_APART: tuple[Callable[[Slice], Hashable], ...] = (
    lambda one: one.variant.acquisition,
    lambda one: one.variant.temporal,
    lambda one: one.variant.echo_time,
    lambda one: one.variant.image_type,
)


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices that belong together, and why they make no volume if grouping has already shown it."""

    slices: tuple[Slice, ...]
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Sorted:
    """Where every slice went."""

    stacks: tuple[Stack, ...]
    refused: tuple[tuple[Slice, Refusal], ...]


def sort_into_stacks(slices: Iterable[Slice], contents: Contents, lost: Iterable[Lost] = ()) -> Sorted:
    """Group slices by patient, study, series, frame of reference, size, orientation and pixel spacing.

    A group is split further, by acquisition, time, echo time and image type, only where positions repeat. What
    then still lies at one place is one slice if the pixels are the same (DUPLICATE_PIXELS for the others), and
    otherwise the stack is refused (DUPLICATE_POSITION). A lone slice is MIXED_ORIENTATION where its series has
    slices at another angle, else SINGLE_SLICE. A stack in which only some slices are rescaled is RESCALE_MISSING.

    `lost` are files that were refused. A stack of a series that lost a slice, there or here, has the code of that
    slice (see `losses`), unless it makes no volume for a reason of its own. All stacks of the series do, since nobody
    can tell of which one the slice was.
    """
    refused: list[tuple[Slice, Refusal]] = []
    located: dict[Hashable, list[Located]] = defaultdict(list)
    for one in _one_of_each_instance(slices, contents, refused):
        if not SCOUTS.isdisjoint(one.variant.image_type):
            refused.append((one, Refusal.LOCALIZER))
        elif one.plane is None:
            refused.append((one, Refusal.GEOMETRY_MISSING))
        else:
            located[_series(one)].append((one, one.plane))
    stacks = [stack for series in located.values() for stack in _stacks_of(series, contents, refused)]
    losses = Losses((one for stack in stacks for one in stack.slices), refused, lost)
    in_order = sorted(stacks, key=lambda stack: _place_in_scan(stack.slices[0]))
    return Sorted(
        tuple(_without_losses(stack, losses) for stack in in_order),
        tuple(sorted(refused, key=lambda pair: _place_in_scan(pair[0]))),
    )


def _without_losses(stack: Stack, losses: Losses) -> Stack:
    """The same stack, refused if its series lost a slice. A slice that is all that is left was not alone."""
    if stack.refusal not in {None, Refusal.SINGLE_SLICE}:
        return stack
    return Stack(stack.slices, losses.of(stack.slices[0].identifiers) or stack.refusal)


def _place_in_scan(one: Slice) -> tuple[int, int]:
    return one.file, one.frame


def _series(one: Slice) -> Hashable:
    who = one.identifiers
    return who.patient_id, who.study_uid, who.series_uid, one.modality


def _one_of_each_instance(
    slices: Iterable[Slice], contents: Contents, refused: list[tuple[Slice, Refusal]]
) -> list[Slice]:
    """Keep the first file of each SOP Instance UID; the others are copies, or nobody can tell which is right."""
    files: dict[str, dict[int, list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(slices, key=_place_in_scan):
        files[one.identifiers.sop_uid][one.file].append(one)
    kept: list[Slice] = []
    for copies in files.values():
        first, *others = copies.values()
        code = Refusal.DUPLICATE if all(_is_copy(first, other, contents) for other in others) else Refusal.UID_CONFLICT
        if code == Refusal.UID_CONFLICT:
            others.append(first)
        else:
            kept += first
        refused += [(one, code) for other in others for one in other]
    return kept


def _is_copy(first: list[Slice], other: list[Slice], contents: Contents) -> bool:
    if [replace(one, file=0) for one in first] != [replace(one, file=0) for one in other]:
        return False
    pixels = contents(first[0].file)
    return not isinstance(pixels, Refusal) and pixels == contents(other[0].file)


def _stacks_of(series: list[Located], contents: Contents, refused: list[tuple[Slice, Refusal]]) -> list[Stack]:
    groups = [
        group
        for alike in _by(series, lambda pair: (pair[1].frame_of_reference, pair[0].rows, pair[0].columns))
        for angle in _clusters(alike, _orientation, SAME_ORIENTATION)
        for group in _clusters(angle, _spacing, SAME_SPACING_MM)
    ]
    one_angle = len(_clusters(series, _orientation, SAME_ORIENTATION)) == 1
    alone = Refusal.SINGLE_SLICE if one_angle else Refusal.MIXED_ORIENTATION
    return [_stack(part, alone, contents, refused) for group in groups for part in _split(group)]


def _orientation(pair: Located) -> tuple[float, ...]:
    return *pair[1].across, *pair[1].down


def _spacing(pair: Located) -> tuple[float, ...]:
    return pair[1].spacing


def _split(group: list[Located]) -> list[list[Located]]:
    places = _same_place(group)
    key = next((key for key in _TELLING_APART if any(len({key(one) for one, _ in here}) > 1 for here in places)), None)
    if key is None:
        return [group]
    return [leaf for part in _by(group, lambda pair: key(pair[0])) for leaf in _split(part)]


def _stack(group: list[Located], alone: Refusal, contents: Contents, refused: list[tuple[Slice, Refusal]]) -> Stack:
    kept: list[Slice] = []
    refusal: Refusal | None = None
    for here in _same_place(group):
        first, *others = sorted((one for one, _ in here), key=_place_in_scan)
        kept.append(first)
        if not others:
            continue
        if code := _judge_repeated([first, *others], contents):
            refusal = refusal or code
            kept += others
        else:
            refused += [(one, Refusal.DUPLICATE_PIXELS) for one in others]
    if len(kept) == 1:
        refusal = alone
    elif _are_scaled_unlike(kept):
        refusal = refusal or Refusal.RESCALE_MISSING
    return Stack(tuple(sorted(kept, key=_place_in_scan)), refusal)


def _are_scaled_unlike(slices: Sequence[Slice]) -> bool:
    """Whether some slices are in a vendor's unit and others as they were stored, so that they do not compare."""
    scales = {one.rescale for one in slices}
    return None in scales and not scales <= {None, (1.0, 0.0)}


def _judge_repeated(here: Sequence[Slice], contents: Contents) -> Refusal | None:
    """Return `None` if slices at one place are one slice stored several times, else why they make no volume."""
    found = set()
    for one in here:
        digests = contents(one.file)
        if isinstance(digests, Refusal):
            return digests
        found.add(digests[one.frame])
    return None if len(found) == 1 else Refusal.DUPLICATE_POSITION


def _same_place(group: list[Located]) -> list[list[Located]]:
    direction = normal(min(group, key=lambda pair: _place_in_scan(pair[0]))[1])
    return _clusters(group, lambda pair: (along(direction, pair[1].position),), SAME_POSITION_MM)


def _by(group: list[Located], key: Callable[[Located], Hashable]) -> list[list[Located]]:
    parts: dict[Hashable, list[Located]] = defaultdict(list)
    for pair in group:
        parts[key(pair)].append(pair)
    return list(parts.values())


def _clusters(
    group: list[Located], value: Callable[[Located], tuple[float, ...]], tolerance: float
) -> list[list[Located]]:
    """Gather what is within `tolerance`, in each number, of the smallest value of its cluster.

    Anchored rather than chained, so that a drift in small steps does not end as one cluster. Sorted first, so that
    the order of the files changes nothing.
    """
    clusters: list[tuple[tuple[float, ...], list[Located]]] = []
    for pair in sorted(group, key=lambda pair: (value(pair), _place_in_scan(pair[0]))):
        here = value(pair)
        for anchor, members in reversed(clusters):
            if here[0] - anchor[0] > tolerance:
                clusters.append((here, [pair]))
                break
            if here == anchor or max(abs(a - b) for a, b in zip(anchor, here, strict=True)) <= tolerance:
                members.append(pair)
                break
        else:
            clusters.append((here, [pair]))
    return [members for _, members in clusters]
