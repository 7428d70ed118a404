"""What the child does after the last round: three models compared on held-back patients, and only outcomes go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.errors import InvalidPlan
from boundary.layout import COMPARED, layout_for
from boundary.learning import Personalisation
from boundary.parts import parts_of
from boundary.plan import StudyPlan
from boundary.tensors import flatten, pack, unflatten, unpack
from compliance.empirical import area, roc
from flows.publication import checked_tensors
from models import personal
from models.catalogue import build
from models.errors import NonFiniteLoss
from models.parameters import initial_tensors, load_tensors, manifest
from models.private.training import PrivateSteps
from models.training import evaluate
from silo_agent import local_round, personal_round
from silo_agent.errors import WorkCancelled, WorkFailed
from silo_agent.intake.cache import CohortArrays
from silo_agent.local_round import LocalRound, Private
from silo_agent.personal_round import Watch, personalise_round, train_beside
from silo_agent.results import DITTO, MODEL, ROW

TRAINING, HELD_BACK = 48, 24
USUAL: dict[str, Any] = {
    "model": {"name": "cnn-small", "version": 1},
    "training": {"rounds": 2, "local_epochs": 2, "batch_size": 8, "learning_rate": 0.01},
}
Make = Callable[..., LocalRound]
QUIET = Watch(lambda _step, _steps: None, lambda: False)


def arrays() -> CohortArrays:
    """One image of each patient, of two classes that differ in brightness. One training patient has withdrawn."""
    rng = np.random.default_rng(1)
    count = TRAINING + HELD_BACK
    labels = np.arange(count) % 2
    images = rng.normal(0.35 + 0.3 * labels[:, None, None, None], 0.15, (count, 1, 16, 16)).astype(np.float32)
    withdrawn = np.arange(count) == 3
    images[withdrawn] = np.nan
    return CohortArrays(images, labels, np.arange(count), np.arange(count) >= TRAINING, withdrawn)


@pytest.fixture
def make(make_plan_for: Any, new_card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(local_round, "load_cache", lambda _: (arrays(), None))

    def make(how: dict[str, Any], private: Private | None = None, **changes: Any) -> LocalRound:
        plan: StudyPlan = make_plan_for(
            [new_card(name) for name in ("st-olavs", "charite", "utrecht")], personalisation=how,
            preprocessing={"size": [16, 16], "intensity": "window", "low": 0, "high": 1},
            **(USUAL | changes),
        )  # fmt: skip
        work = LocalRound.of({"plan": plan.model_dump(mode="json"), "device": "cpu", "threads": 1})
        model = tmp_path / "model.safetensors"
        model.write_bytes(pack(work.parts.moving_of(federated(plan)), work.parts.moving))
        base = None if work.parts.moves_whole else tmp_path / "base.safetensors"
        if base is not None:
            base.write_bytes(pack(federated(plan), work.parts.whole))
        return LocalRound(
            plan, work.parts, tmp_path, model, tmp_path / "out" / "vector", "cpu", personal=tmp_path / "ditto",
            private=private, base=base,
        )  # fmt: skip

    return make


def federated(plan: StudyPlan) -> NDArray[np.float32]:
    """As the study begins: it tells the classes apart by chance only."""
    tensors = initial_tensors(plan.model, 2)
    return flatten(tensors, manifest(plan.model, 2))


def area_of(work: LocalRound, whole: NDArray[np.float32]) -> float:
    """The exact area on the held-back patients, by other code."""
    import torch

    module = build(work.plan.model, 2).eval()
    load_tensors(module, unflatten(whole, work.parts.whole))
    data = work.data(holdout=True)
    with torch.inference_mode():
        logits = module(torch.from_numpy(data.images)).numpy().astype(np.float64)
    return area(roc((logits[:, 1] - logits[:, 0]).tolist(), (data.labels == 1).tolist()))


def test_three_models_are_compared_and_only_outcomes_are_in_the_vector(make: Make) -> None:
    work = make({"epochs": 4})
    steps: list[tuple[int, int]] = []
    done = personalise_round(work, Watch(lambda step, of: steps.append((step, of)), lambda: False))
    assert done == {"parameters": work.parts.whole.size, "metrics": 0}
    layout = layout_for("personalise", parameters=1, metrics=1)
    numbers = np.fromfile(work.out, "<f8")
    assert numbers.nbytes == layout.plain_bytes == 96, "nothing else has room in what leaves"
    row = json.loads(work.out.with_suffix(ROW).read_bytes())
    told = {(one, other): (values, verdict) for one, other, values, verdict in row["differences"]}
    assert set(told) == set(COMPARED)
    for pair, outcome in zip(COMPARED, numbers.reshape(3, 4), strict=True):
        (value, low, high), verdict = told[pair]
        assert outcome.tolist() == [*(float(verdict == name) for name in ("better", "same", "worse")), value]
        assert low <= value <= high
        assert value == pytest.approx(row["figures"][pair[0]][0] - row["figures"][pair[1]][0])
    assert told["federated", "local"][1] == "worse", "a model that has learned nothing"
    assert told["personal", "federated"][1] == "better"
    assert (row["patients"], row["figure"], row["model"]) == (HELD_BACK, "AUROC", "cnn-small@1")
    own = unpack(work.out.with_suffix(MODEL).read_bytes(), work.parts.whole)
    assert row["figures"]["personal"][0] == pytest.approx(area_of(work, own), abs=1e-9)
    assert row["figures"]["federated"][0] == pytest.approx(area_of(work, federated(work.plan)), abs=1e-9)
    assert {one.stat().st_mode & 0o077 for one in work.out.parent.iterdir() if one != work.out} == {0}
    assert steps[-1] == (24, 24), "alone as many epochs as all rounds: 4 of 6 steps"


def test_only_what_the_plan_says_is_tuned(make: Make) -> None:
    work = make({"parameters": ["*adn*"]})
    names = {spec.name for spec in work.parts.whole.tensors}
    personalise_round(work, QUIET)
    own = unflatten(unpack(work.out.with_suffix(MODEL).read_bytes(), work.parts.whole), work.parts.whole)
    before = unflatten(federated(work.plan), work.parts.whole)
    changed = {name for name in names if not np.array_equal(own[name], before[name])}
    assert changed == {name for name in names if "adn" in name}


def test_adapters_are_tuned_and_the_model_that_is_kept_has_none(make: Make) -> None:
    lora = {"rank": 1, "alpha": 4.0, "targets": ["5"]}
    work = make({"epochs": 4}, model={"name": "cnn-small", "version": 1, "lora": lora, "trained": ["*.lora_?.weight"]})
    personalise_round(work, QUIET)
    row = json.loads(work.out.with_suffix(ROW).read_bytes())
    plain = work.plan.model_copy(update={"model": work.plan.model.model_copy(update={"lora": None, "trained": ("*",)})})
    whole = manifest(plain.model, 2)
    own = unflatten(unpack(work.out.with_suffix(MODEL).read_bytes(), whole), whole)
    begun = initial_tensors(plain.model, 2)
    assert {name for name in own if not np.array_equal(own[name], begun[name])} == {"5.weight"}
    unadapted = LocalRound(plain, parts_of(plain.model, whole), work.cache, work.model, work.out, "cpu")
    assert area_of(unadapted, flatten(own, whole)) == pytest.approx(row["figures"]["personal"][0], abs=1e-3)


def test_a_pattern_that_fits_nothing_is_found_at_publication_and_here(make: Make) -> None:
    for refuse in (lambda: make({"parameters": ["haed.*"]}), lambda: checked_tensors(
        make({}).plan.model_copy(update={"personalisation": Personalisation(parameters=("haed.*",))}), None
    )):  # fmt: skip
        with pytest.raises(InvalidPlan, match=r"'haed\.\*' fits no parameter that is trained"):
            refuse()


def test_ditto_goes_on_from_the_rounds_and_is_carried(make: Make) -> None:
    work = make({"method": "ditto", "epochs": 2, "strength": 0.01})
    train_beside(work, QUIET)
    kept = work.out.with_suffix(DITTO)
    first = np.fromfile(kept, "<f4")
    assert first.shape == (work.parts.whole.size,)
    assert area_of(work, first) > area_of(work, federated(work.plan))
    kept.replace(work.personal)
    work = make({"method": "ditto", "learning_rate": 1e-7})
    personalise_round(work, QUIET)
    own = unpack(work.out.with_suffix(MODEL).read_bytes(), work.parts.whole)
    assert 0 < np.abs(own - first).max() < 1e-5 < np.abs(first - federated(work.plan)).max(), "on from there"
    assert json.loads(work.out.with_suffix(ROW).read_bytes())["method"] == "ditto"


def diverges(*_: Any, **__: Any) -> None:
    raise NonFiniteLoss(3)


def test_one_that_diverges_beside_a_round_is_dropped(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained for the study is not lost with it."""
    work = make({"method": "ditto"})
    monkeypatch.setattr(personal, "train", diverges)
    train_beside(work, QUIET)
    assert not work.out.with_suffix(DITTO).exists()


