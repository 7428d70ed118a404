"""A study that begins with a file: the pinned bytes or nothing, mapped as the plan says, the rest from the seed."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

from boundary.learning import ModelChoice
from boundary.low_rank import LowRank, is_adapter
from boundary.pretrained import Pretrained
from models.errors import ModelError, PretrainedDiffers, PretrainedMissing, PretrainedUnfit
from models.parameters import Tensors, initial_tensors, manifest

SEED = ModelChoice(name="cnn-small", version=1, initial_seed=1)
ELSEWHERE = initial_tensors(SEED.model_copy(update={"initial_seed": 8}), 3)  # another head: of three classes
HEAD = ("5.bias", "5.weight")
NAME = "chest.safetensors"


def written(folder: Path, tensors: Tensors, **mapping: Any) -> ModelChoice:
    """The choice that pins what was written."""
    data = safetensors.numpy.save(tensors)
    (folder / NAME).write_bytes(data)
    pin = Pretrained.model_validate({"file": NAME, "sha256": hashlib.sha256(data).hexdigest()} | mapping)
    return SEED.model_copy(update={"pretrained": pin})


def test_the_body_is_the_files_and_the_head_the_seeds(tmp_path: Path) -> None:
    assert tuple(name for name in sorted(ELSEWHERE) if ELSEWHERE[name].shape[0] == 3) == HEAD
    theirs = {f"net.{name}": tensor for name, tensor in ELSEWHERE.items()}
    choice = written(tmp_path, theirs, strip="net.", leave_out=["5.*"])
    found, drawn = initial_tensors(choice, 2, tmp_path), initial_tensors(SEED, 2)
    assert found.keys() == drawn.keys()
    for name, tensor in found.items():
        assert_array_equal(tensor, drawn[name] if name in HEAD else ELSEWHERE[name])
        assert tensor.flags.writeable
        assert tensor.flags.c_contiguous
    assert manifest(choice, 2) == manifest(SEED, 2), "which nobody needs the file for"


def test_adapters_are_never_a_files(tmp_path: Path) -> None:
    plain = ModelChoice(name="vit-small", version=1)
    adapted = plain.model_copy(
        update={"lora": LowRank(rank=2, alpha=4.0, targets=("blocks.0.mlp.0",)), "trained": ("*.lora_*",)}
    )
    drawn = initial_tensors(adapted, 2)
    file = {name: np.full_like(tensor, 0.5) for name, tensor in drawn.items()}
    pin = written(tmp_path, file).pretrained
    found = initial_tensors(adapted.model_copy(update={"pretrained": pin}), 2, tmp_path)
    for name, tensor in found.items():
        assert_array_equal(tensor, drawn[name] if is_adapter(name) else file[name])


def swapped(folder: Path, choice: ModelChoice) -> ModelChoice:
    other = {name: tensor + 1 for name, tensor in initial_tensors(SEED, 2).items()}
    (folder / NAME).write_bytes(safetensors.numpy.save(other))
    return choice


def one_bit(folder: Path, choice: ModelChoice) -> ModelChoice:
    data = bytearray((folder / NAME).read_bytes())
    data[-1] ^= 1
    (folder / NAME).write_bytes(data)
    return choice


def gone(folder: Path, choice: ModelChoice) -> ModelChoice:
    (folder / NAME).unlink()
    return choice


def a_folder(folder: Path, choice: ModelChoice) -> ModelChoice:
    (folder / NAME).unlink()
    (folder / NAME).mkdir()
    return choice


def a_pipe(folder: Path, choice: ModelChoice) -> ModelChoice:
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    return choice


def a_pickle(folder: Path, _choice: ModelChoice) -> ModelChoice:
    data = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    (folder / NAME).write_bytes(data)
    pin = Pretrained(file=NAME, sha256=hashlib.sha256(data).hexdigest())
    return SEED.model_copy(update={"pretrained": pin})


def another_head(folder: Path, _choice: ModelChoice) -> ModelChoice:
    return written(folder, ELSEWHERE)


def without_a_tensor(folder: Path, _choice: ModelChoice) -> ModelChoice:
    return written(folder, {name: tensor for name, tensor in ELSEWHERE.items() if name != "5.bias"})


def not_a_number(folder: Path, _choice: ModelChoice) -> ModelChoice:
    tensors = {name: tensor.copy() for name, tensor in initial_tensors(SEED, 2).items()}
    tensors["5.weight"][1, 7] = np.nan
    return written(folder, tensors)


def half_precision(folder: Path, _choice: ModelChoice) -> ModelChoice:
    return written(folder, {name: tensor.astype(np.float16) for name, tensor in initial_tensors(SEED, 2).items()})


Attack = Callable[[Path, ModelChoice], ModelChoice]
ATTACKS: dict[str, tuple[Attack, type[ModelError], str]] = {
    "exchanged for another of the same form": (swapped, PretrainedDiffers, "has SHA-256 .* the plan pins"),
    "one bit of it": (one_bit, PretrainedDiffers, "put that file in its place"),
    "not there": (gone, PretrainedMissing, "it is not in .*: put it there"),
    "a folder in its place": (a_folder, PretrainedMissing, "it is not in"),
    "a pipe in its place": (a_pipe, PretrainedMissing, "it is not in"),
    "a pickle that was pinned": (a_pickle, PretrainedUnfit, "not safetensors"),
    "a head for three classes": (another_head, PretrainedUnfit, "5.bias has shape \\[3\\], the network \\[2\\]: leave"),
    "a tensor is missing": (without_a_tensor, PretrainedUnfit, "5.bias is not in the file"),
    "a weight that is not a number": (not_a_number, PretrainedUnfit, "5.weight holds NaN"),
    "half precision": (half_precision, PretrainedUnfit, "not the header of a float32 tensor"),
}


@pytest.mark.parametrize(("attack", "error", "reason"), ATTACKS.values(), ids=ATTACKS)
def test_what_is_not_the_pinned_file_begins_nothing(
    attack: Attack, error: type[ModelError], reason: str, tmp_path: Path
) -> None:
    good = written(tmp_path, initial_tensors(SEED, 2))
    initial_tensors(good, 2, tmp_path)
    with pytest.raises(error, match=reason):
        initial_tensors(attack(tmp_path, good), 2, tmp_path)


def test_without_a_folder_nothing_is_looked_for(tmp_path: Path) -> None:
    good = written(tmp_path, initial_tensors(SEED, 2))
    with pytest.raises(PretrainedMissing, match="no folder for such files is named here"):
        initial_tensors(good, 2)
    (tmp_path / NAME).chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(PretrainedMissing, match="cannot be read"):
            initial_tensors(good, 2, tmp_path)
