"""What an index keeps of series: what each of their files said, and what a selected one was found to make.

A file's row is as exact as its header, since the same volume has to come of it, and has no name in it: UIDs, the frame
of reference and the labels of segments are keyed hashes already. That it is exact is why rows are sealed (`index`).
NIfTI files have no row of their own, because they do not say whose they are; what they made is in their series' row.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from struct import Struct
from typing import Any

from boundary.plan import StudyPlan
from silo_agent.intake.archive import Inventory, Item
from silo_agent.intake.header import Identifiers
from silo_agent.intake.index import FILES_AT_ONCE, Asked, Index
from silo_agent.intake.masks.segmentation import MaskFrame, Segment, Segmentation
from silo_agent.intake.pseudonyms import HASH_BYTES
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.remembered import UIDS_BYTES, packed_uids, unpacked_uids
from silo_agent.intake.reuse import recipe_of
from silo_agent.intake.volumes.geometry import Grid
from silo_agent.intake.volumes.headers import Part, Plane, Slice, Variant
from silo_agent.intake.volumes.opened import FileFacts
from silo_agent.intake.volumes.reading import Acceptance, VolumeLimits

Digests = tuple[bytes, ...] | Refusal  # of the frames of a file, keyed, or why they cannot be read
_SHARED_BYTES = 2048  # of a line of JSON that the slices of a series may share: such ones are parsed once
_PLACE = Struct("<I3d")  # which of a file's kinds a frame is of, and its position, mm
_Kind = tuple[Any, ...]
_Place = tuple[int, float, float, float]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a file says, in pseudonyms, and the digests of its frames once somebody asked for them."""

    says: FileFacts
    digests: Digests | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Made:
    """One input: digests of its image (keyed) and of its mask, and the classes in it."""

    content: bytes = field(repr=False)
    mask: bytes = field(repr=False)
    shows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a series made. `made_of` stands for its values, its mask and where it lies; see `reuse.part_of`."""

    made_of: bytes = field(repr=False)
    inputs: tuple[Made, ...]


class RememberedFiles:
    """Of one scan, by number: the items of one inventory after the other."""

    def __init__(self, index: Index, inventories: Sequence[Inventory], how: Acceptance, limits: VolumeLimits) -> None:
        kind = json.dumps(["series", asdict(how) | {"modalities": sorted(how.modalities)}])
        self.files = sum(len(one.items) for one in inventories)
        self._parts = [(one.items, index.section(one.root, kind, _told(limits))) for one in inventories]

    def each(self) -> Iterator[KnownFile | None]:
        """What is known of each file as it is now; None of one that has to be read."""
        number = 0
        for items, section in self._parts:
            for start in range(0, len(items), FILES_AT_ONCE):
                for found in section.find([(item.name, item.state) for item in items[start : start + FILES_AT_ONCE]]):
                    yield None if found is None else _unpacked_file(number, *found)
                    number += 1

    def keep(self, number: int, known: KnownFile) -> None:
        """Remember what was read of a file just now, if it would be found again."""
        says, at = known.says, number
        if not (says.lasting and _is_regular(says, number)):
            return
        for items, section in self._parts:
            if at < len(items):
                if items[at].unchanged():
                    patient = "" if says.who is None else says.who.patient_id
                    section.keep(items[at].name, items[at].state, patient, _packed_file(known))
                return
            at -= len(items)


class RememberedVolumes:
    """What series were found to make under one plan, by the files that they and their masks are in."""

    def __init__(
        self, index: Index, inventories: Sequence[Inventory], how: Acceptance, limits: VolumeLimits, plan: StudyPlan
    ) -> None:
        beside = [one.root for one in inventories[1:]]
        rule = None if plan.dataset.series is None else plan.dataset.series.model_dump(mode="json")
        kind = json.dumps(
            ["made", rule, how.take_masks, plan.labels.classes, beside, recipe_of(plan.preprocessing).decode()]
        )
        self._section = index.section(inventories[0].root, kind, _told(limits))
        self._items: list[tuple[int, Item]] = [
            (inventory, item) for inventory, one in enumerate(inventories) for item in one.items
        ]

    def find(self, grid: Grid, masks: Sequence[int]) -> Prepared | Refusal | None:
        """What comes of it, if nothing of its files changed since; `masks` are those of its mask."""
        (found,) = self._section.find([self._asked(grid, masks)])
        return None if found is None else _unpacked_volume(found[1])

    def keep(self, grid: Grid, masks: Sequence[int], found: Prepared | Refusal) -> None:
        """Remember what was made of the files just now, if none of them changed since it was listed."""
        files = {*masks, *(one.file for one in grid.slices)}
        if all(self._items[number][1].unchanged() for number in files):
            patient = grid.slices[0].identifiers.patient_id
            self._section.keep(*self._asked(grid, masks), patient, _packed_volume(found))

    def _asked(self, grid: Grid, masks: Sequence[int]) -> Asked:
        """Its slices in order, then its masks, each by the name of its file; and the state of all of these."""
        frames = [(one.file, one.frame) for one in grid.slices] + [(number, -1) for number in masks]
        files = [(*self._items[number], frame) for number, frame in frames]
        name = "".join(f"{inventory}\0{item.name}\0{frame}\0" for inventory, item, frame in files)
        states = [item.state for _, item, _ in files]
        if None in states:
            return name, None
        return name, b"".join(len(one).to_bytes(4) + one for one in states if one is not None)


def _told(limits: VolumeLimits) -> str:
    return json.dumps(asdict(limits))


# --- a file, packed: a line of JSON, its UIDs, the place of each frame, the digests of the frames ----------
def _is_regular(says: FileFacts, number: int) -> bool:
    """Whether it is a file's refusal, or its slices, numbered as they are packed, or a mask; nothing else is kept."""
    are_alone = sum((says.code is not None, bool(says.slices), says.segmentation is not None)) == 1
    return are_alone and all(
        (one.file, one.frame, one.identifiers) == (number, frame, says.who) for frame, one in enumerate(says.slices)
    )


