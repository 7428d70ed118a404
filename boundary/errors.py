"""Two roots: the peer sent something we refuse, or our own side asked for something impossible.

Every error carries a stable `code`. A code may leave the hospital; the sentence never does.
"""


class BoundaryError(Exception):
    """Root of everything `boundary` raises on purpose."""

    code = "BOUNDARY"


class PeerFault(BoundaryError):
    """What arrived is wrong, forged, stale or out of turn. Nothing of it was acted on."""

    code = "PEER_FAULT"


class CallerFault(BoundaryError):
    """Our own side asked for something the protocol does not allow."""

    code = "CALLER_FAULT"


class MalformedMessage(PeerFault):
    """Bytes that are not the one canonical form of a known message."""

    code = "MALFORMED"


class TooLarge(PeerFault):
    """More bytes than the limit for this kind of thing; refused before it was read."""

    code = "TOO_LARGE"

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"{what} has {size} bytes, the limit is {limit}")
        self.size, self.limit = size, limit


class BadSignature(PeerFault):
    """A signature that does not verify under the key we hold for its signer."""

    code = "BAD_SIGNATURE"


class WrongRecipient(PeerFault):
    """A genuine message that was addressed to somebody else."""

    code = "WRONG_RECIPIENT"


class Stale(PeerFault):
    """A genuine message that is older, or newer, than we accept."""

    code = "STALE"


class Replayed(PeerFault):
    """A genuine message that was already acted on."""

    code = "REPLAYED"


class RolledBack(PeerFault):
    """A roster older than the one we already trust."""

    code = "ROLLED_BACK"


class Expired(PeerFault):
    """A roster past its date."""

    code = "EXPIRED"


class UnknownMember(PeerFault):
    """A party that is not on the trusted roster."""

    code = "UNKNOWN_MEMBER"


class UnsealFailed(PeerFault):
    """Ciphertext that does not open under our key and this context."""

    code = "UNSEAL_FAILED"


class BadTensors(PeerFault):
    """Weights whose names, shapes, dtypes or values are not what the plan's model needs."""

    code = "BAD_TENSORS"


class OutOfTurn(PeerFault):
    """A message the round protocol's table does not allow at this step."""

    code = "OUT_OF_TURN"


class CohortTooSmall(PeerFault):
    """A sum over fewer hospitals than the protocol, the plan or this hospital accepts."""

    code = "COHORT_TOO_SMALL"


class NotApproved(PeerFault):
    """A plan digest this hospital's steward has not approved."""

    code = "NOT_APPROVED"


class InvalidPlan(CallerFault):
    """A study plan that does not parse, or that contradicts itself. The sentence says where."""

    code = "INVALID_PLAN"
