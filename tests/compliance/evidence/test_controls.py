"""Every control reaches every verdict it claims, and what is not shown is never a pass."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boundary.checkpoint import Checkpoint
from boundary.messages import Phase
from boundary.names import COORDINATOR
from boundary.receipt import Receipt
from compliance import events as say
from compliance.bundle import Bundle, LogCopy, SignedReceipt
from compliance.evidence.controls import CONTROLS, counts, judged, open_items
from compliance.evidence.facts import facts_of
from compliance.evidence.verdicts import Finding, Tally, Verdict
from compliance.gates import GATES
from compliance.merkle import Tree, leaf_hash
from compliance.privacy import PoissonGaussian
from infra.golden import key, sha
from tests.compliance.made_study import (
    EPSILON,
    GUARANTEE,
    SILOS,
    WITHDRAWN,
    Step,
    Witnessed,
    both,
    instead,
    made_bundle,
    made_plan,
    more,
    order_of,
    plain_plan,
    policy_of,
    without,
)

as_it_is = cache(made_bundle)
STUDY = as_it_is().study
OTHER = "other-01234567"


def verdicts(bundle: Bundle) -> dict[str, str]:
    return {row.control.id: row.finding.verdict.value for row in judged(facts_of(bundle))}


def finding(control: str, bundle: Bundle) -> Finding:
    return next(one.check(facts_of(bundle)) for one in CONTROLS if one.id == control)


def changed_plan(old: str, new: str) -> Any:
    return made_plan(guarantee=GUARANTEE.replace(old, new))


def with_log(bundle: Bundle, party: str, **changes: Any) -> Bundle:
    return replace(bundle, logs={**bundle.logs, party: replace(bundle.logs[party], **changes)})


def without_log(party: str) -> Bundle:
    bundle = as_it_is()
    return replace(bundle, logs={name: log for name, log in bundle.logs.items() if name != party})


def damaged(party: str) -> Bundle:
    bundle = as_it_is()
    return with_log(bundle, party, entries=(*bundle.logs[party].entries[:-1], b"not an entry, and longer than a hash"))


def with_receipt(number: int, **changes: Any) -> Bundle:
    bundle = as_it_is()
    said: Receipt = bundle.receipts[number].receipt.model_copy(update=changes)
    signers = (COORDINATOR, *said.contributing)
    signed = SignedReceipt(said, {party: said.sign(key(party)) for party in signers})
    return replace(bundle, receipts={**bundle.receipts, number: signed})


def signed_by(number: int, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Bundle:
    bundle = as_it_is()
    signed = bundle.receipts[number]
    return replace(
        bundle, receipts={**bundle.receipts, number: replace(signed, signatures=change(dict(signed.signatures)))}
    )


def starts(_party: str, event: say.AnyEvent) -> bool:
    return isinstance(event, say.TrainingStarted)


def hidden(*kinds: type[say.AnyEvent], log: str | None = None) -> Bundle:
    """As shown by hospitals that do not show these."""
    names = tuple(f'"event":"{kind.event}"'.encode() for kind in kinds)

    def shown(party: str, entry: bytes) -> bytes:
        return leaf_hash(entry) if log in {None, party} and any(name in entry for name in names) else entry

    copies = {
        party: replace(copy, entries=tuple(shown(party, entry) for entry in copy.entries))
        for party, copy in as_it_is().logs.items()
    }
    return replace(as_it_is(), logs=copies)


def edited(*edits: Any, **changes: Any) -> Bundle:
    return made_bundle(edit=both(*edits), **changes)


def forked() -> Bundle:
    """st-olavs saw another log of ucl than the one that is here."""
    heads = (say.SeenHead(log="ucl", size=4, root=sha("another log")),)
    return edited(more(say.HeadsWitnessed(study=STUDY, round=5, heads=heads), log="st-olavs"))


def longer_than_shown() -> Bundle:
    heads = (say.SeenHead(log="ucl", size=4000, root=sha("a longer log")),)
    return edited(more(say.HeadsWitnessed(study=STUDY, round=5, heads=heads), log="st-olavs"))


def uncosigned(party: str) -> Bundle:
    return with_log(as_it_is(), party, cosignatures={})


def forged_cosignature() -> Bundle:
    log = as_it_is().logs["ucl"]
    size = log.heads[-1].size
    said = {**log.cosignatures[size], "leuven": log.cosignatures[size]["charite"]}
    return with_log(as_it_is(), "ucl", cosignatures={**log.cosignatures, size: said})


def other_heads(party: str, of: str) -> Bundle:
    bundle = as_it_is()
    return with_log(bundle, party, heads=bundle.logs[of].heads)


def foreign_head() -> Bundle:
    tree = Tree()
    for entry in as_it_is().logs["ucl"].entries:
        tree.append(leaf_hash(entry))
    return with_log(as_it_is(), "ucl", heads=(Checkpoint.sign("ucl", tree.size, tree.root(), key("leuven")),))


def rewritten(party: str) -> Bundle:
    """An entry exchanged after the heads were signed."""
    bundle = as_it_is()
    entries = bundle.logs[party].entries
    return with_log(bundle, party, entries=(*entries[:3], leaf_hash(b"something else"), *entries[4:]))


def late_effect() -> Any:
    about = {"study": STUDY, "private": WITHDRAWN, "decision": "keep"}
    return both(
        without(say.WithdrawalEffective),
        more(say.WithdrawalEffective(round=5, **about), log="charite", before=say.RoundReceived, round=4),  # type: ignore[arg-type]
    )


def another_record() -> Bundle:
    bundle = as_it_is()
    return replace(bundle, rounds=(bundle.rounds[0].model_copy(update={"clipped": 1}), *bundle.rounds[1:]))


def intake(**changes: Any) -> Bundle:
    return made_bundle(edit=instead(say.IntakeCounted, log="ucl", **changes))


def with_stranger(kind: type[say.AnyEvent], field: str, number: int) -> Bundle:
    return made_bundle(edit=instead(kind, COORDINATOR, number, **{field: ("charite", "karolinska", "stranger")}))


LESS_NOISE = {"release": PoissonGaussian(noise_multiplier=0.2, sampling_rate=0.012, steps=10)}
OTHER_RATE = {"release": PoissonGaussian(noise_multiplier=0.6, sampling_rate=0.5, steps=10)}
OTHER_STEPS = {"release": PoissonGaussian(noise_multiplier=0.6, sampling_rate=0.012, steps=11)}

CASES: dict[str, dict[str, tuple[str, Callable[[], Bundle]]]] = {
    "PRV-01": {
        "the story as it is": ("PASS", as_it_is),
        "no guarantee": ("N/A", lambda: made_bundle(plain_plan())),
        "more than the cap": ("FAIL", lambda: edited(instead(say.BudgetReserved, log="ucl", **LESS_NOISE))),
        "the log says less than it comes to": (
            "FAIL",
            lambda: edited(instead(say.BudgetReserved, log="ucl", epsilon_study=0.1)),
        ),
        "the log says more and shows all": (
            "FAIL",
            lambda: edited(instead(say.BudgetReserved, log="ucl", epsilon_study=9.0)),
        ),
        "an unpaid training, and all is shown": (
            "FAIL",
            lambda: edited(without(say.BudgetReserved, log="ucl", round=2)),
        ),
        "budget withheld": ("NOT-MEASURED", lambda: hidden(say.BudgetReserved, log="ucl")),
        "one reservation withheld": (
            "NOT-MEASURED",
            lambda: made_bundle(
                withhold=lambda p, e: p == "ucl" and isinstance(e, say.BudgetReserved) and e.round == 2
            ),
        ),
        "the last reservation withheld": (
            "NOT-MEASURED",
            lambda: made_bundle(
                withhold=lambda p, e: p == "ucl" and isinstance(e, say.BudgetReserved) and e.round == 5
            ),
        ),
        "something after the last reservation withheld": ("NOT-MEASURED", lambda: hidden(say.RoundReceived, log="ucl")),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "a log damaged": ("NOT-MEASURED", lambda: damaged("ucl")),
        "noise and no cap": ("NOT-MEASURED", lambda: made_bundle(changed_plan(EPSILON, "noise_multiplier = 0.8"))),
    },
    "PRV-02": {
        "the story as it is": ("PASS", as_it_is),
        "no guarantee": ("N/A", lambda: made_bundle(plain_plan())),
        "an unpaid training": ("FAIL", lambda: edited(without(say.BudgetReserved, log="ucl", round=3))),
        "budget withheld": ("NOT-MEASURED", lambda: hidden(say.BudgetReserved)),
    },
    "PRV-03": {
        "the story as it is": ("PASS", as_it_is),
        "no guarantee": ("N/A", lambda: made_bundle(plain_plan())),
        "less noise": ("FAIL", lambda: edited(instead(say.BudgetReserved, log="ucl", **LESS_NOISE))),
        "another rate": ("FAIL", lambda: edited(instead(say.BudgetReserved, log="ucl", **OTHER_RATE))),
        "other steps": ("FAIL", lambda: edited(instead(say.BudgetReserved, log="ucl", **OTHER_STEPS))),
        "a plan that no noise fits": (
            "FAIL",
            lambda: replace(made_bundle(), plan=changed_plan(EPSILON, "epsilon = 0.01")),
        ),
        "budget withheld": ("NOT-MEASURED", lambda: hidden(say.BudgetReserved)),
    },
    "PRV-04": {
        "the story as it is": ("PASS", as_it_is),
        "without a guarantee": ("PASS", lambda: made_bundle(plain_plan())),
        "not approved": ("FAIL", lambda: edited(without(say.PlanApprovalGiven, log="ucl"))),
        "declined since": (
            "FAIL",
            lambda: edited(
                more(
                    say.PlanDeclineGiven(study=STUDY, plan_digest=sha_of_plan(), silo="ucl", code="NO_MORE"),
                    log="ucl",
                    before=say.RoundReceived,
                    round=1,
                )
            ),
        ),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "what was sent withheld": ("NOT-MEASURED", lambda: hidden(say.ContributionReleased, log="ucl")),
    },
    "PRV-05": {
        "always": ("NOT-MEASURED", as_it_is),
        "no guarantee": ("N/A", lambda: made_bundle(plain_plan())),
    },
    "SEC-01": {
        "the story as it is": ("PASS", as_it_is),
        "another vector": ("FAIL", lambda: edited(instead(say.ContributionReleased, "ucl", 1, vector=sha("another")))),
        "other sharers": ("FAIL", lambda: edited(instead(say.ContributionReleased, "ucl", 1, sharers=sha("others")))),
        "no vector logged": ("FAIL", lambda: edited(without(say.ContributionReleased, log="ucl", round=1))),
        "other survivors agreed": (
            "FAIL",
            lambda: edited(instead(say.SurvivorsAgreed, "ucl", 1, survivors=sha("others"))),
        ),
        "a stranger in the sum": ("FAIL", lambda: with_stranger(say.SumOpened, "surviving", 1)),
        "another model": ("FAIL", lambda: edited(instead(say.RoundClosed, COORDINATOR, 5, model_out=sha("another")))),
        "a receipt for another sum": ("FAIL", lambda: with_receipt(2, transcript=sha("another"))),
        "no sum": ("FAIL", lambda: edited(without(say.SumOpened, round=1))),
        "the vector withheld": ("NOT-MEASURED", lambda: hidden(say.ContributionReleased, log="ucl")),
        "the opening withheld": ("NOT-MEASURED", lambda: hidden(say.SumOpened)),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "the records missing": ("NOT-MEASURED", lambda: made_bundle(rounds=())),
        "the coordinator's log missing": ("NOT-MEASURED", lambda: without_log(COORDINATOR)),
    },
    "SEC-02": {
        "the story as it is": ("PASS", as_it_is),
        "a wrong signature": ("FAIL", lambda: signed_by(1, lambda said: said | {"ucl": said["leuven"]})),
        "about another round": ("FAIL", lambda: with_receipt(2, model_in=sha("another"))),
        "about another plan": ("FAIL", lambda: with_receipt(2, plan_digest=sha("another"))),
        "a signature missing": (
            "NOT-MEASURED",
            lambda: signed_by(1, lambda said: {k: v for k, v in said.items() if k != "ucl"}),
        ),
        "receipts missing": ("NOT-MEASURED", lambda: made_bundle(receipts={})),
        "nothing at all": ("NOT-MEASURED", lambda: made_bundle(receipts={}, rounds=(), logs={})),
    },
    "SEC-03": {
        "the story as it is": ("PASS", as_it_is),
        "two hospitals": ("FAIL", lambda: edited(instead(say.SumOpened, COORDINATOR, 1, surviving=("charite", "ucl")))),
        "one hospital twice": ("FAIL", lambda: edited(instead(say.SumOpened, COORDINATOR, 1, surviving=("ucl",) * 3))),
        "no sum shown": ("NOT-MEASURED", lambda: edited(without(say.SumOpened, round=2))),
        "something withheld": ("NOT-MEASURED", lambda: hidden(say.AttemptFailed)),
        "the log missing": ("NOT-MEASURED", lambda: without_log(COORDINATOR)),
    },
    "SEC-04": {"always": ("NOT-MEASURED", as_it_is)},
    "APR-01": {
        "the story as it is": ("PASS", as_it_is),
        "approved after the first round": (
            "FAIL",
            lambda: edited(
                without(say.PlanApprovalGiven, log="ucl"),
                more(approval("ucl"), log="ucl", before=say.RoundReceived, round=2),
            ),
        ),
        "another plan": ("FAIL", lambda: edited(instead(say.PlanApprovalGiven, "ucl", plan_digest=sha("another")))),
        "never logged": ("FAIL", lambda: edited(without(say.PlanApprovalGiven, log="ucl"))),
        "a stranger in the round": ("FAIL", lambda: with_stranger(say.RoundClosed, "contributing", 1)),
        "an approval after the plan expired": ("FAIL", lambda: made_bundle(plan_until(19))),
        "a round after the plan expired": ("FAIL", lambda: made_bundle(plan_until(20), edit=rounds_later)),
        "what was sent withheld": ("NOT-MEASURED", lambda: hidden(say.ContributionReleased, log="ucl")),
        "the signed approval missing": ("NOT-MEASURED", lambda: made_bundle(approvals={})),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "no round": ("NOT-MEASURED", lambda: made_bundle(receipts={}, rounds=(), logs={})),
    },
    "APR-02": {
        "the story as it is": ("PASS", as_it_is),
        "without a guarantee": ("PASS", lambda: made_bundle(plain_plan())),
        "what is not shown is from before the approval or after the end": (
            "PASS",
            lambda: made_bundle(
                made_plan(disclose=("budget",)), withhold=lambda _, event: isinstance(event, OUTSIDE_OF_WORK)
            ),
        ),
        "a training without gates": ("FAIL", lambda: edited(unasked("train"))),
        "an evaluation without gates": ("FAIL", lambda: edited(unasked("evaluate"))),
        "gates after the start": (
            "FAIL",
            lambda: edited(unasked("train"), more(gates(4), log="ucl", before=say.BudgetReserved, round=4)),
        ),
        "gates under an older policy": (
            "FAIL",
            lambda: edited(instead(say.GatesPassed, "ucl", 4, policy=policy_of("ucl", 1))),
        ),
        "a policy adopted between the gates and the start": (
            "FAIL",
            lambda: edited(more(adopted(3), log="ucl", before=say.TrainingStarted, round=4)),
        ),
        "no policy adopted": ("FAIL", lambda: edited(without(say.PolicyAdopted, log="ucl"))),
        "a policy that came back": ("FAIL", lambda: edited(instead(say.PolicyAdopted, "ucl", number=2))),
        "a first policy that one person signed": (
            "FAIL",
            lambda: edited(instead(say.PolicyAdopted, "leuven", how="tightened")),
        ),
        "one gate missing": ("FAIL", lambda: edited(instead(say.GatesPassed, "ucl", 4, gates=GATES[:-1]))),
        "another order of gates": ("FAIL", lambda: edited(instead(say.GatesPassed, "ucl", 4, gates=GATES[::-1]))),
        "a refusal between": (
            "FAIL",
            lambda: edited(more(refusal(4), log="ucl", before=say.TrainingStarted, round=4)),
        ),
        "gates of another round": (
            "FAIL",
            lambda: edited(unasked("train"), more(gates(5), log="ucl", before=say.TrainingStarted, round=4)),
        ),
        "gates of another order of the round": (
            "FAIL",
            lambda: edited(instead(say.GatesPassed, "ucl", 4, order=sha("another order"))),
        ),
        "work that never started": ("FAIL", lambda: edited(without(say.TrainingStarted, log="ucl", round=4))),
        "gates withheld": ("NOT-MEASURED", lambda: hidden(say.GatesPassed, log="ucl")),
        "starts withheld": ("NOT-MEASURED", lambda: hidden(say.TrainingStarted, log="ucl")),
        "policies withheld": ("NOT-MEASURED", lambda: hidden(say.PolicyAdopted, log="leuven")),
        "anything withheld while it works": ("NOT-MEASURED", lambda: hidden(say.RoundReceived, log="ucl")),
        "not disclosed": ("NOT-MEASURED", lambda: made_bundle(made_plan(disclose=("intake",)))),
        "a log damaged": ("NOT-MEASURED", lambda: damaged_in_the_middle("ucl")),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "nobody worked": (
            "NOT-MEASURED",
            lambda: edited(without(say.TrainingStarted, say.WorkDone, say.ContributionReleased)),
        ),
    },
    "DAT-01": {
        "the story as it is": ("PASS", as_it_is),
        "unfit data": ("FAIL", lambda: intake(usable=False)),
        "other data approved": ("FAIL", lambda: intake(dataset_digest=sha("other data"))),
        "not approved at all": ("FAIL", lambda: edited(without(say.PlanApprovalGiven, log="ucl"))),
        "intake withheld": ("NOT-MEASURED", lambda: hidden(say.IntakeCounted, log="ucl")),
        "intake and all that was sent withheld": (
            "NOT-MEASURED",
            lambda: hidden(say.IntakeCounted, say.ContributionReleased, log="ucl"),
        ),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
    },
    "DAT-02": {
        "the story as it is": ("PASS", as_it_is),
        "just enough for sure": ("PASS", lambda: intake(patients=60)),
        "too few": ("FAIL", lambda: intake(patients=40)),
        "too close to tell": ("NOT-MEASURED", lambda: intake(patients=50)),
        "intake withheld": ("NOT-MEASURED", lambda: hidden(say.IntakeCounted)),
    },
    "LOG-01": {
        "the story as it is": ("PASS", as_it_is),
        "an incident that was closed": (
            "PASS",
            lambda: edited(more(incident(), say.IncidentClosed(incident=1, decision="ACCEPTED"), log="ucl")),
        ),
        "an incident is open": ("FAIL", lambda: edited(more(incident(), log="ucl"))),
        "a fork": ("FAIL", forked),
        "a rewritten entry": ("FAIL", lambda: rewritten("ucl")),
        "a damaged entry": ("FAIL", lambda: damaged("ucl")),
        "heads of another log": ("FAIL", lambda: other_heads("ucl", "leuven")),
        "a head under another key": ("FAIL", foreign_head),
        "a forged cosignature": ("FAIL", forged_cosignature),
        "a roster nobody signed": ("FAIL", lambda: made_bundle(roster=b"{}")),
        "another record": ("FAIL", another_record),
        "not cosigned": ("NOT-MEASURED", lambda: uncosigned("ucl")),
        "no head": ("NOT-MEASURED", lambda: with_log(as_it_is(), "ucl", heads=(), cosignatures={})),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
    },
    "LOG-02": {
        "the story as it is": ("PASS", as_it_is),
        "entries cut off": (
            "FAIL",
            lambda: with_log(as_it_is(), "ucl", entries=as_it_is().logs["ucl"].entries[:-1]),
        ),
        "others saw more": ("FAIL", longer_than_shown),
        "a round from another model": (
            "FAIL",
            lambda: edited(instead(say.RoundClosed, COORDINATOR, 3, model_in=sha("another"))),
        ),
        "a log missing": ("NOT-MEASURED", lambda: without_log("ucl")),
        "unsigned last entries": (
            "NOT-MEASURED",
            lambda: with_log(as_it_is(), "ucl", heads=as_it_is().logs["ucl"].heads[:-1]),
        ),
        "a round left out": (
            "NOT-MEASURED",
            lambda: edited(without(say.RoundOpened, say.RoundClosed, round=2), rounds=(), receipts={}),
        ),
        "a record without its entry": ("NOT-MEASURED", lambda: edited(without(say.RoundClosed, round=2))),
    },
    "RET-01": {
        "the story as it is": ("PASS", as_it_is),
        "too short": ("FAIL", lambda: made_bundle(made_plan(retain_years=5))),
        "nobody approved": ("NOT-MEASURED", lambda: made_bundle(logs={})),
    },
    "RGT-01": {
        "the story as it is": ("PASS", as_it_is),
        "nobody withdrew": ("N/A", lambda: edited(without(say.PatientWithdrawn, say.WithdrawalEffective))),
        "effective too late": ("FAIL", lambda: edited(late_effect())),
        "of somebody who is not in the study": ("PASS", lambda: edited(without(say.WithdrawalEffective))),
        "effective, for a later round": ("FAIL", lambda: edited(without(say.WithdrawalEffective), effective_for(5))),
        "perhaps a round was under way": (
            "NOT-MEASURED",
            lambda: made_bundle(edit=both(without(say.WithdrawalEffective), effective_for(5)), withhold=starts),
        ),
        "two rounds too late, whatever was under way": (
            "FAIL",
            lambda: made_bundle(edit=both(without(say.WithdrawalEffective), effective_for(6)), withhold=starts),
        ),
        "withheld": ("NOT-MEASURED", lambda: hidden(say.PatientWithdrawn, say.WithdrawalEffective)),
        "not disclosed": ("NOT-MEASURED", lambda: made_bundle(made_plan(disclose=("budget",)))),
        "not disclosed and none": (
            "NOT-MEASURED",
            lambda: made_bundle(made_plan(disclose=()), edit=without(say.PatientWithdrawn, say.WithdrawalEffective)),
        ),
    },
    **{f"LEG-0{number}": {"always": ("NEEDS-HUMAN", as_it_is)} for number in (1, 2, 3, 4)},
}
ALL = [
    pytest.param(control, *case, id=f"{control}: {name}")
    for control, found in CASES.items()
    for name, case in found.items()
]


def sha_of_plan() -> str:
    return facts_of(as_it_is()).plan_digest


def approval(silo: str) -> say.PlanApprovalGiven:
    given = facts_of(as_it_is()).hospital(silo).given[0].event
    return given


def incident() -> say.IncidentOpened:
    return say.IncidentOpened(incident=1, log="leuven", code="LOG_FORKED", evidence=sha("two heads"))


OUTSIDE_OF_WORK = say.IntakeCounted, say.DataPurged


def adopted(number: int) -> say.PolicyAdopted:
    return say.PolicyAdopted(number=number, policy=policy_of("ucl", number), how="tightened")


def about_work(number: int, phase: Phase) -> dict[str, Any]:
    about = {"study": STUDY, "round": number, "phase": phase, "order": order_of(number, phase)}
    return about | {"policy": policy_of("ucl", 2)}


def gates(number: int, phase: Phase = "train") -> say.GatesPassed:
    """As ucl's log has them since round 3."""
    return say.GatesPassed(**about_work(number, phase), gates=GATES)


