"""Verifying 100,000 entries offline, and what appending one costs the agent and the coordinator.

The study is made up for this: three hospitals, as many rounds as fill the logs, every head cosigned by everybody, one
entry in ten a budget. Its report is not made again here: that is its own figure. The statements of an append are
timed apart from the commit, which waits for the disk.
"""

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

from boundary.approval import Approval, sign_approval
from boundary.canonical import digest
from boundary.checkpoint import Checkpoint, Cosignature
from boundary.guarantee import PatientPrivacy
from boundary.messages import BlobRef
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, study_id
from boundary.receipt import Receipt
from boundary.secagg.context import survivors_of, transcript_of
from boundary.secagg.ring import Encoding
from compliance import events as say
from compliance.accountant import epsilon
from compliance.bundle import Bundle, LogCopy, SignedReceipt, Trust
from compliance.bundle_reading import read_folder
from compliance.bundle_writing import prepare
from compliance.gates import GATES
from compliance.merkle import Tree, leaf_hash
from compliance.records import CohortDecision, RoundRecord, Timing, to_bytes
from compliance.terms import PlanTerms
from compliance.trail import SALT_BYTES, leaf_bytes
from compliance.verification.findings import Verdict
from compliance.verification.verify import verify_found
from flows.store import audit
from flows.store.database import migrate, open_store, writing
from infra.bench.rows import Row, at_most
from infra.golden import SILOS, key, private_plan, roster, sha
from silo_agent.journal import Journal

ENTRIES = 100_000
APPENDS = 500
_PARTIES = (COORDINATOR, *SILOS)
_MOST_PATIENTS = 500
_SECONDS = 10.0
_MILLISECONDS = 1.0


def verification() -> list[Row]:
    return [*verifying(ENTRIES), *appending()]


# --- verifying ---------------------------------------------------------------------------------------
def verifying(entries: int) -> list[Row]:
    bundle, trust = _Study(_plan()).with_entries(entries)
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as parent:
        folder = Path(parent) / "bundle"
        report = {"report/report.json": b"{}"}
        prepared = prepare(bundle, report)
        final = _Study.issued(bundle, prepared.manifest_digest)
        prepared.write(folder, final)
        begun = time.perf_counter()
        found = read_folder(folder)
        read = time.perf_counter() - begun
        done = verify_found(found, trust, lambda _bundle: report)
        seconds = time.perf_counter() - begun
    if done.verdict is not Verdict.VERIFIED:
        raise RuntimeError(f"the study of the benchmark is {done.verdict}: {done.to_json()}")
    shown = sum(len(log.entries) for log in bundle.logs.values())
    heads = sum(len(log.heads) for log in bundle.logs.values())
    signed = heads + sum(len(by) for log in bundle.logs.values() for by in log.cosignatures.values())
    return [
        Row(f"verify {shown:,} entries, {len(bundle.rounds)} rounds, {signed:,} signed heads", seconds, "s",
            target=at_most(_SECONDS)),
        Row("  of which reading and parsing the files", read, "s"),
    ]  # fmt: skip


def _plan() -> StudyPlan:
    plan = private_plan()
    training = plan.training.model_copy(update={"rounds": 10_000})
    privacy = plan.privacy.model_copy(update={"epsilon": None, "noise_multiplier": 20.0})
    evidence = plan.evidence.model_copy(update={"disclose": ("budget",)})
    return plan.model_copy(update={"training": training, "privacy": privacy, "evidence": evidence})


