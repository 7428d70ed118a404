"""A hospital in a box: its state folder and journal, its agent's parts, and a coordinator that signs."""

import copy
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from silo_agent_tests_peers import NOW, Attempt, OthersLog, Peer  # conftest.py has loaded it

from boundary.api import Delivery
from boundary.canonical import digest
from boundary.envelope import Envelope, open_envelope, seal_envelope
from boundary.identity import SigningIdentity
from boundary.layout import layout_in
from boundary.messages import (
    AgreementShown,
    AnyMessage,
    BlobRef,
    CohortClosed,
    Collection,
    HeadsShown,
    OfCollection,
    PlanProposed,
    RoundCommitted,
    SharesRouted,
    ShownHead,
    SurvivorsNamed,
    TrailShown,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan, digest_of, parse_plan, study_id
from boundary.receipt import Receipt
from boundary.roster import KeyCard, Roster, SignedRoster, TrustedRoster, make_card, sign_roster
from boundary.sealing import UnsealingKey
from boundary.secagg.ring import first_encoding
from compliance.merkle import consistency_proof
from compliance.trail import read_leaf
from flows.authority import Authority
from infra.hospitals.policy import destination_of, put_in_force, wide_policy
from silo_agent.config import AgentConfig, load_config, parse_config, starting_config
from silo_agent.daemon import RELAY_URL, ROSTER
from silo_agent.destination import address_of
from silo_agent.inbound import OwnSide
from silo_agent.journal import Journal, KeptOrder, Parcel
from silo_agent.mailroom import Mailroom
from silo_agent.outbound import Outbound
from silo_agent.permission import Permission
from silo_agent.policy.sections import Destination
from silo_agent.results import StoredResult, identity_of, result_folder
from silo_agent.state import StateFolder, write_private
from silo_agent.steward import approve
from silo_agent.sums import Sums, order_of
from silo_agent.vector import write_vector
from silo_agent.witness import Witness
from silo_agent.workbench import is_whole

SILO, OTHERS = "st-olavs", ("charite", "karolinska", "utrecht")
PARAMETERS, METRICS = 7, 3  # of the pretended network
MODEL = BlobRef(digest=digest(b"the model"), size=9)
NEXT_MODEL = BlobRef(digest=digest(b"the next model"), size=9)
DATASET_DIGEST = digest(b"our data")
GUARANTEE = {"mechanism": "patient-dp", "noise_multiplier": 2.0, "patients_per_step": 10, "steps": 5}  # 0.42 a round


# --- a coordinator that only signs -------------------------------------------------------------------
@dataclass
class Signer:
    """The coordinator's keys, and rosters of any members."""

    key: SigningIdentity = field(default_factory=SigningIdentity.generate)
    unsealing: UnsealingKey = field(default_factory=UnsealingKey.generate)

    def roster(
        self,
        *cards: KeyCard,
        version: int = 1,
        expires: datetime = NOW + timedelta(days=90),
        also: tuple[SigningIdentity, ...] = (),
    ) -> SignedRoster:
        card = make_card(COORDINATOR, self.key, self.unsealing.public)
        ordered = tuple(sorted(cards, key=lambda one: one.party))
        roster = Roster(version=version, issued_at=NOW, expires_at=expires, coordinator=card, members=ordered)
        return sign_roster(roster, self.key, *also)

    def says(self, message: AnyMessage, to: str = SILO, at: datetime = NOW) -> Envelope:
        return seal_envelope(message, sender=COORDINATOR, recipient=to, sent_at=at, key=self.key)


def card_of(name: str) -> KeyCard:
    return Peer(name).card


def plan_for(cards: list[KeyCard], **changes: Any) -> StudyPlan:
    purpose = dict.fromkeys(("title", "statement", "legal_basis", "ethics_reference"), "a test")
    value: dict[str, Any] = {
        "version": 1,
        "name": "ct-contrast",
        "revision": 1,
        "purpose": {**purpose, "expires": "2030-01-01"},
        "hospitals": [{"silo": card.party, "signing_key": card.signing_key} for card in cards],
        "model": {"name": "densenet-small", "version": 1},
        "preprocessing": {"size": [32, 32], "intensity": "window", "low": -200, "high": 300},
        "labels": {"column": "contrast", "classes": ["0", "1"]},
        "dataset": {"name": "images", "modalities": ["CT"], "holdout_share": 0.3},
        "training": {"rounds": 3, "batch_size": 4},
        "aggregation": {"quorum": 3},
    }
    for path, change in changes.items():
        section, _, key = path.partition("__")
        if key:
            value[section][key] = change
        else:
            value[section] = change
    return parse_plan(value)


def private(**changes: Any) -> dict[str, Any]:
    """Changes that make a plan one with a guarantee per patient, as `plan_for` takes them."""
    return {"privacy": GUARANTEE | changes, "training__weighting": "equal"}


# --- one hospital without a network ------------------------------------------------------------------
def _other_plan(policy: dict[str, Any]) -> None:
    for study in policy["study"].values():
        study["plan_digest"] = [digest(b"another plan")]


def _old_papers(policy: dict[str, Any]) -> None:
    for study in policy["study"].values():
        study["legal"]["expires"] = date(2021, 1, 1)


_FORBIDDEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "study": lambda policy: policy["study"].clear(),
    "plan": _other_plan,
    "papers": _old_papers,
    "days": lambda policy: policy.update(valid={"from": date(2020, 1, 1), "until": date(2021, 1, 1)}),
    "hours": lambda policy: policy["hours"].update(windows=[]),
    "modality": lambda policy: policy["dataset"]["images"].update(modalities=["US"]),
    "images": lambda policy: policy["dataset"]["images"].update(max_images_per_patient=1),
    "patients": lambda policy: policy["dataset"]["images"].update(min_patients=90),
    "metrics": lambda policy: policy["release"].update(metrics=["auroc"]),
    "cells": lambda policy: policy["release"].update(smallest_cell=20),
    "egress": lambda policy: policy["network"].update(max_egress_mb_per_round=1),
}


