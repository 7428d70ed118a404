"""An officer's signed decision about releasing a model. Prefect does not record who pressed a button; this does."""

from typing import Literal

from boundary.canonical import canonical_bytes
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import DigestStr, Frozen, RoundNumber, StudyId

_CONTEXT = "release decision"
Choice = Literal["release", "reject"]


class Decision(Frozen):
    """What is signed: this model of this study, after this round, on the evidence with this manifest."""

    study: StudyId
    round: RoundNumber
    model: DigestStr
    manifest: DigestStr
    choice: Choice

    def sign(self, officer: SigningIdentity) -> bytes:
        return officer.sign(_CONTEXT, self._bytes())

    def check(self, signature: bytes, officer: PublicIdentity) -> None:
        """Raises `BadSignature`."""
        officer.verify(_CONTEXT, self._bytes(), signature)

    def _bytes(self) -> bytes:
        return canonical_bytes(self.model_dump(mode="json"))
