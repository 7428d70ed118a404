"""The bodies of relay requests and answers that are not envelopes: enrolment, the poll, blob state.

These are the relay's own words and carry no authority: a hospital acts only on signed envelopes and rosters.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from boundary.canonical import MAX_MESSAGE_BYTES
from boundary.fields import PublicKeyStr
from boundary.messages import Phase
from boundary.names import (
    Base64Bytes,
    DigestStr,
    Frozen,
    Moment,
    RoundNumber,
    SiloId,
    StudyId,
    VersionOne,
    list_in,
)
from boundary.roster import KeyCard
from boundary.version import ProtocolRange

MAX_POLL_SECONDS = 25.0  # below the 30 s after which common proxies drop an idle connection
MAX_ENVELOPES_PER_POLL = 64
MAX_RANGE_BYTES = 64 * 1024 * 1024  # one blob range; what arrived of it before a cut is kept
ENROLMENT_CONTEXT = "enrolment request"
TENTHS = 10  # what a heartbeat calls all of the way


class Activity(Frozen):
    """What a hospital's child process is doing: `step` of `steps`, 0 of 0 where nobody is to follow it.

    No counts of patients or images: a training takes as many steps as there are batches, so in a heartbeat they stand
    `in_tenths` of the way (docs/adr/0021). In a hospital's own process they may be its true steps.
    """

    study: StudyId
    round: RoundNumber
    phase: Phase
    step: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]

    def in_tenths(self) -> Self:
        """The same as whole tenths, rounded down; of fewer than ten steps nothing but whether all are done."""
        if self.steps == 0:
            return self
        done = min(TENTHS, TENTHS * self.step // self.steps)
        if self.steps < TENTHS and done < TENTHS:
            done = 0
        return self.model_copy(update={"step": done, "steps": TENTHS})


class Heartbeat(Frozen):
    """Sent with every poll and on its own every few seconds while the child works."""

    agent_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")]
    protocol: ProtocolRange
    activity: Activity | None = None
    disk_low: bool = False
    roster_version: Annotated[int, Field(ge=0)]


class PollRequest(Frozen):
    """Give me what came after `after`, and wait up to `wait_seconds` for it."""

    after: Annotated[int, Field(ge=0)]
    wait_seconds: Annotated[float, Field(ge=0, le=MAX_POLL_SECONDS)]
    heartbeat: Heartbeat


class Delivery(Frozen):
    """One envelope and its place in the hospital's inbox."""

    sequence: Annotated[int, Field(ge=1)]
    envelope: Annotated[Base64Bytes, Field(max_length=MAX_MESSAGE_BYTES)]


class PollAnswer(Frozen):
    """`roster_version` above the one held means: fetch the roster before acting on the envelopes."""

    deliveries: Annotated[tuple[Delivery, ...], BeforeValidator(list_in), Field(max_length=MAX_ENVELOPES_PER_POLL)]
    roster_version: Annotated[int, Field(ge=0)]
    upgrade: Literal["none", "agent", "relay"] = "none"


class EnrolmentRequest(Frozen):
    """A hospital asks to be admitted: its keys, made on site, and a certificate request for TLS.

    Signed by the key on the card (context `ENROLMENT_CONTEXT`), with the one-time token of the invitation.
    """

    silo: SiloId
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
    card: KeyCard
    csr_pem: Annotated[str, Field(max_length=4096)]


class SignedEnrolment(Frozen):
    """An enrolment request and the signature of its own key over its canonical bytes."""

    request: EnrolmentRequest
    signature: Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


class EnrolmentState(Frozen):
    """What became of the request. With `admitted` come the client certificate and the first roster."""

    state: Literal["waiting", "admitted", "refused"]
    certificate_pem: Annotated[str, Field(max_length=16384)] | None = None
    roster: Annotated[Base64Bytes, Field(max_length=1024 * 1024)] | None = None


class BlobState(Frozen):
    """How much of a blob the relay has: an upload goes on at `offset`."""

    digest: DigestStr
    offset: Annotated[int, Field(ge=0)]
    complete: bool


class RelayError(Frozen):
    """Every refusal of the relay: a stable code and one sentence with the fix."""

    code: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{1,40}$")]
    message: Annotated[str, Field(max_length=500)]


class Invitation(Frozen):
    """The file a coordinator hands a hospital: where to dial, whom to trust, and a one-time token.

    It holds the private key of a short-lived TLS certificate that opens the relay's door for enrolment only, so
    that the relay never talks to anybody without a client certificate. Treat the file as a password.
    """

    version: VersionOne = 1
    silo: SiloId
    relay_url: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9.\-\[\]:]+$", max_length=300)]
    relay_ca_pem: Annotated[str, Field(max_length=16384)]
    coordinator_key: PublicKeyStr
    token: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]
    certificate_pem: Annotated[str, Field(max_length=16384)]
    private_key_pem: Annotated[str, Field(max_length=4096)]
    expires_at: Moment