def unasked(phase: Phase) -> Any:
    """This work of round 4 at ucl lacks its gates."""
    return lambda steps: [step for step in steps if getattr(step, "event", None) != gates(4, phase)]


def refusal(number: int) -> say.GateRefused:
    return say.GateRefused(**about_work(number, "train"), gate="hours", code="OUT_OF_HOURS")


def damaged_in_the_middle(party: str) -> Bundle:
    entries = as_it_is().logs[party].entries
    return with_log(as_it_is(), party, entries=(*entries[:40], b"not an entry, and longer than a hash", *entries[41:]))


def plan_until(day: int) -> Any:
    plan = made_plan()
    expires = plan.purpose.expires.replace(2026, 11, day)
    return plan.model_copy(update={"purpose": plan.purpose.model_copy(update={"expires": expires})})


def rounds_later(steps: list[Step]) -> list[Step]:
    """Everything after the approvals a day later."""
    begun = next(at for at, step in enumerate(steps) if isinstance(step, Witnessed))
    return [*steps[:begun], *(replace(step, time=step.time + timedelta(days=1)) for step in steps[begun:])]


def effective_for(number: int) -> Any:
    effective = say.WithdrawalEffective(study=STUDY, round=number, private=WITHDRAWN, decision="keep")
    return more(effective, log="charite", before=say.TrainingStarted, round=4)


