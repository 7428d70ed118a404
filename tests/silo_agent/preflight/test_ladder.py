"""All checks together: what is tried, what the exit code is, and what is printed."""

import ast
import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import silo_agent.preflight
from boundary.canonical import canonical_bytes
from silo_agent.config import starting_config
from silo_agent.preflight import command
from silo_agent.preflight.finding import EXIT_CODES, Check, Finding, Verdict, exit_code, fail, ok, warn
from silo_agent.preflight.ladder import ladder, run_checks
from silo_agent.preflight.rules import judge_relay
from silo_agent.preflight.setting import Setting
from silo_agent.preflight.view import print_table
from silo_agent.state import StateFolder

SettingOf = Callable[..., Setting]
DONE = {
    "device": {"torch": "2", "device": "cpu", "threads": 1, "cores": 2, "memory_mb": 1, "cuda_built": False,
               "gpu_there": False},
    "archive": {"files": 9, "more": False, "unencrypted": False, "tried": 5, "read": 5, "codes": {}},
    "labels": {"rows": 9, "levels": ["SOPInstanceUID"]},
}  # fmt: skip


@pytest.fixture
def quick(stub_child: Any) -> str:
    """A child without torch that finds all well."""
    name: str = stub_child(**{do: [("say", {"event": "done", "result": result})] for do, result in DONE.items()})
    return name


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.check.value: finding.verdict.value for finding in findings}


# --- whole hospitals ---------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_hospital_with_the_real_relay_and_the_real_child_passes_all(enrolled: StateFolder) -> None:
    """As people run it: one process, its own clock, torch, DICOM, TLS."""
    code = (
        "from pathlib import Path; from silo_agent.preflight.command import main; import sys; "
        f"sys.exit(main(Path({str(enrolled.root)!r}), as_json=True))"
    )
    before = {path: path.stat().st_mtime_ns for path in enrolled.root.iterdir() if "journal" not in path.name}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    said = json.loads(done.stdout)
    troubles = [finding for finding in said["findings"] if finding["verdict"] == "fail"]
    assert (done.returncode, said["exit_code"], troubles) == (0, 0, []), done.stderr
    assert [finding["check"] for finding in said["findings"]] == [check.value for check in Check]
    child = next(finding for finding in said["findings"] if finding["check"] == "child")
    assert "on cpu, 1 threads" in child["said"] or "on cuda, 1 threads" in child["said"]
    assert child["seconds"] > 0.5, "torch was imported"
    assert all(finding["seconds"] >= 0 for finding in said["findings"])
    assert len(done.stderr.splitlines()) == len(Check), "a line as each ends"
    after = {path: path.stat().st_mtime_ns for path in enrolled.root.iterdir() if "journal" not in path.name}
    assert {path.name for path in after if before.get(path) != after[path]} <= {"check.log", "cache"}


def test_a_hospital_behind_a_proxy_that_opens_tls_is_told_12_and_nothing_behind_it_is_tried(
    dialling: StateFolder, setting_of: SettingOf, behind: Any, make_proxy: Any, server_tls: Any,
    hospital_network: Any, quick: str,
) -> None:  # fmt: skip
    behind(
        dialling, make_proxy(login="u:p", manners="intercept", other=server_tls(hospital_network, "localhost")), "u:p"
    )
    found = asyncio.run(run_checks(setting_of(dialling, probe=quick)))
    said = verdicts(found)
    assert exit_code(found) == 12, found
    assert (said["proxy"], said["tls"], said["clock"], said["relay"], said["labels"]) == (
        "ok", "fail", "warn", "warn", "ok",
    )  # fmt: skip
    assert "not tried: it needs `tls`" in {finding.said for finding in found}


BROKEN: dict[str, tuple[Callable[[Path], Any], int, set[str]]] = {
    "nothing at all": (Path.exists, 0, set()),
    "agent.toml": (lambda root: (root / "agent.toml").write_text("no"), 2, {"config"}),
    "modes": (lambda root: root.chmod(0o755), 19, {"state"}),
    "a key": (lambda root: (root / "sealing.key").unlink(), 19, {"keys"}),
    "enrolment": (lambda root: (root / "tls.crt").unlink(), 19, {"enrolment"}),
    "the relay's CA": (lambda root: (root / "relay-ca.crt").write_text("no"), 19, {"certificate"}),
}


