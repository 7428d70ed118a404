"""`federated-training`: the flow a coordinator schedules. It shows and paces; the driver and the engine decide.

A run reads what the store says was reached and goes on from there. Timeline: one subflow per round, in it one task
per hospital and phase. Parameters, names, logs and artifacts are read by every Prefect user: no secrets, no counts
of one hospital.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Annotated, Any, TypeVar

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field

from boundary.messages import BlobRef, Phase
from boundary.parties import trainers, validates_apart
from compliance.merkle import BrokenProof
from compliance.records import RoundRecord
from compliance.witnessing import LogInDoubt
from flows import coordinator as home
from flows import pages
from flows.collecting import CollectionFailed, Watch
from flows.driver import StudyDriver, driving
from flows.engine import HEADLINES, Standing, rounds_to_run
from flows.mlflow_book import Publisher
from flows.personalisation import Personalised
from flows.publication import propose
from flows.readiness import readiness_page, readiness_problems
from flows.records import Candidate, Evaluated, Measurement, Statistics
from flows.round_work import Gathered, RoundWork
from flows.store import rounds as stored_rounds
from flows.store.database import reading
from flows.store.studies import DrivenElsewhere, StudyUnknown, find

_LOOSE_ENDS_SECONDS = 1.0
CONSENT_SECONDS = 120.0  # how long a run waits for stewards who have not answered yet
_PROGRESS_SECONDS = 30.0  # between log lines about a hospital at work: SQLite under Prefect dislikes more

State_ = State[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hands:
    """What the tasks of a run work with. In a context variable, because Prefect records every parameter."""

    driver: StudyDriver
    publisher: Publisher


hands: ContextVar[Hands] = ContextVar("hands")
_watch: ContextVar[Watch] = ContextVar("watch")


def run_name() -> str:
    """`ct-contrast · study 7f3a90c1`; the plan as it was typed if there is no such study."""
    wanted = str(runtime.flow_run.parameters.get("plan", ""))
    try:
        with reading(home.load().store) as connection:
            study = find(connection, wanted)
    except (StudyUnknown, home.SettingsError):
        return wanted
    return f"{study.plan.name} · study {study.study.rpartition('-')[2]}"


@flow(name="federated-training", flow_run_name=run_name, persist_result=False, log_prints=False)
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
    log = get_run_logger()
    coordinator = home.load()
    driver_name = f"flow run {runtime.flow_run.id}"
    try:
        async with driving(coordinator, plan, driver_name) as driver:
            study = driver.study
            log.info("%s is study %s, plan digest %s", plan, study.study, study.plan_digest)
            if dry_run:
                return await _dry_run(driver)
            publisher = Publisher(coordinator, study)
            token = hands.set(Hands(driver, publisher))
            try:
                with publisher:
                    return await _run(driver, publisher, rounds, personalise=personalise)
            finally:
                hands.reset(token)
    except StudyUnknown as why:
        return Failed(name="UnknownPlan", message=str(why))
    except DrivenElsewhere as why:
        return Failed(name="AlreadyRunning", message=str(why))


async def _dry_run(driver: StudyDriver) -> State_:
    problems = readiness_problems(driver)
    page = readiness_page(driver, problems)
    await acreate_markdown_artifact(page, key=f"{driver.study.study}-readiness", description="Is everything ready?")
    if problems:
        return Failed(name="NotReady", message="; ".join(problems))
    return Completed(name="Ready", message="everything is ready: run again without dry_run")


async def _run(driver: StudyDriver, publisher: Publisher, wanted: int, *, personalise: bool) -> State_:
    log, study = get_run_logger(), driver.study
    propose(driver.coordinator, study)
    if not study.plan.training.rounds:
        return Failed(name="TrainsNothing", message=f"{study.label} has no rounds: run federated-evaluation")
    training = trainers(study.plan)
    consenting = [silo for silo in await consents(driver) if silo in training]
    quorum = study.plan.aggregation.quorum
    if len(consenting) < quorum:
        message = f"{len(consenting)} hospitals have approved {study.label}, {quorum} are needed in every sum"
        return Failed(name="NotApproved", message=message)
    publisher.wake()
    with reading(driver.coordinator.store) as connection:
        committed = stored_rounds.last_committed(connection, study.study)
    planned = study.plan.training.rounds
    if driver.lacks_statistics:
        counted: State_ = await statistics(return_state=True)
        if not counted.is_completed():
            return Failed(name=counted.name or "StatisticsFailed", message=f"statistics: {counted.message}")
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


# --- consent ---------------------------------------------------------------------------------------------
async def consents(driver: StudyDriver) -> list[str]:
    silos = driver.study.plan.silos
    states = await asyncio.gather(*[_each(approval, f"{silo} · approval", silo) for silo in silos])
    driver.record_consents()
    return [silo for silo, state in zip(silos, states, strict=True) if state.is_completed()]


@task(name="approval", cache_policy=NO_CACHE, persist_result=False)
async def approval(silo: str) -> State_:
    """Wait for the steward's answer, but not for ever: a hospital may still join a later round."""
    driver = hands.get().driver
    try:
        answer = await asyncio.wait_for(driver.consent_of(silo), CONSENT_SECONDS)
    except TimeoutError:
        return Failed(name="NoAnswer", message=f"{silo} has not answered yet; it can join a later round")
    if answer.code is not None:
        return Failed(name="Declined", message=f"{silo} declined ({answer.code})")
    return Completed(name="Approved", message=f"{silo} approved exactly this plan")


