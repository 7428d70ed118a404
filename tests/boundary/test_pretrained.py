"""What is read of a pinned file: the network's own tensors by name, and nothing that a stranger's header suggests."""

import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal
from pydantic import ValidationError

from boundary.errors import BadTensors
from boundary.pretrained import Pretrained
from boundary.pretrained_file import listed_tensors, read_pretrained
from boundary.tensors import MAX_HEADER_BYTES, TensorManifest, TensorSpec

SHA = "ab" * 32
NETWORK = TensorManifest(
    tensors=(
        TensorSpec(name="body.lora_a.weight", shape=(1, 3)),
        TensorSpec(name="body.weight", shape=(2, 3)),
        TensorSpec(name="head.weight", shape=(2, 2)),
    )
)
BODY, HEAD = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 2), np.float32)


def how(**changes: Any) -> Pretrained:
    return Pretrained.model_validate({"file": "net.safetensors", "sha256": SHA} | changes)


def file_of(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_the_networks_tensors_are_taken_and_others_are_not_looked_at() -> None:
    counted = np.array([7], np.int64)
    data = safetensors.numpy.save(
        {"body.weight": BODY, "head.weight": HEAD, "steps": counted, "other.weight": HEAD}, {"made": "elsewhere"}
    )
    found = read_pretrained(data, NETWORK, how())
    assert set(found) == {"body.weight", "head.weight"}, "adapters are the study's own"
    assert_array_equal(found["body.weight"], BODY)
    assert_array_equal(found["head.weight"], HEAD)


def test_a_prefix_is_stripped_and_a_head_left_out() -> None:
    data = safetensors.numpy.save({"model.body.weight": BODY, "body.weight": -BODY, "head.weight": HEAD[:1]})
    found = read_pretrained(data, NETWORK, how(strip="model.", leave_out=["head.*"]))
    assert set(found) == {"body.weight"}
    assert_array_equal(found["body.weight"], BODY)


GOOD = {"body.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
DATA = BODY.tobytes()
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "not safetensors"),
    "a zip, as torch.save writes it": (b"PK\x03\x04" + bytes(60), "not safetensors"),
    "a header over the limit": (file_of(b" " * (MAX_HEADER_BYTES + 1), b""), "not safetensors"),
    "a header that is no JSON": (file_of(b"{", b""), "does not parse"),
    "a header that is a list": (file_of([], b""), "no table"),
    "without a tensor that is needed": (file_of({"other": GOOD["body.weight"]}, DATA), "body.weight is not in"),
    "a tensor of half precision": (
        file_of({"body.weight": GOOD["body.weight"] | {"dtype": "F16"}}, DATA), "not the header of a float32",
    ),
    "an entry with an unknown key": (
        file_of({"body.weight": GOOD["body.weight"] | {"code": "x"}}, DATA), "not the header of a float32",
    ),
    "an entry that is no table": (file_of({"body.weight": 7}, DATA), "not the header of a float32"),
    "another shape": (file_of({"body.weight": GOOD["body.weight"] | {"shape": [3, 2]}}, DATA), "has shape"),
    "offsets beyond the end": (
        file_of({"body.weight": GOOD["body.weight"] | {"data_offsets": [8, 32]}}, DATA), "cut short",
    ),
    "offsets of another size": (
        file_of({"body.weight": GOOD["body.weight"] | {"data_offsets": [0, 20]}}, DATA), "says two things",
    ),
    "offsets before the beginning": (
        file_of({"body.weight": GOOD["body.weight"] | {"data_offsets": [-24, 0]}}, DATA), "not the header",
    ),
    "cut short": (file_of(GOOD, DATA[:-1]), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_a_file_that_is_not_what_it_should_be_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadTensors, match=reason):
        read_pretrained(data, NETWORK, how(leave_out=["head.*"]))


def test_people_are_shown_every_tensor_of_whatever_dtype() -> None:
    data = safetensors.numpy.save(
        {"b": np.zeros((), np.int64), "a": np.zeros((2, 3), np.float16)}, {"made": "elsewhere"}
    )
    assert listed_tensors(data) == (("a", "F16", (2, 3)), ("b", "I64", ()))


@pytest.mark.parametrize("entry", [7, {"dtype": "\x1b[2K", "shape": [], "data_offsets": [0, 0]}, {"dtype": "F32"}])
def test_what_lists_something_else_is_refused(entry: Any) -> None:
    with pytest.raises(BadTensors, match="no table of tensors"):
        listed_tensors(file_of({"a": entry}, b""))


@pytest.mark.parametrize(
    ("patterns", "reason"), [(["tail.*"], "'tail.\\*' fits no parameter"), (["*"], "nothing would be taken")]
)
def test_patterns_that_fit_nothing_or_leave_nothing_are_refused(patterns: list[str], reason: str) -> None:
    with pytest.raises(BadTensors, match=reason):
        read_pretrained(file_of(GOOD, DATA), NETWORK, how(leave_out=patterns))


NAMES = {
    "a path": "../net.safetensors", "a folder": "nets/net.safetensors", "hidden": ".safetensors",
    "a pickle": "net.pt", "a line break": "net.safetensors\n", "a terminal escape": "\x1b[2K.safetensors", "none": "",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_is_a_plain_name_of_a_safetensors_file(name: str) -> None:
    with pytest.raises(ValidationError):
        how(file=name)


@pytest.mark.parametrize(
    "changes", [{"sha256": "AB" * 32}, {"sha256": "sha256:" + SHA}, {"strip": "a\n"}, {"leave_out": ["a", "a"]}]
)
def test_the_rest_has_one_form_too(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        how(**changes)
