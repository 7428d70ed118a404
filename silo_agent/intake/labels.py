"""The hospital's own label table: CSV or Parquet in, one class index or one refusal per key out.

A row is keyed by the most specific identifier it fills in: SOPInstanceUID (one image), else SeriesInstanceUID, else
StudyInstanceUID, else AccessionNumber. The last comes after a study's UID because one order may be done in several
studies: a study's own row is the exception, as an image's is among those of its study. All are compared as texts,
character by character: 00123 is not 123. A bad row never ends a scan; it refuses the images it is about.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from boundary.canonical import Digest, digest
from boundary.images import Labels
from silo_agent.intake.archive import LabelKind
from silo_agent.intake.errors import (
    LabelColumnAmbiguous,
    LabelColumnMissing,
    LabelKeyMissing,
    LabelsDenied,
    LabelsMissingFile,
    LabelsUnreadable,
)
from silo_agent.intake.header import Identifiers
from silo_agent.intake.parquet import ParquetTable
from silo_agent.intake.refusals import Refusal

MAX_LABELS_BYTES = 64 * 1024 * 1024  # about 300 000 rows of three UIDs
LEVELS = ("sopinstanceuid", "seriesinstanceuid", "studyinstanceuid", "accessionnumber")  # most specific first
BY_ACCESSION = LEVELS[-1]
KEY_COLUMNS = "SOPInstanceUID, SeriesInstanceUID, StudyInstanceUID or AccessionNumber"
DELIMITERS = (",", ";")  # a spreadsheet in a German or Italian locale writes the second

Key = tuple[str, str]  # (level, UID or Accession Number)
Kind = Literal["csv", "parquet"]


@dataclass(frozen=True, slots=True)
class LabelTable:
    """What the table says, per key: an index into `plan.labels.classes`, or why there is none."""

    column: str
    digest: Digest  # see `parse_labels`; stays in the hospital
    outcomes: Mapping[Key, int | Refusal] = field(repr=False)

    def key_of(self, image: Identifiers) -> Key | None:
        """Return the most specific key that this image has in the table."""
        named = (image.sop_uid, image.series_uid, image.study_uid, image.accession)
        return next((key for key in zip(LEVELS, named, strict=True) if key in self.outcomes), None)

    def label_of(self, image: Identifiers) -> int | Refusal:
        key = self.key_of(image)
        return Refusal.LABEL_MISSING if key is None else self.outcomes[key]


def read_labels(path: Path, contract: Labels, kind: LabelKind | None = None) -> LabelTable:
    """Read the table at `path`; raises a subclass of `IntakeError` that names the fix.

    Without a `kind` the name decides: `.parquet` is Parquet, anything else CSV.
    """
    match kind:
        case "seg" | "nifti":
            raise LabelsUnreadable(
                "the policy names masks for this data set, and the plan asks for a table of classes: give the table of "
                "this study a data set of its own in the policy"
            )
        case None:
            return parse_labels(_bytes_of(path), contract, kind_of(path))
        case _:
            return parse_labels(_bytes_of(path), contract, kind)


def count_keyed(path: Path, kind: Kind | None = None) -> tuple[int, list[str]]:
    """Count the rows with a key and name the columns of keys, whatever the label is. Raises as `read_labels`."""
    table = open_table(_bytes_of(path), kind or kind_of(path))
    levels = [level_of(name) for name in table.names]
    keyed = [number for number, level in enumerate(levels) if level]
    count = sum(key_of(levels, row) is not None for row in table.rows(keyed, ()))
    return count, [table.names[number] for number in keyed]


def kind_of(path: Path) -> Kind:
    return "parquet" if path.suffix.lower() == ".parquet" else "csv"


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise LabelsUnreadable(f"{path} is larger than {MAX_LABELS_BYTES} bytes: keep only the rows of this study")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as why:
        raise LabelsMissingFile(
            f"there is no label table at {path}: correct labels.path of the data set in the policy"
        ) from why
    except PermissionError as why:
        raise LabelsDenied(f"{path} may not be read: grant the agent's user read access") from why
    except OSError as why:
        raise LabelsUnreadable(f"{path} cannot be read ({why.strerror}): check the path and the disk") from why


def parse_labels(data: bytes, contract: Labels, kind: Kind = "csv") -> LabelTable:
    """Parse CSV (UTF-8 with or without a byte order mark, comma or semicolon, one header line) or Parquet.

    Raises a subclass of `IntakeError`. Surrounding blanks are ignored; class names must match exactly, an integer of
    Parquet by its decimal digits. The digest is SHA-256 of the bytes as they are, so that anybody can check the file
    against it: the same rows have one digest as CSV and another as Parquet, and the same outcomes.
    """
    table = open_table(data, kind)
    levels = [level_of(name) for name in table.names]
    column = _label_column(table.names, levels, contract.column)
    class_of = {name: index for index, name in enumerate(contract.classes)}
    outcomes: dict[Key, int | Refusal] = {}
    for row in table.rows([number for number, level in enumerate(levels) if level], [column]):
        key = key_of(levels, row)
        cell = row[column]
        if key is not None and cell:
            new = class_of.get(cell, Refusal.LABEL_UNKNOWN)
            known = outcomes.setdefault(key, new)
            outcomes[key] = new if known == new else Refusal.LABEL_CONFLICT
    return LabelTable(table.names[column], digest(data), outcomes)


class Table(Protocol):
    """Columns by name, and rows of cells as texts; see `parquet.ParquetTable.rows` for what is asked for."""

    names: list[str]

    def rows(self, texts: Collection[int], codes: Collection[int]) -> Iterator[list[str]]: ...


def open_table(data: bytes, kind: Kind) -> Table:
    """Read the head of a table; one column at least is of keys. Raises `LabelsUnreadable` or `LabelKeyMissing`."""
    if kind == "csv":
        return _Csv(data)
    table = ParquetTable(data)
    if not any(map(level_of, table.names)):
        raise LabelKeyMissing(f"the label table has no column {KEY_COLUMNS}: add one")
    return table


class _Csv:
    """All of its cells are texts, so all are read."""

    def __init__(self, data: bytes) -> None:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as why:
            fix = "name it .parquet, it is one" if data.startswith(b"PAR1") else "save it as 'CSV UTF-8'"
            raise LabelsUnreadable(f"the label table is not UTF-8: {fix}") from why
        self.names, self._rows = table_of(text)

    def rows(self, _texts: Collection[int], _codes: Collection[int]) -> Iterator[list[str]]:
        return self._rows


def table_of(text: str) -> tuple[list[str], Iterator[list[str]]]:
    """Return the header, and the rows stripped and padded to its length."""
    failed: list[csv.Error] = []
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
        except csv.Error as why:  # also of a quoted line with the other delimiter
            failed.append(why)
            continue
        if any(level_of(name) for name in names):
            return names, _rows(reader, len(names))
    if len(failed) == len(DELIMITERS):
        raise LabelsUnreadable(f"line 1 of the label table is not CSV: {failed[0]}") from failed[0]
    raise LabelKeyMissing(
        f"the label table has no column {KEY_COLUMNS} in its first line: add one, separated by comma or semicolon"
    )


def _rows(reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    number = 1
    try:
        for number, row in enumerate(reader, start=2):
            cells = [cell.strip() for cell in row]
            if any(cells[width:]):
                raise LabelsUnreadable(f"row {number} of the label table has more cells than the first line")
            yield (cells + [""] * width)[:width]
    except csv.Error as why:
        raise LabelsUnreadable(f"the label table is not CSV after row {number}: {why}") from why


def level_of(name: str) -> str | None:
    plain = re.sub(r"[^a-z]", "", name.lower())
    return plain if plain in LEVELS else None


def _label_column(names: Sequence[str], levels: Sequence[str | None], wanted: str | None) -> int:
    others = [index for index, level in enumerate(levels) if level is None and names[index]]
    if wanted is not None:
        others = [index for index in others if names[index] == wanted]
    if not others:
        what = f"no column '{wanted}'" if wanted else "no column besides its keys"
        raise LabelColumnMissing(f"the label table has {what}: add it, spelt as in the plan")
    if len(others) > 1:
        found = ", ".join(names[index] for index in others)
        raise LabelColumnAmbiguous(
            f"the label could be any of the columns {found}: let the plan name one (labels.column), or leave one"
        )
    return others[0]


def key_of(levels: Sequence[str | None], row: Sequence[str]) -> Key | None:
    for level in LEVELS:
        for index, cell in enumerate(row):
            if levels[index] == level and cell:
                return level, cell
    return None
