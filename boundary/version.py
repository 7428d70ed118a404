"""The protocol versions this build speaks: N and N-1, so that hospitals need not upgrade on one day."""

from typing import Self

from pydantic import model_validator

from boundary.names import Frozen

PROTOCOL = 1
OLDEST_PROTOCOL = 1


class ProtocolRange(Frozen):
    """Inclusive range of protocol versions a party speaks."""

    oldest: int = OLDEST_PROTOCOL
    newest: int = PROTOCOL

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not 0 <= self.oldest <= self.newest:  # 0: before the first release
            raise ValueError("protocol: oldest and newest are versions, in this order")
        return self

    def shared_with(self, other: "ProtocolRange") -> int | None:
        """The newest version both speak, or None: then one of them must upgrade."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None
