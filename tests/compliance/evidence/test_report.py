"""The report: the same bytes for the same bundle, twelve sections, small counts never told, no claim it cannot make."""

import json
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.canonical import canonical_bytes, parse_json
from boundary.names import COORDINATOR
from boundary.robustness import RolledBack, Vote
from compliance import events as say
from compliance.evidence.controls import CONTROLS
from compliance.evidence.crosswalk import clauses_by_control, rows
from compliance.evidence.fhir import audit_events
from compliance.evidence.files import report_files
from compliance.evidence.html import render_html
from compliance.evidence.pdf import render_pdf
from compliance.evidence.processing_record import processing_record
from compliance.evidence.report import build, report_bytes
from compliance.evidence.suppression import reported, up_to
from compliance.records import GlobalMetrics
from infra.golden import sha
from tests.compliance.made_study import (
    SILOS,
    both,
    instead,
    made_bundle,
    made_plan,
    more,
    plain_plan,
    policy_of,
    release_of,
    without,
)

as_it_is = cache(made_bundle)


@cache
def report() -> dict[str, Any]:
    return build(as_it_is())


def section(number: int, of: dict[str, Any] | None = None) -> dict[str, Any]:
    return (of or report())["sections"][number - 1]


def cells(number: int, title: str, of: dict[str, Any] | None = None) -> list[list[Any]]:
    return next(table["rows"] for table in section(number, of)["tables"] if table["title"].startswith(title))


def fields(number: int, of: dict[str, Any] | None = None) -> dict[str, Any]:
    return dict(section(number, of)["fields"])


@cache
def troubled() -> dict[str, Any]:
    """Everything that can go wrong at once, without a guarantee."""
    study = made_bundle(plain_plan()).study
    about: dict[str, Any] = {"study": study, "round": 2}
    edit = both(
        more(
            say.IncidentOpened(incident=1, log="leuven", code="LOG_FORKED", evidence=sha("two heads")),
            say.IncidentOpened(incident=2, log="leuven", code="LOG_SHRUNK", evidence=sha("two more")),
            say.IncidentClosed(incident=1, decision="ACCEPTED"),
            say.BudgetRefused(**about, cap="study", asked=9.25, left=0.5),
            say.PlanDeclineGiven(study=study, plan_digest=sha("plan"), silo="ucl", code="NO_MORE"),
            log="ucl",
        ),
        more(say.EvidenceIssued(study=study, manifest=sha("manifest")), log=COORDINATOR),
        more(say.PatientWithdrawn(private=sha("another")), log="charite"),
        more(say.PatientWithdrawn(private=sha("a third")), log="leuven"),
        instead(say.HospitalAdmitted, log=COORDINATOR, fingerprint=" ".join(["0000"] * 16)),
        instead(say.RoundClosed, COORDINATOR, 3, model_in=sha("another")),
        more(say.StatisticsTaken(study=study, survivors=sha("s"), result=sha("r")), log=COORDINATOR),
        without(say.RoundClosed, round=5),
    )
    bundle = made_bundle(
        plain_plan(), edit=edit, withhold=lambda party, event: party == "ucl" and event.event == "plan-received"
    )
    logs = {party: log for party, log in bundle.logs.items() if party != "karolinska"}
    without_some = {silo: signed for silo, signed in bundle.approvals.items() if silo != "ucl"}
    first = bundle.receipts[1]
    receipts = {number: signed for number, signed in bundle.receipts.items() if number != 2} | {1: first}
    return build(replace(bundle, logs=logs, approvals=without_some, receipts=receipts, roster=b"{}"))


def test_the_same_bundle_gives_the_same_bytes_in_every_form() -> None:
    again = made_bundle()
    assert report_bytes(as_it_is()) == report_bytes(again) == canonical_bytes(report())
    assert canonical_bytes(audit_events(as_it_is())) == canonical_bytes(audit_events(again))
    read_back = parse_json(report_bytes(again))
    assert render_html(report()) == render_html(read_back)
    assert render_pdf(report()) == render_pdf(read_back)


def test_the_files_are_these_forms_by_their_paths() -> None:
    files = report_files(as_it_is())
    assert files["report/report.json"] == canonical_bytes(report())
    assert files["report/report.html"] == render_html(report()).encode()
    assert set(files) == {
        f"report/{name}" for name in ("report.json", "report.html", "report.pdf", "audit-events.json", "article-30.md")
    }


