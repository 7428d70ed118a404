"""A hospital's half of a masked sum, without input or output: verified values in, values out, refusals raised.

announce -> share -> mask -> agree -> reveal, each once and in this order. A malicious coordinator can make a hospital
stop; it cannot make it reveal two kinds of share for anybody, help to unmask two sets of survivors, or add its vector
to a sum that is smaller than it accepts. Signatures are verified before values get here (`boundary.secagg.quoted`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from boundary.aggregation import SMALLEST_COHORT
from boundary.errors import CohortTooSmall, MalformedMessage, OutOfTurn, UnknownMember, UnsealFailed
from boundary.sealing import SealingKey
from boundary.secagg import shamir
from boundary.secagg.context import binding, cohort_of, sharers_of, survivors_of
from boundary.secagg.errors import BadShares, KeyReused, ResultSpent, SplitView
from boundary.secagg.graph import Thresholds, chooses_mask, neighbours, thresholds
from boundary.secagg.secrets import (
    SECRET_BYTES,
    Announcement,
    AttemptSecrets,
    MaskKey,
    pair_key,
    pair_secret,
    self_commitment,
    self_key,
    share_digest,
)


class Turn(StrEnum):
    """What the session waits for."""

    COHORT = "cohort"
    SHARES = "shares"
    SURVIVORS = "survivors"
    AGREEMENT = "agreement"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Part:
    """One hospital's shares for another, as in `boundary.messages.Share`."""

    sealed: bytes
    pair: bytes | None
    self_digest: str
    seed_digest: str


@dataclass(frozen=True, slots=True)
class Dealt:
    """What `share` gives: a part for each neighbour, and the digests of the shares the hospital keeps itself."""

    cohort: str
    parts: Mapping[str, Part]
    self_digest: str
    seed_digest: str

    def promised(self, dealer: str, holder: str, kind: str) -> str | None:
        """The digest of the share that `dealer`, whose dealing this is, gave `holder`; None if it gave none."""
        source = self if holder == dealer else self.parts.get(holder)
        if source is None:
            return None
        return source.self_digest if kind == "self" else source.seed_digest


@dataclass(frozen=True, slots=True)
class Revealed:
    """What `reveal` gives: shares of survivors' self masks, and of lost hospitals' key seeds."""

    survivors: str
    of_survivors: Mapping[str, bytes]
    of_lost: Mapping[str, bytes]


