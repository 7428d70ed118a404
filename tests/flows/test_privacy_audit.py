"""`wardround plan cost` and `wardround audit-privacy`, as the coordinator types them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from boundary.errors import InvalidPlan
from boundary.guarantee import PatientPrivacy
from boundary.images import Preprocessing
from boundary.learning import ModelChoice
from compliance.empirical import Guesses
from compliance.terms import PlanTerms
from flows.cli import app
from flows.privacy_audit import Audit, Finding, draw, read_images
from flows.privacy_cost import SIZES, cost_table
from flows.privacy_report import run_audit, verdict
from infra import golden
from models.parameters import initial_tensors, to_tensors

PLAN = """
version = 1
name = "trial"
revision = 1
hospitals = ["a", "b", "c"]
[purpose]
title = "t"
statement = "s"
legal_basis = "l"
ethics_reference = "e"
expires = 2099-12-31
[model]
name = "cnn-small"
version = 1
[preprocessing]
size = [16, 16]
intensity = "percentiles"
low = 1.0
high = 99.0
[labels]
classes = ["0", "1"]
[dataset]
name = "x"
modalities = ["CR"]
[training]
rounds = 2
optimizer = "sgd"
learning_rate = 0.5
weighting = "equal"
[privacy]
mechanism = "patient-dp"
epsilon = 3.0
patients_per_step = 20
steps = 2
"""
WITHOUT = PLAN[: PLAN.index("[privacy]")]
TERMS = PlanTerms.of(PatientPrivacy(mechanism="patient-dp", epsilon=3.0, patients_per_step=20, steps=2), 2, 40)


def finding(epsilon: float, area: float = 0.5) -> Finding:
    return Finding("some", [(0.0, 0.0), (0.5, 0.9), (1.0, 1.0)], area, Guesses(5, 10, 20), epsilon)


def test_the_cost_is_told_for_hospitals_of_every_size() -> None:
    head, columns, *rows = cost_table(PLAN)
    assert head == "trial@1: 2 rounds of 2 steps, 20 patients a step, epsilon 3"
    assert "epsilon" in columns
    assert len(rows) == len(SIZES)
    for size, row in zip(SIZES, rows, strict=True):
        terms = PlanTerms.of(TERMS.privacy, 2, size)
        assert row.split()[0] == f"{size:,}"
        assert f"{terms.noise_multiplier:.2f} C" in row
        assert f"{terms.epsilon:.2f}" in row
    out_of_reach = cost_table(PLAN.replace("epsilon = 3.0", "epsilon = 0.01").replace("steps = 2", "steps = 9000"))
    assert any("cannot be met" in row or "is the most" in row for row in out_of_reach)
    by_noise = cost_table(PLAN.replace("epsilon = 3.0", "noise_multiplier = 1.5"))
    assert all("1.50 C" in row for row in by_noise[2:])


def test_a_plan_without_a_guarantee_has_no_cost(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlan, match="promises nothing"):
        cost_table(WITHOUT)
    with pytest.raises(InvalidPlan, match="not TOML"):
        cost_table("[")
    with pytest.raises(InvalidPlan, match="hospitals"):
        cost_table(PLAN.replace('["a", "b", "c"]', "7"))
    path = tmp_path / "study.toml"
    path.write_text(PLAN)
    said = CliRunner().invoke(app, ["plan", "cost", str(path)])
    assert said.exit_code == 0
    assert "50,000" in said.output


def test_an_audit_of_a_segmentation_is_refused_for_its_canaries_have_a_wrong_class(tmp_path: Path) -> None:
    changes = {
        'mechanism = "none"': 'mechanism = "patient-dp"\nepsilon = 3.5', 'normalise = "federated"': "",
        'weighting = "patients"': 'weighting = "declared"', "error_feedback = true": "",
    }  # fmt: skip
    text = golden.segmentation_toml()
    for old, new in changes.items():
        text = text.replace(old, new)
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(InvalidPlan, match="plans for classification"):
        run_audit(tmp_path / "study.toml", None, (2, 8, 2, 1), None, None)


def test_the_verdict_says_no_more_than_was_shown() -> None:
    holds = Audit(TERMS, finding(2.5, 0.95), finding(0.4))
    assert verdict(holds).startswith("HOLDS against this attack: it shows epsilon above 0.40")
    assert "A better attack may show more" in verdict(holds)
    broken = replace(holds, without=finding(9.0, 0.99), private=finding(3.2))
    assert verdict(broken).startswith("BROKEN")
    assert not broken.holds
    for weak in (finding(0.0, 0.5), finding(0.2, 0.95)):
        assert verdict(replace(holds, without=weak)).startswith("NOTHING SHOWN")
    assert draw(holds).axes[0].get_legend() is not None


def test_images_come_from_a_file_or_are_drawn(tmp_path: Path) -> None:
    size = Preprocessing(size=(16, 16), intensity="percentiles", low=1.0, high=99.0)
    drawn = read_images(None, size, 12)
    assert drawn.images.shape == (12, 1, 16, 16)
    assert set(drawn.labels.tolist()) == {0, 1}
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 255, (9, 20, 20), np.uint8), random.integers(0, 2, 9)
    np.savez(tmp_path / "ours.npz", images=images, labels=labels, patients=np.repeat([7, 3, 5], 3))
    np.savez(tmp_path / "medmnist.npz", train_images=images, train_labels=labels[:, None])
    np.savez(tmp_path / "other.npz", pixels=images)
    ours = read_images(tmp_path / "ours.npz", size, 2)
    assert (len(ours), sorted(set(ours.patients.tolist()))) == (6, [0, 1])  # two patients of three images
    assert len(read_images(tmp_path / "medmnist.npz", size, 5)) == 5
    with pytest.raises(ValueError, match="no arrays `images`"):
        read_images(tmp_path / "other.npz", size, 5)


def test_the_whole_audit_by_its_command(tmp_path: Path) -> None:
    """Small: it says honestly that so little shows nothing, or that the promise held."""
    path, figure = tmp_path / "study.toml", tmp_path / "attack.png"
    path.write_text(PLAN)
    options = ["--models", "6", "--patients", "40", "--canaries", "10", "--epochs", "1", "--figure", str(figure)]
    said = CliRunner().invoke(app, ["audit-privacy", str(path), *options])
    assert said.exit_code in {0, 1}, said.output
    assert ("HOLDS" in said.output) == (said.exit_code == 0)
    assert "BROKEN" not in said.output
    assert "no noise" in said.output
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_what_the_plan_freezes_is_frozen_in_what_is_attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of a frozen network, personalised once: its rounds and one more are paid for, and only the head moves."""
    import models.private.audit as attacking

    begun = initial_tensors(ModelChoice(name="cnn-small", version=1), 2)
    head = {name for name in begun if name.startswith("5.")}
    moved: list[set[str]] = []
    attack = attacking.attack

    def looking(data: Any, canaries: Any, train: Any, **more: Any) -> Any:
        def watched(*about: Any) -> Any:
            module = train(*about)
            now = to_tensors(module)
            moved.append({name for name in now if not np.array_equal(now[name], begun[name])})
            return module

        return attack(data, canaries, watched, **more)

    monkeypatch.setattr(attacking, "attack", looking)
    changed = PLAN.replace("[preprocessing]", 'trained = ["5.*"]\n[preprocessing]')
    (tmp_path / "study.toml").write_text(changed + "[personalisation]\n")
    done: list[Audit] = []
    monkeypatch.setattr("flows.privacy_report.verdict", lambda one: done.append(one) or "seen")
    run_audit(tmp_path / "study.toml", None, (2, 40, 6, 2), None, None)
    assert head
    assert moved == [head] * len(moved)
    assert len(moved) == 4
    (one,) = done
    assert one.terms == PlanTerms.of(TERMS.privacy, 3, 40)