def test_where_training_alone_comes_to_nothing_the_others_are_compared(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make({})
    monkeypatch.setattr(personal_round, "train", diverges)
    personalise_round(work, QUIET)
    row = json.loads(work.out.with_suffix(ROW).read_bytes())
    assert set(row["figures"]) == {"federated", "personal"}
    numbers = np.fromfile(work.out, "<f8").reshape(3, 4)
    assert not numbers[:2].any(), "nobody can tell"
    assert numbers[2, :3].sum() == 1


def test_a_kept_model_of_another_size_is_refused(make: Make) -> None:
    work = make({"method": "ditto"})
    np.zeros(7, "<f4").tofile(work.personal)
    with pytest.raises(Exception, match="float32") as refused:
        train_beside(work, QUIET)
    assert getattr(refused.value, "code", "") == "BAD_TENSORS"


PRIVATE: dict[str, Any] = {
    "privacy": {"mechanism": "patient-dp", "noise_multiplier": 1.0, "steps": 3},
    "training": {"rounds": 2, "weighting": "equal", "optimizer": "sgd", "learning_rate": 0.5},
}


def test_with_a_guarantee_its_own_has_noise_and_none_is_trained_alone(make: Make) -> None:
    steps = PrivateSteps(steps=3, rate=0.5, denominator=24.0, clip=1.0, noise_multiplier=1.0, images=1)
    work = make({}, Private(steps, (0, 0, 0, 0)), **PRIVATE)
    personalise_round(work, QUIET)
    row = json.loads(work.out.with_suffix(ROW).read_bytes())
    assert set(row["figures"]) == {"federated", "personal"}
    numbers = np.fromfile(work.out, "<f8").reshape(3, 4)
    assert not numbers[:2].any()
    assert numbers[2, :3].sum() == 1
    first = work.out.with_suffix(MODEL).read_bytes()
    personalise_round(work, QUIET)
    assert work.out.with_suffix(MODEL).read_bytes() != first, "noise that can be had again is none"


def test_with_a_guarantee_nothing_is_trained_that_nobody_reserved(make: Make) -> None:
    work = make({}, None, **PRIVATE)
    with pytest.raises(WorkFailed, match="no budget was reserved"):
        personalise_round(work, QUIET)
    assert not work.out.parent.exists()


def test_it_can_be_stopped_in_either_training_and_while_it_looks(make: Make) -> None:
    work, asked = make({"epochs": 1}), [0]

    def stopped_after(count: int) -> Callable[[], bool]:
        asked[0] = 0

        def stop() -> bool:
            asked[0] += 1
            return asked[0] > count

        return stop

    for count in (0, 7, 6 + 24):
        with pytest.raises(WorkCancelled):
            personalise_round(work, Watch(lambda _step, _steps: None, stopped_after(count)))
        assert not work.out.exists()


def test_the_loss_of_a_round_does_not_see_it(make: Make) -> None:
    """Ditto's own model is trained beside the round's, and from a copy: what is sent stays what it was."""
    work = make({"method": "ditto"})
    module = work.network(work.incoming())
    train_beside(work, QUIET)
    again = work.network(work.incoming())
    from models.metrics import MetricLayout

    data, layout = work.data(holdout=True), MetricLayout(2)
    assert np.array_equal(evaluate(module, data, layout), evaluate(again, data, layout))
