"""Asks the policy in force before anything is computed or leaves, and keeps in the trail what it answered.

The facts are gathered here, from what the agent knows by itself; what they lead to is decided in
`silo_agent.policy.gates`. The policy is read anew each time, so a tightening holds from the next question on.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from boundary.canonical import canonical_bytes, digest, parse_json
from boundary.messages import PHASES, Phase, WorkOrder
from boundary.parties import last_round, taking_part, validators
from boundary.plan import StudyPlan
from boundary.stored import stored_bits
from compliance.errors import ComplianceError
from compliance.events import CELL, BudgetRefused, GateRefused, GatesPassed, PolicyAdopted, WorkPaused, WorkResumed
from silo_agent.budget import Terms, terms_of
from silo_agent.config import Resources
from silo_agent.errand import device_of
from silo_agent.errors import ConfigError, WorkFailed
from silo_agent.exclusions import read_exclusions, written_at
from silo_agent.exposure import side_of
from silo_agent.journal import Journal, KeptOrder
from silo_agent.policy.adoption import PolicyInForce
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.facts import DataFacts, Leaving, NothingSpent, Request, Spending, Unguarded, Using
from silo_agent.policy.files import load_policy
from silo_agent.policy.gates import GATES, check_modalities, check_plan, judge
from silo_agent.policy.model import Policy, SiloDataset, dataset_of
from silo_agent.state import StateFolder
from silo_agent.withdrawal import master_key, withdraw_reference

PAUSED = "PAUSED_BY_STEWARD"
_IN_FORCE, PAUSE = "policy in force", "paused"
_WORD_BYTES, _MOST_MESSAGES = 8, 4_000_000  # a masked word at most; all other messages of a round (docs/protocol.md)
_MEASURED = {"classification": {"loss", "accuracy", "auroc"}, "segmentation": {"loss", "dice"}}
NO_POLICY = str(digest(b""))
PAID = frozenset({"train", "personalise"})  # phases that train on patients' images: with a guarantee, from their budget


@dataclass(frozen=True, slots=True)
class Asked:
    """What the policy was asked about one order, to be asked again while the work goes on."""

    order: KeptOrder
    request: Request


@dataclass(frozen=True, slots=True)
class Permission:
    """The policy of one hospital at work."""

    folder: StateFolder
    journal: Journal
    resources: Resources
    now: Callable[[], datetime]

    def in_force(self) -> PolicyInForce:
        """Raises `PolicyRefused` if none is. What is in force is in the trail before anything is asked of it."""
        try:
            force = load_policy(self.folder.root)
        except ConfigError as why:
            raise PolicyRefused(PolicyCode.POLICY_NOT_IN_FORCE, str(why)) from why
        announce(self.journal, force, self.now())
        return force

    @property
    def policy(self) -> Policy:
        return self.in_force().policy

    def dataset(self, plan: StudyPlan) -> SiloDataset:
        """Raises `PolicyRefused` if the policy does not name the plan's data set."""
        return dataset_of(self.policy, plan.dataset.name)

    def may_read(self, plan: StudyPlan) -> None:
        """Whether the archive may be read for a proposal. Raises `PolicyRefused` where no approval could follow."""
        check_modalities(plan.dataset.name, plan.dataset.modalities, self.dataset(plan).rules)

    def least(self, plan: StudyPlan) -> int:
        """The fewest hospitals in a sum that this plan's results may go into. Raises `PolicyRefused` if none may."""
        force = self.in_force()
        check_plan(plan, force, self.now())
        return force.policy.release.min_parties_in_sum

    # --- whose images ----------------------------------------------------------------------------------
    def excluded(self, dataset: SiloDataset) -> frozenset[str]:
        """Who is on the hospital's list. Whoever is in the data of a study here has withdrawn from now on.

        Raises `PolicyRefused` for a list that cannot be read.
        """
        listed = read_exclusions(Path(dataset.rules.exclusions.path))
        new = listed - {one.reference for one in self.journal.private.withdrawals()}
        if new:
            master, studies = master_key(self.folder), [kept.study for kept in self.journal.plans()]
            for reference in sorted(new):
                if any(side_of(self.journal, master, study, reference) is not None for study in studies):
                    withdraw_reference(self.journal, self.folder, reference, "keep", self.now())
        return listed

    # --- one order -------------------------------------------------------------------------------------
    def ask(self, order: KeptOrder, message: WorkOrder, plan: StudyPlan, patients: int) -> tuple[Asked, Terms | None]:
        """Whether the work of this order may begin; what it would cost. Changes nothing.

        `patients` take part in it here. Raises `PolicyRefused`, or `WorkFailed` for a plan that cannot be carried out
        here.
        """
        force, phase = self.in_force(), message.collection.phase
        dataset = dataset_of(force.policy, plan.dataset.name)
        terms = terms_of(plan, dataset)
        request = Request.of(
            plan,
            min(order.round, last_round(plan)),  # to personalise is no further round that others learn from
            site=self.journal.silo,
            standing=force.standing,
            data=DataFacts.of(plan, patients=patients, exclusions_at=written_at(Path(dataset.rules.exclusions.path))),
            model_size=max(blob.size for blob in message.blobs),
            spending=self._spending(order.study, phase, terms, held_back=dataset.is_held_back(plan)),
            leaving=_leaving(message, plan),
            using=self._using(order, force.policy),
        )
        try:
            judge(request, force.policy, self.now())
        except PolicyRefused as why:
            if terms is not None:
                why.entry = self._over_cap(order, why.reason, request.spending, terms)
            raise
        return Asked(order, request), terms

    def _over_cap(
        self, order: KeptOrder, reason: PolicyCode, asked: Spending | Unguarded | NothingSpent, terms: Terms
    ) -> BudgetRefused | None:
        """As `silo_agent.releases.reserve` says it."""
        if not isinstance(asked, Spending) or reason not in {PolicyCode.STUDY_EPSILON, PolicyCode.LIFETIME_EPSILON}:
            return None
        balance, about = self.journal.ledger.balance(terms.declared.population, order.study, terms.caps), {
            "study": order.study, "round": order.round,
        }  # fmt: skip
        if reason is PolicyCode.STUDY_EPSILON:
            left = max(0.0, terms.declared.study_epsilon - balance.study.epsilon)
            return BudgetRefused.model_validate(about | {"cap": "study", "asked": asked.epsilon_study, "left": left})
        left = max(0.0, terms.declared.lifetime_epsilon - balance.lifetime.epsilon)
        return BudgetRefused.model_validate(about | {"cap": "lifetime", "asked": asked.epsilon_lifetime, "left": left})

    def _spending(
        self, study: str, phase: str, terms: Terms | None, *, held_back: bool
    ) -> Spending | Unguarded | NothingSpent:
        if phase not in PAID and (terms is not None or held_back):
            return NothingSpent()
        if terms is None:
            return Unguarded()
        try:
            of_study, lifetime = self.journal.ledger.after(terms.declared.population, study, terms.event, terms.caps)
        except ComplianceError as why:
            raise WorkFailed(why.code, str(why)) from why
        return Spending(of_study.epsilon, lifetime.epsilon, terms.delta, terms.noise_multiplier)

    def _using(self, order: KeptOrder, policy: Policy) -> Using:
        devices = 0 if device_of(self.resources, policy.resources.devices) == "cpu" else 1
        return Using(devices, self.hours_worked(order))

    def begin(self, asked: Asked) -> None:
        """Every gate once more, with the time and the policy of now; its entry, in the transaction of the start."""
        force, now, order = self.in_force(), self.now(), asked.order
        request = replace(asked.request, standing=force.standing)
        passed = judge(request, force.policy, now)
        event = GatesPassed(
            study=order.study,
            round=order.round,
            phase=order.phase,  # type: ignore[arg-type]  # a word of the protocol, checked when the order came
            order=order.digest,
            policy=force.digest,
            gates=tuple(one.gate for one in passed),
        )
        self.journal.record(event, now)

    def still(self, asked: Asked) -> None:
        """Raises `PolicyRefused` if what was allowed is not any more. The epsilons are those of before it was spent."""
        force = self.in_force()
        using = replace(asked.request.using, hours=self.hours_worked(asked.order))
        judge(replace(asked.request, standing=force.standing, using=using), force.policy, self.now())

    def refused(self, order: KeptOrder, why: PolicyRefused) -> None:
        """The entry of a refusal, in the transaction in which the order is refused."""
        with suppress(PolicyRefused):
            self.in_force()  # what refuses may be new, and its own entry was taken back with the start
        event = GateRefused(
            study=order.study,
            round=order.round,
            phase=order.phase,  # type: ignore[arg-type]
            order=order.digest,
            policy=why.policy or self._last(),
            gate=why.gate,
            code=why.reason.value,
        )
        self.journal.record(event, self.now())
        if why.entry is not None:
            self.journal.record(why.entry, self.now())

    def _last(self) -> str:
        """The policy that was in force last: the refusal may be that there is none now."""
        before = self.journal.fact(_IN_FORCE)
        return NO_POLICY if before is None else str(parse_json(before)["policy"])

    # --- hours -----------------------------------------------------------------------------------------
    def opens_before(self, due: datetime) -> bool:
        """Whether the policy's hours are over now and begin again before `due`."""
        hours, now = self.policy.hours, self.now()
        if hours.is_open(now):
            return False
        opens = hours.next_change(now)
        return opens is not None and opens < due

    @property
    def is_paused(self) -> bool:
        """Whether a person of this hospital said that nothing is to be computed (`silo-agent pause`)."""
        return holds_still(self.journal)

    def held(self, code: str | None) -> None:
        """The entry of work that holds still because of `code`, or goes on."""
        with self.journal.transaction():
            self.journal.record(WorkResumed() if code is None else WorkPaused(code=code), self.now())

    def hours_worked(self, order: KeptOrder) -> float:
        """On this round and phase, over all attempts and starts."""
        return float((self.journal.fact(_worked(order)) or b"0").decode()) / 3600

    def worked(self, order: KeptOrder, seconds: float) -> None:
        """Add to it."""
        total = 3600 * self.hours_worked(order) + seconds
        self.journal.set_fact(_worked(order), f"{total:.3f}".encode())


