"""The child itself, as a real process: a scan, a training and an evaluation on small DICOM files."""

import hashlib
import io
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from boundary.errors import BadTensors
from boundary.layout import layout_for
from boundary.learning import ModelChoice
from boundary.parts import Parts, parts_of
from boundary.plan import StudyPlan, parse_plan, study_id
from boundary.secagg.selection import selected
from boundary.tensors import TensorManifest, TensorSpec, flatten, manifest_of, pack, unflatten, unpack
from compliance.accountant import epsilon
from compliance.privacy import PoissonGaussian, event_bytes
from models.errors import NoImages, NonFiniteLoss
from models.metrics import MetricLayout, read
from models.parameters import initial_tensors
from models.private.training import PrivateTraining
from models.training import LocalData
from silo_agent import local_round, trainer
from silo_agent.errors import WorkCancelled
from silo_agent.intake.errors import ArchiveDenied
from silo_agent.local_round import LocalRound
from silo_agent.trainer import Conversation, classify, serve, study_key

WITH_A_MODEL = """
import json, sys
from pathlib import Path
from torch import nn
from boundary.plan import parse_plan
from boundary.tensors import flatten, manifest_of, pack
from models import catalogue
from models.parameters import initial_tensors

class MinusTheMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

def mixing(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, classes), MinusTheMean())

catalogue._ENTRIES += (catalogue.Entry("mixing", 1, "patients of a batch mix", 16, 2050, mixing),)
plan = parse_plan(json.loads(sys.argv[2]))
tensors = initial_tensors(plan.model, 2)
Path(sys.argv[1]).write_bytes(pack(flatten(tensors, manifest_of(tensors)), manifest_of(tensors)))
from silo_agent.trainer import main
main(["--threads", "1"])
"""


