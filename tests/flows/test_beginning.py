"""The coordinator's own file of weights: what a study is published with, or why it is not."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from boundary.errors import InvalidPlan
from boundary.identity import SigningIdentity
from boundary.images import Normalisation
from boundary.learning import ModelChoice
from boundary.plan import StudyPlan
from flows.cli import app
from flows.coordinator import create, load, starting_settings
from flows.publication import checked_tensors
from flows.release import released
from infra.federation import NO_PRIVACY, simulated_plan
from models.catalogue import build
from models.parameters import initial_tensors, load_tensors, manifest

NAME = "chest.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = initial_tensors(ModelChoice(name="cnn-small", version=1, initial_seed=99), 2)
    (tmp_path / NAME).write_bytes(safetensors.numpy.save(tensors))
    return tmp_path


def plan_of(folder: Path, model: dict[str, Any] | None = None, **pin: Any) -> StudyPlan:
    keys = {f"h{number}": SigningIdentity.generate() for number in range(3)}
    pinned = {"file": NAME, "sha256": hashlib.sha256((folder / NAME).read_bytes()).hexdigest()} | pin
    choice = {"name": "cnn-small", "version": 1, "pretrained": pinned} | (model or {})
    return simulated_plan(keys, 2, "simulated", "none", NO_PRIVACY, {"model": choice})


def test_a_study_is_published_with_the_files_weights(folder: Path) -> None:
    tensors, parts = checked_tensors(plan_of(folder, leave_out=["5.*"]), folder)
    file, drawn = (
        safetensors.numpy.load_file(folder / NAME),
        initial_tensors(ModelChoice(name="cnn-small", version=1), 2),
    )
    assert parts.moves_whole
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, (drawn if name.startswith("5.") else file)[name])


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a file that is not here": ({}, {"file": "other.safetensors"}, r"model: .* it is not in .*: put it there"),
    "another file": ({}, {"sha256": "0" * 64}, "model: .* the plan pins 000"),
    "a pattern that fits nothing": ({}, {"leave_out": ["head.*"]}, r"leave_out: 'head.\*' fits no parameter"),
    "another prefix": ({}, {"strip": "net."}, "net.0.adn.N.bias is not in the file, which has 0.adn.N.bias"),
    "adapters of no layer": (
        {"trained": ["*.lora_*"], "lora": {"rank": 1, "alpha": 1.0, "targets": ["head"]}}, {},
        "model: 'head' fits no linear layer; there is 5",
    ),
    "adapters that nobody trains": (
        {"trained": ["0.*"], "lora": {"rank": 1, "alpha": 1.0, "targets": ["5"]}}, {}, "begins as zero and would stay",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "pin", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_no_hospital_could_begin_with_is_not_published(
    folder: Path, model: dict[str, Any], pin: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidPlan, match=reason):
        checked_tensors(plan_of(folder, model, **pin), folder)


def test_a_file_beyond_the_norm_that_the_plan_allows_is_not_published(folder: Path) -> None:
    plan = plan_of(folder)
    small = plan.model_copy(update={"aggregation": plan.aggregation.model_copy(update={"max_model_norm": 1.0})})
    with pytest.raises(InvalidPlan, match="model: the weights have norm"):
        checked_tensors(small, folder)


def test_a_released_model_has_its_adapters_merged(folder: Path) -> None:
    """Who loads it finds the plain network's parameters, and the answers of the adapted one."""
    lora = {"rank": 1, "alpha": 3.0, "targets": ["5"]}
    plan = plan_of(folder, {"trained": ["*.lora_*"], "lora": lora})
    tensors, _ = checked_tensors(plan, folder)
    tensors["5.lora_b.weight"] += 0.5
    adapted = build(plan.model, 2).eval()
    load_tensors(adapted, tensors)
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        expected = adapted(images)
        plain = released(plan, tensors, None)
        scaled = released(plan, tensors, Normalisation(mean=0.5, deviation=0.25))
        torch.testing.assert_close(plain(images), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(scaled(0.5 + 0.25 * images), expected, atol=1e-4, rtol=0)
    shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    assert shapes == {spec.name: spec.shape for spec in manifest(ModelChoice(name="cnn-small", version=1), 2).tensors}
    assert not plain.training


def test_the_folder_is_in_the_home_or_where_the_settings_say(tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = starting_settings(home, "https://127.0.0.1:1", "127.0.0.1", 1, ["127.0.0.1"])
    assert create(home, text).weights == home / "weights"
    (home / "coordinator.toml").write_text(text.replace('# weights = "', 'weights = "'))
    assert load(home).weights == Path("/srv/wardround/weights")


def test_a_person_finds_the_commands() -> None:
    said = CliRunner().invoke(app, ["weights", "--help"]).output
    assert "show" in said
    assert "convert" in said
