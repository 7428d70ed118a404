"""A log's signed head, and what others sign under it: C2SP tlog-checkpoint, signed-note and tlog-cosignature.

A checkpoint says: my log had `size` entries then, and this root. Two of one size with different roots are a fork, and
whoever has both can show it to anybody. A cosignature says: at that second I had verified that this checkpoint goes on
from every earlier one of this log that I know.

As a text (the files of a bundle) a checkpoint is a signed note that other tools of the C2SP family read. Its name,
`wardround/<party>/<key>`, carries half of a hash of the party's key, so that it is one name in all federations.
"""

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import Field

from boundary.canonical import Digest
from boundary.errors import BadSignature, MalformedMessage
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import Base64Bytes, DigestStr, Frozen, PartyId, decode_base64, encode_base64

_LOG, _WITNESS = 0x01, 0x04  # kinds of signatures: signed-note's Ed25519, tlog-cosignature's
_DASH = "\u2014 "
_MOST_SECONDS = 2**53 - 1
_MOST_LINES = 1024
Signature = Annotated[Base64Bytes, Field(min_length=64, max_length=64)]


def log_name(party: str, key: PublicIdentity) -> str:
    """What a checkpoint's first line says, and the name of the key that signs it."""
    return f"wardround/{party}/{hashlib.sha256(key.raw).hexdigest()[:16]}"


class Checkpoint(Frozen):
    """A signed head: whose log, how many entries, the Merkle root over them (`compliance.merkle`), the signature."""

    log: PartyId
    size: Annotated[int, Field(ge=1, le=2**53 - 1)]
    root: DigestStr
    signature: Signature

    @classmethod
    def sign(cls, log: str, size: int, root: bytes, key: SigningIdentity) -> Self:
        body = _body(log, size, root, key.public)
        return cls(log=log, size=size, root=Digest("sha256:" + root.hex()), signature=key.sign_note(body))

    @property
    def root_bytes(self) -> bytes:
        return bytes.fromhex(self.root.removeprefix("sha256:"))

    def check(self, key: PublicIdentity) -> None:
        """Raises `BadSignature`."""
        key.verify_note(self.body(key), self.signature)

    def body(self, key: PublicIdentity) -> str:
        """The note's text, which is what is signed."""
        return _body(self.log, self.size, self.root_bytes, key)


class Cosignature(Frozen):
    """What a witness says of a checkpoint; `time` is in seconds since 1970, UTC, by the witness's clock."""

    witness: PartyId
    time: Annotated[int, Field(ge=0, le=_MOST_SECONDS)]
    signature: Signature

    @classmethod
    def sign(
        cls, checkpoint: Checkpoint, owner: PublicIdentity, witness: str, key: SigningIdentity, now: datetime
    ) -> Self:
        """`owner` is the key of the log. Only after the checkpoint was verified against what the witness knows."""
        seconds = int(now.astimezone(UTC).timestamp())
        return cls(witness=witness, time=seconds, signature=key.sign_note(_cosigned(checkpoint.body(owner), seconds)))

    def check(self, checkpoint: Checkpoint, owner: PublicIdentity, key: PublicIdentity) -> None:
        """Raises `BadSignature`; `key` is the witness's."""
        key.verify_note(_cosigned(checkpoint.body(owner), self.time), self.signature)


def to_note(checkpoint: Checkpoint, cosignatures: dict[str, Cosignature], keys: dict[str, PublicIdentity]) -> str:
    """The text of a checkpoint file. `keys` has those of the log and of all witnesses, by party."""
    owner = keys[checkpoint.log]
    lines = [_line(checkpoint.log, owner, _LOG, checkpoint.signature)]
    for witness, said in sorted(cosignatures.items()):
        lines.append(_line(witness, keys[witness], _WITNESS, said.time.to_bytes(8, "big") + said.signature))
    return checkpoint.body(owner) + "\n" + "".join(lines)


def from_note(text: str, log: str, keys: dict[str, PublicIdentity]) -> tuple[Checkpoint, dict[str, Cosignature]]:
    """Read and verify a checkpoint file of `log`. Signatures of others than `keys` are passed over, as the spec says.

    Raises `MalformedMessage` for what is no checkpoint, `BadSignature` if the log's or a known witness's is wrong.
    """
    body, separator, signatures = text.partition("\n\n")
    lines = body.split("\n")
    if not separator or len(lines) != 3 or not signatures.endswith("\n"):
        raise MalformedMessage("not a checkpoint: three lines, an empty one, signatures")
    owner = keys[log]
    if lines[0] != log_name(log, owner):
        raise BadSignature(f"the checkpoint is of {lines[0]!r:.80}, not of {log} under the key we trust")
    found = _signatures(signatures)
    own = found.get(_mark(log, owner, _LOG))
    if own is None:
        raise BadSignature(f"the checkpoint of {log} is not signed with the key we trust")
    checkpoint = _parsed(log, lines, own)
    checkpoint.check(owner)
    if checkpoint.body(owner) != body + "\n":
        raise MalformedMessage("a checkpoint in another form than its one")
    cosignatures = {}
    for witness, key in keys.items():
        said = found.get(_mark(witness, key, _WITNESS))
        if said is not None:
            seconds, signature = int.from_bytes(said[:8], "big"), said[8:]
            try:
                cosignatures[witness] = Cosignature(witness=witness, time=seconds, signature=signature)
            except ValueError as why:
                raise MalformedMessage(f"the cosignature of {witness} is none") from why
            cosignatures[witness].check(checkpoint, owner, key)
    return checkpoint, cosignatures


def _parsed(log: str, lines: list[str], signature: bytes) -> Checkpoint:
    try:
        size = int(lines[1])
        root = Digest("sha256:" + decode_base64(lines[2]).hex())
        return Checkpoint(log=log, size=size, root=root, signature=signature)
    except ValueError as why:
        raise MalformedMessage(f"not a checkpoint: {why}") from why


def _signatures(text: str) -> dict[tuple[str, bytes], bytes]:
    """(name, key id) -> what follows the key id."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) > _MOST_LINES:
        raise MalformedMessage("more signatures than a federation has parties")
    found = {}
    for line in lines:
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            data = decode_base64(encoded)
        except ValueError as why:
            raise MalformedMessage("a signature line that is none") from why
        if not line.startswith(_DASH) or len(data) <= 4:
            raise MalformedMessage("a signature line that is none")
        found[name, data[:4]] = data[4:]
    return found


def _mark(party: str, key: PublicIdentity, kind: int) -> tuple[str, bytes]:
    """How a note names a key: its name, and four bytes of a hash (signed-note, "Signatures")."""
    name = log_name(party, key)
    return name, hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + key.raw).digest()[:4]


def _line(party: str, key: PublicIdentity, kind: int, signature: bytes) -> str:
    name, mark = _mark(party, key, kind)
    return f"{_DASH}{name} {encode_base64(mark + signature)}\n"


def _body(log: str, size: int, root: bytes, key: PublicIdentity) -> str:
    return f"{log_name(log, key)}\n{size}\n{encode_base64(root)}\n"


def _cosigned(body: str, seconds: int) -> str:
    return f"cosignature/v1\ntime {seconds}\n{body}"