class _Study:
    """Logs, heads, receipts and records of a study that goes on until its logs are long enough."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan, self.study, self._now = plan, study_id(plan), datetime(2026, 1, 1, tzinfo=UTC)
        self._entries: dict[str, list[bytes]] = {party: [] for party in _PARTIES}
        self._trees = {party: Tree() for party in _PARTIES}
        self._heads: dict[str, list[Checkpoint]] = {party: [] for party in _PARTIES}
        self._cosigned: dict[str, dict[int, dict[str, Cosignature]]] = {party: {} for party in _PARTIES}
        self._receipts: dict[int, SignedReceipt] = {}
        self._records: list[RoundRecord] = []
        assert isinstance(plan.privacy, PatientPrivacy)  # noqa: S101 - _plan's is
        terms = PlanTerms.of(plan.privacy, 1, _MOST_PATIENTS)
        self._release, self._delta = terms.event, terms.delta

    def with_entries(self, wanted: int) -> tuple[Bundle, Trust]:
        signed = roster()
        self._begin(digest(signed.data))
        for number in count(1):
            self._round(number)
            if sum(map(len, self._entries.values())) >= wanted:
                break
        self._show()
        logs = {
            party: LogCopy(party, tuple(self._entries[party]), tuple(self._heads[party]), self._cosigned[party])
            for party in _PARTIES
        }
        approvals = {silo: sign_approval(self._approval(silo), key(f"steward of {silo}")) for silo in SILOS}
        bundle = Bundle(self.study, self.plan, signed.data, approvals, logs, self._receipts, tuple(self._records))
        hospitals = {silo: key(silo).public for silo in SILOS}
        stewards = {silo: key(f"steward of {silo}").public for silo in SILOS}
        return bundle, Trust(key(COORDINATOR).public, hospitals, stewards)

    @staticmethod
    def issued(bundle: Bundle, manifest: str) -> LogCopy:
        log, event = bundle.logs[COORDINATOR], say.EvidenceIssued(study=bundle.study, manifest=manifest)
        entry = leaf_bytes(
            event, log=COORDINATOR, sequence=len(log.entries) + 1, time=datetime(2026, 12, 31, tzinfo=UTC),
            actor=COORDINATOR, salt=bytes(SALT_BYTES),
        )  # fmt: skip
        tree = Tree()
        for one in (*log.entries, entry):
            tree.append(leaf_hash(one))
        head = Checkpoint.sign(COORDINATOR, tree.size, tree.root(), key(COORDINATOR))
        return LogCopy(COORDINATOR, (*log.entries, entry), (*log.heads, head), log.cosignatures)

    def _approval(self, silo: str) -> Approval:
        return Approval(
            silo=silo, plan_digest=digest_of(self.plan), dataset_digest=sha(silo), role="data_steward",
            approved_at=datetime(2026, 1, 1, tzinfo=UTC),
        )  # fmt: skip

    def _say(self, log: str, event: say.AnyEvent) -> None:
        self._now += timedelta(milliseconds=10)
        entries = self._entries[log]
        salt = secrets.token_bytes(SALT_BYTES)
        leaf = leaf_bytes(event, log=log, sequence=len(entries) + 1, time=self._now, actor=log, salt=salt)
        entries.append(leaf)
        self._trees[log].append(leaf_hash(leaf))

    def _begin(self, issued: str) -> None:
        plan_digest = digest_of(self.plan)
        self._say(COORDINATOR, say.RosterIssued(roster_version=1, roster_digest=issued))
        self._say(COORDINATOR, say.PlanPublished(study=self.study, plan_digest=plan_digest))
        for silo in SILOS:
            self._say(silo, say.PolicyAdopted(number=1, policy=sha(f"policy of {silo}"), how="signed"))
            given = say.PlanApprovalGiven(
                study=self.study, plan_digest=plan_digest, silo=silo, dataset_digest=sha(silo)
            )
            self._say(silo, given)
            self._say(COORDINATOR, given)

    def _round(self, number: int) -> None:
        about: dict[str, Any] = {"study": self.study, "round": number}
        model, model_out = sha(f"model {number - 1}"), sha(f"model {number}")
        self._say(COORDINATOR, say.RoundOpened(**about, model=model))
        for silo in SILOS:
            self._train(silo, number, about)
        survivors = self._sum({**about, "phase": "train", "attempt": 1})
        for silo in SILOS:
            self._start(silo, {**about, "phase": "evaluate"})
        self._sum({**about, "phase": "evaluate", "attempt": 1})
        record = self._record(number, model, model_out, transcript_of(survivors, model_out))
        who: dict[str, Any] = {"contributing": SILOS, "absent": ()}
        self._say(
            COORDINATOR,
            say.RoundClosed(
                **about, **who, model_in=model, model_out=model_out, tried=None, record=digest(to_bytes(record))
            ),
        )
        receipt = Receipt(
            **about, **who, plan_digest=digest_of(self.plan), model_in=model, model_out=model_out,
            tried=None, transcript=record.transcript,
        )  # fmt: skip
        for silo in SILOS:
            self._say(
                silo, say.RoundReceived(**about, **who, model=model_out, tried=None, transcript=record.transcript)
            )
            self._say(silo, say.ReceiptSigned(**about, receipt=receipt.digest))
        self._receipts[number] = SignedReceipt(receipt, {party: receipt.sign(key(party)) for party in _PARTIES})
        self._records.append(record)
        seen = self._show()
        for party in _PARTIES:
            self._say(party, say.HeadsWitnessed(study=self.study, round=number, heads=seen))

    def _start(self, silo: str, about: dict[str, Any]) -> None:
        order = sha(f"order {about['round']} {about['phase']}")
        self._say(silo, say.GatesPassed(**about, order=order, policy=sha(f"policy of {silo}"), gates=GATES))
        self._say(silo, say.TrainingStarted(**about, order=order, start=1))

    def _train(self, silo: str, number: int, about: dict[str, Any]) -> None:
        self._start(silo, {**about, "phase": "train"})
        spent = self._release.model_copy(update={"steps": number * self._release.steps})
        cost = epsilon([spent], self._delta)
        self._say(
            silo,
            say.BudgetReserved(
                **about, release=self._release, epsilon_study=cost, delta_study=self._delta, epsilon_lifetime=cost,
                delta_lifetime=self._delta,
            ),
        )  # fmt: skip
        self._say(silo, say.BudgetCommitted(**about, release=self._release))
        self._say(silo, say.WorkDone(**about, phase="train", order=sha(f"order {number} train")))

    def _sum(self, about: dict[str, Any]) -> str:
        place = f"{about['round']} {about['phase']}"
        self._say(COORDINATOR, say.CohortDecided(**about, members=SILOS, absent=(), reason="ALL_THERE"))
        vectors = {silo: sha(f"vector {place} {silo}") for silo in SILOS}
        survivors = survivors_of(sha(f"sharers {place}"), vectors)
        for silo in SILOS:
            self._say(silo, say.SecretsShared(**about, cohort=sha(f"cohort {place}")))
            released = say.ContributionReleased(
                **about, sharers=sha(f"sharers {place}"), vector=vectors[silo], size=28_412_928
            )
            self._say(silo, released)
            self._say(silo, say.SurvivorsAgreed(**about, survivors=survivors))
            self._say(silo, say.UnmaskingHelped(**about, survivors=survivors, surviving=SILOS, lost=()))
        self._say(COORDINATOR, say.SumOpened(**about, survivors=survivors, surviving=SILOS))
        return survivors

    def _record(self, number: int, model: str, model_out: str, transcript: str) -> RoundRecord:
        train = CohortDecision(
            phase="train", attempt=1, reason="ALL_THERE", members=SILOS, absent={}, closed_at=self._now
        )
        return RoundRecord(
            study=self.study, round=number, model_in=model, model_out=BlobRef(digest=model_out, size=28_412_928),
            registered=SILOS, ready=SILOS, contributing=SILOS, absent={}, train=train, transcript=transcript,
            update_norm=0.5, clipped=0, below=(0, 1, 2, 3), next_encoding=Encoding(exponent=20, most=3), evaluate=None,
            train_loss=None, metrics=None,
            timing=Timing(training=61.5, transport=12.0, aggregation=3.25, evaluation=8.0, total=90.0),
            traffic={}, committed_at=self._now,
        )  # fmt: skip

    def _show(self) -> tuple[say.SeenHead, ...]:
        """Everybody signs a head over its log, everybody else cosigns it."""
        heads = []
        for party, tree in self._trees.items():
            heads.append(Checkpoint.sign(party, tree.size, tree.root(), key(party)))
            self._heads[party].append(heads[-1])
            self._cosigned[party][tree.size] = {
                witness: Cosignature.sign(heads[-1], key(party).public, witness, key(witness), self._now)
                for witness in _PARTIES
                if witness != party
            }
        return tuple(say.SeenHead(log=head.log, size=head.size, root=head.root) for head in heads)


# --- appending ---------------------------------------------------------------------------------------
class _Timer:
    """Milliseconds of the statements and of what is around them, the commit."""

    def __init__(self) -> None:
        self.statements: list[float] = []
        self.commits: list[float] = []

    @contextmanager
    def whole(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.commits.append((time.perf_counter() - begun) * 1e3 - self.statements[-1])

    @contextmanager
    def statement(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.statements.append((time.perf_counter() - begun) * 1e3)


_EVENT = say.WorkDone(study="ct-contrast-0123abcd", round=1, phase="train", order=sha("order"))


def appending() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="wardround-bench-") as folder:
        agent, store = _agent(Path(folder)), _coordinator(Path(folder))
    target = at_most(_MILLISECONDS)
    return [
        Row.of_runs("append to the agent's journal: statements", agent.statements, "ms", target=target),
        Row.of_runs("  its commit, to the disk", agent.commits, "ms"),
        Row.of_runs("append to the coordinator's log: statements", store.statements, "ms", target=target),
        Row.of_runs("  its commit, to the disk", store.commits, "ms"),
    ]


def _agent(folder: Path) -> _Timer:
    timer, journal = _Timer(), Journal(folder / "journal.sqlite", "charite")
    for _ in range(APPENDS):
        with timer.whole(), journal.transaction(), timer.statement():
            journal.record(_EVENT, datetime.now(UTC))
    journal.close()
    return timer


def _coordinator(folder: Path) -> _Timer:
    timer, store = _Timer(), open_store(f"sqlite:///{folder / 'store.db'}")
    migrate(store)
    for _ in range(APPENDS):
        with timer.whole(), writing(store) as connection, timer.statement():
            audit.append(connection, _EVENT, actor=COORDINATOR, now=datetime.now(UTC))
    store.dispose()
    return timer
