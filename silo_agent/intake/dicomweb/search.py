"""What an archive says it holds: QIDO-RS answers read, and put together from pages that may lie. Pure.

Sources: DICOM PS3.18 section 10.6 (Search), 8.3.4.4 (limit and offset), annex F.2 (DICOM JSON model). Of all that an
answer tells only UIDs and modalities are looked at; names and dates are dropped unread.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from silo_agent.intake.dicomweb.errors import ArchiveNotListed

STUDY_UID, SERIES_UID, SOP_UID = "0020000D", "0020000E", "00080018"
MODALITY, MODALITIES_IN_STUDY = "00080060", "00080061"
NAMELESS = ""  # stands for all results whose UID cannot be asked for
# Wider than PS3.5 section 9.1, for archives with letters in their UIDs; nothing that could change a path.
_UID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", re.ASCII)
_MOST_PASSES = 10

Found = Mapping[str, frozenset[str]]  # UID -> modalities, none where the archive does not tell


class NotAnAnswer(Exception):
    """A signal: what came is no list of results."""


@dataclass(frozen=True, slots=True, order=True)
class Instance:
    """Where an archive keeps one instance. `repr` shows nothing."""

    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    sop_uid: str = field(repr=False)

    @property
    def path(self) -> str:
        """The resource below the DICOMweb root (PS3.18 table 10.4.1-1)."""
        return f"studies/{self.study_uid}/series/{self.series_uid}/instances/{self.sop_uid}"


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to one search: `count` results as sent, and what they name, each once.

    `more`: the archive says itself that it left some off.
    """

    count: int
    found: Found = field(repr=False)
    more: bool = False


def parse_page(data: bytes, uid_tag: str, modality_tag: str = "", *, more: bool = False) -> Page:
    """Read an answer in the DICOM JSON model. Raises `NotAnAnswer`."""
    try:
        results = json.loads(data)
    except (ValueError, RecursionError):
        raise NotAnAnswer from None
    if not isinstance(results, list):
        raise NotAnAnswer
    found: dict[str, frozenset[str]] = {}
    for result in results:
        uid = _uid(result, uid_tag)
        found[uid] = found.get(uid, frozenset()) | _modalities(result, modality_tag)
    return Page(len(results), found, more)


def is_wanted(told: frozenset[str], wanted: frozenset[str]) -> bool:
    """Whether it may hold what is wanted; where the archive does not tell, it may."""
    return not told or not told.isdisjoint(wanted)


def put_together(ask: Callable[[int], Page], *, size: int, most: int) -> Found:
    """Ask for page after page (`ask(offset)`, of `size` results) until one is empty. Raises `ArchiveNotListed`.

    Between pages of an archive that orders its results anew each time, or that changes meanwhile, results get lost,
    and others come twice. So when anything came twice all pages are asked for again, until nothing does, or until
    the same pages came twice in the same order: then the archive does list it twice.
    """
    found: dict[str, frozenset[str]] = {}
    before: list[list[str]] = []
    for _ in range(_MOST_PASSES):
        pages = _one_pass(ask, size, most)
        for page in pages:
            found |= page
        orders = [list(page) for page in pages]
        if sum(map(len, pages)) == len(found) or orders == before:
            return found
        before = orders
    raise ArchiveNotListed(
        "the archive gives its results in another order each time, so that some are lost between pages: let it order "
        "them, or list while nothing is being added"
    )


def _one_pass(ask: Callable[[int], Page], size: int, most: int) -> list[Found]:
    pages: list[Found] = []
    offset = 0
    while (page := ask(offset)).count > 0:
        if pages and page.found.keys() == pages[0].keys():
            if page.more or page.count == size:
                raise ArchiveNotListed(
                    f"the archive repeats its first {page.count} results when it is asked for the next: it has to "
                    "support the parameter offset of a search (DICOM PS3.18 section 8.3.4.4)"
                )
            break  # it does not page, and gave all of them at once
        pages.append(page.found)
        offset += page.count
        if offset > most:
            raise ArchiveNotListed(
                f"the archive lists more than {most} results: let it offer the study's images under an address of "
                "their own, or raise the limit"
            )
    return pages


def _uid(result: Any, tag: str) -> str:
    value = _values(result, tag)
    if len(value) != 1 or not isinstance(value[0], str):
        raise NotAnAnswer
    uid = value[0].strip(" \0")
    return uid if _UID.fullmatch(uid) else NAMELESS


def _modalities(result: Any, tag: str) -> frozenset[str]:
    return frozenset(one.strip().upper() for one in _values(result, tag) if isinstance(one, str) and one.strip())


def _values(result: Any, tag: str) -> list[Any]:
    """The values of an attribute (PS3.18 F.2.2), none where it is absent or empty."""
    attribute = result.get(tag) if isinstance(result, dict) else None
    values = attribute.get("Value") if isinstance(attribute, dict) else None
    return values if isinstance(values, list) else []
