"""A whole study of five hospitals and five rounds, made up with real keys, leaves, trees, heads and signatures.

`made_bundle()` is the study as it should be: a guarantee per patient; ucl drops out of round 2 after it has dealt its
shares; leuven refuses round 3, before which ucl tightens its policy; a patient of charite withdraws before round 4,
whose first attempt fails; an officer releases the model of round 5. Everybody's log is shown and cosigned after every
round, and once more at the end.

A test changes the story before it is signed: `made_bundle(edit=...)` is handed the list of steps, `without`,
`instead`, `more` make such edits. `withhold` shows entries as hashes. `made_bundle(logs=...)` replaces fields of the
finished bundle. Keys are `infra.golden.key(party)` and `key("steward of " + silo)`; `trust()` has the public ones.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

from boundary.approval import Approval, SignedApproval, sign_approval
from boundary.canonical import digest
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.messages import BlobRef, Phase
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, plan_from_toml, study_id
from boundary.receipt import Receipt
from boundary.secagg.context import sharers_of, survivors_of, transcript_of
from boundary.secagg.ring import Encoding
from compliance import events as say
from compliance.accountant import epsilon
from compliance.bundle import Bundle, LogCopy, SignedReceipt, Trust
from compliance.events import AnyEvent
from compliance.gates import GATES
from compliance.merkle import Tree, leaf_hash
from compliance.privacy import PoissonGaussian
from compliance.records import CohortDecision, GlobalMetrics, RoundRecord, Timing, Traffic, to_bytes
from compliance.terms import PlanTerms
from compliance.trail import SALT_BYTES, leaf_bytes
from infra.golden import NOW, card, key, roster, sha

SILOS = ("charite", "karolinska", "leuven", "st-olavs", "ucl")
PARTIES = (COORDINATOR, *SILOS)
MOST_PATIENTS = {"charite": 1200, "karolinska": 800, "leuven": 500, "st-olavs": 300, "ucl": 2000}
ROUNDS = 5
VECTOR_BYTES = {"train": 28_412_928, "evaluate": 640}
TITLE = "Contrast agent on chest CT"
WITHDRAWN = sha("entry of the private log of charite")
ALL_DISCLOSED = ("budget", "intake", "withdrawals")

EPSILON = "epsilon = 8.0"
GUARANTEE = f"""mechanism = "patient-dp"
{EPSILON}
clip = 1.0
patients_per_step = 24
steps = 10
images_per_patient = 4"""


@dataclass(frozen=True, slots=True)
class Said:
    """One entry of a log that is not written yet."""

    log: str
    actor: str
    time: datetime
    event: AnyEvent


@dataclass(frozen=True, slots=True)
class Witnessed:
    """Everybody shows a head and cosigns everybody's, and logs it if `logged`."""

    round: int
    time: datetime
    logged: bool = True


Step = Said | Witnessed
Edit = Callable[[list[Step]], list[Step]]


# --- the plan ----------------------------------------------------------------------------------------
def plan_toml(
    *, guarantee: str = GUARANTEE, disclose: Iterable[str] = ALL_DISCLOSED, title: str = TITLE, retain_years: int = 10
) -> str:
    hospitals = "".join(f'[[hospitals]]\nsilo = "{silo}"\nsigning_key = "{key(silo).public.text}"\n' for silo in SILOS)
    shown = ", ".join(f'"{what}"' for what in disclose)
    quoted = title.replace("\\", "\\\\").replace('"', '\\"')
    return f"""
version = 1
name = "ct-contrast"
revision = 4
{hospitals}
[purpose]
title = "{quoted}"
statement = "Find out from the image whether contrast agent was given.\\nScientific research, no use in care."
legal_basis = "GDPR 6(1)(e) and 9(2)(j)"
ethics_reference = "REK 2026/118"
expires = 2027-12-31
retain_years = {retain_years}
[model]
name = "cnn-small"
version = 1
[preprocessing]
size = [64, 64]
intensity = "window"
low = -200
high = 300
[labels]
column = "contrast"
classes = ["no", "yes"]
minimum_per_class = 5
[dataset]
name = "chest-ct"
modalities = ["CT"]
min_patients = 50
[training]
rounds = {ROUNDS}
optimizer = "sgd"
learning_rate = 0.5
weighting = "equal"
[privacy]
{guarantee}
[aggregation]
quorum = 3
[evidence]
disclose = [{shown}]
"""