@pytest.mark.parametrize(("spoil", "code", "failed"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_at_home_is_said_first(
    dialling: StateFolder, hostile: Any, setting_of: SettingOf, quick: str, spoil: Any, code: int, failed: set[str]
) -> None:
    hostile.answers["/v1/poll"] = b'{"deliveries": [], "roster_version": 1}'
    spoil(dialling.root)
    told: list[Finding] = []
    found = asyncio.run(run_checks(setting_of(dialling, probe=quick), told.append))
    assert told == found
    assert {finding.check.value for finding in found if finding.verdict == "fail"} == failed, found
    assert exit_code(found) == code
    assert all(finding.fix for finding in found if finding.verdict != "ok")


# --- before enrolment --------------------------------------------------------------------------------
@pytest.fixture
def invited(federation: Any, tmp_path: Path) -> tuple[StateFolder, Path]:
    """A hospital with an invitation that it has not used."""
    folder = StateFolder(tmp_path / "invited")
    text = starting_config("invited", threads=1, heartbeat=1.0)
    folder.create(secrets.token_bytes, text.replace("min_free_disk_mb = 500", "min_free_disk_mb = 1"))
    (tmp_path / "dicom").mkdir()
    federation.allow(folder, "invited", tmp_path / "dicom", tmp_path / "labels.csv")
    return folder, federation.invite("invited", tmp_path)


def test_the_way_to_the_relay_is_tried_before_the_hospital_has_joined(
    invited: tuple[StateFolder, Path], setting_of: SettingOf, quick: str
) -> None:
    """Who cannot enrol because of the network needs the check most."""
    folder, paper = invited
    before = {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()}
    assert exit_code(asyncio.run(run_checks(setting_of(folder, probe=quick)))) == 19, "without it, only that"
    found = asyncio.run(run_checks(setting_of(folder, probe=quick, invitation=paper)))
    said = verdicts(found)
    assert exit_code(found) == 0, found
    assert [name for name, verdict in said.items() if name in {"enrolment", "names", "proxy", "connection", "tls"}
            and verdict != "ok"] == []  # fmt: skip
    assert (said["certificate"], said["clock"], said["relay"]) == ("warn", "warn", "warn")
    assert {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()} == before | {
        "check.log": b""
    }


def test_an_interceptor_is_found_before_the_hospital_has_joined(
    invited: tuple[StateFolder, Path], setting_of: SettingOf, behind: Any, make_proxy: Any, server_tls: Any,
    hospital_network: Any, quick: str,
) -> None:  # fmt: skip
    folder, paper = invited
    behind(folder, make_proxy(manners="intercept", other=server_tls(hospital_network, "localhost")))
    found = asyncio.run(run_checks(setting_of(folder, probe=quick, invitation=paper)))
    assert exit_code(found) == 12, found


PAPERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "that has expired": lambda paper: paper | {"expires_at": "2020-01-01T00:00:00.000000Z"},
    "for another hospital": lambda paper: paper | {"silo": "charite"},
    "that is damaged": lambda paper: paper | {"version": 9},
    "whose token has a letter too many": lambda paper: paper | {"token": paper["token"] + "x"},
}


@pytest.mark.parametrize("spoil", PAPERS.values(), ids=PAPERS)
def test_an_invitation_is_refused_without_its_token(
    invited: tuple[StateFolder, Path], setting_of: SettingOf, quick: str, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    folder, path = invited
    paper = json.loads(path.read_text())
    path.write_bytes(canonical_bytes(spoil(paper)))
    found = asyncio.run(run_checks(setting_of(folder, probe=quick, invitation=path)))
    assert exit_code(found) == 19
    everything = "".join(finding.model_dump_json() for finding in found)
    assert paper["token"] not in everything
    assert paper["token"][:10] not in everything
    assert "new invitation" in everything


def test_an_invitation_that_cannot_be_read_is_no_reason_for_a_new_one(
    invited: tuple[StateFolder, Path], setting_of: SettingOf, tmp_path: Path, quick: str
) -> None:
    """As where root has saved it, or its name was mistyped."""
    folder, _ = invited
    found = asyncio.run(run_checks(setting_of(folder, probe=quick, invitation=tmp_path / "missing.json")))
    (said,) = [finding for finding in found if finding.check is Check.ENROLMENT]
    assert "missing.json cannot be read (No such file or directory)" in said.said
    assert "coordinator" not in said.fix


def test_anothers_invitation_is_said_with_both_names(
    invited: tuple[StateFolder, Path], setting_of: SettingOf, quick: str
) -> None:
    folder, path = invited
    path.write_bytes(canonical_bytes(json.loads(path.read_text()) | {"silo": "charite"}))
    found = asyncio.run(run_checks(setting_of(folder, probe=quick, invitation=path)))
    assert "the invitation is for charite, this agent is invited" in [finding.said for finding in found]


def test_another_users_folder_is_not_touched(dialling: StateFolder, setting_of: SettingOf, quick: str) -> None:
    """Found by thinking of `sudo`: a journal or log that root has made is one the agent cannot open."""
    os.chown(dialling.root, 12345, -1)
    before = {path: path.stat().st_mtime_ns for path in dialling.root.rglob("*")}
    found = asyncio.run(run_checks(setting_of(dialling, probe=quick)))
    assert exit_code(found) == 19
    assert {path: path.stat().st_mtime_ns for path in dialling.root.rglob("*")} == before


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path, setting_of: SettingOf) -> None:
    found = asyncio.run(run_checks(setting_of(StateFolder(tmp_path / "none"))))
    assert exit_code(found) == 2
    assert not (tmp_path / "none").exists()


def test_a_check_that_breaks_is_a_failure_and_the_others_go_on(
    dialling: StateFolder, setting_of: SettingOf, quick: str
) -> None:
    async def broken(host: str, port: int) -> list[str]:
        raise RuntimeError("MUELLER^HANS")

    found = asyncio.run(run_checks(setting_of(dialling, probe=quick, resolve=broken)))
    names = next(finding for finding in found if finding.check is Check.NAMES)
    assert (names.verdict, names.said) == ("fail", "the check itself broke (RuntimeError)")
    assert verdicts(found)["labels"] == "ok"


# --- the table of the ladder -------------------------------------------------------------------------
def test_every_check_is_in_the_ladder_in_its_order_and_needs_only_what_comes_before() -> None:
    steps = ladder(["a", "b"])
    order = list(Check)
    assert [
        check for index, check in enumerate(step.check for step in steps) if steps[index - 1].check != check
    ] == order
    for step in steps:
        assert all(order.index(need) < order.index(step.check) for need in step.needs), step


def test_the_table_of_exit_codes_in_the_docstring_is_the_one_in_force() -> None:
    text = silo_agent.preflight.finding.__doc__ or ""
    rows = re.findall(r"^\| (\d+) \|.*\| ((?:`\w+`(?:, )?)*) ?\|$", text, re.MULTILINE)
    said = {check: int(code) for code, checks in rows for check in re.findall(r"`(\w+)`", checks)}
    assert said == {check.value: code for check, code in EXIT_CODES.items()}


FINDINGS = st.lists(st.tuples(st.sampled_from(Check), st.sampled_from([ok, warn, fail])), max_size=20)


@given(FINDINGS)
def test_the_exit_code_is_that_of_the_first_failure_of_the_ladder(drawn: list[tuple[Check, Any]]) -> None:
    """The law, whatever order they were found in."""
    found = [make(check, "x") if make is ok else make(check, "x", "y") for check, make in drawn]
    failed = [finding.check for finding in found if finding.verdict is Verdict.FAIL]
    first = min(failed, key=list(Check).index, default=None)
    assert exit_code(found) == (0 if first is None else EXIT_CODES[first])
    assert exit_code(list(reversed(found))) == exit_code(found)


def texts() -> list[tuple[str, str]]:
    """Every string in the code of the preflight but the docstrings."""
    folder = Path(silo_agent.preflight.__file__).parent
    found = []
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        documented = [node for node in ast.walk(tree) if hasattr(node, "body") and isinstance(node.body, list)]
        prose = {id(node.body[0].value) for node in documented if node.body and isinstance(node.body[0], ast.Expr)}
        found += [
            (path.name, node.value) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        ]  # fmt: skip
    return found


def test_no_message_advises_deletion() -> None:
    """Field notes: a misleading message made a hospital delete six good cases."""
    advice = re.compile(r"\b(delet|remov|eras|discard|wip|purg|clean|exclud|clear|drop the|rm -|throw)", re.IGNORECASE)
    assert len(texts()) > 200
    assert [text for text in texts() if advice.search(text[1])] == []


# --- what is printed ---------------------------------------------------------------------------------
def test_what_is_to_be_copied_is_printed_whole_on_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Found by walking through it: at 80 columns, and in every pipe, the relay's key ended in an ellipsis."""
    seen = judge_relay(f"SPKI sha256:{'ab' * 32}", "relay.example", 8443, "ab" * 32, None)
    print_table(Console(width=60), [seen])
    said = capsys.readouterr().out
    assert f'{{ host = "relay.example", port = 8443, spki_sha256 = "{"ab" * 32}" }}' in said.splitlines()
    assert "…" not in said


def test_the_command_prints_a_table_with_the_fixes_and_returns_the_code(
    dialling: StateFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (dialling.root / "agent.toml").write_text("[x]\nno = 1\n")
    assert command.main(dialling.root, as_json=False) == 2
    said = capsys.readouterr()
    assert "-> Correct agent.toml" in said.out
    assert "exit code 2" in said.out
    assert len(said.err.splitlines()) == len(Check), "the policy names one data set"
    assert "fail config" in said.err.replace("  ", " ")


def test_the_command_prints_one_json_object(dialling: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (dialling.root / "agent.toml").write_text("no")
    assert command.main(dialling.root, as_json=True) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["exit_code"] == 2
    assert set(said["findings"][0]) == {"check", "verdict", "said", "fix", "paste", "seconds"}
    assert said["findings"][0]["verdict"] == "fail"


def test_the_command_is_light_until_a_child_is_asked() -> None:
    """The daemon's client of the relay takes its proxy from this package."""
    code = (
        "import sys, silo_agent.relay_client, silo_agent.preflight.command; "
        "print({'torch', 'monai', 'opacus', 'pydicom', 'numpy.random'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