def _packed_file(known: KnownFile) -> bytes:
    says, mask, digests = known.says, known.says.segmentation, known.digests
    kinds: dict[_Kind, int] = {}
    frames = [(_kind_of(one), one.plane) for one in says.slices]
    if mask is not None:
        frames = [((one.segment, _lie(one.plane)), one.plane) for one in mask.frames]
    places = [
        _PLACE.pack(kinds.setdefault(kind, len(kinds)), *((0, 0, 0) if plane is None else plane.position))
        for kind, plane in frames
    ]
    outlines = None
    if mask is not None:
        segments = [(one.number, one.label) for one in mask.segments]
        outlines = (mask.series, segments, mask.rows, mask.columns, mask.code)
    refused = digests if isinstance(digests, Refusal) else None
    head = [says.code, says.who is not None, len(places), list(kinds), outlines, refused]
    uids = b"" if says.who is None else packed_uids(says.who)
    return b"".join((json.dumps(head).encode(), b"\n", uids, *places, *(() if refused else digests or ())))


def _unpacked_file(number: int, patient: str, facts: bytes) -> KnownFile:
    line, _, rest = facts.partition(b"\n")
    head, at, who = (_head(line) if len(line) <= _SHARED_BYTES else _parsed_head(line)), 0, None
    if head.is_parsed:
        who, at = unpacked_uids(patient, rest[:UIDS_BYTES]), UIDS_BYTES
    end = at + head.frames * _PLACE.size
    places = _PLACE.iter_unpack(rest[at:end])
    if head.outlines is not None:
        frames = tuple(head.mask_frame(place) for place in places)
        says = FileFacts(who=who, segmentation=head.segmentation(frames))
    elif who is None:
        says = FileFacts(head.code)
    else:
        slices = tuple(head.slice(number, frame, who, place) for frame, place in enumerate(places))
        says = FileFacts(head.code, who=who, slices=slices)
    digests = tuple(rest[one : one + HASH_BYTES] for one in range(end, len(rest), HASH_BYTES))
    return KnownFile(says, head.refused or digests or None)


def _kind_of(one: Slice) -> _Kind:
    """All of a slice but its position: what most slices of a series have in common."""
    variant = (one.variant.acquisition, one.variant.temporal, one.variant.echo_time, one.variant.image_type)
    lie = None if one.plane is None else _lie(one.plane)
    part = None if one.part is None else (one.part.concatenation, one.part.number, one.part.total)
    return one.modality, one.rows, one.columns, lie, variant, one.rescale, part


def _lie(plane: Plane) -> _Kind:
    return plane.across, plane.down, plane.spacing, plane.frame_of_reference


@dataclass(frozen=True, slots=True)
class _Head:
    """The line of JSON."""

    code: Refusal | None
    is_parsed: bool
    frames: int
    kinds: tuple[_Kind, ...]
    outlines: _Kind | None
    refused: Refusal | None

    def slice(self, file: int, frame: int, who: Identifiers, place: _Place) -> Slice:
        kind, x, y, z = place
        modality, rows, columns, lie, variant, rescale, part = self.kinds[kind]
        plane = None if lie is None else Plane((x, y, z), *lie)
        return Slice(file, frame, who, modality, rows, columns, plane, variant, rescale, part)

    def mask_frame(self, place: _Place) -> MaskFrame:
        kind, x, y, z = place
        segment, lie = self.kinds[kind]
        return MaskFrame(segment, Plane((x, y, z), *lie))

    def segmentation(self, frames: tuple[MaskFrame, ...]) -> Segmentation:
        series, segments, rows, columns, code = self.outlines or ()
        return Segmentation(series, tuple(Segment(*one) for one in segments), rows, columns, frames, _code(code))


def _parsed_head(said: bytes) -> _Head:
    code, is_parsed, frames, kinds, outlines, refused = json.loads(said)
    found = tuple(_tuples(kind) for kind in kinds)
    if outlines is None:
        found = tuple((*kind[:4], Variant(*kind[4]), kind[5], kind[6] and Part(*kind[6])) for kind in found)
    outlined = None if outlines is None else _tuples(outlines)
    return _Head(_code(code), is_parsed, frames, found, outlined, _code(refused))


_head = lru_cache(maxsize=1024)(_parsed_head)


def _tuples(said: Any) -> Any:
    return tuple(_tuples(one) for one in said) if isinstance(said, list) else said


def _code(said: str | None) -> Refusal | None:
    return None if said is None else Refusal(said)


# --- what a series made, packed: a line of JSON, then digests ----------------------------------------------
def _packed_volume(found: Prepared | Refusal) -> bytes:
    if isinstance(found, Refusal):
        return json.dumps([found, []]).encode() + b"\n"
    head = json.dumps([None, [one.shows for one in found.inputs]]).encode()
    return b"".join((head, b"\n", found.made_of, *(one.content + one.mask for one in found.inputs)))


def _unpacked_volume(facts: bytes) -> Prepared | Refusal:
    line, _, rest = facts.partition(b"\n")
    code, shows = json.loads(line)
    if code is not None:
        return Refusal(code)
    made_of, *digests = (rest[at : at + HASH_BYTES] for at in range(0, len(rest), HASH_BYTES))
    pairs = zip(digests[::2], digests[1::2], shows, strict=True)
    return Prepared(made_of, tuple(Made(content, mask, tuple(classes)) for content, mask, classes in pairs))
