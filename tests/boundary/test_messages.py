"""The closed registry: what is not in it cannot cross, and each message has one body."""

from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boundary.canonical import canonical_bytes, parse_canonical
from boundary.checkpoint import Checkpoint
from boundary.errors import MalformedMessage
from boundary.messages import (
    REGISTRY,
    AnyMessage,
    Collection,
    HeadsShown,
    Message,
    OfCollection,
    ShownHead,
    from_body,
    heads_digest,
    slot_of,
    study_of,
    to_body,
)
from boundary.names import encode_base64


def test_the_registry_holds_every_message_by_its_kind(fed: ModuleType, strategies: SimpleNamespace) -> None:
    classes = {*Message.__subclasses__(), *OfCollection.__subclasses__()} - {OfCollection}
    assert set(REGISTRY.values()) == set(get_args(AnyMessage)) == classes
    assert all(message.kind == kind for kind, message in REGISTRY.items())
    assert {message.sender for message in REGISTRY.values()} == {"coordinator", "silo"}
    assert set(fed.messages()) == set(strategies.messages) == set(REGISTRY)


SAID_BY_A_HOSPITAL = {
    "plan-approved",
    "plan-declined",
    "ready",
    "share",
    "shares",
    "masked-vector",
    "survivors-seen",
    "shares-revealed",
    "refused",
    "trail-shown",
    "heads-cosigned",
    "log-disputed",
}


@pytest.mark.parametrize("kind", REGISTRY)
def test_who_may_say_what(kind: str) -> None:
    assert REGISTRY[kind].sender == ("silo" if kind in SAID_BY_A_HOSPITAL else "coordinator")


@pytest.mark.parametrize("kind", REGISTRY)
@given(data=st.data())
def test_a_body_round_trips(strategies: SimpleNamespace, kind: str, data: st.DataObject) -> None:
    message = data.draw(strategies.messages[kind])
    body = parse_canonical(canonical_bytes(to_body(message)))
    assert from_body(kind, body) == message
    assert study_of(message) in slot_of(message)


UNKNOWN_KINDS: dict[str, object] = {
    "unknown kind": "train",
    "another spelling": "Work-Order",
    "a line end": "work-order\n",
    "the name of a class": "WorkOrder",
    "nothing": None,
    "a list": ["work-order"],
    "an object": {},
    "a number": 1,
}


