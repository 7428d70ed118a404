"""Rounds of a sample and with stragglers in the simulation, against the same rounds by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from boundary.drawing import Selection, drawn
from boundary.learning import Training
from boundary.plan import StudyPlan, digest_of
from boundary.tensors import Vector
from infra.bench import stragglers
from infra.bench.stragglers import ON_TIME, WAYS, auroc_of, rows
from infra.hospitals.noniid import Hospital, NonIid, Vendor
from infra.simulation.comparison import Arm, plan_of
from infra.simulation.rounds import Simulation, Site
from infra.simulation.stragglers import learned_with
from tests.infra.bright_corners import images

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES, SIZES, SEED = ("east", "north", "south", "west"), (20, 8, 12, 16), 3


def simulation(rounds: int, **selection: Any) -> Simulation:
    training = Training(rounds=rounds, batch_size=8, optimizer="sgd", learning_rate=0.1, weighting="declared")
    plan: StudyPlan = plan_of(Arm("fedavg", training), NAMES, seed=1)
    plan = plan.model_copy(update={"selection": Selection(**selection)})
    return Simulation(plan, [Site(images(size, at), 10 * (at + 1)) for at, size in enumerate(SIZES)], SEED)


def stepped(study: Simulation, weights: Vector, parts: list[tuple[Vector, float]]) -> Vector:
    """FedAvg by hand: the mean of the changes, weighted."""
    total = sum(weight for _, weight in parts)
    return (weights + sum(delta.astype(np.float64) * weight for delta, weight in parts) / total).astype(np.float32)


def test_a_late_change_is_added_to_the_next_round_with_its_share() -> None:
    study = simulation(2, late="next-round", staleness=1.0)
    home = study.parts.home_of(study.base)
    weights, late = study.parts.moving_of(study.base), None
    for number in range(2):
        changes = {k: study.local(number, k, weights, home) for k in range(4)}
        parts = [(changes[k].delta, changes[k].weight) for k in (0, 1, 2)]
        if late is not None:
            parts.append((late.delta, late.weight / 2))
        late = changes[3] if late is None else None
        weights = stepped(study, weights, parts)
    learned, used = learned_with(study, frozenset({"west"}))
    assert used == 1
    np.testing.assert_allclose(learned.moving, weights, atol=2e-5)
    refused, none = learned_with(simulation(2, late="refuse"), frozenset({"west"}))
    assert none == 0
    assert np.abs(refused.moving - learned.moving).max() > 1e-3


def test_only_those_that_are_drawn_train() -> None:
    study = simulation(1, hospitals=3)
    chosen = drawn(digest_of(study.plan), 1, NAMES, 3)
    weights, home = study.parts.moving_of(study.base), study.parts.home_of(study.base)
    changes = [study.local(0, NAMES.index(silo), weights, home) for silo in chosen]
    by_hand = stepped(study, weights, [(change.delta, change.weight) for change in changes])
    np.testing.assert_allclose(learned_with(study)[0].moving, by_hand, atol=2e-6)


def test_the_rows_of_the_benchmark_name_every_way_beside_all_on_time() -> None:
    found = rows({way.name: [0.7, 0.8, 0.9] if way.name == ON_TIME else [0.6, 0.7, 0.8] for way in WAYS})
    assert len(found) == len(WAYS)
    assert [row.value for row in found] == [0.8] + [0.7] * (len(WAYS) - 1)
    assert "-0.100 in the mean" in found[1].figure


def test_a_way_is_run_on_hospitals_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(stragglers.RATES[stragglers.ARCHIVE], rounds=2)
    monkeypatch.setattr(stragglers, "RATES", {stragglers.ARCHIVE: few})
    test = images(12, 50)
    hospitals = tuple(
        Hospital(name, Vendor(1.0, 1.0, 0.0), images(size, at), images(6, at + 9), test)
        for at, (name, size) in enumerate(zip(NAMES, SIZES, strict=True))
    )
    assert 0 <= auroc_of(WAYS[-1], NonIid(hospitals), SEED) <= 1
