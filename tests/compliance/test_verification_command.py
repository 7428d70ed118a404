"""The reviewer's keys, MLflow's copies, and what a person sees in a terminal."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compliance import bundle_reading
from compliance.bundle import HEADS, Trust
from compliance.keys_file import keys_text
from compliance.verification.findings import Severity, Verdict
from compliance.verify_command import run
from infra.golden import key
from tests.compliance.made_study import trust
from tests.compliance.verification_cases import (
    Files,
    clean,
    clean_bundle,
    finish,
    look,
    prepare,
    stand_in,
    told,
    without,
)

BROKEN, INCOMPLETE, VERIFIED = Verdict.BROKEN, Verdict.INCOMPLETE, Verdict.VERIFIED
BROKEN, INCOMPLETE, VERIFIED = Verdict.BROKEN, Verdict.INCOMPLETE, Verdict.VERIFIED

# --- keys --------------------------------------------------------------------------------------------
BELIEVED: dict[str, tuple[Callable[[], Trust], Verdict, str]] = {
    "another coordinator": (lambda: replace(trust(), coordinator=key("mallory").public), BROKEN, "members"),
    "another hospital's key": (
        lambda: replace(trust(), hospitals=trust().hospitals | {"ucl": key("mallory").public}), BROKEN, "heads",
    ),
    "another steward": (
        lambda: replace(trust(), stewards=trust().stewards | {"ucl": key("mallory").public}), BROKEN, "approvals",
    ),
    "a hospital is not in it": (
        lambda: replace(trust(), hospitals={s: k for s, k in trust().hospitals.items() if s != "ucl"}), INCOMPLETE,
        "members",
    ),
    "a hospital more": (
        lambda: replace(trust(), hospitals=trust().hospitals | {"mayo": key("m").public}), VERIFIED, "",
    ),
    "no stewards": (lambda: replace(trust(), stewards={}), VERIFIED, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", BELIEVED)
def test_the_keys_of_the_reviewer_decide(what: str) -> None:
    believed, verdict, check = BELIEVED[what]
    done = look(clean(), believed())
    assert done.verdict is verdict
    if verdict is not VERIFIED:
        assert check in told(done, Severity.BROKEN if verdict is BROKEN else Severity.INCOMPLETE)


def test_stewards_that_nobody_knows_are_told() -> None:
    notes = told(look(clean(), replace(trust(), stewards={})), Severity.NOTE)
    assert "approvals.json: the steward of ucl is not in keys.toml" in notes["approvals"]


# --- copies ------------------------------------------------------------------------------------------
def test_copies_that_are_the_same_change_nothing() -> None:
    assert look(clean(), copies=clean()).verdict is VERIFIED


COPIES: dict[str, tuple[Callable[[], Files], Verdict, str]] = {
    "one was replaced": (lambda: clean() | {"report/report.html": b"<html>"}, BROKEN, "html: the copy has other bytes"),
    "one is gone": (lambda: without(clean(), "report/report.json"), INCOMPLETE, "report.json: there is no copy of it"),
    "one was added": (lambda: clean() | {"report/more.html": b""}, BROKEN, "more.html: there is a copy of it, and"),
    "the run was deleted": (dict, INCOMPLETE, "manifest.json: there is no copy of it"),
}


@pytest.mark.parametrize("what", COPIES)
def test_copies_are_compared(what: str) -> None:
    copies, verdict, found = COPIES[what]
    done = look(clean(), copies=copies())
    assert done.verdict is verdict
    severity = Severity.BROKEN if verdict is BROKEN else Severity.INCOMPLETE
    assert list(told(done, severity)) == ["copies"]
    assert any(found in line for line in told(done, severity)["copies"])


# --- the command -------------------------------------------------------------------------------------
@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(keys_text(trust()))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle, path = clean_bundle(), tmp_path / "ct-contrast-bundle"
    prepared = prepare(bundle, {name: data for name, data in stand_in(bundle).items() if data is not None})
    for name, data in finish(prepared).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def said(folder: Path, keys: Path, *, as_json: bool = False) -> tuple[int, str]:
    written: list[str] = []
    code = run(folder, keys, rebuild=stand_in, as_json=as_json, write=written.append)
    return code, "".join(written)


def test_a_clean_folder_exits_with_0(folder: Path, keys: Path) -> None:
    code, text = said(folder, keys)
    assert code == 0
    assert text.startswith("NOTE       cosigned: coordinator: entry ")
    assert "ok         budgets: every epsilon follows from the releases in the hospital's log\n" in text
    assert text.endswith("VERIFIED: nothing was changed since it was signed, and all parties' logs say the same\n")
    assert max(map(len, text.splitlines())) < 120


def test_the_worst_is_said_first_and_the_verdict_last(folder: Path, keys: Path) -> None:
    (folder / "report/report.html").write_bytes(b"<html>")
    (folder / "rounds/0005.json").unlink()
    code, text = said(folder, keys)
    assert code == 1
    first, second, *_, last = text.splitlines()
    assert first == "BROKEN     manifest: report/report.html: not the file that the manifest lists"
    assert second == "           it was exchanged after the bundle was made"
    assert text.index("INCOMPLETE manifest: rounds/0005.json") > text.index("BROKEN")
    assert last.startswith("BROKEN: do not rely on this study")


def test_what_is_missing_exits_with_2(folder: Path, keys: Path, tmp_path: Path) -> None:
    (folder / "report/report.html").unlink()
    assert said(folder, keys)[0] == 2
    code, text = said(tmp_path / "nothing", keys)
    assert code == 2
    assert "study unknown" in text


def test_a_link_an_enormous_file_and_a_stranger_exit_with_1(
    folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "more").symlink_to("/etc")
    code, text = said(folder, keys)
    assert (code, "more: a link" in text) == (1, True)
    (folder / "more").unlink()
    (folder / "report" / "\x1b[2Jodd\u202e").write_text("")
    code, text = said(folder, keys)
    assert (code, "BROKEN     manifest: report/?[2Jodd\\u202e: the manifest does not list it" in text) == (1, True)
    (folder / "report" / "\x1b[2Jodd\u202e").unlink()
    monkeypatch.setitem(bundle_reading.LIMITS, HEADS, 100)
    code, text = said(folder, keys)
    assert (code, "heads.json: the file has" in text) == (1, True)


def test_the_same_as_json(folder: Path, keys: Path) -> None:
    code, text = said(folder, keys, as_json=True)
    read = json.loads(text)
    assert (code, read["verdict"], read["exit_code"], read["study"]) == (0, "verified", 0, clean_bundle().study)
    assert [check["name"] for check in read["checks"]][:3] == ["files", "manifest", "notes"]
    found = [one for check in read["checks"] for one in check["findings"]]
    assert [one["severity"] for one in found] == ["note"]


def test_without_keys_nothing_is_verified(folder: Path, tmp_path: Path) -> None:
    code, text = said(folder, tmp_path / "none.toml")
    assert code == 2
    assert "none.toml: No such file or directory\nINCOMPLETE: without keys" in text
    (tmp_path / "bad.toml").write_text("version = 2")
    code, text = said(folder, tmp_path / "bad.toml", as_json=True)
    assert (code, json.loads(text)["verdict"]) == (2, "incomplete")


def test_many_findings_of_a_kind_are_counted(folder: Path, keys: Path) -> None:
    for number in range(20):
        (folder / f"report/more-{number}.html").write_text("")
    text = said(folder, keys)[1]
    assert "BROKEN     manifest: and 8 more; --json has them all\n" in text
