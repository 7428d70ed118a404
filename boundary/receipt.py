"""A round's receipt: one statement, signed by the coordinator and by every hospital whose work is in the round.

It is the short proof that a model came about in this way: which plan, from which model, out of which sum (`transcript`,
`boundary.secagg.context`), with whose work. What it cost a hospital's patients is in that hospital's own log.
"""

from typing import Annotated

from pydantic import Field

from boundary.canonical import Digest, canonical_bytes, digest
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import Base64Bytes, DigestStr, Frozen, RoundNumber, Silos, StudyId

_CONTEXT = "round receipt"
ReceiptSignature = Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


class Receipt(Frozen):
    """What is signed. `tried` came of the sum in a round that was rolled back: there `model_out` is `model_in`."""

    study: StudyId
    plan_digest: DigestStr
    round: RoundNumber
    model_in: DigestStr
    model_out: DigestStr
    tried: DigestStr | None
    transcript: DigestStr
    contributing: Silos
    absent: Silos

    def sign(self, key: SigningIdentity) -> bytes:
        return key.sign(_CONTEXT, self._bytes())

    def check(self, signature: bytes, key: PublicIdentity) -> None:
        """Raises `BadSignature`."""
        key.verify(_CONTEXT, self._bytes(), signature)

    @property
    def digest(self) -> Digest:
        return digest(self._bytes())

    def _bytes(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json"))