class HospitalSession:
    """One hospital, one attempt. `least` is the smallest sum this hospital takes part in.

    `group` are the hospitals that this one is summed with, itself among them (`boundary.groups`); None for all of the
    cohort. The others' keys and vectors are in the digests that all agree on, and in nothing else here.

    `revealed_for` are the survivors of an earlier attempt with the same result in which this hospital revealed shares.
    """

    def __init__(
        self,
        context: str,
        silo: str,
        *,
        least: int,
        entropy: Callable[[int], bytes],
        group: frozenset[str] | None = None,
        revealed_for: frozenset[str] | None = None,
    ) -> None:
        self._revealed_for, self._group = revealed_for, group
        self._context, self._silo, self._least, self._entropy = context, silo, max(least, SMALLEST_COHORT), entropy
        self._secrets = AttemptSecrets.make(context, silo, entropy)
        self._turn = Turn.COHORT
        self._cohort = self._sharers = self._survivors = ""
        self._members: Mapping[str, Announcement] = {}  # of our group
        self._cohort_silos: frozenset[str] = frozenset()
        self._held: dict[str, tuple[bytes, bytes]] = {}  # dealer -> (share of its self secret, share of its seed)
        self._chosen: frozenset[str] = frozenset()  # neighbours whose common mask is ours to choose
        self._sharing: frozenset[str] = frozenset()
        self._vectors: frozenset[str] = frozenset()  # whose arrived, of all groups
        self._surviving: frozenset[str] = frozenset()

    @property
    def turn(self) -> Turn:
        return self._turn

    @property
    def cohort(self) -> str:
        """The digest of the cohort; known after `share`."""
        return self._cohort

    @property
    def sharers(self) -> str:
        """The digest of the sharers; known after `mask`."""
        return self._sharers

    @property
    def surviving(self) -> frozenset[str]:
        """Whom we will help to unmask, of our group; known after `agree`."""
        return self._surviving

    @property
    def numbers(self) -> Thresholds:
        return thresholds(len(self._members))

    def _expect(self, turn: Turn) -> None:
        if self._turn is not turn:
            raise OutOfTurn(f"the masked sum waits for {self._turn.value}, not for {turn.value}")

    # --- A1 ------------------------------------------------------------------------------------------
    def announce(self) -> Announcement:
        """Our fresh public keys; `digest` is for the caller to fill in, who signs the envelope."""
        return Announcement(
            context=self._context,
            transport_key=self._secrets.transport.public.text,
            mask_key=self._secrets.mask.public.text,
            self_commitment=self_commitment(self._secrets.self_secret, self._context, self._silo),
            digest="",
        )

    # --- A2 -> B1 ------------------------------------------------------------------------------------
    def share(self, members: Mapping[str, Announcement]) -> Dealt:
        """Check the cohort and share both secrets in it. Raises a `PeerFault` and is unchanged then."""
        self._expect(Turn.COHORT)
        self._check_cohort(members)
        cohort = cohort_of(self._context, {silo: said.digest for silo, said in members.items()})
        group = {silo: said for silo, said in members.items() if silo in self._ours(members)}
        wanted = thresholds(len(group))
        chosen = neighbours(self._silo, tuple(group), self._entropy)
        places = {silo: place for place, silo in enumerate(sorted(group), start=1)}
        holders = {places[silo]: silo for silo in (*chosen, self._silo)}
        shares = [
            shamir.split(secret, tuple(holders), wanted.shares, self._entropy)
            for secret in (self._secrets.self_secret, self._secrets.seed)
        ]
        dealt = {holder: (shares[0][place], shares[1][place]) for place, holder in holders.items()}
        self._members, self._cohort, self._cohort_silos = group, cohort, frozenset(members)
        self._held = {self._silo: dealt[self._silo]}
        self._turn = Turn.SHARES
        self._chosen = frozenset(o for o in chosen if chooses_mask(self._silo, o, is_complete=wanted.is_complete))
        parts = {other: self._part(other, dealt[other]) for other in chosen}
        own = [self._digest(self._silo, self._silo, kind, dealt[self._silo][at]) for at, kind in _KINDS]
        return Dealt(cohort, parts, *own)

    def _ours(self, silos: Iterable[str]) -> frozenset[str]:
        """Those of them that we are summed with."""
        return frozenset(silos) if self._group is None else self._group.intersection(silos)

    def _check_cohort(self, members: Mapping[str, Announcement]) -> None:
        own = self.announce()
        mine = members.get(self._silo)
        if mine is None or (mine.transport_key, mine.mask_key, mine.self_commitment) != (
            own.transport_key, own.mask_key, own.self_commitment,
        ):  # fmt: skip
            raise SplitView("the cohort was shown with other keys in our name")
        there = len(self._ours(members))
        if there < self._least:
            raise CohortTooSmall(f"a sum over {there} hospitals, this hospital accepts {self._least}")
        if any(said.context != self._context for said in members.values()):
            raise SplitView("another hospital was given another order: model, plan, roster, attempt or encoding")
        keys = [key for said in members.values() for key in (said.transport_key, said.mask_key)]
        if len(set(keys)) != len(keys) or len({said.self_commitment for said in members.values()}) != len(members):
            raise KeyReused("a key appears twice in the cohort")

    def _part(self, other: str, shares: tuple[bytes, bytes]) -> Part:
        said, pair = self._members[other], None
        sealed = SealingKey(said.transport_key).seal(b"".join(shares), self._bound("shares", self._silo, other))
        if other in self._chosen:
            secret = pair_secret(self._secrets.seed, self._cohort, self._silo, other)
            pair = SealingKey(said.mask_key).seal(secret, self._bound("pair", self._silo, other))
        return Part(sealed, pair, *(self._digest(self._silo, other, kind, shares[at]) for at, kind in _KINDS))

    def _bound(self, what: str, dealer: str, holder: str) -> bytes:
        return binding(what, self._cohort, dealer, holder)

    def _digest(self, dealer: str, holder: str, kind: str, share: bytes) -> str:
        return share_digest(share, self._cohort, dealer, holder, kind)

    # --- B2 -> C1 ------------------------------------------------------------------------------------
    def mask(self, sharing: frozenset[str], parts: Mapping[str, Part]) -> list[MaskKey]:
        """Open our shares and give the masks of our vector, each to be used once. Raises a `PeerFault`.

        `sharing` is whose shares arrived; `parts` are those for us, by dealer.
        """
        self._expect(Turn.SHARES)
        wanted = self.numbers
        if not sharing <= self._cohort_silos or self._silo not in sharing:
            raise UnknownMember("shares of a hospital that is not in the cohort, or not with ours")
        ours = self._ours(sharing)
        self._enough(len(ours))
        if not set(parts) <= ours - {self._silo} or (wanted.is_complete and len(parts) != len(ours) - 1):
            raise OutOfTurn("shares that do not belong here, or some that are missing")
        held = dict(self._held)
        sharers = sharers_of(self._cohort, sharing)
        masks = [MaskKey(self_key(self._secrets.self_secret, sharers, self._silo), 1)]
        for dealer, part in sorted(parts.items()):
            held[dealer] = self._open(dealer, part)
            if chooses_mask(dealer, self._silo, is_complete=wanted.is_complete):
                secret = self._pair(dealer, part)
                masks.append(MaskKey(pair_key(secret, sharers, dealer, self._silo), -1))
        for other in sorted(self._chosen & sharing):
            secret = pair_secret(self._secrets.seed, self._cohort, self._silo, other)
            masks.append(MaskKey(pair_key(secret, sharers, self._silo, other), 1))
        self._held, self._sharing, self._sharers = held, sharing, sharers
        self._turn = Turn.SURVIVORS
        return masks

    def _open(self, dealer: str, part: Part) -> tuple[bytes, bytes]:
        both = self._secrets.transport.unseal(part.sealed, self._bound("shares", dealer, self._silo))
        shares = both[: shamir.SHARE_BYTES], both[shamir.SHARE_BYTES :]
        promised = part.self_digest, part.seed_digest
        if tuple(self._digest(dealer, self._silo, kind, shares[at]) for at, kind in _KINDS) != promised:
            raise BadShares(f"the shares of {dealer} are not those it promised")
        if any(len(share) != shamir.SHARE_BYTES for share in shares):
            raise BadShares(f"the shares of {dealer} have a wrong length")
        return shares

    def _pair(self, dealer: str, part: Part) -> bytes:
        if part.pair is None:
            raise MalformedMessage(f"{dealer} sent no secret for our common mask")
        secret = self._secrets.mask.unseal(part.pair, self._bound("pair", dealer, self._silo))
        if len(secret) != SECRET_BYTES:
            raise UnsealFailed(f"the secret of {dealer} for our common mask has a wrong length")
        return secret

    # --- D1 -> D2 ------------------------------------------------------------------------------------
    def agree(self, own_vector: str, vectors: Mapping[str, tuple[str, str]]) -> str:
        """Give the digest of the survivors to sign. `vectors` gives silo -> (its sharers digest, vector digest).

        `own_vector` is the digest of the vector we sent. Raises a `PeerFault`.
        """
        self._expect(Turn.SURVIVORS)
        if not self._sharing.issuperset(vectors) or self._silo not in vectors:
            raise UnknownMember("survivors that did not share, or without us")
        surviving = self._ours(vectors)
        self._enough(len(surviving))
        self._unspent(surviving)
        if any(sharers != self._sharers for sharers, _ in vectors.values()):
            raise SplitView("another hospital masked for another set of hospitals")
        if vectors[self._silo][1] != own_vector:
            raise SplitView("another vector was shown in our name")
        self._surviving, self._vectors = surviving, frozenset(vectors)
        self._survivors = survivors_of(self._sharers, {silo: vector for silo, (_, vector) in vectors.items()})
        self._turn = Turn.AGREEMENT
        return self._survivors

    def _unspent(self, surviving: frozenset[str]) -> None:
        if self._revealed_for not in {None, surviving}:
            raise ResultSpent("this result was unmasked in a sum over other hospitals: it has to be computed anew")

    def _enough(self, there: int) -> None:
        least = max(self._least, self.numbers.agreeing)
        if there < least:
            raise CohortTooSmall(f"{there} hospitals are left in the sum, {least} are needed")

    # --- D2s -> E1 -----------------------------------------------------------------------------------
    def reveal(self, seen: Mapping[str, str]) -> Revealed:
        """Give one share for each hospital we hold shares of. `seen` gives silo -> the survivors digest it signed.

        Raises a `PeerFault` unless enough survivors of our group saw the same survivors as we did.
        """
        self._expect(Turn.AGREEMENT)
        agreeing = {silo for silo, digest in seen.items() if digest == self._survivors} & self._surviving
        if set(seen) - self._vectors:
            raise UnknownMember("agreement of a hospital that is not among the survivors")
        if len(agreeing) < self.numbers.agreeing:
            raise SplitView(f"{len(agreeing)} hospitals saw the same survivors, {self.numbers.agreeing} must")
        of_survivors = {silo: own for silo, (own, _) in self._held.items() if silo in self._surviving}
        of_lost = {silo: seed for silo, (_, seed) in self._held.items() if silo not in self._surviving}
        self._turn = Turn.OVER
        self._held = {}
        return Revealed(self._survivors, of_survivors, of_lost)


_KINDS = ((0, "self"), (1, "seed"))
