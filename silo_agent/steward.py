"""The steward's decision, as a person takes it: what the plan does, to which data, what leaves, until when."""

import difflib
import json
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from boundary.approval import Approval, sign_approval
from boundary.groups import group_of, has_groups
from boundary.parties import trainers, validators
from boundary.plan import StudyPlan
from silo_agent.beginning_view import beginning_lines
from silo_agent.cost import Cost, cost_here, guarantee_lines
from silo_agent.errors import ConfigError, ContractNotMet, WorkFailed
from silo_agent.journal import Journal, KeptPlan
from silo_agent.outbound import Outbound
from silo_agent.part import UNSPENT, part_lines
from silo_agent.permission import forecast
from silo_agent.personal import personal_lines
from silo_agent.plain import plain
from silo_agent.policy.files import load_policy
from silo_agent.state import StateFolder


@dataclass(frozen=True, slots=True)
class Dossier:
    """A plan with what the hospital's own scan says about it. `report` is None until the scan is through.

    `cost` is a sentence where this hospital cannot take part in a plan with this guarantee, or lack of one. `refused`
    is what the hospital's policy would refuse of the plan, `site` who we are.
    """

    kept: KeptPlan
    plan: StudyPlan
    report: dict[str, Any] | None
    before: StudyPlan | None
    cost: Cost | str | None
    refused: tuple[str, ...]
    site: str


def find_plan(journal: Journal, wanted: str) -> KeptPlan:
    """By study, plan digest or `name@revision`; raises `ConfigError` listing what there is, also if several fit."""
    plans = journal.plans()
    found = [k for k in plans if wanted in {k.study, k.digest, k.parsed.label}]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(kept.study for kept in found)
        raise ConfigError(f"{wanted!r} fits several plans: {several}. Ask the coordinator why, and name one by study")
    known = ", ".join(kept.study for kept in plans) or "none has arrived yet: is `silo-agent run` running?"
    raise ConfigError(f"no plan {wanted!r}; known: {known}")


def dossier(journal: Journal, folder: StateFolder, kept: KeptPlan, now: datetime) -> Dossier:
    plan, report = kept.parsed, _report(folder, kept)
    earlier = [other.parsed for other in journal.plans() if other.approval is not None and other.study != kept.study]
    same = [other for other in earlier if other.name == plan.name] or earlier
    cost: Cost | str | None
    try:
        cost = cost_here(plan, kept.study, load_policy(folder.root).policy, journal, folder)
    except (WorkFailed, ConfigError) as why:
        cost = str(why)
    refused = _refused(folder, plan, report, now)
    return Dossier(kept, plan, report, same[-1] if same else None, cost, refused, journal.silo)


def _report(folder: StateFolder, kept: KeptPlan) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder.cache / kept.study / "report.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found


def _refused(
    folder: StateFolder, plan: StudyPlan, report: dict[str, Any] | None, now: datetime
) -> tuple[str, ...]:  # fmt: skip
    """What the policy in force would refuse of the plan, in sentences with their codes."""
    patients = None if report is None else sum(report["patients"].values())
    try:
        force = load_policy(folder.root)
    except (WorkFailed, ConfigError) as why:
        return (str(why),)
    return tuple(f"{why.reason}: {why.detail}" for why in forecast(plan, force, patients, now))


def approve(journal: Journal, folder: StateFolder, outbound: Outbound, wanted: str, role: str, reason: str) -> KeptPlan:
    """Sign exactly this digest, as it stands at this instant. Raises `ContractNotMet` or `ConfigError`.

    Not for a plan that the policy would refuse: that takes two people first (`silo-agent policy allow`).
    """
    with journal.transaction():  # the daemon may be closing the study, or scanning again
        kept = find_plan(journal, wanted)
        if kept.state == "approved":
            return kept
        if kept.state != "scanned" or kept.dataset_digest is None:
            raise ContractNotMet(_why_not(kept))
        plan = kept.parsed
        now: datetime = outbound.now()
        if now.date() > plan.purpose.expires:
            raise ContractNotMet(f"the plan expired on {plan.purpose.expires}")
        if refused := _refused(folder, plan, _report(folder, kept), now):
            raise ContractNotMet(f"the policy does not allow this plan: {'; '.join(refused)}")
        approval = Approval(
            silo=outbound.silo,
            plan_digest=kept.digest,
            dataset_digest=kept.dataset_digest,
            role=role,
            approved_at=now,
        )
        outbound.approve(kept.study, sign_approval(approval, folder.steward), reason)
        return kept


def decline(journal: Journal, outbound: Outbound, wanted: str, reason: str) -> KeptPlan:
    """Take no part, or no part any more. Raises `ConfigError` for a study that is over."""
    with journal.transaction():
        kept = find_plan(journal, wanted)
        if kept.state == "closed":
            raise ConfigError(f"{kept.study} is closed: nothing is done for it any more")
        if kept.state != "declined":
            outbound.decline(kept.study, kept.digest, "DECLINED_BY_STEWARD", reason)
        return kept


