"""Hospitals that only validate, finished models, cohorts in counts: real agents' parts, real masks, the real store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from boundary.messages import Collection, Refused, SharesRevealed, WorkOrder
from boundary.parties import trainers, validators
from boundary.parts import parts_of
from boundary.plan import parse_plan, to_json
from boundary.robustness import RolledBack
from boundary.tensors import pack
from compliance.events import ModelMeasured, SumOpened
from compliance.records import to_bytes
from flows.describing import description_page, hidden, shown_per_patient
from flows.driver import StudyDriver
from flows.measured_pages import finished_page, rounds_page
from flows.publication import begin_study, check_finished, pinned
from flows.readings import bounds
from flows.records import Description, Measurement, Side
from flows.round_work import RoundWork
from infra import golden
from infra.driving import PARAMETERS, attempts, collect, one_round, run, trail, work_of
from infra.federation import SimulatedFederation, Work, make_federation

TRAINING, OTHERS = ("h1", "h2", "h3"), ("h4", "h5", "h6")


def works(silos: tuple[str, ...], make: Callable[[int], Work] = work_of) -> dict[str, Work]:
    return {silo: make(int(silo[1])) for silo in silos}


async def round_with_validation(driver: StudyDriver, number: int = 1) -> tuple[Any, Measurement]:
    """As the flow does it."""
    work = driver.open_round(number)
    work, candidate = await attempts(work, "train", work.model_in, RoundWork.aggregate)
    work, evaluated = await attempts(work, "evaluate", candidate.model, RoundWork.measure)
    digest = candidate.model.digest

    def keep(work: RoundWork, summed: Any) -> Measurement:
        return work.measure_apart(summed, digest)

    work, external = await attempts(work, "validate", candidate.model, keep)
    return work.commit(candidate, evaluated, 0.0), external


def test_internal_and_external_results_are_told_apart(tmp_path: Path) -> None:
    made = make_federation(
        tmp_path, works((*TRAINING, *OTHERS)), parameters=PARAMETERS, rounds=1, validating=OTHERS
    )  # fmt: skip
    record, external = run(made, round_with_validation)
    assert record.registered == record.contributing == record.ready == TRAINING
    assert record.absent == {}
    assert not record.is_partial
    assert record.evaluate.members == TRAINING
    assert external.decision.members == OTHERS
    assert record.metrics.count == 2 * (1 + 2 + 3)
    assert external.metrics.count == 2 * (4 + 5 + 6)
    (said,) = [event for event in trail(made) if isinstance(event, ModelMeasured)]
    assert (said.model, said.survivors) == (record.model_out.digest, external.survivors)
    phases = [event.phase for event in trail(made) if isinstance(event, SumOpened)]
    assert phases == ["train", "evaluate", "validate"]
    page = rounds_page(made.study, [record], [external])
    assert "| 1 | 1.000 (" in page
    assert "| 1, external | 1.000 (" in page
    for silo in OTHERS:
        assert {said.collection.phase for said in made.hospitals[silo].heard(WorkOrder)} == {"validate"}
    made.close()


def test_too_few_to_be_told_apart_are_in_the_sum_of_all(tmp_path: Path) -> None:
    made = make_federation(
        tmp_path, works((*TRAINING, *OTHERS[:2])), parameters=PARAMETERS, rounds=1, validating=OTHERS[:2]
    )
    record = run(made, one_round)
    assert record.contributing == TRAINING
    assert record.evaluate.members == (*TRAINING, *OTHERS[:2])
    assert record.metrics.count == 2 * (1 + 2 + 3 + 4 + 5)
    assert "no external result can be told" in rounds_page(made.study, [record], [])
    assert "1 rounds, as measured on held-back patients" in rounds_page(made.study, [record], [])
    unheard = record.model_copy(update={"round": 2, "metrics": None})
    undone = unheard.model_copy(update={"round": 3, "rolled_back": RolledBack.VOTED_DOWN, "tried": record.model_out})
    page = rounds_page(made.study, [record, unheard, undone], [])
    assert "3 rounds; not measured, for want of hospitals: 2; rolled back: 3" in page
    made.close()


def test_a_hospital_that_only_validates_refuses_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the coordinator orders: the plan that was approved there says no."""
    made = make_federation(tmp_path, works((*TRAINING, "h4")), parameters=PARAMETERS, rounds=1, validating=["h4"])
    monkeypatch.setattr(RoundWork, "partakers", lambda work, _: work.consenting)

    async def story(driver: StudyDriver) -> None:
        work = driver.open_round(1)
        await collect(work, "train", work.model_in)

    with pytest.raises(Exception, match="1/train/1"):
        run(made, story)  # the others will not have it in a cohort with them either
    (refused,) = made.hospitals["h4"].said(Refused)
    assert refused.code == "NOT_OUR_PART"
    assert made.hospitals["h4"].worked == []
    made.close()


