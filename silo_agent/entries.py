"""Entries of our own log, by their kind and study. Of all others the bytes are looked at, and nothing is parsed."""

from collections.abc import Iterator
from typing import TypeVar

from compliance.events import LateUpdateOffered, RoundReceived, TrainingStarted
from compliance.trail import read_leaf
from silo_agent.journal import Journal

Kind = TypeVar("Kind", TrainingStarted, LateUpdateOffered, RoundReceived)


def entries(journal: Journal, kind: type[Kind], study: str | None = None) -> Iterator[Kind]:
    """Those of this kind, of one study or of all, in the order they were written."""
    named, about = f'"{kind.event}"'.encode(), b"" if study is None else study.encode()
    for leaf in journal.trail():
        if named in leaf and about in leaf:
            event = read_leaf(leaf).event
            if isinstance(event, kind) and study in {None, event.study}:
                yield event
