"""What is kept of a round comes back from its bytes as it was, with a guarantee per patient and without."""

import json
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from boundary.canonical import canonical_bytes
from boundary.secagg.ring import Encoding
from compliance.records import RoundRecord, record_from, to_bytes
from flows.records import Candidate

Make = Callable[..., RoundRecord]


def test_a_private_round_has_bands_and_no_loss_and_reads_back_the_same(round_record: Make) -> None:
    record = round_record(3, train_loss=None, below=(0, 1, 3, 3))
    data = to_bytes(record)
    said = json.loads(data)
    assert (said["below"], said["train_loss"]) == ([0, 1, 3, 3], None)
    assert record_from(data) == record
    assert to_bytes(record_from(data)) == data


def test_a_round_without_a_guarantee_has_a_loss_and_no_bands(round_record: Make) -> None:
    record = round_record(2)
    back = record_from(to_bytes(record))
    assert back == record
    assert (back.below, back.train_loss) == ((), 0.5)


def test_a_round_that_was_kept_before_there_were_bands_is_still_read(round_record: Make) -> None:
    said = json.loads(to_bytes(round_record(2)))
    del said["below"]
    assert record_from(canonical_bytes(said)) == round_record(2)


BANDS = {"fewer than no hospital": [0, -1, 2, 3], "half a hospital": [0, 1.5, 2, 3], "no list": 3}


@pytest.mark.parametrize("below", BANDS.values(), ids=BANDS)
def test_bands_that_count_no_hospitals_are_refused(below: object, round_record: Make) -> None:
    said = json.loads(to_bytes(round_record(2))) | {"below": below}
    with pytest.raises(ValidationError, match="below"):
        record_from(canonical_bytes(said))


def test_a_candidate_keeps_what_the_sum_said_for_whoever_commits_it(round_record: Make) -> None:
    record = round_record(1)
    candidate = Candidate(
        model=record.model_out, train_loss=None, weight=6.0, update_norm=0.5, clipped=0, below=(1, 2, 3, 3),
        train=record.train, survivors=record.transcript, next_encoding=Encoding(ring=32, exponent=20, most=3),
        training_seconds=1, transport_seconds=1, aggregation_seconds=1,
    )  # fmt: skip
    assert Candidate.model_validate(json.loads(to_bytes(candidate))) == candidate
