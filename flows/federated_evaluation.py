"""`federated-evaluation`: how good finished models are on the patients of all hospitals, with intervals.

A hospital's patients are measured with a model in one sum and never in a second one over other hospitals: the
difference would be single hospitals' numbers. So what a study's rounds measured is read, not asked for again; other
models are evaluated by a plan that names them, which stewards approve (docs/adr/0020).
"""

from functools import partial
from typing import Annotated

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from flows import coordinator as home
from flows.at_work import State_, at_work, explained, hands, not_enough, run_name
from flows.coordinator import Coordinator
from flows.driver import StudyDriver
from flows.federated_statistics import not_counted
from flows.measured_pages import finished_page, rounds_page
from flows.round_work import RoundWork
from flows.store import measurements, rounds
from flows.store.database import reading
from flows.store.studies import Study, find
from flows.timeline import single_sum, witness

ALL_MEASURED = "ALL_MODELS_MEASURED"


@flow(name="federated-evaluation", flow_run_name=run_name, persist_result=False, log_prints=False)
@explained
async def federated_evaluation(plan: str, number: Annotated[int, Field(ge=0, le=10_000)] = 0) -> State_:
    """Show how good models are on held-back patients, with 95 % intervals; measure those that are not yet.

    A plan that trains nothing (training.rounds = 0) has its finished models measured, each in one masked sum. Of a plan
    that trains, what its rounds measured is shown, and no hospital is asked again.

    Args:
        plan: Which published plan, as NAME@REVISION.
        number: Of a plan that trains, which round; of one that does not, up to which of its models, counted from 1:
            they are measured in their order, because a hospital does nothing as of a round that is over. 0 is all.

    """
    coordinator = home.load()
    with reading(coordinator.store) as connection:
        study = find(connection, plan)
    if study.plan.training.rounds:
        return await _read(coordinator, study, number)
    if study.state == "finished":
        return await _told(coordinator, study)
    async with at_work(plan) as working:
        return await _measure(working.driver, number)


async def _read(coordinator: Coordinator, study: Study, number: int) -> State_:
    """What a study's rounds measured."""
    with reading(coordinator.store) as connection:
        records = rounds.committed(connection, study.study)
        external = measurements.of_study(connection, study.study)
    if not records or number > records[-1].round:
        wanted = f"round {number} is not committed" if number else "no round is committed"
        return Failed(name="NothingMeasured", message=f"{study.label}: {wanted}; run federated-training")
    await _page(study, rounds_page(study, records, external, number))
    return Completed(message=f"{len(records)} rounds of {study.label}: see the artifact {study.study}-evaluation")


async def _measure(driver: StudyDriver, number: int) -> State_:
    study, models = driver.study, driver.study.plan.evaluation.models
    if not models:
        return Failed(name="NothingToMeasure", message=f"{study.label} names no models: run federated-statistics")
    if number > len(models):
        return Failed(name="NoSuchModel", message=f"{study.label} names {len(models)} models")
    if (refused := await not_enough(driver, "evaluate")) is not None:
        return refused
    if (refused := await not_counted(driver)) is not None:
        return refused
    for one in range(1, (number or len(models)) + 1):
        if any(found.round == one for found in driver.measurements()):
            continue
        title = f"model {one:02d} of {len(models)}"
        state: State_ = await one_model.with_options(flow_run_name=title)(one, return_state=True)
        if not state.is_completed():
            return Failed(name=state.name or "MeasuringFailed", message=f"{title}: {state.message}")
        hands.get().publisher.wake()
    if len(driver.measurements()) == len(models):
        await witness()
        driver.finish(ALL_MEASURED)
    return await _told(driver.coordinator, study)


async def _told(coordinator: Coordinator, study: Study) -> State_:
    with reading(coordinator.store) as connection:
        found = measurements.of_study(connection, study.study)
    await _page(study, finished_page(study, found))
    return Completed(message=f"{len(found)} of {len(study.plan.evaluation.models)} models are measured")


@flow(name="model", persist_result=False, log_prints=False)
async def one_model(number: int) -> State_:
    """Measure one finished model in one masked sum."""
    model = hands.get().driver.finished_model(number)
    if model is None:
        return Failed(name="ModelGone", message="its weights are not in the blob store any more")
    found = await single_sum(number, "evaluate", partial(RoundWork.measure_apart, model=model.digest))
    if isinstance(found, State):
        return found
    return Completed(message=f"{found.metrics.count} images of {len(found.decision.members)} hospitals")


async def _page(study: Study, page: str) -> None:
    await acreate_markdown_artifact(page, key=f"{study.study}-evaluation", description=f"{study.label}: how good")
