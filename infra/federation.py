"""Hospitals for tests and benchmarks that speak the production messages through the coordinator's real store.

They sign with real keys, seal real contributions and post them as the relay does; what they leave out is TLS, DICOM
and training. Failures are verbs: `silence`, `refuse`, `spoil`.
"""

import asyncio
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boundary.api import Heartbeat
from boundary.approval import Approval, sign_approval
from boundary.canonical import canonical_bytes
from boundary.contribution import contribution_context, seal_contribution
from boundary.envelope import open_envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.messages import (
    AnyMessage,
    CohortClosed,
    Collection,
    Contribution,
    PlanApproved,
    PlanDeclined,
    PlanProposed,
    Ready,
    Refused,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, parse_plan, study_id
from boundary.roster import make_card
from boundary.sealing import UnsealingKey
from boundary.tensors import TensorManifest, TensorSpec, pack
from boundary.version import ProtocolRange
from flows.authority import issue_roster
from flows.coordinator import Coordinator, create, starting_settings
from flows.records import ModelStart
from flows.store import holdings, mail, members, studies
from flows.store.database import reading, writing
from flows.store.schema import silos

Vectors = Callable[[Collection], NDArray[np.float32]]


@dataclass
class SimulatedHospital:
    """One hospital's half, driven by `turn`. `vectors` gives what it contributes to a collection."""

    silo: str
    key: SigningIdentity
    unsealing: UnsealingKey
    vectors: Vectors
    is_silent: bool = False
    declines: bool = False
    refuses: dict[str, str] = field(default_factory=dict)  # phase -> code
    spoils: Callable[[bytes], bytes] | None = None
    cursor: int = 0
    orders: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def turn(self, coordinator: Coordinator) -> None:
        """Read the inbox and answer, as an agent whose work takes no time."""
        if self.is_silent:
            return
        now = coordinator.now()
        with writing(coordinator.store) as connection:
            heartbeat = Heartbeat(agent_version="0", protocol=ProtocolRange(), roster_version=1)
            members.beat(connection, self.silo, heartbeat, now, timedelta(seconds=60))
            deliveries = mail.inbox(connection, self.silo, after=self.cursor)
        for delivery in deliveries:
            self.cursor = delivery.sequence
            signer = coordinator.key.public
            envelope = open_envelope(delivery.envelope, recipient=self.silo, signer=signer, sender=COORDINATOR)
            self._answer(coordinator, envelope.message, envelope.digest)

    def _answer(self, coordinator: Coordinator, message: AnyMessage, digest: str) -> None:
        match message:
            case PlanProposed():
                self._consent(coordinator, message.plan)
            case WorkOrder():
                self.orders[str(message.collection)] = digest
                code = self.refuses.get(message.collection.phase)
                if code is None:
                    self.say(coordinator, Ready(collection=message.collection, order=digest))
                else:
                    refused = Refused(
                        collection=message.collection, order=digest, code=code, reference="0" * 12, retryable=True
                    )
                    self.say(coordinator, refused)
            case CohortClosed() if self.silo in message.members:
                self._contribute(coordinator, message.collection, message.order)
            case _:
                pass

    def _consent(self, coordinator: Coordinator, plan: StudyPlan) -> None:
        if self.declines:
            declined = PlanDeclined(study=study_id(plan), plan_digest=digest_of(plan), code="DECLINED_BY_STEWARD")
            self.say(coordinator, declined)
            return
        approval = Approval(
            silo=self.silo, plan_digest=digest_of(plan), dataset_digest="sha256:" + hashlib.sha256(
                self.silo.encode()).hexdigest(), role="data_steward", approved_at=coordinator.now(),
        )  # fmt: skip
        signed = sign_approval(approval, SigningIdentity.generate())
        self.say(coordinator, PlanApproved(study=study_id(plan), approval=signed))

    def _contribute(self, coordinator: Coordinator, collection: Collection, order: str) -> None:
        plain = self.vectors(collection).astype("<f4").tobytes()
        context = contribution_context(collection, self.silo, order)
        sealed_key, chunks = seal_contribution(
            io.BytesIO(plain).read, coordinator=coordinator.unsealing.public, context=context,
            file_key=coordinator.entropy(32),
        )  # fmt: skip
        sealed = b"".join(chunks)
        if self.spoils is not None:
            sealed = self.spoils(sealed)
        blob = coordinator.blobs.put_bytes(sealed)
        with writing(coordinator.store) as connection:
            holdings.record(connection, blob, owner=self.silo, now=coordinator.now())
            holdings.moved(connection, self.silo, blob.digest, up=blob.size)
        self.sent.append(str(collection))
        message = Contribution(collection=collection, order=order, vector=blob, sealed_key=sealed_key)
        self.say(coordinator, message)

    def say(self, coordinator: Coordinator, message: AnyMessage) -> None:
        envelope = seal_envelope(
            message, sender=self.silo, recipient=COORDINATOR, sent_at=coordinator.now(), key=self.key
        )
        with writing(coordinator.store) as connection:
            mail.post(connection, envelope, now=coordinator.now())

    # --- failures as verbs ---------------------------------------------------------------------------
    def silence(self) -> None:
        """Fall silent: no answers, no heartbeat."""
        self.is_silent = True

    def speak(self) -> None:
        self.is_silent = False

    def refuse(self, phase: str, code: str = "NO_IMAGES") -> None:
        self.refuses[phase] = code

    def relent(self) -> None:
        self.refuses.clear()

    def spoil(self, change: Callable[[bytes], bytes]) -> None:
        """Change the sealed bytes before they are uploaded."""
        self.spoils = change


@dataclass
class SimulatedFederation:
    """A coordinator with its real store, and hospitals."""

    coordinator: Coordinator
    hospitals: dict[str, SimulatedHospital]
    plan: StudyPlan
    study: studies.Study

    def turn(self) -> None:
        for hospital in self.hospitals.values():
            hospital.turn(self.coordinator)

    async def keep_turning(self) -> None:
        """Let the hospitals answer until cancelled."""
        while True:
            await asyncio.to_thread(self.turn)
            await asyncio.sleep(0.01)


def make_federation(  # noqa: PLR0913 - what tests vary
    folder: Path,
    vectors: Mapping[str, Vectors],
    *,
    parameters: int = 10,
    rounds: int = 3,
    quorum: int = 3,
    lost_after_seconds: float = 2.0,
    ready_minutes: float = 1.0,
    mlflow_url: str | None = None,
    name: str = "simulated",
) -> SimulatedFederation:
    """Make a coordinator in `folder` and one hospital per entry of `vectors`, admitted, with a published plan."""
    settings = starting_settings(folder, "https://127.0.0.1:1", "127.0.0.1", 1, ["127.0.0.1"])
    if mlflow_url is not None:
        settings = settings.replace('# mlflow_url = "http://127.0.0.1:5000"', f'mlflow_url = "{mlflow_url}"')
    coordinator = create(folder, settings)
    hospitals = {
        silo: SimulatedHospital(silo, SigningIdentity.generate(), UnsealingKey.generate(), what)
        for silo, what in vectors.items()
    }
    _admit(coordinator, hospitals)
    plan = simulated_plan(hospitals, rounds, quorum, lost_after_seconds, ready_minutes, name)
    manifest = TensorManifest(tensors=(TensorSpec(name="w", shape=(parameters,)),))
    initial = coordinator.blobs.put_bytes(pack(np.zeros(parameters, dtype=np.float32), manifest))
    with writing(coordinator.store) as connection:
        holdings.record(connection, initial, owner=COORDINATOR, now=coordinator.now())
        studies.publish(connection, plan, ModelStart(manifest=manifest, initial=initial), coordinator.now())
    with reading(coordinator.store) as connection:
        study = studies.find(connection, plan.label)
    return SimulatedFederation(coordinator, hospitals, plan, study)


def simulated_plan(
    hospitals: Mapping[str, SimulatedHospital],
    rounds: int,
    quorum: int,
    lost_after_seconds: float,
    ready_minutes: float,
    name: str = "simulated",
) -> StudyPlan:
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
                {"silo": silo, "signing_key": hospital.key.public.text} for silo, hospital in hospitals.items()
            ],
            "model": {"name": "densenet-small", "version": 1},
            "preprocessing": {"size": [16, 16], "intensity": "window", "low": 0.0, "high": 1.0},
            "labels": {"classes": ["0", "1"]},
            "dataset": {"name": "images", "modalities": ["CT"]},
            "training": {"rounds": rounds},
            "aggregation": {
                "quorum": quorum,
                "lost_after_seconds": lost_after_seconds,
                "ready_minutes": ready_minutes,
            },
        }
    )


def _admit(coordinator: Coordinator, hospitals: Mapping[str, SimulatedHospital]) -> None:
    cards = [make_card(silo, one.key, one.unsealing.public) for silo, one in hospitals.items()]
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
