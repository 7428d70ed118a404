"""What reading one file finds, and how it comes through a pipe: JSON for what a header says, raw bytes for an image.

The parent believes nothing that it has not parsed: a decoder that damaged input has taken over is still our child.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from silo_agent.intake.header import Identifiers
from silo_agent.intake.refusals import Refusal

_CONTENT_BYTES = 32
NAMES = tuple(one.name for one in fields(Identifiers))


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """What a header says that any plan decides by.

    A plan that takes `modality` has `wanted`, every other plan `unwanted`; None: the pixels may be read. Without
    `who` the header could not be parsed. `lasting`: another reading of the same bytes would find the same.
    """

    modality: str
    wanted: Refusal | None
    unwanted: Refusal | None
    who: Identifiers | None = field(repr=False)
    lasting: bool = True

    @classmethod
    def none(cls, code: Refusal, *, lasting: bool = True) -> Self:
        """Of a file that is refused before its header is parsed, whatever the plan."""
        return cls("", code, code, None, lasting)

    def refusal(self, modalities: Collection[str]) -> Refusal | None:
        return self.wanted if self.modality in modalities else self.unwanted

    def told(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "wanted": self.wanted,
            "unwanted": self.unwanted,
            "who": None if self.who is None else {name: getattr(self.who, name) for name in NAMES},
            "lasting": self.lasting,
        }

    @classmethod
    def parse(cls, said: dict[str, Any]) -> Self:
        """Raises `ValueError`, `TypeError` or `LookupError`."""
        who = said["who"]
        return cls(
            _text(said["modality"]),
            _code(said["wanted"]),
            _code(said["unwanted"]),
            None if who is None else _identifiers(who),
            said["lasting"] is True,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What a scan goes on with and an index keeps: as `HeaderFacts`, with pseudonyms in `who`.

    `content` is the image's digest, keyed, once it was decoded; then `wanted` is None.
    """

    modality: str
    wanted: Refusal | None
    unwanted: Refusal | None
    who: Identifiers | None = field(repr=False)
    content: bytes | None = field(repr=False, default=None)

    def refusal(self, modalities: Collection[str]) -> Refusal | None:
        return self.wanted if self.modality in modalities else self.unwanted


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded image: float32 [H,W] in the modality's unit, and SHA-256 of its stored values."""

    image: NDArray[np.float32] = field(repr=False)
    content: bytes = field(repr=False)

    def told(self) -> dict[str, Any]:
        return {"content": self.content.hex(), "shape": self.image.shape}

    @classmethod
    def parse(cls, said: dict[str, Any], read: Callable[[int, int], NDArray[np.float32]]) -> Self:
        """`read` is given height and width. Raises `ValueError`, `TypeError` or `LookupError`."""
        height, width = (int(side) for side in said["shape"])
        content = bytes.fromhex(_text(said["content"]))
        if len(content) != _CONTENT_BYTES:
            raise ValueError("not a digest")
        return cls(read(height, width), content)


@dataclass(frozen=True, slots=True)
class PixelRefusal:
    """Why an image whose header was accepted is not used after all; `lasting` as of `HeaderFacts`."""

    code: Refusal
    lasting: bool = True

    def told(self) -> dict[str, Any]:
        return {"refused": self.code, "lasting": self.lasting}


def _identifiers(said: dict[str, Any]) -> Identifiers:
    return Identifiers(**{name: _text(said[name]) for name in NAMES})


def _text(value: object) -> str:
    """A text that can be encoded, and hashed."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()
    return value


def _code(value: object) -> Refusal | None:
    return None if value is None else Refusal(_text(value))
