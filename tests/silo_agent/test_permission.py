"""The policy at work: nothing is computed or leaves that it does not allow at that moment, and the log says so."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from silo_agent_tests_benches import SCANNED, approved, bench_of
from silo_agent_tests_one_hospital import MODEL, private

from boundary.identity import SigningIdentity
from boundary.messages import BlobRef, PlanProposed
from boundary.plan import parse_plan
from compliance.events import GateRefused, GatesPassed, PolicyAdopted, TrainingStarted, WorkPaused, WorkResumed
from compliance.trail import read_leaf
from silo_agent.errors import ContractNotMet
from silo_agent.permission import Permission, forecast, pause
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.gates import GATES
from silo_agent.steward import approve, dossier, lines
from silo_agent.workbench import Workbench

NAMES = tuple(name for name, _ in GATES)
DONE = ("say", {"event": "done", "result": {"parameters": 7, "metrics": 0}})
TRAINED = [("vector", [4, 7]), DONE]


def trail(site: Any) -> list[Any]:
    return [read_leaf(leaf).event for leaf in site.journal.trail()]


def codes(site: Any) -> list[str]:
    return [getattr(said, "code", said.kind) for said in site.outbox() if said.kind in {"ready", "refused"}]


def starts_have_their_gates(site: Any) -> None:
    """The law: before each start of a work, and after the one before it, all gates passed under the policy in force.

    As whoever verifies the evidence holds it (`compliance.gates`).
    """
    passed: GatesPassed | None = None
    policy = ""
    for event in trail(site):
        match event:
            case PolicyAdopted():
                policy, passed = event.policy, None
            case GatesPassed():
                assert event.policy == policy
                passed = event
            case TrainingStarted():
                assert passed is not None
                about = (event.study, event.round, event.phase, event.order)
                assert (passed.study, passed.round, passed.phase, passed.order, passed.gates) == (*about, NAMES)
                passed = None


# --- every start has its gates -----------------------------------------------------------------------
def test_work_begins_when_every_gate_has_passed_and_is_logged(site: Any, stub_child: Any, impatient: Any) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()
    bench_of(site)(stub_child(train=TRAINED))
    assert codes(site) == ["ready"]
    (passed,) = [event for event in trail(site) if isinstance(event, GatesPassed)]
    assert passed.gates == NAMES
    starts_have_their_gates(site)


def test_gates_and_start_are_in_the_log_together_or_not_at_all(
    site: Any, stub_child: Any, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them nobody else's entry could come: another policy, which was not asked."""
    impatient(site.folder)
    approved(site)
    site.ordered()

    def full_disk(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("silo_agent.workbench.TrainingStarted", full_disk)
    bench_of(site)(stub_child(train=TRAINED))
    assert codes(site) == ["DISK_FULL"]
    assert not [event for event in trail(site) if isinstance(event, GatesPassed | TrainingStarted)]


def test_a_policy_that_refuses_at_the_last_moment_has_its_entry(
    site: Any, stub_child: Any, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was put into force just before the start, by another process, which was killed before it said so."""
    impatient(site.folder)
    approved(site)
    site.ordered()
    whole = Permission.begin

    def begin(self: Permission, asked: Any) -> None:
        with monkeypatch.context() as quietly:
            quietly.setattr(Permission, "in_force", lambda _self: None)
            site.forbid("study")
        whole(self, asked)

    monkeypatch.setattr(Permission, "begin", begin)
    bench_of(site)(stub_child(train=TRAINED))
    last = trail(site)[-3:]
    assert [type(event) for event in last[:2]] == [PolicyAdopted, GateRefused]
    assert last[1].policy == last[0].policy
    assert codes(site) == ["STUDY_NOT_ALLOWED"]


def names_somebody(site: Any) -> None:
    (site.root / "excluded.hmac").write_text("Ola Nordmann\n")


FORBIDS: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "the study is not named any more": (lambda s: s.forbid("study"), "study", "STUDY_NOT_ALLOWED"),
    "another plan of the study is": (lambda s: s.forbid("plan"), "study", "PLAN_NOT_ALLOWED"),
    "its papers have expired": (lambda s: s.forbid("papers"), "study", "STUDY_EXPIRED"),
    "the policy has expired": (lambda s: s.forbid("days"), "validity", "POLICY_EXPIRED"),
    "it is never open": (lambda s: s.forbid("hours"), "hours", "OUT_OF_HOURS"),
    "the modality is another": (lambda s: s.forbid("modality"), "dataset", "MODALITY_NOT_ALLOWED"),
    "fewer images per patient": (lambda s: s.forbid("images"), "dataset", "IMAGES_PER_PATIENT"),
    "the list is not there": (lambda s: (s.root / "excluded.hmac").unlink(), "exclusions", "EXCLUSIONS_MISSING"),
    "the list has a name in it": (names_somebody, "exclusions", "EXCLUSIONS_MISSING"),
    "the list is old": (lambda s: age(s, 24 * 400), "exclusions", "EXCLUSIONS_STALE"),
    "too few patients": (lambda s: s.forbid("patients"), "cohort", "DATASET_TOO_SMALL"),
    "more hospitals": (lambda s: s.allow(least=5), "cohort", "COHORT_TOO_SMALL"),
    "a guarantee": (lambda s: s.allow(required=True), "budget", "GUARANTEE_REQUIRED"),
    "no training loss": (lambda s: s.forbid("metrics"), "egress", "METRIC_NOT_ALLOWED"),
    "larger cells": (lambda s: s.forbid("cells"), "egress", "CELL_TOO_SMALL"),
    "less egress": (lambda s: s.forbid("egress"), "egress", "EGRESS_TOO_LARGE"),
    "no time left": (lambda s: s.permission().worked(s.kept(), 25 * 3600.0), "resources", "ROUND_TOO_LONG"),
}  # fmt: skip


def age(site: Any, hours: float) -> None:
    written = (site.now - timedelta(hours=hours)).timestamp()
    os.utime(site.root / "excluded.hmac", (written, written))


@pytest.mark.parametrize(("forbid", "gate", "code"), FORBIDS.values(), ids=FORBIDS)
def test_what_the_policy_stops_allowing_is_not_begun(
    site: Any, stub_child: Any, impatient: Any, tmp_path: Path,
    forbid: Callable[[Any], object], gate: str, code: str,
) -> None:  # fmt: skip
    impatient(site.folder)
    approved(site)
    site.ordered()
    forbid(site)
    bench_of(site)(stub_child(train=[("record", str(tmp_path / "asked")), *TRAINED]))
    assert not (tmp_path / "asked").exists()
    refusals = [event for event in trail(site) if isinstance(event, GateRefused)]
    if code == "GUARANTEE_REQUIRED":  # said before any gate is asked: this plan cannot be carried out here
        assert (codes(site), refusals) == (["GUARANTEE_REQUIRED"], [])
    else:
        assert [(one.gate, one.code) for one in refusals] == [(gate, code)]
        assert len(codes(site)) == 1
        told = {"DATASET_TOO_SMALL": "CONTRACT_NOT_MET"}.get(code, code)
        assert codes(site) == [told], "counts of patients are not told, nor bounds of them"
    assert not any(isinstance(event, TrainingStarted) for event in trail(site))


def test_a_policy_that_was_changed_by_one_hand_stops_everything(site: Any, stub_child: Any, impatient: Any) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()
    path = site.root / "policy.toml"
    path.write_text(path.read_text().replace('"CT"', '"MR", "CT"'))
    bench_of(site)(stub_child(train=TRAINED))
    assert codes(site) == ["POLICY_NOT_IN_FORCE"]
    assert trail(site)[-2].gate == "signature"


def test_what_was_computed_does_not_leave_when_the_study_is_taken_out_meanwhile(site: Any) -> None:
    site.approve()
    kept = site.ready()
    site.forbid("study")
    site.hear(site.closing(kept))
    assert codes(site) == ["ready", "STUDY_NOT_ALLOWED"]
    assert "secrets-shared" not in site.events()
    assert "gate-refused" in site.events()


@st.composite
def lives(draw: st.DrawFn) -> list[str]:
    steps = ["round", "again", "hours", "open", "study", "back", "restart", "pause", "resume", "night"]
    return draw(st.lists(st.sampled_from(steps), min_size=1, max_size=7))


@given(life=lives())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_trains_without_its_gates(life: list[str], make_site: Any, stub_child: Any, impatient: Any) -> None:
    site = make_site()
    impatient(site.folder)
    approved(site)
    number, attempt = 1, 0
    for step in life:
        match step:
            case "round" | "again":
                number, attempt = (number, attempt + 1) if step == "again" else (min(3, number + 1), 1)
                site.ordered(number, attempt=attempt)
                bench_of(site)(stub_child(train=TRAINED))
            case "hours" | "study":
                site.forbid(step)
            case "open" | "back":
                site.allow()
            case "restart":
                site.restart()
            case "night":
                site.now += timedelta(minutes=7)
            case _:
                pause(site.journal, is_paused=step == "pause", now=site.now)
        starts_have_their_gates(site)
    started = [event for event in trail(site) if isinstance(event, TrainingStarted)]
    assert len(started) == len([event for event in trail(site) if isinstance(event, GatesPassed)])


# --- while it runs -----------------------------------------------------------------------------------
def training(site: Any, stub_child: Any, act: Callable[[Workbench], Any], script: list[Any]) -> None:
    async def both(table: Workbench) -> Any:
        working = asyncio.create_task(table.do_next())
        while table.activity is None or not table.activity.steps:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)
        await act(table)
        return await working

    bench_of(site)(stub_child(train=script), both)


PROGRESS = ("say", {"event": "progress", "step": 1, "steps": 9})


def test_a_tightening_ends_work_that_is_under_way(site: Any, stub_child: Any, impatient: Any) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()

    async def act(table: Workbench) -> None:
        await table.look_at_policy()
        assert table._asked is not None, "nothing has changed yet"
        site.forbid("study")
        await table.look_at_policy()

    training(site, stub_child, act, [PROGRESS, ("obey", None)])
    assert codes(site) == ["STUDY_NOT_ALLOWED"]
    assert site.events()[-2:] == ["gate-refused", "work-refused"]


@pytest.mark.parametrize("why", ["hours", "steward"])
def test_work_holds_still_when_it_is_time_and_goes_on_where_it_was(
    site: Any, stub_child: Any, impatient: Any, why: str, tmp_path: Path
) -> None:
    """A private training that was ended would be paid for twice."""
    impatient(site.folder)
    approved(site)
    site.ordered()

    async def act(table: Workbench) -> None:
        if why == "hours":
            site.forbid("hours")
        else:
            pause(site.journal, is_paused=True, now=site.now)
        for _ in range(2):
            await table.look_at_policy()
        if why == "hours":
            site.allow()
        else:
            pause(site.journal, is_paused=False, now=site.now)
        await table.look_at_policy()

    heard = [("hear", str(tmp_path / "heard")), ("hear", str(tmp_path / "heard")), *TRAINED]
    training(site, stub_child, act, [PROGRESS, *heard])
    assert (tmp_path / "heard").read_text().split() == ["pause", "resume"]
    said = [event for event in trail(site) if isinstance(event, WorkPaused | WorkResumed)]
    code = "OUT_OF_HOURS" if why == "hours" else "PAUSED_BY_STEWARD"
    assert [getattr(event, "code", "") for event in said] == [code, ""]
    assert codes(site) == ["ready"]


def test_an_order_waits_for_the_hours_if_they_begin_before_it_is_due(
    site: Any, stub_child: Any, impatient: Any
) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered(due=site.now + timedelta(hours=2))
    for opens, waits in ((timedelta(hours=1), True), (timedelta(hours=5), False)):
        at = site.now + opens
        site.allow(windows=(f"{at:%a} {at:%H:%M}-{at + timedelta(minutes=30):%H:%M}",))
        bench_of(site)(stub_child(train=TRAINED))
        assert codes(site) == ([] if waits else ["OUT_OF_HOURS"])


def test_while_it_is_paused_nothing_is_begun(site: Any, stub_child: Any, impatient: Any) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()
    assert pause(site.journal, is_paused=True, now=site.now)
    assert not pause(site.journal, is_paused=True, now=site.now), "said once"
    assert bench_of(site)(stub_child(train=TRAINED)) is False
    pause(site.journal, is_paused=False, now=site.now)
    assert bench_of(site)(stub_child(train=TRAINED)) is True
    assert codes(site) == ["ready"]


def test_a_pause_holds_a_scan_too(
    site: Any, stub_child: Any, impatient: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "silo_agent.workbench")
    impatient(site.folder)
    site.propose()

    async def act(table: Workbench) -> None:
        work = asyncio.create_task(table.do_next())
        while table.worker.pid is None or table.current is None:  # noqa: ASYNC110 - it is another task that begins
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        for is_paused in (True, False):
            pause(site.journal, is_paused=is_paused, now=site.now)
            await table.look_at_policy()
        await work

    heard = [("hear", str(tmp_path / "heard")), ("hear", str(tmp_path / "heard"))]
    bench_of(site)(stub_child(scan=[PROGRESS, *heard, SCANNED]), act)
    assert (tmp_path / "heard").read_text().split() == ["pause", "resume"]
    said = [record.message for record in caplog.records if record.message.startswith("work ")]
    assert said == ["work holds still: PAUSED_BY_STEWARD", "work goes on"], "who reads the log sees why it stands"


def test_who_pauses_while_the_model_is_fetched_has_nothing_begun(
    site: Any, stub_child: Any, impatient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()

    async def model(self: Workbench, *_: Any) -> Path:
        pause(site.journal, is_paused=True, now=site.now)
        return site.root / "model"

    monkeypatch.setattr(Workbench, "_fetched", model)
    bench_of(site)(stub_child(train=TRAINED))
    assert codes(site) == []
    assert not [event for event in trail(site) if isinstance(event, GatesPassed | TrainingStarted)]


def test_the_archive_is_not_read_for_a_plan_of_a_modality_that_the_policy_does_not_name(
    site: Any, stub_child: Any, impatient: Any
) -> None:
    impatient(site.folder)
    site.forbid("modality")
    site.hear(PlanProposed(study=site.study, plan=site.plan))
    bench_of(site)(stub_child(scan=[("exit", 9)]))
    kept = site.journal.plan(site.study)
    assert kept.state == "unsuitable"
    assert "MODALITY_NOT_ALLOWED" in kept.reason


# --- the steward -------------------------------------------------------------------------------------
def test_a_plan_that_the_policy_does_not_name_cannot_be_approved(site: Any) -> None:
    site.propose()
    site.scanned()
    site.forbid("study")
    with pytest.raises(ContractNotMet, match=r"STUDY_NOT_ALLOWED.*policy allow"):
        approve(site.journal, site.folder, site.outbound, site.study, "data_steward", "a test")
    said = dict(lines(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)))
    assert said["Policy"].startswith("does NOT allow it: STUDY_NOT_ALLOWED")
    site.allow()
    said = dict(lines(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)))
    assert said["Policy"] == "allows exactly this plan"


def test_all_that_stands_against_a_plan_is_said_at_once(site: Any) -> None:
    site.propose()
    site.forbid("study")
    site.forbid("modality", "metrics", "study")
    said = dict(lines(dossier(site.journal, site.folder, site.journal.plan(site.study), site.now)))["Policy"]
    assert [code in said for code in ("STUDY_NOT_ALLOWED", "MODALITY_NOT_ALLOWED", "METRIC_NOT_ALLOWED")] == [True] * 3


def test_a_segmentation_tells_dice_and_a_policy_without_it_refuses(site: Any, make_plan_for: Any) -> None:
    site.propose()
    labels, series = {"classes": ["background", "liver"]}, {"modality": "CT"}
    plan = make_plan_for(site.cards, task="segmentation", labels=labels, dataset__series=series)
    force = site.permission().in_force()
    told = {why.reason for why in forecast(plan, force, None, site.now)}
    assert PolicyCode.METRIC_NOT_ALLOWED not in told
    release = force.policy.release.model_copy(update={"metrics": ("loss", "accuracy", "auroc")})
    without = replace(force, policy=force.policy.model_copy(update={"release": release}))
    (refused,) = [why for why in forecast(plan, without, None, site.now) if why.reason is PolicyCode.METRIC_NOT_ALLOWED]
    assert "dice" in refused.detail


def test_too_little_noise_for_the_policy_is_said_before_anybody_approves(private_site: Any) -> None:
    """It is the same in every round: all of them would be refused."""
    force = private_site.permission().in_force()

    def refused(least: float) -> bool:
        privacy = force.policy.privacy.model_copy(update={"min_noise_multiplier": least})
        strict = replace(force, policy=force.policy.model_copy(update={"privacy": privacy}))
        told = forecast(private_site.plan, strict, None, private_site.now)
        return PolicyCode.NOISE_TOO_LOW in {why.reason for why in told}

    assert refused(50.0)
    assert not refused(0.1)


def test_a_group_smaller_than_the_policys_sums_is_refused_before_anything_is_spent(site: Any) -> None:
    """Twelve hospitals, four of them summed with us: what leaves is a sum over four."""
    site.propose()
    force, value = site.permission().in_force(), site.plan.model_dump(mode="json")
    ours = [hospital for hospital in value["hospitals"] if hospital["silo"] == force.policy.site]
    others = [{"silo": f"x{n}", "signing_key": SigningIdentity.generate().public.text} for n in range(11)]

    def refused(groups: tuple[int, ...], least: int) -> bool:
        hospitals = [one | {"group": group} for one, group in zip(ours + others, groups, strict=True)]
        release = force.policy.release.model_copy(update={"min_parties_in_sum": least})
        strict = replace(force, policy=force.policy.model_copy(update={"release": release}))
        told = forecast(parse_plan(value | {"hospitals": hospitals}), strict, None, site.now)
        return PolicyCode.COHORT_TOO_SMALL in {why.reason for why in told}

    by_four = (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
    assert refused(by_four, least=5)
    assert not refused(by_four, least=4)


@pytest.mark.parametrize("which", ["model", "base", "control", "before"])
def test_nothing_larger_than_the_policy_allows_is_fetched(
    site: Any, stub_child: Any, impatient: Any, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    impatient(site.folder)
    approved(site)
    site.ordered()
    too_large = BlobRef(
        digest="sha256:" + "ab" * 32, size=10**6 * site.permission().in_force().policy.network.max_model_mb + 1
    )
    ask = Permission.ask
    monkeypatch.setattr(
        Permission, "ask",
        lambda self, order, message, *rest: ask(self, order, message.model_copy(update={which: too_large}), *rest),
    )  # fmt: skip
    monkeypatch.setattr(Workbench, "_fetched", None)
    bench_of(site)(stub_child(train=TRAINED))
    assert codes(site) == ["MODEL_TOO_LARGE"]


# --- which policy ------------------------------------------------------------------------------------
def test_a_policy_is_in_the_trail_before_it_is_asked_the_first_time(site: Any) -> None:
    before = len([event for event in trail(site) if isinstance(event, PolicyAdopted)])
    for _ in range(3):
        site.permission().in_force()
    assert len([event for event in trail(site) if isinstance(event, PolicyAdopted)]) == before
    site.allow(least=4)
    newest = [event for event in trail(site) if isinstance(event, PolicyAdopted)][-1]
    assert (newest.number, newest.how) == (before + 1, "signed")
    assert newest.policy == site.permission().in_force().digest


def test_an_older_policy_with_all_its_signatures_does_not_come_back(site: Any) -> None:
    names = ("policy.toml", "policy.sig", "approvers.json")
    before = {name: (site.root / name).read_bytes() for name in names}
    site.allow(least=4)
    for name, data in before.items():
        (site.root / name).write_bytes(data)
    with pytest.raises(PolicyRefused, match="was replaced by number"):
        site.permission().in_force()


def test_the_caps_of_all_studies_are_told_as_a_spent_budget(make_site: Any, stub_child: Any, impatient: Any) -> None:
    site = make_site(most_patients=100, changes=private())
    impatient(site.folder)
    approved(site)
    site.allow(study_epsilon=0.01)
    site.ordered(model=MODEL)
    bench_of(site)(stub_child(train=TRAINED))
    refused = next(event for event in trail(site) if isinstance(event, GateRefused))
    assert (refused.gate, refused.code, codes(site)) == ("budget", "STUDY_EPSILON", ["BUDGET_SPENT"])
    assert json.loads(json.dumps(site.outbox()[-1].model_dump(mode="json")))["code"] == "BUDGET_SPENT"
