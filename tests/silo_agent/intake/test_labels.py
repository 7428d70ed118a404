from pathlib import Path

import pytest

from boundary.plan import Labels
from silo_agent.intake.errors import IntakeError
from silo_agent.intake.header import Identifiers
from silo_agent.intake.labels import parse_labels, read_labels
from silo_agent.intake.refusals import Refusal

CONTRACT = Labels(classes=("no", "yes"))
IMAGE = Identifiers("P1", "1.study", "1.series", "1.sop")


def label_of(text: str, image: Identifiers = IMAGE, contract: Labels = CONTRACT) -> int | Refusal:
    return parse_labels(text.encode(), contract).label_of(image)


TABLES = {
    "by instance": ("SOPInstanceUID,x\n1.sop,yes\n", 1),
    "by series": ("SeriesInstanceUID,x\n1.series,no\n", 0),
    "by study": ("StudyInstanceUID,x\n1.study,yes\n", 1),
    "semicolons": ("SOPInstanceUID;x\n1.sop;yes\n", 1),
    "a byte order mark": ("\ufeffSOPInstanceUID,x\n1.sop,yes\n", 1),
    "windows line ends and blanks": ("SOP Instance UID , x\r\n 1.sop , yes \r\n", 1),
    "snake case": ("sop_instance_uid,x\n1.sop,yes\n", 1),
    "quotes": ('"SOPInstanceUID","x"\n"1.sop","yes"\n', 1),
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
