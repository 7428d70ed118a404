"""What a study begins with is held against the hospital's own file and draw, whatever the coordinator sent."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from boundary.bfloat16 import rounded
from boundary.errors import BadTensors
from boundary.learning import ModelChoice
from boundary.parts import Parts, parts_of
from boundary.plan import StudyPlan
from boundary.tensors import Vector, flatten, pack
from models.errors import PretrainedDiffers, PretrainedMissing
from models.parameters import initial_tensors, manifest
from silo_agent import beginning
from silo_agent.beginning import check_first, checked_base

NAME = "chest.safetensors"
Plan = Callable[..., StudyPlan]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a child that has just been started."""
    monkeypatch.setattr(beginning, "_begun", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The hospital's own, with the file that plans pin: of the same network, drawn elsewhere."""
    tensors = initial_tensors(ModelChoice(name="cnn-small", version=1, initial_seed=99), 2)
    (tmp_path / NAME).write_bytes(safetensors.numpy.save(tensors))
    return tmp_path


@pytest.fixture
def make(folder: Path, make_plan_for: Any, new_card: Any) -> Plan:
    cards = [new_card(name) for name in ("st-olavs", "charite", "utrecht")]

    def make(*, pinned: bool = True, downlink: str = "float32", norm: float = 1e4, **model: Any) -> StudyPlan:
        pin = {"file": NAME, "sha256": hashlib.sha256((folder / NAME).read_bytes()).hexdigest(), "leave_out": ["5.*"]}
        choice = {"name": "cnn-small", "version": 1, "pretrained": pin if pinned else None} | model
        aggregation = {"downlink": downlink, "max_model_norm": norm}
        made: StudyPlan = make_plan_for(cards, model=choice, aggregation=aggregation)
        return made

    return make


def parts_and_start(plan: StudyPlan, folder: Path | None) -> tuple[Parts, Vector]:
    """As an honest coordinator makes them."""
    parts = parts_of(plan.model, manifest(plan.model, 2))
    return parts, flatten(initial_tensors(plan.model, 2, folder), parts.whole)


def test_the_file_is_what_the_base_and_the_first_model_are(make: Plan, folder: Path) -> None:
    plan = make(trained=["5.*", "0.*"])
    parts, start = parts_and_start(plan, folder)
    (folder / "base").write_bytes(pack(start, parts.whole))
    np.testing.assert_array_equal(checked_base(folder / "base", plan, parts, folder), start)
    check_first(parts.moving_of(start), plan, parts, folder)
    drawn, _ = parts_and_start(make(pinned=False), None)
    assert drawn.whole == parts.whole


def nudged(start: Vector, at: int, by: float) -> Vector:
    found = start.copy()
    found[at] += by
    return found


FROZEN, HEAD = 400, -1  # a weight of the second convolution, from the file; one of the head, drawn


@pytest.mark.parametrize(("at", "by", "is_same"), [(FROZEN, 1e-6, False), (HEAD, 5e-6, True), (HEAD, 1e-4, False)])
def test_a_base_is_the_files_to_the_bit_and_the_draw_as_far_as_processors_go(
    make: Plan, folder: Path, at: int, by: float, *, is_same: bool
) -> None:
    plan = make(trained=["0.*"])
    parts, start = parts_and_start(plan, folder)
    (folder / "base").write_bytes(pack(nudged(start, at, by), parts.whole))
    if is_same:
        checked_base(folder / "base", plan, parts, folder)
        return
    with pytest.raises(BadTensors, match=rf"not what the plan's file {NAME} gives here"):
        checked_base(folder / "base", plan, parts, folder)
    assert not (folder / "base").exists(), "it is fetched again, and a right one may come"


@pytest.mark.parametrize("downlink", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", [["*"], ["5.*", "0.*"]], ids=["all of it moves", "a part moves"])
def test_the_first_model_is_the_files_too(make: Plan, folder: Path, downlink: str, trained: list[str]) -> None:
    plan = make(downlink=downlink, trained=trained)
    parts, start = parts_and_start(plan, folder)
    moving = start if parts.moves_whole else parts.moving_of(start)
    came = rounded(moving) if downlink == "bfloat16" else moving
    check_first(came, plan, parts, folder)
    for other in (
        np.nextafter(came, np.float32(9)),
        came * np.float32(1.01),
        came[::-1].copy(),
        came * np.float32("nan"),
    ):
        with pytest.raises(BadTensors, match="the first round's model is not what the plan begins with"):
            check_first(other, plan, parts, folder)


def test_a_draw_that_rounds_to_a_neighbour_is_still_the_draw(make: Plan, folder: Path) -> None:
    plan = make(downlink="bfloat16")
    parts, start = parts_and_start(plan, folder)
    came = rounded(start)
    place = came[HEAD].view(np.uint32)
    came[HEAD] = np.uint32(place + 2**16).view(np.float32)  # the next bfloat16
    check_first(came, plan, parts, folder)
    came[FROZEN] = np.uint32(came[FROZEN].view(np.uint32) + 2**16).view(np.float32)
    with pytest.raises(BadTensors):
        check_first(came, plan, parts, folder)


def test_without_a_pinned_file_a_first_model_is_not_compared(make: Plan) -> None:
    """The plan promises a seed then, and versions of torch may draw otherwise: only what is frozen has to be it."""
    plan = make(pinned=False)
    parts, start = parts_and_start(plan, None)
    check_first(start + 1, plan, parts, None)


def test_a_file_that_was_exchanged_after_the_approval_begins_nothing(make: Plan, folder: Path) -> None:
    plan = make(trained=["0.*"])
    parts, start = parts_and_start(plan, folder)
    (folder / "base").write_bytes(pack(start, parts.whole))
    crafted = initial_tensors(plan.model.model_copy(update={"pretrained": None, "initial_seed": 3}), 2)
    (folder / NAME).write_bytes(safetensors.numpy.save(crafted))
    with pytest.raises(PretrainedDiffers):
        checked_base(folder / "base", plan, parts, folder)
    (folder / NAME).unlink()
    with pytest.raises(PretrainedMissing):
        check_first(parts.moving_of(start), plan, parts, folder)
    assert (folder / "base").exists(), "which is not at fault"


def test_a_norm_that_the_plan_does_not_allow_is_refused(make: Plan, folder: Path) -> None:
    plan = make(norm=1.0)
    with pytest.raises(BadTensors, match="the plan allows 1"):
        beginning.beginning(plan, parts_of(plan.model, manifest(plan.model, 2)), folder)
