"""Signed heads and cosignatures, and the text other tools of the C2SP family read them in.

The text is made here once more from the specifications (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature) with
nothing but hashes and raw Ed25519.
"""

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from boundary.canonical import digest
from boundary.checkpoint import Checkpoint, Cosignature, from_note, log_name, to_note
from boundary.errors import BadSignature, CallerFault, MalformedMessage, PeerFault
from boundary.identity import PublicIdentity, SigningIdentity
from boundary.names import encode_base64

NOW = datetime(2026, 11, 20, 12, 0, 0, 999_999, tzinfo=UTC)
SECONDS = 1_795_176_000  # of NOW, since 1970
ROOT = hashlib.sha256(b"the root").digest()


def key_of(seed: int) -> SigningIdentity:
    return SigningIdentity(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


OWNER, WITNESS, OTHER, COORDINATOR = key_of(1), key_of(2), key_of(3), key_of(4)
KEYS = {
    "ucl": OWNER.public, "charite": WITNESS.public, "utrecht": OTHER.public, "coordinator": COORDINATOR.public,
}  # fmt: skip
HEAD = Checkpoint.sign("ucl", 42, ROOT, OWNER)
SAID = Cosignature.sign(HEAD, OWNER.public, "charite", WITNESS, NOW)
BY_COORDINATOR = Cosignature.sign(HEAD, OWNER.public, "coordinator", COORDINATOR, NOW)
NOTE = to_note(HEAD, {"charite": SAID, "coordinator": BY_COORDINATOR}, KEYS)


# --- the form, from the specifications ---------------------------------------------------------------
def raw(key: SigningIdentity) -> bytes:
    return base64.b64decode(key.public.text.removeprefix("ed25519:"))


def name_by_hand(party: str, key: SigningIdentity) -> str:
    return f"wardround/{party}/{hashlib.sha256(raw(key)).hexdigest()[:16]}"


def key_id(name: str, kind: int, key: SigningIdentity) -> bytes:
    """signed-note: the first four bytes of SHA-256(name || 0x0A || type || key)."""
    return hashlib.sha256(name.encode() + b"\x0a" + bytes([kind]) + raw(key)).digest()[:4]


def verifies(key: SigningIdentity, signature: bytes, message: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(raw(key)).verify(signature, message)


def test_a_checkpoint_file_is_a_signed_note_as_others_read_it() -> None:
    name = name_by_hand("ucl", OWNER)
    body, _, rest = NOTE.partition("\n\n")
    text = body + "\n"
    assert text == f"{name}\n42\n{base64.b64encode(ROOT).decode()}\n", "origin, size, root: tlog-checkpoint"
    lines = rest.splitlines()
    assert NOTE.endswith("\n")
    assert [line.split(" ")[:2] for line in lines] == [
        ["\u2014", name], ["\u2014", name_by_hand("charite", WITNESS)],
        ["\u2014", name_by_hand("coordinator", COORDINATOR)],
    ]  # fmt: skip
    own, cosigned, third = (base64.b64decode(line.split(" ")[2]) for line in lines)
    assert own[:4] == key_id(name, 0x01, OWNER), "0x01: Ed25519"
    verifies(OWNER, own[4:], text.encode())
    for data, party, key in ((cosigned, "charite", WITNESS), (third, "coordinator", COORDINATOR)):
        assert data[:4] == key_id(name_by_hand(party, key), 0x04, key), "0x04: timestamped Ed25519 cosignature"
        assert int.from_bytes(data[4:12], "big") == SECONDS
        verifies(key, data[12:], f"cosignature/v1\ntime {SECONDS}\n{text}".encode())


def test_a_log_is_named_by_its_party_and_its_key() -> None:
    assert log_name("ucl", OWNER.public) == name_by_hand("ucl", OWNER)
    assert len({log_name("ucl", OWNER.public), log_name("ucl", OTHER.public), log_name("ucm", OWNER.public)}) == 3


def test_a_file_is_read_as_it_was_written() -> None:
    assert from_note(NOTE, "ucl", KEYS) == (HEAD, {"charite": SAID, "coordinator": BY_COORDINATOR})
    assert from_note(to_note(HEAD, {}, KEYS), "ucl", KEYS) == (HEAD, {})


def test_who_is_not_known_is_passed_over() -> None:
    known = {party: KEYS[party] for party in ("ucl", "coordinator")}
    assert from_note(NOTE, "ucl", known) == (HEAD, {"coordinator": BY_COORDINATOR})
    foreign = f"\u2014 example.com/witness {encode_base64(bytes(100))}\n"
    assert from_note(NOTE + foreign, "ucl", KEYS)[0] == HEAD
    assert from_note(NOTE.replace("\n\n", f"\n\n{foreign}"), "ucl", KEYS)[0] == HEAD


def test_a_witness_under_a_key_we_do_not_trust_counts_as_unknown() -> None:
    assert from_note(NOTE, "ucl", KEYS | {"charite": OTHER.public, "utrecht": WITNESS.public}) == (
        HEAD,
        {"coordinator": BY_COORDINATOR},
    )


def test_every_byte_of_a_file_counts() -> None:
    """Whatever is flipped, either nothing is read, or the same head with fewer cosignatures: never anything else."""
    said = {"charite": SAID, "coordinator": BY_COORDINATOR}
    for at in range(len(NOTE.encode())):
        for bit in (0, 3, 5):
            data = bytearray(NOTE.encode())
            data[at] ^= 1 << bit
            try:
                head, cosignatures = from_note(data.decode(), "ucl", KEYS)
            except (UnicodeDecodeError, PeerFault):
                continue
            assert head == HEAD, at
            assert cosignatures.items() < said.items(), at


MALFORMED: dict[str, str] = {
    "empty": "",
    "no signatures": NOTE.partition("\n\n")[0] + "\n",
    "an empty line instead of signatures": NOTE.partition("\n\n")[0] + "\n\n\n",
    "no line end": NOTE[:-1],
    "a fourth line": NOTE.replace("\n42\n", "\n42\n\u00e4\n"),
    "two lines": NOTE.replace("\n42\n", "\n"),
    "Windows line ends": NOTE.replace("\n", "\r\n"),
    "a signature without its dash": NOTE.replace("\u2014 ", "- "),
    "a signature that is no base64": NOTE + "\u2014 x !!\n",
    "a signature with nothing behind the key": NOTE + f"\u2014 x {encode_base64(b'1234')}\n",
    "a signature line of one word": NOTE + "\u2014\n",
    "1025 signatures": NOTE + f"\u2014 x {encode_base64(bytes(9))}\n" * 1023,
    "a cosignature without its time": to_note(HEAD, {}, KEYS)
    + f"\u2014 {name_by_hand('charite', WITNESS)} "
    + encode_base64(key_id(name_by_hand("charite", WITNESS), 0x04, WITNESS) + bytes(64))
    + "\n",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_checkpoint_file_is_refused(text: str) -> None:
    with pytest.raises((MalformedMessage, BadSignature)):
        from_note(text, "ucl", KEYS)


def noted(body: str, key: SigningIdentity = OWNER) -> str:
    """A note that its owner really signed, over this body."""
    name = name_by_hand("ucl", key)
    signature = key._private.sign(body.encode())
    return f"{body}\n\u2014 {name} {encode_base64(key_id(name, 0x01, key) + signature)}\n"


def bodied(
    size: str = "42", root: str = base64.b64encode(ROOT).decode(), name: str = name_by_hand("ucl", OWNER)
) -> str:
    return f"{name}\n{size}\n{root}\n"


OTHER_FORMS: dict[str, str] = {
    "a size with a leading zero": noted(bodied("042")),
    "a size with a sign": noted(bodied("+42")),
    "a size with an underscore": noted(bodied("4_2")),
    "a size with a space": noted(bodied(" 42")),
    "a size in another script": noted(bodied("\u0664\u0662")),
    "an empty log": noted(bodied("0")),
    "a size below nothing": noted(bodied("-1")),
    "a size beyond 2^53": noted(bodied(str(2**53))),
    "a size in words": noted(bodied("many")),
    "a size of 5000 digits": noted(bodied("1" * 5000)),
    "a root of 31 bytes": noted(bodied(root=base64.b64encode(ROOT[:31]).decode())),
    "a root of 33 bytes": noted(bodied(root=base64.b64encode(ROOT + b"x").decode())),
    "a root with stray bits": noted(bodied(root=base64.b64encode(ROOT).decode()[:-2] + "1=")),
    "a root in hex": noted(bodied(root=ROOT.hex())),
}


@pytest.mark.parametrize("text", OTHER_FORMS.values(), ids=OTHER_FORMS)
def test_one_head_has_one_form_even_if_its_owner_signs_another(text: str) -> None:
    assert from_note(noted(bodied()), "ucl", KEYS)[0] == HEAD
    with pytest.raises((MalformedMessage, BadSignature)):
        from_note(text, "ucl", KEYS)


@pytest.mark.parametrize("size", ["042", "+42", " 42", "4_2", "\u0664\u0662"])
def test_one_head_has_one_form_whoever_rewrote_it(size: str) -> None:
    """The numbers are the same, and so are the signatures under them."""
    with pytest.raises(MalformedMessage, match="in another form than its one"):
        from_note(NOTE.replace("\n42\n", f"\n{size}\n"), "ucl", KEYS)


FOREIGN: dict[str, tuple[str, str]] = {
    "of another log": (to_note(Checkpoint.sign("charite", 42, ROOT, WITNESS), {}, KEYS), "not of ucl"),
    "under another key": (
        to_note(Checkpoint.sign("ucl", 42, ROOT, OTHER), {}, {"ucl": OTHER.public}),
        "not of ucl under the key we trust",
    ),
    "without the owner's signature": (NOTE.replace(NOTE.splitlines()[4] + "\n", ""), "is not signed with the key"),
    "with the owner's signature as a cosignature only": (
        bodied() + "\n" + to_note(HEAD, {"ucl": Cosignature.sign(HEAD, OWNER.public, "ucl", OWNER, NOW)}, KEYS)
        .splitlines()[-1] + "\n",
        "is not signed with the key",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "why"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_its_owner_did_not_sign_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadSignature, match=why):
        from_note(text, "ucl", KEYS)


def test_a_known_witness_whose_cosignature_is_wrong_is_an_error_and_not_passed_over() -> None:
    forged = SAID.model_copy(update={"time": SAID.time + 1})
    with pytest.raises(BadSignature):
        from_note(to_note(HEAD, {"charite": forged}, KEYS), "ucl", KEYS)


def test_a_cosignature_from_beyond_time_is_malformed() -> None:
    name = name_by_hand("charite", WITNESS)
    data = key_id(name, 0x04, WITNESS) + (2**63).to_bytes(8, "big") + bytes(64)
    with pytest.raises(MalformedMessage, match="the cosignature of charite is none"):
        from_note(NOTE.replace(NOTE.splitlines()[5], f"\u2014 {name} {encode_base64(data)}"), "ucl", KEYS)


# --- what is signed ----------------------------------------------------------------------------------
def test_a_head_verifies_under_its_owners_key_only() -> None:
    HEAD.check(OWNER.public)
    assert (HEAD.root_bytes, HEAD.root) == (ROOT, "sha256:" + ROOT.hex())
    with pytest.raises(BadSignature):
        HEAD.check(OTHER.public)


CHANGES: dict[str, dict[str, Any]] = {
    "log": {"log": "ucm"},
    "size": {"size": 43},
    "root": {"root": digest(b"another")},
    "signature": {"signature": bytes(64)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_every_field_of_a_head_is_signed(changes: dict[str, Any]) -> None:
    other = HEAD.model_copy(update=changes)
    with pytest.raises(BadSignature):
        other.check(OWNER.public)
    with pytest.raises(BadSignature):
        SAID.check(HEAD.model_copy(update={k: v for k, v in changes.items() if k != "signature"} or {"size": 1}),
                   OWNER.public, WITNESS.public)  # fmt: skip


def test_a_cosignature_is_of_one_head_by_one_witness_at_one_second() -> None:
    SAID.check(HEAD, OWNER.public, WITNESS.public)
    assert (SAID.witness, SAID.time) == ("charite", SECONDS)
    for head, owner, witness in (
        (HEAD, OTHER.public, WITNESS.public),
        (HEAD, OWNER.public, OTHER.public),
        (Checkpoint.sign("ucl", 43, ROOT, OWNER), OWNER.public, WITNESS.public),
    ):
        with pytest.raises(BadSignature):
            SAID.check(head, owner, witness)
    with pytest.raises(BadSignature):
        SAID.model_copy(update={"time": SECONDS + 1}).check(HEAD, OWNER.public, WITNESS.public)


def test_a_cosignature_is_of_the_head_whoever_signed_it_last() -> None:
    """tlog-cosignature: the note's text is cosigned, not its other signatures."""
    again = HEAD.model_copy(update={"signature": bytes(64)})
    SAID.check(again, OWNER.public, WITNESS.public)


def test_the_second_is_that_of_utc_wherever_the_witness_stands() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert Cosignature.sign(HEAD, OWNER.public, "charite", WITNESS, there) == SAID


# --- what may be signed ------------------------------------------------------------------------------
TEXTS: dict[str, str] = {
    "empty": "",
    "words": "I owe you a thousand kroner",
    "a frame": "wardround v1 7 request 0 ",
    "another case": "Wardround/ucl/0\n1\n\n",
    "a cosignature of another version": "cosignature/v2\ntime 1\n",
    "what looks like one later": "x\nwardround/ucl",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_only_the_texts_of_checkpoints_and_cosignatures_are_signed_as_they_are(text: str) -> None:
    with pytest.raises(CallerFault):
        OWNER.sign_note(text)
    with pytest.raises(CallerFault):
        OWNER.public.verify_note(text, bytes(64))


@pytest.mark.parametrize("context", ["", "wardround", "envelope", "round receipt", "/ucl/0\n", "cosignature/v1\n"])
def test_nothing_that_is_framed_begins_as_a_note_does(context: str) -> None:
    """So no signature under a message is one under a head, nor the other way round."""
    body = bodied()
    framed = OWNER.sign(context, body.encode())
    with pytest.raises(BadSignature):
        OWNER.public.verify_note(body, framed)
    with pytest.raises(BadSignature):
        OWNER.public.verify(context, body.encode(), OWNER.sign_note(body))


def test_a_cosignature_is_no_head_and_a_head_no_cosignature() -> None:
    cosigned = f"cosignature/v1\ntime {SECONDS}\n{bodied()}"
    for signed, other in ((bodied(), cosigned), (cosigned, bodied())):
        with pytest.raises(BadSignature):
            OWNER.public.verify_note(other, OWNER.sign_note(signed))


Make = Callable[[], object]
NONSENSE: dict[str, Make] = {
    "an empty log": lambda: Checkpoint.sign("ucl", 0, ROOT, OWNER),
    "a log beyond 2^53": lambda: Checkpoint.sign("ucl", 2**53, ROOT, OWNER),
    "a root of 31 bytes": lambda: Checkpoint.sign("ucl", 1, ROOT[:31], OWNER),
    "a log in free text": lambda: Checkpoint.sign("UCL hospital", 1, ROOT, OWNER),
    "a log with a line end": lambda: Checkpoint.sign("ucl\n", 1, ROOT, OWNER),
    "a witness in free text": lambda: Cosignature.sign(HEAD, OWNER.public, "Dr. Hansen", WITNESS, NOW),
    "a time before 1970": lambda: Cosignature.sign(
        HEAD, OWNER.public, "charite", WITNESS, datetime(1969, 12, 31, tzinfo=UTC)
    ),
}


@pytest.mark.parametrize("make", NONSENSE.values(), ids=NONSENSE)
def test_what_could_not_be_read_is_not_made(make: Make) -> None:
    with pytest.raises(ValidationError):
        make()


def test_the_raw_key_is_that_of_rfc_8032() -> None:
    assert PublicIdentity(OWNER.public.text).raw == raw(OWNER)