def test_there_are_twelve_sections_in_their_order() -> None:
    assert [one["number"] for one in report()["sections"]] == list(range(1, 13))
    assert report()["as_of"] == "2026-11-20T14:29:45.123456Z"
    assert report()["statement"] == "This is evidence, not certification."


def test_all_verdicts_are_counted_and_open_items_told() -> None:
    assert sum(report()["verdicts"].values()) == len(report()["controls"]) == len(CONTROLS)
    assert {row[0][:6] for row in report()["open"]["rows"]} == {
        one["id"] for one in report()["controls"] if one["verdict"] not in {"PASS", "N/A"}
    }


def test_the_summary_begins_with_what_failed() -> None:
    assert report()["summary"][0] == "No control failed."
    assert troubled()["summary"][0].startswith("Do not rely on this study before these are settled: ")
    short = build(made_bundle(made_plan(retain_years=5)))
    assert short["summary"][0] == "No blocker failed. 1 other control failed."
    noisy = build(
        made_bundle(made_plan(retain_years=5), edit=instead(say.BudgetReserved, log="ucl", release=more_noise()))
    )
    assert noisy["summary"][0] == "No blocker failed. 1 other control failed."


def more_noise() -> Any:
    release = release_of(made_plan(), "ucl")
    assert release is not None
    return release


def test_two_failures_that_block_nothing_are_counted() -> None:
    gap = without(say.RoundOpened, round=99)
    bundle = made_bundle(made_plan(retain_years=5), edit=gap)
    cut = replace(bundle.logs["ucl"], entries=bundle.logs["ucl"].entries[:-1])
    found = build(replace(bundle, logs={**bundle.logs, "ucl": cut}))
    assert found["summary"][0] == "No blocker failed. 2 other controls failed."


def test_a_study_without_a_guarantee_says_so_loudly() -> None:
    found = build(made_bundle(plain_plan()))
    assert any(
        sentence == "NO GUARANTEE PER PATIENT: the plan gives no guarantee per patient, approved by each steward."
        for sentence in found["summary"]
    )
    assert section(1, found)["notes"][0].startswith("NO GUARANTEE PER PATIENT: ")
    assert "and 3 of 5 approvals of it are shown" in troubled()["summary"][1]
    assert 'class="loud"' in render_html(found)
    assert [row[0] for row in cells(6, "Released", found)][-1].startswith("masked sums of model changes")


def test_everything_wrong_at_once_is_told() -> None:
    found = troubled()
    assert "(ANOTHER ONE WAS ADMITTED)" in cells(1, "Parties", found)[0][1]
    assert {row[0]: row[1] for row in cells(11, "Logs", found)}["karolinska"] == "missing"
    assert [row[4].split(": ")[-1] for row in cells(10, "Incidents", found)] == ["ACCEPTED", "OPEN"]
    assert cells(10, "Releases refused", found)[0][3:5] == [9.25, 0.5]
    assert {row[0]: row[2] for row in cells(10, "Withdrawals", found)} == {
        "charite": "5 s; not all took effect",
        "karolinska": None,
        "leuven": "none took effect",
        "st-olavs": None,
        "ucl": None,
    }
    assert {row[0]: row[1] for row in cells(10, "Withdrawals", found)}["karolinska"] == "not all shown"
    assert cells(11, "What does not fit", found)[-1][0] == "roster"
    assert cells(7, "Receipts", found)[1][1] == "no receipt"
    assert cells(11, "Evidence issued", found)[0][1] == sha("manifest")
    assert cells(9, "Models", found)[4][2] == "not closed"
    assert "declined at" in {row[0]: row[6] for row in cells(3, "Approvals", found)}["ucl"]
    assert cells(6, "Released", found)[0][0].startswith("masked sums of intensities")
    render_html(found)
    render_pdf(found)


def test_what_changed_since_an_approval_is_told() -> None:
    study = as_it_is().study
    approval = say.PlanApprovalGiven(
        study=study, plan_digest=report()["plan_digest"], silo="ucl", dataset_digest=sha("data set of ucl")
    )
    again = more(approval, log="ucl", before=say.RoundReceived, round=1)
    counted = say.IntakeCounted(
        study=study, dataset_digest=sha("new"), usable=True, patients=310, used=680, excluded={}
    )
    later = more(counted, log="ucl", before=say.RoundReceived, round=3)
    found = build(made_bundle(edit=both(again, later)))
    said = {row[0]: row[6] for row in cells(3, "Approvals", found)}
    assert said["ucl"].startswith("other data counted at 2026-11-20")
    assert said["ucl"].endswith("approved 2 times")
    assert said["leuven"] == "nothing"