def without_the_last(made: SimulatedFederation) -> SimulatedFederation:
    """The next revision of the plan, of all hospitals but one: what a coordinator would subtract."""
    value = json.loads(to_json(made.plan))
    fewer = parse_plan(value | {"revision": 2, "hospitals": value["hospitals"][:-1]})
    weights = np.zeros(PARAMETERS, np.float32)
    published = begin_study(made.coordinator, fewer, weights, parts_of(fewer.model, made.study.model.manifest))
    made.hospitals.pop(max(made.hospitals)).journal.close()
    return SimulatedFederation(made.coordinator, made.hospitals, fewer, published)


def test_a_plan_names_hospitals_with_their_roles_and_gets_their_keys_from_the_roster(tmp_path: Path) -> None:
    made = make_federation(tmp_path, works((*TRAINING, "h4")), parameters=PARAMETERS)
    text = golden.plan_toml()
    head, _, rest = text.partition("[[hospitals]]")
    rest = rest[rest.index("[purpose]") :]
    tables = "".join(f'[[hospitals]]\nsilo = "{silo}"\n' for silo in TRAINING)
    wanted = f'{head}{tables}[[hospitals]]\nsilo = "h4"\nrole = "validate"\n{rest}'
    plan = pinned(made.coordinator, wanted.replace('home = ["*norm*"]', "home = []"))
    assert (trainers(plan), validators(plan)) == (TRAINING, ("h4",))
    assert plan.keys["h4"] == made.hospitals["h4"].key.public
    made.close()


# --- finished models ---------------------------------------------------------------------------------
def finished(federation: SimulatedFederation, value: float) -> str:
    """The digest of a model that the coordinator keeps, as another study has left it."""
    weights = np.full(PARAMETERS, value, np.float32)
    return federation.coordinator.blobs.put_bytes(pack(weights, federation.study.parts.whole)).digest


def evaluating(folder: Path, silos: tuple[str, ...], *values: float) -> SimulatedFederation:
    """A plan that trains nothing, and evaluates models of these weights."""
    other = make_federation(folder / "other", works(TRAINING), parameters=PARAMETERS)
    models = [finished(other, value) for value in values]
    changes = {"training": {"rounds": 0}, "evaluation": {"models": models}}
    made = make_federation(folder / "here", works(silos), parameters=PARAMETERS, changes=changes)
    assert [finished(made, value) for value in values] == models
    other.close()
    return made


def measured(number: int) -> Callable[[StudyDriver], Any]:
    async def story(driver: StudyDriver) -> Measurement:
        model, work = driver.finished_model(number), driver.open_round(number)
        assert model is not None
        digest = model.digest
        _, found = await attempts(work, "evaluate", model, lambda work, summed: work.measure_apart(summed, digest))
        return found  # type: ignore[no-any-return]

    return story


def test_finished_models_are_measured_each_in_one_sum_of_all(tmp_path: Path) -> None:
    made = evaluating(tmp_path, TRAINING, 1.0, 2.0)
    check_finished(made.coordinator, made.plan, made.study.parts)
    first, second = run(made, measured(1)), run(made, measured(2))
    assert [first.model, second.model] == list(made.plan.evaluation.models)
    assert {first.decision.members, second.decision.members} == {TRAINING}
    assert first.metrics.count == 12
    again = run(made, measured(1), "another run")
    assert to_bytes(again) == to_bytes(first), "what was measured stays"
    assert sum(isinstance(event, ModelMeasured) for event in trail(made)) == 2
    page = finished_page(made.study, [first, second])
    assert first.model[:19] in page
    assert "12 | h1, h2, h3 |" in page
    made.close()


def test_a_model_that_the_plan_does_not_name_is_not_measured(tmp_path: Path) -> None:
    made = evaluating(tmp_path, TRAINING, 1.0)
    smuggled = finished(made, 3.0)

    async def story(driver: StudyDriver) -> None:
        work, model = driver.open_round(1), driver.finished_model(1)
        assert model is not None
        await collect(work, "evaluate", model.model_copy(update={"digest": smuggled}))

    with pytest.raises(Exception, match="1/evaluate/1"):
        run(made, story)
    assert {hospital.said(Refused)[0].code for hospital in made.hospitals.values()} == {"NOT_APPROVED"}
    made.close()


def test_a_model_is_measured_by_a_hospital_in_one_study_only(tmp_path: Path) -> None:
    """Two sums of it over other hospitals would differ by one hospital's numbers (`silo_agent.sums`)."""
    made = evaluating(tmp_path, (*TRAINING, "h4"), 1.0)
    run(made, measured(1))
    again = without_the_last(made)

    async def story(driver: StudyDriver) -> None:
        work, model = driver.open_round(1), driver.finished_model(1)
        assert model is not None
        await collect(work, "evaluate", model)

    with pytest.raises(Exception, match="1/evaluate/1"):
        run(again, story)
    said = {hospital.said(Refused)[-1].code for hospital in made.hospitals.values()}
    assert said == {"EVALUATED_BEFORE"}
    shown = [one for hospital in made.hospitals.values() for one in hospital.said(SharesRevealed)]
    assert {one.collection.study for one in shown} == {made.study.study}, "no mask of the second sum was given away"
    made.close()


