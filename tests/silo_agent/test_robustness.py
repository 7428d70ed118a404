"""A hospital's part in what keeps a bad change from counting: it shortens its own, and votes on everybody's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boundary.layout import VectorLayout, layout_in
from boundary.tensors import Vector, flatten, pack
from infra import golden
from models.measuring import layout_of, mean_loss_of
from models.metrics import LARGEST_LOSS
from models.parameters import initial_tensors
from silo_agent import local_round
from silo_agent.intake.cache import CohortArrays
from silo_agent.local_round import LocalRound, evaluate_round, train_round
from silo_agent.results import RESIDUAL

CLIP = 0.05


def images(held_back: int = 4) -> CohortArrays:
    """Of 24 patients one each, dark or bright; the first `held_back` are not trained on."""
    labels = np.arange(24) % 2
    dark = np.random.default_rng(3).uniform(0, 0.1, (24, 1, 16, 16)) + 0.6 * labels[:, None, None, None]
    patients = np.arange(24)
    return CohortArrays(
        dark.astype(np.float32), labels, patients, patients < held_back, np.zeros(24, bool), None
    )  # fmt: skip


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "load_cache", lambda _: (images(), None))


@pytest.fixture
def command(tmp_path: Path, cache: None) -> dict[str, Any]:
    plan = golden.plan().model_dump(mode="json")
    plan["model"] = {"name": "cnn-small", "version": 1}
    plan["preprocessing"] |= {"size": [16, 16], "normalise": "none"}
    plan["aggregation"] |= {"random_share": 1, "error_feedback": False, "ring": 32}
    plan["training"] |= {"local_epochs": 10, "learning_rate": 3e-3, "strategy": "fedavg", "batch_size": 4}
    plan["robustness"] = {"clip": None, "vote": True}
    return {
        "plan": plan, "threads": 1, "device": "cpu", "cache": str(tmp_path), "model": str(tmp_path / "model"),
        "out": str(tmp_path / "out" / "vector"),
    }  # fmt: skip


def start(command: dict[str, Any]) -> tuple[LocalRound, Vector]:
    work = LocalRound.of(command)
    weights = flatten(initial_tensors(work.plan.model, 2), work.parts.whole)
    work.model.write_bytes(pack(weights, work.parts.whole))
    return work, weights


def trained(command: dict[str, Any]) -> tuple[VectorLayout, np.ndarray, np.ndarray]:
    """Its layout, numbers and change of each weight."""
    work, _ = start(command)
    train_round(work, lambda _done, _planned: None, lambda: False)
    layout = layout_in(work.plan, "train", parameters=work.parts.moving.size, metrics=0)
    numbers = np.fromfile(work.out, "<f8", layout.numbers)
    weighted = np.fromfile(work.out, "<f4", offset=layout.numbers_bytes)
    return layout, numbers, weighted / numbers[layout.where("weight")]


def with_clip(command: dict[str, Any], clip: float | None, **sums: Any) -> dict[str, Any]:
    plan = command["plan"]
    return command | {"plan": plan | {"robustness": {"clip": clip}, "aggregation": plan["aggregation"] | sums}}


def test_a_change_that_is_too_long_is_shortened_and_counted(command: dict[str, Any]) -> None:
    _, _, plain = trained(with_clip(command, None))
    assert np.linalg.norm(plain) > 2 * CLIP
    layout, numbers, change = trained(with_clip(command, CLIP))
    assert np.linalg.norm(change) == pytest.approx(CLIP, rel=1e-4)
    assert numbers[layout.where("shortened")] == 1
    layout, numbers, change = trained(with_clip(command, 1e3))
    assert np.linalg.norm(change) > 2 * CLIP
    assert numbers[layout.where("shortened")] == 0


def test_what_is_shortened_is_not_made_up_for_in_the_next_round(command: dict[str, Any]) -> None:
    """Error feedback carries what was not drawn, never what was cut off, or the limit would only delay it."""
    sparse = with_clip(command, CLIP, random_share=0.5, error_feedback=True) | {"selection": (b"k" * 32).hex()}
    work, _ = start(sparse)
    np.full(work.parts.moving.size, 1.0, "<f4").tofile(Path(command["cache"]) / "left")
    train_round(
        LocalRound.of(sparse | {"residual": str(Path(command["cache"]) / "left")}), lambda *_: None, lambda: False
    )
    left = np.fromfile(work.out.with_suffix(RESIDUAL), "<f4")
    assert 0 < np.linalg.norm(left) < CLIP


@pytest.mark.parametrize(("clip", "share"), [(None, 1), (CLIP, 1), (None, 0.5)], ids=["whole", "shortened", "drawn"])
def test_rfa_weighs_by_the_length_of_the_whole_change_as_it_was_shortened(
    command: dict[str, Any], clip: float | None, share: float
) -> None:
    """So what is sent of a whole change is as long as the hospital's weight by the plan, here 1."""
    training = command["plan"]["training"] | {"strategy": "rfa", "weighting": "equal"}
    asked = with_clip(command | {"plan": command["plan"] | {"training": training}}, clip, random_share=share)
    layout, numbers, change = trained(asked | {"selection": (b"k" * 32).hex()})
    length, weight = np.linalg.norm(change), numbers[layout.where("weight")][0]
    if share == 1:
        assert weight * length == pytest.approx(1, rel=1e-4)
        assert clip is None or length == pytest.approx(clip, rel=1e-4)
    else:
        assert weight * length == pytest.approx(np.sqrt(share), rel=0.2), "half of a change has half of its square"


