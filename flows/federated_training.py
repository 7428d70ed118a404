"""`federated-training`: the flow a coordinator schedules. It shows and paces; the driver and the engine decide.

A run reads what the store says was reached and goes on from there. Timeline: one subflow per round, in it one task
per hospital and phase. Parameters, names, logs and artifacts are read by every Prefect user: no secrets, no counts
of one hospital.
"""

import asyncio
from functools import partial
from time import monotonic
from typing import Annotated

from prefect import flow, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from boundary.messages import BlobRef
from boundary.parties import trainers, validates_apart
from compliance.records import RoundRecord
from flows import pages
from flows.at_work import State_, at_work, explained, hands, not_enough, run_name
from flows.driver import StudyDriver
from flows.engine import rounds_to_run
from flows.federated_statistics import not_counted
from flows.mlflow_book import Publisher
from flows.readiness import readiness_page, readiness_problems
from flows.round_work import RoundWork
from flows.store import rounds as stored_rounds
from flows.store.database import reading
from flows.timeline import as_task, attempts, no_quorum, opened, single_sum, witness


@flow(name="federated-training", flow_run_name=run_name, persist_result=False, log_prints=False)
@explained
async def federated_training(
    plan: str,
    rounds: Annotated[int, Field(ge=1, le=10_000)],
    dry_run: bool = False,
    personalise: bool = True,
) -> State_:
    """Run training rounds of an approved plan across its hospitals.

    The run goes on at the first round that is not committed, so it can be scheduled ("five rounds every night"),
    cancelled and repeated at will.

    Args:
        plan: Which published plan, as NAME@REVISION.
        rounds: How many rounds to run this time, at most. The plan sets how many there are in all.
        dry_run: Only check that everything is ready (keys, approvals, hospitals, model); train nothing.
        personalise: After the last round, have hospitals personalise if the plan says so. Off ends the study without.

    """
    async with at_work(plan) as working:
        if dry_run:
            return await _dry_run(working.driver)
        return await _run(working.driver, working.publisher, rounds, personalise=personalise)


async def _dry_run(driver: StudyDriver) -> State_:
    problems = readiness_problems(driver)
    page = readiness_page(driver, problems)
    await acreate_markdown_artifact(page, key=f"{driver.study.study}-readiness", description="Is everything ready?")
    if problems:
        return Failed(name="NotReady", message="; ".join(problems))
    return Completed(name="Ready", message="everything is ready: run again without dry_run")


async def _run(driver: StudyDriver, publisher: Publisher, wanted: int, *, personalise: bool) -> State_:
    log, study = get_run_logger(), driver.study
    if not study.plan.training.rounds:
        return Failed(name="TrainsNothing", message=f"{study.label} has no rounds: run federated-evaluation")
    if (refused := await not_enough(driver, "train")) is not None:
        return refused
    publisher.wake()
    with reading(driver.coordinator.store) as connection:
        committed = stored_rounds.last_committed(connection, study.study)
    planned = study.plan.training.rounds
    if (refused := await not_counted(driver)) is not None:
        return refused
    partial = False
    for number in rounds_to_run(committed, planned, wanted):
        state: State_ = await one_round.with_options(flow_run_name=pages.round_title(number, planned))(
            number, return_state=True
        )
        if not state.is_completed():
            return Failed(name=state.name or "RoundFailed", message=f"round {number}: {state.message}")
        partial = partial or state.name == "QuorumMet"
        publisher.wake()
        await _study_page(driver, publisher)
    records = driver.records()
    if len(records) < planned:
        log.info("%d of %d rounds are committed; run the flow again to go on", len(records), planned)
        await asyncio.to_thread(publisher.catch_up)
        return Completed(name="RoundsDone", message=f"{len(records)} of {planned} rounds are committed")
    return await _end(driver, publisher, partial=partial, personalise=personalise)


async def _end(driver: StudyDriver, publisher: Publisher, *, partial: bool, personalise: bool) -> State_:
    """All rounds are committed. What goes wrong from here on does not touch the model that came out of them."""
    records, study = driver.records(), driver.study
    planned = len(records)
    await witness()
    problem = None
    if personalise and study.state != "finished" and driver.lacks_personalisation:
        compared: State_ = await personalisation(return_state=True)
        problem = None if compared.is_completed() else compared.message
        if problem is None:
            await witness()  # what came of it is in everybody's log
    if problem is None:
        driver.finish("ALL_ROUNDS_DONE")
    await release(study.label)
    await _study_page(driver, publisher)
    if problem is not None:
        again = "run the flow again to try once more, or with `personalise` off to end the study"
        return Completed(
            name="NotPersonalised", message=f"all {planned} rounds are committed; not personalised: {problem}; {again}"
        )
    if publisher.problem:
        message = f"all {planned} rounds are committed; MLflow is behind: {publisher.problem}"
        return Completed(name="DoneNotPublished", message=message)
    if partial:
        missing = sum(record.is_partial for record in records)
        return Completed(name="QuorumMet", message=f"{missing} of {planned} rounds ran without some hospital")
    sampled, there = study.plan.selection.hospitals, len(trainers(study.plan))
    hospitals = f"all {there}" if sampled is None else f"{sampled} of {there}"
    return Completed(message=f"all {planned} rounds with {hospitals} hospitals")


