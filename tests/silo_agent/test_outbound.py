"""The only door out: allow-listed kinds, codes instead of texts, and no vector without masks."""

import base64
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundary.api import Activity
from boundary.canonical import digest
from boundary.envelope import peek
from boundary.errors import OutOfTurn
from boundary.messages import REGISTRY, BlobRef, Message, Phase, Share
from silo_agent import outbound
from silo_agent.errors import EgressRefused
from silo_agent.outbound import MESSAGES_THAT_MAY_LEAVE, RELEASABLE_CODES

SECRET = "MRN-0042-Nordmann"


# --- kinds -------------------------------------------------------------------------------------------
def test_the_kinds_that_may_leave_are_those_a_hospital_may_say() -> None:
    assert {kind.kind for kind in MESSAGES_THAT_MAY_LEAVE} == {
        name for name, kind in REGISTRY.items() if kind.sender == "silo"
    } - {Share.kind}, "a share leaves inside of `Shares`, never by itself"


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
    """And the console listens, on this machine's own address, and opens none."""
    folder = Path(inspect.getfile(outbound)).parent
    network = re.compile(
        r"^\s*(import|from) (httpx|httpcore|socket|urllib|http|requests|aiohttp)\b(?!\.parse| import HTTPStatus)"
        "|create_connection|open_connection",
        re.MULTILINE,
    )
    users = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if network.search(path.read_text())}
    archive = {path for path in users if path.startswith("intake/dicomweb/")}  # the hospital's own, inside
    assert users - archive == {"relay_client.py", "streams.py", "console/process.py", "console/server.py"}
    opens = re.compile(r"create_connection|open_connection|(?<!sqlite3)\.connect\(|connect_tcp|httpx|httpcore")
    assert not [path for path in (folder / "console").rglob("*.py") if opens.search(path.read_text())]


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
def test_there_is_one_message_with_a_vector_and_it_is_masked() -> None:
    having = {kind.kind for kind in MESSAGES_THAT_MAY_LEAVE if "vector" in kind.model_fields}
    assert having == {"masked-vector"}


NOT_YET: dict[str, Callable[[Any], Any]] = {
    "the work is not done": lambda site: site.ordered(),
    "the cohort is not closed": lambda site: site.ready(),
    "it was masked before": lambda site: site.masked(),
    "the shares that unmask it have left": lambda site: site.revealed(),
}


@pytest.mark.parametrize("reach", NOT_YET.values(), ids=NOT_YET)
def test_no_vector_passes_the_gate_but_at_its_one_step(site: Any, tmp_path: Path, reach: Callable[[Any], Any]) -> None:
    site.approve()
    kept = reach(site)
    before = site.outbox()
    blob = BlobRef(digest=digest(b"x"), size=1)
    with pytest.raises(OutOfTurn):
        site.outbound.released(kept, site.collection(), digest(b"sharers"), tmp_path / "masked", blob)
    assert site.outbox() == before


def test_the_same_request_gets_the_same_bytes(site: Any) -> None:
    """Between masking and sending, or when everything is said again, nothing is masked anew."""
    site.approve()
    kept = site.masked()
    first = site.parcel("masked-vector")
    masked = Path(first.blob_path).read_bytes()
    site.hear(site.order())
    with site.journal.transaction():
        site.outbound._put(site.outbox()[-1].model_copy(update={"sharers": digest(b"others")}))
    assert (site.parcel("masked-vector"), site.kept()) == (first, kept)
    assert Path(first.blob_path).read_bytes() == masked


def test_two_attempts_send_the_same_vector_under_fresh_masks(site: Any) -> None:
    site.approve()
    vectors, keys = [], []
    for attempt in (1, 2):
        site.masked(attempt=attempt)
        vectors.append(Path(site.parcel("masked-vector").blob_path).read_bytes())
        keys.append([message for message in site.outbox() if message.kind == "ready"][-1])
    assert len(vectors[0]) == len(vectors[1])
    assert sum(a == b for a, b in zip(*vectors, strict=True)) < len(vectors[0]) / 4, "chance is 1 in 256"
    for name in ("transport_key", "mask_key", "self_commitment", "context"):
        assert getattr(keys[0], name) != getattr(keys[1], name)


def test_nothing_secret_is_on_the_disk(site: Any) -> None:
    """What would take the masks off is in memory only, up to the shares that leave."""
    drawn: list[bytes] = []
    entropy = site.sums.entropy
    site.sums.entropy = lambda size: drawn.append(entropy(size)) or drawn[-1]
    site.approve()
    site.agreed()
    site.journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    written = b"".join(path.read_bytes() for path in site.folder.root.rglob("*") if path.is_file())
    assert len(drawn) >= 4
    for secret in drawn:
        assert secret not in written
        assert base64.b64encode(secret) not in written


def test_the_shares_for_a_hospital_are_in_an_envelope_of_its_own(site: Any) -> None:
    site.approve()
    site.shared()
    parts = site.outbox()[-1].parts
    assert sorted(peek(part)[1] for part in parts) == ["charite", "karolinska", "utrecht"]
    assert {peek(part)[0] for part in parts} == {"st-olavs"}


# --- signs of life -----------------------------------------------------------------------------------
def test_a_heartbeat_says_version_step_and_disk(site: Any) -> None:
    said = site.outbound.heartbeat(None, disk_low=True, roster_version=3).model_dump(mode="json")
    assert set(said) == {"agent_version", "protocol", "activity", "disk_low", "roster_version"}


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_heartbeat_tells_of_no_number_of_batches(site: Any, phase: Phase) -> None:
    """A training's steps are its epochs times its batches: whoever hears them knows the images to within a batch."""

    def told(step: int, steps: int) -> tuple[int, int]:
        at = Activity(study=site.study, round=2, phase=phase, step=step, steps=steps)
        said = site.outbound.heartbeat(at, disk_low=False, roster_version=3).activity
        return said.step, said.steps

    for steps in (*range(1, 40), 999, 1000):
        assert [told(step, steps)[1] for step in (0, steps // 2, steps)] == [10] * 3
        seen = [told(step, steps)[0] for step in range(steps + 1)]
        assert seen == sorted(seen)
        assert set(seen) == ({0, 10} if steps < 10 else set(range(11))), "the same whatever the number of batches"
        assert seen.index(10) == steps
    assert told(0, 0) == (0, 0), "of what nobody outside is to follow, nothing"