@cache
def made_plan(**changes: Any) -> StudyPlan:
    return plan_from_toml(plan_toml(**changes))


def plain_plan(**changes: Any) -> StudyPlan:
    """The same study without a guarantee per patient."""
    return made_plan(guarantee='mechanism = "none"', **changes)


def steward_of(silo: str) -> str:
    """The name of the steward's key: `key(steward_of("ucl"))`."""
    return f"steward of {silo}"


def trust() -> Trust:
    return Trust(
        coordinator=key(COORDINATOR).public,
        hospitals={silo: key(silo).public for silo in SILOS},
        stewards={silo: key(steward_of(silo)).public for silo in SILOS},
    )


@cache
def release_of(plan: StudyPlan, silo: str) -> PoissonGaussian | None:
    """What a round costs in a hospital."""
    if plan.privacy.mechanism == "none":
        return None
    return PlanTerms.of(plan.privacy, plan.training.rounds, MOST_PATIENTS[silo]).event


# --- the story ---------------------------------------------------------------------------------------
class Story:
    """Who says what, in order of time; five seconds between two entries."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan, self.study, self.now = plan, study_id(plan), NOW
        self.steps: list[Step] = []
        self.records: list[RoundRecord] = []
        self.spent: dict[str, list[PoissonGaussian]] = {silo: [] for silo in SILOS}
        self.model = sha("model 0")
        self.policies = dict.fromkeys(SILOS, 0)

    def say(self, log: str, event: AnyEvent, *, actor: str | None = None) -> None:
        self.now += timedelta(seconds=5)
        self.steps.append(Said(log, actor or log, self.now, event))

    def witness(self, number: int, *, logged: bool = True) -> None:
        self.now += timedelta(seconds=5)
        self.steps.append(Witnessed(number, self.now, logged))

    def tell(self) -> None:
        self._begin()
        for number in range(1, self.plan.training.rounds + 1):
            self.now += timedelta(minutes=20)
            self._round(number)
            self.witness(number)
        self._end()

    def _begin(self) -> None:
        plan_digest = digest_of(self.plan)
        for silo in SILOS:
            fingerprint = key(silo).public.fingerprint
            self.say(COORDINATOR, say.HospitalInvited(silo=silo))
            self.say(COORDINATOR, say.EnrolmentAsked(silo=silo, fingerprint=fingerprint), actor=silo)
            self.say(COORDINATOR, say.HospitalAdmitted(silo=silo, fingerprint=fingerprint, roster_version=1))
            self.say(
                silo, say.HospitalEnrolled(fingerprint=fingerprint, coordinator=key(COORDINATOR).public.fingerprint)
            )
            self._adopt(silo, "signed")
        issued = made_roster()
        self.say(COORDINATOR, say.RosterIssued(roster_version=1, roster_digest=digest(issued)))
        self.say(COORDINATOR, say.PlanPublished(study=self.study, plan_digest=plan_digest))
        for silo in SILOS:
            self.say(silo, say.RosterTrusted(roster_version=1, roster_digest=digest(issued)))
            self.say(silo, say.PlanReceived(study=self.study, plan_digest=plan_digest))
            self.say(silo, intake_of(self.study, silo))
            approval = say.PlanApprovalGiven(
                study=self.study, plan_digest=plan_digest, silo=silo, dataset_digest=dataset_of(silo)
            )
            self.say(silo, approval)
            self.say(COORDINATOR, approval, actor=silo)
        self.say(COORDINATOR, say.StudyDriven(study=self.study, fence=1))
        self.witness(0)

    def _round(self, number: int) -> None:
        about: dict[str, Any] = {"study": self.study, "round": number}
        if number == 4:
            self.say("charite", say.PatientWithdrawn(private=WITHDRAWN))
            self.say("charite", say.WithdrawalEffective(**about, private=WITHDRAWN, decision="keep"))
        self.say(COORDINATOR, say.RoundOpened(**about, model=self.model))
        ready, lost, attempt, absent = SILOS, (), 1, {}
        if number == 2:
            lost, absent = ("ucl",), {"ucl": "LOST"}
        if number == 3:
            ready, absent = tuple(silo for silo in SILOS if silo != "leuven"), {"leuven": "DISK_FULL"}
            self._adopt("ucl", "tightened")
        for silo in SILOS:
            self._start(silo, number, "train")
            self._train(silo, number)
            if silo in ready:
                self.say(silo, say.WorkDone(**about, phase="train", order=order_of(number, "train")))
            else:
                self.say(silo, say.WorkRefused(**about, phase="train", code="DISK_FULL"))
        if number == 4:
            failed = say.AttemptFailed(**about, phase="train", attempt=1, reason="CANNOT_UNMASK")
            self.say(COORDINATOR, failed)
            attempt = 2
        train, survivors = self._sum(number, "train", attempt, ready, lost, absent)
        model_out = sha(f"model {number}")
        left = tuple(silo for silo in ready if silo not in lost)
        for silo in left:
            self._start(silo, number, "evaluate")
            self.say(silo, say.WorkDone(**about, phase="evaluate", order=order_of(number, "evaluate")))
        evaluate, _ = self._sum(number, "evaluate", 1, left, (), {})
        self._close(number, train, evaluate, model_out, transcript_of(survivors, model_out), ready)

    def _adopt(self, silo: str, how: Literal["signed", "tightened"]) -> None:
        self.policies[silo] += 1
        number = self.policies[silo]
        self.say(silo, say.PolicyAdopted(number=number, policy=policy_of(silo, number), how=how))

    def _start(self, silo: str, number: int, phase: Phase) -> None:
        about: dict[str, Any] = {"study": self.study, "round": number, "phase": phase, "order": order_of(number, phase)}
        self.say(silo, say.GatesPassed(**about, policy=policy_of(silo, self.policies[silo]), gates=GATES))
        self.say(silo, say.TrainingStarted(**about, start=1))

    def _train(self, silo: str, number: int) -> None:
        release = release_of(self.plan, silo)
        if release is None:
            return
        spent = self.spent[silo]
        spent.append(release)
        delta = 1 / (10 * MOST_PATIENTS[silo])
        cost = epsilon(spent, delta)
        self.say(
            silo,
            say.BudgetReserved(
                study=self.study, round=number, release=release,
                epsilon_study=cost, delta_study=delta, epsilon_lifetime=cost, delta_lifetime=delta,
            ),
        )  # fmt: skip
        self.say(silo, say.BudgetCommitted(study=self.study, round=number, release=release))

    def _sum(
        self, number: int, phase: Phase, attempt: int, ready: tuple[str, ...], lost: tuple[str, ...],
        absent: dict[str, str],
    ) -> tuple[CohortDecision, str]:  # fmt: skip
        about: dict[str, Any] = {"study": self.study, "round": number, "phase": phase, "attempt": attempt}
        place = f"{number} {phase} {attempt}"
        reason = "REST_REFUSED" if absent and not lost else "ALL_THERE"
        without = tuple(sorted(silo for silo in absent if silo not in lost))
        self.say(COORDINATOR, say.CohortDecided(**about, members=ready, absent=without, reason=reason))
        cohort = sha(f"cohort {place}")
        sharers = sharers_of(cohort, ready)
        for silo in ready:
            self.say(silo, say.SecretsShared(**about, cohort=cohort))
        members = tuple(silo for silo in ready if silo not in lost)
        vectors = {silo: sha(f"vector {place} {silo}") for silo in members}
        for silo, vector in vectors.items():
            size = VECTOR_BYTES[phase]
            self.say(silo, say.ContributionReleased(**about, sharers=sharers, vector=vector, size=size))
        survivors = survivors_of(sharers, vectors)
        for silo in members:
            self.say(silo, say.SurvivorsAgreed(**about, survivors=survivors))
            helped = say.UnmaskingHelped(**about, survivors=survivors, surviving=members, lost=lost)
            self.say(silo, helped)
        self.say(COORDINATOR, say.SumOpened(**about, survivors=survivors, surviving=members))
        decision = CohortDecision(
            phase=phase, attempt=attempt, reason=reason, members=members, absent=absent, closed_at=self.now
        )
        return decision, survivors

    def _close(
        self, number: int, train: CohortDecision, evaluate: CohortDecision, model_out: str, transcript: str,
        ready: tuple[str, ...],
    ) -> None:  # fmt: skip
        record = record_of(self, number, train, evaluate, model_out, transcript, ready)
        self.records.append(record)
        who = {"contributing": train.members, "absent": tuple(sorted(train.absent))}
        about: dict[str, Any] = {"study": self.study, "round": number}
        closed = say.RoundClosed(
            **about, **who, model_in=self.model, model_out=model_out, tried=None, record=digest(to_bytes(record))
        )
        self.say(COORDINATOR, closed)
        receipt = receipt_of(self.plan, record)
        self.say(COORDINATOR, say.ReceiptSigned(**about, receipt=receipt.digest))
        for silo in SILOS:
            self.say(silo, say.RoundReceived(**about, **who, model=model_out, tried=None, transcript=transcript))
            if silo in train.members:
                self.say(silo, say.ReceiptSigned(**about, receipt=receipt.digest))
        self.model = model_out

    def _end(self) -> None:
        self.now += timedelta(minutes=5)
        self.say(COORDINATOR, say.StudyEnded(study=self.study, reason="ALL_ROUNDS_DONE"))
        for silo in SILOS:
            self.say(silo, say.StudyEnded(study=self.study, reason="ALL_ROUNDS_DONE"))
            self.say(silo, say.DataPurged(study=self.study, what="caches", files=180, bytes=52_428_800))
        officer = key("officer").public.fingerprint
        decided = say.ReleaseDecided(
            study=self.study,
            round=self.plan.training.rounds,
            model=self.model,
            manifest=sha("manifest of the evidence"),
            decision="release",
            officer=officer,
        )
        self.say(COORDINATOR, decided)
        self.witness(self.plan.training.rounds, logged=False)


def intake_of(study: str, silo: str) -> say.IntakeCounted:
    at = SILOS.index(silo)
    return say.IntakeCounted(
        study=study, dataset_digest=dataset_of(silo), usable=True, patients=150 + 40 * at, used=310 + 90 * at,
        excluded={"NO_LABEL": 10 * at, "NOT_DICOM": 20, "BURNED_IN": 10},
    )  # fmt: skip


def order_of(number: int, phase: Phase) -> str:
    return sha(f"order {number} {phase}")


def policy_of(silo: str, number: int) -> str:
    return sha(f"policy {number} of {silo}")


def dataset_of(silo: str) -> str:
    return sha(f"data set of {silo}")


def record_of(
    story: Story, number: int, train: CohortDecision, evaluate: CohortDecision, model_out: str, transcript: str,
    ready: tuple[str, ...],
) -> RoundRecord:  # fmt: skip
    private = story.plan.privacy.mechanism != "none"
    auroc = (0.61, 0.72, 0.78, 0.83, 0.86)[(number - 1) % 5]
    metrics = GlobalMetrics(
        count=412, loss=0.71 - 0.06 * number, accuracy=auroc - 0.05, auroc=auroc, balanced_accuracy=auroc - 0.04,
        confusion=((180 + number, 36 - number), (50 - 4 * number, 146 + 4 * number)),
    )  # fmt: skip
    return RoundRecord(
        study=story.study,
        round=number,
        model_in=story.model,
        model_out=BlobRef(digest=model_out, size=VECTOR_BYTES["train"]),
        registered=SILOS,
        ready=ready,
        contributing=train.members,
        absent=train.absent,
        train=train,
        transcript=transcript,
        update_norm=0.5,
        clipped=0,
        below=(0, 1, 3, 5) if private else (),
        next_encoding=Encoding(exponent=20, most=5),
        evaluate=evaluate,
        train_loss=None if private else 0.8 - 0.07 * number,
        metrics=metrics,
        timing=Timing(training=61.5, transport=12.0, aggregation=3.25, evaluation=8.0, total=90.0),
        traffic={silo: Traffic(up=VECTOR_BYTES["train"] + 640, down=VECTOR_BYTES["train"]) for silo in train.members},
        committed_at=story.now,
    )


def receipt_of(plan: StudyPlan, record: RoundRecord) -> Receipt:
    return Receipt(
        study=record.study,
        plan_digest=digest_of(plan),
        round=record.round,
        model_in=record.model_in,
        model_out=record.model_out.digest,
        tried=None if record.tried is None else record.tried.digest,
        transcript=record.transcript,
        contributing=record.contributing,
        absent=tuple(sorted(record.absent)),
    )


@cache
def made_roster() -> bytes:
    return roster(members=tuple(card(silo) for silo in SILOS)).data


# --- edits -------------------------------------------------------------------------------------------
def without(*kinds: type[AnyEvent], log: str | None = None, round: int | None = None) -> Edit:  # noqa: A002
    """Leave out the entries of these kinds: in this log, about this round, or all."""
    return lambda steps: [step for step in steps if not _is(step, kinds, log, round)]


def instead(kind: type[AnyEvent], log: str | None = None, round: int | None = None, **changes: Any) -> Edit:  # noqa: A002
    """Change what these entries say."""

    def edit(steps: list[Step]) -> list[Step]:
        return [
            replace(step, event=step.event.model_copy(update=changes))
            if isinstance(step, Said) and _is(step, (kind,), log, round)
            else step
            for step in steps
        ]

    return edit


def more(*events: AnyEvent, log: str, before: type[AnyEvent] | None = None, round: int | None = None) -> Edit:  # noqa: A002
    """Put entries before the first one of a kind in the same log, or at the end before the last heads."""

    def edit(steps: list[Step]) -> list[Step]:
        kinds = (before,) if before else ()
        at = next((at for at, step in enumerate(steps) if _is(step, kinds, log, round)), len(steps) - 1)
        time = steps[at - 1].time + timedelta(seconds=1)
        return [*steps[:at], *(Said(log, log, time, event) for event in events), *steps[at:]]

    return edit


def both(*edits: Edit) -> Edit:
    def edit(steps: list[Step]) -> list[Step]:
        for one in edits:
            steps = one(steps)
        return steps

    return edit


def _is(step: Step, kinds: Iterable[type[AnyEvent]], log: str | None, number: int | None) -> bool:
    return (
        isinstance(step, Said)
        and isinstance(step.event, tuple(kinds))
        and (log is None or step.log == log)
        and (number is None or getattr(step.event, "round", None) == number)
    )


# --- writing it down ---------------------------------------------------------------------------------
class Book:
    """All logs as they are written, with their heads and cosignatures."""

    def __init__(self, study: str) -> None:
        self.study = study
        self.entries: dict[str, list[bytes]] = {party: [] for party in PARTIES}
        self.events: dict[str, list[AnyEvent]] = {party: [] for party in PARTIES}
        self.trees = {party: Tree() for party in PARTIES}
        self.heads: dict[str, list[Checkpoint]] = {party: [] for party in PARTIES}
        self.cosigned: dict[str, dict[int, dict[str, Cosignature]]] = {party: {} for party in PARTIES}

    def write(self, step: Said) -> None:
        sequence = len(self.entries[step.log]) + 1
        leaf = _leaf(step, sequence)
        self.entries[step.log].append(leaf)
        self.events[step.log].append(step.event)
        self.trees[step.log].append(leaf_hash(leaf))

    def witness(self, step: Witnessed) -> None:
        heads = [self._head(party) for party in PARTIES]
        for witness in PARTIES:
            for head in heads:
                if head.log != witness or witness != COORDINATOR:  # a hospital is shown its own head too
                    self.cosigned[head.log][head.size][witness] = _cosigned(head, witness, step.time)
        seen = tuple(say.SeenHead(log=head.log, size=head.size, root=head.root) for head in heads)
        if step.logged:
            for witness in PARTIES:
                event = say.HeadsWitnessed(study=self.study, round=step.round, heads=seen)
                self.write(Said(witness, witness, step.time, event))

    def _head(self, party: str) -> Checkpoint:
        tree = self.trees[party]
        head = _head(party, tree.size, tree.root())
        if head not in self.heads[party]:
            self.heads[party].append(head)
        self.cosigned[party].setdefault(head.size, {})
        return head

    def _shown(self, party: str, withhold: Callable[[str, AnyEvent], bool]) -> Iterator[bytes]:
        for entry, event in zip(self.entries[party], self.events[party], strict=True):
            yield leaf_hash(entry) if withhold(party, event) else entry

    def copies(self, withhold: Callable[[str, AnyEvent], bool]) -> dict[str, LogCopy]:
        return {
            party: LogCopy(
                party=party,
                entries=tuple(self._shown(party, withhold)),
                heads=tuple(self.heads[party]),
                cosignatures=self.cosigned[party],
            )
            for party in PARTIES
        }


_LEAVES: dict[tuple[Any, ...], bytes] = {}


def _leaf(step: Said, sequence: int) -> bytes:
    """Most entries of two stories are the same: each is written once."""
    about = (step.log, step.actor, step.time, sequence, type(step.event), step.event.model_dump_json())
    if about not in _LEAVES:
        salt = hashlib.sha256(f"salt {step.log} {sequence}".encode()).digest()[:SALT_BYTES]
        _LEAVES[about] = leaf_bytes(
            step.event, log=step.log, sequence=sequence, time=step.time, actor=step.actor, salt=salt
        )
    return _LEAVES[about]


@cache
def _head(party: str, size: int, root: bytes) -> Checkpoint:
    return Checkpoint.sign(party, size, root, key(party))


@cache
def _cosigned(head: Checkpoint, witness: str, time: datetime) -> Cosignature:
    return Cosignature.sign(head, key(head.log).public, witness, key(witness), time)


@cache
def _story(plan: StudyPlan) -> Story:
    story = Story(plan)
    story.tell()
    return story


def approval_of(plan: StudyPlan, silo: str, at: datetime = NOW) -> SignedApproval:
    said = Approval(
        silo=silo, plan_digest=digest_of(plan), dataset_digest=dataset_of(silo), role="data_steward", approved_at=at
    )
    return sign_approval(said, key(steward_of(silo)))


def signed_receipts(plan: StudyPlan, records: Iterable[RoundRecord]) -> Iterator[tuple[int, SignedReceipt]]:
    for record in records:
        receipt = receipt_of(plan, record)
        signers = (COORDINATOR, *record.contributing)
        yield record.round, SignedReceipt(receipt, {party: receipt.sign(key(party)) for party in signers})


def made_bundle(
    plan: StudyPlan | None = None,
    *,
    edit: Edit = lambda steps: steps,
    withhold: Callable[[str, AnyEvent], bool] = lambda _party, _event: False,
    **changes: Any,
) -> Bundle:
    """The study as a bundle; see the head of this file."""
    plan = plan or made_plan()
    story = _story(plan)
    book = Book(story.study)
    for step in edit(list(story.steps)):
        if isinstance(step, Said):
            book.write(step)
        else:
            book.witness(step)
    bundle = Bundle(
        study=story.study,
        plan=plan,
        roster=made_roster(),
        approvals={silo: approval_of(plan, silo) for silo in SILOS},
        logs=book.copies(withhold),
        receipts=dict(signed_receipts(plan, story.records)),
        rounds=tuple(story.records),
    )
    return replace(bundle, **changes)