def wait_for_scan(journal: Journal, wanted: str, seconds: float) -> None:
    """Give the running agent time to receive the plan and check our data; says nothing about the outcome."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if find_plan(journal, wanted).state != "received":
                return
        except ConfigError:
            pass  # not here yet
        time.sleep(0.3)


def _why_not(kept: KeptPlan) -> str:
    match kept.state:
        case "received":
            return "the agent is still checking our data against this plan: try again when `plan list` says 'scanned'"
        case "unsuitable":
            return (
                f"our data do not meet the plan's contract: {kept.reason}. Nothing was deleted or changed; "
                "correct the label table or the policy, then run `silo-agent plan rescan`"
            )
        case other:
            return f"the plan is {other}"


def lines(file: Dossier) -> list[tuple[str, str]]:
    """(heading, text) pairs in plain words, in the order a steward asks. Nothing in them can hide or move text."""
    plan, purpose = file.plan, file.plan.purpose
    hospitals = ", ".join(plan.silos)
    training, dataset = plan.training, plan.dataset
    share = plan.aggregation.random_share
    weights = "the model's weights" if plan.model.moves_whole else "those weights that are learned together"
    parameters = f"the change of {weights}" if share == 1 else f"the change of {share:.0%} of {weights}"
    parameters += " (the longer the change, the less it counts)" if training.strategy == "rfa" else ""
    loss = "below which of a few epsilons we are" if plan.bands else "the training loss"
    loss += ", how many steps our training took" if plan.counts_steps else ""
    answers = "answers" if plan.task == "classification" else "voxels of each class, with how many images show it"
    is_trained_on = file.site not in validators(plan)
    held_back = f"{dataset.holdout_share:.0%}" if is_trained_on else "all"
    often = f"{training.rounds} rounds" + ("" if plan.bands else f" of {training.local_epochs} epoch(s)")
    often = often if training.rounds else "once for each model"
    sent = f"per round: {parameters}, {loss}, and " if is_trained_on else ""
    said = [
        ("Study", f"{purpose.title} ({plan.label})"),
        ("Plan digest", file.kept.digest),
        ("State here", file.kept.state + (f": {file.kept.reason}" if file.kept.reason else "")),
        ("Policy", f"does NOT allow it: {'; '.join(file.refused)}" if file.refused else "allows exactly this plan"),
        ("Purpose", purpose.statement),
        ("Legal basis", f"{purpose.legal_basis}; ethics reference {purpose.ethics_reference}"),
        ("Valid until", f"{purpose.expires}; records are kept {purpose.retain_years} years"),
        ("Hospitals", f"{hospitals} (at least {plan.aggregation.quorum} in every sum)"),
        ("What is trained" if training.rounds else "Which", f"{plan.model.name}@{plan.model.version}, {plan.aim}"),
        *beginning_lines(plan),
        *part_lines(plan, file.site),
        *_parts(plan),
        *_normalisation(plan),
        *_robustness(plan),
        *_group(plan, file.site),
        ("On which data", f"data set {dataset.name!r}: {', '.join(dataset.modalities)}, at most "
         f"{dataset.max_images_per_patient} images per patient, {held_back} of the patients held back"),
        *_series(plan),
        ("How often", often),
        *_selection(plan),
        *personal_lines(plan),
        *(guarantee_lines(plan, file.cost) if is_trained_on else [UNSPENT]),
        ("What leaves", f"{sent}counts of right and wrong {answers}, in one "
         "vector under masks: only the sum over the hospitals can be read, by anybody. The plan approval; fresh keys "
         "and shares for each sum; error codes. No image, no identifier, no path, no error text"),
        ("What stays", "images, labels, identifiers, the intake report, your reason for the decision"
         + ("" if plan.personalisation is None else ", our own model and how it does on our patients")),
    ]  # fmt: skip
    return [(heading, plain(text)) for heading, text in said + _data_lines(file.report)]


def _data_lines(report: dict[str, Any] | None) -> list[tuple[str, str]]:
    if report is None:
        return [("Our data", "not checked yet")]
    patients, images = report["patients"], report["images"]
    used = "; ".join(
        f"{split}: {patients.get(split, 0)} patients, "
        + ", ".join(f"{count} x {label}" for label, count in classes.items())
        for split, classes in images.items()
    )
    refused = ", ".join(f"{code} {count}" for code, count in sorted(report["refused"].items())) or "none"
    met = "met" if not report["problems"] else "NOT met: " + "; ".join(report["problems"])
    return [
        ("Our data", f"{report['used']} of {report['files']} files used ({used})"),
        ("Not used", f"{refused} (which files: refused.csv in the agent's cache folder)"),
        ("Contract", met),
        ("Data digest", report["dataset_digest"]),
    ]


def _parts(plan: StudyPlan) -> list[tuple[str, str]]:
    """Which of the network's parameters are trained, and which of those are never sent."""
    choice, said = plan.model, []
    if "*" not in choice.trained:
        said.append(
            f"only parameters called {' or '.join(choice.trained)} are trained; all others are sent to us once, from "
            "the coordinator, and stay as they are"
        )
    if choice.home:
        said.append(f"those called {' or '.join(choice.home)} are our own: they are kept here and never sent")
    return [("Which part of it", "; ".join(said))] if said else []


