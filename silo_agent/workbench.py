"""Does the next thing there is to do, with the child: an order first, else a proposed plan's scan, else warming up.

Nothing is begun that the policy in force does not allow at that moment, and nothing goes on that it stops allowing.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from boundary.api import Activity
from boundary.canonical import parse_json
from boundary.errors import MalformedMessage, PeerFault
from boundary.layout import layout_in
from boundary.messages import BlobRef, Collection, WorkOrder
from boundary.protocol import FINAL, Step
from boundary.secagg.context import selection_key
from compliance.events import IntakeCounted, TrainingStarted, in_tens
from models.catalogue import check_model
from models.errors import ModelError
from silo_agent import late
from silo_agent.budget import Terms, terms_of
from silo_agent.config import AgentConfig
from silo_agent.cost import TIGHT, question_of
from silo_agent.errand import Errand, disk_shortage
from silo_agent.errors import RelayRefused, RelayUnreachable, StoredFileLost, WorkCancelled, WorkFailed, disk_code
from silo_agent.inbound import OwnSide, approved_plan
from silo_agent.intake.erasing import KNOWN
from silo_agent.intake.refusals import Refusal
from silo_agent.journal import Journal, KeptOrder, KeptPlan, PlanState
from silo_agent.once import check_unmeasured
from silo_agent.outbound import Outbound
from silo_agent.permission import PAID, PAUSED, Asked, Permission
from silo_agent.personal import keep_own
from silo_agent.policy.errors import PolicyCode, PolicyRefused
from silo_agent.policy.model import dataset_of
from silo_agent.relay_client import RelayClient
from silo_agent.releases import Release, reserve
from silo_agent.results import (
    BASE,
    CONTROL,
    DITTO,
    HOME,
    RESIDUAL,
    StoredResult,
    carried,
    forget_study,
    home_of,
    identity_of,
    result_folder,
    sweep_scan,
)
from silo_agent.state import StateFolder, write_private
from silo_agent.sums import Sums, order_of
from silo_agent.withdrawal import erase_from, finish
from silo_agent.worker import OnProgress, Worker, untold

_log = logging.getLogger("silo_agent.workbench")
BUSY = "BUSY"  # with a training that came too late for its round
MOST_STARTS = 5  # a work that killed its child five times will do so again
_NO_MODEL = {"UNKNOWN_BLOB", "RANGE_NOT_SATISFIABLE"}  # asking again cannot help; everything else may pass


@dataclass(slots=True)
class Workbench:
    """One thing at a time. `activity` is what the heartbeat carries; `current` the collection being worked on."""

    config: AgentConfig
    folder: StateFolder
    journal: Journal
    outbound: Outbound
    sums: Sums
    worker: Worker
    relay: RelayClient
    own: Callable[[], OwnSide]
    permission: Permission
    activity: Activity | None = None
    current: str | None = None
    _warm: set[str] = field(default_factory=set)
    _asked: Asked | None = None  # of the work that is under way
    _refusal: PolicyRefused | None = None  # why it was stopped
    _held: str | None = None  # why it holds still

    async def do_next(self) -> bool:
        """Whether there was anything to do: the oldest order, else a proposed plan, else warming up."""
        finish(self.journal, self.folder, self.own().now)  # what `silo-agent withdraw` was killed in
        if self.permission.is_paused:
            return False
        for order in self.journal.open_orders():
            if order.step is Step.WORKING and not self._waits(order):
                await self._work(order)
                return True
        for plan in self.journal.plans():
            if plan.state == "received":
                return await self._consider(plan)
            if plan.state in {"scanned", "approved"} and plan.study not in self._warm:
                await self._warm_up(plan)
                return True
        if self.worker.pid is not None and all(plan.state in {"closed", "declined"} for plan in self.journal.plans()):
            await self.worker.stop()
            self._warm.clear()
        return False

    async def drop(self, what: str) -> None:
        """Stop the work for this collection, whichever attempt began it, or the scan for this study."""
        if self.current is not None and _work_of(self.current) == _work_of(what):
            await self.worker.cancel()

    def say_busy(self) -> None:
        """While a training is finished for a later round, its study's other work is refused: nobody waits for it."""
        if self.current is None or self.activity is None:
            return
        now = self.journal.order(self.current)
        if now is None or now.phase != "train" or now.step not in FINAL:
            return
        for order in self.journal.open_orders():
            if order.study == now.study and order.phase != "train" and order.step is Step.WORKING:
                collection = Collection.parse(order.collection)
                self.outbound.refuse(order, collection, BUSY, "a training goes on for the next round", retryable=True)

    async def drop_unapproved(self) -> None:
        """Stop what the steward has said no to meanwhile, in a process of their own."""
        study = None if self.current is None else self.current.partition("/")[0]
        kept = None if study is None else self.journal.plan(study)
        if self.current is not None and (kept is None or kept.state in {"declined", "closed"}):
            _log.info("%s is no longer wanted here", self.current)
            await self.worker.cancel()

    async def look_at_policy(self) -> None:
        """Hold the work still while the hours are over or a person said so; end it if it is not allowed any more."""
        if self._asked is None:  # nothing of a round: a scan, or a look before one
            await self._hold(PAUSED if self.permission.is_paused else None)
            return
        try:
            if not self.permission.is_paused:
                self.permission.still(self._asked)
        except PolicyRefused as why:
            if why.reason is not PolicyCode.OUT_OF_HOURS:
                self._refusal = why
                await self.worker.cancel()
                return
            await self._hold(why.code)
        else:
            await self._hold(PAUSED if self.permission.is_paused else None)

    async def _hold(self, code: str | None) -> None:
        """The training holds still between two steps and keeps what it has; `code` None lets it go on."""
        before, self._held = self._held, code
        if (before is None) == (code is None):
            return
        _log.info("work goes on" if code is None else f"work holds still: {code}")
        await self.worker.pause(is_paused=code is not None)
        if PAUSED not in {before, code}:  # which has its entries already
            self.permission.held(code)

    def _waits(self, order: KeptOrder) -> bool:
        """Whether the policy's hours begin again before the work is due; else it is refused, so that others know."""
        try:
            return self.permission.opens_before(order_of(order, self.own()).due)
        except (PeerFault, PolicyRefused):
            return False

    # --- orders --------------------------------------------------------------------------------------
    async def _work(self, order: KeptOrder) -> None:
        collection = Collection.parse(order.collection)
        self.current = order.collection
        self.activity = Activity(study=order.study, round=order.round, phase=collection.phase, step=0, steps=0)
        try:
            result = await self._result(order, collection)
            if self._still_wanted(order):
                self.sums.begin(order, result)
        except WorkCancelled:
            _log.info("%s was stopped", collection)  # if it still counts as work, the next look says why not
            if self._refusal is not None:
                self._no(order, collection, self._refusal)
        except WorkFailed as why:
            self._no(order, collection, why)
        except StoredFileLost as why:
            self._no(order, collection, WorkFailed(why.code, str(why), retryable=True))
        except PeerFault as why:
            self._no(order, collection, WorkFailed(why.code, str(why)))
        except OSError as why:
            self._no(order, collection, WorkFailed(disk_code(why), str(why), retryable=True))
        finally:
            await self._hold(None)
            self.activity = self.current = self._asked = self._refusal = None

    def _no(self, order: KeptOrder, collection: Collection, why: WorkFailed) -> None:
        if self._still_wanted(order):
            with self.journal.transaction():
                if isinstance(why, PolicyRefused):
                    self.permission.refused(order, why)
                self.outbound.refuse(order, collection, why.code, str(why), retryable=why.retryable)

    def _still_wanted(self, order: KeptOrder) -> bool:
        now = self.journal.order(order.collection)
        return now is not None and now.step is Step.WORKING

    async def _result(self, order: KeptOrder, collection: Collection) -> Path:
        """The folder of the finished result: the stored one if there is one, else after doing the work."""
        message = order_of(order, self.own())
        folder = result_folder(self.folder, order.study, order.round, collection.phase, message.model.digest)
        if is_whole(folder):
            return folder  # finished before a restart, or for an attempt that failed: not trained twice
        check_unmeasured(self.journal, message)
        kept, start = self._may_start(order, message)
        self._check_disk()
        plan = kept.parsed
        self.permission.excluded(self.permission.dataset(plan))
        patients = await self._same_data(kept)
        asked, terms = self.permission.ask(order, message, plan, patients)
        begin = partial(self.permission.begin, asked)
        if late.offer(self.journal, self.folder, order, message.model.digest, begin, self.own().now):
            _log.info("%s: what an earlier round made is offered for it", collection)
            return folder
        weights = await self._fetched(order, message, message.model)
        base = message.base and await self._fetched(order, message, message.base, BASE)
        control = message.control and await self._fetched(order, message, message.control)
        before = message.before and await self._fetched(order, message, message.before)
        if not self._still_wanted(order):
            raise WorkCancelled("while the model was fetched")
        vector = folder / "vector"
        normalisation = None if message.normalisation is None else message.normalisation.model_dump()
        command = self._command(order.phase, kept) | {
            "model": str(weights), "out": str(vector), "normalisation": normalisation,
            "selection": selection_key(collection, message.model.digest).hex(),
            "residual": str(carried(self.folder, order.study, RESIDUAL)), "base": None if base is None else str(base),
            "home": str(home_of(self.folder, order.study, order.round, collection.phase)),
            "control": None if control is None else str(control),
            "own_control": str(carried(self.folder, order.study, CONTROL)),
            "before": None if before is None else str(before),
            "home_before": str(carried(self.folder, order.study, HOME)),
            "begins": collection.round == 1 and collection.phase == "train",
            "personal": str(carried(self.folder, order.study, DITTO)),
        }  # fmt: skip
        terms = terms if collection.phase in PAID else None  # nothing else is paid for
        if terms is not None:
            # what cannot be trained on is found before it is paid for: a useless model must not empty the budget
            await self.worker.run(command | {"do": "check"}, untold)
        release = self._begin(asked, terms, collection, start)
        if release is not None:
            command |= {"private": release.private}
        # a withdrawal until here is in force in this round, one from here on in the next
        finish(self.journal, self.folder, self.own().now)
        erase_from(self.journal, self.folder, order.study)
        gone = self.journal.private.count_of(order.study)
        # a private training's steps take as long as the patients drawn for them: nobody outside is to follow them
        match await self._counted_hours(asked, command, self._progress if release is None else untold):
            case {"parameters": int(parameters), "metrics": int(metrics), **rest} if not rest:
                if collection.phase != "train" and gone != self.journal.private.count_of(order.study):
                    raise WorkCancelled("somebody withdrew meanwhile: nobody can tell whether it is with them or not")
                identity = identity_of(collection, message.model.digest, self.outbound.entropy, withdrawn=gone)
                if collection.phase == "personalise":
                    keep_own(self.journal, self.folder, kept, message.model.digest, vector, gone)
                layout = layout_in(plan, collection.phase, parameters=parameters, metrics=metrics)
                StoredResult(identity, vector, layout, order.round if collection.phase == "train" else 0).save(folder)
                if release is not None:
                    release.commit(self.journal, self.own().now)
                return folder
            case other:
                raise WorkFailed("INTERNAL", f"the child's result is {other!r:.200}")

    def _begin(self, asked: Asked, terms: Terms | None, collection: Collection, start: int) -> Release | None:
        """The gates, what the work costs, and its start, in one transaction: no other policy comes between them."""
        order, release, refused = asked.order, None, None
        if self.permission.is_paused:
            raise WorkCancelled("paused before it began")
        with self.journal.transaction():
            self.permission.begin(asked)
            try:
                if terms is not None:
                    release = reserve(self.journal, terms, collection, start, self.own().now)
            except WorkFailed as why:
                refused = why  # which has its entry
            else:
                started = TrainingStarted(
                    study=order.study, round=order.round, phase=collection.phase, order=order.digest, start=start
                )  # fmt: skip
                self.journal.record(started, self.own().now)
        if refused is not None:
            raise refused
        return release

    async def _counted_hours(self, asked: Asked, command: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
        begun, self._asked = time.monotonic(), asked
        try:
            return await self.worker.run(command, on_progress)
        finally:
            self._asked = None
            self.permission.worked(asked.order, time.monotonic() - begun)

    def _may_start(self, order: KeptOrder, message: WorkOrder) -> tuple[KeptPlan, int]:
        """The plan, and how often the work was started. Asked again every time: days may have passed."""
        with self.journal.transaction():
            starts = self.journal.starting(order.collection)
        if starts > MOST_STARTS:
            raise WorkFailed("TOO_MANY_STARTS", f"the work was started {MOST_STARTS} times and never finished")
        own, kept = self.own(), self.journal.plan(order.study)
        approved_plan(kept, own)
        if kept is None:
            raise WorkFailed("NOT_APPROVED", "the plan is gone")
        if own.now >= message.due:
            raise WorkFailed("STALE", f"the work was due at {message.due:%Y-%m-%d %H:%M} UTC", retryable=True)
        return kept, starts

    async def _fetched(self, order: KeptOrder, message: WorkOrder, blob: BlobRef, kind: str = ".") -> Path:
        """A blob of the order, fetched once; `kind` in its name may keep it beyond its round (`forget_rounds`)."""
        path = self.folder.models / f"{order.study}{kind}{blob.digest.removeprefix('sha256:')}.safetensors"
        pause = self.config.timing.retry_first
        while True:
            try:
                await self.relay.download(blob, path)
            except MalformedMessage as why:
                raise WorkFailed("MODEL_UNAVAILABLE", str(why), retryable=True) from why
            except (RelayUnreachable, RelayRefused) as why:
                if isinstance(why, RelayRefused) and why.relay_code in _NO_MODEL:
                    raise WorkFailed("MODEL_UNAVAILABLE", str(why)) from why
                if self.own().now >= message.due or not self._still_wanted(order):
                    raise WorkFailed("MODEL_UNAVAILABLE", str(why), retryable=True) from why
                _log.warning("the model cannot be fetched yet (%s); again in %.1f s", why, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, self.config.timing.retry_most)
            else:
                return path

    def _check_disk(self) -> None:
        if shortage := disk_shortage(self.folder, self.config.resources):
            raise WorkFailed("DISK_FULL", shortage, retryable=True)

    # --- data ----------------------------------------------------------------------------------------
    async def _same_data(self, kept: KeptPlan) -> int:
        """Train only on the data the steward approved; a lost cache is built again and compared. How many patients."""
        try:
            report = json.loads((self.folder.cache / kept.study / "report.json").read_bytes())
        except (FileNotFoundError, ValueError):
            report = await self._scan(kept, self.journal.private.cohort(kept.study)[0])
        if report["dataset_digest"] != kept.dataset_digest:
            raise WorkFailed(
                "DATASET_CHANGED",
                "the data are not those the steward approved: the coordinator must propose a new revision of the plan",
            )
        return int(sum(report["patients"].values())) - self.journal.private.count_of(kept.study)

    async def _consider(self, kept: KeptPlan) -> bool:
        """Scan our data for a proposed plan, so that the steward decides on facts. Whether there is an outcome."""
        self.current = kept.study
        known = self.journal.private.last  # whoever has withdrawn is not in the data that the steward decides on
        report, patients = None, b""
        try:
            plan = kept.parsed
            check_model(plan)
            self.permission.may_read(plan)
            terms = terms_of(plan, self.permission.dataset(plan))
            report = await self._scan(kept, known)
            patients = (self.folder.cache / kept.study / KNOWN).read_bytes()
            problems = "; ".join([*report["problems"], *_too_many(report, terms)])
            if not problems and plan.model.needs_a_look:
                await self.worker.run(self._command("begin", kept), untold)
            if terms is not None and not problems:
                await self._second_opinion(kept, terms)
        except WorkCancelled:
            return False
        except (WorkFailed, ModelError) as why:
            problems = f"{why.code}: {why}"
        except OSError as why:
            problems = f"{disk_code(why)}: {why}"
        finally:
            self.current = None
        self._conclude(kept.study, report, problems, known, patients)
        return True

    def _conclude(
        self, study: str, report: dict[str, Any] | None, problems: str, known: int, patients: bytes
    ) -> None:  # fmt: skip
        state: PlanState = "unsuitable" if problems else "scanned"
        with self.journal.transaction():
            again = report is not None and known != self.journal.private.last
            decided = not self.journal.set_plan(
                study,
                "received" if again else state,
                dataset_digest=None if report is None else report["dataset_digest"],
                reason=problems or None,
                only_from="received",
            )
            if report is not None and not decided and not again:
                self.journal.private.keep_cohort(study, known, patients)
                self.journal.record(_counted(study, report, usable=not problems), self.own().now)
        if decided:  # the study was closed, or the steward declined, while we looked
            forget_study(self.folder, study)
        elif again:
            _log.info("our data are checked against %s once more: somebody withdrew consent meanwhile", study)
        elif problems:
            _log.warning("our data do not meet the contract of %s: %s", study, problems)
        else:
            _log.info("plan %s waits for the steward: silo-agent plan show %s", study, study)

    async def _second_opinion(self, kept: KeptPlan, terms: Terms) -> None:
        """Have the child estimate the study's epsilon more closely, to be shown; the ledger's own is what counts.

        So a plan does not become unsuitable for want of it.
        """
        question = question_of(terms)
        try:
            said = await self.worker.run(self._command("cost", kept) | question, untold)
        except WorkFailed as why:
            _log.warning("there is no closer estimate of what %s costs: %s", kept.study, why)
            return
        write_private(self.folder.cache / kept.study / TIGHT, json.dumps(said | question).encode())

    async def _scan(self, kept: KeptPlan, known: int) -> dict[str, Any]:
        """The child's report; the first `known` who withdrew are refused, the others belong to the data's digest."""
        excluded = self.permission.excluded(self.permission.dataset(kept.parsed))
        command = self._command("scan", kept) | {
            "withdrawn": self.journal.private.around(known, excluded), "index": str(self.folder.index),
        }  # fmt: skip
        try:
            report = await self.worker.run(command, self._scan_progress)
        finally:  # a child that had to be killed has left what it fetched, with names in it
            await self._hold(None)
            sweep_scan(self.folder, kept.study)
        erase_from(self.journal, self.folder, kept.study)
        return report

    async def _warm_up(self, kept: KeptPlan) -> None:
        self._warm.add(kept.study)
        try:
            await self.worker.run(self._command("warm", kept), untold)
        except (WorkFailed, WorkCancelled, OSError) as why:
            _log.warning("the plan's model cannot be built here yet: %s", why)

    def _command(self, do: str, kept: KeptPlan) -> dict[str, Any]:
        policy, plan = self.permission.policy, kept.parsed
        errand = Errand(
            plan=parse_json(kept.plan),
            study=kept.study,
            dataset=dataset_of(policy, plan.dataset.name),
            state=self.folder.root,
            key_file=self.folder.dataset_key_file,
            cache=self.folder.cache / kept.study,
            resources=self.config.resources,
            devices=policy.resources.devices,
            weights=policy.weights_folder,
        )
        return errand.command(do)

    def _progress(self, step: int, steps: int) -> None:
        if self.activity is not None:
            self.activity = self.activity.model_copy(update={"step": step, "steps": steps})

    def _scan_progress(self, step: int, steps: int) -> None:
        if step in {0, steps} or step % 500 == 0:
            _log.info("checked %d of %d files", step, steps)


def _counted(study: str, report: dict[str, Any], *, usable: bool) -> IntakeCounted:
    return IntakeCounted(
        study=study,
        dataset_digest=report["dataset_digest"],
        usable=usable,
        patients=in_tens(sum(report["patients"].values())),
        used=in_tens(report["used"]),
        # that somebody withdrew is told only where the plan says so, by entries of its own
        excluded={code: in_tens(n) for code, n in report["refused"].items() if code != Refusal.WITHDRAWN},
    )


def _too_many(report: dict[str, Any], terms: Terms | None) -> list[str]:
    excess = "" if terms is None else terms.excess(sum(report["patients"].values()))
    return [excess] if excess else []


def _work_of(what: str) -> str:
    """A collection without its attempt: attempts share their work. A study stays as it is."""
    return what.rpartition("/")[0] or what


def is_whole(folder: Path) -> bool:
    """Whether a finished result lies there."""
    try:
        return StoredResult.load(folder).vector.exists()
    except StoredFileLost:
        return False