def _worked(order: KeptOrder) -> str:
    return f"worked {order.study}/{order.round}/{order.phase}"


def _leaving(message: WorkOrder, plan: StudyPlan) -> Leaving:
    """At most so much leaves: a masked word of the plan's ring for each weight, and everything else that is sent."""
    phase, vector = message.collection.phase, 0
    if phase == "train":
        vector = message.model.size * plan.aggregation.ring // stored_bits(plan.aggregation.downlink)
    metrics = frozenset() if phase == "train" and plan.bands else _metrics(phase, plan)
    return Leaving(vector + _MOST_MESSAGES, metrics, CELL)


def _metrics(phase: Phase, plan: StudyPlan) -> frozenset[str]:
    """What a phase tells of the patients, by the names that a policy's `release.metrics` has."""
    match phase:
        case "train":
            return frozenset({"loss"})
        case "evaluate" | "validate":
            return frozenset(_MEASURED[plan.task])  # a vote says less than the loss it comes from
        case "statistics":
            return frozenset({"intensities", "cohort"} if plan.dataset.described else {"intensities"})
        case "personalise":
            return frozenset({"comparison"})


def forecast(plan: StudyPlan, force: PolicyInForce, patients: int | None, now: datetime) -> list[PolicyRefused]:
    """All that the policy would refuse of this plan at any hour, for the steward: empty if it can run.

    `patients` is how many take part by the scan, None before it. Size and budget are asked of each round.
    """
    rules, site = force.policy.dataset.get(plan.dataset.name), force.policy.site
    if patients is None:
        patients = 0 if rules is None else rules.min_patients
    phases = [phase for phase in PHASES if site in taking_part(plan, phase) and not (phase == "train" and plan.bands)]
    metrics = frozenset[str]().union(*(_metrics(phase, plan) for phase in phases))
    request = Request.of(
        plan,
        last_round(plan),
        site=site,
        standing=force.standing,
        data=DataFacts.of(plan, patients=patients, exclusions_at=now),
        model_size=0,
        spending=_foreseen(plan, force.policy),
        leaving=Leaving(0, metrics, CELL),
        using=Using(0, 0.0),
    )
    found: list[PolicyRefused] = []
    for name, check in GATES:
        try:
            if name != "hours":
                check(request, force.policy, now)
        except PolicyRefused as why:
            if all(why.detail != other.detail for other in found):  # a data set that is not named fails several gates
                found.append(why)
    return found