def _selection(plan: StudyPlan) -> list[tuple[str, str]]:
    """Whether all hospitals train in every round, and what becomes of a training that comes too late."""
    selection, said = plan.selection, []
    if selection.hospitals is not None:
        more = f" and {selection.over} more are asked, in case some are slow" if selection.over else ""
        of = f"{selection.hospitals} of the {len(trainers(plan))} hospitals"
        said.append(
            ("Who trains", f"in each round {of} are drawn{more}. "
             "The draw follows from this plan: the coordinator cannot change it, and `wardround verify` repeats it. "
             "All hospitals evaluate")
        )  # fmt: skip
    if selection.keeps_late:
        weights = ", ".join(f"{selection.factor(stale):.0%}" for stale in range(1, selection.most_stale + 1))
        said.append(
            ("If we are late", f"a training that is not ready in time is finished and goes into one of the next "
             f"{selection.most_stale} round(s) that ask us, once, counted at {weights} of its weight; while it lasts "
             "we do not evaluate. If somebody withdraws consent first, it is thrown away")
        )  # fmt: skip
    return said


def _series(plan: StudyPlan) -> list[tuple[str, str]]:
    """Which scan of an imaging study is read; the rule is the same at every hospital."""
    rule = plan.dataset.series
    if rule is None:
        return []
    said = [
        f"the one {rule.modality} series of each imaging study with {rule.smallest_slices} to {rule.largest_slices} "
        f"slices, {rule.smallest_gap_mm:g} to {rule.largest_gap_mm:g} mm apart"
    ]
    said += [] if rule.orientation == "any" else [rule.orientation]
    said += [f"of image type {' and '.join(rule.image_type_includes)}"] if rule.image_type_includes else []
    said += [f"not of image type {' or '.join(rule.image_type_excludes)}"] if rule.image_type_excludes else []
    said += ["also such as were processed (SECONDARY)"] if rule.take_secondary else []
    return [("Which series", f"{', '.join(said)}; where several fit, none")]


def _normalisation(plan: StudyPlan) -> list[tuple[str, str]]:
    given = plan.preprocessing.given
    if given is not None:
        how = f"of every input {given.mean:g} is taken off, and the rest divided by {given.deviation:g}"
        return [("Intensities", f"{how}: the plan says so, and nothing is counted for it")]
    if plan.preprocessing.normalise == "none" or not plan.training.rounds:
        return []
    return [
        ("Before round 1", "the training images of all hospitals are counted, by class, with the sums of their "
         "intensities and squared intensities: under masks, only the sum over the hospitals can be read"),
    ]  # fmt: skip


def _robustness(plan: StudyPlan) -> list[tuple[str, str]]:
    """What is done against changes that spoil the model, and what it tells of us."""
    chosen, said = plan.robustness, []
    if chosen.clip is not None:
        said.append(f"a change longer than {chosen.clip:g} is shortened, and that it was is summed")
    if chosen.vote:
        said.append(
            "we vote, with one bit under masks, against a new model whose mean loss on our held-back patients is more "
            f"than {chosen.tolerance:.0%} above that of the model before, or above it at all where it is so much worse "
            "than a guess, and by how much that mean rose is summed; "
            "what most vote down, and is worse in the mean over hospitals, does not count"
            + (f", from round {chosen.warm_up + 1} on" if chosen.warm_up else "")
        )
    if chosen.leave_out:
        said.append(
            "after such a round hospitals are left out in turn, also without having done anything wrong"
            + ("" if plan.bands else "; from two such rounds the coordinator can estimate one hospital's change")
        )
    return [("Against bad changes", "; ".join(said))] if said else []


def _group(plan: StudyPlan, site: str) -> list[tuple[str, str]]:
    """With whom alone our change is summed, where the plan has groups."""
    if not has_groups(plan) or site not in trainers(plan):
        return []
    others = sorted(group_of(plan, "train", site) - {site})
    return [
        ("Our group", f"our change is summed with those of {', '.join(others)} only, and the coordinator reads that "
         "sum: if the others of the group told it theirs, it would know ours. The model is made of the median of all "
         "groups, so that a bad change in one of them does not count"),
    ]  # fmt: skip


def difference(file: Dossier) -> list[str]:
    """A unified diff against the last approved plan, empty if there is none."""
    if file.before is None:
        return []
    old, new = (
        json.dumps(plan.model_dump(mode="json"), indent=1, sort_keys=True).splitlines()
        for plan in (file.before, file.plan)
    )
    return list(difflib.unified_diff(old, new, file.before.label, file.plan.label, lineterm="", n=0))


def forget_scan(journal: Journal, wanted: str) -> KeptPlan:
    """Have the agent look at our data again, after the label table or the policy was changed."""
    with journal.transaction():
        kept = find_plan(journal, wanted)
        if kept.state not in {"scanned", "unsuitable"}:
            raise ConfigError(f"the plan is {kept.state}: only a plan that waits for a decision can be scanned again")
        journal.set_plan(kept.study, "received")
    return kept