def voted(command: dict[str, Any], model: Vector, before: Vector, **plan: Any) -> tuple[np.ndarray, list[float]]:
    """The metrics, and the vote: against, voted, rise."""
    folder = Path(command["cache"])
    work, _ = start(command | {"plan": command["plan"] | plan, "before": str(folder / "before")})
    work.model.write_bytes(pack(model, work.parts.whole))
    (folder / "before").write_bytes(pack(before, work.parts.whole))
    said = evaluate_round(work, lambda: False)
    numbers = np.fromfile(work.out, "<f8")
    layout = layout_in(work.plan, "evaluate", parameters=said["parameters"], metrics=said["metrics"])
    assert len(numbers) == layout.numbers
    vote = [float(numbers[layout.where(name)][0]) for name in ("against", "voted", "rise")]
    return numbers[layout.where("metrics")], vote


def learned(command: dict[str, Any]) -> tuple[Vector, Vector]:
    """The weights before a training and after it."""
    _, weights = start(command)
    _, _, change = trained(with_clip(command, None))
    return weights, weights + change.astype(np.float32)


def test_a_hospital_votes_by_its_own_held_back_patients(command: dict[str, Any]) -> None:
    before, after = learned(command)
    metrics, vote = voted(command, after, before)
    assert vote[:2] == [0, 1]
    assert vote[2] < 0
    assert metrics[1] == 4, "images held back"
    flipped, vote = voted(command, before - np.float32(20) * (after - before), before)
    old, _ = voted(command, before, before)
    rise = mean_loss_of(flipped) - mean_loss_of(old)  # type: ignore[operator]
    assert vote == [1, 1, pytest.approx(rise)], "ten times the change, in the wrong direction"
    behind = after - np.float32(0.1) * (after - before)
    worse, _ = voted(command, behind, after)
    factor = mean_loss_of(worse) / mean_loss_of(metrics) - 1  # type: ignore[operator]
    for tolerance, against in ((0.9 * factor, 1), (1.1 * factor, 0)):
        assert voted(command, behind, after, robustness={"vote": True, "tolerance": tolerance})[1][0] == against


def test_a_model_whose_answers_are_no_numbers_is_voted_down(
    command: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = learned(command)
    plain = local_round.evaluate
    asked = []

    def blind(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:  # the new one comes second
            raise local_round.NonFiniteLogits("the model answers NaN or infinity")
        return plain(*arguments, **options)

    monkeypatch.setattr(local_round, "evaluate", blind)
    metrics, vote = voted(command, after, before)
    assert vote == [1, 1, LARGEST_LOSS]
    assert not metrics.any()


def test_who_holds_nobody_back_cannot_vote(command: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = learned(command)
    monkeypatch.setattr(local_round, "load_cache", lambda _: (images(held_back=0), None))
    metrics, vote = voted(command, after, before)
    assert vote == [0, 0, 0]
    assert not metrics.any()


def test_without_a_vote_there_are_metrics_alone(command: dict[str, Any]) -> None:
    work, _ = start(command)
    evaluate_round(work, lambda: False)
    assert len(np.fromfile(work.out, "<f8")) == layout_of(work.plan).size
