"""A plan that begins with a file, in a hospital: judged before approval, told to the steward, asked for at work."""

import json
from pathlib import Path
from typing import Any

import pytest
from silo_agent_tests_benches import SCANNED, approved, bench_of, codes

from boundary.messages import BlobRef
from compliance.events import GateRefused
from compliance.trail import read_leaf
from silo_agent.errors import ContractNotMet
from silo_agent.permission import _leaving
from silo_agent.steward import approve, dossier, forget_scan, lines

SHA = "ab" * 32
PINNED = {
    "name": "vit-small", "version": 1, "trained": ["*.lora_*", "head.*"],
    "pretrained": {"file": "chest.safetensors", "sha256": SHA, "leave_out": ["head.*"]},
    "lora": {"rank": 4, "alpha": 8.0, "targets": ["blocks.*.attention.*"]},
}  # fmt: skip
DONE = ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})
MISSING = ("say", {"event": "failed", "code": "PRETRAINED_MISSING", "detail": "put it there", "retryable": False})
BASE = BlobRef(digest="sha256:" + "cd" * 32, size=9)


@pytest.fixture
def pinned(make_site: Any, impatient: Any) -> Any:
    """Whose policy names a folder of weights, and whose plan begins with a file."""
    site = make_site(changes={"model": PINNED, "aggregation__downlink": "bfloat16"})
    site.policy["weights"] = site.root / "weights"
    site.allow()
    impatient(site.folder)
    return site


def said_of(site: Any) -> dict[str, str]:
    return dict(lines(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)))


def test_the_steward_reads_what_it_begins_with_what_is_added_and_how_it_comes(pinned: Any, site: Any) -> None:
    pinned.propose()
    said = said_of(pinned)
    assert f"chest.safetensors (SHA-256 {SHA})" in said["What it begins with"]
    assert "those called head.* are drawn instead" in said["What it begins with"]
    assert "adapters of rank 4 (LoRA, strength 2) in the layers called blocks.*.attention.*" in said["What is added"]
    assert said["How models come"].startswith("rounded to 16 bits")
    assert said["Policy"] == "allows exactly this plan"
    site.propose()
    assert not {"What it begins with", "What is added", "How models come"} & set(said_of(site))


def test_a_policy_that_names_no_folder_of_weights_turns_the_plan_down(pinned: Any, stub_child: Any) -> None:
    pinned.propose()
    pinned.scanned()
    del pinned.policy["weights"]
    pinned.allow()
    assert said_of(pinned)["Policy"].startswith("does NOT allow it: WEIGHTS_NOT_ALLOWED")
    with pytest.raises(ContractNotMet, match=r"WEIGHTS_NOT_ALLOWED.*add \[weights\] with folder"):
        approve(pinned.journal, pinned.folder, pinned.outbound, pinned.study, "data_steward", "a test")

    pinned.policy["weights"] = pinned.root / "weights"
    pinned.allow()
    approved(pinned)
    pinned.ordered(base=BASE)
    del pinned.policy["weights"]
    pinned.allow()
    bench_of(pinned)(stub_child(train=[DONE]))
    assert codes(pinned) == ["WEIGHTS_NOT_ALLOWED"]
    (refused,) = [e for leaf in pinned.journal.trail() if isinstance(e := read_leaf(leaf).event, GateRefused)]
    assert (refused.gate, refused.code) == ("incoming", "WEIGHTS_NOT_ALLOWED")


def test_a_missing_file_makes_the_plan_unsuitable_until_it_is_there(
    pinned: Any, stub_child: Any, tmp_path: Path
) -> None:
    pinned.propose()
    asked = ("record", str(tmp_path / "asked"))
    bench_of(pinned)(stub_child(scan=[SCANNED], begin=[asked, MISSING]))
    kept = pinned.journal.plan(pinned.study)
    assert (kept.state, kept.reason) == ("unsuitable", "PRETRAINED_MISSING: put it there")
    with pytest.raises(ContractNotMet, match="plan rescan"):
        approve(pinned.journal, pinned.folder, pinned.outbound, pinned.study, "data_steward", "a test")
    (told,) = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert told["weights"] == str(pinned.root / "weights")
    forget_scan(pinned.journal, pinned.study)
    bench_of(pinned)(stub_child(scan=[SCANNED], begin=[DONE]))
    assert pinned.journal.plan(pinned.study).state == "scanned"


def test_a_plan_without_either_is_not_built_before_its_approval(site: Any, stub_child: Any, impatient: Any) -> None:
    impatient(site.folder)
    site.propose()
    bench_of(site)(stub_child(scan=[SCANNED], begin=[("exit", 9)]))
    assert site.journal.plan(site.study).state == "scanned"


def test_only_the_training_of_round_1_is_told_that_it_begins(pinned: Any, stub_child: Any, tmp_path: Path) -> None:
    approved(pinned)
    asked, measured = ("record", str(tmp_path / "asked")), {"parameters": 7, "metrics": 5}
    script = {
        "train": [asked, ("vector", [4, 7]), DONE],
        "evaluate": [asked, ("vector", [5, 0]), ("say", {"event": "done", "result": measured})],
    }
    for number, phase in ((1, "train"), (1, "evaluate"), (2, "train")):
        if number == 2:
            pinned.hear(pinned.committed(1))
        pinned.ordered(number, phase, base=BASE)
        bench_of(pinned)(stub_child(**script))
    told = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [(one["do"], one["begins"]) for one in told] == [("train", True), ("evaluate", False), ("train", False)]
    assert {one["weights"] for one in told} == {str(pinned.root / "weights")}


def test_a_file_that_is_gone_or_another_by_then_is_a_refusal_with_its_code(pinned: Any, stub_child: Any) -> None:
    approved(pinned)
    pinned.ordered(base=BASE)
    bench_of(pinned)(stub_child(train=[MISSING]))
    assert codes(pinned) == ["PRETRAINED_MISSING"]


def test_what_leaves_is_no_less_because_what_comes_is_half(pinned: Any, site: Any) -> None:
    """The change of a weight leaves in the plan's ring, however the weight came down."""
    sizes = []
    for one, bytes_ in ((site, 4), (pinned, 2)):
        message = one.order(model=BlobRef(digest=BASE.digest, size=bytes_ * 50_000_000))
        sizes.append(_leaving(message, one.plan).size)
    assert sizes[0] == sizes[1] > 4 * 50_000_000