def test_the_policies_of_every_hospital_are_told() -> None:
    rows = cells(3, "Policies")
    assert [(row[0], row[1], row[3]) for row in rows] == [
        *((silo, 1, "all that were asked") for silo in SILOS),
        ("ucl", 2, "one, it only tightens"),
    ]
    assert rows[0][2] == policy_of("charite", 1)
    assert [row[2] for row in cells(3, "Policies", troubled()) if row[0] == "karolinska"] == ["not shown"]


def test_withheld_budgets_are_blank_and_said_to_be() -> None:
    found = build(made_bundle(withhold=lambda party, event: party == "ucl" and isinstance(event, say.BudgetReserved)))
    row = {row[0]: row for row in cells(6, "Spent", found)}["ucl"]
    assert row[7:] == [None, None, 8.0, "no"]
    noise = build(made_bundle(made_plan(guarantee='mechanism = "patient-dp"\nnoise_multiplier = 0.8')))
    assert fields(6, noise)["Cap of the plan"].startswith("none")


def test_epsilon_in_the_report_is_within_the_cap_and_rising() -> None:
    lines = section(6)["figures"][0]["data"]["lines"]
    assert [line["name"] for line in lines] == list(SILOS)
    for line in lines:
        values = [value for _, value in line["points"]]
        assert values == sorted(values)
        assert values[-1] <= 8


# --- small cells -------------------------------------------------------------------------------------
CELLS = st.integers(0, 60)


@settings(max_examples=200, deadline=None)
@given(CELLS, CELLS, CELLS, CELLS, st.floats(0, 1))
def test_no_count_below_ten_is_told_of_any_metrics(a: int, b: int, c: int, d: int, share: float) -> None:
    metrics = GlobalMetrics(
        count=a + b + c + d, loss=0.5, accuracy=share, auroc=share, balanced_accuracy=None, confusion=((a, b), (c, d))
    )
    said = reported(metrics)
    told = [cell for row in said.confusion or () for cell in row]
    assert all(cell % 10 == 0 and cell >= 10 for cell in told)
    assert (said.confusion is None) == (min(a, b, c, d) < 10)
    if metrics.count < 10:
        assert said.count == "fewer than 10"
        assert (said.accuracy, said.auroc, said.loss, said.accuracy_interval) == (None,) * 4
    for interval, value in ((said.accuracy_interval, said.accuracy), (said.auroc_interval, said.auroc)):
        if interval is not None and value is not None:
            assert 0 <= interval[0] <= value + 0.0005
            assert value - 0.0005 <= interval[1] <= 1


@given(st.integers(0, 10_000))
def test_a_count_is_told_as_the_next_ten(count: int) -> None:
    told = up_to(count)
    assert told == "none" if count == 0 else int(told.removeprefix("up to ")) - count in range(10)


def test_intervals_are_those_of_the_textbook() -> None:
    """Wilson for 81 of 100; Newcombe's for Hanley and McNeil's own example (`tests/compliance/test_intervals.py`)."""
    metrics = GlobalMetrics(
        count=109, loss=0.1, accuracy=0.81, auroc=0.893, balanced_accuracy=0.8, confusion=((51, 10), (10, 48))
    )
    said = reported(metrics)
    assert said.accuracy_interval == pytest.approx((0.7236, 0.8743), abs=0.001)
    assert said.auroc_interval == pytest.approx((0.813, 0.939), abs=0.001)


def test_files_of_a_cache_are_told_without_their_bytes() -> None:
    assert cells(10, "Removed")[0][1:3] == ["caches", "up to 180"]
    assert "52428800" not in json.dumps(report())


def test_the_number_of_people_who_withdrew_is_told_in_tens() -> None:
    assert cells(10, "Withdrawals")[0][:3] == ["charite", "up to 10", "5 s"]


@pytest.mark.parametrize(("minutes", "said"), [(5, "5 min"), (60 * 5, "5 h")])
def test_the_time_to_effect_is_told_in_words(minutes: int, said: str) -> None:
    from datetime import timedelta

    def later(steps: list[Any]) -> list[Any]:
        found = []
        for step in steps:
            at = getattr(step, "event", None)
            found.append(
                replace(step, time=step.time + timedelta(minutes=minutes))
                if isinstance(at, say.WithdrawalEffective)
                else step
            )
        return found

    assert cells(10, "Withdrawals", build(made_bundle(edit=later)))[0][2] == said


