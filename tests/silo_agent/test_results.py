"""Stored results, and what may be thrown away when."""

import json
from pathlib import Path
from typing import Any

import pytest

from boundary.layout import layout_for
from silo_agent.errors import StoredFileLost
from silo_agent.mailroom import Mailroom
from silo_agent.private_trail import PrivateTrail
from silo_agent.results import (
    CONTROL,
    HOME,
    RESIDUAL,
    StoredResult,
    carried,
    forget_result,
    result_folder,
    sweep,
)
from silo_agent.workbench import is_whole


def test_a_result_is_read_as_it_was_saved(tmp_path: Path) -> None:
    result = StoredResult("0123", tmp_path / "vector", layout_for("train", parameters=12, metrics=3))
    result.save(tmp_path)
    assert StoredResult.load(tmp_path) == result
    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"identity": "0", "vector": "1", "layout": {"weights": -1}}']
)
def test_a_result_that_is_not_whole_is_said(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(StoredFileLost):
        StoredResult.load(tmp_path)


def test_a_result_of_an_agent_that_named_none_is_computed_anew(tmp_path: Path) -> None:
    old = {"vector": str(tmp_path / "vector.f32"), "parameters": 12, "metrics": 3}
    (tmp_path / "result.json").write_text(json.dumps(old))
    with pytest.raises(StoredFileLost, match="is not a result's description"):
        StoredResult.load(tmp_path)


def test_a_result_that_was_forgotten_is_not_whole_and_its_vector_stays_until_there_is_another(site: Any) -> None:
    folder = site.store_result()
    forget_result(folder)
    forget_result(folder)
    assert not is_whole(folder)
    assert (folder / "vector").exists()


def test_attempts_share_a_place_and_models_do_not(site: Any) -> None:
    first = result_folder(site.folder, site.study, 1, "train", "sha256:" + "a" * 64)
    assert first == site.folder.work / site.study / "0001-train-aaaaaaaaaaaaaaaa"
    assert first != result_folder(site.folder, site.study, 1, "train", "sha256:" + "b" * 64)


@pytest.mark.parametrize("withdrawn", [False, True], ids=["", "somebody has withdrawn since"])
def test_what_goes_on_is_not_lost_by_a_kill_after_the_round_was_committed(
    site: Any, withdrawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by review: the journal knew of the commit, and nobody carried the files over any more."""
    site.approve()
    kept = site.ready()
    for suffix in (RESIDUAL, HOME, CONTROL):
        (Path(kept.result) / f"vector{suffix}").write_bytes(b"of round 1")
    monkeypatch.setattr(Mailroom, "_tidy", lambda *_: None)  # killed before it
    site.hear(site.committed(1, contributing=("charite", "st-olavs", "utrecht")))
    if withdrawn:
        monkeypatch.setattr(PrivateTrail, "effective_from", lambda *_: 2)
    sweep(site.folder, site.journal)
    for suffix in (RESIDUAL, HOME, CONTROL):
        assert carried(site.folder, site.study, suffix).exists() is not withdrawn


def test_a_start_sweeps_what_a_crash_left(site: Any) -> None:
    site.approve()
    site.masked()
    waiting = Path(site.journal.waiting()[-1].blob_path)
    left_over = waiting.with_name("vector.9.masked")
    left_over.touch()
    sweep(site.folder, site.journal)
    assert (waiting.exists(), left_over.exists()) == (True, False)
    site.journal.set_plan(site.study, "closed")
    (site.folder.cache / site.study).mkdir()
    (site.folder.cache / ".another-study.partial").mkdir()
    sweep(site.folder, site.journal)
    assert [one.name for one in (*site.folder.work.iterdir(), *site.folder.cache.iterdir())] == [".lock"]
