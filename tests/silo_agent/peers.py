"""Honest hospitals beside ours and the coordinator between them: masked sums in which one seat is a real agent's."""

import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boundary.canonical import digest
from boundary.checkpoint import Checkpoint
from boundary.envelope import open_envelope, seal_envelope
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.layout import VectorLayout
from boundary.messages import (
    AnyMessage,
    BlobRef,
    Collection,
    MaskedVector,
    Ready,
    Share,
    Shares,
    SharesRevealed,
    ShownHead,
    SurvivorsSeen,
    WorkOrder,
)
from boundary.names import COORDINATOR
from boundary.plan import StudyPlan
from boundary.roster import make_card
from boundary.sealing import UnsealingKey
from boundary.secagg.context import context_of
from boundary.secagg.hospital import Dealt, HospitalSession
from boundary.secagg.masks import Masking, apply_everywhere
from boundary.secagg.opening import Opening, Sum
from boundary.secagg.quoted import Said, revealed
from compliance.merkle import Tree, consistency_proof, leaf_hash

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
Bytes = NDArray[np.uint8]
Silos = tuple[str, ...]


@dataclass
class Peer:
    """A hospital that is not ours, with keys to sign for it."""

    silo: str
    key: SigningIdentity = field(default_factory=SigningIdentity.generate)

    def __post_init__(self) -> None:
        self.card = make_card(self.silo, self.key, UnsealingKey.generate().public)

    def says(self, message: AnyMessage, to: str = COORDINATOR) -> bytes:
        return seal_envelope(message, sender=self.silo, recipient=to, sent_at=NOW, key=self.key).data


@dataclass
class OthersLog:
    """The log of a party that is not ours: its owner's key and the tree over its entries."""

    name: str
    key: SigningIdentity
    tree: Tree = field(default_factory=Tree)

    def grow(self, by: int = 1, what: str = "entry") -> None:
        for _ in range(by):
            self.tree.append(leaf_hash(f"{what} {self.tree.size} of {self.name}".encode()))

    def head(self, size: int | None = None) -> Checkpoint:
        number = self.tree.size if size is None else size
        return Checkpoint.sign(self.name, number, self.tree.root(number), self.key)

    def shown(self, known: int = 0, size: int | None = None) -> ShownHead:
        """The head with the proof that it goes on from `known` entries."""
        head = self.head(size)
        return ShownHead(checkpoint=head, proof=tuple(consistency_proof(known, head.size, self.tree.look)))


def added(vectors: list[Bytes], numbers_bytes: int, ring: int) -> Bytes:
    """The integer reference: plain modular sums of both rings."""
    total = np.zeros_like(vectors[0])
    for one in vectors:
        total[:numbers_bytes].view("<u8")[:] += one[:numbers_bytes].view("<u8")
        total[numbers_bytes:].view(f"<u{ring // 8}")[:] += one[numbers_bytes:].view(f"<u{ring // 8}")
    return total


