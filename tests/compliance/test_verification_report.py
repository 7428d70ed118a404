"""Checks of the files and the report, one by one, and the report of this repository through all of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boundary.names import COORDINATOR
from compliance.bundle import HEADS, MANIFEST, Bundle, Manifest, note_file
from compliance.bundle_reading import parse_files
from compliance.errors import OutOfReach
from compliance.events import EvidenceIssued
from compliance.evidence.files import report_files
from compliance.keys_file import keys_text
from compliance.verification import files, rebuilt
from compliance.verification.case import open_case
from compliance.verification.findings import Severity, Verdict
from compliance.verification.verify import verify_found
from compliance.verify_command import run
from tests.compliance.made_study import trust
from tests.compliance.verification_cases import (
    Files,
    appended,
    clean,
    clean_bundle,
    files_of,
    finish,
    log_of,
    look,
    prepare,
    relisted,
    stand_in,
    told,
    with_log,
)


def relogged(**logs: int | None) -> Files:
    """A manifest with other sizes of logs."""
    manifest = Manifest.read(clean()[MANIFEST])
    sizes = {party: size for party, size in (manifest.logs | logs).items() if size is not None}
    return clean() | {MANIFEST: manifest.model_copy(update={"logs": sizes}).data}


def test_a_checkpoint_says_what_the_heads_say() -> None:
    other = clean()[note_file("leuven")]
    assert told(look(clean() | {note_file("ucl"): other}))["notes"] == [
        "heads/ucl.checkpoint: not the newest head of heads.json with its cosignatures"
    ]


def test_a_manifest_does_not_list_what_is_signed_by_itself() -> None:
    found = parse_files(relisted(clean(), HEADS, clean()[HEADS]))
    assert [f"{one.where}: {one.found}" for one in files.manifest(found)] == ["manifest.json: lists heads.json"]


def test_a_manifest_of_another_study_or_other_sizes_is_broken() -> None:
    manifest = Manifest.read(clean()[MANIFEST]).model_copy(update={"study": "ct-contrast-00000000"})
    done = told(look(clean() | {MANIFEST: manifest.data}))
    assert "manifest.json: of study ct-contrast-00000000" in done["issued"]
    size = len(log_of(clean(), "ucl").entries)
    done = told(look(relogged(ucl=size - 1)))
    assert f"logs/ucl.jsonl: {size} entries, the manifest says {size - 1}" in done["issued"]
    assert "logs/ucl.jsonl: the manifest knows no such log" in told(look(relogged(ucl=None)))["issued"]


def test_a_manifest_is_named_after_it_was_made() -> None:
    """Named by an entry that it claims to be made from: neither can have been first."""
    bundle = clean_bundle()
    manifest = Manifest.read(clean()[MANIFEST])
    later = manifest.model_copy(update={"logs": manifest.logs | {COORDINATOR: manifest.logs[COORDINATOR] + 1}})
    event = EvidenceIssued(study=bundle.study, manifest=later.digest)
    forged = with_log(clean(), appended(bundle.logs[COORDINATOR], event)) | {MANIFEST: later.data}
    assert "names a manifest of later entries" in told(look(forged))["issued"][0]


def test_an_older_bundle_of_the_same_study_is_verified_beside_a_newer_one() -> None:
    """The log goes on: evidence was issued before, and the report of now was made with that entry in the log."""
    bundle = clean_bundle()
    log = log_of(clean(), COORDINATOR)
    files_now = files_of(replace(bundle, logs=bundle.logs | {COORDINATOR: log}))
    assert look(files_now).verdict is Verdict.VERIFIED
    made = {path: data for path, data in stand_in(bundle).items() if data is not None}
    assert look(finish(prepare(bundle, made), log)).verdict is Verdict.VERIFIED


def reporting(rebuild: Callable[[Bundle], Any], some: Files | None = None) -> dict[Severity, list[str]]:
    found = parse_files(some or clean())
    assert found.manifest is not None
    case = open_case(clean_bundle(), trust(), found.manifest)
    said = list(files.report(case, found, found.manifest, rebuild))
    return {s: [f"{one.where}: {one.found}" for one in said if one.severity is s] for s in {o.severity for o in said}}


def test_a_bundle_of_which_no_report_can_be_made_is_broken() -> None:
    def refuse(_bundle: Bundle) -> Any:
        raise OutOfReach("no noise is enough")

    found = reporting(refuse)
    assert found == {Severity.BROKEN: ["report/: no report can be made of this bundle: no noise is enough"]}


def test_a_file_that_cannot_be_made_here_is_a_note() -> None:
    found = reporting(lambda bundle: stand_in(bundle) | {"report/report.html": None})
    assert found == {Severity.NOTE: ["report/report.html: cannot be made here"]}


def test_a_file_that_follows_from_nothing_is_incomplete() -> None:
    found = reporting(lambda bundle: {"report/report.json": stand_in(bundle)["report/report.json"]})
    assert found == {Severity.INCOMPLETE: ["report/report.html: cannot be made again from the logs"]}


# --- the real one ------------------------------------------------------------------------------------
def test_the_report_of_this_repository_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = clean_bundle()
    made = report_files(bundle)
    real = files_of(bundle, made)
    for path, data in real.items():
        (tmp_path / "bundle" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / path).write_bytes(data)
    keys = tmp_path / "keys.toml"
    keys.write_text(keys_text(trust()))
    written: list[str] = []
    assert run(tmp_path / "bundle", keys, write=written.append) == 0, written
    lie = dict(made) | {"report/report.json": made["report/report.json"].replace(b"karolinska", b"charitable")}
    monkeypatch.setattr(rebuilt, "find_spec", lambda _name: None)
    done = verify_found(parse_files(files_of(bundle, lie)), trust(), rebuilt.rebuilt)
    assert told(done) == {"report": ["report/report.json: made again from the logs it has other bytes"]}
    assert "report/report.pdf: cannot be made here" in told(done, Severity.NOTE)["report"]