async def _study_page(driver: StudyDriver, publisher: Publisher) -> None:
    study = driver.study
    page = pages.study_page(study, driver.records(), publisher.link)
    await acreate_markdown_artifact(page, key=f"{study.study}-summary", description=f"{study.label} so far")


# --- after the last round --------------------------------------------------------------------------------
@flow(name="personalise", flow_run_name="personalise", persist_result=False, log_prints=False)
async def personalisation() -> State_:
    """Each hospital makes a model of its own and compares it; only at how many hospitals it is better is summed."""
    driver = hands.get().driver
    found = await single_sum(driver.study.plan.rounds_in_all, "personalise", RoundWork.compare, advice="")
    if isinstance(found, State):
        return found
    driver.learn_personalised(found)
    page = pages.personalised_page(driver.study, found)
    await acreate_markdown_artifact(page, key=f"{driver.study.study}-personalised", description="Is it worth it?")
    return Completed(message=found.headline)


# --- one round -------------------------------------------------------------------------------------------
@flow(name="round", persist_result=False, log_prints=False)
async def one_round(number: int) -> State_:
    """Train, sum, evaluate, commit."""
    log, driver = get_run_logger(), hands.get().driver
    work = opened(number)
    if isinstance(work, State):
        return work
    candidate = work.opened.candidate
    if candidate is None:
        work, candidate = await attempts(work, "train", work.model_in, RoundWork.aggregate)
        if candidate is None:
            return no_quorum()
    begun, evaluated = monotonic(), None
    if candidate.refused is None:
        work, evaluated = await attempts(work, "evaluate", candidate.model, RoundWork.measure)
        if evaluated is None and work.must_be_voted_on(candidate):
            return Failed(name="NoVote", message="too few hospitals voted on the new model; run the flow to try again")
        if evaluated is None:
            log.warning("round %d is not evaluated", number)
        if validates_apart(driver.study.plan) and (evaluated is None or evaluated.rolled_back is None):
            work = await _validate(work, candidate.model)
    record = await as_task("commit", work.commit, candidate, evaluated, monotonic() - begun)
    await _round_page(driver, record)
    if record.rolled_back is not None:
        log.warning("round %d: %s", number, pages.rollback_message(record))
        return Completed(name="RolledBack", message=pages.rollback_message(record))
    if record.is_partial:
        log.warning("round %d: %s", number, pages.partial_message(record))
        return Completed(name="QuorumMet", message=pages.partial_message(record))
    log.info("round %d committed: %s", number, pages.counts(record))
    return Completed(message=pages.counts(record))


async def _validate(work: RoundWork, model: BlobRef) -> RoundWork:
    """Measure a round's model in the hospitals that only validate; the round does not wait for them to come back."""
    if any(one.round == work.number for one in hands.get().driver.measurements()):
        return work  # an earlier run came this far
    work, found = await attempts(work, "validate", model, partial(RoundWork.measure_apart, model=model.digest))
    if found is None:
        get_run_logger().warning("round %d has no external validation: too few hospitals", work.number)
    return work


async def _round_page(driver: StudyDriver, record: RoundRecord) -> None:
    study = driver.study
    key = f"{study.study}-round-{record.round:03d}"
    title = pages.round_title(record.round, study.plan.training.rounds)
    await acreate_markdown_artifact(pages.round_page(study, record), key=key, description=title)


@task(name="release", task_run_name="register the model in MLflow", cache_policy=NO_CACHE, persist_result=False)
async def release(label: str) -> State_:
    """Bring MLflow up to date and register the last global model there."""
    publisher = hands.get().publisher
    await asyncio.to_thread(publisher.catch_up)
    if publisher.problem:
        return Failed(name="MlflowBehind", message=f"{label}: {publisher.problem}")
    return Completed(name="Registered", message=f"{label}: {publisher.link or 'no MLflow is configured'}")
