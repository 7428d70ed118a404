"""The hospital's list of those whose images no study may use."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from silo_agent_tests_benches import DIGEST, approved, bench_of
from typer.testing import CliRunner

from compliance.trail import read_leaf
from silo_agent.cli import app
from silo_agent.exclusions import MAX_LIST_BYTES, read_exclusions, write_exclusions, written_at
from silo_agent.intake.withdrawn import known_patients, reference_of, tag_of
from silo_agent.policy.errors import PolicyRefused
from silo_agent.trainer import study_key
from silo_agent.withdrawal import master_key

MASTER = b"m" * 32
IDS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)
TRAINED = [("vector", [4, 7]), ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})]


@given(patients=st.lists(IDS, max_size=5))
def test_who_is_written_is_read_and_nobody_can_be_named_by_it(
    tmp_path_factory: pytest.TempPathFactory, patients: list[str]
) -> None:
    path = tmp_path_factory.mktemp("list") / "excluded.hmac"
    count = write_exclusions(path, MASTER, [f"  {one}\n" for one in patients] + ["", " \n"])
    assert read_exclusions(path) == {reference_of(MASTER, one) for one in patients}
    assert count == len(set(patients))
    assert all(len(line) == 64 for line in path.read_text().splitlines())


def test_comments_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "list"
    one = reference_of(MASTER, "7")
    path.write_text(f"# of 2026-11-21\n\n  {one}   # by telephone\n")
    assert read_exclusions(path) == {one}


DAMAGED = {
    "a Patient ID": b"0815\n",
    "a reference in capitals": (reference_of(MASTER, "7").upper() + "\n").encode(),
    "half a reference": reference_of(MASTER, "7")[:63].encode(),
    "two on a line": f"{reference_of(MASTER, '7')} {reference_of(MASTER, '8')}".encode(),
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_list_with_anything_else_in_it_is_no_list_and_is_not_repeated(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(PolicyRefused, match=r"line 1 of .* is no reference") as refused:
        read_exclusions(tmp_path / "list")
    assert "0815" not in str(refused.value)


def test_a_list_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match="bring the list, an empty one if there is none"):
        read_exclusions(tmp_path / "list")
    assert written_at(tmp_path / "list") is None
    with (tmp_path / "list").open("wb") as file:
        file.truncate(MAX_LIST_BYTES + 1)
    with pytest.raises(PolicyRefused, match="is larger than"):
        read_exclusions(tmp_path / "list")


# --- what comes of it --------------------------------------------------------------------------------
def test_the_command_writes_the_list_where_the_policy_says(site: Any) -> None:
    done = CliRunner().invoke(app, ["exclusions", "images", "--state", str(site.root)], input="MRN-1\nMRN-2\n")
    assert done.exit_code == 0, done.output
    assert "2 are excluded from images" in done.output
    master = master_key(site.folder)
    assert read_exclusions(site.root / "excluded.hmac") == {reference_of(master, one) for one in ("MRN-1", "MRN-2")}
    unknown = CliRunner().invoke(app, ["exclusions", "brain", "--state", str(site.root)], input="")
    assert "names no data set brain" in str(unknown.exception)


def test_whoever_is_on_it_is_left_out_of_scans_and_withdraws_from_studies(
    site: Any, stub_child: Any, impatient: Any, tmp_path: Path
) -> None:
    """One of the two is in the study's data, the other in nobody's."""
    impatient(site.folder)
    approved(site)
    master = master_key(site.folder)
    inside, outside = (reference_of(master, name) for name in ("MRN-1", "MRN-2"))
    tag = tag_of(study_key(master, site.study), inside)
    with site.journal.transaction():
        site.journal.private.keep_cohort(site.study, 0, known_patients([(tag, False)]))
    path = site.root / "excluded.hmac"
    path.write_text(f"{inside}\n{outside}\n")
    os.utime(path, (site.now.timestamp(), site.now.timestamp()))
    site.ordered()
    again = {"dataset_digest": DIGEST, "patients": {"train": 20}}  # its files are made up, so they are looked at anew
    bench_of(site)(stub_child(train=TRAINED, scan=[("say", {"event": "done", "result": again})]))
    assert [one.reference for one in site.journal.private.withdrawals()] == [inside]
    assert site.journal.private.effective_from(site.study) == 1, "from this round on"
    assert [kind for kind in site.events() if "withdraw" in kind] == ["patient-withdrawn", "withdrawal-effective"]
    assert site.journal.private.around(0, frozenset((inside, outside))) == {"before": [outside], "after": [inside]}
    path.write_text("")
    site.permission().excluded(site.permission().dataset(site.plan))
    assert len(site.journal.private.withdrawals()) == 1, "a list that forgets somebody brings nobody back"


def test_a_scan_is_told_who_is_on_it(site: Any, stub_child: Any, tmp_path: Path) -> None:
    one = reference_of(master_key(site.folder), "MRN-7")
    (site.root / "excluded.hmac").write_text(f"{one}\n")
    site.propose()
    report = {"dataset_digest": "sha256:" + "0" * 64, "problems": [], "patients": {}, "refused": {}, "used": 0}
    scan = [("record", str(tmp_path / "asked")), ("say", {"event": "done", "result": report})]
    bench_of(site)(stub_child(scan=scan))
    (asked,) = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked["withdrawn"] == {"before": [one], "after": []}
    assert not any(one in read_leaf(leaf).model_dump_json() for leaf in site.journal.trail()), "nobody is told"
