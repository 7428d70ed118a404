"""Which of the readable, labelled images a study uses, whose they are, and on which side they stand. Pure.

Everything here is decided by keyed hashes of content and patient, never by file names or their order, so the
same archive gives the same cohort wherever it is mounted.
"""

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from boundary.canonical import Digest, canonical_bytes
from boundary.images import Dataset
from silo_agent.intake.refusals import Refusal
from silo_agent.intake.split import PatientRef, by_coins_alone, held_out, patient_ref


@dataclass(frozen=True, slots=True)
class Candidate:
    """A readable image with its label. `file` is its number in the scan, `content` SHA-256 of its values.

    With a mask, `mask` is the same of that, and `shows` are the classes in it, of which `label` is the largest.
    """

    file: int
    label: int
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    content: bytes = field(repr=False)
    mask: bytes = field(repr=False, default=b"")
    shows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """An image of the cohort. `patient` numbers the patients of this cohort and means nothing outside it.

    `shows` are the classes that it counts for: its label, or those in its mask.
    """

    file: int
    label: int
    patient: int
    holdout: bool
    shows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cohort:
    """What is used, in an order that says nothing, and what is not: file number to code."""

    members: tuple[Member, ...]
    refused: Mapping[int, Refusal]
    digest: Digest  # keyed with the hospital's key: nobody else can confirm a guess about the data


@dataclass(frozen=True, slots=True)
class _Entry:
    """A candidate with its keyed names; sorting by `content` gives an order nobody can predict."""

    content: str
    mask: str
    patient: PatientRef
    of: Candidate


def build_cohort(
    candidates: Iterable[Candidate], dataset: Dataset, *, key: bytes, each_alone: bool = False, held_back: bool = False
) -> Cohort:
    """Drop copies, cap each patient, split by patient. Each candidate ends as a member or with one code.

    Copies within this hospital: the same instance twice is DUPLICATE, the same pixels under another UID
    DUPLICATE_PIXELS; one of them is used. One UID on different images or patients is UID_CONFLICT and the
    same pixels under different labels or masks LABEL_CONFLICT; there all of them are refused, since any choice would
    be a guess.

    With `each_alone`, for plans with a guarantee per patient, all this is done within each patient, and the split is
    the coins' alone: what is used of one patient must not depend on who else is there, or one patient's copies would
    move others' images, and the sum by more than its share. With `held_back` everybody is held out.
    """
    same_pixels, same_instance = (_within_patient(by) if each_alone else by for by in (_content, _instance))
    entries = sorted((_entry(key, one) for one in candidates), key=_order)
    refused: dict[int, Refusal] = {}
    left = _agreeing(entries, refused, same_pixels, _label, Refusal.LABEL_CONFLICT)
    left = _agreeing(left, refused, same_instance, _content_and_patient, Refusal.UID_CONFLICT)
    left = _once(left, refused, same_instance, Refusal.DUPLICATE)
    left = _once(left, refused, same_pixels, Refusal.DUPLICATE_PIXELS)
    left = _capped(left, dataset.max_images_per_patient, refused)
    classes: dict[PatientRef, frozenset[int]] = defaultdict(frozenset)
    for entry in left:
        classes[entry.patient] |= {entry.of.label}
    split = by_coins_alone if each_alone else held_out
    holdout = frozenset(classes) if held_back else split(classes, key=key, share=dataset.holdout_share)
    number = {ref: index for index, ref in enumerate(sorted(classes))}
    members = tuple(
        Member(
            entry.of.file,
            entry.of.label,
            number[entry.patient],
            entry.patient in holdout,
            entry.of.shows or (entry.of.label,),
        )
        for entry in left
    )
    return Cohort(members, refused, _digest(key, left, holdout))


def _entry(key: bytes, one: Candidate) -> _Entry:
    content = hmac.new(key, b"image" + one.content, hashlib.sha256).hexdigest()
    mask = hmac.new(key, b"mask" + one.mask, hashlib.sha256).hexdigest() if one.mask else ""
    return _Entry(content, mask, patient_ref(key, one.patient_id), one)


def _order(entry: _Entry) -> tuple[str, str, str, int]:
    return entry.content, entry.patient, entry.of.sop_uid, entry.of.file


def _instance(entry: _Entry) -> Hashable:
    return entry.of.sop_uid


def _content(entry: _Entry) -> Hashable:
    return entry.content


def _content_and_patient(entry: _Entry) -> Hashable:
    return entry.content, entry.patient


def _within_patient(by: Callable[[_Entry], Hashable]) -> Callable[[_Entry], Hashable]:
    return lambda entry: (entry.patient, by(entry))


def _label(entry: _Entry) -> Hashable:
    return entry.of.label, entry.mask


def _agreeing(
    entries: list[_Entry],
    refused: dict[int, Refusal],
    group_by: Callable[[_Entry], Hashable],
    must_agree: Callable[[_Entry], Hashable],
    code: Refusal,
) -> list[_Entry]:
    """Refuse every entry of a group that does not agree with itself."""
    seen: dict[Hashable, set[Hashable]] = defaultdict(set)
    for entry in entries:
        seen[group_by(entry)].add(must_agree(entry))
    refused.update((entry.of.file, code) for entry in entries if len(seen[group_by(entry)]) > 1)
    return [entry for entry in entries if len(seen[group_by(entry)]) == 1]


def _once(
    entries: list[_Entry], refused: dict[int, Refusal], group_by: Callable[[_Entry], Hashable], code: Refusal
) -> list[_Entry]:
    """Keep the first entry of each group."""
    first: dict[Hashable, _Entry] = {}
    for entry in entries:
        first.setdefault(group_by(entry), entry)
    refused.update((entry.of.file, code) for entry in entries if first[group_by(entry)] is not entry)
    return list(first.values())


def _capped(entries: list[_Entry], most: int, refused: dict[int, Refusal]) -> list[_Entry]:
    """Keep the first `most` images of each patient in keyed order, so the choice is arbitrary and stable."""
    taken: dict[PatientRef, int] = defaultdict(int)
    kept = []
    for entry in entries:
        taken[entry.patient] += 1
        if taken[entry.patient] <= most:
            kept.append(entry)
        else:
            refused[entry.of.file] = Refusal.OVER_PATIENT_CAP
    return kept


def _digest(key: bytes, entries: list[_Entry], holdout: frozenset[PatientRef]) -> Digest:
    rows = sorted(
        [one.content, one.patient, one.of.label, one.patient in holdout, *([one.mask] if one.mask else [])]
        for one in entries
    )
    return Digest("sha256:" + hmac.new(key, b"dataset" + canonical_bytes(rows), hashlib.sha256).hexdigest())
