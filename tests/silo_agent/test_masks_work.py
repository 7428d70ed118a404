"""A round's work on images with masks: counted, trained, with a guarantee too, and measured; from the cache alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.guarantee import PatientPrivacy
from boundary.layout import layout_for
from boundary.plan import StudyPlan
from boundary.tensors import flatten, pack
from infra import golden
from models.dice import DiceLayout, read
from models.errors import InputIndivisible, WrongNetwork
from models.parameters import initial_tensors
from silo_agent import local_round
from silo_agent.intake.cache import CohortArrays
from silo_agent.intake.errors import CacheUnreadable
from silo_agent.ladder.rungs import Measured, _scores
from silo_agent.local_round import LocalRound, evaluate_round, prove_once, statistics_round, train_round
from silo_agent.steward import _series

IMAGES = 12
PRIVATE = {
    "steps": 2, "rate": 1.0, "denominator": 4.0, "clip": 1.0, "noise_multiplier": 0.5, "images": 2,
    "bands": [1, 1, 1, 1],
}  # fmt: skip


def plan(**changes: Any) -> StudyPlan:
    """The golden segmentation, of slices, whose weights all are sent."""
    value = golden.segmentation_plan().model_dump(mode="json")
    value["model"] = {"name": "unet-small-2d", "version": 1}
    value["preprocessing"] |= {"size": [16, 24], "spacing": None}
    value["aggregation"] |= {"random_share": 1, "error_feedback": False}
    return StudyPlan.model_validate(value | changes)


def arrays() -> CohortArrays:
    """Two images of each of six patients, one of them held back and one withdrawn; some show a tumour too."""
    random = np.random.default_rng(5)
    masks = np.zeros((IMAGES, 16, 24), np.uint8)
    masks[:, 4:10, 5:15] = 1
    masks[::3, 11:14, 5:15] = 2
    images = np.clip(random.normal(0.3, 0.1, masks.shape) + 0.3 * masks, 0, 1).astype(np.float32)[:, np.newaxis]
    patients = np.arange(IMAGES) // 2
    return CohortArrays(
        images, masks.max(axis=(1, 2)).astype(np.int64), patients, patients == 0, patients == 1, masks
    )  # fmt: skip


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> CohortArrays:
    found = arrays()
    monkeypatch.setattr(local_round, "load_cache", lambda _: (found, None))
    return found


@pytest.fixture
def command(tmp_path: Path) -> dict[str, Any]:
    return {
        "plan": plan().model_dump(mode="json"), "threads": 1, "device": "cpu", "cache": str(tmp_path / "cache"),
        "model": str(tmp_path / "model"), "out": str(tmp_path / "out" / "vector"),
    }  # fmt: skip


def work(command: dict[str, Any], **changes: Any) -> LocalRound:
    made = LocalRound.of(command | changes)
    tensors = initial_tensors(made.plan.model, len(made.plan.labels.classes))
    made.model.write_bytes(pack(flatten(tensors, made.parts.whole), made.parts.whole))
    return made


def on_step(_done: int, _planned: int) -> None:
    pass


def test_an_image_counts_for_every_class_that_it_shows(command: dict[str, Any], cache: CohortArrays) -> None:
    said = statistics_round(work(command))
    assert said["metrics"] == 3
    used = cache.masks[~cache.holdout & ~cache.withdrawn]
    showing = [int((used == k).any(axis=(1, 2)).sum()) for k in range(3)]
    assert np.fromfile(command["out"], "<f8")[[0, 3, 4, 5]].tolist() == [8, *showing]
    assert showing == [8, 8, 2]


def test_a_round_is_trained_and_measured_in_dice(command: dict[str, Any], cache: CohortArrays) -> None:
    made = work(command)
    said = train_round(made, on_step, lambda: False)
    layout = layout_for("train", parameters=said["parameters"], metrics=0)
    numbers = np.fromfile(made.out, "<f8", layout.numbers)
    assert numbers[layout.where("images")] == 8 * made.plan.training.local_epochs
    assert numbers[layout.where("weight")] == 4, "patients, by the golden plan"
    assert np.abs(np.fromfile(made.out, "<f4", offset=layout.numbers_bytes)).max() > 0
    measured = evaluate_round(made, lambda: False)
    assert measured["metrics"] == DiceLayout(3).size
    found = read(np.fromfile(made.out, "<f8"), DiceLayout(3))
    assert (found.count, [one.images for one in found.classes]) == (2, [2, 1])
    line = Measured(1, found.count, found.loss, _scores(found, made.plan), 0.0).line()
    assert "Dice of liver" in line
    assert "Dice of tumour" in line


def test_a_guarantee_per_patient_holds_for_masks(command: dict[str, Any], cache: CohortArrays) -> None:
    guarantee = PatientPrivacy(mechanism="patient-dp", noise_multiplier=0.5, clip=1.0, steps=2, patients_per_step=4)
    training = plan().training.model_copy(update={"weighting": "equal"})
    preprocessing = plan().preprocessing.model_copy(update={"normalise": "none"})
    private = plan(
        privacy=guarantee.model_dump(mode="json"), training=training.model_dump(mode="json"),
        preprocessing=preprocessing.model_dump(mode="json"),
    )  # fmt: skip
    made = work(command, plan=private.model_dump(mode="json"), private=PRIVATE)
    said = train_round(made, on_step, lambda: False)
    numbers = np.fromfile(
        made.out, "<f8", layout_for("train", parameters=said["parameters"], metrics=0, bands=4).numbers
    )
    assert numbers.tolist() == [1, 0, 1, 1, 1, 1]


def test_volumes_are_proved_on_the_smallest_ones() -> None:
    """A whole one of the golden plan would take gigabytes."""
    golden_plan = golden.segmentation_plan()
    large = golden_plan.preprocessing.model_copy(update={"size": (128, 256, 256)})
    prove_once(golden_plan.model_copy(update={"preprocessing": large}))


def test_a_scan_without_masks_is_no_cache_of_this_plan(
    command: dict[str, Any], cache: CohortArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = CohortArrays(cache.images, cache.labels, cache.patients, cache.holdout, cache.withdrawn)
    monkeypatch.setattr(local_round, "load_cache", lambda _: (bare, None))
    with pytest.raises(CacheUnreadable, match="has no masks: scan the archive again"):
        work(command).data(holdout=False)


@pytest.mark.parametrize(
    ("name", "size", "error"),
    [
        ("cnn-small", [16, 24], WrongNetwork),
        ("unet-small-3d", [16, 24], WrongNetwork),
        ("unet-small-2d", [16, 20], InputIndivisible),
    ],
)
def test_work_with_a_network_that_does_not_fit_is_not_begun(
    command: dict[str, Any], name: str, size: list[int], error: type[Exception]
) -> None:
    value = plan().model_dump(mode="json")
    value["model"]["name"], value["preprocessing"]["size"] = name, size
    with pytest.raises(error):
        LocalRound.of(command | {"plan": value})


# --- before anything is done -------------------------------------------------------------------------
def test_the_steward_reads_which_series_is_meant() -> None:
    ((heading, said),) = _series(golden.segmentation_plan())
    assert heading == "Which series"
    assert said == (
        "the one CT series of each imaging study with 20 to 800 slices, 0.5 to 5.5 mm apart, axial, of image type "
        "AXIAL, not of image type LOCALIZER or DERIVED, also such as were processed (SECONDARY); where several fit, "
        "none"
    )
    assert _series(golden.plan()) == []
