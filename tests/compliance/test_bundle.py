"""A bundle is written whole or not at all, and read back as it was; what a stranger put into the folder is refused."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boundary.canonical import digest
from boundary.names import COORDINATOR
from compliance import bundle_reading
from compliance.bundle import MANIFEST, Bundle, LogCopy, Manifest, as_reported, is_in_manifest, log_file
from compliance.bundle_reading import parse_files, read_folder
from compliance.bundle_writing import prepare
from compliance.events import EvidenceIssued, RosterTrusted
from compliance.keys_file import MAX_KEYS_BYTES, InvalidKeys, keys_text, parse_keys
from compliance.records import to_bytes
from infra.golden import key, sha
from tests.compliance.made_study import SILOS, trust
from tests.compliance.verification_cases import Files, appended, clean, clean_bundle, relisted, stand_in, without

EXTRA = {"report/report.json": b"{}", "report/plots/epsilon.svg": b"<svg/>"}


def write(folder: Path, files: Files) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def problems(files: Files) -> dict[str, str]:
    return {problem.path: problem.why for problem in parse_files(files).problems}


# --- writing -----------------------------------------------------------------------------------------
def test_a_bundle_is_read_as_it_was_prepared(tmp_path: Path) -> None:
    bundle, folder = clean_bundle(), tmp_path / "study-bundle"
    prepared = prepare(bundle, EXTRA)
    (tmp_path / ".study-bundle.part").mkdir()  # of an attempt that was interrupted
    log = appended(bundle.logs[COORDINATOR], EvidenceIssued(study=bundle.study, manifest=prepared.manifest_digest))
    prepared.write(folder, log)
    found = read_folder(folder)
    assert found.problems == ()
    assert found.files == prepared.finished(log)
    assert found.manifest == prepared.manifest
    assert found.bundle is not None
    assert as_reported(found.bundle, prepared.manifest.logs) == bundle
    assert found.bundle.logs[COORDINATOR] == log
    assert {"plan.json", "roster.json", "approvals.json", "receipts.json", "rounds/0005.json"} <= set(found.files)
    assert {"heads.json", "heads/ucl.checkpoint", "logs/ucl.jsonl", *EXTRA} <= set(found.files)
    assert set(prepared.manifest.files) == {path for path in found.files if is_in_manifest(path)}
    assert sorted(tmp_path.iterdir()) == [folder]


def test_a_bundle_is_never_written_over(tmp_path: Path) -> None:
    bundle = clean_bundle()
    prepared = prepare(bundle, EXTRA)
    log = appended(bundle.logs[COORDINATOR], EvidenceIssued(study=bundle.study, manifest=prepared.manifest_digest))
    tmp_path.joinpath("bundle").mkdir()
    with pytest.raises(FileExistsError, match="there already"):
        prepared.write(tmp_path / "bundle", log)
    assert list(tmp_path.joinpath("bundle").iterdir()) == []


def test_what_came_into_the_log_since_is_behind_what_the_report_is_of() -> None:
    bundle = clean_bundle()
    prepared = prepare(bundle, EXTRA)
    log = appended(
        bundle.logs[COORDINATOR],
        RosterTrusted(roster_version=2, roster_digest=sha("roster of another study")),
        EvidenceIssued(study=bundle.study, manifest=prepared.manifest_digest),
    )
    read = parse_files(prepared.finished(log)).bundle
    assert read is not None
    assert as_reported(read, prepared.manifest.logs) == bundle


LOGS: dict[str, Callable[[LogCopy, Any], LogCopy]] = {
    "without the entry": lambda log, _: appended(log, RosterTrusted(roster_version=2, roster_digest=sha("other"))),
    "naming another manifest": lambda log, event: appended(log, event.model_copy(update={"manifest": sha("other")})),
    "not signed behind the entry": lambda log, event: replace(appended(log, event), heads=log.heads),
    "rewritten before the entry": lambda log, event: appended(replace(log, entries=log.entries[1:]), event),
    "with the entry withheld": lambda log, _: replace(log, entries=(*log.entries, b"h" * 32)),
}


@pytest.mark.parametrize("what", LOGS)
def test_a_log_that_does_not_name_the_manifest_is_not_written(what: str) -> None:
    bundle = clean_bundle()
    prepared = prepare(bundle, EXTRA)
    event = EvidenceIssued(study=bundle.study, manifest=prepared.manifest_digest)
    with pytest.raises(ValueError, match="the coordinator"):
        prepared.finished(LOGS[what](bundle.logs[COORDINATOR], event))


def of_ucl(**changes: Any) -> Bundle:
    bundle = clean_bundle()
    return replace(bundle, logs=bundle.logs | {"ucl": replace(bundle.logs["ucl"], **changes)})


def head_of(party: str) -> Any:
    return clean_bundle().logs[party].heads[-1]


UNPLACEABLE: dict[str, tuple[Callable[[], Bundle], str]] = {
    "another study": (lambda: replace(clean_bundle(), study="ct-contrast-00000000"), "its plan's study"),
    "no log of the coordinator": (lambda: replace(clean_bundle(), logs={}), "the coordinator's log"),
    "a log of a stranger": (
        lambda: replace(clean_bundle(), logs=clean_bundle().logs | {"mayo": clean_bundle().logs["ucl"]}),
        "a log of mayo",
    ),
    "a log under another's name": (lambda: of_ucl(party="charite"), "a log of ucl"),
    "an empty log": (lambda: of_ucl(entries=()), "a log of ucl"),
    "heads out of order": (lambda: of_ucl(heads=clean_bundle().logs["ucl"].heads[::-1]), "out of order"),
    "a head of another log": (lambda: of_ucl(heads=(head_of("charite"),)), "of another log"),
    "a head over what is not there": (lambda: of_ucl(entries=clean_bundle().logs["ucl"].entries[:-1]), "not in the"),
    "cosigned by a stranger": (
        lambda: of_ucl(cosignatures={head_of("ucl").size: {"mayo": None}}), "cosigned by somebody",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNPLACEABLE)
def test_what_no_reader_could_place_is_not_prepared(what: str) -> None:
    made, why = UNPLACEABLE[what]
    with pytest.raises(ValueError, match=why):
        prepare(made(), EXTRA)


@pytest.mark.parametrize(
    "path", ["report.json", "report/", "report/../plan.json", "/report/a", "report/.a", "report/A", "rounds/0001.json"]
)
def test_the_report_has_plain_names_of_its_own(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain name"):
        prepare(clean_bundle(), {path: b""})


# --- reading a folder --------------------------------------------------------------------------------
def test_a_folder_that_is_not_there_has_every_file_missing(tmp_path: Path) -> None:
    found = read_folder(tmp_path / "nothing")
    assert found.bundle is found.manifest is None
    assert {(problem.path, problem.is_missing) for problem in found.problems} == {
        ("", True), (MANIFEST, True), ("plan.json", True),
    }  # fmt: skip


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle", without(clean(), "plan.json"))
    (tmp_path / "secret").write_text("{}")
    (folder / "plan.json").symlink_to(tmp_path / "secret")
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    found = read_folder(folder)
    assert found.files == without(clean(), "plan.json")
    assert {problem.path for problem in found.problems} == {"plan.json", "more", "pipe"}
    assert not any(problem.is_missing for problem in found.problems)
    assert found.bundle is None


def test_a_file_that_became_a_pipe_or_a_link_meanwhile_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(bundle_reading.MalformedMessage, match="no plain file"):
        bundle_reading._content(tmp_path / "pipe", 10)
    with pytest.raises(OSError, match="symbolic"):
        bundle_reading._content(tmp_path / "link", 10)


def test_files_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle_reading.LIMITS, "logs/", 1000)
    monkeypatch.setattr(bundle_reading, "OTHER_LIMIT", 10)
    found = read_folder(write(tmp_path, clean()))
    told = {problem.path: problem.why for problem in found.problems}
    assert {log_file("ucl"), "report/report.html"} <= set(told)
    assert f"has {len(clean()[log_file('ucl')])} bytes, the limit is 1000" in told[log_file("ucl")]
    assert not any(problem.is_missing for problem in found.problems)


def test_a_folder_has_a_limit_of_bytes_and_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, clean())
    monkeypatch.setattr(bundle_reading, "MOST_BYTES", 100_000)
    assert sum(map(len, read_folder(tmp_path).files.values())) <= 100_000
    monkeypatch.setattr(bundle_reading, "MOST_FILES", 3)
    found = read_folder(tmp_path)
    assert len(found.files) == 3
    assert any("more than 3 files" in problem.why for problem in found.problems)


def test_folders_are_not_deep(tmp_path: Path) -> None:
    (tmp_path / "1/2/3/4/5/6/7").mkdir(parents=True)
    assert "1/2/3/4/5" in {problem.path for problem in read_folder(tmp_path).problems}


def test_what_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, clean())

    def refuse(*_args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in {problem.why for problem in read_folder(tmp_path).problems}


# --- reading files -----------------------------------------------------------------------------------
MALFORMED: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a manifest with a space": (MANIFEST, lambda data: data.replace(b":", b": ", 1), "canonical"),
    "a manifest with 1.0 for 1": (MANIFEST, lambda data: data.replace(b'"v":1', b'"v":true'), "v: "),
    "a plan in other words": ("plan.json", lambda data: data.replace(b'"proximal":0,', b""), "another form"),
    "no plan": ("plan.json", lambda _: b'{"version":1}', "not a plan"),
    "approvals with a space": ("approvals.json", lambda data: data.replace(b":", b": ", 1), "canonical"),
    "not JSON": ("approvals.json", lambda _: b"{", "not JSON"),
    "an approval of a stranger's shape": ("approvals.json", lambda _: b'{"ucl":{}}', "ucl.approval: Field required"),
    "a roster with a space": ("roster.json", lambda data: data + b" ", "canonical"),
    "a log without its last line's end": (log_file("ucl"), lambda data: data[:-1], "each with its end"),
    "an empty log": (log_file("ucl"), lambda _: b"", "each with its end"),
    "a line of the length of a hash": (log_file("ucl"), lambda data: b"x" * 32 + b"\n" + data, "line 1 has 32 bytes"),
    "an entry that is too long": (log_file("ucl"), lambda data: b"x" * 300_000 + b"\n" + data, "300000 bytes"),
    "a hash in capitals": (log_file("ucl"), lambda data: b'{"hash":"sha256:%b"}\n' % (b"A" * 64) + data, ""),
    "heads of a stranger": ("heads.json", lambda data: data.replace(b'"ucl":{"cos', b'"zzz":{"cos'), "of this study"),
    "a head under another's name": ("heads.json", lambda data: data.replace(b'"log":"ucl"', b'"log":"uca"', 1), "ucl"),
    "a cosignature of a stranger": (
        "heads.json", lambda data: data.replace(b'"witness":"ucl"', b'"witness":"zzz"', 1), "of a log of this study",
    ),
    "two receipts of a round": ("receipts.json", lambda data: b"[%b,%b" % (data[1:-1], data[1:]), "two of one round"),
    "receipts with 1.0 for 1": ("receipts.json", lambda data: data.replace(b'"round":1,', b'"round":1.0,'), "form"),
    "another round's record": ("rounds/0002.json", lambda _: clean()["rounds/0003.json"], "the record of round 3"),
    "a confusion matrix that is a number": (
        "rounds/0002.json", lambda data: re.sub(rb'"confusion":[^"]*,"', b'"confusion":5,"', data), "confusion",
    ),
    "a confusion matrix of numbers": (
        "rounds/0002.json", lambda data: re.sub(rb'"confusion":[^"]*,"', b'"confusion":[1,2],"', data), "confusion",
    ),
    "a record without its default": ("rounds/0002.json", lambda data: data.replace(b'"below":[0,1,3,5],', b""), "form"),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_a_file_has_one_form(what: str) -> None:
    path, change, why = MALFORMED[what]
    files = clean()
    changed = change(files[path])
    assert changed != files[path]
    told = problems(files | {path: changed})
    if why:
        assert why in told[path]
    else:  # a line that is no hash is an entry, and then none that can be read
        assert told == {}


def test_a_number_that_the_fast_reader_leaves_to_the_other_is_read() -> None:
    record = clean_bundle().rounds[0]
    small = record.model_copy(update={"timing": record.timing.model_copy(update={"evaluation": 1e-7})})
    found = parse_files(clean() | {"rounds/0001.json": to_bytes(small)})
    assert found.problems == ()
    assert found.bundle is not None
    assert found.bundle.rounds[0] == small


def test_cosignatures_have_an_order() -> None:
    heads = clean()["heads.json"]
    swapped = heads.replace(b'"witness":"ucl"', b'"witness":"aaa"').replace(b'"witness":"charite"', b'"witness":"ucl"')
    swapped = swapped.replace(b'"witness":"aaa"', b'"witness":"charite"')
    assert "out of order" in problems(clean() | {"heads.json": swapped})["heads.json"]


def test_the_rest_is_read_when_a_file_is_not_there() -> None:
    for path in ("roster.json", "approvals.json", "receipts.json", "heads.json", log_file("ucl")):
        found = parse_files(without(clean(), path))
        assert [(problem.path, problem.is_missing) for problem in found.problems] == [(path, True)]
        assert found.bundle is not None
    assert "ucl" not in found.bundle.logs


def test_a_log_is_looked_for_where_the_manifest_has_it() -> None:
    files = without(clean(), log_file("ucl"))
    manifest = Manifest.read(files[MANIFEST])
    fewer = manifest.model_copy(update={"logs": {p: n for p, n in manifest.logs.items() if p != "ucl"}})
    assert problems(files | {MANIFEST: fewer.data}) == {}
    assert problems(without(files, MANIFEST)).keys() == {MANIFEST}


def test_the_stand_in_of_these_tests_is_what_is_in_the_folder() -> None:
    assert clean()["report/report.json"] == stand_in(clean_bundle())["report/report.json"]
    assert Manifest.read(relisted(clean(), "report/report.json", b"x")[MANIFEST]).files["report/report.json"] == digest(
        b"x"
    )


# --- keys.toml ---------------------------------------------------------------------------------------
def test_keys_are_read_as_they_were_written() -> None:
    assert parse_keys(keys_text(trust()).encode()) == trust()
    some = replace(trust(), stewards={"ucl": trust().stewards["ucl"]})
    assert parse_keys(keys_text(some).encode()) == some


KEYS: dict[str, tuple[Callable[[str], str], str]] = {
    "no TOML": (lambda text: text + "[", "not TOML"),
    "another version": (lambda text: text.replace("version = 1", "version = 2"), "version"),
    "a coordinator among the hospitals": (lambda text: text.replace("s.ucl]", "s.coordinator]"), "coordinator"),
    "a key that is none": (lambda text: text.replace(trust().hospitals["ucl"].text, "ed25519:AA=="), "ucl.key"),
    "an unknown word": (lambda text: text + 'note = "x"\n', "note"),
    "one key for two": (
        lambda text: text.replace(trust().hospitals["ucl"].text, trust().coordinator.text), "two parties have one key",
    ),
    "too long": (lambda text: text + "#" * MAX_KEYS_BYTES, "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("what", KEYS)
def test_keys_that_are_refused(what: str) -> None:
    change, why = KEYS[what]
    with pytest.raises(InvalidKeys, match=why):
        parse_keys(change(keys_text(trust())).encode())


def test_the_keys_of_these_tests_are_those_of_the_study() -> None:
    assert {silo: key(silo).public for silo in SILOS} == trust().hospitals