@pytest.mark.parametrize(("control", "expected", "made"), ALL)
def test_a_control_comes_to_its_verdict(control: str, expected: str, made: Callable[[], Bundle]) -> None:
    assert finding(control, made()).verdict == expected


def test_every_control_has_cases() -> None:
    assert list(CASES) == [control.id for control in CONTROLS]


def test_a_pass_and_a_failure_point_at_entries() -> None:
    for bundle in (as_it_is(), edited(instead(say.SumOpened, COORDINATOR, 1, surviving=("charite", "ucl")))):
        for row in judged(facts_of(bundle)):
            if row.finding.verdict in {Verdict.PASS, Verdict.FAIL}:
                assert row.finding.evidence, row.control.id


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SILOS), st.integers(1, 5))
def test_a_withheld_reservation_is_never_a_pass(silo: str, number: int) -> None:
    bundle = made_bundle(
        withhold=lambda party, event: party == silo and isinstance(event, say.BudgetReserved) and event.round == number
    )
    assert finding("PRV-01", bundle).verdict is Verdict.NOT_MEASURED


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SILOS), st.integers(1, 5), st.sampled_from((say.GatesPassed, say.TrainingStarted)))
def test_withheld_gates_and_starts_are_never_a_pass(silo: str, number: int, kind: type[say.AnyEvent]) -> None:
    bundle = made_bundle(
        withhold=lambda party, event: party == silo and isinstance(event, kind) and getattr(event, "round", 0) == number
    )
    assert finding("APR-02", bundle).verdict is Verdict.NOT_MEASURED