def test_rounds_without_metrics_have_no_figure_and_no_matrix() -> None:
    records = tuple(one.model_copy(update={"metrics": None}) for one in as_it_is().rounds)
    found = build(replace(as_it_is(), rounds=records))
    assert cells(9, "Metrics", found) == cells(9, "Confusion", found) == []
    assert "AUROC over" not in render_html(found)


# --- words -------------------------------------------------------------------------------------------
_CLAIMS = re.compile(r"complian(t|ce)|anonym|certif(?!icat(e|es) and|icates|ication)|guarantees privacy", re.IGNORECASE)
_ALLOWED = (
    "evidence, not certification",
    "compliance/accountant.py",
    "certificate and licence numbers",
    "TLS settings and certificates",
)


def words_of(found: dict[str, Any], bundle: Any) -> dict[str, str]:
    return {
        "json": json.dumps(found, ensure_ascii=False),
        "html": render_html(found),
        "fhir": json.dumps(audit_events(bundle)),
        "record": processing_record(bundle.plan),
        "crosswalk": json.dumps([row.asks for row in rows()]),
    }


def test_no_output_claims_what_only_people_can_say() -> None:
    for found, bundle in ((report(), as_it_is()), (troubled(), as_it_is())):
        for name, text in words_of(found, bundle).items():
            for allowed in _ALLOWED:
                text = text.replace(allowed, "")  # noqa: PLW2901
            claims = _CLAIMS.search(text)
            assert claims is None, (name, text[max(0, claims.start() - 40) : claims.end() + 40])


def test_no_article_of_law_gets_a_verdict() -> None:
    for row in cells(12, "Where to look"):
        assert not {"PASS", "FAIL"} & set(row)


# --- crosswalk ---------------------------------------------------------------------------------------
def test_the_crosswalk_covers_what_it_should_and_names_known_controls() -> None:
    known = {control.id for control in CONTROLS}
    named = {control for row in rows() for control in row.controls}
    assert named <= known
    assert known - named == set()
    gdpr = {row.clause for row in rows() if row.framework == "GDPR"}
    assert gdpr == {"5", "6", "9", "16", "17", "21", "25", "26", "28", "30", "32", "33", "34", "35", "44"}
    hipaa = {row.clause for row in rows() if row.framework == "HIPAA"}
    assert {"164.308", "164.310", "164.316", "164.514", "164.528", "164.404"} < hipaa
    assert {f"164.312({letter})" for letter in "abcde"} < hipaa
    assert {row.clause for row in rows() if row.framework.startswith("AI Act")} == {"10", "11", "12", "13", "14", "15"}
    assert all(row.source.startswith("https://") for row in rows())
    assert "GDPR 17" in clauses_by_control()["RGT-01"]


def test_a_round_that_was_rolled_back_says_why_and_who_was_not_drawn_is_not_absent() -> None:
    """By how many votes, not by whose: nobody knows."""
    contributed = next(one for one in as_it_is().rounds if one.round == 3).contributing
    silo, rest = contributed[0], contributed[1:]
    bundle = made_bundle(edit=instead(say.RoundClosed, COORDINATOR, 3, contributing=rest))
    why: dict[int, dict[str, Any]] = {
        1: {"rolled_back": RolledBack.VOTED_DOWN, "vote": Vote(against=2, voted=3, rise=0.5)},
        2: {"rolled_back": RolledBack.TOO_LONG, "vote": None},
        3: {"contributing": rest, "not_drawn": (silo,)},
    }
    told = tuple(one.model_copy(update=why.get(one.round, {})) for one in bundle.rounds)
    changed = build(replace(bundle, rounds=told))
    models = [row for part in range(1, 13) for row in tables_of(part, "Models by round", changed)]
    assert [row[3] for row in models[:3]] == ["VOTED_DOWN, 2 of 3 votes against", "TOO_LONG", None]
    (figure,) = [one for part in changed["sections"] for one in part["figures"] if one["kind"] == "cohort"]
    (row,) = [row for row in figure["data"]["rows"] if row["name"] == silo]
    assert row["cells"][2] == "not drawn"
    assert "not drawn" not in [cell for row in as_it_is_cohort() for cell in row["cells"]]


def tables_of(part: int, title: str, of: dict[str, Any]) -> list[list[Any]]:
    return [row for table in section(part, of)["tables"] if table["title"] == title for row in table["rows"]]


def as_it_is_cohort() -> list[dict[str, Any]]:
    (figure,) = [one for part in report()["sections"] for one in part["figures"] if one["kind"] == "cohort"]
    rows: list[dict[str, Any]] = figure["data"]["rows"]
    return rows