@pytest.mark.parametrize("kind", UNKNOWN_KINDS.values(), ids=UNKNOWN_KINDS)
def test_an_unknown_kind_is_refused(kind: object) -> None:
    with pytest.raises(MalformedMessage, match="unknown kind"):
        from_body(kind, {})


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all leaf values and all keys of a body."""
    if isinstance(value, dict):
        return [path, *(deep for key, inner in value.items() for deep in leaves(inner, (*path, key)))]
    if isinstance(value, list) and value:
        return [deep for at, inner in enumerate(value) for deep in leaves(inner, (*path, at))]
    return [path]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new(value)
    inner = replaced(value[path[0]], path[1:], new)
    if isinstance(value, dict):
        return value | {path[0]: inner}
    return [inner if at == path[0] else old for at, old in enumerate(value)]


def is_refused(kind: str, body: object) -> bool:
    try:
        from_body(kind, body)
    except MalformedMessage:
        return True
    return False


WRONG_VALUES: dict[str, Any] = {
    "null": lambda old: None if old is not None else 1,
    "an object": lambda _: {"$ref": "x"},
    "a list in a list": lambda _: [[]],
    "half a number": lambda old: 0.5 if not isinstance(old, int | float) or isinstance(old, bool) else old - 0.5,
    "a bool": lambda old: True if not isinstance(old, bool) else 1,
    "a number beyond all limits": lambda _: 2**53 - 1,
    "text with a line end": lambda old: f"{old}\n",
    "empty text": lambda _: "",
}
ANYTHING_GOES = {  # free text and free numbers of a plan: other values are other plans, not malformed ones
    "low",
    "high",
    "max_model_norm",
    "ready_minutes",
    "step_minutes",
    "delta_bound",
    "clip",
    "tolerance",
    "grace_minutes",
    "staleness",
    "lost_after_seconds",
    "title",
    "statement",
    "legal_basis",
    "ethics_reference",
    "column",
}
OPTIONAL = {
    ("share", "pair"), ("work-order", "normalisation"), ("work-order", "base"), ("work-order", "control"),
    ("work-order", "before"), ("round-committed", "tried"),
    ("trail-shown", "receipt"), ("plan-proposed", "plan", "server", "learning_rate"),
    ("plan-proposed", "plan", "robustness", "clip"),
    ("plan-proposed", "plan", "personalisation"), ("plan-proposed", "plan", "personalisation", "learning_rate"),
}  # fmt: skip
OF_A_LOG = {"checkpoint", "known", "shown", "cosigned"}  # whose size is a number of entries: all of 2^53 may be meant
QUOTED = {"ready", "parts", "vectors", "seen"}  # bytes here, an envelope only where `quoted.py` opens them


@pytest.mark.parametrize("wrong", WRONG_VALUES.values(), ids=WRONG_VALUES)
@pytest.mark.parametrize("kind", REGISTRY)
def test_every_leaf_of_every_message_is_checked(fed: ModuleType, kind: str, wrong: Any) -> None:
    body = to_body(fed.messages()[kind])
    for path in leaves(body):
        if path and (path[-1] in ANYTHING_GOES or "classes" in path):
            continue
        if (wrong is WRONG_VALUES["null"] and (kind, *path) in OPTIONAL) or (
            wrong is WRONG_VALUES["empty text"] and path and path[0] in QUOTED
        ):
            continue
        if wrong is WRONG_VALUES["a number beyond all limits"] and (OF_A_LOG & set(path) or path == ("first",)):
            assert is_refused(kind, replaced(body, path, lambda _: 2**53)), path
            continue
        assert is_refused(kind, replaced(body, path, wrong)), path


@pytest.mark.parametrize("kind", REGISTRY)
def test_an_extra_key_is_refused_at_every_level(fed: ModuleType, kind: str) -> None:
    body = to_body(fed.messages()[kind])
    objects = {path[:cut] for path in leaves(body) for cut in range(len(path)) if not isinstance(path[cut], int)}
    assert () in objects
    for path in objects:
        assert is_refused(kind, replaced(body, path, lambda old: old | {"note": "patient 17"})), path


@pytest.mark.parametrize("kind", REGISTRY)
def test_a_key_that_is_missing_is_refused_at_every_level(fed: ModuleType, kind: str) -> None:
    """Also one with a default: one meaning has one body."""
    body = to_body(fed.messages()[kind])
    for path in leaves(body):
        if path and not isinstance(path[-1], int):
            shorter = replaced(body, path[:-1], lambda old, key=path[-1]: {k: old[k] for k in old if k != key})
            assert is_refused(kind, shorter), path


KEY = "hpke-mlkem768-x25519:"


def share_of(silo: str, size: int) -> dict[str, str]:
    return {"silo": silo, "share": encode_base64(bytes(size))}


def head_of(log: str, size: int) -> dict[str, Any]:
    return {"log": log, "size": size, "root": "sha256:" + "0" * 64, "signature": encode_base64(bytes(64))}


def cosigned_at(time: float) -> dict[str, Any]:
    said = {"witness": "ucl", "time": time, "signature": encode_base64(bytes(64))}
    return {"log": "charite", "size": 3, "cosignature": said}


BAD_BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "round 0": ("round-committed", {"round": 0}),
    "round 10001": ("round-committed", {"round": 10_001}),
    "a blob of no bytes": ("round-committed", {"model": {"digest": "sha256:" + "0" * 64, "size": 0}}),
    "a blob larger than 8 GiB": ("round-committed", {"model": {"digest": "sha256:" + "0" * 64, "size": 2**33 + 1}}),
    "a digest in capitals": ("ready", {"order": "sha256:" + "A" * 64}),
    "a hospital called coordinator": ("cohort-closed", {"members": ["coordinator"]}),
    "a hospital in capitals": ("cohort-closed", {"members": ["UCL"]}),
    "a ring of 24 bits": ("work-order", {"encoding": {"ring": 24, "exponent": 0, "most": 3}}),
    "a ring of 32.0 bits": ("work-order", {"encoding": {"ring": 32.0, "exponent": 0, "most": 3}}),
    "a sum over two": ("work-order", {"encoding": {"ring": 32, "exponent": 0, "most": 2}}),
    "a sum over 201": ("work-order", {"encoding": {"ring": 32, "exponent": 0, "most": 201}}),
    "a scale beyond 2^60": ("work-order", {"encoding": {"ring": 32, "exponent": 61, "most": 3}}),
    "a scale below 2^-60": ("work-order", {"encoding": {"ring": 32, "exponent": -61, "most": 3}}),
    "a key with stray bits": ("ready", {"mask_key": KEY + "A" * 1621 + "B=="}),
    "a key that is too short": ("ready", {"transport_key": KEY + "A" * 1620}),
    "a key that is too long": ("ready", {"transport_key": KEY + "A" * 1628}),
    "a key of the curve only": ("ready", {"transport_key": "x25519:" + "A" * 43 + "="}),
    "a key with a line end": ("ready", {"mask_key": KEY + "A" * 1622 + "==\n"}),
    "a sealed share with stray bits": ("share", {"sealed": "A" * 1601 + "B=="}),
    "a sealed share that is too short": ("share", {"sealed": encode_base64(bytes(999))}),
    "a sealed share that is too long": ("share", {"sealed": encode_base64(bytes(2001))}),
    "a secret of a mask that is too short": ("share", {"pair": encode_base64(bytes(999))}),
    "a secret of a mask that is too long": ("share", {"pair": encode_base64(bytes(2001))}),
    "a quoted envelope over 16 KiB": ("cohort-closed", {"ready": [encode_base64(bytes(16 * 1024 + 1))]}),
    "201 quoted envelopes": ("survivors-named", {"vectors": [""] * 201}),
    "quoted envelopes that are no list": ("agreement-shown", {"seen": ""}),
    "a revealed share of 32 bytes": ("shares-revealed", {"of_lost": [share_of("ucl", 32)]}),
    "a revealed share of 34 bytes": ("shares-revealed", {"of_survivors": [share_of("ucl", 34)]}),
    "a revealed share of the coordinator": ("shares-revealed", {"of_lost": [share_of("coordinator", 33)]}),
    "201 revealed shares": ("shares-revealed", {"of_lost": [share_of(f"h{at}", 33) for at in range(201)]}),
    "a reference with free text": ("refused", {"reference": "John Smith 17"}),
    "a code with free text": ("refused", {"code": "patient John Smith"}),
    "a study without its digest": ("study-closed", {"study": "ct-contrast"}),
    "an unknown phase": ("ready", {"collection": {"study": "a-00000000", "round": 1, "phase": "x", "attempt": 1}}),
    "an empty log": ("trail-shown", {"checkpoint": head_of("ucl", 0)}),
    "a log in free text": ("log-disputed", {"known": head_of("my log", 3)}),
    "a head without its root": ("log-disputed", {"shown": head_of("ucl", 3) | {"root": "sha256:"}}),
    "a head with half a signature": ("log-disputed", {"shown": head_of("ucl", 3) | {"signature": "A" * 44}}),
    "entry 0": ("trail-shown", {"first": 0}),
    "an entry that is neither a hash nor longer": ("trail-shown", {"entries": [encode_base64(bytes(31))]}),
    "an entry over 256 KiB": ("trail-shown", {"entries": [encode_base64(bytes(256 * 1024 + 1))]}),
    "4097 entries": ("trail-shown", {"entries": [encode_base64(bytes(32))] * 4097}),
    "a receipt that is no signature": ("round-committed", {"receipt": encode_base64(bytes(63))}),
    "a commitment without a receipt": ("round-committed", {"receipt": None}),
    "a proof of 31 bytes": ("heads-shown", {"heads": [{"checkpoint": head_of("ucl", 3), "proof": ["AA=="]}]}),
    "a proof of 65 hashes": (
        "heads-shown",
        {"heads": [{"checkpoint": head_of("ucl", 3), "proof": [encode_base64(bytes(32))] * 65}]},
    ),
    "more heads than there are parties": (
        "heads-shown",
        {"heads": [{"checkpoint": head_of(f"h{at}", 3), "proof": []} for at in range(202)]},
    ),
    "two heads of one log": (
        "heads-shown",
        {"heads": [{"checkpoint": head_of("ucl", size), "proof": []} for size in (3, 4)]},
    ),
    "heads after round -1": ("heads-shown", {"round": -1}),
    "cosigned before 1970": ("heads-cosigned", {"cosigned": [cosigned_at(-1)]}),
    "cosigned at half a second": ("heads-cosigned", {"cosigned": [cosigned_at(0.5)]}),
    "a dispute in free text": ("log-disputed", {"code": "they lied"}),
    "attempt 1001": ("ready", {"collection": {"study": "a-00000000", "round": 1, "phase": "train", "attempt": 1001}}),
}


@pytest.mark.parametrize(("kind", "changes"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_value_out_of_its_range_is_refused(fed: ModuleType, kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match=kind):
        from_body(kind, to_body(fed.messages()[kind]) | changes)


def test_the_refusal_names_the_place_and_does_not_repeat_the_value(fed: ModuleType) -> None:
    body = to_body(fed.messages()["ready"])
    with pytest.raises(MalformedMessage) as why:
        from_body("ready", body | {"order": "John Smith"})
    assert "ready: order:" in str(why.value)
    assert "John" not in str(why.value)


SLOTS = {
    "plan-proposed": "{study}",
    "plan-approved": "{study}",
    "plan-declined": "{study}",
    "work-order": "{study}/2/train/3",
    "ready": "{study}/2/train/3",
    "cohort-closed": "{study}/2/train/3",
    "share": "{study}/2/train/3",
    "shares": "{study}/2/train/3",
    "shares-routed": "{study}/2/train/3",
    "masked-vector": "{study}/2/train/3",
    "survivors-named": "{study}/2/train/3",
    "survivors-seen": "{study}/2/train/3",
    "agreement-shown": "{study}/2/train/3",
    "shares-revealed": "{study}/2/train/3",
    "refused": "{study}/2/train/3",
    "round-committed": "{study}/2",
    "trail-asked": "{study}/3",
    "trail-shown": "{study}/2",
    "heads-shown": "{study}/2",
    "heads-cosigned": "{study}/2",
    "log-disputed": "{study}/2",
    "study-closed": "{study}",
}


@pytest.mark.parametrize("kind", REGISTRY)
def test_a_message_has_one_slot(fed: ModuleType, kind: str) -> None:
    message = fed.messages()[kind]
    assert slot_of(message) == SLOTS[kind].format(study=fed.study())
    assert study_of(message) == fed.study()


def test_the_digest_of_heads_is_of_logs_sizes_and_roots_in_any_order() -> None:
    heads = [Checkpoint.model_validate(head_of(log, 3)) for log in ("ucl", "charite")]
    told = HeadsShown(study="ct-7f3a90c1", round=0, heads=tuple(ShownHead(checkpoint=head, proof=()) for head in heads))
    assert told.digest == heads_digest(heads)
    assert heads_digest(heads) == heads_digest(heads[::-1])
    signed_anew = [head.model_copy(update={"signature": bytes([1]) * 64}) for head in heads]
    assert heads_digest(signed_anew) == heads_digest(heads)
    others = [
        [],
        heads[:1],
        [*heads, Checkpoint.model_validate(head_of("st-olavs", 3))],
        [heads[0].model_copy(update={"size": 4}), heads[1]],
        [heads[0].model_copy(update={"root": "sha256:" + "1" * 64}), heads[1]],
        [heads[0].model_copy(update={"log": "ucm"}), heads[1]],
    ]
    assert len({heads_digest(some) for some in [heads, *others]}) == 7


@pytest.mark.parametrize("tell", [slot_of, study_of])
def test_what_is_no_message_has_no_slot_and_no_study(tell: Any) -> None:
    with pytest.raises(AssertionError):
        tell("ready")


@given(st.data())
def test_a_collection_is_read_as_it_was_written(strategies: SimpleNamespace, data: st.DataObject) -> None:
    collection = data.draw(strategies.collections)
    assert Collection.parse(str(collection)) == collection


NOT_A_COLLECTION = {
    "too few parts": "a-00000000/1/train",
    "too many parts": "a-00000000/1/train/1/1",
    "a space": "a-00000000/ 1/train/1",
    "a plus": "a-00000000/+1/train/1",
    "a leading zero": "a-00000000/01/train/1",
    "an underscore": "a-00000000/1_0/train/1",
    "digits of another script": "a-00000000/\u0661/train/1",
    "no number": "a-00000000/x/train/1",
    "round 0": "a-00000000/0/train/1",
    "an unknown phase": "a-00000000/1/export/1",
    "a line end": "a-00000000/1/train/1\n",
    "a number of 5000 digits": "a-00000000/" + "1" * 5000 + "/train/1",
}


@pytest.mark.parametrize("text", NOT_A_COLLECTION.values(), ids=NOT_A_COLLECTION)
def test_another_form_of_a_collection_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Collection.parse(text)
