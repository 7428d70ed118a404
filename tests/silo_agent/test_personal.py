"""What a study leaves a hospital for itself: kept with its result, shown to its people, told nobody else."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from silo_agent_tests_benches import Relay, approved, codes, table_of
from silo_agent_tests_one_hospital import MODEL, NEXT_MODEL, OTHERS, SILO
from typer.testing import CliRunner

from boundary.errors import NotApproved, OutOfTurn
from boundary.layout import COMPARED
from boundary.messages import StudyClosed, TrailAsked, TrailShown
from boundary.plan import StudyPlan, parse_plan
from boundary.protocol import Step
from compliance.events import BudgetCommitted, BudgetReserved, DataPurged
from compliance.trail import read_leaf
from silo_agent.cli import app
from silo_agent.cost import cost_here
from silo_agent.inbound import check_order
from silo_agent.personal import find_own, lines, own_row, own_rows, remove_own, sentence
from silo_agent.policy.files import load_policy
from silo_agent.results import DITTO, ROW, carried
from silo_agent.results import MODEL as WEIGHTS
from silo_agent.status import print_status
from silo_agent.steward import dossier
from silo_agent.steward import lines as plan_lines

SECRET = 0.8137562
WORTH: dict[str, Any] = {
    "model": "densenet-small@1", "method": "fine-tune", "classes": ["0", "1"],
    "normalisation": {"mean": 0.25, "deviation": 0.125}, "figure": "AUROC", "patients": 20,
    "figures": {"local": [SECRET, 0.7, 0.9], "federated": [0.9, 0.85, 0.95], "personal": [0.91, 0.86, 0.96]},
    "differences": [["federated", "local", [0.9 - SECRET, 0.01, 0.2], "better"],
                    ["personal", "federated", [0.01, None, None], None]],
}  # fmt: skip


class Child:
    """In the place of the worker: leaves what the real one leaves after the last round."""

    pid = None

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def run(self, command: dict[str, Any], _on_progress: object) -> Any:
        self.asked.append(command)
        if command["do"] != "personalise":
            return {}
        out = Path(command["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        np.array([1.0, 0, 0, 0.9 - SECRET] + [0.0] * 8).tofile(out)
        out.with_suffix(WEIGHTS).write_bytes(b"weights that are our own")
        out.with_suffix(ROW).write_text(json.dumps(WORTH))
        return {"parameters": 7, "metrics": 0}


@pytest.fixture
def personal_site(make_site: Any, impatient: Any) -> Any:
    """One round is the study, and it is over."""
    site = make_site(changes={"training__rounds": 1, "personalisation": {"epochs": 2}})
    impatient(site.folder)
    approved(site)
    site.ordered(1)
    site.hear(site.committed(1, contributing=OTHERS))
    return site


def personalised(site: Any, attempt: int = 1) -> Child:
    child = Child()
    site.ordered(2, "personalise", attempt, model=NEXT_MODEL)
    asyncio.run(table_of(site, child, Relay()).do_next())  # type: ignore[arg-type]
    return child


# --- which orders -------------------------------------------------------------------------------------
def test_it_is_ordered_once_after_the_last_round_with_the_model_that_came_out(personal_site: Any) -> None:
    site = personal_site
    kept = site.journal.plan(site.study)

    def judge(number: int, committed: int, final: str | None) -> StudyPlan:
        order = site.order(number, "personalise", model=NEXT_MODEL)
        return check_order(order, kept, [], site.own(), committed=committed, final=final)

    assert judge(2, 1, NEXT_MODEL.digest) == site.plan
    for number, committed in ((1, 0), (2, 0), (3, 1)):
        with pytest.raises(NotApproved, match="once, after round 1"):
            judge(number, committed, NEXT_MODEL.digest)
    for final in (MODEL.digest, None):
        with pytest.raises(OutOfTurn, match="another model"):
            judge(2, 1, final)
    with pytest.raises(NotApproved, match="round 2 of a plan for 1 rounds"):
        check_order(site.order(2), kept, [], site.own(), committed=1)


def test_a_plan_that_does_not_ask_for_it_has_none(site: Any) -> None:
    site.approve()
    order = site.order(4, "personalise", model=NEXT_MODEL)
    with pytest.raises(NotApproved, match="has no personalisation"):
        check_order(order, site.journal.plan(site.study), [], site.own(), committed=3, final=NEXT_MODEL.digest)


def test_a_policy_may_keep_comparisons_at_home(personal_site: Any) -> None:
    site = personal_site
    site._signed["release"]["metrics"].remove("comparison")
    site._sign(site._signed)
    child = personalised(site)
    assert codes(site)[-1] == "METRIC_NOT_ALLOWED"
    assert child.asked == []
    file = dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)
    assert any("does not let out comparison" in said for said in file.refused), "the steward reads it before"


# --- what is kept, what leaves -------------------------------------------------------------------------
def test_the_model_and_its_figures_are_kept_apart_and_outlive_the_study(personal_site: Any) -> None:
    site = personal_site
    child = personalised(site)
    (command,) = child.asked
    assert command["personal"] == str(carried(site.folder, site.study, DITTO))
    own = own_row(site.folder, site.study)
    assert own is not None
    assert own.model.read_bytes() == b"weights that are our own"
    assert own.row is not None
    assert (own.row.model_dump(mode="json"), own.federated, own.label) == (WORTH, NEXT_MODEL.digest, "ct-contrast@1")
    assert {path.stat().st_mode & 0o077 for path in (own.model.parent, own.model.with_name("row.json"))} == {0}
    site.hear(StudyClosed(study=site.study, code="ALL_ROUNDS_DONE"))
    assert not (site.folder.work / site.study).exists()
    assert own_rows(site.folder) == [own]


def test_nothing_of_the_row_leaves_and_the_log_goes_on_behind_the_sum(personal_site: Any) -> None:
    """Through all steps of the masked sum: the numbers are under masks, the row is in no message at all."""
    site = personal_site
    personalised(site)
    order = site.kept(2, "personalise")
    for step in (site.closing, site.routing, site.naming):
        site.hear(step(order))
    said = [message for message in site.outbox() if isinstance(message, TrailShown)]
    (masked,) = (site.folder.work / site.study).glob("*/*.masked")
    assert masked.stat().st_size == 96
    assert np.array([0.9 - SECRET]).tobytes() not in masked.read_bytes()
    site.hear(site.agreement(order))
    assert site.kept(2, "personalise").step is Step.REVEALED
    site.hear(TrailAsked(study=site.study, round=2))
    shown = [message for message in site.outbox() if isinstance(message, TrailShown)]
    assert [message.round for message in shown[len(said) :]] == [2]
    left = b"".join(message.model_dump_json().encode() for message in site.outbox())
    entries = b"".join(site.journal.trail())
    for number in (SECRET, *(value for values in WORTH["figures"].values() for value in values)):
        assert str(number).encode() not in left + entries
    assert b"our own" not in left + entries


def test_a_second_attempt_is_answered_with_what_was_computed(personal_site: Any) -> None:
    personalised(personal_site)
    again = personalised(personal_site, attempt=2)
    assert again.asked == []
    assert personal_site.kept(2, "personalise", 2).step is Step.READY


def test_what_was_unmasked_among_others_is_refused_and_not_computed_anew(personal_site: Any) -> None:
    site = personal_site
    personalised(site)
    order = site.kept(2, "personalise")
    for step in (site.closing, site.routing, site.naming, site.agreement):
        site.hear(step(order))
    child = personalised(site, attempt=2)
    second = site.kept(2, "personalise", 2)
    fewer = tuple(name for name in (SILO, *OTHERS) if name != OTHERS[0])
    for step in (site.closing, site.routing):
        site.hear(step(second))
    site.hear(site.naming(second, surviving=fewer))
    assert codes(site)[-1] == "RESULT_SPENT"
    assert child.asked == personalised(site, attempt=3).asked == []


def test_somebody_who_withdraws_in_between_has_it_done_again(personal_site: Any, monkeypatch: Any) -> None:
    """Between the look at who has withdrawn and the keeping, in a process of their own."""
    site, counts = personal_site, iter([0, 0, 0, 1, 1, 1, 1])
    monkeypatch.setattr(type(site.journal.private), "count_of", lambda _self, _study: next(counts))
    personalised(site)
    assert own_rows(site.folder) == []
    assert site.kept(2, "personalise").step is Step.WORKING, "the next turn does it without them"


@pytest.mark.parametrize("is_there_room", [True, False])
def test_with_a_guarantee_it_is_paid_for_before_it_is_trained(
    make_site: Any, impatient: Any, is_there_room: bool
) -> None:
    guarantee = {"mechanism": "patient-dp", "noise_multiplier": 2.0, "patients_per_step": 10, "steps": 5}
    site = make_site(
        changes={"privacy": guarantee, "training": {"rounds": 1, "weighting": "equal"}, "personalisation": {}},
        most_patients=100, policy={} if is_there_room else {"study_epsilon": 0.1},
    )  # fmt: skip
    impatient(site.folder)
    approved(site)
    site.hear(site.committed(1, contributing=OTHERS))
    child = personalised(site)
    asked = [command["do"] for command in child.asked]
    spent = [one for one in map(event_of, site.journal.trail()) if isinstance(one, BudgetReserved | BudgetCommitted)]
    if not is_there_room:
        assert (asked, spent, codes(site)[-1]) == ([], [], "BUDGET_SPENT")
        return
    assert asked == ["check", "personalise"]
    assert child.asked[-1]["private"]["steps"] == 5
    assert [(type(one), one.round) for one in spent] == [(BudgetReserved, 2), (BudgetCommitted, 2)]
    assert spent[0].epsilon_study > 0
    assert personalised(site, attempt=2).asked == [], "and once"


def event_of(leaf: bytes) -> Any:
    return read_leaf(leaf).event


# --- in words ------------------------------------------------------------------------------------------
def test_the_hospitals_own_people_read_their_row(personal_site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site = personal_site
    personalised(site)
    own = find_own(site.folder, "ct-contrast@1")
    assert sentence(own) == "AUROC 0.814 alone, 0.900 federated, 0.910 own"
    said = "\n".join(text for _, text in lines(own))
    assert "federated less alone: +0.086 (+0.010 to +0.200), better" in said
    assert "own less federated: +0.010, nobody can tell: too few held-back patients" in said
    assert "divided by 0.125" in said
    assert len(WORTH["differences"]) < len(COMPARED)
    print_status(site.journal, site.folder, site.now)
    assert sentence(own) in capsys.readouterr().out
    run = CliRunner()
    listed = run.invoke(app, ["personal", "--state", str(site.folder.root)])
    assert sentence(own) in listed.output
    shown = run.invoke(app, ["personal", site.study, "--state", str(site.folder.root)])
    assert "densenet-small@1, fine-tuned from the federated model" in " ".join(shown.output.split())
    assert run.invoke(app, ["personal", "--remove", "--state", str(site.folder.root)]).exit_code != 0
    removed = run.invoke(app, ["personal", site.study, "--remove", "--state", str(site.folder.root)])
    assert removed.exit_code == 0, removed.output
    assert own_rows(site.folder) == []
    events = [read_leaf(leaf).event for leaf in site.journal.trail()]
    assert [(one.what, one.files) for one in events if isinstance(one, DataPurged)] == [("results", 2)]
    assert "no study has left" in run.invoke(app, ["personal", "--state", str(site.folder.root)]).output


KEPT = {"label": "ct-contrast@1", "federated": NEXT_MODEL.digest, "row": WORTH}
DAMAGED: dict[str, bytes] = {
    "half of it": json.dumps(KEPT).encode()[:90],
    "nothing": b"",
    "another kind of value": b"[1]",
    "without the row": json.dumps({"label": "x", "federated": "y"}).encode(),
    "a row without figures": json.dumps(KEPT | {"row": {"patients": 3}}).encode(),
    "a figure that is a word": json.dumps(
        KEPT | {"row": WORTH | {"figures": {"local": ["high", None, None]}}}
    ).encode(),
    "a figure without its interval": json.dumps(KEPT | {"row": WORTH | {"figures": {"local": [0.5]}}}).encode(),
    "figures of a model that nobody knows": json.dumps(
        KEPT | {"row": WORTH | {"figures": {"x": [0.5, 0, 1]}}}
    ).encode(),
    "a method that nobody knows": json.dumps(KEPT | {"row": WORTH | {"method": "magic"}}).encode(),
    "no UTF-8": b"\xff\xfe",
}


def test_figures_that_cannot_be_read_are_said_to_be_and_can_be_removed(
    site: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = site.folder.personal / site.study
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"weights")
    assert own_rows(site.folder) == [], "nobody knows what these weights are"
    (place / "row.json").write_text(json.dumps(KEPT))
    assert [own.row is None for own in own_rows(site.folder)] == [False]
    for why, content in DAMAGED.items():
        (place / "row.json").write_bytes(content)
        assert [(own.study, own.row) for own in own_rows(site.folder)] == [(site.study, None)], why
    own = find_own(site.folder, site.study)
    assert sentence(own) == "its figures cannot be read any more: row.json is damaged"
    assert any("the weights are at" in text for _, text in lines(own))
    print_status(site.journal, site.folder, site.now)
    assert "row.json is damaged" in " ".join(capsys.readouterr().out.split())
    remove_own(site.journal, site.folder, own, site.now)
    assert own_rows(site.folder) == []


PLANS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fine-tuning": (
        {"personalisation": {"parameters": ["class_layers.*"], "epochs": 2}},
        ["(parameters called class_layers.*) is fine-tuned from the last federated model, 2 epoch(s)",
         "another is trained here alone", "whether the one trained alone, the federated or our own model is better"],
    ),
    "ditto": (
        {"personalisation": {"method": "ditto", "strength": 0.5}},
        ["is trained beside each round, 1 epoch(s), pulled to the federated one with 0.5 (Ditto)"],
    ),
    "with a guarantee": (
        {"personalisation": {}, "privacy": {"mechanism": "patient-dp", "epsilon": 4.0}, "training__weighting": "equal"},
        ["for as much of the budget; none is trained alone", "All 3 rounds and the fine-tuning after them together"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), PLANS.values(), ids=PLANS)
def test_the_steward_reads_what_is_done_for_ourselves_and_what_of_it_leaves(
    make_site: Any, changes: dict[str, Any], told: list[str]
) -> None:
    site = make_site(changes=changes, most_patients=100 if "privacy" in changes else None)
    site.propose()
    site.scanned()
    said = " ".join(
        text for _, text in plan_lines(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now))
    )
    for one in told:
        assert one in said
    assert "our own model and how it does on our patients" in said


def test_the_budget_of_a_study_has_room_for_the_fine_tuning(make_site: Any) -> None:
    """One more round's steps: with an epsilon for the whole study there is more noise in each."""
    privacy = {"privacy": {"mechanism": "patient-dp", "epsilon": 2.0}, "training__weighting": "equal"}
    costs = []
    for changes in ({}, {"personalisation": {}}):
        site = make_site(changes=privacy | changes, most_patients=100)
        site.propose()
        costs.append(cost_here(site.plan, site.study, load_policy(site.root).policy, site.journal, site.folder))
    plain, personal = costs
    assert plain is not None
    assert personal is not None
    assert (plain.terms.rounds, personal.terms.rounds) == (3, 4)
    assert personal.terms.noise_multiplier > plain.terms.noise_multiplier
    assert plain.whole == pytest.approx(personal.whole, rel=0.02)
    assert personal.whole <= 2.0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ditto with a guarantee": (
        {"personalisation": {"method": "ditto"}, "privacy": {"mechanism": "patient-dp", "epsilon": 4.0},
         "training": {"rounds": 3, "weighting": "equal"}},
        "ditto trains twice in each round",
    ),
    "ditto where something stays home": (
        {"personalisation": {"method": "ditto"}, "model": {"name": "densenet-small", "version": 1, "home": ["*norm*"]}},
        "a hospital's own already",
    ),
    "nothing to train": ({"personalisation": {"parameters": []}}, "nothing to train"),
    "a plan that trains nothing": (
        {"personalisation": {}, "training": {"rounds": 0}, "evaluation": {"models": [MODEL.digest]}},
        "there is no model to go on from",
    ),
    "no round left": ({"personalisation": {}, "training": {"rounds": 10_000}}, "at most 9999"),
    "an unknown key": ({"personalisation": {"lambda": 1.0}}, "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), REFUSED.values(), ids=REFUSED)
def test_combinations_that_make_no_sense_are_refused_with_the_fix(site: Any, changes: dict[str, Any], why: str) -> None:
    from boundary.errors import InvalidPlan

    with pytest.raises(InvalidPlan, match=why):
        parse_plan(site.plan.model_dump(mode="json") | changes)