def _foreseen(plan: StudyPlan, policy: Policy) -> Spending | Unguarded | NothingSpent:
    """What all rounds have in common: the noise and the delta. Epsilons are those before the first."""
    if policy.site in validators(plan):
        return NothingSpent()
    if not plan.bands:
        return Unguarded()
    try:
        terms = terms_of(plan, dataset_of(policy, plan.dataset.name))
    except (PolicyRefused, WorkFailed):  # a data set that is not named; no noise is enough: both are said elsewhere
        return NothingSpent()
    return NothingSpent() if terms is None else Spending(0.0, 0.0, terms.delta, terms.noise_multiplier)


def announce(journal: Journal, force: PolicyInForce, now: datetime) -> None:
    """Log that this policy is in force, unless the log says so. Raises `PolicyRefused` for one that was replaced.

    The file that puts a policy into force is not in the journal's transactions: who was killed in between finds it in
    force without an entry, and this makes it before the policy is asked for the first time.
    """
    number = force.standing.pin.number
    said = canonical_bytes({"number": number, "policy": force.digest})
    with journal.transaction():
        before = journal.fact(_IN_FORCE)
        if before == said:
            return
        if before is not None and parse_json(before)["number"] >= number:
            raise PolicyRefused(
                PolicyCode.POLICY_ROLLED_BACK,
                f"policy number {number} was replaced by number {parse_json(before)['number']} here: restore the newer "
                "approvers.json, or have its text signed anew",
            )
        journal.record(PolicyAdopted(number=number, policy=force.digest, how=force.standing.pin.how), now)
        journal.set_fact(_IN_FORCE, said)


def holds_still(journal: Journal) -> bool:
    """Whether a person of this hospital said that nothing is to be computed (`silo-agent pause`)."""
    return bool(journal.fact(PAUSE))


def pause(journal: Journal, *, is_paused: bool, now: datetime) -> bool:
    """A person has everything hold still, or go on; whether that changes anything."""
    with journal.transaction():
        if bool(journal.fact(PAUSE)) == is_paused:
            return False
        journal.set_fact(PAUSE, b"paused" if is_paused else b"")
        journal.record(WorkPaused(code=PAUSED) if is_paused else WorkResumed(), now)
        return True
