"""A bundle that was tampered with, in every way we could think of, is found out; one that was not is verified."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boundary.checkpoint import Cosignature
from boundary.names import COORDINATOR
from boundary.plan import to_json
from compliance.bundle import HEADS, MANIFEST, LogCopy, log_file, note_file
from compliance.events import (
    BudgetReserved,
    ContributionReleased,
    GatesPassed,
    PlanApprovalGiven,
    RoundOpened,
    SumOpened,
    WorkRefused,
)
from compliance.trail import read_leaf
from compliance.verification.findings import Severity, Verdict
from infra.golden import NOW, key, sha
from tests.compliance import made_study
from tests.compliance.made_study import made_bundle, made_plan
from tests.compliance.verification_cases import (
    Files,
    appended,
    clean,
    clean_bundle,
    files_of,
    head_over,
    lines,
    log_of,
    look,
    made,
    numbers,
    relisted,
    resigned,
    rewritten,
    stand_in,
    told,
    with_lines,
    with_log,
    without,
)

BROKEN, INCOMPLETE, VERIFIED = Verdict.BROKEN, Verdict.INCOMPLETE, Verdict.VERIFIED


def test_a_study_that_nobody_tampered_with_is_verified() -> None:
    done = look(clean())
    assert told(done) == told(done, Severity.INCOMPLETE) == {}
    last = len(lines(clean(), COORDINATOR))
    assert told(done, Severity.NOTE) == {"cosigned": [f"coordinator: entry {last}: not cosigned yet"]}
    assert (done.verdict, done.verdict.exit_code) == (VERIFIED, 0)
    assert done.study == clean_bundle().study


def test_a_study_that_shows_little_is_verified_and_says_so() -> None:
    plan = made_plan(disclose=())
    hide = (made_study.say.BudgetReserved, made_study.say.BudgetCommitted, made_study.say.IntakeCounted)
    files = files_of(made_bundle(plan, withhold=lambda _party, event: isinstance(event, hide)))
    done = look(files)
    assert done.verdict is VERIFIED
    notes = told(done, Severity.NOTE)
    assert len(notes["entries"]) == len(notes["budgets"]) == 5
    shown = len(lines(clean(), "ucl"))
    assert f"ucl: 11 of {shown} entries are shown as hashes" in notes["entries"]
    assert "ucl: its spending is not shown by the plan" in notes["budgets"]
    assert b'{"hash":"sha256:' in files[log_file("ucl")]


def test_a_study_without_a_guarantee_is_verified() -> None:
    assert look(files_of(made_bundle(made_study.plain_plan()))).verdict is VERIFIED


# --- tampering ---------------------------------------------------------------------------------------
def edited_entry() -> Files:
    at = numbers(log_of(clean(), COORDINATOR), RoundOpened)[2]
    some = lines(clean(), COORDINATOR)
    some[at] = rewritten(some[at], model=sha("another model"))
    return with_lines(clean(), COORDINATOR, some)


def moved_lines(party: str, move: Callable[[list[bytes]], list[bytes]]) -> Callable[[], Files]:
    return lambda: with_lines(clean(), party, move(lines(clean(), party)))


def truncated_with_head(party: str, heads: int) -> Files:
    """Cut back to an older head, which is a genuine one."""
    log = log_of(clean(), party)
    head = log.heads[-1 - heads]
    older = {size: by for size, by in log.cosignatures.items() if size <= head.size}
    return with_log(clean(), LogCopy(party, log.entries[: head.size], log.heads[:-heads], older))


def forked() -> Files:
    """The hospital signs another head of the same size beside the one that all have seen."""
    log = log_of(clean(), "ucl")
    other = head_over("ucl", (b"x" * 32, *log.entries[1:]))
    return with_log(clean(), replace(log, heads=tuple(sorted((*log.heads, other), key=lambda h: (h.size, h.root)))))


def forged_cosignature() -> Files:
    log = log_of(clean(), "ucl")
    said = Cosignature.sign(log.heads[0], key("ucl").public, "charite", key("st-olavs"), NOW)
    cosigned = log.cosignatures | {log.heads[0].size: log.cosignatures[log.heads[0].size] | {"charite": said}}
    return with_log(clean(), replace(log, cosignatures=cosigned))


def restored_and_gone_on() -> Files:
    """The coordinator's database of yesterday, then other entries, all signed anew by the coordinator itself."""
    log = log_of(clean(), COORDINATOR)
    yesterday = replace(log, entries=log.entries[:40])
    other = appended(yesterday, *[WorkRefused(study="x-00000000", round=1, phase="train", code="NO_DATA")] * 28)
    return with_log(clean(), resigned(log, other.entries))


