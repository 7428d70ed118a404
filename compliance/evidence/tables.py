"""The shapes a section of the report is made of; all of it is JSON."""

from collections.abc import Iterable, Sequence
from typing import TypedDict

Cell = str | int | float | None


class Table(TypedDict):
    """`exact`: digests in it are shown whole."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    exact: bool


class Figure(TypedDict):
    """`kind` names a function of `figures`, which draws `data`."""

    kind: str
    title: str
    data: dict[str, object]


class Section(TypedDict):
    """One of the twelve. `texts` are (title, text to be shown as it is)."""

    number: int
    title: str
    lead: str
    fields: list[list[Cell]]
    tables: list[Table]
    figures: list[Figure]
    notes: list[str]
    texts: list[list[str]]


def section(  # noqa: PLR0913 - one for each part of a section
    number: int,
    title: str,
    lead: str,
    *,
    fields: Iterable[tuple[str, Cell]] = (),
    tables: Iterable[Table] = (),
    figures: Iterable[Figure] = (),
    notes: Iterable[str] = (),
    texts: Iterable[tuple[str, str]] = (),
) -> Section:
    return Section(
        number=number,
        title=title,
        lead=lead,
        fields=[list(field) for field in fields],
        tables=list(tables),
        figures=list(figures),
        notes=list(notes),
        texts=[list(text) for text in texts],
    )


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, exact: bool = False) -> Table:
    return Table(title=title, columns=list(columns), rows=[list(row) for row in rows], exact=exact)


def figure(kind: str, title: str, **data: object) -> Figure:
    return Figure(kind=kind, title=title, data=data)


def moment(time: str) -> str:
    """A log's time to the second, for people; the entry has it whole."""
    return f"{time[:10]} {time[11:19]} UTC"


def names(parties: Iterable[str]) -> str:
    """`charite, ucl`, or `none`."""
    return ", ".join(parties) or "none"
