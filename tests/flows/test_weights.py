"""`wardround weights`: a file's hash and tensors, and a checkpoint made into one without running what is in it."""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from boundary.errors import InvalidPlan
from flows.cli import app
from flows.weights import convert, show, tensors_of


class Evil:
    """What a checkpoint may hold: code that runs when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


def test_a_checkpoint_becomes_a_file_that_a_plan_can_pin(tmp_path: Path) -> None:
    checkpoint, out = tmp_path / "model.pt", tmp_path / "chest.safetensors"
    body = torch.rand(3, 4, dtype=torch.float64)
    state = {"body.weight": body, "half": torch.ones(2, dtype=torch.bfloat16), "steps": torch.tensor(7), "name": "x"}
    torch.save({"state_dict": state}, checkpoint)
    done = CliRunner().invoke(app, ["weights", "convert", str(checkpoint), "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = safetensors.numpy.load_file(out)
    assert found.keys() == {"body.weight", "half"}
    np.testing.assert_array_equal(found["body.weight"], body.numpy().astype(np.float32))
    sha = hashlib.sha256(out.read_bytes()).hexdigest()
    assert f'file = "chest.safetensors"\nsha256 = "{sha}"' in done.output
    assert "  F32                 3 x 4  body.weight" in done.output
    assert CliRunner().invoke(app, ["weights", "show", str(out)]).output == done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chest.safetensors", "model.pt"]
    with pytest.raises(InvalidPlan, match="a new file"):
        convert(checkpoint, out)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    checkpoint, trace = tmp_path / "model.pt", tmp_path / "it ran"
    torch.save({"weight": torch.ones(2), "more": Evil(trace)}, checkpoint)
    with pytest.raises(SystemExit, match="holds more than tensors and plain containers"):
        tensors_of(str(checkpoint))
    assert not trace.exists()
    with zipfile.ZipFile(checkpoint) as file:  # the test's own bomb is a live one
        (name,) = [name for name in file.namelist() if name.endswith("data.pkl")]
        assert b"mkdir" in file.read(name)


NO_WEIGHTS: dict[str, tuple[object, str]] = {
    "a list": ([torch.ones(1)], "no table of tensors by name"),
    "by numbers": ({1: torch.ones(1)}, "no table of tensors by name"),
    "integers only": ({"steps": torch.tensor(7), "more": {}}, "no floating-point tensors"),
}


@pytest.mark.parametrize(("saved", "reason"), NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_a_checkpoint_without_weights_by_name_is_refused(saved: object, reason: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "model.pt")
    with pytest.raises(SystemExit, match=reason):
        tensors_of(str(tmp_path / "model.pt"))


def test_what_is_no_checkpoint_and_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    old, trace = tmp_path / "old.pt", tmp_path / "it ran"
    old.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(InvalidPlan, match="older ones are refused"):
        convert(old, tmp_path / "a.safetensors")
    with pytest.raises(InvalidPlan, match=r"not safetensors; `wardround weights convert` makes one"):
        show(old)
    with pytest.raises(InvalidPlan, match=r"is called \.safetensors"):
        convert(old, tmp_path / "a.pt")
    assert not trace.exists()