def rewritten_by_its_owner(party: str) -> Files:
    """One entry says something else, and its owner signs all heads of it again."""
    log = log_of(clean(), party)
    at = numbers(log, ContributionReleased)[0]
    entries = (*log.entries[:at], rewritten(log.entries[at], vector=sha("another vector")), *log.entries[at + 1 :])
    return with_log(clean(), resigned(log, entries))


def report_of_something_else() -> Files:
    """Issued in all form, with a report that does not say what the logs say."""
    report = stand_in(clean_bundle())["report/report.json"] or b""
    return files_of(
        clean_bundle(), {"report/report.json": report.replace(b'"approvals":["charite",', b'"approvals":[')}
    )


def changed_report(path: str) -> Callable[[], Files]:
    return lambda: clean() | {path: clean()[path].replace(b"charite", b"chariti")}


def without_receipt() -> Files:
    receipts = {number: one for number, one in clean_bundle().receipts.items() if number != 3}
    return files_of(replace(clean_bundle(), receipts=receipts))


def altered_receipt() -> Files:
    receipts = clean_bundle().receipts
    other = replace(receipts[3], receipt=receipts[3].receipt.model_copy(update={"transcript": sha("another")}))
    return files_of(replace(clean_bundle(), receipts=receipts | {3: other}))


def reserved_less(party: str) -> Files:
    return made(edit=made_study.instead(BudgetReserved, party, 4, epsilon_study=0.5))


def unapproved_round() -> Files:
    """Leuven's approval reaches the coordinator only after round 1 was opened with it."""
    late = next(read for read in _events(COORDINATOR) if isinstance(read, PlanApprovalGiven) and read.silo == "leuven")
    edit = made_study.both(
        lambda steps: [step for step in steps if getattr(step, "event", None) != late or step.log != COORDINATOR],
        made_study.more(late, log=COORDINATOR, before=SumOpened),
    )
    return made(edit=edit)


def _events(party: str) -> list[object]:
    return [read_leaf(entry).event for entry in clean_bundle().logs[party].entries]


def another_study() -> Files:
    """Every file of the plan's own making from another study."""
    return clean() | {"plan.json": to_json(made_plan(title="Another study"))}