# --- before round 1 --------------------------------------------------------------------------------------
@flow(name="statistics", flow_run_name="statistics", persist_result=False, log_prints=False)
async def statistics() -> State_:
    """Count the images of all hospitals once: the plan normalises intensities over all of them."""
    driver = hands.get().driver
    try:
        work = driver.open_round(1)
    except (LogInDoubt, BrokenProof) as why:
        return Failed(name="LogInDoubt", message=str(why))
    _, found = await attempts(work, "statistics", work.model_in, count)
    if found is None:
        return Failed(name="NoQuorum", message="too few hospitals in every attempt; run the flow to try once more")
    driver.learn(found)
    page = pages.statistics_page(driver.study, found)
    await acreate_markdown_artifact(page, key=f"{driver.study.study}-statistics", description="Images of all hospitals")
    images = f"{found.images} training images" if found.description is None else "the data"
    return Completed(message=f"{images} of {len(found.decision.members)} hospitals")


# --- after the last round --------------------------------------------------------------------------------
@flow(name="personalise", flow_run_name="personalise", persist_result=False, log_prints=False)
async def personalisation() -> State_:
    """Each hospital makes a model of its own and compares it; only at how many hospitals it is better is summed."""
    driver = hands.get().driver
    try:
        work = driver.open_round(driver.study.plan.rounds_in_all)
    except (LogInDoubt, BrokenProof) as why:
        return Failed(name="LogInDoubt", message=str(why))
    _, found = await attempts(work, "personalise", work.model_in, compare)
    if found is None:
        return Failed(name="NoQuorum", message="too few hospitals in every attempt")
    driver.learn_personalised(found)
    page = pages.personalised_page(driver.study, found)
    await acreate_markdown_artifact(page, key=f"{driver.study.study}-personalised", description="Is it worth it?")
    return Completed(message=found.headline)


# --- one round -------------------------------------------------------------------------------------------
@flow(name="round", persist_result=False, log_prints=False)
async def one_round(number: int) -> State_:
    """Train, sum, evaluate, commit."""
    log, driver = get_run_logger(), hands.get().driver
    try:
        work = driver.open_round(number)
    except (LogInDoubt, BrokenProof) as why:
        return Failed(name="LogInDoubt", message=str(why))
    candidate = work.opened.candidate
    if candidate is None:
        work, candidate = await attempts(work, "train", work.model_in, aggregate)
        if candidate is None:
            return Failed(name="NoQuorum", message="too few hospitals in every attempt; run the flow to try once more")
    begun, evaluated = monotonic(), None
    if candidate.refused is None:
        work, evaluated = await attempts(work, "evaluate", candidate.model, evaluate)
        if evaluated is None and work.must_be_voted_on(candidate):
            return Failed(name="NoVote", message="too few hospitals voted on the new model; run the flow to try again")
        if evaluated is None:
            log.warning("round %d is not evaluated", number)
        if validates_apart(driver.study.plan) and (evaluated is None or evaluated.rolled_back is None):
            work = await _validate(work, candidate.model)
    record = await commit(work, candidate, evaluated, monotonic() - begun)
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
    work, found = await attempts(work, "validate", model, partial(measure_apart, model=model.digest))
    if found is None:
        get_run_logger().warning("round %d has no external validation: too few hospitals", work.number)
    return work


