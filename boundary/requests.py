"""Signed requests to the relay: TLS says which machine, this says which hospital, and for what exactly.

The signature covers method, target, time, a nonce and the digest of the body. A blob range is the exception: its
target already names the digest of the whole blob, which the relay checks before the blob exists, so its body
is not hashed twice (`UNHASHED`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from boundary.canonical import canonical_bytes, digest
from boundary.errors import BadSignature, CallerFault, Stale
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import NAME_PATTERN, decode_base64, encode_base64, parse_timestamp, timestamp

HEADER = "wardround-request"
UNHASHED = "blob-range"
CLOCK_SKEW = timedelta(minutes=5)  # the preflight check asks hospital IT for less than one
NONCE_BYTES = 16
_CONTEXT = "request"
_FORM = re.compile(
    rf"v1;({NAME_PATTERN[1:-1]});(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{6}}Z);([0-9a-f]{{32}});([A-Za-z0-9+/]{{86}}==)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class RequestClaim:
    """Who says the request is theirs; to be checked with `verify`."""

    party: str
    sent_at: datetime
    nonce: str
    signature: bytes

    def verify(self, signer: PublicIdentity, method: str, target: str, body: bytes | None) -> None:
        """Raises `BadSignature`. `body` is None for a blob range."""
        at = timestamp(self.sent_at)
        signer.verify(_CONTEXT, _signed(self.party, method, target, at, self.nonce, body), self.signature)

    def check_fresh(self, now: datetime) -> None:
        """Raises `Stale`; the nonce must be remembered for twice `CLOCK_SKEW`."""
        if abs(now - self.sent_at) > CLOCK_SKEW:
            off = int((self.sent_at - now).total_seconds())
            raise Stale(f"the request's clock is {off} s off the relay's: set the agent's clock (NTP)")


def sign_request(
    key: SigningIdentity,
    party: str,
    method: str,
    target: str,
    body: bytes | None,
    now: datetime,
    nonce: bytes,
) -> dict[str, str]:
    """The header to send. `target` is path and query; `nonce` has 16 bytes from a CSPRNG."""
    if len(nonce) != NONCE_BYTES:
        raise CallerFault(f"a nonce has {NONCE_BYTES} bytes")
    at = timestamp(now)
    signature = key.sign(_CONTEXT, _signed(party, method, target, at, nonce.hex(), body))
    return {HEADER: f"v1;{party};{at};{nonce.hex()};{encode_base64(signature)}"}


def read_claim(headers: Mapping[str, str]) -> RequestClaim:
    """Raises `BadSignature` if the header is missing or not in its one form."""
    match = _FORM.fullmatch(headers.get(HEADER, ""))
    if match is None:
        raise BadSignature(f"the request carries no {HEADER} header in its known form")
    party, at, nonce, signature = match.groups()
    try:
        return RequestClaim(party, parse_timestamp(at), nonce, decode_base64(signature))
    except ValueError as why:
        raise BadSignature(f"the {HEADER} header does not parse") from why


def _signed(party: str, method: str, target: str, at: str, nonce: str, body: bytes | None) -> bytes:
    content = UNHASHED if body is None else digest(body)
    return canonical_bytes([party, method, target, at, nonce, content])
