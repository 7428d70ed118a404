"""Privacy events: one form of bytes each, and nothing else is read as one."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from boundary.canonical import canonical_bytes
from compliance import errors
from compliance.errors import BudgetExceeded, ComplianceError, UnknownPrivacyEvent
from compliance.privacy import MAX_EVENT_BYTES, Budget, PoissonGaussian, Spent, event_bytes, parse_event

EVENT = PoissonGaussian(noise_multiplier=1.25, sampling_rate=0.05, steps=20)
EVENTS = st.builds(
    PoissonGaussian,
    noise_multiplier=st.floats(0.01, 1e6),
    sampling_rate=st.floats(0, 1, exclude_min=True),
    steps=st.integers(1, 10**9),
)


def test_the_bytes_of_an_event_are_fixed() -> None:
    assert event_bytes(EVENT) == (
        b'{"mechanism":"poisson-gaussian","noise_multiplier":1.25,"sampling_rate":0.05,"steps":20,"unit":"patient"}'
    )


@given(EVENTS)
@settings(deadline=None)
def test_an_event_is_read_as_it_was_written(event: PoissonGaussian) -> None:
    assert parse_event(event_bytes(event)) == event


def test_a_whole_number_is_as_good_as_a_float() -> None:
    whole = PoissonGaussian(noise_multiplier=2, sampling_rate=1, steps=1)
    assert event_bytes(whole) == event_bytes(PoissonGaussian(noise_multiplier=2.0, sampling_rate=1.0, steps=1))
    assert parse_event(event_bytes(whole)) == whole


def changed(**changes: Any) -> bytes:
    return canonical_bytes(json.loads(event_bytes(EVENT)) | changes)


def without(key: str) -> bytes:
    content = json.loads(event_bytes(EVENT))
    del content[key]
    return canonical_bytes(content)


REFUSED: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"a release",
    "a list": b"[]",
    "null": b"null",
    "another spelling of the same": event_bytes(EVENT).replace(b"1.25", b"1.250"),
    "more bytes than an event has": changed(mechanism="x" * MAX_EVENT_BYTES),
    "another mechanism": changed(mechanism="laplace"),
    "mechanism that is no text": changed(mechanism=1),
    "another unit": changed(unit="image"),
    "unknown key": changed(clip=1.0),
    "no noise": changed(noise_multiplier=0),
    "hardly any noise": changed(noise_multiplier=0.0099),
    "negative noise": changed(noise_multiplier=-1),
    "noise beyond all use": changed(noise_multiplier=1.1e6),
    "noise in words": changed(noise_multiplier="1.25"),
    "noise NaN": event_bytes(EVENT).replace(b"1.25", b"NaN"),
    "noise infinite": event_bytes(EVENT).replace(b"1.25", b"Infinity"),
    "noise that overflows": event_bytes(EVENT).replace(b"1.25", b"1e999"),
    "true for a noise of 1": changed(noise_multiplier=True),
    "nobody is sampled": changed(sampling_rate=0),
    "more than everybody is sampled": changed(sampling_rate=1.0001),
    "no steps": changed(steps=0),
    "half a step": changed(steps=1.5),
    "true for one step": changed(steps=True),
    "too many steps": changed(steps=10**9 + 1),
} | {f"without {key}": without(key) for key in PoissonGaussian.model_fields}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_not_an_event_is_refused(data: bytes) -> None:
    with pytest.raises(UnknownPrivacyEvent):
        parse_event(data)


IMPOSSIBLE: dict[str, Callable[[], object]] = {
    "an event with NaN": lambda: PoissonGaussian(noise_multiplier=math.nan, sampling_rate=0.1, steps=1),
    "an event with infinite noise": lambda: PoissonGaussian(noise_multiplier=math.inf, sampling_rate=0.1, steps=1),
    "a budget of nothing": lambda: Budget(epsilon=0, delta=1e-5),
    "a budget without end": lambda: Budget(epsilon=math.inf, delta=1e-5),
    "a budget of NaN": lambda: Budget(epsilon=math.nan, delta=1e-5),
    "a budget no JSON carries": lambda: Budget(epsilon=1e17, delta=1e-5),
    "a delta of 0": lambda: Budget(epsilon=1, delta=0),
    "a delta of 1": lambda: Budget(epsilon=1, delta=1),
    "a delta of NaN": lambda: Spent(epsilon=1, delta=math.nan),
    "less than nothing spent": lambda: Spent(epsilon=-0.1, delta=1e-5),
}


@pytest.mark.parametrize("build", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_values_cannot_be_made(build: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        build()


def test_values_do_not_change() -> None:
    with pytest.raises(ValidationError):
        EVENT.steps = 1  # type: ignore[misc]


def test_every_refusal_has_its_own_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len({kind.code for kind in kinds}) == len(kinds) == 7
    assert all(issubclass(kind, ComplianceError) for kind in kinds)
    assert (BudgetExceeded.code, UnknownPrivacyEvent.code) == ("BUDGET_SPENT", "UNKNOWN_PRIVACY_EVENT")