TAMPERED: dict[str, tuple[Callable[[], Files], Verdict, str, str]] = {
    "an entry was edited": (edited_entry, BROKEN, "heads", "their root is not the signed one"),
    "an entry was deleted": (moved_lines("ucl", lambda s: s[:20] + s[21:]), BROKEN, "entries", "itself entry 22"),
    "an entry was inserted": (moved_lines("ucl", lambda s: [*s[:20], s[20], *s[20:]]), BROKEN, "entries", "entry 21"),
    "two entries changed places": (
        moved_lines("ucl", lambda s: [*s[:20], s[21], s[20], *s[22:]]), BROKEN, "entries", "ucl, entry 21",
    ),
    "the last entry is gone": (moved_lines("ucl", lambda s: s[:-1]), BROKEN, "heads", "are signed"),
    "an entry was put at the end": (
        moved_lines("ucl", lambda s: [*s, s[-1]]), BROKEN, "heads", "are signed",
    ),
    "a log was exchanged for another's": (
        moved_lines("ucl", lambda _: lines(clean(), "leuven")), BROKEN, "entries", "an entry of the log of leuven",
    ),
    "a log was truncated together with its head": (
        lambda: truncated_with_head("ucl", 2), BROKEN, "witnessed", "entries of ucl, ",
    ),
    "an entry that is shown was turned into a hash": (
        moved_lines("ucl", lambda s: [b'{"hash":"sha256:%b"}' % (b"0" * 64), *s[1:]]), BROKEN, "heads", "ucl, entries",
    ),
    "a head was forked": (forked, BROKEN, "heads", "two signed heads of one size"),
    "a cosignature was forged": (forged_cosignature, BROKEN, "cosigned", "the cosignature of charite does not verify"),
    "the coordinator was restored from yesterday": (
        lambda: truncated_with_head(COORDINATOR, 3), BROKEN, "witnessed", "entries of coordinator, ",
    ),
    "the coordinator was restored from yesterday and went on": (
        restored_and_gone_on, BROKEN, "witnessed", "another history in the first",
    ),
    "a hospital rewrote its log and signed it again": (
        lambda: rewritten_by_its_owner("ucl"), BROKEN, "witnessed", "saw another history in the first",
    ),
    "a receipt is missing": (without_receipt, INCOMPLETE, "receipts", "receipts.json, round 3: no receipt"),
    "a receipt was altered": (altered_receipt, BROKEN, "receipts", "round 3: says something else"),
    "a field of the report was changed": (changed_report("report/report.json"), BROKEN, "manifest", "report.json: not"),
    "the HTML was changed": (changed_report("report/report.html"), BROKEN, "manifest", "report/report.html: not the"),
    "the HTML was changed and the manifest with it": (
        lambda: relisted(clean(), "report/report.html", b"<html/>"), BROKEN, "issued", "names this manifest",
    ),
    "a false report was issued in all form": (report_of_something_else, BROKEN, "report", "it has other bytes"),
    "the manifest was changed": (
        lambda: clean() | {MANIFEST: clean()[MANIFEST].replace(b'"leuven":', b'"leuven":1')}, BROKEN, "issued",
        "no entry of the log names this manifest",
    ),
    "epsilon was under-reported by the hospital itself": (
        lambda: reserved_less("st-olavs"), BROKEN, "budgets", "says epsilon 0.5 at delta 0.000333, it is ",
    ),
    "a hospital trained without asking its policy": (
        lambda: made(edit=made_study.without(GatesPassed, log="leuven", round=2)), BROKEN, "gates",
        "round 2, train: no gates were passed for this start",
    ),
    "a round was opened before a hospital had approved": (
        unapproved_round, BROKEN, "approvals", "round 1 opened, leuven had not approved by then",
    ),
    "a file is missing": (lambda: without(clean(), "rounds/0002.json"), INCOMPLETE, "manifest", "0002.json: is not"),
    "the report is missing": (lambda: without(clean(), "report/report.json"), INCOMPLETE, "report", "is not there"),
    "a log is missing": (lambda: without(clean(), log_file("ucl")), INCOMPLETE, "entries", "ucl: the log is not here"),
    "the coordinator's log is missing": (
        lambda: without(clean(), log_file(COORDINATOR)), INCOMPLETE, "entries", "coordinator: the log is not here",
    ),
    "a checkpoint is missing": (lambda: without(clean(), note_file("ucl")), INCOMPLETE, "notes", "is not there"),
    "all heads are missing": (lambda: without(clean(), HEADS), INCOMPLETE, "files", "heads.json: is not there"),
    "the approvals are missing": (lambda: without(clean(), "approvals.json"), INCOMPLETE, "approvals", "no approval"),
    "the roster is missing": (lambda: without(clean(), "roster.json"), INCOMPLETE, "files", "roster.json: is not"),
    "the receipts are missing": (lambda: without(clean(), "receipts.json"), INCOMPLETE, "receipts", "no receipt"),
    "the plan is missing": (lambda: without(clean(), "plan.json"), INCOMPLETE, "files", "plan.json: is not there"),
    "the manifest is missing": (lambda: without(clean(), MANIFEST), INCOMPLETE, "files", "manifest.json: is not there"),
    "the plan is another study's": (another_study, BROKEN, "manifest", "plan.json: not the file"),
    "a file was added": (lambda: clean() | {"report/more.html": b""}, BROKEN, "manifest", "does not list it"),
    "a log was added": (lambda: clean() | {log_file("mayo"): b"{}\n"}, BROKEN, "manifest", "logs/mayo.jsonl: the man"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_found(what: str) -> None:
    forge, verdict, check, found = TAMPERED[what]
    done = look(forge())
    assert done.verdict is verdict
    severity = Severity.BROKEN if verdict is BROKEN else Severity.INCOMPLETE
    assert any(found in line for line in told(done, severity)[check]), told(done, severity)


def test_a_report_of_a_damaged_bundle_is_not_blamed() -> None:
    done = look(without(clean(), "rounds/0002.json"))
    assert told(done, Severity.INCOMPLETE)["report"] == ["report/: was not made again"]


def test_a_coordinator_that_forked_is_told_with_the_proof() -> None:
    done = look(forked())
    assert any("a FORK" in one.means for check in done.checks for one in check.findings)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_left_as_it_was(was_on: bool) -> None:
    (gc.enable if was_on else gc.disable)()
    look(without(clean(), "plan.json"))
    assert gc.isenabled() is was_on
    gc.enable()


# --- any byte ----------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """In any file, at any place, into any other: there is no byte in a bundle that does not count."""
    path = data.draw(st.sampled_from(sorted(_short())))
    content = _short()[path]
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytes([data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))])
    how = data.draw(st.sampled_from((changed, b"", changed + content[at : at + 1])))  # changed, taken out, put in
    assert look(_short() | {path: content[:at] + how + content[at + 1 :]}).verdict is not VERIFIED


@cache
def _short() -> Files:
    """The study after one round."""
    whole = made_bundle(edit=lambda steps: [one for one in steps if _round_of(one) <= 1] + steps[-1:])
    files = files_of(replace(whole, rounds=whole.rounds[:1], receipts={1: whole.receipts[1]}))
    assert look(files).verdict is VERIFIED
    return files


def _round_of(step: made_study.Step) -> int:
    about = step.event if isinstance(step, made_study.Said) else step
    return int(getattr(about, "round", 0))