# --- cohorts -----------------------------------------------------------------------------------------
def described_work(number: int) -> Work:
    """`number` patients to train on and twice as many held back, one image each of class 0, all of intensity 0.52."""

    def work(collection: Collection) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        n, twice = float(number), 2.0 * number
        shares = np.zeros(20)
        shares[10] = 3 * n
        sides = [n, n, n, 0.0, twice, twice, twice, 0.0]
        return np.array([n, 0.52 * n, 0.52**2 * n, n, 0.0, *sides, *shares, 3 * n, 0, 0, 0, 0]), None

    return work


def test_a_cohort_is_described_once_and_small_cells_are_not_told(tmp_path: Path) -> None:
    made = make_federation(
        tmp_path, works(TRAINING, described_work), parameters=PARAMETERS,
        changes={"training": {"rounds": 0}, "dataset": {"name": "images", "modalities": ["CT"], "described": True}},
    )  # fmt: skip

    async def story(driver: StudyDriver) -> Any:
        assert driver.lacks_statistics
        work = driver.open_round(1)
        _, found = await attempts(work, "statistics", work.model_in, RoundWork.count)
        driver.learn(found)
        assert not driver.lacks_statistics
        assert driver.study.normalisation is None, "the plan does not ask for one"
        return driver.study, found

    study, found = run(made, story)
    cohort = found.description
    assert (cohort.training.patients, cohort.held_back.patients) == (6, 12)
    assert cohort.held_back.classes == (12, 0)
    assert (cohort.intensities[10], sum(cohort.intensities)) == (1.0, 1.0)
    assert cohort.per_patient == (18, 0, 0, 0, 0)
    page = description_page(study, found)
    assert "| patients | fewer than 10 | 12 |" in page
    assert "| 0.50 to 0.55 | 100.0% |" in page
    made.close()


def test_a_cohort_is_not_counted_again_over_nearly_the_same_hospitals(tmp_path: Path) -> None:
    changes = {"training": {"rounds": 0}, "dataset": {"name": "images", "modalities": ["CT"], "described": True}}
    made = make_federation(
        tmp_path, works((*TRAINING, "h4"), described_work), parameters=PARAMETERS, changes=changes, attempts=1
    )

    async def story(driver: StudyDriver) -> Any:
        work = driver.open_round(1)
        return await attempts(work, "statistics", work.model_in, RoundWork.count)

    run(made, story)
    again = without_the_last(made)
    with pytest.raises(AssertionError, match="no attempt went through"):
        run(again, story)
    assert {hospital.said(Refused)[-1].code for hospital in made.hospitals.values()} == {"COUNTED_BEFORE"}
    made.close()


def test_a_small_cell_cannot_be_worked_out_from_the_others() -> None:
    assert hidden((100, 50, 0)) == ("100", "50", "0")
    assert hidden((100, 50, 3)) == ("100", "not told", "not told")
    assert hidden((100, 1, 2)) == ("not told", "not told", "not told"), "two small ones and their sum would tell both"
    assert hidden((3,)) == ("not told",)


def test_a_small_count_of_patients_does_not_follow_from_their_images() -> None:
    def shown(training: int, held_back: int, *per_patient: int) -> tuple[str, ...]:
        sides = (Side(patients=patients, images=100, classes=(60, 40)) for patients in (training, held_back))
        shares = (1.0, *[0.0] * 19)
        names = ("training", "held_back")
        said = dict(zip(names, sides, strict=True))
        return shown_per_patient(Description(**said, intensities=shares, per_patient=per_patient))

    nothing = ("not told",) * 5
    assert shown(80, 20, 60, 40, 0, 0, 0) == ("60", "40", "0", "0", "0")
    assert shown(95, 5, 60, 40, 0, 0, 0) == nothing, "100 less 95 would be those who are held back"
    assert shown(28, 20, 8, 40, 0, 0, 0) == nothing, "48 patients with 88 images are 8 with one and 40 with two"


def test_more_than_two_classes_are_as_sure_as_the_rarest() -> None:
    from compliance.records import GlobalMetrics

    confusion = ((40, 0, 0), (0, 40, 0), (0, 0, 10))
    found = GlobalMetrics(count=90, loss=0.1, accuracy=0.9, auroc=0.9, balanced_accuracy=None, confusion=confusion)
    low, high = bounds(found)["auroc"]
    assert low < bounds(found)["accuracy"][0]
    assert high - low > 0.2