class Child:
    """A real one."""

    def __init__(self, log: Path, *program: str) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-u", *(program or ("-m", "silo_agent.trainer", "--threads", "1"))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
            )  # fmt: skip

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def event(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def outcome(self, **command: Any) -> tuple[Any, int]:
        """The last event of a command, and how often progress was told."""
        self.tell(json.dumps(command).encode())
        steps = 0
        while (event := self.event())["event"] == "progress":
            steps += 1
        return event, steps

    def close(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(20)


@pytest.fixture(scope="module")
def child(work: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """One for the tests of real work: importing torch and MONAI takes seconds. First it writes the initial model."""
    log = tmp_path_factory.mktemp("child") / "child.log"
    made = Child(log, "-c", WITH_A_MODEL, work["model"], json.dumps(work["plan"]))
    yield made
    made.close()


@pytest.fixture
def light_child(tmp_path: Path) -> Iterator[Child]:
    """One that a test may break; it imports nothing heavy before its first work."""
    made = Child(tmp_path / "child.log")
    yield made
    made.process.kill()
    made.close()


@pytest.fixture(scope="module")
def plan(make_plan_for: Any, new_card: Any) -> StudyPlan:
    made: StudyPlan = make_plan_for([new_card(name) for name in ("st-olavs", "charite", "utrecht")])
    return made


@pytest.fixture(scope="module")
def work(plan: StudyPlan, hospital_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The parts of a command that all share."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "dataset.key").write_bytes(secrets.token_bytes(32))
    return {
        "plan": plan.model_dump(mode="json"), "study": study_id(plan),
        "source": {"kind": "folder", "path": str(hospital_data / "dicom")},
        "labels": {"kind": "csv", "path": str(hospital_data / "labels.csv")}, "key_file": str(folder / "dataset.key"),
        "cache": str(folder / "cache"), "device": "cpu", "model": str(folder / "model.safetensors"),
        "out": str(folder / "result" / "vector"), "withdrawn": {"before": [], "after": []},
    }  # fmt: skip


# --- real work ---------------------------------------------------------------------------------------
def test_scan_train_and_evaluate(child: Child, work: dict[str, Any]) -> None:
    scanned, looked = child.outcome(do="scan", **work)
    assert scanned["event"] == "done", scanned
    report = scanned["result"]
    assert (report["problems"], report["used"], looked) == ([], 24, 25)

    trained, steps = child.outcome(do="train", **work)
    assert trained["event"] == "done", trained
    assert steps >= 1
    size = trained["result"]["parameters"]
    layout = layout_for("train", parameters=size, metrics=0)
    data = Path(work["out"]).read_bytes()
    assert len(data) == layout.plain_bytes
    numbers = np.frombuffer(data[: layout.numbers_bytes], "<f8")
    assert np.abs(np.frombuffer(data[layout.numbers_bytes :], "<f4")).max() > 0
    images = sum(report["images"]["training"].values())
    assert numbers[layout.where("weight")] == numbers[layout.where("images")] == images
    assert numbers[layout.where("clipped")] == 0, "counted when the vector is masked"
    assert Path(work["out"]).stat().st_mode & 0o077 == 0

    evaluated, _ = child.outcome(do="evaluate", **work)
    assert evaluated["event"] == "done", evaluated
    metrics = MetricLayout(2)
    assert evaluated["result"]["metrics"] == metrics.size
    found = read(np.fromfile(work["out"], "<f8"), metrics)
    assert found.count == 24 - images


def test_images_are_counted_and_normalised_as_they_are(child: Child, work: dict[str, Any]) -> None:
    from silo_agent.intake.cache import load_cache

    child.outcome(do="scan", **work)
    arrays, _ = load_cache(Path(work["cache"]))
    images, labels = arrays.images[~arrays.holdout].astype(np.float64), arrays.labels[~arrays.holdout]
    counted, _ = child.outcome(do="statistics", **work)
    assert counted["event"] == "done", counted
    assert counted["result"]["metrics"] == 2
    per_image = images.mean(axis=(1, 2, 3)).sum(), np.square(images).mean(axis=(1, 2, 3)).sum()
    expected = [len(images), *per_image, *np.bincount(labels, minlength=2)]
    assert np.fromfile(work["out"], "<f8") == pytest.approx(expected, rel=1e-9)

    found = []
    for scale in (None, {"mean": 0.5, "deviation": 0.1}):
        child.outcome(do="evaluate", **work, normalisation=scale)
        found.append(read(np.fromfile(work["out"], "<f8"), MetricLayout(2)).loss)
    assert found[0] != found[1]

    child.outcome(do="scan", **work, held_back=True)
    arrays, _ = load_cache(Path(work["cache"]))
    assert arrays.holdout.all(), "nobody is trained on where the plan only validates"
    child.outcome(do="validate", **work)
    assert read(np.fromfile(work["out"], "<f8"), MetricLayout(2)).count == len(arrays.images)


def test_a_share_of_the_weights_is_sent_and_the_rest_is_carried_over(
    child: Child, work: dict[str, Any], tmp_path: Path
) -> None:
    child.outcome(do="scan", **work)
    key, residual = bytes(range(32)), tmp_path / "residual"
    aggregation = work["plan"]["aggregation"] | {"random_share": 0.25, "error_feedback": True}
    sparse = work | {
        "plan": work["plan"] | {"aggregation": aggregation}, "selection": key.hex(), "residual": str(residual),
    }  # fmt: skip
    trained, _ = child.outcome(do="train", **sparse)
    assert trained["event"] == "done", trained
    left = Path(work["out"]).with_suffix(".residual")
    over = np.fromfile(left, "<f4")
    sent = trained["result"]["parameters"]
    assert sent == round(len(over) / 4)
    chosen = selected(key, len(over), sent)
    assert not over[chosen].any()
    assert np.count_nonzero(over) > len(over) / 2
    assert Path(work["out"]).stat().st_size == layout_for("train", parameters=sent, metrics=0).plain_bytes

    np.full(len(over), 1000, "<f4").tofile(residual)
    child.outcome(do="train", **sparse)
    data = Path(work["out"]).read_bytes()
    numbers, weights = np.frombuffer(data[:32], "<f8"), np.frombuffer(data[32:], "<f4")
    assert weights / numbers[2] == pytest.approx(1000, rel=0.01)  # the change itself is small beside it
    unchosen = np.delete(np.fromfile(left, "<f4"), chosen)
    assert unchosen == pytest.approx(1000, rel=0.01)


def parted(
    work: dict[str, Any], folder: Path, *, model: dict[str, Any], **training: Any
) -> tuple[dict[str, Any], Parts]:
    """The same work where not everything moves: a base beside the model, and a home that is not there yet."""
    plan = work["plan"] | {
        "model": work["plan"]["model"] | model, "training": work["plan"]["training"] | training,
    }  # fmt: skip
    chosen = parse_plan(plan).model
    tensors = initial_tensors(chosen, 2)
    parts, first = parts_of(chosen, manifest_of(tensors)), flatten(tensors, manifest_of(tensors))
    (folder / "base").write_bytes(pack(first, parts.whole))
    (folder / "moving").write_bytes(pack(parts.moving_of(first), parts.moving))
    places = {"base": str(folder / "base"), "model": str(folder / "moving"), "home": str(folder / "home")}
    return work | {"plan": plan, "out": str(folder / "vector")} | places, parts


def test_only_what_is_trained_and_moves_is_sent(child: Child, work: dict[str, Any], tmp_path: Path) -> None:
    ours, parts = parted(work, tmp_path, model={"trained": ["class_layers.*"]})
    child.outcome(do="scan", **ours)
    trained, _ = child.outcome(do="train", **ours)
    assert trained["event"] == "done", trained
    assert trained["result"]["parameters"] == parts.moving.size < 0.01 * parts.whole.size
    layout = layout_for("train", parameters=parts.moving.size, metrics=0)
    assert Path(ours["out"]).stat().st_size == layout.plain_bytes
    assert np.count_nonzero(np.fromfile(ours["out"], "<f4", offset=layout.numbers_bytes)) > parts.moving.size / 2
    assert not Path(ours["out"]).with_suffix(".home").exists()
    without, _ = child.outcome(do="train", **ours | {"base": None})
    assert (without["event"], without["code"]) == ("failed", "BAD_TENSORS")


@pytest.mark.parametrize("which", ["one weight", "another seed"])
def test_nobody_chooses_what_is_trained_upon(child: Child, work: dict[str, Any], tmp_path: Path, which: str) -> None:
    """Frozen weights are the plan's: crafted ones would make a head's change tell of single images."""
    ours, parts = parted(work, tmp_path, model={"trained": ["class_layers.*"]})
    child.outcome(do="scan", **ours)
    base = unpack(Path(ours["base"]).read_bytes(), parts.whole)
    if which == "one weight":
        base[parts.whole.size // 2] += 0.001
    else:
        other = parse_plan(ours["plan"]).model.model_copy(update={"initial_seed": 99})
        base = flatten(initial_tensors(other, 2), parts.whole)
    for do in ("train", "evaluate"):
        Path(ours["base"]).write_bytes(pack(base, parts.whole))
        refused, _ = child.outcome(do=do, **ours)
        assert (refused["event"], refused["code"]) == ("failed", "BAD_TENSORS")
        assert "what is not trained" in refused["detail"]
        assert not Path(ours["base"]).exists(), "it is fetched again, and a right one may come"


def test_what_stays_home_is_trained_kept_and_used(child: Child, work: dict[str, Any], tmp_path: Path) -> None:
    ours, parts = parted(work, tmp_path, model={"home": ["*norm*"]})
    child.outcome(do="scan", **ours)
    trained, _ = child.outcome(do="train", **ours)
    assert trained["event"] == "done", trained
    layout = layout_for("train", parameters=parts.moving.size, metrics=0)
    assert Path(ours["out"]).stat().st_size == layout.plain_bytes
    kept = Path(ours["out"]).with_suffix(".home")
    home, begun = np.fromfile(kept, "<f4"), parts.home_of(unpack(Path(ours["base"]).read_bytes(), parts.whole))
    assert home.shape == (parts.home.size,)
    assert 0 < np.abs(home - begun).max() < 0.5

    def loss() -> float:
        found, _ = child.outcome(do="evaluate", **ours)
        assert found["event"] == "done", found
        return read(np.fromfile(ours["out"], "<f8"), MetricLayout(2)).loss

    first = loss()
    begun.tofile(ours["home"])
    assert loss() == first, "what is not there yet is as the study began"
    (3 * home + 1).tofile(ours["home"])
    assert loss() != first
    home[1:].tofile(ours["home"])
    damaged, _ = child.outcome(do="evaluate", **ours)
    assert (damaged["event"], damaged["code"]) == ("failed", "BAD_TENSORS")


def test_adapters_upon_the_hospitals_own_file_and_a_model_in_half_the_bytes(
    child: Child, work: dict[str, Any], tmp_path: Path
) -> None:
    """Everything that makes a round small, as a real child does it: what leaves is the adapters' change alone."""
    body = initial_tensors(ModelChoice(name="vit-small", version=1, initial_seed=5), 2)
    data = safetensors.numpy.save({f"vit.{name}": tensor for name, tensor in body.items()})
    (tmp_path / "chest.safetensors").write_bytes(data)
    pin = {"file": "chest.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "strip": "vit."}
    lora = {"rank": 2, "alpha": 4.0, "targets": ["blocks.*.attention.*"]}
    model = {"name": "vit-small", "version": 1, "trained": ["*.lora_*", "head.*"], "pretrained": pin, "lora": lora}
    plan = work["plan"] | {"model": model, "aggregation": work["plan"]["aggregation"] | {"downlink": "bfloat16"}}
    chosen = parse_plan(plan).model
    tensors = initial_tensors(chosen, 2, tmp_path)
    parts, first = parts_of(chosen, manifest_of(tensors)), flatten(tensors, manifest_of(tensors))
    (tmp_path / "base").write_bytes(pack(first, parts.whole))
    (tmp_path / "moving").write_bytes(pack(parts.moving_of(first), parts.moving, "bfloat16"))
    ours = work | {
        "plan": plan, "weights": str(tmp_path), "base": str(tmp_path / "base"), "model": str(tmp_path / "moving"),
        "out": str(tmp_path / "vector"), "begins": True,
    }  # fmt: skip
    child.outcome(do="scan", **work)
    begun, _ = child.outcome(do="begin", **ours)
    assert begun["event"] == "done", begun
    trained, _ = child.outcome(do="train", **ours)
    assert trained["event"] == "done", trained
    moving = 6 * 2 * ((192 + 576) + (192 + 192)) + 2 * 192 + 2
    assert trained["result"]["parameters"] == parts.moving.size == moving < 0.006 * parts.whole.size
    assert Path(ours["model"]).stat().st_size < 2 * moving + 8192
    layout = layout_for("train", parameters=moving, metrics=0)
    change = unflatten(np.fromfile(ours["out"], "<f4", offset=layout.numbers_bytes), parts.moving)
    assert all(tensor.any() for name, tensor in change.items() if not name.endswith("lora_a.weight")), "A waits for B"

    (tmp_path / "moving").write_bytes(pack(parts.moving_of(first), parts.moving))
    plain, _ = child.outcome(do="train", **ours)
    assert (plain["event"], plain["code"]) == ("failed", "BAD_TENSORS"), "the plan says bfloat16"
    (tmp_path / "moving").write_bytes(pack(parts.moving_of(first) + 0.01, parts.moving, "bfloat16"))
    crafted, _ = child.outcome(do="train", **ours)
    assert (crafted["event"], crafted["code"]) == ("failed", "BAD_TENSORS")
    assert "the first round's model" in crafted["detail"]
    later, _ = child.outcome(do="train", **ours | {"begins": False})
    assert later["event"] == "done", "from then on all have changed it"

    other = plan | {"model": model | {"pretrained": pin | {"sha256": "0" * 64}}}
    for where, code in ((str(tmp_path), "PRETRAINED_DIFFERS"), (None, "PRETRAINED_MISSING")):
        for do in ("begin", "train"):
            refused, _ = child.outcome(do=do, **ours | {"plan": other, "weights": where})
            assert (refused["event"], refused["code"]) == ("failed", code)
    nowhere = plan | {"model": model | {"pretrained": None, "lora": lora | {"targets": ["decoder.*"]}}}
    refused, _ = child.outcome(do="begin", **ours | {"plan": nowhere})
    assert (refused["event"], refused["code"]) == ("failed", "UNFIT_ADAPTERS")


def test_fednova_divides_by_the_steps_and_says_how_many(child: Child, work: dict[str, Any], tmp_path: Path) -> None:
    how = {"strategy": "fednova", "optimizer": "sgd", "batch_size": 64, "local_epochs": 3, "learning_rate": 0.01}
    ours, parts = parted(work, tmp_path, model={}, **how)
    child.outcome(do="scan", **ours)
    trained, _ = child.outcome(do="train", **ours)
    assert trained["event"] == "done", trained
    layout = layout_for("train", parameters=parts.whole.size, metrics=0, steps=True)
    assert Path(ours["out"]).stat().st_size == layout.plain_bytes
    numbers = np.fromfile(ours["out"], "<f8", layout.numbers)
    weight = numbers[layout.where("weight")][0]
    assert numbers[layout.where("steps")][0] == weight * 3
    normalised = np.fromfile(ours["out"], "<f4", offset=layout.numbers_bytes)
    plain, _ = parted(work, tmp_path, model={}, **how | {"strategy": "fedavg"})
    child.outcome(do="train", **plain)
    whole = np.fromfile(plain["out"], "<f4", offset=layout.numbers_bytes - 8)
    scale = np.abs(whole).max()  # all images in each batch, whose order is all that chance decides
    np.testing.assert_allclose(3 * normalised / scale, whole / scale, atol=1e-3)


def test_rfa_sends_a_change_that_is_as_long_as_the_hospitals_weight(
    child: Child, work: dict[str, Any], tmp_path: Path
) -> None:
    """And beside it its weight over the change's length, of what moves only."""
    how = {"strategy": "rfa", "optimizer": "sgd", "batch_size": 64, "learning_rate": 0.05, "weighting": "declared"}
    ours, parts = parted(work | {"declared": 40}, tmp_path, model={"home": ["*norm*"]}, **how)
    child.outcome(do="scan", **ours)
    trained, _ = child.outcome(do="train", **ours)
    assert trained["event"] == "done", trained
    layout = layout_for("train", parameters=parts.moving.size, metrics=0)
    weight = np.fromfile(ours["out"], "<f8", layout.numbers)[layout.where("weight")][0]
    change = np.fromfile(ours["out"], "<f4", offset=layout.numbers_bytes).astype(np.float64)
    assert np.linalg.norm(change) == pytest.approx(40, rel=1e-5)
    assert 0 < weight != 40


def test_scaffold_steps_along_the_correction_and_keeps_its_own_control(
    child: Child, work: dict[str, Any], tmp_path: Path
) -> None:
    """With one batch an epoch and a rate so small that the gradient stays the same, all of it can be worked out."""
    rate = 1e-4
    how = {
        "strategy": "scaffold", "optimizer": "sgd", "batch_size": 64, "local_epochs": 2, "learning_rate": rate,
        "weighting": "equal",
    }  # fmt: skip
    ours, parts = parted(work, tmp_path, model={}, **how)
    size = parts.whole.size
    ours |= {"own_control": str(tmp_path / "own"), "control": None}
    child.outcome(do="scan", **ours)

    def trained() -> np.ndarray[Any, Any]:
        """Minus the mean gradient of the steps."""
        done, _ = child.outcome(do="train", **ours)
        assert done["event"] == "done", done
        assert done["result"]["parameters"] == size, "one vector: two of the same change would tell hospitals apart"
        layout = layout_for("train", parameters=size, metrics=0, steps=True)
        assert Path(ours["out"]).stat().st_size == layout.plain_bytes
        numbers = np.fromfile(ours["out"], "<f8", layout.numbers)
        assert (numbers[layout.where("weight")][0], numbers[layout.where("steps")][0]) == (1, 2)
        return np.fromfile(ours["out"], "<f4", offset=layout.numbers_bytes) / rate

    rng = np.random.default_rng(3)
    own, common = (rng.normal(0, 1, size).astype(np.float32) for _ in range(2))
    own.tofile(tmp_path / "own")
    gradient = -trained()
    kept, scale = Path(ours["out"]).with_suffix(".control"), np.abs(gradient).max()
    np.testing.assert_allclose(np.fromfile(kept, "<f4"), gradient, atol=1e-4 * scale)  # begun anew, whatever was kept

    spec = TensorSpec(name="control", shape=(size,))
    (tmp_path / "common").write_bytes(pack(common, TensorManifest(tensors=(spec,))))
    ours |= {"control": str(tmp_path / "common")}
    np.testing.assert_allclose(-trained(), gradient - own + common, atol=0.05)
    np.testing.assert_allclose(np.fromfile(kept, "<f4"), gradient, atol=0.05)
    own[1:].tofile(tmp_path / "own")
    damaged, _ = child.outcome(do="train", **ours)
    assert (damaged["event"], damaged["code"]) == ("failed", "BAD_TENSORS")


WEIGHTS: dict[str, tuple[str, int, float]] = {
    "by images": ("images", 10_000, 5.0),
    "by patients": ("patients", 10_000, 3.0),
    "all alike": ("equal", 10_000, 1.0),
    "by images, of which the plan counts so many at most": ("images", 4, 4.0),
    "by patients, of whom the plan counts so many at most": ("patients", 2, 2.0),
    "by what is declared, however many there are": ("declared", 10_000, 800.0),
    "by what is declared, of which the plan counts so many at most": ("declared", 500, 500.0),
}


@pytest.mark.parametrize(("weighting", "most", "weight"), WEIGHTS.values(), ids=WEIGHTS)
def test_what_one_hospital_can_add_to_a_sum_is_bounded(
    plan: StudyPlan, weighting: str, most: int, weight: float
) -> None:
    from models.training import LocalData
    from silo_agent.local_round import LocalRound, _weight

    changed = plan.model_copy(
        update={
            "training": plan.training.model_copy(update={"weighting": weighting}),
            "aggregation": plan.aggregation.model_copy(update={"max_weight": most}),
        }
    )
    data = LocalData(np.zeros((5, 1, 2, 2), np.float32), np.zeros(5, np.int64), np.array([0, 0, 1, 1, 2]))
    work = LocalRound(changed, manifest_of({}), Path(), Path(), Path(), "cpu", declared=800)
    assert _weight(work, data) == weight


# --- with a guarantee per patient --------------------------------------------------------------------
TOLD = {
    "steps": 3, "rate": 0.5, "denominator": 12.0, "clip": 0.5, "noise_multiplier": 1.0, "images": 2,
    "bands": [0.0, 1.0, 1.0, 1.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def privately(work: dict[str, Any]) -> dict[str, Any]:
    """The same work with a plan with a guarantee, but for the `private` part of the command."""
    guarantee = {"mechanism": "patient-dp", "noise_multiplier": 1.0, "clip": 0.5, "steps": 3}
    training = work["plan"]["training"] | {"weighting": "declared", "optimizer": "sgd", "learning_rate": 0.5}
    plan = work["plan"] | {"privacy": guarantee, "training": training}
    return work | {"plan": plan, "declared": 24, "at_once": 4}


def vector_of(work: dict[str, Any], parameters: int) -> tuple[Any, Any, Any]:
    """The layout of a private training, its numbers and its weights."""
    layout, data = layout_for("train", parameters=parameters, metrics=0, bands=4), Path(work["out"]).read_bytes()
    assert len(data) == layout.plain_bytes
    return (
        layout,
        np.frombuffer(data[: layout.numbers_bytes], "<f8"),
        np.frombuffer(data[layout.numbers_bytes :], "<f4"),
    )


def test_a_private_training_reports_weights_and_bands_and_no_loss(child: Child, privately: dict[str, Any]) -> None:
    child.outcome(do="scan", **privately)
    trained, steps = child.outcome(do="train", **privately, private=TOLD)
    assert trained["event"] == "done", trained
    assert 1 <= steps <= 3
    layout, numbers, weights = vector_of(privately, trained["result"]["parameters"])
    assert [numbers[layout.where(name)].tolist() for name in ("weight", "clipped")] == [[24], [0]]
    assert numbers[layout.where("bands")].tolist() == TOLD["bands"]
    assert np.abs(weights).max() > 0
    assert Path(privately["out"]).stat().st_mode & 0o077 == 0


def test_a_private_training_for_rfa_weighs_by_what_has_its_noise_already(
    child: Child, privately: dict[str, Any]
) -> None:
    """Its length is made of nothing but public numbers and weights that are noised: it costs no more."""
    training = privately["plan"]["training"] | {"strategy": "rfa"}
    ours = privately | {"plan": privately["plan"] | {"training": training}}
    child.outcome(do="scan", **ours)
    trained, _ = child.outcome(do="train", **ours, private=TOLD)
    layout, numbers, weights = vector_of(ours, trained["result"]["parameters"])
    length = np.linalg.norm(weights.astype(np.float64))
    assert length == pytest.approx(24, rel=1e-5)
    assert 0 < numbers[layout.where("weight")][0] != 24


def test_two_private_trainings_of_the_same_command_have_nothing_in_common(
    child: Child, privately: dict[str, Any]
) -> None:
    """Noise that can be repeated can be taken off."""
    child.outcome(do="scan", **privately)
    found = []
    for _ in range(2):
        trained, _ = child.outcome(do="train", **privately, private=TOLD | {"rate": 1e-12})  # nobody: noise alone
        found.append(vector_of(privately, trained["result"]["parameters"])[2])
    assert abs(np.corrcoef(*found)[0, 1]) < 6 / np.sqrt(len(found[0]))


def test_what_leaves_has_the_noise_that_was_accounted_for(child: Child, privately: dict[str, Any]) -> None:
    """One step in which nobody is drawn: the change is the learning rate times noise of sigma C over q N."""
    child.outcome(do="scan", **privately)
    alone = TOLD | {"steps": 1, "rate": 1e-12, "noise_multiplier": 1.5}
    trained, _ = child.outcome(do="train", **privately, private=alone)
    _, numbers, weights = vector_of(privately, trained["result"]["parameters"])
    noise = weights.astype(np.float64) / numbers[0]
    expected = 0.5 * 1.5 * 0.5 / 12.0  # learning rate, multiplier, clip, denominator
    tolerance = 6 / np.sqrt(2 * len(noise))
    assert noise.std() == pytest.approx(expected, rel=tolerance)
    assert abs(noise.mean()) < 6 * expected / np.sqrt(len(noise))


def test_a_private_training_that_nobody_reserved_is_refused_and_writes_nothing(
    child: Child, privately: dict[str, Any], tmp_path: Path
) -> None:
    child.outcome(do="scan", **privately)
    elsewhere = privately | {"out": str(tmp_path / "result" / "vector")}
    for missing in ({}, {"private": None}):
        failed, _ = child.outcome(do="train", **elsewhere, **missing)
        assert (failed["event"], failed["code"], failed["retryable"]) == ("failed", "INTERNAL", False)
        assert "no budget was reserved" in failed["detail"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", sorted(TOLD))
def test_a_private_training_with_a_number_missing_is_refused_and_writes_nothing(
    child: Child, privately: dict[str, Any], tmp_path: Path, key: str
) -> None:
    """No number of a guarantee has a default."""
    elsewhere = privately | {"out": str(tmp_path / "result" / "vector")}
    failed, _ = child.outcome(do="train", **elsewhere, private={k: v for k, v in TOLD.items() if k != key})
    assert (failed["event"], failed["code"]) == ("failed", "INTERNAL")
    assert list(tmp_path.iterdir()) == []


def test_warming_up_proves_the_network_of_a_private_plan(child: Child, privately: dict[str, Any]) -> None:
    warm, _ = child.outcome(do="warm", **privately)
    assert warm["event"] == "done", warm
    mixing = {"name": "mixing", "version": 1, "initial_seed": 0}
    plain = privately | {"plan": privately["plan"] | {"model": mixing, "privacy": {"mechanism": "none"}}}
    warm, _ = child.outcome(do="warm", **plain)
    assert warm["event"] == "done", "nobody asked for a proof"
    for _ in range(2):
        unfit = privately | {"plan": privately["plan"] | {"model": mixing}}
        failed, _ = child.outcome(do="warm", **unfit)
        assert (failed["event"], failed["code"]) == ("failed", "SAMPLES_MIX"), "what was not proven is not remembered"


def test_a_network_that_was_not_proven_is_not_trained_privately(
    child: Child, privately: dict[str, Any], tmp_path: Path
) -> None:
    """The order may come before the child has warmed up, or in another process."""
    child.outcome(do="scan", **privately)
    mixing = privately["plan"] | {"model": {"name": "mixing", "version": 1, "initial_seed": 0}}
    weights = {"1.weight": np.zeros((2, 1024), "<f4"), "1.bias": np.zeros(2, "<f4")}
    (tmp_path / "model").write_bytes(pack(flatten(weights, manifest_of(weights)), manifest_of(weights)))
    unfit = privately | {"plan": mixing, "model": str(tmp_path / "model"), "out": str(tmp_path / "result" / "vector")}
    failed, _ = child.outcome(do="train", **unfit, private=TOLD)
    assert (failed["event"], failed["code"]) == ("failed", "SAMPLES_MIX"), failed
    assert not (tmp_path / "result").exists()


def test_what_there_is_no_memory_for_is_found_before_it_is_paid_for(plan: StudyPlan, tmp_path: Path) -> None:
    """In this process, since the limit would end the other; a step on zeros is tried once for each network and size."""
    seen: list[tuple[int, ...]] = []

    def run(self: PrivateTraining, _module: Any, data: LocalData, *_: Any, **__: Any) -> None:
        seen.append(data.images.shape)
        if len(seen) == 1:
            raise MemoryError
        assert (data.images == 0).all()

    command = {"plan": plan.model_dump(mode="json"), "threads": 1, "device": "cpu", "at_once": 5}
    work = LocalRound.of(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrivateTraining, "run", run)
        patch.setattr(local_round, "_tried", set())
        with pytest.raises(MemoryError):
            local_round.try_once(work)
        for _ in range(2):
            local_round.try_once(work)
    assert seen == [(5, 1, *plan.preprocessing.size)] * 2


def test_a_cancel_stops_a_private_training_between_two_steps(child: Child, privately: dict[str, Any]) -> None:
    child.outcome(do="scan", **privately)
    child.tell(json.dumps({"do": "train", "private": TOLD | {"steps": 100_000}} | privately).encode())
    assert child.event()["event"] == "progress"
    child.tell(b'{"do": "cancel"}')
    while (event := child.event())["event"] == "progress":
        assert event["step"] < event["steps"] == 100_000
    assert event == {"event": "cancelled"}


def test_a_second_opinion_on_a_cost_is_closer_than_the_first(child: Child) -> None:
    event = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=15)
    said, _ = child.outcome(do="cost", event=event_bytes(event).decode(), delta=1e-3)
    assert said["event"] == "done", said
    found = said["result"]
    assert 0 < found["epsilon"] <= found["upper"] < epsilon([event], 1e-3) < 1.5 * found["epsilon"]


def test_a_cost_that_cannot_be_computed_is_answered_with_the_reason(child: Child) -> None:
    event = PoissonGaussian(noise_multiplier=0.01, sampling_rate=1.0, steps=1)
    said, _ = child.outcome(do="cost", event=event_bytes(event).decode(), delta=1e-3)
    assert (said["event"], said["result"]["epsilon"]) == ("done", None)
    assert "nothing is private" in said["result"]["why"]


def test_what_is_no_release_has_no_cost(child: Child) -> None:
    said, _ = child.outcome(do="cost", event='{"mechanism":"trust-me"}', delta=1e-3)
    assert (said["event"], said["code"]) == ("failed", "UNKNOWN_PRIVACY_EVENT")


def test_weights_that_are_no_model_are_refused_by_the_child(child: Child, work: dict[str, Any], tmp_path: Path) -> None:
    child.outcome(do="scan", **work)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95 a pickle, perhaps")
    failed, _ = child.outcome(do="train", **(work | {"model": str(tmp_path / "model.safetensors")}))
    assert (failed["event"], failed["code"], failed["retryable"]) == ("failed", "BAD_TENSORS", False)


def test_a_cancel_stops_a_training_between_two_steps(child: Child, work: dict[str, Any]) -> None:
    child.outcome(do="scan", **work)
    endless = work | {"plan": work["plan"] | {"training": work["plan"]["training"] | {"local_epochs": 100}}}
    child.tell(json.dumps({"do": "train"} | endless).encode())
    first = child.event()
    assert first["event"] == "progress"
    child.tell(b'{"do": "cancel"}')
    while (event := child.event())["event"] == "progress":
        assert event["step"] < event["steps"]
    assert event == {"event": "cancelled"}
    warm, _ = child.outcome(do="warm", **work)
    assert warm["event"] == "done", "and the child is there for the next command"


def test_the_end_of_the_input_ends_a_training(child: Child, work: dict[str, Any]) -> None:
    """The daemon was killed: its child must not train on, unseen, for hours. (The last test of this child.)"""
    endless = work | {"plan": work["plan"] | {"training": work["plan"]["training"] | {"local_epochs": 100}}}
    child.tell(json.dumps({"do": "train"} | endless).encode())
    child.event()
    assert child.process.stdin is not None
    child.process.stdin.close()
    child.process.wait(15)


# --- a child alone -----------------------------------------------------------------------------------
def test_nothing_heavy_is_imported_before_there_is_work() -> None:
    loaded = "{name.partition('.')[0] for name, module in sys.modules.items() if module is not None}"
    script = f"import sys, silo_agent.trainer; print(*sorted({loaded}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "monai", "numpy", "pydicom", "httpx", "sqlite3", "cryptography"} & set(done.stdout.split())


def test_the_end_of_the_input_ends_it(light_child: Child) -> None:
    assert light_child.close() == 0


@pytest.mark.parametrize("line", [b"no JSON", b"[1]", b"{}", b"42", b"\xff\xfe"])
def test_what_is_no_command_ends_it(light_child: Child, line: bytes) -> None:
    """Found by reading: the listening thread died of it, and the child stayed, deaf, for ever."""
    light_child.tell(line)
    assert light_child.process.wait(10) == 0


def test_an_unknown_command_is_a_failure_and_no_end(light_child: Child) -> None:
    for _ in range(2):
        failed, _ = light_child.outcome(do="format-disk")
        assert (failed["event"], failed["code"]) == ("failed", "INTERNAL")


def test_it_can_be_killed_at_any_time(light_child: Child) -> None:
    light_child.process.send_signal(signal.SIGKILL)
    assert light_child.process.wait(10) == -9


# --- the conversation --------------------------------------------------------------------------------
def talk(*lines: str) -> tuple[Conversation, io.StringIO]:
    said = io.StringIO()
    return Conversation(io.StringIO("".join(line + "\n" for line in lines)), said), said


def test_a_cancel_is_for_the_command_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by reading: a cancel that came quickly after its command was forgotten."""
    conversation, said = talk('{"do": "train"}', '{"do": "cancel"}')
    seen = []

    def train(_command: Any, now: Conversation) -> dict[str, Any]:
        seen.append(now.is_cancelled())
        raise WorkCancelled("stopped")

    monkeypatch.setattr(trainer, "_train", train)
    serve(conversation, 1)
    assert seen == [True]
    assert json.loads(said.getvalue()) == {"event": "cancelled"}


def test_what_fails_is_told_by_code_and_its_traceback_stays_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_command: Any, _now: Any) -> dict[str, Any]:
        raise ZeroDivisionError("patient 42")

    monkeypatch.setattr(trainer, "_scan", fail)
    conversation, said = talk('{"do": "scan"}')
    serve(conversation, 1)
    assert json.loads(said.getvalue())["code"] == "INTERNAL"
    assert "ZeroDivisionError: patient 42" in capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


CAUSES = {
    "the disk is full": (OSError(28, "No space left"), ("DISK_FULL", True)),
    "the quota is used up": (OSError(122, "Disk quota exceeded"), ("DISK_FULL", True)),
    "no memory": (MemoryError(), ("OUT_OF_MEMORY", True)),
    "no memory on the GPU": (OutOfMemoryError("CUDA out of memory"), ("OUT_OF_MEMORY", True)),
    "no memory for a tensor": (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        ("OUT_OF_MEMORY", True),
    ),
    "the archive cannot be read": (PermissionError(13, "denied"), ("DATASET_UNREADABLE", False)),
    "a peer's weights": (BadTensors("NaN"), ("BAD_TENSORS", False)),
    "an empty training set": (NoImages("none"), ("NO_IMAGES", False)),
    "a diverged training": (NonFiniteLoss(3), ("NON_FINITE_LOSS", False)),
    "an intake error": (ArchiveDenied("denied"), ("ARCHIVE_DENIED", False)),
    "anything else": (KeyError("patient 42"), ("INTERNAL", False)),
}


@pytest.mark.parametrize(("why", "code"), CAUSES.values(), ids=CAUSES)
def test_causes_and_their_codes(why: Exception, code: tuple[str, bool]) -> None:
    assert classify(why) == code


def test_two_studies_have_unrelated_keys() -> None:
    master = secrets.token_bytes(32)
    assert study_key(master, "a") != study_key(master, "b")
    assert len(study_key(master, "a")) == 32


def test_work_that_never_looks_is_ended_after_the_input() -> None:
    """A hung network share: the process must not outlive the daemon for ever."""
    script = (
        "import time\nfrom silo_agent import trainer\ntrainer._END_SECONDS = 0.2\n"
        "trainer._scan = lambda command, conversation: time.sleep(60)\ntrainer.main(['--threads', '1'])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(b'{"do": "scan"}\n')
    process.stdin.close()
    assert process.wait(20) == 1
