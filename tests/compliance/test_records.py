"""What is kept of a round: one form, read back as it was written, and strict about everything in it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from boundary.canonical import canonical_bytes, digest, parse_json
from boundary.errors import MalformedMessage
from boundary.messages import BlobRef
from boundary.secagg.ring import Encoding
from compliance.records import CohortDecision, GlobalMetrics, RoundRecord, Timing, Traffic, record_from, to_bytes

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DECISION = CohortDecision(
    phase="train", attempt=1, reason="ALL_READY", members=("charite", "st-olavs", "ucl"),
    absent={"utrecht": "SILENT"}, closed_at=NOW,
)  # fmt: skip
METRICS = GlobalMetrics(count=9, loss=0.5, accuracy=0.75, auroc=None, balanced_accuracy=0.7, confusion=((4, 1), (1, 3)))
SAID: dict[str, Any] = {
    "study": "ct-contrast-0123abcd", "round": 2, "model_in": digest(b"in"),
    "model_out": BlobRef(digest=digest(b"out"), size=9), "registered": ("charite", "st-olavs", "ucl", "utrecht"),
    "ready": ("charite", "st-olavs", "ucl"), "contributing": ("charite", "st-olavs", "ucl"),
    "absent": {"utrecht": "SILENT"}, "train": DECISION, "transcript": digest(b"sum"), "clipped": 0, "update_norm": 0.5,
    "below": (0, 1, 3, 3), "next_encoding": Encoding(ring=32, exponent=20, most=4), "evaluate": DECISION,
    "train_loss": 0.25, "metrics": METRICS,
    "timing": Timing(training=1.0, transport=0.5, aggregation=0.25, evaluation=0.0, total=2.0),
    "traffic": {"charite": Traffic(up=10, down=20)}, "committed_at": NOW,
}  # fmt: skip
RECORD = RoundRecord(**SAID)


def test_a_record_is_read_as_it_was_written() -> None:
    data = to_bytes(RECORD)
    assert record_from(data) == RECORD
    assert canonical_bytes(parse_json(data)) == data, "so that its digest is that of what it says"


def test_a_round_without_somebody_is_partial() -> None:
    assert RECORD.is_partial
    assert not RoundRecord(**(SAID | {"absent": {}})).is_partial


BAD: dict[str, dict[str, Any]] = {
    "a note": {"note": "patient 17"},
    "a band of less than nobody": {"below": (-1,)},
    "weights clipped less than never": {"clipped": -1},
    "a hospital called coordinator": {"contributing": ("coordinator",)},
    "an absence in words": {"absent": {"utrecht": "they were asleep"}},
    "a model without its digest": {"model_in": "the old one"},
    "a time without an offset": {"committed_at": datetime(2026, 11, 20)},  # noqa: DTZ001 - that is what is refused
    "a change of no length": {"update_norm": None},
    "a change shorter than nothing": {"update_norm": -1.0},
    "rolled back for no reason there is": {"rolled_back": "BAD_MOOD"},
    "a round in words": {"round": "2"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_what_is_no_record_cannot_be_made(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RoundRecord(**(SAID | changes))


def test_what_is_no_record_is_not_read() -> None:
    for data in (b"{}", to_bytes(RECORD).replace(b'"round":2', b'"round":0')):
        with pytest.raises(ValidationError):
            record_from(data)
    with pytest.raises(MalformedMessage):
        record_from(b"a record")
