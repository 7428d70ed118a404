"""A masked sum rehearsed on one machine gives back what was put in, and says so only then."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundary.errors import BadTensors
from boundary.layout import VectorLayout, layout_for
from boundary.secagg.ring import Encoding, exponent_for
from silo_agent.ladder import masking
from silo_agent.ladder.masking import masked_trip
from silo_agent.vector import write_masked, write_vector

SILOS = ("st-olavs", "rehearsal-2", "rehearsal-3", "rehearsal-4")
LAYOUT = layout_for("train", parameters=1000, metrics=0)


def encoding(ring: int, most: int = len(SILOS)) -> Encoding:
    return Encoding(ring=ring, exponent=exponent_for(1.0, ring, most), most=most)  # type: ignore[arg-type]


def stored(folder: Path, scale: float, layout: VectorLayout = LAYOUT) -> Path:
    weights = (np.random.default_rng(3).standard_normal(layout.weights) * scale).astype(np.float32)
    write_vector(folder / "vector", np.array([12.5, 40.0, 40.0, 0.0])[: layout.numbers], weights)
    return folder / "vector"


@pytest.mark.parametrize("ring", [16, 32])
@pytest.mark.parametrize("scale", [1e-4, 0.2, 5.0], ids=["small", "large", "mostly clipped"])
def test_the_sum_comes_out_as_it_went_in(ring: int, scale: float, tmp_path: Path) -> None:
    trip = masked_trip(stored(tmp_path, scale), LAYOUT, encoding(ring), SILOS, os.urandom)
    assert trip.hospitals == 4
    assert trip.masked_bytes == LAYOUT.masked_bytes(ring)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hospitals=st.integers(3, 12), scale=st.floats(1e-6, 10), ring=st.sampled_from([16, 32]))
def test_of_any_number_of_hospitals(hospitals: int, scale: float, ring: int, tmp_path: Path) -> None:
    silos = tuple(f"h{number}" for number in range(hospitals))
    trip = masked_trip(stored(tmp_path, scale), LAYOUT, encoding(ring, hospitals), silos, os.urandom)
    assert trip.hospitals == hospitals


def test_what_leaves_looks_like_nothing_that_was_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def write(vector: Path, masked: Path, *more: object) -> object:
        blob = write_masked(vector, masked, *more)  # type: ignore[arg-type]
        sent.append(masked.read_bytes())
        return blob

    monkeypatch.setattr(masking, "write_masked", write)
    masked_trip(stored(tmp_path, 0.0), LAYOUT, encoding(32), SILOS, os.urandom)
    same = sum(a == b for a, b in zip(sent[0], sent[1], strict=True))
    assert same < len(sent[0]) / 64, "two hospitals that put in the same send different bytes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vector"], "no masked file is left"


def spoilt_weights(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)


def spoilt_numbers(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize(("spoil", "said"), [(spoilt_weights, "weights"), (spoilt_numbers, "numbers")])
def test_a_sum_that_is_another_is_refused(
    spoil: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt: list[Path] = []

    def write(vector: Path, masked: Path, *more: object) -> object:
        blob = write_masked(vector, masked, *more)  # type: ignore[arg-type]
        if not spoilt:
            spoilt.append(masked)
            spoil(masked)  # type: ignore[operator]
        return blob

    monkeypatch.setattr(masking, "write_masked", write)
    with pytest.raises(BadTensors, match=said):
        masked_trip(stored(tmp_path, 0.1), LAYOUT, encoding(32), SILOS, os.urandom)


def test_a_vector_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTensors, match="length"):
        masked_trip(
            stored(tmp_path, 0.1), layout_for("train", parameters=999, metrics=0), encoding(32), SILOS, os.urandom
        )