def test_what_is_wrong_with_gates_is_told_in_words_and_with_its_entries() -> None:
    bundle = edited(more(refusal(4), log="ucl", before=say.TrainingStarted, round=4))
    found = finding("APR-02", bundle)
    assert found.reason == "Hospital ucl, round 4, train: the gate hours had refused it."
    said = {entry.at: type(entry.event) for entry in facts_of(bundle).hospital("ucl").log.everything()}
    assert [said[at] for at in found.evidence] == [say.PolicyAdopted, say.GateRefused, say.TrainingStarted]


def test_an_empty_bundle_passes_nothing_that_needs_a_log() -> None:
    found = verdicts(made_bundle(logs={}, approvals={}, receipts={}, rounds=()))
    assert set(found.values()) == {"NOT-MEASURED", "NEEDS-HUMAN"}


def test_open_items_begin_with_failed_blockers() -> None:
    rows = judged(facts_of(made_bundle(made_plan(retain_years=2), edit=more(incident(), log="ucl"))))
    assert [row.control.id for row in open_items(rows)][:2] == ["LOG-01", "RET-01"]
    assert sum(counts(rows).values()) == len(CONTROLS)


def test_a_reason_is_one_sentence_however_much_is_wrong() -> None:
    tally = Tally()
    for number in range(9):
        tally.wrong(f"fault {number}")
    assert tally.finding("", "").reason == "Fault 0; fault 1; fault 2; and 6 more."
    assert Tally().finding("all is well", "nobody came") == Finding(Verdict.NOT_MEASURED, "Nobody came.")


def test_a_log_of_somebody_who_never_took_part_need_not_cosign() -> None:
    bundle = as_it_is()
    log = bundle.logs["ucl"]
    some = {
        size: {witness: said for witness, said in by.items() if witness in {"charite", "leuven", COORDINATOR}}
        for size, by in log.cosignatures.items()
    }
    found = facts_of(with_log(bundle, "ucl", cosignatures=some)).integrity["ucl"]
    assert (found.cosigners, found.needed, found.others) == (("charite", "coordinator", "leuven"), 3, 5)


def test_a_copy_without_heads_has_no_root() -> None:
    bundle = as_it_is()
    copy = LogCopy(party="ucl", entries=bundle.logs["ucl"].entries, heads=(), cosignatures={})
    found = facts_of(replace(bundle, logs={**bundle.logs, "ucl": copy})).integrity["ucl"]
    assert (found.root, found.signed, found.covered) == (None, 0, 0)
