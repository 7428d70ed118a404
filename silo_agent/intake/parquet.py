"""A label table stored as Parquet, read within bounds and only as far as it is asked for.

pyarrow is imported by the functions that use it: the daemon never does. Source: the Apache Parquet format, 2.10.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from silo_agent.intake.errors import LabelsUnreadable

MAX_ROWS = 2_000_000
MAX_COLUMNS = 1000  # counted as Parquet does, the parts of nested ones each
MAX_EXPANDED_BYTES = 256 * 1024 * 1024  # as the file says before it is read
MAX_CELL = 131_072  # characters, as Python's csv has it
_BATCH = 65_536  # rows


class ParquetTable:
    """A table in the memory. `names` are those of its columns, without surrounding blanks."""

    def __init__(self, data: bytes) -> None:
        """Read the schema. Raises `LabelsUnreadable` if this is not Parquet, or beyond the bounds."""
        with _readable():
            self._file = _open(data, ())
            self._schema = self._file.schema_arrow
        self._data = data
        self._names: Sequence[str] = self._schema.names
        self.names = [name.strip() for name in self._names]
        rows, columns = self._file.metadata.num_rows, self._file.metadata.num_columns
        if rows > MAX_ROWS or columns > MAX_COLUMNS:
            raise LabelsUnreadable(
                f"the label table has {rows} rows and {columns} columns, more than {MAX_ROWS} or {MAX_COLUMNS}: "
                "keep only the rows and columns of this study"
            )

    def rows(self, texts: Collection[int], codes: Collection[int]) -> Iterator[list[str]]:
        """Yield the rows, each as long as `names`: the cells of the columns asked for, stripped, the others empty.

        A null is an empty cell. `texts` are columns of strings, `codes` of strings or integers; an integer is its
        decimal digits. Raises `LabelsUnreadable` for any other type: a float, a date or a truth value has several
        spellings, and which of them a class has would be a guess. So it is with an integer among `texts`: it may have
        lost zeros that it began with, and would be another's number then.
        """
        for column in (*texts, *codes):
            self._check_type(column, with_integers=column in codes)
        with _readable():
            self._check_size()
            yield from self._read(sorted({*texts, *codes}))

    def _check_type(self, column: int, *, with_integers: bool) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        kind = self._schema.types[column]
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        strings = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
        if any(is_kind(plain) for is_kind in strings) or (with_integers and pa.types.is_integer(plain)):
            return
        wanted = "strings or integers" if with_integers else "strings"
        also = ""
        if not with_integers and (pa.types.is_integer(plain) or pa.types.is_floating(plain)):
            also = ", as the images have them: a number keeps no zeros that it begins with, and 00123 is not 123"
        elif pa.types.is_floating(plain):
            also = "; a column of integers with gaps becomes one of floats in pandas, unless its dtype is Int64"
        raise LabelsUnreadable(
            f"the column {self.names[column]} of the label table holds {kind}: store {wanted} there{also}"
        )

    def _check_size(self) -> None:
        # Of all columns, because pyarrow aborts the process when it is asked about one whose description is damaged.
        metadata = self._file.metadata
        expanded = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        if expanded > MAX_EXPANDED_BYTES:
            raise LabelsUnreadable(
                f"the label table expands to {expanded} bytes, more than {MAX_EXPANDED_BYTES}: "
                "keep only the rows and columns of this study"
            )

    def _read(self, asked: Sequence[int]) -> Iterator[list[str]]:
        wanted = list(dict.fromkeys(self._names[column] for column in asked))
        # Strings as a dictionary: one long cell in a million rows is held once, as in the file.
        file, count = _open(self._data, wanted), 0
        for batch in file.iter_batches(_BATCH, columns=wanted, use_threads=False):
            count += batch.num_rows
            if count > MAX_ROWS:
                raise LabelsUnreadable(f"the label table has more rows than it says, and more than {MAX_ROWS}")
            cells = [self._cells(batch, column) for column in asked]
            for row in zip(*cells, strict=True):
                whole = [""] * len(self.names)
                for column, cell in zip(asked, row, strict=True):
                    whole[column] = cell
                yield whole

    def _cells(self, batch: Any, column: int) -> Iterator[str]:
        name = self._names[column]
        alike = [number for number, other in enumerate(batch.schema.names) if other == name]
        values = batch.column(alike[self._names[:column].count(name)])
        if not hasattr(values, "dictionary"):
            return map(_text, values.to_pylist())
        texts = ["", *map(_text, values.dictionary.to_pylist())]
        return (texts[0 if index is None else index + 1] for index in values.indices.to_pylist())


def _text(value: object) -> str:
    text = "" if value is None else str(value).strip()
    if len(text) > MAX_CELL:
        raise LabelsUnreadable(
            f"a cell of the label table has more than {MAX_CELL} characters: is this the right file?"
        )
    return text


def _open(data: bytes, as_dictionary: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    return pq.ParquetFile(
        pa.BufferReader(data),
        read_dictionary=list(as_dictionary),
        pre_buffer=False,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,  # types that the file names are not looked up
    )


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into `LabelsUnreadable`."""
    try:
        yield
    except LabelsUnreadable:
        raise
    except ImportError as why:
        raise LabelsUnreadable("Parquet needs pyarrow: install it, or save the label table as CSV") from why
    except Exception as why:  # pyarrow's own errors, OSError, ValueError, KeyError and others: there is no common root
        raise LabelsUnreadable(
            f"the label table is not Parquet, or damaged ({type(why).__name__}): write it again, or save it as CSV"
        ) from why
