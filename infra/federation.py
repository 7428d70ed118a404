"""Hospitals for tests and benchmarks: real agents' parts and the coordinator's real store, in one process.

Journal, mailroom, masked sums and outbox are the agent's own; what is left out is TLS, DICOM and training: a
hospital's work is a function that gives its numbers and weights. Failures are verbs: `silence`, `refuse`, `restart`,
`fall_silent_before`, `dawdle`, `lie`.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from boundary.api import Heartbeat
from boundary.canonical import canonical_bytes, digest
from boundary.envelope import open_envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.layout import layout_in
from boundary.messages import AnyMessage, BlobRef, Collection, Message
from boundary.names import COORDINATOR
from boundary.parts import parts_of
from boundary.plan import StudyPlan, parse_plan
from boundary.protocol import Step
from boundary.roster import TrustedRoster
from boundary.secagg.context import selection_key
from boundary.secagg.selection import selected
from boundary.tensors import TensorManifest, TensorSpec
from boundary.version import ProtocolRange
from flows.authority import issue_roster
from flows.coordinator import Coordinator, create, starting_settings
from flows.publication import begin_study
from flows.store import holdings, mail, members, studies
from flows.store.database import noting, reading, writing
from flows.store.schema import envelopes, silos
from infra.hospitals.policy import put_in_force, wide_policy
from silo_agent.config import Resources, starting_config
from silo_agent.inbound import OwnSide
from silo_agent.journal import Journal, KeptOrder, Parcel
from silo_agent.late import offer
from silo_agent.mailroom import Mailroom
from silo_agent.outbound import Outbound
from silo_agent.permission import Permission
from silo_agent.results import StoredResult, identity_of, result_folder
from silo_agent.state import StateFolder
from silo_agent.steward import approve
from silo_agent.sums import Sums, order_of
from silo_agent.vector import write_vector
from silo_agent.witness import Witness
from silo_agent.workbench import is_whole

Weights = NDArray[np.float32]
Work = Callable[[Collection], tuple[NDArray[np.float64], Weights | None]]
Lie = Callable[[Any], AnyMessage]
M = TypeVar("M", bound=Message)
NO_PRIVACY: Mapping[str, object] = {"mechanism": "none"}
NOTHING: Mapping[str, object] = {}
NO_GROUPS: Mapping[str, int] = {}
NO_PARTS: Mapping[str, Mapping[str, object]] = {}
SEGMENTATION: Mapping[str, object] = {
    "task": "segmentation",
    "model": {"name": "unet-small-2d", "version": 1},
    "labels": {"classes": ["background", "liver", "tumour"]},
    "dataset": {"name": "images", "modalities": ["CT"], "series": {"modality": "CT"}},
}


@dataclass
class SimulatedHospital:
    """One hospital, driven by `turn`. `work` gives the numbers and weights it contributes to a collection."""

    silo: str
    folder: StateFolder
    coordinator: Coordinator
    work: Work
    is_silent: bool = False
    declines: bool = False
    refuses: dict[str, str] = field(default_factory=dict)  # phase -> code
    silent_before: str | None = None  # the kind of message it never says
    silent_before_attempt: int = 0  # it falls silent when it is ordered to try again
    slow_in: set[int] = field(default_factory=set)  # rounds whose training is not ready before it is too late
    lies: dict[str, Lie] = field(default_factory=dict)  # kind -> what it says instead
    worked: list[str] = field(default_factory=list)
    orders: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    roster: TrustedRoster | None = None

    def __post_init__(self) -> None:
        self.folder.create(secrets.token_bytes, starting_config(self.silo, threads=1, heartbeat=1))
        self.second = SigningIdentity.generate()
        self.allow(())
        self.key = self.folder.identity
        self._open()

    def _open(self) -> None:
        self.journal = Journal(self.folder.journal, self.silo)
        self.journal._db.execute("PRAGMA synchronous=OFF")  # noqa: SLF001 - nobody pulls the plug of a simulation
        self.outbound = Outbound(self.silo, self.key, self.journal, self.coordinator.now, secrets.token_bytes, "0")
        permission = Permission(self.folder, self.journal, Resources(), self.coordinator.now)
        self.sums = Sums(self.journal, self.outbound, self.own, secrets.token_bytes, permission)
        witness = Witness(self.journal, self.outbound, self.own)
        self.mailroom = Mailroom(self.journal, self.outbound, self.sums, witness, self.folder, self.own, lambda _: None)
        self.sums.admit_loss()

    def own(self) -> OwnSide:
        if self.roster is None:
            raise RuntimeError("not admitted yet")
        return OwnSide(self.silo, self.folder.steward.public, self.roster, self.coordinator.now())

    def allow(self, plans: Sequence[StudyPlan]) -> None:
        """The policy of this hospital names exactly these plans."""
        keys = [self.folder.steward.public.text, self.second.public.text]
        value = wide_policy(self.silo, keys, Path("/d"), Path("/l"), Path("/x"), plans)
        put_in_force(self.folder, self.second, value)

    def turn(self) -> None:
        """Read the inbox, work, send: as an agent whose work takes no time."""
        if self.is_silent:
            return
        coordinator = self.coordinator
        with noting(coordinator.store) as connection:
            heartbeat = Heartbeat(agent_version="0", protocol=ProtocolRange(), roster_version=1)
            members.beat(connection, self.silo, heartbeat, coordinator.now(), timedelta(seconds=60))
            deliveries = mail.inbox(connection, self.silo, after=self.mailroom.cursor)
        for delivery in deliveries:
            self.mailroom.take(delivery)
        for plan in self.journal.plans():
            if plan.state == "received":
                self._consider(plan.study, plan.digest)
        for order in self.journal.open_orders():
            self.orders[order.collection] = order.digest
            if order.step is Step.WORKING:
                self._work(order)
        while not self.is_silent and (parcel := self.journal.next_waiting(0)) is not None:
            self._send(parcel)

    def _consider(self, study: str, plan_digest: str) -> None:
        if self.declines:
            self.outbound.decline(study, plan_digest, "DECLINED_BY_STEWARD", "a test")
            return
        self.allow([kept.parsed for kept in self.journal.plans()])
        self.journal.set_plan(study, "scanned", dataset_digest=digest(self.silo.encode()))
        approve(self.journal, self.folder, self.outbound, study, "data_steward", "a test")

    def _work(self, order: KeptOrder) -> None:
        message = order_of(order, self.own())
        collection = message.collection
        if collection.attempt == self.silent_before_attempt:
            self.silence()
            return
        code = self.refuses.get(collection.phase)
        if code is not None:
            self.outbound.refuse(order, collection, code, "a test", retryable=True)
            return
        folder = result_folder(self.folder, order.study, order.round, collection.phase, message.model.digest)
        now = self.coordinator.now()
        if not is_whole(folder) and not offer(
            self.journal, self.folder, order, message.model.digest, lambda: None, now
        ):
            numbers, weights = self.work(collection)
            plan = self._plan(collection.study)
            if weights is not None:
                count = plan.aggregation.summed_weights(len(weights))
                weights = weights[selected(selection_key(collection, message.model.digest), len(weights), count)]
            is_training = collection.phase == "train"
            if plan.selection.keeps_late and is_training:
                numbers = np.append(numbers, 0.0)
            write_vector(folder / "vector", numbers, weights)
            counted, votes = len(plan.labels.classes), 3 * (plan.robustness.vote and collection.phase == "evaluate")
            metrics = {"statistics": counted, "train": 0, "personalise": 0}.get(collection.phase, len(numbers) - votes)
            size = 0 if weights is None else len(weights)
            identity = identity_of(collection, message.model.digest, secrets.token_bytes)
            layout = layout_in(plan, collection.phase, parameters=size, metrics=metrics)
            StoredResult(identity, folder / "vector", layout, order.round if is_training else 0).save(folder)
            self.worked.append(str(collection))
        if collection.phase == "train" and collection.round in self.slow_in:
            return
        self.sums.begin(order, folder)

    def _plan(self, study: str) -> StudyPlan:
        kept = self.journal.plan(study)
        if kept is None:
            raise RuntimeError("no plan")
        return kept.parsed

    def _send(self, parcel: Parcel) -> None:
        if parcel.kind == self.silent_before:
            self.is_silent = True
            return
        if parcel.blob_path is not None:
            self.put(Path(parcel.blob_path).read_bytes())
            Path(parcel.blob_path).unlink()
            self.sent.append(parcel.slot.partition("/")[2])
        envelope = open_envelope(parcel.envelope, recipient=COORDINATOR, signer=self.key.public, sender=self.silo)
        verdict = "OK"
        if parcel.kind in self.lies:
            self.say(self.lies[parcel.kind](envelope.message))
        else:
            try:
                with writing(self.coordinator.store) as connection:
                    mail.post(connection, envelope, now=self.coordinator.now())
            except mail.SlotTaken as why:  # said before, in other words: by a journal that was restored since
                verdict = why.code
        with self.journal.transaction():
            self.journal.settle(parcel, accepted=verdict == "OK", verdict=verdict)

    def put(self, data: bytes) -> BlobRef:
        """Upload a blob."""
        blob = self.coordinator.blobs.put_bytes(data)
        with writing(self.coordinator.store) as connection:
            holdings.record(connection, blob, owner=self.silo, now=self.coordinator.now())
            holdings.moved(connection, self.silo, blob.digest, up=blob.size)
        return blob

    def say(self, message: AnyMessage) -> None:
        """Sign and post whatever it is."""
        now = self.coordinator.now()
        envelope = seal_envelope(message, sender=self.silo, recipient=COORDINATOR, sent_at=now, key=self.key)
        with writing(self.coordinator.store) as connection:
            mail.post(connection, envelope, now=now)

    def said(self, kind: type[M]) -> list[M]:
        """Everything of one kind it has said so far."""
        with reading(self.coordinator.store) as connection:
            rows = connection.execute(
                envelopes.select().where(envelopes.c.sender == self.silo, envelopes.c.kind == kind.kind)
            ).all()
        opened = [
            open_envelope(bytes(row.data), recipient=COORDINATOR, signer=self.key.public, sender=self.silo).message
            for row in rows
        ]
        return [message for message in opened if isinstance(message, kind)]

    def heard(self, kind: type[M]) -> list[M]:
        """Everything of one kind the coordinator has told it so far."""
        key = self.coordinator.key.public
        with reading(self.coordinator.store) as connection:
            deliveries = mail.inbox(connection, self.silo, after=0)
        opened = [
            open_envelope(one.envelope, recipient=self.silo, signer=key, sender=COORDINATOR).message
            for one in deliveries
        ]
        return [message for message in opened if isinstance(message, kind)]

    # --- failures as verbs ---------------------------------------------------------------------------
    def silence(self) -> None:
        """Fall silent: no answers, no heartbeat."""
        self.is_silent = True

    def fall_silent_before(self, kind: str) -> None:
        """Fall silent instead of sending this kind of message."""
        self.silent_before = kind

    def speak(self) -> None:
        """Be there again, as after a cut of the network."""
        self.is_silent, self.silent_before = False, None

    def restart(self) -> None:
        """Be killed and started again: what was only in memory is gone."""
        self.journal.close()
        self._open()
        self.speak()

    def dawdle(self, *numbers: int) -> None:
        """Be too late with the trainings of these rounds, and alive all the time."""
        self.slow_in.update(numbers)

    def refuse(self, phase: str, code: str = "NO_IMAGES") -> None:
        self.refuses[phase] = code

    def relent(self) -> None:
        self.refuses.clear()

    def lie(self, kind: str, change: Lie) -> None:
        """Say something else than the agent would, properly signed."""
        self.lies[kind] = change


@dataclass
class SimulatedFederation:
    """A coordinator with its real store, and hospitals."""

    coordinator: Coordinator
    hospitals: dict[str, SimulatedHospital]
    plan: StudyPlan
    study: studies.Study
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _plot: tuple[set[str], Callable[[SimulatedHospital], None]] | None = None

    def turn(self) -> None:
        for hospital in self.hospitals.values():
            hospital.turn()
        if self._plot is not None and all(self.hospitals[silo].is_silent for silo in self._plot[0]):
            (silos, act), self._plot = self._plot, None
            for silo in silos:
                act(self.hospitals[silo])

    def when_silent(self, silos: set[str], act: Callable[[SimulatedHospital], None]) -> None:
        """Do this to them once all of them have fallen silent."""
        self._plot = silos, act

    async def keep_turning(self) -> None:
        """Let the hospitals answer until cancelled."""
        while True:
            self.turn()
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for hospital in self.hospitals.values():
            hospital.journal.close()


def make_federation(  # noqa: PLR0913 - what tests vary
    folder: Path,
    works: Mapping[str, Work],
    *,
    parameters: int = 10,
    rounds: int = 3,
    quorum: int = 3,
    lost_after_seconds: float = 2.0,
    ready_minutes: float = 1.0,
    mlflow_url: str | None = None,
    name: str = "simulated",
    normalise: object = "none",
    privacy: Mapping[str, object] = NO_PRIVACY,
    changes: Mapping[str, object] = NOTHING,
    frozen: int = 0,
    validating: Sequence[str] = (),
    groups: Mapping[str, int] = NO_GROUPS,
    **aggregation: object,
) -> SimulatedFederation:
    """Make a coordinator in `folder` and one hospital per entry of `works`, admitted, with a published plan.

    `changes` are sections of the plan, `SEGMENTATION` for example. The model has `parameters` weights in "w" and
    `frozen` ones in "rest", which a plan may leave untrained. Those in `validating` only validate, and `groups` gives
    those that are in one. With a guarantee per
    patient in `privacy`, weights in the sum are what hospitals declare.
    """
    settings = starting_settings(folder, "https://127.0.0.1:1", "127.0.0.1", 1, ["127.0.0.1"])
    if mlflow_url is not None:
        settings = settings.replace('# mlflow_url = "http://127.0.0.1:5000"', f'mlflow_url = "{mlflow_url}"')
    coordinator = create(folder, settings)
    hospitals = {
        silo: SimulatedHospital(silo, StateFolder(folder / "hospitals" / silo), coordinator, work)
        for silo, work in works.items()
    }
    _admit(coordinator, hospitals)
    sums = {"quorum": quorum, "lost_after_seconds": lost_after_seconds, "ready_minutes": ready_minutes} | aggregation
    keys = {silo: one.key for silo, one in hospitals.items()}
    parts: dict[str, Mapping[str, object]] = {silo: {"group": group} for silo, group in groups.items()}
    parts |= {silo: {"role": "validate"} for silo in validating}
    plan = simulated_plan(keys, rounds, name, normalise, privacy, changes, parts, **sums)
    shapes = {"rest": frozen, "w": parameters} if frozen else {"w": parameters}
    manifest = TensorManifest(tensors=tuple(TensorSpec(name=name, shape=(size,)) for name, size in shapes.items()))
    weights = np.concatenate([np.ones(frozen, np.float32), np.zeros(parameters, np.float32)])
    study = begin_study(coordinator, plan, weights, parts_of(plan.model, manifest))
    return SimulatedFederation(coordinator, hospitals, plan, study)


def simulated_plan(
    keys: Mapping[str, SigningIdentity],
    rounds: int,
    name: str,
    normalise: object,
    privacy: Mapping[str, object],
    changes: Mapping[str, object] = NOTHING,
    parts: Mapping[str, Mapping[str, object]] = NO_PARTS,
    **aggregation: object,
) -> StudyPlan:
    """`parts` gives what hospitals are beside training: silo -> {"role": "validate"} or {"group": 2}."""
    weighting = "images" if privacy == NO_PRIVACY else "declared"
    return parse_plan(
        {
            "version": 1,
            "name": name,
            "revision": 1,
            "purpose": {
                "title": "A simulated study",
                "statement": "tests",
                "legal_basis": "none",
                "ethics_reference": "none",
                "expires": date(datetime.now(UTC).year + 1, 1, 31),
            },
            "hospitals": [
                {"silo": silo, "signing_key": key.public.text, **parts.get(silo, {})} for silo, key in keys.items()
            ],
            "model": {"name": "densenet-small", "version": 1},
            "preprocessing": {"size": [16, 16], "intensity": "window", "low": 0.0, "high": 1.0, "normalise": normalise},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "images", "modalities": ["CT"]},
            "training": {"rounds": rounds, "weighting": weighting},
            "privacy": privacy,
            "aggregation": {"step_minutes": 0.2} | aggregation,
            **changes,
        }
    )


def _admit(coordinator: Coordinator, hospitals: Mapping[str, SimulatedHospital]) -> None:
    cards = [one.folder.card(silo) for silo, one in hospitals.items()]
    roster = issue_roster(
        cards, version=1, coordinator=coordinator.card, keys=[coordinator.key], now=coordinator.now(),
        lifetime=timedelta(days=1),
    )  # fmt: skip
    with writing(coordinator.store) as connection:
        for card in cards:
            connection.execute(
                silos.insert().values(
                    silo=card.party, state="admitted", asked_at=coordinator.now(),
                    card=canonical_bytes(card.model_dump(mode="json")), csr_pem="", certificate_pem="",
                )
            )  # fmt: skip
        members.issue(connection, roster, now=coordinator.now())
    for one in hospitals.values():
        one.roster = TrustedRoster.first(roster.data, coordinator.key.public, coordinator.now())
