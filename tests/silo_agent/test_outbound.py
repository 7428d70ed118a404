"""The only door out: allow-listed kinds, codes instead of texts, and no vector without a closed cohort."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundary.canonical import digest
from boundary.contribution import contribution_context, open_contribution
from boundary.layout import layout_for
from boundary.messages import REGISTRY, BlobRef, Contribution, Message
from boundary.protocol import Step
from boundary.sealing import SealingKey, UnsealingKey
from silo_agent import outbound
from silo_agent.errors import EgressRefused
from silo_agent.outbound import MESSAGES_THAT_MAY_LEAVE, RELEASABLE_CODES, Outbound

SECRET = "MRN-0042-Nordmann"


def layout() -> Any:
    return layout_for("train", parameters=7, metrics=1)


# --- kinds -------------------------------------------------------------------------------------------
def test_the_kinds_that_may_leave_are_those_a_hospital_may_say() -> None:
    assert {kind.kind for kind in MESSAGES_THAT_MAY_LEAVE} == {
        name for name, kind in REGISTRY.items() if kind.sender == "silo"
    }


def test_nothing_else_passes_the_gate(site: Any) -> None:
    class Thumbnail(Message):
        kind = "thumbnail"
        sender = "silo"

    for message in (site.order(), Thumbnail(), "text", {"loss": 0.5}):
        with pytest.raises(EgressRefused, match="may not leave the hospital"):
            site.outbound._put(message)
    assert site.outbox() == []


def test_only_this_module_puts_anything_into_the_outbox() -> None:
    folder = Path(inspect.getfile(outbound)).parent
    users = {path.name for path in folder.rglob("*.py") if re.search(r"\.put_out\(|INTO outbox", path.read_text())}
    assert users == {"outbound.py", "journal.py"}


def test_only_one_module_opens_connections_and_one_is_its_transport() -> None:
    folder = Path(inspect.getfile(outbound)).parent
    network = re.compile(
        r"^\s*(import|from) (httpx|httpcore|socket|urllib|http|requests|aiohttp)\b|create_connection|open_connection",
        re.MULTILINE,
    )
    users = {path.name for path in folder.rglob("*.py") if network.search(path.read_text())}
    assert users == {"relay_client.py", "streams.py"}


# --- codes -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", sorted(RELEASABLE_CODES))
def test_a_known_code_leaves_as_it_is(site: Any, code: str) -> None:
    site.approve()
    site.outbound.refuse(site.ordered(), site.collection(), code, "detail", retryable=False)
    assert site.outbox()[-1].code == code


@pytest.mark.parametrize("code", ["PATIENT_NORDMANN", "404", "", "internal", "LABELS_DENIED"])
def test_an_unknown_code_leaves_as_internal(site: Any, code: str) -> None:
    site.approve()
    site.outbound.refuse(site.ordered(), site.collection(), code, "detail", retryable=True)
    assert site.outbox()[-1].code == "INTERNAL"


@given(before=st.text(max_size=40), after=st.text(max_size=40), code=st.sampled_from(["DISK_FULL", SECRET, "X"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_text_of_an_error_never_reaches_the_outbox(site: Any, before: str, after: str, code: str) -> None:
    if site.journal.plan(site.study) is None:
        site.approve()
        site.ordered()
    kept, text = site.kept(), f"{before}{SECRET}{after}"
    site.journal._db.execute("UPDATE orders SET step = 'working'")
    site.journal._db.execute("DELETE FROM outbox WHERE kind = 'refused'")
    site.outbound.refuse(kept, site.collection(), code, text, retryable=False)
    site.outbound.decline(site.study, kept.digest, code, text)
    rows = site.journal._db.execute("SELECT slot, study, kind, envelope, blob_path, verdict FROM outbox").fetchall()
    assert len(rows) >= 3
    assert SECRET not in repr(rows)


def test_the_reason_of_a_decision_stays_here(site: Any) -> None:
    site.propose()
    site.outbound.decline(site.study, site.journal.plan(site.study).digest, "DECLINED_BY_STEWARD", SECRET)
    assert site.journal.plan(site.study).reason == SECRET
    assert SECRET.encode() not in site.journal.waiting()[0].envelope


# --- vectors -----------------------------------------------------------------------------------------
def opened(site: Any, contribution: Contribution) -> Any:
    context = contribution_context(contribution.collection, "st-olavs", contribution.order)
    (parcel,) = [parcel for parcel in site.journal.waiting() if parcel.kind == "contribution"]
    with Path(parcel.blob_path).open("rb") as sealed:
        plain = b"".join(
            open_contribution(
                sealed.read, sealed_key=contribution.sealed_key, key=site.coordinator.unsealing, context=context
            )
        )
    return np.frombuffer(plain, "<f4")


def test_the_coordinator_opens_exactly_what_the_child_wrote(site: Any) -> None:
    site.approve()
    site.released()
    contribution = site.outbox()[-1]
    np.testing.assert_array_equal(opened(site, contribution), np.arange(10, dtype=np.float32))
    parcel = site.journal.waiting()[-1]
    sealed = Path(parcel.blob_path).read_bytes()
    assert (parcel.blob_digest, parcel.blob_size) == (digest(sealed), len(sealed))
    assert contribution.vector == BlobRef(digest=digest(sealed), size=len(sealed))


def _before_closing(site: Any) -> tuple[Any, Any, Path]:
    kept = site.ready()
    return kept, site.closing(kept), Path(kept.result) / "vector.f32"


def without_us(site: Any) -> tuple[Any, Any, Path]:
    kept, _, vector = _before_closing(site)
    return kept, site.closing(kept, members=("charite", "karolinska", "utrecht")), vector


def for_another_order(site: Any) -> tuple[Any, Any, Path]:
    kept, _, vector = _before_closing(site)
    return kept, site.closing(kept, order=digest(b"another")), vector


def while_working(site: Any) -> tuple[Any, Any, Path]:
    kept = site.ordered()
    return kept, site.closing(kept), site.store_result() / "vector.f32"


def a_second_time(site: Any) -> tuple[Any, Any, Path]:
    kept = site.released()
    return kept, site.closing(kept), Path(kept.result) / "vector.f32"


def too_long(site: Any) -> tuple[Any, Any, Path]:
    kept, closing, vector = _before_closing(site)
    np.zeros(11, dtype="<f4").tofile(vector)
    return kept, closing, vector


def too_short(site: Any) -> tuple[Any, Any, Path]:
    kept, closing, vector = _before_closing(site)
    np.zeros(9, dtype="<f4").tofile(vector)
    return kept, closing, vector


UNRELEASABLE: dict[str, Callable[[Any], tuple[Any, Any, Path]]] = {
    "the cohort closed without us": without_us,
    "the cohort closed for another order": for_another_order,
    "there is no closed cohort for unfinished work": while_working,
    "it was released before": a_second_time,
    "the vector is longer than the plan's": too_long,
    "the vector is shorter than the plan's": too_short,
}


@pytest.mark.parametrize("case", UNRELEASABLE.values(), ids=UNRELEASABLE)
def test_a_vector_that_may_not_leave(site: Any, case: Callable[[Any], tuple[Any, Any, Path]]) -> None:
    site.approve()
    kept, closing, vector = case(site)
    before = [parcel.slot for parcel in site.journal.waiting()]
    with pytest.raises(EgressRefused):
        site.outbound.release(kept, closing, vector, layout(), site.coordinator.unsealing.public)
    assert [parcel.slot for parcel in site.journal.waiting()] == before


def test_the_same_request_gets_the_same_bytes(site: Any) -> None:
    """After a crash between release and send, or when everything is asked again, nothing is sealed anew."""
    site.approve()
    site.released()
    first = site.journal.waiting()[-1]
    sealed = Path(first.blob_path).read_bytes()
    site.journal.close()
    site.open()
    site.hear(site.closing(site.kept()))
    assert site.journal.waiting()[-1] == first
    assert Path(first.blob_path).read_bytes() == sealed


def test_two_attempts_send_the_same_vector_under_fresh_keys(site: Any) -> None:
    site.approve()
    site.released(1, attempt=1)
    first = site.outbox()[-1]
    site.released(1, attempt=2)
    second = site.outbox()[-1]
    np.testing.assert_array_equal(opened(site, second), np.arange(10, dtype=np.float32))
    assert first.vector != second.vector
    assert first.sealed_key != second.sealed_key


def test_a_release_that_crashes_before_its_entry_leaves_the_order_ready(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.approve()
    kept = site.ready()

    def power_cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Outbound, "_put", power_cut)
    with pytest.raises(KeyboardInterrupt):
        site.hear(site.closing(kept))
    monkeypatch.undo()
    assert site.kept().step is Step.READY
    site.hear(site.closing(kept))
    assert site.kept().step is Step.RELEASED


def test_a_vector_sealed_for_another_key_does_not_open(site: Any) -> None:
    site.approve()
    site.coordinator.unsealing = UnsealingKey.generate()
    site.released()
    contribution = site.outbox()[-1]
    with pytest.raises(Exception, match="does not open"):
        opened(site, contribution)
    assert isinstance(site.coordinator.unsealing.public, SealingKey)


# --- signs of life -----------------------------------------------------------------------------------
def test_a_heartbeat_says_version_step_and_disk(site: Any) -> None:
    said = site.outbound.heartbeat(None, disk_low=True, roster_version=3).model_dump(mode="json")
    assert set(said) == {"agent_version", "protocol", "activity", "disk_low", "roster_version"}