@dataclass
class Attempt:
    """One attempt as an honest coordinator has it. `ours(kind)` gives our agent's envelope, None before there is one.

    The peers act when they are asked for what they say, each once: `closed`, `routed`, `named`, `shown`, `opened`.
    """

    plan: StudyPlan
    order: WorkOrder
    layout: VectorLayout
    peers: Mapping[str, Peer]
    us: str
    ours: Callable[[str], bytes | None]
    members: Silos = ()
    sharing: Silos = ()
    surviving: Silos = ()
    sessions: dict[str, HospitalSession] = field(default_factory=dict)
    dealt: dict[str, Dealt] = field(default_factory=dict)
    parts: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (dealer, holder) -> envelope
    masked: dict[str, Bytes] = field(default_factory=dict)
    said: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (kind, silo) -> envelope

    def __post_init__(self) -> None:
        for silo in self.peers:
            session = HospitalSession(context_of(self.order), silo, least=3, entropy=secrets.token_bytes)
            keys = session.announce()
            self.sessions[silo] = session
            self._says(
                silo, Ready,
                context=keys.context, transport_key=keys.transport_key, mask_key=keys.mask_key,
                self_commitment=keys.self_commitment,
            )  # fmt: skip

    @property
    def collection(self) -> Collection:
        return self.order.collection

    @property
    def quotes(self) -> Said:
        return Said(self.plan, self.collection)

    def quote(self, kind: str, silos: Silos) -> tuple[bytes, ...]:
        """The envelopes of one kind, in the order of `silos`; who has not said it is passed over."""
        found = [self.ours(kind) if silo == self.us else self.said.get((kind, silo)) for silo in silos]
        return tuple(data for data in found if data is not None)

    def _says(self, silo: str, kind: Callable[..., AnyMessage], **content: Any) -> None:
        message = kind(collection=self.collection, order=digest(f"the order of {silo}".encode()), **content)
        self.said[message.kind, silo] = self.peers[silo].says(message)

    def _new(self, silos: Silos, done: Mapping[str, object]) -> list[str]:
        return [silo for silo in silos if silo in self.peers and silo not in done]

    # --- the steps -----------------------------------------------------------------------------------
    def closed(self, members: Silos) -> tuple[bytes, ...]:
        self.members = members
        return self.quote("ready", members)

    def routed(self, sharing: Silos) -> tuple[bytes, ...]:
        """The parts for us."""
        self.sharing = sharing
        announced = self.quotes.announcements(self.quote("ready", self.members))
        for silo in self._new(self.members, self.dealt):
            dealt = self.dealt[silo] = self.sessions[silo].share(announced)
            for holder, part in dealt.parts.items():
                share = Share(
                    collection=self.collection, cohort=dealt.cohort, sealed=part.sealed, pair=part.pair,
                    self_digest=part.self_digest, seed_digest=part.seed_digest,
                )  # fmt: skip
                self.parts[silo, holder] = self.peers[silo].says(share, to=holder)
        return self.parts_for(self.us)

    def parts_for(self, holder: str) -> tuple[bytes, ...]:
        return tuple(self.parts[dealer, holder] for dealer in self.sharing if (dealer, holder) in self.parts)

    def plain(self, silo: str) -> Bytes:
        """A peer's encoded vector: random words of both rings, every value as likely to wrap as not."""
        size = self.layout.masked_bytes(self.order.encoding.ring)
        return np.frombuffer(random.Random(silo).randbytes(size), np.uint8).copy()  # noqa: S311 - no secret

    def named(self, surviving: Silos) -> tuple[bytes, ...]:
        self.surviving = surviving
        for silo in self._new(self.sharing, self.masked):
            session, mine = self.sessions[silo], self._our_parts().parts.get(silo)
            parts = self.quotes.parts_for(silo, session.cohort, self.parts_for(silo))
            keys = session.mask(frozenset(self.sharing), parts | ({} if mine is None else {self.us: mine}))
            words = self.plain(silo)
            apply_everywhere(words, self._masking(keys))
            self.masked[silo] = words
            blob = BlobRef(digest=digest(words.tobytes()), size=len(words))
            self._says(silo, MaskedVector, sharers=session.sharers, vector=blob)
        return self.quote("masked-vector", surviving)

    def shown(self, agreeing: Silos) -> tuple[bytes, ...]:
        vectors = self.quotes.vectors(self.quote("masked-vector", self.surviving))
        seen = {silo for kind, silo in self.said if kind == "survivors-seen"}
        for silo in self._new(self.surviving, dict.fromkeys(seen)):
            survivors = self.sessions[silo].agree(digest(self.masked[silo].tobytes()), vectors)
            self._says(silo, SurvivorsSeen, survivors=survivors)
        return self.quote("survivors-seen", agreeing)

    # --- the coordinator's end of it -----------------------------------------------------------------
    def opened(self, our_vector: bytes) -> Bytes:
        """The unmasked sum over the survivors, opened with our agent's shares and the peers'."""
        us, survivors = self.us, self.sessions[self._new(self.surviving, {})[0]]
        about = Sum(
            context=context_of(self.order),
            cohort=survivors.cohort,
            sharers=survivors.sharers,
            survivors=self._our(SurvivorsSeen).survivors,
            members=self.quotes.announcements(self.quote("ready", self.members)),
            dealt={silo: self._our_parts() if silo == us else self.dealt[silo] for silo in self.sharing},
            surviving=frozenset(self.surviving),
        )
        opening, seen = Opening(about), self.quotes.agreements(self.quote("survivors-seen", self.surviving))
        opening.take(us, revealed(self._our(SharesRevealed)))
        for silo in self._new(self.surviving, {}):
            opening.take(silo, self.sessions[silo].reveal(seen))
        vectors = [self.masked[silo] for silo in self.surviving if silo != us]
        total = self.added([*vectors, np.frombuffer(our_vector, np.uint8)])
        apply_everywhere(total, self._masking(opening.masks()))
        return total

    def added(self, vectors: list[Bytes]) -> Bytes:
        return added(vectors, self.layout.numbers_bytes, self.order.encoding.ring)

    def _masking(self, keys: Any) -> Masking:
        return Masking(keys, numbers_bytes=self.layout.numbers_bytes, ring=self.order.encoding.ring)

    def _our(self, kind: Any) -> Any:
        data = self.ours(kind.kind)
        assert data is not None
        key = next(hospital.signing_key for hospital in self.plan.hospitals if hospital.silo == self.us)
        return open_envelope(data, recipient=COORDINATOR, signer=PublicIdentity(key), sender=self.us).message

    def _our_parts(self) -> Dealt:
        if self.us not in self.sharing:
            return Dealt("", {}, "", "")
        return self.quotes.dealt(self.us, self._our(Shares))