@dataclass
class Site:
    """One agent's parts as the daemon puts them together, with a clock in the test's hand."""

    root: Path
    coordinator: Signer = field(default_factory=Signer)
    now: datetime = NOW
    least: int = 3  # hospitals in a sum, by the policy
    unwanted: list[str] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)  # of the plan, as `plan_for` takes them
    most_patients: int | None = None  # by the policy; without it the hospital takes part without a guarantee too
    second: SigningIdentity = field(default_factory=SigningIdentity.generate)  # who signs policies with the steward
    policy: dict[str, Any] = field(default_factory=dict)  # as `wide_policy` takes it
    allowed: dict[str, StudyPlan] = field(default_factory=dict)  # by digest

    def __post_init__(self) -> None:
        self.folder = StateFolder(self.root)
        self.folder.create(secrets.token_bytes, starting_config(SILO, threads=1, heartbeat=0.3))
        excluded = self.root / "excluded.hmac"
        excluded.touch()
        os.utime(excluded, (self.now.timestamp(), self.now.timestamp()))
        self.card = self.folder.card(SILO)
        self.peers = {name: Peer(name) for name in OTHERS}
        self.cards = [self.card, *(peer.card for peer in self.peers.values())]
        self.signed_roster = self.coordinator.roster(*self.cards, expires=self.now + timedelta(days=90))
        self.roster = TrustedRoster(self.signed_roster)
        self.plan = plan_for(self.cards, **self.changes)
        self.study = study_id(self.plan)
        if self.most_patients is not None:
            self.policy = {"most_patients": self.most_patients, "required": True} | self.policy
        self.allow(least=self.least)
        self.attempts: dict[str, Attempt] = {}
        self._sequence = count(1)
        self.logs = {COORDINATOR: OthersLog(COORDINATOR, self.coordinator.key)}
        self.logs |= {name: OthersLog(name, peer.key) for name, peer in self.peers.items()}
        self.told: dict[tuple[str, int], HeadsShown] = {}
        self.heard: set[tuple[str, int]] = set()
        self._last_told: dict[str, int] = {}  # log -> how large it was when we were last told of it
        self.open()

    def allow(self, *plans: StudyPlan, **how: Any) -> None:
        """Have both sign another policy, which names these plans too, or the site's; `how` as `wide_policy` has it."""
        self.policy |= how
        self.allowed |= {digest_of(plan): plan for plan in plans or [self.plan]}
        keys = [self.folder.steward.public.text, self.second.public.text]
        where = {"dicom": self.root, "labels": self.root / "labels.csv", "exclusions": self.root / "excluded.hmac"}
        self._sign(wide_policy(SILO, keys, plans=[*self.allowed.values()], **(where | self.policy)))

    def forbid(self, *what: str) -> None:
        """Have both sign the last policy without something."""
        value = copy.deepcopy(self._signed)
        for name in what:
            _FORBIDDEN[name](value)
        self._sign(value)

    def _sign(self, value: dict[str, Any]) -> None:
        self._signed = value
        privacy = value["privacy"]
        privacy["max_epsilon_per_study"] = min(privacy["max_epsilon_per_study"], privacy["max_epsilon_lifetime"])
        put_in_force(self.folder, self.second, value)
        if hasattr(self, "journal"):
            self.permission().in_force()

    def permission(self) -> Permission:
        return Permission(self.folder, self.journal, load_config(self.root).resources, lambda: self.now)

    def open(self) -> None:
        """(Re)open the journal, as the start of the daemon does."""
        self.journal = Journal(self.folder.journal, SILO)
        self.journal._db.execute("PRAGMA synchronous=OFF")  # processes are killed here, but nobody pulls the plug
        identity = self.folder.identity
        self.outbound = Outbound(SILO, identity, self.journal, lambda: self.now, secrets.token_bytes, "0.1.0")
        self.sums = Sums(self.journal, self.outbound, self.own, secrets.token_bytes, self.permission())
        self.witness = Witness(self.journal, self.outbound, self.own)
        self.mailroom = Mailroom(
            self.journal, self.outbound, self.sums, self.witness, self.folder, self.own, self.unwanted.append
        )
        self.permission().in_force()  # as the daemon looks at its start
        self.sums.admit_loss()

    def restart(self) -> None:
        """Be killed and started again: what was only in memory is gone."""
        self.journal.close()
        self.open()

    def own(self) -> OwnSide:
        return OwnSide(SILO, self.folder.steward.public, self.roster, self.now)

    def hear(self, message: AnyMessage, **how: Any) -> Delivery:
        """The relay delivers what the coordinator says."""
        delivery = Delivery(sequence=next(self._sequence), envelope=self.coordinator.says(message, **how).data)
        self.mailroom.take(delivery)
        return delivery

    def propose(self) -> None:
        if digest_of(self.plan) not in self.allowed:
            self.allow()
        self.hear(PlanProposed(study=self.study, plan=self.plan))

    def scanned(self, problems: str | None = None) -> None:
        state = "unsuitable" if problems else "scanned"
        self.journal.set_plan(self.study, state, dataset_digest=DATASET_DIGEST, reason=problems)  # type: ignore[arg-type]

    def approve(self) -> None:
        self.propose()
        self.scanned()
        approve(self.journal, self.folder, self.outbound, self.study, "data_steward", "a test")

    def collection(self, number: int = 1, phase: str = "train", attempt: int = 1) -> Collection:
        return Collection(study=self.study, round=number, phase=phase, attempt=attempt)  # type: ignore[arg-type]

    def order(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> WorkOrder:
        values: dict[str, Any] = {
            "collection": self.collection(number, phase, attempt),
            "plan_digest": digest_of(self.plan),
            "roster_digest": self.roster.signed.digest,
            "model": MODEL,
            "base": None,
            "control": None,
            "before": None,
            "encoding": first_encoding(self.plan),
            "normalisation": None,
            "heads": self.witnessed(number - 1),
            "due": self.now + timedelta(hours=2),
        }
        return WorkOrder(**(values | changes))

    # --- logs ----------------------------------------------------------------------------------------
    def witnessed(self, number: int) -> str:
        """Have us told once of all logs after round `number`, as an honest coordinator does; the heads' digest."""
        about = self.study, number
        if about not in self.told:
            self.told[about] = self.heads(number)
        if about not in self.heard and self.journal.plan(self.study) is not None:
            self.heard.add(about)
            self.hear(self.told[about])
        return self.told[about].digest

    def heads(self, number: int, grow: int = 2) -> HeadsShown:
        """All logs, each grown since the last time; ours as we showed it last."""
        shown = []
        for log in self.logs.values():
            log.grow(grow)
            shown.append(log.shown(self._last_told.get(log.name, 0)))
        ours = [message.checkpoint for message in self.outbox() if isinstance(message, TrailShown)]
        if ours:
            proof = consistency_proof(self._last_told.get(SILO, 0), ours[-1].size, self.journal.node)
            shown.append(ShownHead(checkpoint=ours[-1], proof=tuple(proof)))
        self._last_told |= {head.checkpoint.log: head.checkpoint.size for head in shown}
        return HeadsShown(study=self.study, round=number, heads=tuple(shown))

    def committed(
        self, number: int = 1, contributing: tuple[str, ...] = OTHERS, transcript: str = digest(b"the sum"),
        **changes: Any,
    ) -> RoundCommitted:  # fmt: skip
        """What the coordinator says when a round is over, with its signature under the receipt."""
        said: dict[str, Any] = {
            "study": self.study, "round": number, "tried": None, "transcript": transcript,
            "contributing": contributing, "absent": tuple(name for name in (SILO, *OTHERS) if name not in contributing),
        }  # fmt: skip
        receipt = Receipt(
            plan_digest=digest_of(self.plan), model_in=MODEL.digest, model_out=NEXT_MODEL.digest, **said
        ).sign(self.coordinator.key)
        return RoundCommitted(**({"model": NEXT_MODEL, "receipt": receipt} | said | changes))

    def ordered(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> KeptOrder:
        order = self.order(number, phase, attempt, **changes)
        self.hear(order)
        return self.kept(number, phase, attempt)

    def kept(self, number: int = 1, phase: str = "train", attempt: int = 1) -> KeptOrder:
        kept = self.journal.order(str(self.collection(number, phase, attempt)))
        assert kept is not None
        return kept

    def store_result(self, number: int = 1, phase: str = "train") -> Path:
        """What a child leaves behind: numbers 0.5, 1.5, ... and weights 0, 1/1024, ...; kept if it is there already."""
        folder = result_folder(self.folder, self.study, number, phase, MODEL.digest)
        if not is_whole(folder):
            identity = identity_of(self.collection(number, phase), MODEL.digest, secrets.token_bytes)
            layout = layout_in(self.plan, phase, parameters=PARAMETERS, metrics=METRICS)  # type: ignore[arg-type]
            result = StoredResult(identity, folder / "vector", layout, number if phase == "train" else 0)
            write_vector(result.vector, np.arange(layout.numbers) + 0.5, np.arange(layout.weights, dtype="<f4") / 1024)
            result.save(folder)
        return folder

    # --- a masked sum, step by step ------------------------------------------------------------------
    def attempt(self, kept: KeptOrder) -> Attempt:
        """The peers and the coordinator of this order's attempt."""
        if kept.collection not in self.attempts:
            order = order_of(kept, self.own())
            layout = layout_in(self.plan, order.collection.phase, parameters=PARAMETERS, metrics=METRICS)
            self.attempts[kept.collection] = Attempt(
                self.plan, order, layout, self.peers, SILO, lambda kind: self.said(kind, kept.collection)
            )
        return self.attempts[kept.collection]

    def said(self, kind: str, collection: str) -> bytes | None:
        """Our envelope of this kind, if there is one."""
        row = self.journal._db.execute("SELECT envelope FROM outbox WHERE slot = ?", (f"{kind}/{collection}",))
        found = row.fetchone()
        return None if found is None else bytes(found[0])

    def closing(self, kept: KeptOrder, **changes: Any) -> CohortClosed:
        members = changes.get("members", (SILO, *OTHERS))
        values = {"members": members, "absent": (), "ready": self.attempt(kept).closed(members)}
        return self._tells(CohortClosed, kept, values | changes)

    def routing(self, kept: KeptOrder, **changes: Any) -> SharesRouted:
        attempt = self.attempt(kept)
        members = changes.get("members", attempt.members)
        return self._tells(SharesRouted, kept, {"members": members, "parts": attempt.routed(members)} | changes)

    def naming(self, kept: KeptOrder, surviving: tuple[str, ...] | None = None, **changes: Any) -> SurvivorsNamed:
        attempt = self.attempt(kept)
        vectors = attempt.named(attempt.sharing if surviving is None else surviving)
        return self._tells(SurvivorsNamed, kept, {"vectors": vectors} | changes)

    def agreement(self, kept: KeptOrder, agreeing: tuple[str, ...] | None = None, **changes: Any) -> AgreementShown:
        attempt = self.attempt(kept)
        seen = attempt.shown(attempt.surviving if agreeing is None else agreeing)
        return self._tells(AgreementShown, kept, {"seen": seen} | changes)

    def _tells(self, kind: type[OfCollection], kept: KeptOrder, values: dict[str, Any]) -> Any:
        return kind(**({"collection": Collection.parse(kept.collection), "order": kept.digest} | values))

    def ready(self, number: int = 1, phase: str = "train", attempt: int = 1, **changes: Any) -> KeptOrder:
        """An order whose work is done; nothing of it has left."""
        kept = self.ordered(number, phase, attempt, **changes)
        self.sums.begin(kept, self.store_result(number, phase))
        return self.kept(number, phase, attempt)

    def shared(self, number: int = 1, phase: str = "train", attempt: int = 1) -> KeptOrder:
        self.hear(self.closing(self.ready(number, phase, attempt)))
        return self.kept(number, phase, attempt)

    def masked(self, number: int = 1, phase: str = "train", attempt: int = 1) -> KeptOrder:
        self.hear(self.routing(self.shared(number, phase, attempt)))
        return self.kept(number, phase, attempt)

    def agreed(
        self, number: int = 1, phase: str = "train", attempt: int = 1, surviving: tuple[str, ...] | None = None
    ) -> KeptOrder:
        self.hear(self.naming(self.masked(number, phase, attempt), surviving))
        return self.kept(number, phase, attempt)

    def revealed(
        self, number: int = 1, phase: str = "train", attempt: int = 1, surviving: tuple[str, ...] | None = None
    ) -> KeptOrder:
        self.hear(self.agreement(self.agreed(number, phase, attempt, surviving)))
        return self.kept(number, phase, attempt)

    # --- what comes of it ----------------------------------------------------------------------------
    def parcel(self, kind: str) -> Parcel:
        """The last parcel of this kind that waits."""
        return [parcel for parcel in self.journal.waiting() if parcel.kind == kind][-1]

    def events(self) -> list[str]:
        """The kinds of all entries, but of those about policies, which are signed often here."""
        found = [read_leaf(leaf).event.event for leaf in self.journal.trail()]
        return [kind for kind in found if kind != "policy-adopted"]

    def outbox(self) -> list[AnyMessage]:
        """Everything in the outbox, whatever became of it, as the coordinator would read it."""
        rows = self.journal._db.execute("SELECT envelope FROM outbox ORDER BY position")
        return [
            open_envelope(data, recipient=COORDINATOR, signer=self.folder.identity.public, sender=SILO).message
            for (data,) in rows
        ]

    def enrol_offline(self, url: str, authority: Authority, *, heartbeat: float = 0.3) -> AgentConfig:
        """What enrolment leaves behind, without a relay to ask; returns an impatient configuration."""
        issued = authority.issue_client(self.folder.csr(SILO), SILO)
        write_private(self.folder.tls_certificate, issued.certificate_pem.encode())
        write_private(self.folder.relay_ca, authority.pem.encode())
        self.journal.set_fact(ROSTER, self.signed_roster.data)
        self.journal.set_fact(RELAY_URL, url.encode())
        self.allow(relay=[destination_at(url)])
        return made_impatient(self.folder, heartbeat)


def destination_at(url: str) -> Destination:
    """Of a server, or of an address where there is none."""
    try:
        return destination_of(url)
    except OSError:
        host, port = address_of(url)
        return Destination(host=host, port=port, spki_sha256="00" * 32)


def made_impatient(folder: StateFolder, heartbeat: float = 0.3) -> AgentConfig:
    """Rewrite agent.toml with pauses for tests."""
    path = folder.root / "agent.toml"
    timing = f"heartbeat = {heartbeat}\nretry_first = 0.05\nretry_most = 0.4"
    text = path.read_text().partition("[timing]")[0] + f"[timing]\n{timing}\n"
    path.write_text(text.replace("min_free_disk_mb = 500", "min_free_disk_mb = 1"))
    return parse_config(path.read_text(), str(path))