async def attempts(
    work: RoundWork, phase: Phase, model: BlobRef, use: Callable[[RoundWork, Gathered], Awaitable[T]]
) -> tuple[RoundWork, T | None]:
    """Try as often as the plan says. What hospitals have computed for a failed attempt they use again."""
    for _ in range(work.study.plan.aggregation.attempts):
        try:
            return work, await use(work, await _collect(work, phase, model))
        except CollectionFailed as failed:
            get_run_logger().warning(
                "attempt %d of round %d failed: %s", failed.collection.attempt, work.number, HEADLINES[failed.reason]
            )
            work = work.give_up(failed)
    return work, None


async def _collect(work: RoundWork, phase: Phase, model: BlobRef) -> Gathered:
    """One masked sum: a task per hospital while they work, then a task per step."""
    begun = monotonic()
    async with work.collecting(phase, model) as masked:
        token = _watch.set(masked.watch)
        waiting = asyncio.gather(*[_each(hospital, f"{silo} · {phase}", silo) for silo in sorted(masked.watch.orders)])
        try:
            await masked.close_cohort()
            closed = monotonic()
            # they end with the decision; one of an earlier run may have left out a hospital that is alive again
            await asyncio.wait({waiting}, timeout=_LOOSE_ENDS_SECONDS)
            for name, act in masked.steps.items():
                await _step(f"{phase} · {name}", act)
            await waiting
        finally:
            _watch.reset(token)
            waiting.cancel()  # changes nothing for those that are through
    assert masked.decision is not None  # noqa: S101 - the cohort was closed above
    return Gathered(masked, masked.decision, closed - begun, monotonic() - closed)


