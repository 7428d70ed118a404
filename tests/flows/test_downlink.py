"""Rounds whose model comes down in bfloat16: what is sent is rounded, what the coordinator goes on from is not."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.testing import assert_array_equal

from boundary.bfloat16 import rounded
from boundary.errors import BadTensors
from boundary.tensors import Vector, unpack
from compliance.records import RoundRecord
from flows.aggregation.memory import recalled
from flows.aggregation.rounding import MASTER
from flows.driver import StudyDriver
from flows.release import final_weights
from flows.store import rounds
from flows.store.database import reading
from infra.driving import EXACT, PARAMETERS, mean_of, run, train_only, weights, work_of
from infra.federation import SimulatedFederation, make_federation

FROZEN = 1000
PARTLY = {"model": {"name": "cnn-small", "version": 1, "trained": ["w"]}}


@pytest.fixture(params=["all of it moves", "a part moves"])
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[SimulatedFederation]:
    works = {f"h{n}": work_of(n) for n in range(1, 4)}
    parted = {"frozen": FROZEN, "changes": PARTLY} if request.param == "a part moves" else {}
    made = make_federation(tmp_path, works, parameters=PARAMETERS, rounds=2, downlink="bfloat16", **parted)
    yield made
    made.close()


async def next_round(driver: StudyDriver) -> RoundRecord:
    return await train_only(driver, len(driver.records()) + 1)


def master_of(federation: SimulatedFederation, number: int) -> Vector:
    with reading(federation.coordinator.store) as connection:
        last = rounds.last_kept(connection, federation.study.study)
    assert last is not None
    kept, candidate = last
    assert kept == number
    assert candidate.memory is not None
    like = {MASTER: np.zeros(PARAMETERS, np.float32)}
    return recalled(candidate.memory, like, number, federation.coordinator.blobs.open)[MASTER]


def test_each_driver_goes_on_from_the_weights_that_were_not_sent(federation: SimulatedFederation) -> None:
    blobs, moving = federation.coordinator.blobs, federation.study.parts.moving
    for number in (1, 2):
        record = run(federation, next_round, f"driver {number}")
        master = master_of(federation, number)
        assert master == pytest.approx(np.full(PARAMETERS, number * mean_of(1, 2, 3)), rel=2 * EXACT)
        assert_array_equal(weights(federation, record), rounded(master))
        assert not np.array_equal(rounded(master), master)
        with blobs.open(record.model_out.digest) as source:
            data = source.read()
        assert {tensor.dtype for tensor in safetensors.torch.load(data).values()} == {torch.bfloat16}
        with pytest.raises(BadTensors):
            unpack(data, moving)
        with blobs.open(record.model_in) as source:
            assert_array_equal(unpack(source.read(), moving, "bfloat16") == 0, np.full(PARAMETERS, number == 1))
    whole = final_weights(federation.study, record, blobs.open)
    assert_array_equal(whole[-PARAMETERS:], rounded(master_of(federation, 2)), "what was sent is released")
    assert_array_equal(whole[:-PARAMETERS], np.ones(federation.study.parts.whole.size - PARAMETERS))
