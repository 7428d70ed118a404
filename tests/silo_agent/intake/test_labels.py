import csv
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import digest
from boundary.images import Labels
from silo_agent.intake import parquet
from silo_agent.intake.errors import IntakeError, LabelsUnreadable
from silo_agent.intake.header import Identifiers
from silo_agent.intake.labels import LabelTable, count_keyed, kind_of, parse_labels, read_labels
from silo_agent.intake.refusals import Refusal

CONTRACT = Labels(classes=("no", "yes"))
IMAGE = Identifiers("P1", "1.study", "1.series", "1.sop", "0012 34")


def label_of(text: str, image: Identifiers = IMAGE, contract: Labels = CONTRACT) -> int | Refusal:
    return parse_labels(text.encode(), contract).label_of(image)


TABLES = {
    "by instance": ("SOPInstanceUID,x\n1.sop,yes\n", 1),
    "by series": ("SeriesInstanceUID,x\n1.series,no\n", 0),
    "by study": ("StudyInstanceUID,x\n1.study,yes\n", 1),
    "by accession number": ("AccessionNumber,x\n0012 34,yes\n", 1),
    "by accession number, with blanks": ("Accession Number, x\r\n  0012 34 ,yes\n", 1),
    "the number without its zeros": ("AccessionNumber,x\n12 34,yes\n", Refusal.LABEL_MISSING),
    "the number without its blank": ("AccessionNumber,x\n001234,yes\n", Refusal.LABEL_MISSING),
    "the number in another column": ("StudyInstanceUID,AccessionNumber,x\n0012 34,,yes\n", Refusal.LABEL_MISSING),
    "the study's row before its order's": (
        "AccessionNumber,StudyInstanceUID,x\n0012 34,,no\n0012 34,1.study,yes\n",
        1,
    ),
    "the order's row for its other studies": (
        "AccessionNumber,StudyInstanceUID,x\n0012 34,,no\n0012 34,2.study,yes\n",
        0,
    ),
    "a row of another study of the order": (
        "AccessionNumber,StudyInstanceUID,x\n0012 34,2.study,yes\n",
        Refusal.LABEL_MISSING,
    ),
    "one row for each of the order's series": ("AccessionNumber,x\n0012 34,yes\n0012 34,yes\n0012 34,yes\n", 1),
    "rows of an order that disagree": ("AccessionNumber,x\n0012 34,yes\n0012 34,no\n", Refusal.LABEL_CONFLICT),
    "a row without a number": ("AccessionNumber,x\n,yes\n", Refusal.LABEL_MISSING),
    "semicolons": ("SOPInstanceUID;x\n1.sop;yes\n", 1),
    "a byte order mark": ("\ufeffSOPInstanceUID,x\n1.sop,yes\n", 1),
    "windows line ends and blanks": ("SOP Instance UID , x\r\n 1.sop , yes \r\n", 1),
    "snake case": ("sop_instance_uid,x\n1.sop,yes\n", 1),
    "quotes": ('"SOPInstanceUID","x"\n"1.sop","yes"\n', 1),
    "quotes and semicolons": ('"SOPInstanceUID";"x"\n"1.sop";"yes"\n', 1),
    "the instance's row before the study's": (
        "SOPInstanceUID,StudyInstanceUID,x\n,1.study,no\n1.sop,1.study,yes\n",
        1,
    ),
    "the study's row for another instance": (
        "SOPInstanceUID,StudyInstanceUID,x\n,1.study,no\n2.sop,1.study,yes\n",
        0,
    ),
    "the same row twice": ("SOPInstanceUID,x\n1.sop,yes\n1.sop,yes\n", 1),
    "trailing separators": ("SOPInstanceUID,x\n1.sop,yes,,\n", 1),
    "no row": ("SOPInstanceUID,x\n2.sop,yes\n", Refusal.LABEL_MISSING),
    "an empty cell": ("SOPInstanceUID,x\n1.sop,\n", Refusal.LABEL_MISSING),
    "no rows at all": ("SOPInstanceUID,x\n", Refusal.LABEL_MISSING),
    "a value of no class": ("SOPInstanceUID,x\n1.sop,maybe\n", Refusal.LABEL_UNKNOWN),
    "another case": ("SOPInstanceUID,x\n1.sop,Yes\n", Refusal.LABEL_UNKNOWN),
    "two rows that disagree": ("SOPInstanceUID,x\n1.sop,yes\n1.sop,no\n", Refusal.LABEL_CONFLICT),
    "a third row does not settle it": (
        "SOPInstanceUID,x\n1.sop,yes\n1.sop,no\n1.sop,no\n",
        Refusal.LABEL_CONFLICT,
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_labels_an_image(case: str) -> None:
    text, expected = TABLES[case]
    assert label_of(text) == expected


@pytest.mark.parametrize("text", ["AccessionNumber,x\n,yes\n", "AccessionNumber,x\n  ,yes\n"])
def test_an_image_without_an_accession_number_has_no_label_by_an_empty_cell(text: str) -> None:
    assert label_of(text, replace(IMAGE, accession="")) == Refusal.LABEL_MISSING


def test_the_plan_s_column_is_taken_where_there_are_several() -> None:
    text = "SOPInstanceUID,a,b\n1.sop,yes,no\n"
    assert label_of(text, contract=Labels(column="b", classes=("no", "yes"))) == 0


BROKEN = {
    "not UTF-8": ("SOPInstanceUID,x\n1.sop,é\n".encode("latin-1"), None, "LABELS_UNREADABLE"),
    "UTF-16": ("SOPInstanceUID,x\n".encode("utf-16"), None, "LABELS_UNREADABLE"),
    "a quote that never ends": (b'SOPInstanceUID,x\n"1.sop,yes\n', None, "LABELS_UNREADABLE"),
    "more cells than columns": (b"SOPInstanceUID,x\n1.sop,yes,no\n", None, "LABELS_UNREADABLE"),
    "empty": (b"", None, "LABEL_KEY_MISSING"),
    "no UID column": (b"PatientID,x\nP1,yes\n", None, "LABEL_KEY_MISSING"),
    "no UID column, in quotes": (b'"PatientID","x"\n"P1","yes"\n', None, "LABEL_KEY_MISSING"),
    "a first line whose quote never ends": (b'"SOPInstanceUID,x\n1.sop,yes\n', None, "LABELS_UNREADABLE"),
    "UIDs only": (b"SOPInstanceUID\n1.sop\n", None, "LABEL_COLUMN_MISSING"),
    "the plan's column is not there": (b"SOPInstanceUID,x\n1.sop,yes\n", "y", "LABEL_COLUMN_MISSING"),
    "two candidates": (b"SOPInstanceUID,x,y\n1.sop,yes,no\n", None, "LABEL_COLUMN_AMBIGUOUS"),
    "the plan's column twice": (b"SOPInstanceUID,x,x\n1.sop,yes,no\n", "x", "LABEL_COLUMN_AMBIGUOUS"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_table_that_cannot_be_used_says_why(case: str) -> None:
    data, column, code = BROKEN[case]
    with pytest.raises(IntakeError) as caught:
        parse_labels(data, Labels(column=column, classes=("no", "yes")))
    assert caught.value.code == code
    assert len(str(caught.value)) > 20


def test_a_missing_table_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(IntakeError, match=r"labels\.csv") as caught:
        read_labels(tmp_path / "labels.csv", CONTRACT)
    assert caught.value.code == "LABELS_MISSING_FILE"


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(IntakeError) as caught:
        read_labels(tmp_path, CONTRACT)
    assert caught.value.code == "LABELS_UNREADABLE"


# --- Parquet -------------------------------------------------------------------------------------------
Columns = Mapping[str, Any]


def stored(columns: Columns | pa.Table, **options: Any) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    file = BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def outcome_of(columns: Columns | pa.Table, contract: Labels = CONTRACT, **options: Any) -> int | Refusal:
    return parse_labels(stored(columns, **options), contract, "parquet").label_of(IMAGE)


UIDS = ["2.sop", "1.sop"]
SAME_LABEL: dict[str, pa.Array] = {
    "strings": pa.array(["no", "yes"]),
    "large strings": pa.array(["no", "yes"], pa.large_string()),
    "string views": pa.array(["no", "yes"], pa.string_view()),
    "a category": pa.array(["no", "yes"]).dictionary_encode(),
    "strings with blanks": pa.array(["no", " yes\t"]),
}


@pytest.mark.parametrize("case", SAME_LABEL)
def test_text_is_read_from_parquet_however_it_is_stored(case: str) -> None:
    assert outcome_of({"SOP Instance UID ": UIDS, "x": SAME_LABEL[case]}) == 1


CODES: dict[str, tuple[pa.Array, int | Refusal]] = {
    "integers": (pa.array([0, 1]), 1),
    "small integers": (pa.array([1, 0], pa.int8()), 0),
    "unsigned integers": (pa.array([1, 0], pa.uint64()), 0),
    "a category of integers": (pa.array([1, 0]).dictionary_encode(), 0),
    "integers with a gap": (pa.array([0, None], pa.int64()), Refusal.LABEL_MISSING),
    "an integer of no class": (pa.array([0, 2]), Refusal.LABEL_UNKNOWN),
    "a large integer": (pa.array([0, 2**64 - 1], pa.uint64()), Refusal.LABEL_UNKNOWN),
    "the same as text": (pa.array(["0", "1"]), 1),
    "a float as text": (pa.array(["0.0", "1.0"]), Refusal.LABEL_UNKNOWN),
    "nothing": (pa.nulls(2), Refusal.LABEL_MISSING),
    "an empty text": (pa.array(["0", ""]), Refusal.LABEL_MISSING),
}


@pytest.mark.parametrize("case", CODES)
def test_a_code_of_parquet_is_an_integer_or_its_digits(case: str) -> None:
    labels, expected = CODES[case]
    contract = Labels(classes=("0", "1"))
    assert outcome_of({"SOPInstanceUID": UIDS, "x": labels}, contract) == expected


GUESSES: dict[str, tuple[pa.Array, str]] = {
    "floats": (pa.array([0.0, 1.0]), "holds double: store strings or integers there; .* dtype is Int64"),
    "small floats": (pa.array([0.0, 1.0], pa.float32()), "holds float: store strings or integers"),
    "a category of floats": (pa.array([0.0, 1.0]).dictionary_encode(), "store strings or integers"),
    "decimals": (pa.array([Decimal(0), Decimal(1)]), "store strings or integers"),
    "truth values": (pa.array([False, True]), "holds bool: store strings or integers there$"),
    "dates": (pa.array([date(2020, 1, 1)] * 2), "store strings or integers"),
    "bytes": (pa.array([b"0", b"1"]), "store strings or integers"),
    "lists": (pa.array([[0], [1]]), "store strings or integers"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_what_has_several_spellings_is_no_label(case: str) -> None:
    labels, sentence = GUESSES[case]
    with pytest.raises(LabelsUnreadable, match=sentence):
        outcome_of({"SOPInstanceUID": UIDS, "x": labels}, Labels(classes=("0", "1")))


def test_an_integer_is_no_uid() -> None:
    with pytest.raises(LabelsUnreadable, match=r"column StudyInstanceUID .* holds int64: store strings there, as"):
        outcome_of({"SOPInstanceUID": UIDS, "StudyInstanceUID": [1, 2], "x": ["no", "yes"]})


def test_an_accession_number_is_read_from_parquet_as_text() -> None:
    assert outcome_of({"accession_number": ["12 34", " 0012 34"], "x": ["no", "yes"]}) == 1


NUMBERS: dict[str, pa.Array] = {
    "integers": pa.array([1, 2]),
    "integers with a gap, as pandas stores them": pa.array([1.0, None]),
    "a category of integers": pa.array([1, 2]).dictionary_encode(),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_may_have_lost_its_zeros_is_no_accession_number(case: str) -> None:
    """Nor is it matched by its digits: 123 is another's number where this one was 00123."""
    sentence = "column AccessionNumber .* store strings there, as the images have them: .* 00123 is not 123$"
    with pytest.raises(LabelsUnreadable, match=sentence):
        outcome_of({"AccessionNumber": NUMBERS[case], "x": ["no", "yes"]})


def test_columns_that_are_not_asked_for_may_hold_anything() -> None:
    other = {"age": [61.5, 70.0], "seen": [date(2020, 1, 1)] * 2, "parts": [[1], [2]], "who": [{"a": 1}, {"a": 2}]}
    contract = Labels(column="x", classes=("no", "yes"))
    assert outcome_of({**other, "SOPInstanceUID": UIDS, "x": ["no", "yes"], "empty": pa.nulls(2)}, contract) == 1


def test_columns_of_one_name_are_told_apart_by_their_order() -> None:
    names = ["SOPInstanceUID", "x", "SOPInstanceUID"]
    table = pa.Table.from_arrays([pa.array([None, "1.sop"]), pa.array(["no", "yes"]), pa.array(UIDS[::-1])], names)
    assert outcome_of(table) == Refusal.LABEL_CONFLICT  # the first row is keyed by its second UID
    twice = pa.Table.from_arrays([pa.array(UIDS), pa.array(["no", "yes"]), pa.array([0.5, 0.5])], [names[0], "x", "x"])
    with pytest.raises(IntakeError, match="any of the columns x, x"):
        outcome_of(twice)


def test_the_digest_is_that_of_the_file() -> None:
    columns = {"SOPInstanceUID": UIDS, "x": ["no", "yes"]}
    data, text = stored(columns), "SOPInstanceUID,x\n2.sop,no\n1.sop,yes\n"
    as_parquet, as_csv = parse_labels(data, CONTRACT, "parquet"), parse_labels(text.encode(), CONTRACT)
    assert (as_parquet.outcomes, as_parquet.column) == (as_csv.outcomes, as_csv.column)
    assert as_parquet.digest == digest(data) != as_csv.digest


def test_the_name_decides_unless_the_kind_is_said(tmp_path: Path) -> None:
    data = stored({"SOPInstanceUID": UIDS, "x": ["no", "yes"]})
    for name in ("labels.parquet", "LABELS.PARQUET"):
        (tmp_path / name).write_bytes(data)
        assert read_labels(tmp_path / name, CONTRACT).label_of(IMAGE) == 1
    (tmp_path / "labels.csv").write_bytes(data)
    assert read_labels(tmp_path / "labels.csv", CONTRACT, "parquet").label_of(IMAGE) == 1
    with pytest.raises(LabelsUnreadable, match=r"name it \.parquet"):
        read_labels(tmp_path / "labels.csv", CONTRACT)
    with pytest.raises(LabelsUnreadable, match="not Parquet"):
        parse_labels(b"SOPInstanceUID,x\n1.sop,yes\n", CONTRACT, "parquet")
    assert kind_of(Path("parquet")) == "csv"


def test_rows_with_a_uid_are_counted_whatever_the_label_is(tmp_path: Path) -> None:
    uids: dict[str, Any] = {"SOPInstanceUID": ["1.sop", None, ""], "StudyInstanceUID": [None, None, "1.study"]}
    (tmp_path / "labels.parquet").write_bytes(stored({**uids, "x": [0.5, 1.0, 2.0], "y": [True, False, True]}))
    (tmp_path / "labels.csv").write_text("SOPInstanceUID,StudyInstanceUID,x,y\n1.sop,,0.5,t\n,,1,f\n,1.study,2,t\n")
    for name in ("labels.parquet", "labels.csv"):
        assert count_keyed(tmp_path / name) == (2, ["SOPInstanceUID", "StudyInstanceUID"])
    (tmp_path / "labels.csv").write_text("Accession Number,x\n007,a\n,b\n008,c\n")
    assert count_keyed(tmp_path / "labels.csv") == (2, ["Accession Number"])


WITHOUT: dict[str, tuple[Columns, str | None, str]] = {
    "no UID column": ({"PatientID": ["P1"], "x": ["yes"]}, None, "LABEL_KEY_MISSING"),
    "no column at all": ({}, None, "LABEL_KEY_MISSING"),
    "UIDs only": ({"SOPInstanceUID": ["1.sop"]}, None, "LABEL_COLUMN_MISSING"),
    "the plan's column is not there": ({"SOPInstanceUID": ["1.sop"], "x": ["yes"]}, "y", "LABEL_COLUMN_MISSING"),
    "two candidates": ({"SOPInstanceUID": ["1.sop"], "x": ["yes"], "y": ["no"]}, None, "LABEL_COLUMN_AMBIGUOUS"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_a_parquet_table_that_cannot_be_used_says_why(case: str) -> None:
    columns, column, code = WITHOUT[case]
    with pytest.raises(IntakeError) as caught:
        outcome_of(columns, Labels(column=column, classes=("no", "yes")))
    assert caught.value.code == code
    assert len(str(caught.value)) > 20


def repeated(rows: int, uid: str = "1.sop") -> pa.Table:
    one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([uid]))
    return pa.table({"SOPInstanceUID": one, "x": pa.DictionaryArray.from_arrays(one.indices, pa.array(["yes"]))})


BOUNDS: dict[str, tuple[str, int, str]] = {
    "rows": ("MAX_ROWS", 999, "1000 rows and 2 columns"),
    "columns": ("MAX_COLUMNS", 1, "1000 rows and 2 columns"),
    "bytes when expanded": ("MAX_EXPANDED_BYTES", 100, "expands to"),
    "characters of a cell": ("MAX_CELL", 4, "more than 4 characters"),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_table_beyond_the_bounds_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, most, sentence = BOUNDS[case]
    assert outcome_of(repeated(1000)) == 1
    monkeypatch.setattr(parquet, name, most)
    with pytest.raises(LabelsUnreadable, match=sentence):
        outcome_of(repeated(1000))


def test_a_long_cell_in_very_many_rows_is_held_once() -> None:
    data = stored(repeated(200_000, "1.sop" + " " * 100_000))
    assert len(data) < 100_000
    pa.default_memory_pool().release_unused()
    most = pa.default_memory_pool().max_memory()
    assert parse_labels(data, CONTRACT, "parquet").label_of(IMAGE) == 1
    assert pa.default_memory_pool().max_memory() - most < 100_000_000


def damaged(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 4, 32))):
        changed[chance.randrange(4, len(changed))] = chance.randrange(256)
    return bytes(changed) if chance.random() < 0.8 else bytes(changed[: chance.randrange(len(changed))])


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zstd", "write_page_checksum": True}, {"use_dictionary": False}]
)
def test_damaged_parquet_is_a_table_or_an_error_of_ours(options: dict[str, Any]) -> None:
    data = stored({"SOPInstanceUID": [f"1.{i}" for i in range(50)], "x": ["yes", "no"] * 25}, **options)
    ends = []
    for seed in range(400):
        harmed = damaged(random.Random(seed), data)  # noqa: S311 - reproducible damage, no secret
        ends.append(end_of(lambda harmed=harmed: parse_labels(harmed, CONTRACT, "parquet")))
    codes = {end for end in ends if isinstance(end, str)}
    assert "LABELS_UNREADABLE" in codes
    assert codes <= {"LABELS_UNREADABLE", "LABEL_KEY_MISSING", "LABEL_COLUMN_MISSING", "LABEL_COLUMN_AMBIGUOUS"}


def test_pyarrow_is_imported_only_where_there_is_parquet() -> None:
    look = "import sys, silo_agent.intake.labels; raise SystemExit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)


CELLS = st.one_of(
    st.none(),
    st.sampled_from(["yes", "no", " yes ", "", "maybe", "1", 'a "quoted" one', "two\nlines", "semi;colon", "com,ma"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6),
)
SOME_UIDS = st.one_of(st.none(), st.sampled_from(["1.sop", "2.sop", "1.study", " 1.series ", "", "1.sop,2", "0012 34"]))
NAMES = st.lists(
    st.sampled_from(
        ["SOPInstanceUID", "series_instance_uid", "Study Instance UID", "Accession Number", "x", "y", " z "]
    ),
    min_size=1,
    unique=True,
)


@given(st.data())
def test_the_same_table_has_the_same_outcomes_as_csv_and_as_parquet(data: st.DataObject) -> None:
    names = data.draw(NAMES)
    rows = data.draw(
        st.lists(st.tuples(*(SOME_UIDS if len(name) > 3 else CELLS for name in names)), max_size=8), "rows"
    )
    contract = Labels(column=data.draw(st.sampled_from([None, "x", "z"])), classes=("no", "yes"))
    columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    options = {"use_dictionary": data.draw(st.booleans()), "row_group_size": data.draw(st.integers(1, 8))}
    assert end_of(lambda: parse_labels(as_csv(names, rows), contract)) == end_of(
        lambda: parse_labels(stored(columns, **options), contract, "parquet")
    )


def as_csv(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> bytes:
    text = StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *rows])
    return text.getvalue().encode()


def end_of(parse: Callable[[], LabelTable]) -> object:
    try:
        found = parse()
    except IntakeError as why:
        return why.code
    return found.column, found.outcomes


@given(st.lists(st.tuples(st.sampled_from(["1.sop", "2.sop", "3.sop"]), st.none() | st.integers(-1, 12)), max_size=8))
def test_integers_of_parquet_are_those_of_csv(rows: list[tuple[str, int | None]]) -> None:
    contract = Labels(classes=("0", "1", "10"))
    text = "SOPInstanceUID,x\n" + "".join(f"{uid},{'' if code is None else code}\n" for uid, code in rows)
    columns = {
        "SOPInstanceUID": pa.array([uid for uid, _ in rows], pa.string()),
        "x": pa.array([code for _, code in rows], pa.int32()),
    }
    assert parse_labels(text.encode(), contract).outcomes == parse_labels(stored(columns), contract, "parquet").outcomes