async def _step(name: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run one step as a task that shows who is missing. Raises `CollectionFailed`."""
    failures: list[CollectionFailed] = []

    async def run() -> bool:
        try:
            await act()
        except CollectionFailed as failed:
            failures.append(failed)
        return not failures

    token = _act.set(run)
    try:
        shown: Any = step.with_options(task_run_name=name)
        await shown(return_state=True)
    finally:
        _act.reset(token)
    if failures:
        raise failures[0]


_act: ContextVar[Callable[[], Awaitable[bool]]] = ContextVar("act")


@task(name="step", cache_policy=NO_CACHE, persist_result=False)
async def step() -> State_:
    """One step of the masked sum. While it waits, it says for whom."""
    watch, log = _watch.get(), get_run_logger()
    doing = asyncio.ensure_future(_act.get()())
    while not doing.done():
        await asyncio.wait({doing}, timeout=_PROGRESS_SECONDS)
        if not doing.done():
            log.info("waiting for %s", ", ".join(sorted(watch.view.outstanding)) or "the last answers")
    is_through, there = await doing, len(watch.view.answered)
    missing = ", ".join(f"{silo} ({code})" for silo, code in watch.absences.items())
    if not is_through:
        return Failed(name="TooFew", message=f"{there} of {watch.view.needed} needed; not {missing}")
    if there == 0:
        return Completed(name="Found", message="decided by an earlier run of this flow")
    if missing:
        return Completed(name="Without", message=f"{there} hospitals; without {missing}")
    return Completed(message=f"all {there} hospitals")


def _each(what: Any, name: str, silo: str) -> Awaitable[State_]:
    return what.with_options(task_run_name=name)(silo, return_state=True)  # type: ignore[no-any-return]


@task(name="hospital", cache_policy=NO_CACHE, persist_result=False)
async def hospital(silo: str) -> State_:
    """Wait for one hospital to be ready; its heartbeat says how far it is."""
    watch, log = _watch.get(), get_run_logger()
    waiting = asyncio.create_task(watch.until_answered(silo))
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=_PROGRESS_SECONDS)
        if not waiting.done():
            log.info("%s · round %d: %s", silo, watch.collection.round, _where(watch, silo))
    return _standing(waiting.result(), silo, watch)


def _where(watch: Watch, silo: str) -> str:
    progress = watch.progress.get(silo)
    if progress is None or progress.seen_at is None:
        return "never seen"
    if silo in watch.view.silent:
        return f"no sign of life since {progress.seen_at:%H:%M:%S} UTC"
    if progress.activity is None or progress.activity.steps == 0:
        return "alive"
    return f"step {progress.activity.step} of {progress.activity.steps}"


def _standing(standing: Standing, silo: str, watch: Watch) -> State_:
    match standing:
        case Standing.READY:
            return Completed(name="Ready", message=f"{silo} is ready")
        case Standing.REFUSED:
            return Failed(name="Refused", message=f"{silo} refused: {watch.view.refused.get(silo, 'INTERNAL')}")
        case Standing.SILENT:
            return Failed(name="Silent", message=f"{silo}: {_where(watch, silo)}; the round went on without it")
        case Standing.NOT_NEEDED:
            return Completed(name="NotNeeded", message=f"enough others were ready before {silo}")
        case Standing.LATE | Standing.WORKING:
            return Failed(name="Late", message=f"{silo} was not ready in time; it joins the next round")


@task(name="count", task_run_name="count", cache_policy=NO_CACHE, persist_result=False)
async def _count() -> None:
    await _job.get()()


@task(name="compare", task_run_name="compare", cache_policy=NO_CACHE, persist_result=False)
async def _compare() -> None:
    await _job.get()()


@task(name="aggregate", task_run_name="aggregate", cache_policy=NO_CACHE, persist_result=False)
async def _aggregate() -> None:
    await _job.get()()


@task(name="evaluate", task_run_name="evaluate", cache_policy=NO_CACHE, persist_result=False)
async def _evaluate() -> None:
    await _job.get()()


@task(name="commit", task_run_name="commit", cache_policy=NO_CACHE, persist_result=False)
async def _commit() -> None:
    await _job.get()()


_job: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("job")


async def _as_task(shown: Any, job: Callable[..., Any], *arguments: Any) -> Any:
    """Run blocking work in a thread, shown as a task, without handing its values to Prefect."""
    found: list[Any] = []

    async def run() -> None:
        found.append(await asyncio.to_thread(job, *arguments))

    token = _job.set(run)
    try:
        await shown()
    finally:
        _job.reset(token)
    return found[0]


async def count(work: RoundWork, gathered: Gathered) -> Statistics:
    return await _as_task(_count, work.count, gathered)  # type: ignore[no-any-return]


async def compare(work: RoundWork, gathered: Gathered) -> Personalised:
    return await _as_task(_compare, work.compare, gathered)  # type: ignore[no-any-return]


async def aggregate(work: RoundWork, gathered: Gathered) -> Candidate:
    return await _as_task(_aggregate, work.aggregate, gathered)  # type: ignore[no-any-return]


async def measure_apart(work: RoundWork, gathered: Gathered, model: str) -> Measurement:
    return await _as_task(_evaluate, work.measure_apart, gathered, model)  # type: ignore[no-any-return]


async def evaluate(work: RoundWork, gathered: Gathered) -> Evaluated:
    return await _as_task(_evaluate, work.measure, gathered)  # type: ignore[no-any-return]


async def commit(work: RoundWork, candidate: Candidate, evaluated: Evaluated | None, seconds: float) -> RoundRecord:
    return await _as_task(_commit, work.commit, candidate, evaluated, seconds)  # type: ignore[no-any-return]


@task(name="witness", task_run_name="logs shown and cosigned", cache_policy=NO_CACHE, persist_result=False)
async def witness() -> State_:
    """Have every party's log shown to and cosigned by all others, once more, before the hospitals are let go."""
    missing = await hands.get().driver.witness_end()
    if missing:
        return Completed(name="Without", message=f"without {', '.join(sorted(set(missing)))}")
    return Completed(message="by all hospitals")


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
